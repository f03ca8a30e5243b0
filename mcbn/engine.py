"""All estimators of a network, in less time than one after another.

Estimators differ in the scale and the shift that a batch norm layer applies, and in nothing else.
Three things follow, and they are all that is done here:

* What a network computes before the first scale and shift is the same for all estimators:
  :class:`_Shared` computes it once.
* A maximum can be taken before a scale and a shift as well as after, if the sign of the scale is
  known, and it is that of the layer's weight: :class:`Pending` lets a max-pooling go first.
* ``torch.vmap`` runs several estimators as one. Where tensors are small, this saves the time of
  launching operations; where they are large, it saves nothing, and one estimator after another in
  native batch norm is the fastest.

What runs is the network's own ``forward``, whatever it does. :func:`choose_plan` compares these
ways with the plain loop once, and does without them where they are not possible or not right.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mcbn.layers import MCLayer, current_normalizer, run_with
from mcbn.tree import tensors_of, tree_map

Path = Literal["vmap", "shared", "loop"]


@dataclass(frozen=True)
class Plan:
    """How a network is run.

    Attributes:
        path: ``"vmap"``, several estimators at a time; ``"shared"``, one at a time, with what they
            share computed once; ``"loop"``, one full forward pass an estimator.
        growth: Bytes of the largest normalized activation, for each byte of input.
    """

    path: Path
    growth: float = 1.0


# --- What the layers are given ---------------------------------------------------------------


class _Run(ABC):
    """One run of the network."""

    def __init__(self, shared: _Shared | None) -> None:
        self.shared = shared
        self.calls: dict[MCLayer, int] = {}

    def normalize(self, layer: MCLayer, x: Tensor) -> Tensor:
        call = self.calls.get(layer, 0)
        self.calls[layer] = call + 1
        if self.shared is None:
            return self.finish(layer, call, x, None)
        x = x.finish() if isinstance(x, Pending) else x
        return self.shared.once(layer, lambda: Pending(x, layer, call))

    def finish(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        """Scale and shift ``x``, that has been multiplied by ``sign``."""
        if self.shared is not None:
            self.shared.open = False
            self.shared.largest = max(self.shared.largest, x.numel() * x.element_size())
        layer.check_call(call)
        return self.normalized(layer, call, x, sign)

    @abstractmethod
    def normalized(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor: ...


class _One(_Run):
    """One estimator, in native batch norm."""

    def __init__(self, estimator: int, shared: _Shared | None) -> None:
        super().__init__(shared)
        self.estimator = estimator

    def normalized(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        mean, var = layer.statistics(self.estimator, call)
        weight = layer.weight
        if sign is not None:
            mean, weight = mean * sign, weight * sign
        return F.batch_norm(x, mean, var, weight, layer.bias, False, 0.0, layer.eps)


class _Several(_Run):
    """Several estimators under vmap: their scales and shifts carry the axis that it maps over."""

    def __init__(self, affine: dict[MCLayer, tuple[Tensor, Tensor]], shared: _Shared | None) -> None:
        super().__init__(shared)
        self.affine = affine

    def normalized(self, layer: MCLayer, call: int, x: Tensor, sign: Tensor | None) -> Tensor:
        scale, shift = (values[call] for values in self.affine[layer])
        if sign is not None:
            scale = scale * sign
        shape = (-1, *[1] * (x.dim() - 2))
        # In the precision of the statistics, as native batch norm does it.
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)


# --- Sharing ---------------------------------------------------------------------------------


class _Shared(TorchFunctionMode):
    """Computes once what comes before the first value that depends on the estimator.

    During the first run it keeps the results of all calls up to there; in the runs that follow it
    hands them out again, in the same order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open = True
        self.largest = 0  # bytes of the largest activation that was scaled and shifted
        self.log: list[tuple[Any, Any]] = []
        self.position = 0

    def once(self, what: Any, compute: Callable[[], Any]) -> Any:
        if self.position < len(self.log):
            known, result = self.log[self.position]
            if known is what:
                self.position += 1
                return result
            self.position = len(self.log)  # another way through the network: nothing more to share
        result = compute()
        if self.open:
            self.log.append((what, result))
            self.position = len(self.log)
        return result

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.open and self.position >= len(self.log):
            return func(*args, **kwargs)
        return self.once(func, lambda: func(*args, **kwargs))


# --- Pooling first ---------------------------------------------------------------------------

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
_POOLS = {
    F.max_pool1d,
    F.max_pool2d,
    F.max_pool3d,
    torch.max_pool1d,
    torch.max_pool2d,
    torch.max_pool3d,
}


