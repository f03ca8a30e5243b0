"""From the outputs of several estimators to one prediction and its uncertainty.

Pure functions of tensors; the estimator axis comes first. They look at shapes, never at values, so
they can be compiled and differentiated and never wait for the device: NaN in, NaN out. Only the two
fits look at values: `fit_temperature` whether there is a class for every label, and
`fit_noise_precision` whether all are finite. What is no dense tensor is a TypeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mcbn.checks import (
    check_classes,
    check_has_values,
    check_labels,
    check_number,
    check_regression,
    check_tensors,
)


class ClassificationSummary(NamedTuple):
    """What several estimators say together about each image.

    Attributes:
        probs: Mean of the estimators' probabilities, ``(batch, classes)``.
        label: Class with the highest mean probability, ``(batch,)``.
        confidence: That probability, ``(batch,)``.
        entropy: Entropy of the mean probabilities, the total uncertainty, in nats, ``(batch,)``.
        mutual_information: The part of it that comes from the estimators disagreeing, ``(batch,)``.
    """

    probs: Tensor
    label: Tensor
    confidence: Tensor
    entropy: Tensor
    mutual_information: Tensor


class RegressionSummary(NamedTuple):
    """What several estimators say together about each target; every field is ``(batch, …)``.

    Attributes:
        mean: Mean of the predictions.
        epistemic_variance: Biased variance of the predictions over the estimators.
        total_variance: The same plus the variance of the noise.
    """

    mean: Tensor
    epistemic_variance: Tensor
    total_variance: Tensor


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last axis, ``(…, classes)``; half precision gives float32.

    Raises:
        ValueError: If the logits are not floating point or have no class.

    Example:
        >>> probabilities(torch.zeros(2, 4))[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    _check(logits, "logits", "(..., classes)", lambda ndim: ndim >= 1)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def mean_probs(logits: Tensor) -> Tensor:
    """The predictive distribution ``(batch, classes)``: the mean of the estimators' softmaxes.

    It is the mean of the probabilities, not the softmax of the mean logits.

    Args:
        logits: ``(num_estimators, batch, classes)``, or ``(batch, classes)`` of a plain network.

    Raises:
        ValueError: If the shape is another one or the logits are not floating point.

    Example:
        >>> mean_probs(torch.tensor([[[0.0, 20.0]], [[0.0, 0.0]]]))
        tensor([[0.2500, 0.7500]])
    """
    return probabilities(_with_estimators(logits)).mean(0)


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats of each distribution, ``(…, classes)`` to ``(…,)``; 0·log 0 counts as 0.

    Raises:
        ValueError: If the probabilities are not floating point or have no class.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    _check(probs, "probabilities", "(..., classes)", lambda ndim: ndim >= 1)
    return torch.special.entr(probs).sum(-1)


def mutual_information(probs: Tensor) -> Tensor:
    """Information in nats between the class and the choice of the estimator, ``(batch,)``.

    The entropy of the mean minus the mean of the entropies: 0 where all estimators agree, at most
    ``log(num_estimators)`` (Houlsby et al., *Bayesian active learning*, 2011, Eq. 2). Rounding may
    take the difference below 0; it is raised to 0.

    Args:
        probs: Probabilities, not logits, ``(num_estimators, batch, classes)``.

    Raises:
        ValueError: If the shape is another one or the probabilities are not floating point.

    Example:
        >>> agree = torch.tensor([[[0.9, 0.1]], [[0.9, 0.1]]])
        >>> disagree = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> mutual_information(torch.cat([agree, disagree], dim=1))
        tensor([0.0000, 0.6931])
    """
    _check(probs, "probabilities", "(num_estimators, batch, classes)", lambda ndim: ndim == 3)
    return (entropy(probs.mean(0)) - entropy(probs).mean(0)).clamp(min=0)


def disagreement(probs: Tensor) -> Tensor:
    """Share of the pairs of estimators that predict different classes, ``(batch,)``.

    A single estimator has no pair, and 0 disagreement.

    Args:
        probs: Probabilities or logits, ``(num_estimators, batch, classes)``.

    Raises:
        ValueError: If the shape is another one or the probabilities are not floating point.

    Example:
        >>> disagreement(torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]], [[0.2, 0.8]]]))
        tensor([0.6667])
    """
    _check(probs, "probabilities", "(num_estimators, batch, classes)", lambda ndim: ndim == 3)
    size, votes = len(probs), probs.argmax(-1).T
    # Counting the votes of each class keeps the memory at (batch, classes), free of size².
    counts = torch.zeros_like(probs[0], dtype=torch.long)
    counts.scatter_add_(1, votes, torch.ones_like(votes))
    differing = size**2 - counts.square().sum(-1)
    # Integers would be divided in PyTorch's default type, which Lightning may set to a narrow one.
    return differing.to(torch.float32) / max(size * (size - 1), 1)


def summarise_classification(logits: Tensor) -> ClassificationSummary:
    """Mean probabilities, label, confidence and the two uncertainties of each image.

    Args:
        logits: ``(num_estimators, batch, classes)``, or ``(batch, classes)`` of a plain network,
            whose mutual information is 0.

    Raises:
        ValueError: If the shape is another one or the logits are not floating point.

    Example:
        >>> summary = summarise_classification(torch.tensor([[[0.0, 20.0]], [[0.0, 0.0]]]))
        >>> summary.label, summary.confidence
        (tensor([1]), tensor([0.7500]))
    """
    probs = probabilities(_with_estimators(logits))
    mean = probs.mean(0)
    confidence, label = mean.max(-1)
    return ClassificationSummary(mean, label, confidence, entropy(mean), mutual_information(probs))


def summarise_regression(
    predictions: Tensor, noise_variance: float | Tensor = 0.0
) -> RegressionSummary:
    """Mean and variance of the predictive distribution of each target.

    The variance over the estimators is the biased one and the noise adds to it, as in Teye et al.,
    *Bayesian Uncertainty Estimation for Batch Normalized Deep Networks*, 2018, with
    ``noise_variance = 1 / tau``.

    Args:
        predictions: ``(num_estimators, batch, …)``.
        noise_variance: Variance of the observation noise, in the squared unit of the target; a
            tensor must broadcast to ``(batch, …)``.

    Raises:
        TypeError: If the predictions are no tensor, or the noise variance is none and no number.
        ValueError: If the shape is another one, the predictions are not floating point, the noise
            variance is a number that is negative or not finite, or a tensor of another shape.

    Example:
        >>> summarise_regression(torch.tensor([[1.0], [3.0]]), noise_variance=0.5)[1:]
        (tensor([1.]), tensor([1.5000]))
    """
    _check(predictions, "predictions", "(num_estimators, batch, ...)", lambda ndim: ndim >= 2)
    if not isinstance(noise_variance, Tensor):
        wanted = "a number from 0 up, finite, or a tensor"
        check_number("noise_variance", noise_variance, wanted, lambda v: 0 <= v < math.inf)
    elif not _fits_into(noise_variance.shape, predictions.shape[1:]):
        raise ValueError(
            f"Given noise_variance of shape {tuple(noise_variance.shape)}, wanted one that "
            f"broadcasts to that of a prediction, {tuple(predictions.shape[1:])}."
        )
    variance, mean = torch.var_mean(predictions, dim=0, correction=0)
    return RegressionSummary(mean, variance, variance + noise_variance)


def fit_temperature(logits: Tensor, target: Tensor) -> Tensor:
    """The temperature by which to divide logits so that the labels become most likely, a scalar.

    Temperature scaling, Guo et al., *On calibration of modern neural networks*, 2017, section 4.2:
    the one number, fitted on validation images, that minimizes the negative log-likelihood. Above 1
    it makes predictions less sure; the label stays. Several estimators share it, and their
    probabilities are averaged after the division, as in ``mean_probs(logits / temperature)``.

    Found by halving steps, so without gradient, between 0.01 and 100. Where no label is ever wrong
    there is no minimum, and the value comes out at the lower end.

    Args:
        logits: ``(num_estimators, batch, classes)``, or ``(batch, classes)`` of a plain network.
        target: Labels ``(batch,)``.

    Raises:
        TypeError: If an argument is no tensor.
        ValueError: If the shapes or devices are others, the logits are not floating point, or the
            labels are not integers from 0 up with a class for each.

    Example:
        >>> logits = torch.tensor([[9.0, 1.0]] * 4).log()  # 90 % sure of class 0
        >>> temperature = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))  # 75 % are right
        >>> probabilities(logits / temperature)[0]
        tensor([0.7500, 0.2500])
    """
    check_tensors(logits=logits, target=target)
    check_has_values(logits=logits)
    logits = _with_estimators(logits.detach())
    check_labels(target, logits.shape[1])
    target = target.long()
    lowest, highest = torch.stack(target.aminmax()).tolist()
    check_classes(lowest, highest, logits.shape[2])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = target.expand(logits.shape[:2])[..., None]
    of_label = logits.gather(-1, index)[..., 0]
    log_temperature = slope = logits.new_zeros(())
    for halving in range(1, 25):
        scaled = logits / log_temperature.exp()
        log_probs = scaled.log_softmax(-1)
        # The derivative of the negative log-likelihood by 1/T. For one estimator it rises with 1/T,
        # so its sign tells on which side of the minimum we are.
        share = log_probs.gather(-1, index)[..., 0].softmax(0)
        slope = (share * ((log_probs.exp() * logits).sum(-1) - of_label)).sum()
        step = math.log(100) / 2**halving
        log_temperature = log_temperature + torch.where(slope > 0, step, -step)
    return torch.where(slope.isnan(), slope, log_temperature.exp())


def fit_noise_precision(
    predictions: Tensor, target: Tensor, *, bounds: tuple[float, float] | None = None
) -> float:
    """The precision tau of the noise that makes the mean CRPS smallest, 1 / (unit of target)².

    With predictions and targets of validation data, this is the protocol of Teye et al., *Bayesian
    Uncertainty Estimation for Batch Normalized Deep Networks*, 2018, section 4: the predictive
    distribution is normal, with the mean of the estimators and their biased variance plus 1 / tau.

    The search goes over log tau, on a grid that is laid ever finer around the best value. Where the
    estimators alone spread too wide, more precision is always better and the upper bound comes out.

    Args:
        predictions: ``(num_estimators, batch, …)``, or ``(batch, …)`` of a plain network.
        target: ``(batch, …)``.
        bounds: The lowest and the highest tau. By default a hundredth of 1 / (mean squared error),
            and ten thousand times that.

    Raises:
        TypeError: An argument is no dense tensor.
        ValueError: The shapes do not fit, values are not floating point or not finite, the bounds
            are not two rising numbers above 0, or all errors are 0, so that any precision is too
            low.

    Example:
        >>> tau = fit_noise_precision(torch.zeros(4), torch.tensor([-1.0, 1.0, -1.0, 1.0]))
        >>> round(tau, 3)  # as Teye et al. say, sigma = |error| / √(ln 2) for errors of one size
        0.693
    """
    check_tensors(predictions=predictions, target=target)
    if predictions.ndim == target.ndim:  # of a plain network
        predictions = predictions[None]
    check_regression(target, predictions=predictions)
    predictions, target = predictions.detach().double(), target.detach().double()
    mean, variance, _ = summarise_regression(predictions)
    if not variance.isfinite().all():
        raise ValueError(
            f"Given predictions up to {predictions.abs().amax():.3g}, too large for a variance; "
            "give them, and the target, in another unit."
        )
    if bounds is None:
        squared_error = (mean - target).square().mean().item()
        if squared_error == 0:
            raise ValueError("All errors are 0; pass bounds=(lowest, highest) to get the highest.")
        bounds = 1e-2 / squared_error, 1e4 / squared_error
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise ValueError(f"Given bounds={bounds}, wanted two rising finite numbers above 0.")
    start, end = math.log(low), math.log(high)
    tau = low
    for _ in range(6):  # each time the grid is 16 times as fine
        grid = torch.linspace(start, end, 33, dtype=torch.float64)
        stds = ((variance + 1 / tau).sqrt() for tau in grid.exp().tolist())
        scores = torch.stack([_gaussian_crps(mean, std, target).mean() for std in stds])
        best = int(scores.argmin())
        tau = grid[best].exp().item()
        start, end = grid[max(best - 1, 0)].item(), grid[min(best + 1, 32)].item()
    return tau


def _with_estimators(logits: Tensor) -> Tensor:
    """Give the ``(batch, classes)`` of a plain network an estimator axis of length 1."""
    axes = "(batch, classes) or (num_estimators, batch, classes)"
    _check(logits, "logits", axes, lambda ndim: ndim in (2, 3))
    return logits if logits.ndim == 3 else logits[None]


def _gaussian_crps(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """As `mcbn.metrics.gaussian_crps`, which checks its arguments."""
    error = target - mean
    z = error / std.clamp(min=torch.finfo(std.dtype).tiny)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return error * torch.erf(z / math.sqrt(2)) + std * (2 * density - 1 / math.sqrt(math.pi))


def _fits_into(shape: torch.Size, wanted: torch.Size) -> bool:
    """Whether a tensor of this shape broadcasts to the other without making it larger."""
    last = wanted[len(wanted) - len(shape) :]
    return len(shape) <= len(wanted) and all(a in (1, b) for a, b in zip(shape, last, strict=True))


def _check(values: Tensor, name: str, axes: str, fits: Callable[[int], bool]) -> None:
    check_tensors(**{name: values})
    if not (fits(values.ndim) and values.is_floating_point() and values.numel()):
        raise ValueError(
            f"Given {name} of type {values.dtype} and shape {tuple(values.shape)}, "
            f"wanted floating point {name} of shape {axes}, no axis empty."
        )
