"""A description of each page, for search engines and previews: its first sentences."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LENGTH = 200
FORMULA = "\0"


def prose(paragraph: nodes.paragraph) -> str:
    """The paragraph's text on one line, without the sentences that hold a formula."""
    text = "".join(
        FORMULA if isinstance(node.parent, nodes.math) else node.astext()
        for node in paragraph.findall(nodes.Text)
    )
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return " ".join(sentence for sentence in sentences if FORMULA not in sentence)


def description(doctree: nodes.document, title: str) -> str:
    """As many whole sentences as fit, of the first paragraph that is one; else the title."""
    for paragraph in doctree.findall(nodes.paragraph):
        inside = (addnodes.toctree, nodes.note, nodes.field, nodes.table, nodes.container)
        parent = paragraph.parent
        while parent is not None and not isinstance(parent, inside):
            parent = parent.parent
        text = prose(paragraph)
        if parent is not None or not text.endswith((".", "?")):
            continue
        while len(text) > LENGTH and ". " in text:
            text = text.rpartition(". ")[0] + "."
        return text if len(text) <= LENGTH else text[: LENGTH - 1].rpartition(" ")[0] + " …"
    return title


def add(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    title = f"{app.config.project}: {re.sub('<.*?>', '', context.get('title', page))}"
    text = title if doctree is None else description(doctree, title)
    tag = f'<meta name="description" content="{escape(text)}">\n'
    context["metatags"] = context.get("metatags", "") + tag
    context["meta"] = {**(context.get("meta") or {}), "og:description": escape(text)}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", add, priority=400)  # before sphinxext-opengraph
    return {"parallel_read_safe": True, "parallel_write_safe": True}
