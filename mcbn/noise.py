"""The noise of a regression's targets: the part of the uncertainty that no estimator knows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcbn.checks import check_has_values, check_tensors
from mcbn.metrics import gaussian_crps
from mcbn.predictive import summarise_regression


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
    given = {"predictions": predictions, "target": target}
    check_tensors(**given)
    check_has_values(**given)
    for name, values in given.items():
        if not (values.is_floating_point() and values.isfinite().all()):
            raise ValueError(
                f"Given {name} of type {values.dtype}, wanted finite floating point numbers; look "
                "for NaN and infinite values in it."
            )
    predictions, target = predictions.detach().double(), target.detach().double()
    estimators = predictions[None] if predictions.ndim == target.ndim else predictions
    if estimators.shape[1:] != target.shape or not target.numel():
        raise ValueError(
            f"Given predictions of shape {tuple(predictions.shape)} for a target of shape "
            f"{tuple(target.shape)}, wanted (num_estimators, *target.shape) or the target's, and "
            "not empty."
        )
    mean, variance, _ = summarise_regression(estimators)
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
        scores = torch.stack([gaussian_crps(mean, std, target).mean() for std in stds])
        best = int(scores.argmin())
        tau = grid[best].exp().item()
        start, end = grid[max(best - 1, 0)].item(), grid[min(best + 1, 32)].item()
    return tau
