"""Are the statistics that ``fit`` drew fit for use?

Mini-batches of the training data scatter around the running statistics that the training left
behind. Those of other data, or of other preprocessing, lie beside them.
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
    """Drawn against trained statistics, a value for each batch norm layer.

    Attributes:
        names: The layers, those left out that hold no trained statistics.
        shift: Distance between the mean of the estimators and the trained mean, ``(layers,)``.
        spread: Distance of an estimator from the mean of the estimators, ``(layers,)``.
        scale: Factor between the drawn and the trained standard deviation, ``(layers,)``.
    """

    names: list[str]
    shift: Tensor
    spread: Tensor
    scale: Tensor


def fit_report(mc: MCBatchNorm) -> FitReport:
    r"""How far the drawn statistics of each layer lie from the trained ones.

    With a layer's trained mean :math:`\mu_c` and variance :math:`\sigma^2_c` of channel :math:`c`
    (its :math:`\epsilon` added), those of estimator :math:`s`, and bars for their means over
    :math:`s`:

    .. math::

        \text{shift}^2 = \frac{1}{C} \sum_c \frac{(\bar\mu_c - \mu_c)^2}{\sigma_c^2}, \qquad
        \text{spread}^2 = \frac{1}{SC} \sum_{s,c} \frac{(\mu_{sc} - \bar\mu_c)^2}{\sigma_c^2},
        \qquad
        \log^2 \text{scale} = \frac{1}{C} \sum_c \log^2 \frac{\bar\sigma_c}{\sigma_c}.

    So shift and spread are in trained standard deviations, and a scale of 1.1 says that those of a
    typical channel differ by a tenth, up or down. Of a layer that is called several times, its
    calls count as further estimators.

    Mini-batches as in the training have a shift of about :math:`\sqrt{1/S + m/(2-m)}` times their
    spread, with the layer's momentum :math:`m`: a third of it for 16 estimators and PyTorch's 0.1.
    A shift beyond the spread says that their data are others. Where all of a small training set is
    in each mini-batch, there is no spread, and nothing wrong with that.

    Args:
        mc: A fitted wrapper.

    Raises:
        RuntimeError: It is not fitted.
        TypeError: It is no wrapper.
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
    """Share of the probability that MCBN gives to other classes than the network, ``(batch,)``.

    Half the sum of the absolute differences, the distance of total variation: 0 where both predict
    alike, 1 where they share no class. It needs no labels.

    Args:
        logits: Of the estimators, ``(num_estimators, batch, classes)``.
        plain_logits: Of the plain network on the same inputs, ``(batch, classes)``.

    Raises:
        TypeError: If an argument is no tensor.
        ValueError: If the shapes or devices do not fit, or the logits are not floating point.

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
