"""Batches and outputs: tensors inside of tuples, lists, dicts and dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply ``function`` to the tensors of ``tree``, and keep everything around them.

    With ``others``, trees of the same structure, ``function`` gets a tensor of each. What is no
    tensor is taken from ``tree``.

    Raises:
        ValueError: The trees are of different structures.

    Example:
        >>> import torch
        >>> tree_map(lambda t: t + 1, {"x": torch.zeros(2), "name": "seven"})
        {'x': tensor([1., 1.]), 'name': 'seven'}
    """
    if others and len(forms := {_form(each) for each in (tree, *others)}) > 1:
        raise ValueError(
            f"Given {' and '.join(sorted(forms))} in the same place, wanted trees of one "
            "structure; a network must give the same for every estimator."
        )
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, tuple | list):
        parts = [tree_map(function, *columns) for columns in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)  # pyright: ignore
    if isinstance(tree, Mapping):
        pairs = {k: tree_map(function, v, *(other[k] for other in others)) for k, v in tree.items()}
        return pairs if type(tree) is dict else _like(tree, pairs)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = [f.name for f in dataclasses.fields(tree) if f.init]
        return dataclasses.replace(
            tree,
            **{
                name: tree_map(function, *(getattr(each, name) for each in (tree, *others)))
                for name in fields
            },
        )
    return tree


def _form(tree: Any) -> str:
    """What must be the same in trees of the same structure."""
    if isinstance(tree, Tensor):
        return "a tensor"
    name = f"a {type(tree).__name__}"
    if isinstance(tree, Mapping):
        return f"{name} with {sorted(map(str, tree))}"
    return f"{name} of {len(tree)}" if isinstance(tree, tuple | list) else name


def _like(tree: Mapping[Any, Any], pairs: dict[Any, Any]) -> Any:
    """Rebuild a mapping of a class of its own, such as an OrderedDict."""
    return type(tree)(pairs)  # pyright: ignore[reportCallIssue]


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of ``tree``, in order."""
    found: list[Tensor] = []
    tree_map(found.append, tree)
    return found
