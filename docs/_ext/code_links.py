"""Which names in the tutorials' code become links, of those that Sphinx-Gallery can follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx_gallery import _doctree_links

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_load_code_obj = _doctree_links._load_code_obj


def load_code_obj(env: BuildEnvironment, docname: str) -> dict[str, Any]:
    """Functions, classes and methods, by their own names.

    Without the variables, which would lead to the class of their value: hundreds of links to
    ``torch.Tensor``, each a stop for those who go by keyboard. With decorators, whose @ is a part
    of the name to the highlighter.
    """
    names = {}
    for name, candidates in (_load_code_obj(env, docname) or {}).items():
        last = name.rpartition(".")[2]
        found = [each for each in candidates if each["name"].rpartition(".")[2] == last]
        if found:
            names |= {name: found, f"@{name}": found}
    return names


def setup(app: Sphinx) -> dict[str, Any]:
    _doctree_links._load_code_obj = load_code_obj
    return {"parallel_read_safe": True, "parallel_write_safe": True}
