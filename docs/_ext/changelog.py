"""``CHANGELOG.md`` is the one source of the changes; the page is made from it at build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

UNDERLINES = {1: "=", 2: "-", 3: "~"}


def to_rst(markdown: str) -> str:
    """Rewrite the little Markdown that Keep a Changelog needs as reStructuredText."""
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", markdown)
    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"`\1 <\2>`__", text)

    def heading(match: re.Match[str]) -> str:
        title = match[2].replace("[", "").replace("]", "")
        return f"{title}\n{UNDERLINES[len(match[1])] * len(title)}"

    return re.sub(r"^(#{1,3}) (.+)$", heading, text, flags=re.M)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == "changelog":
        path = Path(app.srcdir).parent / "CHANGELOG.md"
        app.env.note_dependency(str(path))
        source[0] += to_rst(path.read_text(encoding="utf-8"))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
