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

from mcbn.checks import check_count, check_module


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
        return self._normalize(normalizer, input)

    def _normalize(self, normalizer: Normalizer, x: Tensor) -> Tensor:
        if x.shape[1] != self.num_features:  # it would broadcast
            raise ValueError(
                f"{self} got an input of shape {tuple(x.shape)}, wanted {self.num_features} "
                "channels, on the axis after the batch."
            )
        return normalizer.normalize(self, x)

    def scale_and_shift(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Those of some estimators, each ``(stop - start, num_calls, num_features)``."""
        mean, var = self._held()
        if stop - start < mean.shape[0]:
            mean, var = mean[start:stop], var[start:stop]
        weight, bias = self.weight, self.bias
        scale = (var + self.eps).rsqrt_()
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
        return scale, shift

    def statistics(self, estimator: int, call: int) -> tuple[Tensor, Tensor]:
        """The mean and the variance of one estimator, each ``(num_features,)``."""
        mean, var = self._held()
        return mean[estimator, call], var[estimator, call]

    def replace(self, estimators: Sequence[int], mean: Tensor, var: Tensor) -> None:
        """Put ``(len(estimators), num_calls, num_features)`` in the place of those of some."""
        held_mean, held_var = self._held()
        if mean.shape[1] != held_mean.shape[1]:
            raise self._called_otherwise(mean.shape[1])
        index = torch.tensor(estimators, device=mean.device)
        self.mc_mean = held_mean.index_copy(0, index, mean)
        self.mc_var = held_var.index_copy(0, index, var)

    def _held(self) -> tuple[Tensor, Tensor]:
        mean, var = self.mc_mean, self.mc_var
        assert mean is not None
        assert var is not None
        return mean, var

    def check_call(self, call: int) -> None:
        """Raise RuntimeError where there are no statistics for the layer's call number ``call``."""
        fitted = 0 if self.mc_mean is None else self.mc_mean.shape[1]
        if call >= fitted:
            raise self._called_otherwise(call + 1)

    def _called_otherwise(self, times: int) -> RuntimeError:
        fitted = 0 if self.mc_mean is None else self.mc_mean.shape[1]
        return RuntimeError(
            f"this forward pass calls {self} {times} times, but those of fit did so "
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
        mean, var = (state_dict.get(prefix + name) for name in ("mc_mean", "mc_var"))
        if mean is None and var is None:
            # A checkpoint of the plain network: statistics of other weights would be wrong.
            self.mc_mean = self.mc_var = None
        elif wrong := self._wrong_in(mean, var):
            error_msgs.append(f"{prefix}mc_mean and {prefix}mc_var {wrong}.")
            return
        else:
            saved = state_dict[prefix + "mc_mean"]
            like = self.weight if self.running_mean is None else self.running_mean
            like = saved if like is None else like
            self.mc_mean, self.mc_var = like.new_empty(saved.shape), like.new_empty(saved.shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _wrong_in(self, mean: Any, var: Any) -> str:
        """What is wrong with saved statistics, in words; nothing if they can be used."""
        if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
            kinds = f"{type(mean).__name__} and {type(var).__name__}"
            return f"are of type {kinds}, wanted two tensors; take both from one saved state_dict()"
        shapes = tuple(mean.shape), tuple(var.shape)
        if not (
            mean.shape == var.shape
            and mean.dim() == 3
            and (len(mean), mean.shape[2]) == (self.num_estimators, self.num_features)
        ):
            return (
                f"have shapes {shapes}, wanted are two of (num_estimators, calls, num_features), "
                f"but this wrapper has num_features={self.num_features} and "
                f"num_estimators={self.num_estimators}; build one with as many as were saved"
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

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restore, (_plain_class(type(self)),), self.__dict__


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
            return self.layer._normalize(self.normalizer, x)
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

    Raises:
        TypeError: ``model`` is no module, or the number no integer.
        ValueError: The number is below 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> model = convert_batch_norm(model, num_estimators=4)
        >>> type(model[1]).__name__
        'MCBatchNorm1d'
        >>> isinstance(model[1], nn.BatchNorm1d)
        True
    """
    check_module("model", model)
    check_count("num_estimators", num_estimators)
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
