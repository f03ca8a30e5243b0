"""The statistics of a mini-batch, and how they reach the place where a layer reads them.

An estimator is the network with other running statistics. A batch norm layer passes its own to
:func:`torch.nn.functional.batch_norm`, where :class:`Substitution` replaces them with those of an
estimator, and :class:`MiniBatch` with those of the current batch. A layer is identified by the
buffers it passes; weight, bias and eps come from the call. The layer's own code thus runs, whatever
its class. A mode that watches function calls takes time, so the plain loop puts an estimator's
statistics where a layer looks up its own (:class:`Buffers`), if that is known to be all that it
does. Either replacement affects one thread only: two threads can predict with one network.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
Pair = tuple[Tensor, Tensor]  # mostly a mean and a variance


# --- Where they are kept ------------------------------------------------------------------------


def keep_statistics(layer: _BatchNorm) -> None:
    """Give a layer the buffers ``mc_mean`` and ``mc_var``, both None.

    Once fitted, each is ``(num_estimators, num_calls, num_features)``.
    """
    if not isinstance(layer._buffers, Buffers):
        layer._buffers = Buffers(layer._buffers)
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
    """What is wrong with saved statistics, in words; empty if they can be used."""
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


def running(layer: Any) -> list[Tensor]:
    """A layer's running mean and variance, if it keeps them."""
    return [each for each in (layer.running_mean, layer.running_var) if each is not None]


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norm layers of a network by name, each listed once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


# --- Where a layer looks them up ----------------------------------------------------------------


Found = tuple[Tensor, Sequence[Tensor]]


class Lookups:
    """The lookups of running statistics in one pass, and in one thread.

    Args:
        found: A running statistic, and what its layer finds in its place: one at each lookup, and
            the last one from then on.

    Attributes:
        counts: How often each running statistic was looked up, by its id.
    """

    def __init__(self, found: Sequence[Found]) -> None:
        self.instead = {id(own): others for own, others in found}
        self.own = {id(other): own for own, others in found for other in others}
        self.counts = Counter[int]()


_LOOKUPS: ContextVar[Lookups | None] = ContextVar("mcbn_lookups", default=None)
_RUNNING = ("running_mean", "running_var")


class Buffers(dict[str, Any]):
    """A layer's buffers, in which :class:`torch.nn.Module` looks up its running statistics.

    Attributes:
        read: Whether any thread has looked one up.
    """

    read = False

    def __getitem__(self, name: str) -> Any:
        held = dict.__getitem__(self, name)  # super() takes longer
        if name not in _RUNNING:
            return held
        self.read = True
        lookups = _LOOKUPS.get()
        # A compiled function would keep what it found here.
        if lookups is None or torch.compiler.is_dynamo_compiling():
            return held
        number = lookups.counts[id(held)]
        lookups.counts[id(held)] = number + 1
        others = lookups.instead.get(id(held))
        return held if others is None else others[min(number, len(others) - 1)]

    def __setitem__(self, name: str, value: Any) -> None:
        lookups = _LOOKUPS.get()
        if lookups is not None:  # it may be put back where it was found
            value = lookups.own.get(id(value), value)
        dict.__setitem__(self, name, value)


@contextmanager
def looking_up(found: Sequence[Found]) -> Iterator[Counter[int]]:
    """Let layers find others in place of their running statistics, and count their lookups."""
    lookups = Lookups(found)
    token = _LOOKUPS.set(lookups)
    try:
        yield lookups.counts
    finally:
        _LOOKUPS.reset(token)


# --- Layers without running statistics ---------------------------------------------------------

# The layer whose forward this thread is in comes last. These layers pass None as their statistics,
# which does not identify them.
_INSIDE: ContextVar[tuple[_BatchNorm | None, ...]] = ContextVar("mcbn_inside", default=(None,))


def _enter(layer: _BatchNorm, _: Any) -> None:
    _INSIDE.set((*_INSIDE.get(), layer))


def _leave(layer: _BatchNorm, *_: Any) -> None:
    _INSIDE.set(_INSIDE.get()[:-1])


# --- Where statistics are read -----------------------------------------------------------------


