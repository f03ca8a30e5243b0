"""All estimators of a network, in less time than one after another.

Estimators differ in the scale and the shift that a batch norm layer applies, and in nothing else.
Three things follow, and they are all that is done here:

* What a network computes before the first scale and shift is the same for all estimators:
  :class:`_Shared` computes it once.
* A maximum can be taken before a scale and a shift as well as after, if the sign of the scale is
  known, and it is that of the layer's weight: :class:`Pending` lets a max-pooling go first.
* Several estimators can run as one, which saves the time of launching operations where tensors are
  small: folded into the batch axis, as so many more examples, where a network treats each example
  by itself; or under ``torch.vmap``, which is slower but right for any network that it can run.

What runs is the network's own ``forward``, whatever it does. :func:`choose_plan` compares these
ways with the plain loop once, and does without them where they are not possible or not right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mcbn.layers import MCLayer, current_normalizer, run_with
from mcbn.tree import tensors_of, tree_map

Path = Literal["fold", "vmap", "shared", "loop"]
Call = tuple[tuple[Any, ...], dict[str, Any]]

# Below so many bytes, letting a max-pooling go first takes longer than it saves.
_WORTH_PENDING = 1 << 17


@dataclass(frozen=True)
class Plan:
    """How a network is run.

    Attributes:
        path: ``"fold"`` and ``"vmap"``, several estimators at a time, in the batch axis or under
            vmap; ``"shared"``, one at a time; all these compute once what estimators share.
            ``"loop"``, one full forward pass an estimator.
        growth: Bytes of the largest normalized activation, for each byte of input.
    """

    path: Path
    growth: float = 1.0


# --- What the layers are given ---------------------------------------------------------------


Affine = dict[MCLayer, tuple[Tensor, Tensor]]


class _Run(ABC):
    """One run of the network, for some of the estimators."""

    folded = 1  # how many of them a tensor holds

    def __init__(self, count: int, shared: _Shared | None) -> None:
        self.count = count
        self.shared = shared
        self.calls: dict[MCLayer, int] = {}

    def normalize(self, layer: MCLayer, x: Tensor) -> Tensor:
        call = self.calls.get(layer, 0)
        self.calls[layer] = call + 1
        if self.shared is None:
            return self.finish(layer, call, x, None)
        x = _finish(x)
        if self.shared.replays:
            return self.shared.once(layer, lambda: _pending(x, layer, call))
        if self.count * x.nbytes < _WORTH_PENDING:
            return self.finish(layer, call, x, None)
        return Pending(x, layer, call)

    @abstractmethod
    def finish(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        """Scale and shift ``x``, that has been multiplied by ``sign``."""


class _Prediction(_Run):
    """A run with statistics that the layers hold."""

    def finish(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        layer.check_call(call)
        if self.shared is None:
            return self.normalized(layer, call, x, sign)
        self.shared.open = False
        y = self.normalized(layer, call, x, sign)
        self.shared.largest = max(self.shared.largest, y.nbytes // self.folded)
        return y

    @abstractmethod
    def normalized(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor: ...


class MiniBatch(_Run):
    """Normalizes with the statistics of the batch that runs through, and keeps them.

    Args:
        correction: 0 for the biased variance, 1 for the unbiased one.
        pools_first: Let a max-pooling go before the scale and the shift.

    Attributes:
        statistics: For each layer, the mean and the variance ``(num_features,)`` of each call.
    """

    def __init__(self, correction: int, pools_first: bool) -> None:
        super().__init__(1, _Shared(replays=False) if pools_first else None)
        self.correction = correction
        self.statistics: dict[MCLayer, list[tuple[Tensor, Tensor]]] = {}

    def normalize(self, layer: MCLayer, x: Tensor) -> Tensor:
        """Normalize ``(batch, num_features, …)`` with its own mean and variance."""
        x = _finish(x)
        count = x.numel() // max(1, x.shape[1])
        if count < 2:
            raise ValueError(
                f"{layer} got an input of shape {tuple(x.shape)}, {count} value(s) a channel, and "
                "a variance needs at least 2; use a larger mc_batch_size."
            )
        like = x if layer.weight is None else layer.weight
        # In two passes over the values: exact, and faster than batch norm in training mode.
        wide = x if x.element_size() > 2 else x.float()
        mean = _by_channel_mean(wide)
        centred = wide - mean.view(-1, *[1] * (x.dim() - 2))
        var = _by_channel_mean(centred.mul_(centred))
        if self.correction:
            var = var * (count / (count - 1))
        mean, var = mean.to(like.dtype), var.to(like.dtype)
        self.statistics.setdefault(layer, []).append((mean, var))
        return super().normalize(layer, x)

    def finish(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        """Scale and shift with the mean and the variance of this call."""
        return _batch_norm(layer, x, *self.statistics[layer][call], sign)


def _by_channel_mean(x: Tensor) -> Tensor:
    trailing = tuple(range(2, x.dim()))
    return (x.mean(trailing) if trailing else x).mean(0)


class _One(_Prediction):
    """One estimator, in native batch norm."""

    def __init__(self, estimator: int, shared: _Shared | None) -> None:
        super().__init__(1, shared)
        self.estimator = estimator

    def normalized(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        return _batch_norm(layer, x, *layer.statistics(self.estimator, call), sign)


class _Mapped(_Prediction):
    """Several estimators under vmap: their scales and shifts carry the axis that it maps over."""

    def __init__(self, affine: Affine, count: int, shared: _Shared | None) -> None:
        super().__init__(count, shared)
        self.affine = affine

    def normalized(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        scale, shift = self.affine[layer]
        shape = (-1, *[1] * (x.dim() - 2))
        return _scaled(x, scale[call], shift[call], sign, shape)


class _Folded(_Prediction):
    """Several estimators in the batch axis: estimator 0's examples, estimator 1's, and so on."""

    def __init__(self, affine: Affine, count: int, shared: _Shared | None) -> None:
        super().__init__(count, shared)
        self.affine = affine
        self.folded = count
        self.batch = 0

    def normalized(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        scale, shift = self.affine[layer]
        self.batch = self.batch or x.shape[0]
        y = x if x.shape[0] == self.batch else self.unfold(x)
        shape = (self.count, 1, -1, *[1] * (x.dim() - 2))
        y = _scaled(y, scale[:, call], shift[:, call], sign, shape)
        return y.view(-1, *y.shape[2:])

    def unfold(self, output: Tensor) -> Tensor:
        """Give a tensor of the network its estimator axis."""
        if output.shape[0] == self.batch:  # it does not depend on the estimator
            return output.expand(self.count, *output.shape)
        return output.reshape(self.count, self.batch, *output.shape[1:])


def _batch_norm(
    layer: MCLayer, x: Tensor, mean: Tensor, var: Tensor, sign: Tensor | None
) -> Tensor:
    weight = layer.weight
    if sign is not None:
        mean, weight = mean * sign, weight * sign
    return F.batch_norm(x, mean, var, weight, layer.bias, False, 0.0, layer.eps)


def _scaled(
    x: Tensor, scale: Tensor, shift: Tensor, sign: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """Scale and shift, in the precision of the statistics, as native batch norm does."""
    if sign is not None:
        scale = scale * sign
    # A third of the time of torch.addcmul, on a CPU and broadcast like this.
    y = (x * scale.reshape(shape)).add_(shift.reshape(shape))
    return y if y.dtype == x.dtype else y.to(x.dtype)


# --- Sharing ---------------------------------------------------------------------------------


# With these a network lets values decide what it does.
_READS_VALUES = {
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
}


class _Shared(TorchFunctionMode):
    """Computes once what comes before the first value that depends on the estimator.

    During the first run it keeps the results of all calls up to there; in the runs that follow it
    hands them out again, in the same order.
    """

    def __init__(self, replays: bool = True) -> None:
        super().__init__()
        self.replays = replays
        self.open = replays
        self.reads_values = False
        self.largest = 0  # bytes of one estimator's largest normalized activation
        self.log: list[tuple[Any, Any]] = []
        self.position = 0

    def once(self, what: Any, compute: Callable[[], Any]) -> Any:
        if self.position < len(self.log):
            known, result = self.log[self.position]
            if known == what:
                self.position += 1
                return _own(result)
            self.position = len(self.log)  # another way through the network: nothing more to share
        result = compute()
        if self.open:
            self.log.append((what, result))
            self.position = len(self.log)
            return _own(result)
        return result

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.reads_values |= func in _READS_VALUES
        if not self.open and self.position == len(self.log):
            return func(*args, **kwargs)
        if func in _LEAVE_PENDING and type(args[0]) is Pending:
            return func(*args, **kwargs)  # nothing is computed, and each run has its own
        return self.once(func, lambda: func(*args, **kwargs))


# --- Pooling first ---------------------------------------------------------------------------

_ONE = torch.ones((), device="cpu")  # goes with every device, whatever the default one is
_PLAIN = frozenset({Tensor, nn.Parameter, type(None), bool, int, float, str})

# Activations that never decrease, so that they commute with a maximum.
_ACTIVATIONS = {
    F.relu: F.relu,
    torch.relu: F.relu,
    Tensor.relu: F.relu,
    F.relu6: F.relu6,
    F.relu_: F.relu,
    torch.relu_: F.relu,
    Tensor.relu_: F.relu,
}
_IN_PLACE = {F.relu_, torch.relu_, Tensor.relu_}
_POOLS_2D = {F.max_pool2d, torch.max_pool2d}
_ADAPTIVE_POOLS = {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d}
_LEAVE_PENDING = {*_ACTIVATIONS, *_ADAPTIVE_POOLS}
_POOLS = {*_POOLS_2D, F.max_pool1d, torch.max_pool1d, F.max_pool3d, torch.max_pool3d}


class Pending(Tensor):
    """The output of a batch norm layer, not yet scaled and shifted.

    Activations that never decrease and max-poolings leave it pending. To anything else it is the
    scaled and shifted tensor.
    """

    @staticmethod
    def __new__(cls: type[Pending], raw: Tensor, *_: Any, **__: Any) -> Pending:
        """Have the shape of ``raw``, and no data."""
        return Tensor._make_wrapper_subclass(cls, raw.shape, dtype=raw.dtype, device=raw.device)

    def __init__(
        self,
        raw: Tensor,
        layer: MCLayer,
        call: int,
        sign: Tensor | None = None,
        activations: Sequence[Callable[..., Tensor]] = (),
    ) -> None:
        self.raw, self.layer, self.call = raw, layer, call
        self.weight_sign, self.activations = sign, activations
        self.run, self.value = current_normalizer(), None

    def finish(self) -> Tensor:
        """The scaled and shifted tensor."""
        if self.value is None:
            value = self.run.finish(self.layer, self.call, self.raw, self.weight_sign)
            for activation in self.activations:
                value = activation(value, inplace=not value.requires_grad)
            self.raw = self.value = value  # the memory is needed
        return self.value

    def activate(self, activation: Callable[..., Tensor], inplace: bool) -> Pending:
        """Put an activation off, too."""
        activations = (*self.activations, activation)
        if inplace:
            self.activations = activations
            return self
        return Pending(self.raw, self.layer, self.call, self.weight_sign, activations)

    def pool(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pending:
        """Pool now: with a negative weight, the maximum is that of the negative."""
        raw, sign, weight = self.raw, self.weight_sign, self.layer.weight
        if sign is None and weight is not None:
            sign = torch.copysign(_ONE, weight.detach())
            raw = raw * sign.to(raw.dtype).view(-1, *[1] * (raw.dim() - 2))
        pooled = _max_pool(func, raw, args, kwargs)
        return Pending(pooled, self.layer, self.call, sign, self.activations)

    def has_size(self, output_size: int | Sequence[int | None]) -> bool:
        """Whether an adaptive pooling to this size would change nothing."""
        size = self.raw.shape[2:]
        wanted = [output_size] * len(size) if isinstance(output_size, int) else output_size
        return all(w is None or w == s for w, s in zip(wanted, size, strict=True))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stay pending if ``func`` allows it, and be the tensor otherwise."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Pending) and first.value is None:
            if func in _ACTIVATIONS:
                inplace = func in _IN_PLACE or kwargs.get("inplace", len(args) > 1 and args[1])
                return first.activate(_ACTIVATIONS[func], inplace)
            if func in _ADAPTIVE_POOLS and first.has_size(*args[1:], **kwargs):
                return first
            if func in _POOLS and not kwargs.get("return_indices", len(args) > 6 and args[6]):
                return first.pool(func, args[1:], kwargs)
        return func(*_finished_arguments(args), **(kwargs and _finished(kwargs)))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Be the tensor for what reaches an operation by another way."""
        return func(*_finished(args), **_finished(kwargs or {}))


