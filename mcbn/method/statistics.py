"""What a mini-batch leaves behind, and how it gets to where a layer reads it.

An estimator is the network with other running statistics. A batch norm layer hands its own to
:func:`torch.nn.functional.batch_norm`, and that is where :class:`Substitution` puts those of an
estimator, or :class:`MiniBatch` those of the batch that runs through. A layer is known by the
buffers that it hands over; weight, bias and eps are taken from the call. So it is the layer's own
code that runs, whatever its class. A mode concerns one thread: two can predict with one network.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from mcbn.method.pooling import POOLS, UNTRACKED, Deferred, Overwritten, nbytes, normalized, pool
from mcbn.method.prefix import Prefix
from mcbn.method.tree import tensors_of

Layers = Mapping[str, _BatchNorm]
Pair = tuple[Tensor, Tensor]  # a mean and a variance


# --- Where they are kept ------------------------------------------------------------------------


def keep_statistics(layer: _BatchNorm) -> None:
    """Give a layer the buffers ``mc_mean`` and ``mc_var``, with none in them.

    Once fitted, each is ``(num_estimators, num_calls, num_features)``.
    """
    if not hasattr(layer, "mc_mean"):
        layer.register_buffer("mc_mean", None)
        layer.register_buffer("mc_var", None)
        layer.register_load_state_dict_pre_hook(_before_loading)
        if layer.running_mean is None:
            layer.register_forward_pre_hook(_enter)
            layer.register_forward_hook(_leave, always_call=True)


def _before_loading(layer: Any, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    *_, error_msgs = rest
    names = [prefix + name for name in ("mc_mean", "mc_var")]
    mean, var = (state_dict.get(name) for name in names)
    if mean is None and var is None:
        # A checkpoint of the plain network: statistics of other weights would be wrong.
        layer.mc_mean = layer.mc_var = None
    elif wrong := _wrong_in(mean, var, layer.num_features):
        error_msgs.append(f"{' and '.join(names)} {wrong}.")
        for name in names:
            state_dict.pop(name, None)
    else:
        tensors = (layer.running_mean, layer.weight, mean)
        like: Tensor = next(t for t in tensors if isinstance(t, Tensor))
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = state_dict[names[0]].shape
        layer.mc_mean, layer.mc_var = (like.new_empty(shape, dtype=dtype) for _ in names)


def _wrong_in(mean: Any, var: Any, num_features: int) -> str:
    """What is wrong with saved statistics, in words; nothing if they can be used."""
    if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
        kinds = f"{type(mean).__name__} and {type(var).__name__}"
        return f"are of type {kinds}, wanted two tensors; take both from one saved state_dict()"
    if mean.shape != var.shape or mean.dim() != 3 or mean.shape[2] != num_features:
        return (
            f"have shapes {tuple(mean.shape)} and {tuple(var.shape)}, wanted are two of "
            f"(num_estimators, calls, num_features), with num_features={num_features}"
        )
    if not (mean.is_floating_point() and var.is_floating_point()):
        return f"hold {mean.dtype} and {var.dtype}, wanted floating point; save the state again"
    if mean.is_meta or var.is_meta:
        return ""  # no values to look at
    if not (mean.isfinite().all() and var.isfinite().all()):
        return "hold NaN or infinity, wanted finite numbers; fit and save again"
    if (var < 0).any():
        return "hold a negative variance; look whether means and variances were swapped"
    return ""


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norm layers of a network by name, each once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


# --- Layers without running statistics ---------------------------------------------------------

# The one in whose forward this thread is comes last. They hand over None, which tells nothing.
_INSIDE: ContextVar[tuple[_BatchNorm | None, ...]] = ContextVar("mcbn_inside", default=(None,))


def _enter(layer: _BatchNorm, _: Any) -> None:
    _INSIDE.set((*_INSIDE.get(), layer))


def _leave(layer: _BatchNorm, *_: Any) -> None:
    _INSIDE.set(_INSIDE.get()[:-1])


# --- Where statistics are read -----------------------------------------------------------------


class Handover(NamedTuple):
    """What ``F.batch_norm`` is called with, by its own names and in its order."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