class Handover(NamedTuple):
    """The arguments of ``F.batch_norm``, with its own names and in its order."""

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
    """Makes layers in this context, and in this thread, normalize as :meth:`statistics` says.

    Args:
        layers: The network's batch norm layers by name.
        count: How many estimators run at once, on an axis of ``torch.vmap`` if more than one.
        prefix: Results computed once for all estimators; None to compute everything.
        waiting: The layers whose output waits for a max pooling, which then goes first.

    Attributes:
        pooled: The waiting layers that a max pooling followed.
        largest: Bytes of one estimator's largest normalized activation.
        lookups: How often a call of a layer looked up its running mean and its running variance.
        regular: Whether all calls of a plain pass did so alike, and neither found them in another
            way nor would have changed them.
        ran_without_grad: Whether a layer ran after the network had switched gradients off.
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
        self.own = {layer: running(layer) for layer in layers.values()}
        self.sources = {id(each): layer for layer, own in self.own.items() for each in own}
        # In a plain pass, a layer that looks up a running statistic finds an alias of it.
        self.regular = count == 1
        aliases: list[Found] = []
        for layer, own in self.own.items() if count == 1 else ():
            for each in own:
                alias = each.detach()
                aliases.append((each, [alias]))
                self.sources[id(alias)] = layer
        self.unaliased = {id(each) for each, _ in aliases}
        self._looking_up = looking_up(aliases)
        self.lookups: dict[_BatchNorm, list[int]] = {}
        self.calls: dict[_BatchNorm, int] = {}
        self.grad = torch.is_grad_enabled()
        self.waiting = set[_BatchNorm]() if self.grad else {*waiting}
        self.pooled: set[_BatchNorm] = set()
        self.ran_without_grad, self.largest = False, 0

    def __enter__(self) -> Self:
        self._counts = self._looking_up.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._looking_up.__exit__(*error)
        for layer, calls in self.calls.items() if self.regular else ():
            self._note_lookups(layer, calls)

    def _note_lookups(self, layer: _BatchNorm, calls: int) -> None:
        counts = [self._counts[id(own)] for own in self.own[layer]]
        first = self.lookups.setdefault(layer, counts)
        self.regular &= counts == [calls * each for each in first]

    @abstractmethod
    def statistics(self, layer: Any, call: int, handed: Handover) -> tuple[Tensor, Tensor, Any]:
        """The statistics for a layer's call in this pass.

        Returns:
            The mean and the variance, each ``(num_features,)``; and the resulting scale and shift,
            if known.
        """

    def unowned(self, handed: Handover) -> None:
        """Handle a normalization with statistics that belong to no layer."""

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Compute a result that may be the same for all estimators."""
        return compute() if self.prefix is None else self.prefix.once(key, compute)

    def differ(self) -> None:
        """Note that from here on, results belong to single estimators."""
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
            # Looking at a waiting tensor would end its waiting.
            if not isinstance(value, Tensor) or type(value) is Deferred:
                continue
            layer = self.source(value)
            if layer is not None and any(self.source(t) is not layer for t in tensors_of(result)):
                raise self.used_by(layer, getattr(func, "__name__", str(func)))
        return result

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that does not normalize, once for all estimators if possible."""
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
        if args and type(args[0]) is Deferred:  # it asks the prefix itself
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            prefix.drew = True
        return prefix.once(func, lambda: compute(*args, **kwargs))

    def source(self, tensor: Tensor) -> _BatchNorm | None:
        """The layer whose running mean or variance this tensor is, or is a view of."""
        return self.sources.get(id(_whole(tensor)))

    def owner(self, handed: Handover) -> _BatchNorm | None:
        """The layer whose running mean and variance these are, or are views of."""
        mean, var = handed.running_mean, handed.running_var
        if mean is None or var is None:
            return _INSIDE.get()[-1] if mean is var else None
        if handed.training or any(id(_whole(t)) in self.unaliased for t in (mean, var)):
            self.regular = False
        layer = self.source(mean)
        return layer if layer is self.source(var) else None

    def used_by(self, layer: _BatchNorm, what: str) -> RuntimeError:
        """The error for running statistics that an estimator's cannot replace."""
        name = next(name for name, each in self.layers.items() if each is layer)
        return RuntimeError(
            f"layer {name!r}, a {type(layer).__name__}, gives its running statistics to {what}, "
            "wanted torch.nn.functional.batch_norm in the thread of the network's forward, where "
            "those of an estimator take their place; let its forward call that."
        )

    def normalize(self, layer: _BatchNorm, handed: Handover) -> Tensor:
        """Do what ``F.batch_norm`` does, with the statistics of this pass."""
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
        if self.regular:
            self._note_lookups(layer, call + 1)
        if self.grad:
            self.ran_without_grad |= not torch.is_grad_enabled()
            check_not_checkpointed()
        mean, var, ready = self.statistics(layer, call, handed)
        # Also before a pooling: the number of estimators at once must not depend on past waiting.
        self.largest = max(self.largest, nbytes(x))
        affine = partial(normalized, mean, var, weight, bias, eps, ready)
        if layer in self.waiting and x.dim() > 2 and weight is layer.weight:
            return Deferred(layer, x, affine, self)
        self.differ()
        return affine(x)


