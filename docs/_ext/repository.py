"""Links into the public repository, where one is configured: source, editing, and Colab.

Colab opens notebooks from GitHub. They are made when the site is built and not kept on the main
branch; the workflow that publishes the site pushes them to a branch of their own.
"""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

NOTEBOOKS = "notebooks"  # the branch, as in .github/workflows/ci.yml


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


def colab(app: Sphinx, page: str) -> str:
    """Where Colab opens the notebook of a tutorial's `page`."""
    repository = app.config.html_context["github"].removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{repository}/blob/{NOTEBOOKS}/{page}.ipynb"


def is_tutorial(page: str) -> bool:
    return page.rpartition("/")[2].startswith("tutorial_")


def add(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is None:
        return
    source = source_of(page, Path(app.srcdir).parent)
    links = {"Source on GitHub": f"blob/main/{source}", "Edit on GitHub": f"edit/main/{source}"}
    github = app.config.html_context["github"]
    context["repository_links"] = {text: f"{github}/{path}" for text, path in links.items()}
    if is_tutorial(page):
        context["repository_links"]["Open in Colab"] = colab(app, page)


def add_button(app: Sphinx, docname: str, source: list[str]) -> None:
    """The Colab button at a tutorial's end, before the downloads."""
    if is_tutorial(docname):
        footer = "  .. container:: sphx-glr-footer sphx-glr-footer-example\n\n"
        button = f"`Open in Colab <{colab(app, docname)}>`__"
        box = f"    .. container:: sphx-glr-download mcbn-colab\n\n      {button}\n\n"
        source[0] = source[0].replace(footer, footer + box)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_button)
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
