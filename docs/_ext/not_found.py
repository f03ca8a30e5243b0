"""Links from the root in the text of the page for wrong addresses, which has no place of its own.

sphinx-notfound-page does this for the rest of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes
from notfound.utils import replace_uris

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def link_from_root(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if docname == app.config.notfound_pagename:
        replace_uris(app, doctree, nodes.reference, "refuri")


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("notfound.extension")
    app.connect("doctree-resolved", link_from_root)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