def _of_torch(
    input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool,
) -> Handover:  # fmt: skip
    return Handover(input, running_mean, running_var, weight, bias, training, momentum, eps)


_HANDOVERS: dict[Any, Any] = {F.batch_norm: Handover, torch.batch_norm: _of_torch}

_REQUIRES_GRAD: Any = Tensor.requires_grad.__get__  # pyright: ignore[reportAttributeAccessIssue]
_GRAD_FN: Any = Tensor.grad_fn.__get__  # pyright: ignore
_MAKERS: set[Any] = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.asarray}
_LOOKED_AT = {_REQUIRES_GRAD, _GRAD_FN, *UNTRACKED, *_MAKERS}


class Substitution(TorchFunctionMode, ABC):
    """Within this context, and in this thread, layers normalize as :meth:`statistics` says.

    Args:
        layers: The network's batch norm layers by name.
        count: How many estimators run at once, on an axis of ``torch.vmap`` if more than one.
        prefix: What was, or is to be, computed once for all; None to compute all of it.
        waiting: The layers whose output waits for a max-pooling, to let it go first.

    Attributes:
        pooled: Those for which one came.
        largest: Bytes of one estimator's largest normalized activation.
        ran_without_grad: Whether a layer ran where gradients had been switched off on the way.
    """

    def __init__(
        self,
        layers: Layers,
        count: int = 1,
        prefix: Prefix | None = None,
        waiting: Iterable[_BatchNorm] = (),
    ) -> None:
        super().__init__()
        self.layers, self.count, self.prefix = layers, count, prefix
        self.sources = {
            id(buffer): layer
            for layer in layers.values()
            for buffer in (layer.running_mean, layer.running_var)
            if buffer is not None
        }
        self.calls: dict[_BatchNorm, int] = {}
        self.grad = torch.is_grad_enabled()
        self.waiting = set[_BatchNorm]() if self.grad else {*waiting}
        self.pooled: set[_BatchNorm] = set()
        self.ran_without_grad, self.largest = False, 0

    @abstractmethod
    def statistics(self, layer: Any, call: int, handed: Handover) -> tuple[Tensor, Tensor, Any]:
        """What a layer's call in this pass is to normalize with.

        Returns:
            The mean and the variance, each ``(num_features,)``; and the scale and the shift that
            they come to, if they are known.
        """

    def unowned(self, handed: Handover) -> None:
        """Be told of a normalization with statistics that no layer holds."""

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Compute what may be the same for all estimators."""
        return compute() if self.prefix is None else self.prefix.once(key, compute)

    def differ(self) -> None:
        """Be told that from here on results are of single estimators."""
        if self.prefix is not None:
            self.prefix.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _HANDOVERS:
            handed: Handover = _HANDOVERS[func](*args, **kwargs)
            layer = self.owner(handed)
            if layer is not None:
                return self.normalize(layer, handed)
            self.unowned(handed)
        result = self.other(func, args, kwargs)
        for value in args:
            # To look at one that waits would end its waiting.
            if not isinstance(value, Tensor) or type(value) is Deferred:
                continue
            layer = self.source(value)
            if layer is not None and any(self.source(t) is not layer for t in tensors_of(result)):
                raise self.used_by(layer, getattr(func, "__name__", str(func)))
        return result

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that normalizes nothing, once for all estimators where that can be."""
        prefix = self.prefix
        if func in _LOOKED_AT:
            shared = self.count > 1 or prefix is not None
            if func in UNTRACKED and (shared or self.waiting):
                raise Overwritten(f"the network uses {func.__name__}, past what PyTorch records")
            if func in _MAKERS and shared and args and isinstance(args[0], np.ndarray):
                raise RuntimeError("the network makes a tensor of NumPy's numbers")
            if func == _GRAD_FN and self.count > 1 and self.grad:
                raise RuntimeError("the network looks at the graph of its gradients")
            if func == _REQUIRES_GRAD and self.count > 1 and self.grad:
                return torch.func.debug_unwrap(args[0]).requires_grad  # vmap says False
        compute = partial(pool, func) if func in POOLS and args else func
        if prefix is None or (not prefix.open and prefix.position == len(prefix.log)):
            return compute(*args, **kwargs)
        if args and type(args[0]) is Deferred:  # it asks by itself
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            prefix.drew = True
        return prefix.once(func, lambda: compute(*args, **kwargs))

    def source(self, tensor: Tensor) -> _BatchNorm | None:
        """The layer whose running mean or variance this is, or a view of one."""
        base = tensor._base
        return self.sources.get(id(tensor if base is None else base))

    def owner(self, handed: Handover) -> _BatchNorm | None:
        """The layer whose running mean and variance these are, or views of them."""
        mean, var = handed.running_mean, handed.running_var
        if mean is None or var is None:
            return _INSIDE.get()[-1] if mean is var else None
        layer = self.source(mean)
        return layer if layer is self.source(var) else None

    def used_by(self, layer: _BatchNorm, what: str) -> RuntimeError:
        """The error for running statistics in whose place those of an estimator cannot be put."""
        name = next(name for name, each in self.layers.items() if each is layer)
        return RuntimeError(
            f"layer {name!r}, a {type(layer).__name__}, gives its running statistics to {what}, "
            "wanted torch.nn.functional.batch_norm in the thread of the network's forward, where "
            "those of an estimator take their place; let its forward call that."
        )

    def normalize(self, layer: _BatchNorm, handed: Handover) -> Tensor:
        """What ``F.batch_norm`` returns, with the statistics of this pass."""
        if isinstance(handed.input, Deferred):
            handed = handed._replace(input=handed.input.finish())
        x, running_mean, _, weight, bias, *_, eps = handed
        wanted = layer.num_features if running_mean is None else len(running_mean)
        if x.shape[1] != wanted:  # it would broadcast
            raise ValueError(
                f"{layer} got an input of shape {tuple(x.shape)}, wanted {wanted} channels, on "
                "the axis after the batch."
            )
        call = self.calls.get(layer, 0)
        self.calls[layer] = call + 1
        if self.grad:
            self.ran_without_grad |= not torch.is_grad_enabled()
            check_not_checkpointed()
        mean, var, ready = self.statistics(layer, call, handed)
        # Before a pooling, too: how many run at once must not depend on what has waited so far.
        self.largest = max(self.largest, nbytes(x))
        affine = partial(normalized, mean, var, weight, bias, eps, ready)
        if layer in self.waiting and x.dim() > 2 and weight is layer.weight:
            return Deferred(layer, x, affine, self)
        self.differ()
        return affine(x)


