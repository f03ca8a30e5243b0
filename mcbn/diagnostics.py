"""Checks whether the statistics that ``fit`` drew can be trusted.

The statistics of training mini-batches scatter around the running statistics that training left
behind. Those of other data, or of differently preprocessed data, are offset from them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from mcbn.checks import check_tensors, check_type
from mcbn.method.distances import distances
from mcbn.method.mc_batch_norm import MCBatchNorm
from mcbn.method.statistics import batch_norms
from mcbn.predictive import mean_probs


class FitReport(NamedTuple):
    """Drawn versus trained statistics, with one value for each batch norm layer.

    Attributes:
        names: The layers, without those that hold no trained statistics.
        shift: Distance between the mean of the estimators and the trained mean, ``(layers,)``.
        spread: Distance of an estimator from the mean of the estimators, ``(layers,)``.
        scale: Factor between the drawn and the trained standard deviation, ``(layers,)``.
    """

    names: list[str]
    shift: Tensor
    spread: Tensor
    scale: Tensor


def fit_report(mc: MCBatchNorm) -> FitReport:
    r"""Measure how far the drawn statistics of each layer are from the trained ones.

    Let a layer's trained mean and variance in channel :math:`c` be :math:`\mu_c` and
    :math:`\sigma^2_c` (including :math:`\epsilon`), with a second index :math:`s` for those of
    estimator :math:`s` and a bar for the mean over :math:`s`:

    .. math::

        \text{shift}^2 = \frac{1}{C} \sum_c \frac{(\bar\mu_c - \mu_c)^2}{\sigma_c^2}, \qquad
        \text{spread}^2 = \frac{1}{SC} \sum_{s,c} \frac{(\mu_{sc} - \bar\mu_c)^2}{\sigma_c^2},
        \qquad
        \log^2 \text{scale} = \frac{1}{C} \sum_c \log^2 \frac{\bar\sigma_c}{\sigma_c}.

    Shift and spread are thus in trained standard deviations, and a scale of 1.1 means that those
    of a typical channel differ by a tenth, up or down. If a layer is called several times, its
    calls count as further estimators.

    Mini-batches like those of training have a shift of about :math:`\sqrt{1/S + m/(2-m)}` times
    their spread, where :math:`m` is the layer's momentum: a third of it for 16 estimators and
    PyTorch's 0.1. A shift larger than the spread means that they come from different data. If each
    mini-batch holds all of a small training set, the spread is 0, which is no cause for concern.

    Args:
        mc: A fitted wrapper.

    Raises:
        RuntimeError: The wrapper is not fitted.
        TypeError: ``mc`` is not a wrapper.
        ValueError: No layer holds trained statistics.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mcbn import MCBatchNorm
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> for _ in range(100):
        ...     _ = model(torch.randn(32, 3))
        >>> mc = MCBatchNorm(model).fit([torch.randn(32, 3) + 0.5 for _ in range(16)])
        >>> fit_report(mc).shift.round(decimals=1)
        tensor([0.5000])
    """
    check_type("mc", mc, MCBatchNorm, "a fitted MCBatchNorm")
    if not mc.fitted:
        raise RuntimeError("MCBatchNorm holds no statistics yet; call fit(train_dataloader) first.")
    layers: list[Any] = list(batch_norms(mc.model).values())
    held = {layer: (layer.mc_mean, layer.mc_var) for layer in layers}
    names, columns = distances(mc.model, held)
    if not names:
        raise ValueError(
            "Given a network whose batch norm layers hold no trained running statistics, wanted a "
            "trained one; there is nothing to compare with."
        )
    return FitReport(names, *columns)


def probability_moved(logits: Tensor, plain_logits: Tensor) -> Tensor:
    """Share of the plain network's probability that MCBN moves to other classes, ``(batch,)``.

    The total variation distance, half the sum of the absolute differences: 0 where both predict
    the same, 1 where they share no class. It needs no labels.

    Args:
        logits: Logits of the estimators, ``(num_estimators, batch, classes)``.
        plain_logits: Logits of the plain network on the same inputs, ``(batch, classes)``.

    Raises:
        TypeError: If an argument is not a tensor.
        ValueError: If the shapes or devices do not match, or the logits are not floating point.

    Example:
        >>> import torch
        >>> probability_moved(torch.tensor([[[9.0, 1.0]]]).log(), torch.tensor([[6.0, 4.0]]).log())
        tensor([0.3000])
    """
    check_tensors(logits=logits, plain_logits=plain_logits)
    if plain_logits.ndim != 2 or logits.shape[-2:] != plain_logits.shape:
        raise ValueError(
            f"Given logits of shape {tuple(logits.shape)} and plain_logits of shape "
            f"{tuple(plain_logits.shape)}, wanted (num_estimators, batch, classes) and (batch, "
            "classes)."
        )
    return (mean_probs(logits) - mean_probs(plain_logits)).abs().sum(-1) / 2
