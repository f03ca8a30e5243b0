"""Repairs to Sphinx's HTML that axe-core asks for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# A signature of several lines is written as a <dl> without a <dt>, inside a <dt>.
SIGNATURE = re.compile(r"<dl>\n((?:<dd>(?:(?!<dl>).)*?</dd>\n)+)</dl>", flags=re.S)


def signature(match: re.Match[str]) -> str:
    lines = match[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">{lines}</span>'


def repair(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        body = SIGNATURE.sub(signature, context["body"])
        # The role of a bibliography's entry is deprecated: the list they stand in has list items.
        context["body"] = body.replace(' role="doc-biblioentry"', ' role="listitem"')


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", repair)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