class Pending(Tensor):
    """The output of a batch norm layer, not yet scaled and shifted.

    Activations that never decrease and max-poolings leave it pending. To anything else it is the
    scaled and shifted tensor.
    """

    x: Tensor

    @staticmethod
    def __new__(cls, x: Tensor, *_: Any) -> Pending:
        return Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=x.device)

    def __init__(
        self,
        x: Tensor,
        layer: MCLayer,
        call: int,
        sign: Tensor | None = None,
        activations: Sequence[Callable[..., Tensor]] = (),
    ) -> None:
        state = self.__dict__
        state["raw"], state["layer"], state["call"] = x, layer, call
        state["sign"], state["activations"] = sign, activations
        state["run"], state["value"] = current_normalizer(), None

    def finish(self) -> Tensor:
        """The scaled and shifted tensor, for the run in progress."""
        state = self.__dict__
        run = current_normalizer() or state["run"]
        if state["value"] is None or state["run"] is not run:
            value = run.finish(state["layer"], state["call"], state["raw"], state["sign"])
            for activation in state["activations"]:
                value = activation(value, inplace=True)
            state["run"], state["value"] = run, value
        return state["value"]

    def activate(self, activation: Callable[..., Tensor], inplace: bool) -> Pending:
        state = self.__dict__
        activations = (*state["activations"], activation)
        if inplace:
            state["activations"] = activations
            return self
        return Pending(state["raw"], state["layer"], state["call"], state["sign"], activations)

    def pool(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pending:
        state = self.__dict__
        x, layer, sign = state["raw"], state["layer"], state["sign"]
        if sign is None and layer.weight is not None:
            sign = torch.where(layer.weight < 0, -1.0, 1.0).to(layer.weight.dtype)
            x = x * sign.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
        pooled = _max_pool(func, x, args, kwargs)
        return Pending(pooled, layer, state["call"], sign, state["activations"])

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Pending) and first.__dict__["value"] is None:
            if func in _ACTIVATIONS:
                inplace = func in _IN_PLACE or kwargs.get("inplace", len(args) > 1 and args[1])
                return first.activate(_ACTIVATIONS[func], inplace)
            if func in _POOLS and not kwargs.get("return_indices", len(args) > 6 and args[6]):
                return first.pool(func, args[1:], kwargs)
        return func(*_finished(args), **_finished(kwargs))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*_finished(args), **_finished(kwargs or {}))


def _finished(tree: Any) -> Any:
    return tree_map(lambda t: t.finish() if isinstance(t, Pending) else t, tree)


def _max_pool(func: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    halves = x.dim() == 4 and x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0
    if halves and x.device.type == "cpu" and not torch.is_grad_enabled():
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = dict(zip(names, args, strict=False)) | kwargs
        size, stride = _pair(given.get("kernel_size")), _pair(given.get("stride") or 2)
        if size == stride == (2, 2) and _pair(given.get("padding", 0)) == (0, 0):
            if _pair(given.get("dilation", 1)) == (1, 1):
                # Four to ten times as fast as the native pooling of a contiguous tensor.
                x = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
                return torch.maximum(x[..., ::2], x[..., 1::2])
    return func(x, *args, **kwargs)


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) * (2 // len(value)) if isinstance(value, tuple | list) else (value, value)


# --- Running ---------------------------------------------------------------------------------


def predict(
    model: nn.Module,
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
    if plan.path == "vmap":
        fitting = int(chunk_bytes // max(1.0, plan.growth * _num_bytes((args, kwargs))))
        num_chunks = -(-num_estimators // max(1, min(fitting, num_estimators)))
        chunk = -(-num_estimators // num_chunks)
    shared = None if plan.path == "loop" else _Shared()
    outputs = [
        _run_estimators(model, range(s, min(s + chunk, num_estimators)), shared, args, kwargs)
        for s in range(0, num_estimators, chunk)
    ]
    if len(outputs) == 1:
        return outputs[0]
    return tree_map(lambda *parts: torch.cat(parts), *outputs)


@torch.no_grad()
def choose_plan(
    model: nn.Module,
    num_estimators: int,
    path: Path | Literal["auto"],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Plan:
    """The fastest way that gives what the plain loop gives, tried on one batch of inputs.

    A ``path`` other than ``"auto"`` is taken as it is.
    """
    if path == "loop":
        return Plan("loop")
    few = min(num_estimators, 4)
    expected = tensors_of(predict(model, few, Plan("loop"), 0, args, kwargs))
    shared = _Shared()
    with warnings.catch_warnings():
        # vmap warns where it would run an operation once for each estimator.
        warnings.simplefilter("error")
        for candidate in ("vmap", "shared") if path == "auto" else (path,):
            try:
                if not shared.largest:
                    _run_estimators(model, range(1), shared, args, kwargs)
                plan = Plan(candidate, shared.largest / max(1, _num_bytes((args, kwargs))))
                two = int(2.5 * shared.largest)
                output = tensors_of(predict(model, few, plan, two, args, kwargs))
            except Exception:
                # Whatever it was, the plain loop has just shown that it need not happen.
                if path != "auto":
                    raise
                continue
            if path != "auto" or _agree(output, expected):
                return plan
    return Plan("loop")


def _agree(outputs: list[Tensor], expected: list[Tensor]) -> bool:
    return len(outputs) == len(expected) and all(map(_close, outputs, expected))


def _close(output: Tensor, expected: Tensor) -> bool:
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return False
    if not expected.dtype.is_floating_point:
        return torch.equal(output, expected)
    scale = expected.abs().amax().item() if expected.numel() else 0.0
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return torch.allclose(output, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def _num_bytes(tree: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_of(tree))


def _run_estimators(
    model: nn.Module,
    estimators: range,
    shared: _Shared | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if len(estimators) == 1:
        output = _run(model, _One(estimators[0], shared), args, kwargs)
        return tree_map(lambda t: t.unsqueeze(0), output)
    layers = [m for m in model.modules() if isinstance(m, MCLayer)]
    outputs: list[Any] = []

    def several(affine: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        run = _Several(dict(zip(layers, affine, strict=True)), shared)
        outputs.append(_run(model, run, args, kwargs))
        return tensors_of(outputs[0])

    tensors = iter(torch.vmap(several)([layer.scale_and_shift(estimators) for layer in layers]))
    return tree_map(lambda _: next(tensors), outputs[0])


def _run(model: nn.Module, run: _Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with run_with(run):
        if run.shared is None:
            return model(*args, **kwargs)
        run.shared.position = 0
        with run.shared:
            return _finished(model(*args, **kwargs))
