"""Batch norm layers that hold the statistics of many mini-batches.

A batch norm layer becomes one of these by a change of class, so that its parameters, hooks, names
and place in the network stay what they were. Which statistics it uses is not a state of the layer:
whoever runs the network says so for the length of that run (:func:`run_with`), and outside of such
a run the layer is the batch norm layer that it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


class Normalizer(Protocol):
    """What stands in for the running statistics while a network is run."""

    def normalize(self, layer: MCLayer, x: Tensor) -> Tensor:
        """Normalize the layer's input ``(batch, channels, …)``."""
        ...


# A context variable is private to its thread: two threads can predict with one network.
_NORMALIZER: ContextVar[Normalizer | None] = ContextVar("mcbn_normalizer", default=None)


def current_normalizer() -> Any:
    """What this thread's run in progress normalizes with, or None."""
    return _NORMALIZER.get()


@contextmanager
def run_with(normalizer: Normalizer | None) -> Iterator[None]:
    """Within this context every :class:`MCLayer` normalizes with ``normalizer``."""
    token = _NORMALIZER.set(normalizer)
    try:
        yield
    finally:
        _NORMALIZER.reset(token)


class MCLayer(_BatchNorm):
    """What :func:`convert_batch_norm` mixes into the class of a batch norm layer.

    Attributes:
        mc_mean: ``(num_estimators, num_calls, num_features)``, or None while there is none: the
            mean of each estimator's mini-batch, for each time that a forward pass calls the layer.
        mc_var: The variances, in the same shape.
    """

    mc_mean: Tensor | None
    mc_var: Tensor | None
    num_estimators: int
    has_own_forward: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``(batch, num_features, …)`` as the run in progress asks for."""
        normalizer = _NORMALIZER.get()
        if normalizer is None:
            return super().forward(input)
        if self.has_own_forward:
            with _Inside(self, normalizer):
                return super().forward(input)
        self._check_input_dim(input)
        return normalizer.normalize(self, input)

    def scale_and_shift(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Those of some estimators, each ``(stop - start, num_calls, num_features)``."""
        mean, var = self._held()
        if stop - start < len(mean):
            mean, var = mean[start:stop], var[start:stop]
        weight, bias = self.weight, self.bias
        scale = (var + self.eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        shift = mean * scale
        return scale, -shift if bias is None else bias - shift

    def statistics(self, estimator: int, call: int) -> tuple[Tensor, Tensor]:
        """The mean and the variance of one estimator, each ``(num_features,)``."""
        mean, var = self._held()
        return mean[estimator, call], var[estimator, call]

    def replace(self, estimators: Sequence[int], mean: Tensor, var: Tensor) -> None:
        """Put ``(len(estimators), num_calls, num_features)`` in the place of those of some."""
        index = torch.tensor(estimators, device=mean.device)
        self.mc_mean, self.mc_var = (
            held.index_copy(0, index, new)
            for held, new in zip(self._held(), (mean, var), strict=True)
        )

    def _held(self) -> tuple[Tensor, Tensor]:
        mean, var = self.mc_mean, self.mc_var
        assert mean is not None
        assert var is not None
        return mean, var

    def check_call(self, call: int) -> None:
        """Raise RuntimeError where there are no statistics for the layer's call number ``call``."""
        fitted = 0 if self.mc_mean is None else self.mc_mean.shape[1]
        if call >= fitted:
            raise RuntimeError(
                f"this forward pass calls {self} {call + 1} times, but those of fit did so "
                f"{fitted} times; call fit with batches for which the network does the same."
            )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: Any,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: list[str],
    ) -> None:
        if not any(key.endswith("mc_mean") for key in state_dict):
            # A checkpoint of the plain network: statistics of other weights would be wrong.
            self.mc_mean = self.mc_var = None
        like = self.weight if self.running_mean is None else self.running_mean
        for name in ("mc_mean", "mc_var"):
            saved = state_dict.get(prefix + name)
            if saved is None:
                continue
            if saved.dim() != 3 or len(saved) != self.num_estimators:
                error_msgs.append(
                    f"{prefix}{name} has shape {tuple(saved.shape)}, but this wrapper has "
                    f"num_estimators={self.num_estimators}; build one with as many as were saved."
                )
                return
            setattr(self, name, (saved if like is None else like).new_empty(saved.shape))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restore, (_plain_class(type(self)),), self.__dict__


class MiniBatch:
    """Normalizes with the statistics of the batch that runs through, and keeps them.

    Args:
        correction: 0 for the biased variance, 1 for the unbiased one.

    Attributes:
        statistics: For each layer, the mean and the variance ``(num_features,)`` of each call.
    """

    def __init__(self, correction: int) -> None:
        self.correction = correction
        self.statistics: dict[MCLayer, list[tuple[Tensor, Tensor]]] = {}

    def normalize(self, layer: MCLayer, x: Tensor) -> Tensor:
        """Normalize ``(batch, num_features, …)`` with its own mean and variance."""
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
        centred = wide - _along_channels(mean, x)
        var = _by_channel_mean(centred.mul_(centred))
        if self.correction:
            var = var * (count / (count - 1))
        mean, var = mean.to(like.dtype), var.to(like.dtype)
        self.statistics.setdefault(layer, []).append((mean, var))
        return F.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)


def _by_channel_mean(x: Tensor) -> Tensor:
    trailing = tuple(range(2, x.dim()))
    return (x.mean(trailing) if trailing else x).mean(0)


def _along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


class _Inside(TorchFunctionMode):
    """Puts our statistics into the ``F.batch_norm`` of a subclass that has a forward of its own."""

    def __init__(self, layer: MCLayer, normalizer: Normalizer) -> None:
        super().__init__()
        self.layer, self.normalizer = layer, normalizer

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in (F.batch_norm, torch.batch_norm):
            x = args[0] if args else (kwargs or {})["input"]
            return self.normalizer.normalize(self.layer, x)
        return func(*args, **(kwargs or {}))


def _plain_class(cls: type[MCLayer]) -> type[_BatchNorm]:
    return cls.__bases__[1]


@cache
def _mc_class(plain: type[_BatchNorm]) -> type[MCLayer]:
    common = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    body: dict[str, Any] = {
        "__doc__": plain.__doc__,
        "__module__": __name__,
        "has_own_forward": plain.forward not in common,
    }
    return type(f"MC{plain.__name__}", (MCLayer, plain), body)


def _restore(plain: type[_BatchNorm]) -> MCLayer:
    cls = _mc_class(plain)
    return cls.__new__(cls)


def convert_batch_norm(model: nn.Module, num_estimators: int) -> nn.Module:
    """Turn every batch norm layer of ``model`` into an :class:`MCLayer`, in place.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> model = convert_batch_norm(model, num_estimators=4)
        >>> type(model[1]).__name__
        'MCBatchNorm1d'
        >>> isinstance(model[1], nn.BatchNorm1d)
        True
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, MCLayer):
            module.__class__ = _mc_class(type(module))
            vars(module)["num_estimators"] = num_estimators
            module.register_buffer("mc_mean", None)
            module.register_buffer("mc_var", None)
    return model


def mc_layers(model: nn.Module) -> list[MCLayer]:
    """The network's converted layers, each once."""
    return [module for module in model.modules() if isinstance(module, MCLayer)]


def named_mc_layers(model: nn.Module) -> dict[str, MCLayer]:
    """The same by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MCLayer)}
