"""The protocol of the paper's table: splits, cross-validation, noise and scores.

A *unit* is the smallest piece of work whose result is kept: either the cross-validation of one
method at one strength on one split, or the test of the configuration selected there. A unit's
result depends only on its fields and the table, not on the units before it or beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcbn.experiments.batched import MCBN, MCDropout, Method, Training
from mcbn.experiments.data import DataSet
from mcbn.metrics import gaussian_crps, mixture_log_likelihood
from mcbn.predictive import fit_noise_precision, summarise_regression

METHODS = {"mcbn": "MCBN", "mcdo": "MCDO"}
NUM_BINS = 10


@dataclass(frozen=True)
class Settings:
    """Settings shared by all units.

    Attributes:
        num_folds: Number of cross-validation folds.
        max_epochs: Upper limit on the length of training.
        check_every: Epochs between two evaluations on the validation folds.
        patience: Number of evaluations without improvement after which training stops.
        num_cv_samples: Samples per prediction in such an evaluation.
        num_samples: T, in the search for tau and in the test.
        seed: Seed of the initial weights, the batch orders and the samples.
    """

    num_folds: int = 5
    max_epochs: int = 2000
    check_every: int = 20
    patience: int = 10
    num_cv_samples: int = 10
    num_samples: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_epochs < self.check_every:
            raise ValueError(
                f"max_epochs={self.max_epochs} is below check_every={self.check_every}, so no "
                "training would ever be looked at; wanted at least as many."
            )


@dataclass(frozen=True)
class _Unit:
    """A piece of work.

    Attributes:
        data: Name of the table.
        table: Checksum of the table.
        method: ``"mcbn"`` or ``"mcdo"``.
        strength: M for MCBN, the rate for MC dropout.
        split: Number of the split, which is the seed of the shuffle.
        settings: The remaining settings.
    """

    data: str
    table: str
    method: str
    strength: float
    split: int
    settings: Settings

    @property
    def network(self) -> Method:
        """The network to train."""
        return MCBN(int(self.strength)) if self.method == "mcbn" else MCDropout(self.strength)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for this unit and purpose, independent of the decays."""
        parts = self.settings.seed, self.data, self.method, self.strength, self.split, purpose
        digest = hashlib.sha256(repr(parts).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Validation(_Unit):
    """The cross-validation of several weight decays, at one strength, on one split.

    Attributes:
        decays: Weight decays λ, each the configuration of ``num_folds`` networks.
    """

    decays: Sequence[float]

    @property
    def num_networks(self) -> int:
        """Number of networks to train."""
        return len(self.decays) * self.settings.num_folds

    def run(self, data_set: DataSet, features: Tensor, target: Tensor) -> dict[str, Any]:
        """Train all folds of all decays together, each until it no longer improves.

        Returns:
            ``rmse``, the lowest mean RMSE over the folds for each decay; ``epochs``, when it was
            reached; and for the best decay ``tau`` and ``tau_constant``, the precisions that
            minimize the mean CRPS of its saved fold models, with and without their variance.
        """
        settings, network = self.settings, self.network
        folds, configs = settings.num_folds, len(self.decays)
        train_rows, _ = split_rows(len(features), self.split)
        part = standardized(features, target, *fold_rows(train_rows, folds))
        start = self.generator("start")
        initial = network.initial(folds, features.shape[1], data_set.width, start)
        training = Training(network, initial, part.x, part.y, self.decays, start)

        running = torch.arange(configs)
        best, epochs = torch.full((configs,), math.inf), torch.zeros(configs, dtype=torch.long)
        saved = [param.detach().clone() for param in training.params]
        for epoch in range(settings.check_every, settings.max_epochs + 1, settings.check_every):
            for _ in range(settings.check_every):
                training.epoch()
            rmse = self._mean_rmse(training.params, part)
            better = rmse < best[running]
            chosen = running[better]
            best[chosen], epochs[chosen] = rmse[better], epoch
            for kept, param in zip(saved, training.params, strict=True):
                kept[_networks(chosen, folds)] = param.detach()[_networks(better.nonzero(), folds)]
            going = epoch - epochs[running] < settings.patience * settings.check_every
            if not going.any():
                break
            if not going.all():
                training.keep(_networks(going.nonzero(), folds))
                running = running[going]

        networks = _networks(best.argmin(), folds)
        samples = self._samples([param[networks] for param in saved], part, settings.num_samples)
        fold_samples = samples.permute(1, 0, 2).flatten(1)
        observed, bounds = part.other_target.flatten(), data_set.tau_bounds
        mean = fold_samples.double().mean(0)
        return {
            "rmse": best.tolist(),
            "epochs": epochs.tolist(),
            "tau": fit_noise_precision(fold_samples, observed, bounds=bounds),
            "tau_constant": fit_noise_precision(mean, observed, bounds=bounds),
        }

    def _mean_rmse(self, params: Sequence[Tensor], part: _Part) -> Tensor:
        samples = self._samples(params, part, self.settings.num_cv_samples)
        error = samples.mean(1).unflatten(0, (-1, len(part.x))) - part.other_target
        return error.square().mean(2).sqrt().mean(1).float()

    @torch.no_grad()
    def _samples(self, params: Sequence[Tensor], part: _Part, count: int) -> Tensor:
        # The same draws each time, so that two evaluations differ only in the weights.
        generator = self.generator("look")
        samples = self.network.sample(params, part.x, part.other_x, count, generator)
        return part.in_unit(samples)


@dataclass(frozen=True)
class Evaluation(_Unit):
    """The selected network, trained on a split's whole training part with several seeds.

    Attributes:
        decay: Weight decay λ.
        epochs: Number of training epochs.
        tau: Noise precision, used with the variance of the samples.
        tau_constant: Noise precision of the twin with constant uncertainty.
        num_seeds: Number of networks to train.
    """

    decay: float
    epochs: int
    tau: float
    tau_constant: float
    num_seeds: int

    @property
    def num_networks(self) -> int:
        """Number of networks to train."""
        return self.num_seeds

    def run(self, data_set: DataSet, features: Tensor, target: Tensor) -> dict[str, Any]:
        """Train, predict the test part, and score; each score is a list with one value per seed.

        ``std`` and ``error`` hold, for each seed, the mean predicted standard deviation and the
        root mean squared error of the test rows in ten bins of equal size, most certain first.
        """
        runs = [
            {
                **scores(samples, observed, self.tau, self.tau_constant),
                **error_by_std(samples, observed, self.tau),
            }
            for samples, observed in self.predict(data_set, features, target)
        ]
        return {name: [run[name] for run in runs] for name in runs[0]}

    @torch.no_grad()
    def predict(
        self, data_set: DataSet, features: Tensor, target: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The samples ``(T, rows)`` and targets ``(rows,)`` of the test part, for each seed."""
        train_rows, test_rows = split_rows(len(features), self.split)
        rows = train_rows.expand(self.num_seeds, -1), test_rows.expand(self.num_seeds, -1)
        part = standardized(features, target, *rows)
        network, generator = self.network, self.generator("test")
        initial = network.initial(self.num_seeds, features.shape[1], data_set.width, generator)
        training = Training(network, initial, part.x, part.y, [self.decay], generator)
        with torch.enable_grad():
            for _ in range(self.epochs):
                training.epoch()
        count = self.settings.num_samples
        samples = network.sample(training.params, part.x, part.other_x, count, generator)
        return list(zip(part.in_unit(samples), part.other_target, strict=True))


class _Part(NamedTuple):
    """Standardized training rows of each job, and other rows on the same or their own scale."""

    x: Tensor  # (jobs, n, d)
    y: Tensor  # (jobs, n, 1)
    other_x: Tensor  # (jobs, m, d)
    other_target: Tensor  # (jobs, m), float64, in its own unit
    mean: Tensor  # (jobs, 1, 1), of the target
    std: Tensor

    def in_unit(self, samples: Tensor) -> Tensor:
        """Predictions ``(networks, samples, m)`` in the target's unit, float64."""
        by_job = samples.double().unflatten(0, (-1, len(self.x)))
        return (by_job * self.std + self.mean).flatten(0, 1)


def split_rows(size: int, split: int) -> tuple[Tensor, Tensor]:
    """The rows of the training and the test part; the test part gets round(0.2 · size).

    Example:
        >>> [len(rows) for rows in split_rows(308, split=1)]
        [246, 62]
    """
    rows = torch.randperm(size, generator=torch.Generator().manual_seed(split))
    held_out = round(0.2 * size)
    return rows[held_out:], rows[:held_out]


def fold_rows(rows: Tensor, folds: int) -> tuple[Tensor, Tensor]:
    """Training and validation rows of each fold, ``(folds, n)`` and ``(folds, m)``.

    All folds have the same size; the few rows left over are not used for validation.

    Example:
        >>> train, val = fold_rows(torch.arange(7), folds=3)
        >>> train.tolist(), val.tolist()
        ([[2, 3, 4, 5, 6], [0, 1, 4, 5, 6], [0, 1, 2, 3, 6]], [[0, 1], [2, 3], [4, 5]])
    """
    size = len(rows) // folds
    starts = range(0, folds * size, size)
    held_out = torch.stack([rows[start : start + size] for start in starts])
    others = torch.stack([torch.cat([rows[:start], rows[start + size :]]) for start in starts])
    return others, held_out


def standardized(features: Tensor, target: Tensor, train: Tensor, other: Tensor) -> _Part:
    """Standardize by the mean and population deviation of each job's training rows, ``(jobs, …)``.

    A feature that is constant in them is divided by 1.
    """
    x, y = features[train], target[train][..., None]
    (x_std, x_mean), (y_std, y_mean) = (
        torch.std_mean(values, dim=1, correction=0, keepdim=True) for values in (x, y)
    )
    # Rounding may leave a constant column with a tiny standard deviation.
    x_std[x.amin(1, keepdim=True) == x.amax(1, keepdim=True)] = 1
    other_x = (features[other] - x_mean) / x_std
    x, y = (x - x_mean) / x_std, (y - y_mean) / y_std
    return _Part(x.float(), y.float(), other_x.float(), target[other], y_mean, y_std)


def scores(samples: Tensor, target: Tensor, tau: float, tau_constant: float) -> dict[str, float]:
    """The scores behind the paper's table, each a mean over the test rows, in the target's unit.

    ``crps`` and ``pll`` are the method's scores: the CRPS of the normal distribution with the mean
    of the samples and their biased variance plus 1/tau, and the log density of the mixture of
    N(f_t, 1/tau). ``…_constant`` are those of N(mean, 1/tau_constant), and ``…_optimum`` those of
    the best width for each row in hindsight: ``|e|/√(ln 2)`` for CRPS, ``|e|`` for PLL.

    Args:
        samples: ``(T, rows)``.
        target: ``(rows,)``.
        tau: Noise precision.
        tau_constant: Noise precision of the twin with constant uncertainty.

    Example:
        >>> samples = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).double()
        >>> found = scores(samples, torch.tensor([0.0, 2.0]).double(), tau=1.0, tau_constant=0.5)
        >>> round(found["rmse"], 4), round(found["crps_optimum"], 4)
        (1.0, 0.5949)
    """
    mean, _, variance = summarise_regression(samples, 1 / tau)
    error = (target - mean).abs()
    widths = {
        "crps": variance.sqrt(),
        "crps_constant": torch.full_like(mean, tau_constant**-0.5),
        "crps_optimum": error / math.sqrt(math.log(2)),
    }
    values = {name: gaussian_crps(mean, width, target) for name, width in widths.items()}
    values["pll"] = mixture_log_likelihood(samples, tau, target)
    values["pll_constant"] = mixture_log_likelihood(mean[None], tau_constant, target)
    values["pll_optimum"] = -0.5 - 0.5 * math.log(2 * math.pi) - error.log()
    return {
        "rmse": error.square().mean().sqrt().item(),
        **{name: value.mean().item() for name, value in values.items()},
    }


def error_by_std(samples: Tensor, target: Tensor, tau: float) -> dict[str, list[float]]:
    """The mean predicted deviation and the RMS error in ten bins of rows sorted by deviation.

    Args:
        samples: ``(T, rows)``.
        target: ``(rows,)``.
        tau: Noise precision.
    """
    mean, _, variance = summarise_regression(samples, 1 / tau)
    bins = variance.argsort().tensor_split(NUM_BINS)
    square = (target - mean).square()
    return {
        "std": [variance[rows].sqrt().mean().item() for rows in bins],
        "error": [square[rows].mean().sqrt().item() for rows in bins],
    }


def selected(records: Mapping[Validation, Mapping[str, Any]], num_seeds: int) -> Evaluation:
    """The test of the configuration with the lowest mean RMSE over the folds.

    Args:
        records: Results of the cross-validations of one method on one split.
        num_seeds: Number of networks to train for the test.
    """
    unit, record = min(records.items(), key=lambda item: min(item[1]["rmse"]))
    best = record["rmse"].index(min(record["rmse"]))
    return Evaluation(
        unit.data,
        unit.table,
        unit.method,
        unit.strength,
        unit.split,
        unit.settings,
        decay=unit.decays[best],
        epochs=record["epochs"][best],
        tau=record["tau"],
        tau_constant=record["tau_constant"],
        num_seeds=num_seeds,
    )


def _networks(configs: Tensor, jobs: int) -> Tensor:
    """The indices of all networks of these configurations."""
    return (configs.reshape(-1, 1) * jobs + torch.arange(jobs)).flatten()
