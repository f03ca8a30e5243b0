"""What can wait until the page has been drawn: scripts, and the thumbnails of tutorials.

The templates ``layout.html`` and ``static/webpack-macros.html`` leave out what no page needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.builders.html._assets import _JavaScript

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def defer(script: _JavaScript) -> _JavaScript:
    # What others write into the options stands in the page, so they have to be there at once.
    if not script.filename or "documentation_options" in str(script.filename):
        return script
    attributes = script.attributes | {"defer": "defer"}
    return _JavaScript(script.filename, priority=script.priority, **attributes)


def defer_all(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    if page != "search":  # its own scripts call the others while it is read
        context["script_files"] = [defer(script) for script in context["script_files"]]
    thumbnail = '<img alt="" src='  # no other image is without a text
    if "body" in context:
        context["body"] = context["body"].replace(thumbnail, f'<img loading="lazy"{thumbnail[4:]}')


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", defer_all, priority=900)  # after all have added theirs
    return {"parallel_read_safe": True, "parallel_write_safe": True}
