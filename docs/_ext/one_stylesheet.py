"""One stylesheet for each page, without the rules of the theme that no page uses.

A page of the theme asks for eight, one after another, before anything is drawn; nine tenths of the
largest are for parts that this site does not have. They are joined when the site has been built.
Its icons are a few of a font's two thousand, and stand in the stylesheet themselves.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LINKS = re.compile(r'<link [^>]*rel="stylesheet"[^>]*>(?:\s*<link [^>]*rel="stylesheet"[^>]*>)*')
OPTIONS = re.compile(r'<script src="[^"]*documentation_options\.js[^"]*"></script>')
PURGED = ("pydata-sphinx-theme.css", "sphinx-design.min.css")
COMMENT = re.compile(r"/\*.*?\*/", flags=re.S)
URL = re.compile(r"""url\(\s*["']?(?!data:|#|https?:)([^)"']+)["']?\s*\)""")
ICONS = re.compile(r'url\("([^"]+/fa-solid-900\.woff2)"\)')
ESCAPE = re.compile(r"\\([0-9a-f]{4})\b")
IMPORT = re.compile(r"""@import\s+(?:url\()?["']([^"']+)["']\)?;""")


def rules(css: str) -> Iterator[tuple[str, str]]:
    """Each rule's beginning and what stands between its braces; a statement has nothing there."""
    while css := css.strip():
        end = re.search(r"[{;]", css)
        if end is None or end[0] == ";":
            stop = end.end() if end else len(css)
            yield css[:stop], ""
        else:
            depth, stop = 1, end.end()
            for brace in re.finditer(r"[{}]", css[stop:]):
                depth += 1 if brace[0] == "{" else -1
                if not depth:
                    stop = end.end() + brace.end()
                    break
            yield css[: end.start()].strip(), css[end.end() : stop - 1]
        css = css[stop:]


def required(selector: str) -> set[str]:
    """The classes without which it selects nothing: none of those that stand in :not() or :is()."""
    while selector != (outside := re.sub(r"\([^()]*\)", "", selector)):
        selector = outside
    return set(re.findall(r"\.(-?[A-Za-z_][\w-]*)", selector))


def purge(css: str, words: set[str]) -> str:
    """Without the selectors that name a class which is not among the words of the site."""
    kept = []
    for start, body in rules(css):
        if re.match(r"@(media|supports|layer|container)\b", start):
            if inside := purge(body, words):
                kept.append(f"{start}{{{inside}}}")
        elif start.startswith("@"):
            kept.append(f"{start}{{{body}}}" if body else start)
        else:
            # A comma inside parentheses does not part selectors.
            used = [s for s in re.split(r",(?![^(]*\))", start) if required(s) <= words]
            if used:
                kept.append(f"{','.join(used)}{{{body}}}")
    return "".join(kept)


def read(sheet: Path, static: Path, words: set[str]) -> str:
    """A stylesheet as if it stood in the static folder, with those that it imports."""

    def moved(match: re.Match[str]) -> str:
        return f'url("{os.path.relpath(sheet.parent / match[1], static)}")'

    css = COMMENT.sub("", sheet.read_text(encoding="utf-8"))
    css = IMPORT.sub(lambda match: read(sheet.parent / match[1], static, words), css)
    css = URL.sub(moved, css)
    return purge(css, words) if sheet.name in PURGED else css


def with_icons(css: str, static: Path) -> str:
    """The stylesheet with the icons that it names, instead of the address of their whole font."""
    characters = ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), css)

    def embedded(match: re.Match[str]) -> str:
        font, file = TTFont(static / match[1], recalcTimestamp=False), BytesIO()
        subsetter = Subsetter()
        subsetter.populate(text=re.sub("[^\ue000-\uf8ff]", "", characters))  # private use
        subsetter.subset(font)
        font.save(file)  # compressed as the whole one is
        return f'url("data:font/woff2;base64,{base64.b64encode(file.getvalue()).decode()}")'

    return ICONS.sub(embedded, css)


def join(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.name != "html":
        return
    out = Path(app.outdir)
    static = out / "_static"
    pages = {page: page.read_text(encoding="utf-8") for page in out.rglob("*.html")}
    pages = {page: text for page, text in pages.items() if static not in page.parents}
    scripts = [path.read_text(encoding="utf-8") for path in static.rglob("*.js")]
    classes = [each for text in pages.values() for each in re.findall(r'class="([^"]*)"', text)]
    words = set(re.findall(r"[\w-]+", " ".join([*classes, *scripts])))
    options = (static / "documentation_options.js").read_text(encoding="utf-8")

    @cache
    def written(sheets: tuple[str, ...]) -> str:
        css = "\n".join(read(static / sheet, static, words) for sheet in sheets)
        css = with_icons(css, static)
        name = f"site-{hashlib.sha256(' '.join(sheets).encode()).hexdigest()[:8]}.css"
        (static / name).write_text(css, encoding="utf-8")
        return f"{name}?v={hashlib.sha256(css.encode()).hexdigest()[:8]}"

    for page, text in pages.items():
        found = LINKS.search(text)
        if not found:
            continue
        # A page that an earlier build has written says which they were.
        earlier = re.search(r'data-sheets="([^"]+)"', found[0])
        named = earlier[1].split() if earlier else re.findall(r'_static/([^"?]+)', found[0])
        root = found[0].partition("_static/")[0].rpartition('"')[2]
        link = (
            f'<link rel="stylesheet" href="{root}_static/{written(tuple(named))}" '
            f'data-sheets="{" ".join(named)}">'
        )
        joined = text[: found.start()] + link + text[found.end() :]
        # The options of Sphinx's scripts are shorter than a request for them.
        joined = OPTIONS.sub(lambda _: f"<script>{options}</script>", joined)
        if joined != text:
            page.write_text(joined, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # else a line for each of its tables
    app.connect("build-finished", join, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
