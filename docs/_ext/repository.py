"""A link from each page to its source on GitHub, where a repository is configured."""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def source_of(page: str, root: Path) -> str:
    """The file that `page` is made from, relative to the repository; with a line for an object."""
    folder, _, name = page.rpartition("/")
    if folder == "api/generated":
        item = pkgutil.resolve_name(name)
        path = Path(inspect.getsourcefile(item) or "").resolve().relative_to(root).as_posix()
        return path if inspect.ismodule(item) else f"{path}#L{inspect.getsourcelines(item)[1]}"
    if folder.startswith("auto_tutorials"):
        return f"{folder}/README.rst" if name == "index" else f"{page}.py"
    return "CHANGELOG.md" if page == "changelog" else f"docs/{page}.rst"


def add(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is not None:
        source = source_of(page, Path(app.srcdir).parent)
        context["github_source"] = f"{app.config.html_context['github']}/blob/main/{source}"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
