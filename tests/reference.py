"""MCBN the slow and obvious way, on plain torch modules, for the tests to compare with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = dict[str, list[tuple[Tensor, Tensor]]]


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def statistics_of(model: nn.Module, batch: tuple[Any, ...], correction: int = 0) -> Statistics:
    """Mean and variance of each call of each batch norm layer, from its input."""
    model = copy.deepcopy(model).eval()
    found: Statistics = {}
    for name, layer in batch_norms(model).items():

        def replaced(x: Tensor, layer: _BatchNorm = layer, name: str = name) -> Tensor:
            dims = [d for d in range(x.dim()) if d != 1]
            mean, var = x.mean(dims), x.var(dims, correction=correction)
            found.setdefault(name, []).append((mean, var))
            shape = [1, -1] + [1] * (x.dim() - 2)
            y = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + layer.eps)
            if layer.weight is not None:
                y = y * layer.weight.view(shape) + layer.bias.view(shape)
            return y

        layer.forward = replaced
    with torch.no_grad():
        model(*batch)
    return found


def predict(model: nn.Module, draws: list[Statistics], *args: Any, **kwargs: Any) -> list[Any]:
    """The output of each estimator: plain batch norm whose running statistics are replaced."""
    outputs = []
    for draw in draws:
        one = copy.deepcopy(model).eval()
        for name, layer in batch_norms(one).items():
            calls = iter(draw.get(name, []))

            def replaced(x: Tensor, layer: _BatchNorm = layer, calls: Any = calls) -> Tensor:
                mean, var = next(calls)
                # In half precision, statistics and parameters have to be of one type.
                both = layer.weight, layer.bias
                weight, bias = (p if p is None else p.to(mean.dtype) for p in both)
                return nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, layer.eps)

            layer.forward = replaced
        outputs.append(one(*args, **kwargs))
    return outputs


def fitted(wrapper: nn.Module) -> list[Statistics]:
    """The statistics that a fitted wrapper holds, one dict an estimator."""
    layers = {n: m for n, m in wrapper.model.named_modules() if isinstance(m, _BatchNorm)}
    return [
        {
            name: [(layer.mc_mean[s, c], layer.mc_var[s, c]) for c in range(layer.mc_mean.shape[1])]
            for name, layer in layers.items()
        }
        for s in range(wrapper.num_estimators)
    ]


def relative_error(output: Tensor, expected: Tensor) -> float:
    assert output.shape == expected.shape
    return ((output - expected).abs().max() / expected.abs().max()).item()


def randomize(model: nn.Module) -> nn.Module:
    """Give batch norm layers weights of both signs, biases, and running statistics."""
    with torch.no_grad():
        for layer in batch_norms(model).values():
            if layer.weight is not None:
                layer.weight.uniform_(-1.5, 1.5)
                layer.bias.normal_(0, 0.3)
            if layer.running_mean is not None:
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2.0)
    return model.eval()
