"""A network's inputs, each time as they were given.

A network may write into them. Every estimator is to see what the caller gave, and afterwards the
caller's objects are to be what one plain pass leaves.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mcbn.method.pooling import nbytes, version
from mcbn.method.tree import children_of


class _Cloning(TorchFunctionMode):
    """Within this context a tensor's deep copy is a clone, which gradients go through."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
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
        whole, copied = memo.setdefault(tensor.untyped_storage().data_ptr(), (tensor, None))
        if copied is not None:
            offset = int(tensor.storage_offset() - whole.storage_offset())
            reach = sum(
                (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
            )
            if (
                offset >= 0
                and offset + reach < copied.numel()
                and whole.stride() == copied.stride()
            ):
                return copied.as_strided(tensor.shape, tensor.stride(), offset)
        copied = tensor.clone()
        memo[tensor.untyped_storage().data_ptr()] = tensor, copied
        return copied


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
        self.copy: Any = None
        self.copy_trace: Any = None

    def fresh(self) -> Any:
        """A copy for one pass."""
        self.copy = cloned(self.given)
        self.copy_trace = trace_of(self.copy)
        return self.copy

    def fault(self) -> str | None:
        """Whether a pass has written into its copy, in words."""
        # Some writes leave a trace and no other value, some a value and no trace.
        written = self.copy is not None and (
            trace_of(self.copy) != self.copy_trace or not same(self.copy, self.given)
        )
        return "the network writes into its input" if written else None

    def check_unwritten(self, error: Exception | None) -> None:
        """Raise RuntimeError if a run that is no plain pass wrote into the caller's own objects."""
        if trace_of(self.given) != self.trace:
            raise RuntimeError(
                "the network writes into its input, as it did not in fit; build the wrapper with "
                "path='loop'."
            ) from error


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return value if type(value) in _PLAIN else type(value)


def same(tree: Any, other: Any) -> bool:
    """Whether a copy holds what it was made of."""
    pairs = list(zip(walk(tree), walk(other), strict=False))
    return len(list(walk(tree))) == len(list(walk(other))) and all(map(_same, pairs))


def _same(pair: Any) -> bool:
    (path, a), (other_path, b) = pair
    if path != other_path or type(a) is not type(b):
        return False
    if isinstance(a, Tensor) and a.layout is not torch.strided:
        return True
    if isinstance(a, Tensor | np.ndarray):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return True


def trace_of(tree: Any) -> list[Any]:
    """What is another list after a write into ``tree``."""
    if isinstance(tree, Tensor) or type(tree) in _PLAIN:
        return [((), _mark(tree))]
    return [(path, _mark(value)) for path, value in walk(tree)]


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value.shape, version(value), torch.func.debug_unwrap(value) is value
    return value.tobytes() if isinstance(value, np.ndarray) else id(value)


_WHOLE = (Tensor, nn.Module, type, ModuleType, FunctionType)
_PLAIN = {type(None), bool, int, float, str}
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