def part_of(layer: _BatchNorm, view: Tensor | None) -> Tensor | None:
    """Which features of a layer a view of its running mean holds; None for all of them."""
    full = layer.running_mean
    if view is None or view is full or full is None:
        return None
    offset = int(view.storage_offset() - full.storage_offset())
    return torch.arange(len(full), device=full.device).as_strided(view.shape, view.stride(), offset)


def check_not_checkpointed() -> None:
    """Raise RuntimeError inside of a checkpoint, which will run its layers a second time."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "mcbn.method.estimators":
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            raise recomputes("torch.utils.checkpoint")
        frame = frame.f_back


def recomputes(what: str) -> RuntimeError:
    """The error for what runs batch norm layers again in the backward pass."""
    return RuntimeError(
        f"{what} runs batch norm layers again in the backward pass, when no estimator's statistics "
        "are in place; switch it off, or predict under torch.no_grad()."
    )


def called_otherwise(layer: _BatchNorm, times: int, fitted: int) -> RuntimeError:
    """The error for a layer that is called more, or less, often than it was in ``fit``."""
    return RuntimeError(
        f"this forward pass calls {layer} {times} times, but those of fit did so {fitted} times; "
        "call fit with batches for which the network does the same."
    )


class MiniBatch(Substitution):
    """Normalizes with the statistics of the batch that runs through, and keeps them.

    Args:
        layers: The network's batch norm layers by name.
        correction: 0 for the biased variance, 1 for the unbiased one.

    Attributes:
        drawn: For each layer, the mean and the variance ``(num_features,)`` of each call.
    """

    def __init__(self, layers: Layers, correction: int) -> None:
        super().__init__(layers)
        self.correction = correction
        self.drawn: dict[_BatchNorm, list[Pair]] = {layer: [] for layer in layers.values()}

    def __enter__(self) -> Self:
        """Watch who asks for running statistics, whether or not they reach ``F.batch_norm``.

        A mode does not see another thread, a scripted function or an extension in C++.
        """
        self.watched = {layer: _Watched(layer._buffers) for layer in self.drawn}
        for layer, buffers in self.watched.items():
            layer._buffers = buffers  # where torch.nn.Module looks one up
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Raise RuntimeError for a layer whose statistics something else has read."""
        super().__exit__(kind, error, traceback)
        for layer in self.watched:
            layer._buffers = dict(layer._buffers)
        for layer, buffers in self.watched.items():
            if error is None and buffers.read and not self.drawn[layer]:
                raise self.used_by(layer, "code that cannot be seen (a thread, a script, C++)")

    def unowned(self, handed: Handover) -> None:
        """Raise RuntimeError for what the original holds of which this network is a copy."""
        for name, layer in self.layers.items():
            mean, own = handed.running_mean, layer.running_mean
            if mean is not None and own is not None and torch.equal(mean, own):
                raise RuntimeError(
                    f"F.batch_norm got running statistics that are not those of layer {name!r}, "
                    "but equal to them: a forward that was patched with a function around the "
                    "original layer still uses that one; pass convert=False to wrap the original."
                )

    def statistics(self, layer: Any, call: int, handed: Handover) -> tuple[Tensor, Tensor, Any]:
        """The mean and the variance of the batch; ValueError if it has one value a channel."""
        x = handed.input.detach()  # a network may switch gradients on
        count = x.numel() // max(1, x.shape[1])
        if count < 2:
            raise ValueError(
                f"{layer} got an input of shape {tuple(x.shape)}, {count} value(s) a channel, and "
                "a variance needs at least 2; use a larger mc_batch_size."
            )
        # In two passes over the values, and in single precision at least: a variance of finite
        # values need not be finite in half precision.
        like = layer.weight if layer.weight is not None else x
        wide = x.to(torch.promote_types(torch.promote_types(x.dtype, like.dtype), torch.float32))
        mean = _by_channel(wide)
        centred = wide - mean.view(-1, *[1] * (x.dim() - 2))
        var = _by_channel(centred.mul_(centred))
        if self.correction:
            var = var * (count / (count - 1))
        part = part_of(layer, handed.running_mean)
        if part is None:
            self.drawn[layer].append((mean, var))
        else:  # beside the trained ones of the other features
            trained = layer.running_mean.to(mean.dtype), layer.running_var.to(var.dtype)
            new_mean, new_var = (
                old.index_copy(0, part, new) for old, new in zip(trained, (mean, var), strict=True)
            )
            self.drawn[layer].append((new_mean, new_var))
        return mean, var, None


def _by_channel(x: Tensor) -> Tensor:
    trailing = tuple(range(2, x.dim()))
    return (x.mean(trailing) if trailing else x).mean(0)


class _Watched(dict[str, Any]):
    """A layer's buffers, which note that a running statistic was asked for, in any thread."""

    read = False

    def __getitem__(self, name: str) -> Any:
        self.read |= name in ("running_mean", "running_var")
        return super().__getitem__(name)
