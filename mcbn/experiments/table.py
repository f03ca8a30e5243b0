"""The paper's table, computed from the scores of the runs, and its published values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mcbn.experiments.protocol import METHODS
from mcbn.results import Table, Tables

# CRPS and PLL of MCBN, then of MC dropout, from the paper's first public version, in percent.
PUBLISHED = {
    "boston": {"mcbn": (8.50, 10.49), "mcdo": (3.06, 5.51)},
    "concrete": {"mcbn": (3.91, -36.36), "mcdo": (0.93, 10.92)},
    "energy": {"mcbn": (5.75, 10.89), "mcdo": (1.37, -14.28)},
    "kin8nm": {"mcbn": (2.85, 1.68), "mcdo": (1.82, -0.26)},
    "power": {"mcbn": (0.24, 0.33), "mcdo": (-0.44, 3.52)},
    "protein": {"mcbn": (2.66, 2.56), "mcdo": (0.99, 6.23)},
    "wine": {"mcbn": (0.26, 0.19), "mcdo": (2.00, 2.91)},
    "yacht": {"mcbn": (-56.39, 45.58), "mcdo": (21.42, -41.54)},
}

Runs = Mapping[str, Sequence[Sequence[float]]]


def normalized(runs: Runs, score: str) -> Tensor:
    """100 · (score - constant) / (optimum - constant) of each run, ``(splits, seeds)``, in percent.

    0 is the twin with constant uncertainty, 100 the best width for each row in hindsight.

    Args:
        runs: Scores by name, of one method on one data set: for each split, a list over the seeds.
        score: ``"crps"`` or ``"pll"``.

    Example:
        >>> runs = {"crps": [[2.0]], "crps_constant": [[3.0]], "crps_optimum": [[1.0]]}
        >>> normalized(runs, "crps")
        tensor([[50.]], dtype=torch.float64)
    """
    own, constant, optimum = (
        torch.tensor(runs[score + end], dtype=torch.float64)
        for end in ("", "_constant", "_optimum")
    )
    return 100 * (own - constant) / (optimum - constant)


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of all values, from the spread of the splits; NaN for one split.

    The seeds of a split share their test rows, so only the means of the splits are independent.

    Args:
        values: ``(splits, seeds)``, or ``(splits,)``.

    Example:
        >>> standard_error(torch.tensor([[0.0, 2.0], [3.0, 3.0]]))
        1.0
    """
    means = values.flatten(1).mean(1) if values.ndim > 1 else values
    return (means.std() / len(means) ** 0.5).item() if len(means) > 1 else math.nan


def sign_flip_test(values: Tensor, num_flips: int = 1 << 14) -> float:
    """The p-value of the mean, if each value and its negative were equally likely.

    Fisher's paired permutation test, *The design of experiments*, 1935, section 21: each value, a
    difference of two scores that is independent of the others, gets either sign; p is the share of
    the means that are at least as far from 0 as the observed one. The test is two-sided and assumes
    nothing about the distribution except its symmetry.

    Args:
        values: The differences, of any shape.
        num_flips: Number of random draws of all signs, if there are more ways to choose them;
            otherwise all ways are used and p is exact. For five values, p is at least 2 / 32.

    Example:
        >>> sign_flip_test(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
        0.0625
        >>> sign_flip_test(torch.ones(25)) < 0.001
        True
    """
    values = values.flatten().double()
    exact = 2 ** len(values) <= num_flips
    if exact:
        coins = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(values))
        coins = coins.reshape(-1, len(values))
    else:
        generator = torch.Generator().manual_seed(0)
        coins = torch.rand(num_flips, len(values), generator=generator, dtype=torch.float64)
    means = torch.where(coins < 0.5, -values, values).sum(1).abs()
    # Do not count a rounding error as a difference.
    count = (means >= values.sum().abs() * (1 - 1e-9)).sum().item()
    # With random signs, the observed ones count as one more draw.
    return count / len(means) if exact else (1 + count) / (1 + num_flips)


def score_table(results: Mapping[str, Mapping[str, Any]]) -> Tables:
    """The normalized scores, one row per data set and method, and a second table with the RMSE.

    A cell is a mean ± its standard error over the splits, with the published value beside it.

    Args:
        results: Results by data set name, as written by :mod:`mcbn.experiments.uci`.
    """
    scores, errors = [], []
    for name, methods in sorted(results.items()):
        errors.append([name])
        for method, title in METHODS.items():
            runs = methods[method]["runs"]
            scores.append([f"{name}, {title}"])
            for index, score in enumerate(("crps", "pll")):
                values = normalized(runs, score)
                published = PUBLISHED.get(name, {}).get(method)
                scores[-1] += [
                    f"{values.mean():.2f} ± {standard_error(values):.2f}",
                    f"{published[index]:.2f}" if published else "-",
                ]
            rmse = torch.tensor(runs["rmse"])
            errors[-1].append(f"{rmse.mean():.3g} ± {standard_error(rmse):.2g}")
    header = ("Data set", "CRPS", "published", "PLL", "published")
    return Tables(
        [
            Table("Normalized scores in percent", header, scores),
            Table("RMSE of the mean", ("Data set", *METHODS.values()), errors),
        ]
    )


def selection_table(results: Mapping[str, Mapping[str, Any]]) -> Tables:
    """What cross-validation selected: M or rate for each split, and the range of λ and of epochs.

    Args:
        results: As for :func:`score_table`.
    """
    rows = []
    for name, methods in sorted(results.items()):
        for method, title in METHODS.items():
            chosen = methods[method]["selected"]
            strengths = " ".join(f"{strength:g}" for strength in chosen["strength"])
            ranges = [_range(chosen[field]) for field in ("decay", "epochs")]
            rows.append([f"{name}, {title}", strengths, *ranges])
    header = ("Data set", "M or rate", "λ", "epochs")
    return Tables([Table("Selected on the splits", header, rows)])


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"
