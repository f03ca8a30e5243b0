"""Batches and outputs: tensors inside of tuples, lists, dicts and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

PLAIN = {type(None), bool, int, float, str}


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply ``function`` to the tensors of ``tree``, and keep everything around them.

    A container of a class of its own is copied and filled, so that neither its ``__init__`` nor
    its ``__post_init__`` runs.

    Example:
        >>> import torch
        >>> tree_map(lambda t: t + 1, {"x": torch.zeros(2), "name": "seven"})
        {'x': tensor([1., 1.]), 'name': 'seven'}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    children = children_of(tree)
    if children is None:
        return tree
    new = {key: tree_map(function, child) for key, child in children}
    if isinstance(tree, tuple):
        # _make does not ask a class's own __new__; what torch.max returns takes a sequence.
        return getattr(type(tree), "_make", type(tree))(new.values())
    filled = copy.copy(tree)
    if isinstance(tree, MutableMapping | list):
        for key, value in new.items():
            filled[key] = value
        return filled
    if isinstance(tree, Mapping):
        return type(tree)(new)  # pyright: ignore[reportCallIssue]
    for key, value in new.items():
        object.__setattr__(filled, key, value)  # it may be frozen
    return filled


def leaves(tree: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """What is in ``tree`` and holds nothing itself, with the way to it.

    Example:
        >>> list(leaves({"x": [3, 4]}))
        [("output['x'][0]", 3), ("output['x'][1]", 4)]
    """
    children = children_of(tree)
    if children is None:
        yield path, tree
        return
    for key, child in children:
        is_field = not isinstance(tree, tuple | list | Mapping)
        yield from leaves(child, f"{path}.{key}" if is_field else f"{path}[{key!r}]")


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of ``tree``, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for _, leaf in leaves(tree) if isinstance(leaf, Tensor)]


def children_of(tree: Any) -> list[tuple[Any, Any]] | None:
    """What a container holds, by index, key or field; None for what is no container."""
    if type(tree) in PLAIN or isinstance(tree, Tensor):
        return None
    if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        return list(enumerate(tree))
    if isinstance(tree, Mapping):
        return list(tree.items())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        return [(name, getattr(tree, name)) for name in names if hasattr(tree, name)]
    return None
