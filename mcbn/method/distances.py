"""How far drawn statistics are from the trained ones, and a warning if they are too far."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcbn.method.statistics import Pair, batch_norms

# In trained standard deviations. After a short training, its own data are off by a few; unscaled
# pixels, by hundreds.
_FAR = 100.0


def warn_if_unfit(model: nn.Module, drawn: Mapping[Any, Pair]) -> None:
    """Warn about statistics that cannot come from a draw of the training data."""
    names, (shift, *_) = distances(model, drawn)
    if not names or not shift.max() > _FAR:
        return
    worst = int(shift.argmax())
    warnings.warn(
        f"the mini-batches of fit lie {shift[worst]:.0f} trained standard deviations from "
        f"the running mean of layer {names[worst]!r}; give fit the training data, "
        "preprocessed as in the training. mcbn.diagnostics.fit_report compares all layers.",
        stacklevel=3,
    )


def distances(model: nn.Module, drawn: Mapping[Any, Pair]) -> tuple[list[str], Tensor]:
    """The layers that hold trained statistics, and their shift, spread, scale ``(3, layers)``.

    They are defined in `mcbn.diagnostics.FitReport`.
    """
    rows = {
        name: _of_layer(layer, *drawn[layer])
        for name, layer in batch_norms(model).items()
        if drawn[layer][0].shape[1] and _is_trained(layer)
    }
    columns = torch.stack(list(rows.values())).T if rows else torch.empty(3, 0)
    return list(rows), columns.cpu()


def _is_trained(layer: Any) -> bool:
    """Whether a layer has running statistics other than its initial ones."""
    if layer.running_mean is None or layer.running_var is None:
        return False
    return bool((layer.running_mean != 0).any() or (layer.running_var != 1).any())


def _of_layer(layer: Any, mean: Tensor, var: Tensor) -> Tensor:
    mean, var = (drawn.float().flatten(0, 1) for drawn in (mean, var))
    trained_mean, trained_var = layer.running_mean.float(), layer.running_var.float() + layer.eps
    shift = (mean.mean(0) - trained_mean) / trained_var.sqrt()
    spread = (mean - mean.mean(0)) / trained_var.sqrt()
    log_scale = ((var.mean(0) + layer.eps) / trained_var).log() / 2
    size = [values.square().mean().sqrt() for values in (shift, spread, log_scale)]
    return torch.stack([*size[:2], size[2].exp()])
