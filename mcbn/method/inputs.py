"""A network's inputs: found in a batch, and each time as they were given.

A network may write into them. Every estimator is to see what the caller gave, and afterwards the
caller's objects are to be what one plain pass leaves.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mcbn.checks import check_has_values
from mcbn.data.batches import default_inputs
from mcbn.method.pooling import nbytes, version
from mcbn.method.tree import PLAIN, children_of, tensors_of, tree_map


def network_inputs(
    batch: Any, input_fn: Callable[[Any], Any] | None, like: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a network is called with for this batch: arguments by position and by name.

    Args:
        batch: What a loader gave.
        input_fn: Picks the inputs; by default they are the first part.
        like: A tensor of the network's device and precision, if it has one.

    Raises:
        TypeError: There is no tensor in what was picked.
        ValueError: A tensor is on the meta device.
    """
    chosen = (input_fn or default_inputs)(batch)
    if not any(isinstance(value, Tensor) for _, value in walk(chosen)):
        raise TypeError(
            f"the inputs found in a batch are a {type(chosen).__name__} without a tensor; pass "
            "input_fn=, a function from a batch to the network's inputs."
        )
    for tensor in tensors_of(chosen):
        check_has_values(input=tensor)
    if like is not None:
        chosen = _moved(chosen, like)
    if type(chosen) is dict:
        return (), chosen
    return chosen if type(chosen) is tuple else (chosen,), {}


def _moved(value: Any, like: Tensor) -> Any:
    """Inputs on the device of ``like``; in its precision if that is not the usual one."""
    if type(value) in (tuple, list):
        return type(value)(_moved(each, like) for each in value)
    if type(value) is dict:
        return {name: _moved(each, like) for name, each in value.items()}
    if not isinstance(value, Tensor) and callable(getattr(value, "to", None)):
        return value.to(like.device)  # a graph, a table, a packed sequence

    def moved(tensor: Tensor) -> Tensor:
        # As Lightning's plugins for 16 and for 64 bits do.
        unusual = like.dtype != torch.float32 and tensor.is_floating_point()
        return tensor.to(like.device, like.dtype if unusual else None)

    if all(moved(tensor) is tensor for tensor in tensors_of(value)):
        return value
    return tree_map(moved, value)


class _Cloning(TorchFunctionMode):
    """Within this context a tensor's deep copy is a clone, which gradients go through."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or isinstance(args[0], nn.Parameter):
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self.clone(tensor, memo)
        return memo[id(tensor)]

    def clone(self, tensor: Tensor, memo: dict[Any, Any]) -> Tensor:
        """A clone; of a part of a tensor before, the same part of that one's clone."""
        if tensor.layout is not torch.strided or torch.func.debug_unwrap(tensor) is not tensor:
            return tensor.clone()  # it has no storage to share
        storage = tensor.untyped_storage().data_ptr()
        whole, copied = memo.get(storage, (tensor, None))
        if copied is not None and whole.stride() == copied.stride():
            offset = int(tensor.storage_offset() - whole.storage_offset())
            with suppress(RuntimeError):  # it reaches beyond the other one
                return copied.as_strided(tensor.shape, tensor.stride(), offset)
        memo[storage] = tensor, tensor.clone()
        return memo[storage][1]


def copied_network(model: nn.Module) -> nn.Module:
    """A deep copy, with the hooks that its parameters have, and of what it has computed as well."""
    with torch.no_grad(), _Cloning():
        copied = copy.deepcopy(model)
    for old, new in zip(model.parameters(), copied.parameters(), strict=True):
        for hook in (old._backward_hooks or {}).values():
            new.register_hook(hook)
    return copied


def cloned(tree: Any) -> Any:
    """A copy that shares no tensor with ``tree``.

    Raises:
        TypeError: Something in it cannot be copied.
    """
    try:
        with _Cloning():
            return copy.deepcopy(tree)
    except Exception as error:
        raise TypeError(
            f"the network's inputs cannot be copied ({type(error).__name__}: {error}), and it may "
            "write into them; give it tensors, in tuples, lists, dicts or dataclasses."
        ) from error


class Inputs:
    """The inputs of several passes.

    Args:
        args: Positional ones, as the caller gave them.
        kwargs: Those by name.

    Attributes:
        conditions: What is another list when the network is called with something else.
        nbytes: The size of all tensors.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given: Any = (args, kwargs)
        items = list(walk(self.given))
        self.trace = [(path, _mark(value)) for path, value in items]
        self.conditions = [(path, _kind(value)) for path, value in items]
        self.nbytes = sum(nbytes(value) for _, value in items if isinstance(value, Tensor))

    def written(self) -> bool:
        """Whether something has been written into them."""
        return trace_of(self.given) != self.trace


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return value if type(value) in PLAIN else type(value)


def same(tree: Any, other: Any) -> bool:
    """Whether a copy holds what it was made of."""
    ours, theirs = list(walk(tree)), list(walk(other))
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> bool:
    (path, a), (other_path, b) = ours, theirs
    if path != other_path or type(a) is not type(b):
        return False
    if isinstance(a, Tensor) and a.layout is not torch.strided:
        return True
    if isinstance(a, Tensor | np.ndarray):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return True


def trace_of(tree: Any) -> Any:
    """What is something else after a write into ``tree``."""
    if isinstance(tree, Tensor) or type(tree) in PLAIN:
        return _mark(tree)
    if type(tree) is tuple and PLAIN.issuperset(map(type, tree)):  # such as a kernel's size
        return tree
    return [(path, _mark(value)) for path, value in walk(tree)]


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value.shape, version(value)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    # The id of a number may be that of the next but one.
    return value if type(value) in PLAIN else id(value)


_WHOLE = (Tensor, nn.Module, type, ModuleType, FunctionType)
_DEPTH = 5  # an object may lead to all others


def walk(tree: Any) -> Iterator[tuple[Any, Any]]:
    """All that is in ``tree``, in objects of any class as well, with the way to it."""
    seen = set[int]()
    pending: list[tuple[Any, Any]] = [((), tree)]
    while pending:
        path, value = pending.pop()
        children = children_of(value)
        if isinstance(value, set | deque):
            children = list(enumerate(value))
        elif children is None and len(path) < _DEPTH and not isinstance(value, _WHOLE):
            children = list(getattr(value, "__dict__", {}).items()) or None
        if children is None:
            yield path, value
        elif id(value) not in seen:
            seen.add(id(value))
            pending += [((*path, key), child) for key, child in children]
