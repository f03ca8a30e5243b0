"""What a reader wants to know of a tutorial beforehand and afterwards, from ``tutorials.toml``.

On its card in the gallery: what it finds, its level and its minutes. At its top: what one will do,
needs and finds. At its end: three lines to take away, and the whole code in one block.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx_gallery.py_source_parser import split_code_and_text_blocks

if TYPE_CHECKING:
    from sphinx.application import Sphinx

NOTES = Path(__file__).resolve().parents[1] / "tutorials.toml"
THUMBNAILS = "_static/thumbnails"
WORDS_A_MINUTE, LINES_A_MINUTE = 200, 20

CARD = re.compile(
    r'tooltip="[^"]*">(?P<between>\s+\.\. only:: html\n\n)'
    r"  \.\. image:: (?P<thumbnail>\S+)\n    :alt:\n"
    r'(?P<link>.*?<div class="sphx-glr-thumbnail-title">.*?</div>)',
    flags=re.S,
)


def minutes(script: Path) -> int:
    """How long it takes to read a script: its words, and the lines of its code."""
    _, blocks = split_code_and_text_blocks(script)
    words = sum(len(block.content.split()) for block in blocks if block.type == "text")
    lines = sum(len(block.content.split("\n")) for block in blocks if block.type == "code")
    return max(1, round(words / WORDS_A_MINUTE + lines / LINES_A_MINUTE))


def whole_code(script: Path) -> str:
    _, blocks = split_code_and_text_blocks(script)
    cells = (block.content.strip() for block in blocks if block.type == "code")
    code = "\n\n".join(cell for cell in cells if cell)
    return re.sub(r"^# sphinx_gallery_.*\n+", "", code, flags=re.M)


def card(app: Sphinx, notes: dict[str, Any], match: re.Match[str]) -> str:
    """A card that says what its tutorial finds, with a thumbnail for each theme."""
    name = re.search(r"tutorial_(\w+)_thumb", match["thumbnail"])[1]  # type: ignore[index]
    if name not in notes:
        return match[0]
    pictures = [match["thumbnail"]]
    if Path(app.srcdir, THUMBNAILS, f"{name}.png").exists():
        pictures = [f"/{THUMBNAILS}/{name}{theme}.png" for theme in ("", "_dark")]
    classes = ["only-light", "only-dark"] if len(pictures) == 2 else ["sphx-glr-thumbnail"]
    images = "".join(
        f"  .. image:: {picture}\n    :alt:\n    :loading: lazy\n    :class: {theme}\n\n"
        for picture, theme in zip(pictures, classes, strict=True)
    )
    [script] = Path(app.srcdir, app.config.sphinx_gallery_conf["gallery_dirs"]).glob(
        f"*/tutorial_{name}.py"
    )
    about = (
        f'\n      <div class="mcbn-finds">{notes[name]["finds"]}</div>'
        f'\n      <div class="mcbn-level">{notes[name]["level"]} · {minutes(script)} minutes</div>'
    )
    return f">{match['between']}{images}{match['link']}{about}"


def top(note: dict[str, Any], script: Path) -> str:
    return (
        ".. container:: mcbn-beforehand\n\n"
        f"   **You will** {note['will']}, in about {minutes(script)} minutes.\n"
        f"   **You need** {note['need']}.\n\n"
        f"   **In short:** {note['finds']}\n\n"
    )


def takeaways(note: dict[str, Any]) -> str:
    lines = "".join(f"   - {line}\n" for line in note["takeaways"])
    lines = re.sub(r"`([^`]+)`", r"``\1``", lines)
    return f".. admonition:: To take away\n   :class: tip mcbn-takeaways\n\n{lines}\n"


def code(script: Path) -> str:
    return (
        ".. dropdown:: The whole code, to copy\n   :class-container: mcbn-whole-code\n\n"
        f"   .. code-block:: python\n\n{textwrap.indent(whole_code(script), ' ' * 6)}\n\n"
    )


def before(mark: str, added: str, text: str) -> str:
    """The text with something added before the first of the mark; as it is where there is none."""
    return re.sub(mark, lambda match: added + match[0], text, count=1, flags=re.M)


def add(app: Sphinx, docname: str, source: list[str]) -> None:
    gallery = app.config.sphinx_gallery_conf["gallery_dirs"]
    notes = tomllib.loads(NOTES.read_text(encoding="utf-8"))
    if docname.startswith(f"{gallery}/"):
        app.env.note_dependency(str(NOTES))
    if docname == f"{gallery}/index":
        source[0] = CARD.sub(lambda match: card(app, notes, match), source[0])
    note = notes.get(docname.rpartition("/tutorial_")[2])
    if note and docname.startswith(f"{gallery}/"):
        script = Path(app.srcdir, docname).with_suffix(".py")
        text = re.sub(
            r"^=+\n\n", lambda line: line[0] + top(note, script), source[0], count=1, flags=re.M
        )
        text = before(r"^What to read next$", takeaways(note), text)
        # A script that has not run has no time.
        end = r"^\.\. rst-class:: sphx-glr-timing$|^\.\. _sphx_glr_download_"
        source[0] = before(end, code(script), text)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