def _whole(tensor: Tensor) -> Tensor:
    """The tensor that this one is a view of, or itself."""
    base = tensor._base
    return tensor if base is None else base


def part_of(layer: _BatchNorm, view: Tensor | None) -> Tensor | None:
    """Which of a layer's features a view of its running mean holds; None for all."""
    full = layer._buffers.get("running_mean")  # no lookup of the network's
    if view is None or full is None:
        return None
    if (view.shape, view.stride()) == (full.shape, full.stride()):
        return None
    offset = int(view.storage_offset() - full.storage_offset())
    return torch.arange(len(full), device=full.device).as_strided(view.shape, view.stride(), offset)


def check_not_checkpointed() -> None:
    """Raise RuntimeError inside a checkpoint, which will run its layers a second time."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "mcbn.method.estimators":
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            raise recomputes("torch.utils.checkpoint")
        frame = frame.f_back


def recomputes(what: str) -> RuntimeError:
    """The error for code that reruns batch norm layers in the backward pass."""
    return RuntimeError(
        f"{what} runs batch norm layers again in the backward pass, when no estimator's statistics "
        "are in place; switch it off, or predict under torch.no_grad()."
    )


def called_otherwise(layer: _BatchNorm, times: int, fitted: int) -> RuntimeError:
    """The error for a layer that is called more or fewer times than in ``fit``."""
    return RuntimeError(
        f"this forward pass calls {layer} {times} times, but those of fit did so {fitted} times; "
        "call fit with batches for which the network does the same."
    )


class MiniBatch(Substitution):
    """Normalizes with the statistics of the current batch, and keeps them.

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
        """Watch for reads of running statistics, whether or not they reach ``F.batch_norm``.

        A mode cannot see another thread, a scripted function or a C++ extension.
        """
        for layer in self.drawn:
            keep_statistics(layer)  # a copy or a file may have lost them
            layer._buffers.read = False  # pyright: ignore[reportAttributeAccessIssue]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Raise RuntimeError for a layer whose statistics other code has read."""
        super().__exit__(*error)
        layers: list[Any] = [layer for layer, calls in self.drawn.items() if not calls]
        for layer in layers:
            if error[0] is None and layer._buffers.read:
                raise self.used_by(layer, "code that cannot be seen (a thread, a script, C++)")

    def unowned(self, handed: Handover) -> None:
        """Raise RuntimeError for statistics of the original of which this network is a copy."""
        for name, layer in self.layers.items():
            mean, own = handed.running_mean, layer.running_mean
            if mean is not None and own is not None and torch.equal(mean, own):
                raise RuntimeError(
                    f"F.batch_norm got running statistics that are not those of layer {name!r}, "
                    "but equal to them: a forward that was patched with a function around the "
                    "original layer still uses that one; pass convert=False to wrap the original."
                )

    def statistics(self, layer: Any, call: int, handed: Handover) -> tuple[Tensor, Tensor, Any]:
        """The mean and variance of the batch; ValueError if it has one value per channel."""
        x = handed.input.detach()  # a network may switch gradients on
        count = x.numel() // max(1, x.shape[1])
        if count < 2:
            raise ValueError(
                f"{layer} got an input of shape {tuple(x.shape)}, {count} value(s) a channel, and "
                "a variance needs at least 2; use a larger mc_batch_size."
            )
        # In two passes over the values, and in at least single precision: in half precision, the
        # variance of finite values need not be finite.
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
        else:  # the other features keep their trained statistics
            trained = [each.to(mean.dtype) for each in self.own[layer]]
            new_mean, new_var = (
                old.index_copy(0, part, new) for old, new in zip(trained, (mean, var), strict=True)
            )
            self.drawn[layer].append((new_mean, new_var))
        return mean, var, None


def _by_channel(x: Tensor) -> Tensor:
    trailing = tuple(range(2, x.dim()))
    return (x.mean(trailing) if trailing else x).mean(0)
