"""The tutorials' tags: links on their pages, and a list by subject at the end of the gallery.

A tutorial names its tags in a comment, ``# sphinx_gallery_tags = [...]``, and Sphinx-Gallery writes
them on the thumbnails. Its script makes a filter of them that no keyboard reaches; ``tags.js`` is
loaded in its place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gallery_order import reading_order
from sphinx_gallery.py_source_parser import extract_file_config

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

WRITTEN = re.compile(r"^   🏷 Tags: (.+)$", flags=re.M)


def anchor(tag: str) -> str:
    return f"tag-{tag.replace(' ', '-')}"


def link(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make links of the tags on a tutorial's page, and add their list to the gallery's."""
    gallery = app.config.sphinx_gallery_conf["gallery_dirs"]
    if docname == f"{gallery}/index":
        end = source[0].index(".. toctree::")  # after the thumbnails
        source[0] = source[0][:end] + by_subject(app, gallery) + source[0][end:]
    elif docname.startswith(f"{gallery}/"):
        source[0] = WRITTEN.sub(
            lambda match: (
                "   Tags: "
                + ", ".join(f":ref:`{tag} <{anchor(tag)}>`" for tag in match[1].split(", "))
            ),
            source[0],
        )


def by_subject(app: Sphinx, gallery: str) -> str:
    """The tutorials of each tag, in the order of the gallery.

    Where scripts are on, the filter stands for this list, which is not shown (mcbn.css).
    """
    tagged: dict[str, list[str]] = {}
    for path in sorted(Path(app.srcdir, gallery).rglob("tutorial_*.py"), key=reading_order):
        for tag in extract_file_config(path.read_text(encoding="utf-8")).get("tags", []):
            name = path.relative_to(app.srcdir).with_suffix("").as_posix()
            tagged.setdefault(tag, []).append(f":doc:`/{name}`")
    entries = (
        f"   .. _{anchor(tag)}:\n\n   **{tag.capitalize()}**: {'; '.join(pages)}\n\n"
        for tag, pages in sorted(tagged.items())
    )
    return ".. container::\n   :name: by-subject\n\n   .. rubric:: By subject\n\n" + "".join(
        entries
    )


def leave_out_script(app: Sphinx, config: Config) -> None:
    app.registry.js_files[:] = [f for f in app.registry.js_files if f[0] != "sg-tags.js"]


def add_script(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    if page == f"{app.config.sphinx_gallery_conf['gallery_dirs']}/index":
        app.add_js_file("tags.js", defer="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", leave_out_script)
    app.connect("source-read", link)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