def _pending(raw: Tensor, *rest: Any) -> Pending:
    with torch._C.DisableTorchFunction():  # what this asks of it is no call of the network's
        return Pending(raw, *rest)


def _own(result: Any) -> Any:
    """What the log hands out: a pending tensor will be finished by the run that gets it."""
    if type(result) is not Pending:
        return result
    p = result
    return _pending(p.raw, p.layer, p.call, p.weight_sign, p.activations)


def _finished(tree: Any) -> Any:
    return tree_map(_finish, tree)


def _finish(value: Tensor) -> Tensor:
    return value.finish() if type(value) is Pending else value


def _finished_arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Of a convolution's seven arguments tree_map would ask more than the rest of the call takes.
    return tuple(
        [
            a.finish() if type(a) is Pending else a if type(a) in _PLAIN else _finished(a)
            for a in args
        ]
    )


def _max_pool(func: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if x.device.type == "cpu" and not torch.is_grad_enabled() and _halves(func, x, args, kwargs):
        # Four to ten times as fast as the native pooling of a contiguous tensor.
        x = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
        return torch.maximum(x[..., ::2], x[..., 1::2])
    return func(x, *args, **kwargs)


def _halves(func: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this pooling takes the maximum of each 2 by 2 pixels of an image of even sizes."""
    given = dict(zip(("kernel_size", "stride", "padding", "dilation"), args, strict=False)) | kwargs
    two, size = (2, [2, 2], (2, 2)), given.get("kernel_size")
    return (
        func in _POOLS_2D
        and x.shape[-1] % 2 == x.shape[-2] % 2 == 0
        and size in two
        and (given.get("stride") or size) in two
        and given.get("padding", 0) in (0, [0, 0], (0, 0))
        and given.get("dilation", 1) in (1, [1, 1], (1, 1))
    )


# --- Running ---------------------------------------------------------------------------------


def predict(
    model: nn.Module,
    layers: Sequence[MCLayer],
    num_estimators: int,
    plan: Plan,
    chunk_bytes: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The network's output, every tensor of it with a leading axis ``num_estimators``.

    At most so many estimators run at once that their largest activation stays below
    ``chunk_bytes``; one always does.
    """
    chunk = 1
    if plan.path in ("fold", "vmap"):
        fitting = int(chunk_bytes // max(1.0, plan.growth * _num_bytes((args, kwargs))))
        num_chunks = -(-num_estimators // max(1, min(fitting, num_estimators)))
        chunk = -(-num_estimators // num_chunks)
    # Where all run as one, what they share is computed once without more ado.
    shared = _Shared(replays=chunk < num_estimators)
    return _in_chunks(model, layers, num_estimators, plan.path, chunk, shared, args, kwargs)


def predict_traced(
    model: nn.Module,
    layers: Mapping[str, MCLayer],
    num_estimators: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The same as one plain graph, for ``torch.compile`` and ``torch.export`` to see.

    They share and fuse by themselves, and cannot see through what the layers are told by a context.
    """

    def one(estimator: int) -> Any:
        buffers: dict[str, Tensor] = {}
        for name, layer in layers.items():
            if layer.mc_mean is not None and layer.mc_mean.shape[1]:
                mean, var = layer.statistics(estimator, 0)
                buffers |= {f"{name}.running_mean": mean, f"{name}.running_var": var}
        return functional_call(model, buffers, args, kwargs)

    outputs = [one(estimator) for estimator in range(num_estimators)]
    return tree_map(lambda *parts: torch.stack(parts), *outputs)


def is_traceable(layers: Iterable[MCLayer]) -> bool:
    """Whether running statistics can stand for an estimator's in every layer."""
    return all(
        layer.track_running_stats and layer.mc_mean is not None and layer.mc_mean.shape[1] <= 1
        for layer in layers
    )


# The switch that choose_plan turns is the whole process's.
_SWITCH = Lock()


@torch.no_grad()
def choose_plan(
    model: nn.Module,
    layers: Sequence[MCLayer],
    num_estimators: int,
    path: Path | Literal["auto"],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Plan:
    """The fastest way that gives what the plain loop gives, tried on examples of a batch.

    Two examples show what mixes them, and one what a network does to a batch of one (a
    ``squeeze()``, say). A ``path`` other than ``"auto"`` is taken as it is.
    """
    if path == "loop":
        return Plan("loop")
    few = min(num_estimators, 4)

    def tried(path: Path, chunk: int, call: Call) -> tuple[list[Tensor], _Shared]:
        shared = _Shared()
        return tensors_of(_in_chunks(model, layers, few, path, chunk, shared, *call)), shared

    calls = [_examples(2, args, kwargs)]
    expected = [tried("loop", 1, calls[0])[0]]
    one = _examples(1, args, kwargs)
    if _num_bytes(one) < _num_bytes(calls[0]):
        with suppress(Exception):  # a network need not take a batch of one
            expected.append(tried("loop", 1, one)[0])
            calls.append(one)
    candidates: tuple[Path, ...] = ("fold", "vmap", "shared") if path == "auto" else (path,)
    for candidate in candidates:
        # Of two estimators, one at a time as well: what the first computes is handed to the next.
        chunks = (1,) if candidate == "shared" else (2, 1) if few == 2 else (2,)
        try:
            with _no_slow_vmap():
                trials = [[tried(candidate, chunk, call) for chunk in chunks] for call in calls]
        except Exception:
            # Whatever it was, the plain loop has just shown that it need not happen.
            if path != "auto":
                raise
            continue
        plan = Plan(candidate, trials[0][0][1].largest / max(1, _num_bytes(calls[0])))
        if path != "auto":
            return plan
        results = [(*t, e) for e, ts in zip(expected, trials, strict=True) for t in ts]
        if candidate == "fold" and any(shared.reads_values for _, shared, _ in results):
            continue  # it might read other values, for other estimators together or one by one
        if all(_agree(output, e) for output, _, e in results):
            return plan
    return Plan("loop")


def _examples(count: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The first examples of a batch, where it is plain which axis they are on."""
    sizes = {t.shape[0] if t.dim() else 0 for t in tensors_of((args, kwargs))}
    if len(sizes) == 1 and min(sizes) > count:
        return tree_map(lambda t: t[:count], (args, kwargs))
    return args, kwargs


@contextmanager
def _no_slow_vmap() -> Iterator[None]:
    """Make vmap raise where it would run an operation once for each estimator."""
    # torch's stubs lack it.
    switch = torch._C._functorch._set_vmap_fallback_enabled  # pyright: ignore[reportAttributeAccessIssue]
    with _SWITCH:
        switch(False)
        try:
            yield
        finally:
            switch(True)


def _agree(outputs: list[Tensor], expected: list[Tensor]) -> bool:
    # Where there is no finite value, as in an empty batch, there is nothing to tell by.
    tells = any(t.isfinite().any() for t in expected)
    return len(outputs) == len(expected) and bool(tells) and all(map(_close, outputs, expected))


def _close(output: Tensor, expected: Tensor) -> bool:
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return False
    if not expected.dtype.is_floating_point:
        return torch.equal(output, expected)
    finite = expected[expected.isfinite()]
    scale = finite.abs().amax().item() if finite.numel() else 0.0
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return torch.allclose(output, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def _num_bytes(tree: Any) -> int:
    return sum(t.nbytes for t in tensors_of(tree))


def _in_chunks(
    model: nn.Module,
    layers: Sequence[MCLayer],
    num_estimators: int,
    path: Path,
    chunk: int,
    shared: _Shared,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    def run_chunk(start: int) -> Any:
        count = min(chunk, num_estimators - start)
        if count == 1:
            run = _One(start, None if path == "loop" else shared)
            return tree_map(lambda t: t.unsqueeze(0), _run(model, run, args, kwargs))
        affine = [layer.scale_and_shift(start, start + count) for layer in layers]
        if path == "fold":
            run = _Folded(dict(zip(layers, affine, strict=True)), count, shared)
            return tree_map(run.unfold, _run(model, run, args, kwargs))
        return _run_vmap(model, layers, affine, count, shared, args, kwargs)

    outputs = [run_chunk(start) for start in range(0, num_estimators, chunk)]
    if len(outputs) == 1:
        return outputs[0]
    return tree_map(lambda *parts: torch.cat(parts), *outputs)


def _run_vmap(
    model: nn.Module,
    layers: Sequence[MCLayer],
    affine: list[tuple[Tensor, Tensor]],
    count: int,
    shared: _Shared,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    # vmap returns tensors only: the output they stood in is kept aside, and filled again.
    outputs: list[Any] = []

    def mapped(affine: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        run = _Mapped(dict(zip(layers, affine, strict=True)), count, shared)
        outputs.append(_run(model, run, args, kwargs))
        return tensors_of(outputs[0])

    tensors = iter(torch.vmap(mapped)(affine))
    return tree_map(lambda _: next(tensors), outputs[0])


def _run(model: nn.Module, run: _Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with run_with(run):
        if run.shared is None:
            return model(*args, **kwargs)
        run.shared.position = 0
        with run.shared if run.shared.replays else nullcontext():
            return _finished(model(*args, **kwargs))
