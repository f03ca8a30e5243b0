"""Metrics of predictive distributions: torchmetrics accumulators over pure functions.

Each class is right over batches and over distributed processes, and returns a fraction or nats. It
keeps one of three states:

- a sum and a count: the means over the examples;
- two numbers a bin: `CalibrationError`;
- one float32 an example (40 kB for MNIST's 10,000 test images): what needs all confidences in
  order, that is `AURC`, `AUGRC`, `CoverageAtRisk`, `RiskAtCoverage`, `AdaptiveCalibrationError`
  and `FPR95`. In a ``MetricCollection`` the first five share one state.

Confidence is the highest mean probability; the predicted class is the first that has it. Where the
order of the examples matters, tied examples get the value expected over all orders of the tie, so
no result depends on the order in which examples arrive. That, and every other place where
torch-uncertainty 0.13 computes something else, is said in the docstrings.

AUROC and average precision of an OOD score are torchmetrics' ``BinaryAUROC`` and
``BinaryAveragePrecision``.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mcbn import predictive
from mcbn.checks import (
    check_classes,
    check_count,
    check_has_values,
    check_labels,
    check_number,
    check_regression,
    check_tensors,
)

# ---- values of single examples -------------------------------------------------------------------


def brier_score(probs: Tensor, target: Tensor) -> Tensor:
    """Squared distance between each distribution and its one-hot label, ``(batch,)``, in [0, 2].

    The sum over all classes, as in Brier, *Verification of forecasts expressed in terms of
    probability*, 1950.

    Args:
        probs: Mean probabilities ``(batch, classes)``.
        target: Labels ``(batch,)``.

    Raises:
        TypeError: If an argument is no dense tensor.
        ValueError: If the shapes, types or devices are others, a label is out of range, or a row is
            not a distribution.

    Example:
        >>> brier_score(torch.tensor([[0.75, 0.25]]), torch.tensor([1]))
        tensor([1.1250])
    """
    probs = _checked(probs, target)
    hit = torch.nn.functional.one_hot(target.long(), probs.shape[1])
    return (probs - hit).square().sum(-1)


def negative_log_likelihood(probs: Tensor, target: Tensor) -> Tensor:
    """Minus the log of the mean probability given to each label, ``(batch,)``, in nats.

    A probability of 0 is raised to the smallest positive normal number of its type, so the value
    is at most 87.3 in float32 and 708.4 in float64; torch-uncertainty gives infinity there.
    Arguments and errors as in `brier_score`.

    Example:
        >>> negative_log_likelihood(torch.tensor([[0.75, 0.25], [1.0, 0.0]]), torch.tensor([0, 1]))
        tensor([ 0.2877, 87.3365])
    """
    probs = _checked(probs, target)
    hit = probs.gather(1, target.long()[:, None])[:, 0]
    return -hit.clamp(min=torch.finfo(hit.dtype).tiny).log()


def gaussian_crps(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Continuous ranked probability score of N(mean, std²), in the unit of the target.

    Closed form of Gneiting and Raftery, *Strictly proper scoring rules*, 2007, section 4.2, with
    the sign that makes lower better. A std of 0 gives the absolute error. All of one shape.

    Raises:
        TypeError: If an argument is no dense tensor.
        ValueError: If shapes or devices differ, values are not finite, or a std is negative.

    Example:
        >>> gaussian_crps(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]))
        tensor([0.2337, 3.0000])
    """
    check_regression(target, mean=mean, std=std)
    return predictive._gaussian_crps(mean, std, target)


def mixture_log_likelihood(predictions: Tensor, tau: float, target: Tensor) -> Tensor:
    """Log density of each target under the mixture of N(f_t, 1/tau) over the T estimators.

    Equation 8 of Gal and Ghahramani, *Dropout as a Bayesian approximation*, 2016, the PLL of the
    MCBN paper: logsumexp_t(-½ τ (f_t - y)²) - log T - ½ log 2π + ½ log τ.

    Args:
        predictions: ``(num_estimators, batch, …)``.
        tau: Precision of the observations, 1 / (unit of the target)².
        target: ``(batch, …)``.

    Raises:
        TypeError: If an argument is no dense tensor, or tau is no number.
        ValueError: If shapes do not fit, values are not finite, or tau is not positive.

    Example:
        >>> mixture_log_likelihood(torch.zeros(3, 1), tau=1.0, target=torch.zeros(1))
        tensor([-0.9189])
    """
    check_number("tau", tau, "a finite number above 0", lambda tau: 0 < tau < math.inf)
    check_regression(target, predictions=predictions)
    log_kernel = torch.logsumexp(-tau / 2 * (predictions - target).square(), dim=0)
    return log_kernel - math.log(len(predictions)) + 0.5 * math.log(tau / (2 * math.pi))


# ---- curves over all examples --------------------------------------------------------------------


def reliability_bins(
    confidence: Tensor, correct: Tensor, num_bins: int = 15
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of a reliability diagram: bins of equal width, closed on the right.

    Bin m of M is ((m-1)/M, m/M], as in Guo et al., *On calibration of modern neural networks*,
    2017, section 2.

    Args:
        confidence: In [0, 1], ``(examples,)``.
        correct: Whether the prediction was right, bool ``(examples,)``.
        num_bins: How many bins.

    Returns:
        Per bin the number of examples, their accuracy and their mean confidence, each
        ``(num_bins,)``; the latter two are NaN in an empty bin.

    Raises:
        TypeError: If an argument is no dense tensor, or the number is no integer.
        ValueError: If the shapes or types are others, there is no example or no bin, or a
            confidence is NaN or not in [0, 1].

    Example:
        >>> confidence = torch.tensor([0.6, 0.9, 1.0])
        >>> count, accuracy, _ = reliability_bins(confidence, confidence > 0.7, num_bins=2)
        >>> count, accuracy
        (tensor([0, 3]), tensor([   nan, 0.6667]))
    """
    _check_confidence(confidence, correct, is_share=True)
    check_count("num_bins", num_bins)
    index = _bin_index(confidence, num_bins)
    count = _sum_per_bin(torch.ones_like(index), index, num_bins)
    hits = _sum_per_bin(correct.to(confidence), index, num_bins)
    return count, hits / count, _sum_per_bin(confidence, index, num_bins) / count


def risk_coverage_curve(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage and selective risk when only the k most confident examples are answered, k = 1…n.

    Risk is the share of errors among the answered examples (Geifman and El-Yaniv, *Selective
    classification for deep neural networks*, 2017). Inside a group of equal confidences the errors
    rise linearly: that is their number expected over all orders of the tie.

    Args:
        confidence: Any score that is high where the prediction is trusted, ``(examples,)``.
        correct: Whether the prediction was right, bool ``(examples,)``.

    Returns:
        Coverage k/n and risk, each ``(examples,)``, in float64 on the CPU.

    Raises:
        TypeError: If an argument is no dense tensor.
        ValueError: If the shapes or types are others, there is no example, or a confidence is NaN.

    Example:
        >>> confidence = torch.tensor([0.9, 0.8, 0.8, 0.7])
        >>> risk_coverage_curve(confidence, torch.tensor([True, False, True, True]))[1]
        tensor([0.0000, 0.2500, 0.3333, 0.2500], dtype=torch.float64)
    """
    _check_confidence(confidence, correct)
    _, tie, size, hits = _ranked(confidence, correct)
    wrong = size - hits
    before, start = wrong.cumsum(0) - wrong, size.cumsum(0) - size
    rank = torch.arange(1, len(tie) + 1, device=tie.device)
    # (errors before the tie + the part of the tie's errors met so far) / rank, with one rounding
    # only, so that a risk of exactly 5 % does compare as 0.05.
    errors_times_size = (before * size)[tie] + wrong[tie] * (rank - start[tie])
    return rank.double() / len(tie), errors_times_size.double() / (size[tie] * rank)


def adaptive_calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> Tensor:
    """Calibration error over bins that hold equally many examples, a scalar in float64 on the CPU.

    The examples are sorted by confidence and cut into bins whose sizes differ by at most one; the
    value is the mean over the examples of their bin's ``|accuracy - confidence|``. Equal-mass bins
    are those of Nguyen and O'Connor, *Posterior calibration and exploratory analysis*, 2015; of the
    variants in Nixon et al., *Measuring calibration in deep learning*, 2019, this is the one with
    top-label confidence and the l1 norm. Examples with equal confidence count with their common
    accuracy, so a tie may lie across two bins. Arguments and errors as in `reliability_bins`.

    Example:
        >>> confidence = torch.tensor([0.6, 0.7, 0.8, 0.9])
        >>> correct = torch.tensor([False, True, True, True])
        >>> adaptive_calibration_error(confidence, correct, num_bins=2)
        tensor(0.1500, dtype=torch.float64)
    """
    _check_confidence(confidence, correct, is_share=True)
    check_count("num_bins", num_bins)
    confidence, tie, size, hits = _ranked(confidence, correct)
    gaps = ((hits / size.double())[tie] - confidence).flip(0).tensor_split(num_bins)
    return torch.stack([gap.sum().abs() for gap in gaps]).sum() / len(confidence)


# ---- accumulators: means over the examples -------------------------------------------------------


class _Mean(Metric):
    """Mean of one value an example, kept as a sum and a count."""

    is_differentiable = True
    higher_is_better: bool | None = False
    full_state_update = False

    count: Tensor

    def __init__(self, key: object = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # MetricCollection takes metrics for one and the same when their states have equal names and
        # are equal after the first batch, as Brier score and NLL are when all is right and sure. A
        # name for each kind of value keeps them apart.
        self._sum = f"{type(self).__name__}{key}_sum"
        self.add_state(self._sum, torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        # In the type of the state, which must be that of all other processes.
        total = getattr(self, self._sum)
        setattr(self, self._sum, total + values.sum(dtype=total.dtype))
        self.count = self.count + values.numel()

    def compute(self) -> Tensor:
        """The mean so far, a scalar; ValueError when there is none."""
        _check_not_empty(self, self.count)
        return getattr(self, self._sum) / self.count


class BrierScore(_Mean):
    """Mean `brier_score`, in [0, 2]: the sum over the classes, not divided by their number.

    Example:
        >>> metric = BrierScore()
        >>> metric.update(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.3125)
    """

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Add mean probabilities ``(batch, classes)`` and labels ``(batch,)``."""
        self._add(brier_score(probs, target))


class NLL(_Mean):
    """Mean `negative_log_likelihood` of the mean probabilities, in nats; never NaN or infinite.

    Example:
        >>> metric = NLL()
        >>> metric.update(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.4904)
    """

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Add mean probabilities ``(batch, classes)`` and labels ``(batch,)``."""
        self._add(negative_log_likelihood(probs, target))


class Entropy(_Mean):
    """Mean entropy of the mean probabilities, in nats.

    For several estimators this is the total uncertainty. (torch-uncertainty's takes the mean of
    the estimators' entropies when it is given them all.)

    Example:
        >>> metric = Entropy()
        >>> metric.update(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        >>> metric.compute()
        tensor(0.3466)
    """

    higher_is_better = None

    def update(self, probs: Tensor, target: Tensor | None = None) -> None:
        """Add mean probabilities ``(batch, classes)``; labels may be given and are not used."""
        labels = () if target is None else (target,)
        self._add(predictive.entropy(_checked(probs, *labels)))


class MutualInformation(_Mean):
    """Mean `mcbn.predictive.mutual_information`, in nats.

    Example:
        >>> metric = MutualInformation()
        >>> metric.update(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.6931)
    """

    higher_is_better = None

    def update(self, probs: Tensor) -> None:
        """Add the probabilities of each estimator, ``(num_estimators, batch, classes)``."""
        self._add(predictive.mutual_information(_checked(probs, ndim=3)))


class Disagreement(_Mean):
    """Mean `mcbn.predictive.disagreement`: share of pairs of estimators that differ, in [0, 1].

    Example:
        >>> metric = Disagreement()
        >>> metric.update(torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]], [[0.2, 0.8]]]))
        >>> metric.compute()
        tensor(0.6667)
    """

    is_differentiable = False
    higher_is_better = None

    def update(self, probs: Tensor) -> None:
        """Add the probabilities of each estimator, ``(num_estimators, batch, classes)``."""
        self._add(predictive.disagreement(_checked(probs, ndim=3)))


class GaussianCRPS(_Mean):
    """Mean `gaussian_crps`, in the unit of the target.

    Example:
        >>> metric = GaussianCRPS()
        >>> metric.update(torch.zeros(1), torch.ones(1), torch.zeros(1))
        >>> metric.compute()
        tensor(0.2337)
    """

    def update(self, mean: Tensor, std: Tensor, target: Tensor) -> None:
        """Add means, standard deviations and targets, all of one shape."""
        self._add(gaussian_crps(mean, std, target))


class IntervalCoverage(_Mean):
    """Share of the targets inside the central Gaussian interval of the given level, ends included.

    Well calibrated means equal to ``level``.

    Example:
        >>> metric = IntervalCoverage(level=0.95)
        >>> metric.update(torch.zeros(2), torch.ones(2), torch.tensor([1.9, 2.1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = None

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        check_number("level", level, "a number between 0 and 1, as 0.95", lambda p: 0 < p < 1)
        super().__init__(key=level, **kwargs)
        self.level = level

    def update(self, mean: Tensor, std: Tensor, target: Tensor) -> None:
        """Add means, standard deviations and targets, all of one shape."""
        check_regression(target, mean=mean, std=std)
        half_width = NormalDist().inv_cdf((1 + self.level) / 2) * std
        self._add(((target - mean).abs() <= half_width).to(mean))


class MixtureLogLikelihood(_Mean):
    """Mean `mixture_log_likelihood`, the paper's predictive log likelihood (PLL), in nats.

    Example:
        >>> metric = MixtureLogLikelihood()
        >>> metric.update(torch.zeros(3, 1), tau=1.0, target=torch.zeros(1))
        >>> metric.compute()
        tensor(-0.9189)
    """

    higher_is_better = True

    def update(self, predictions: Tensor, tau: float, target: Tensor) -> None:
        """Add predictions ``(num_estimators, batch)``, their precision, targets ``(batch,)``."""
        self._add(mixture_log_likelihood(predictions, tau, target))


# ---- accumulators: calibration -------------------------------------------------------------------


class CalibrationError(Metric):
    """Expected (ECE) or maximum (MCE) calibration error of the top label, in [0, 1].

    Each bin of `reliability_bins` has a gap ``|accuracy - confidence|``. ``norm="l1"`` is its mean
    over the examples (Naeini et al. 2015; Guo et al. 2017, Eq. 3), ``norm="max"`` its maximum over
    the bins that hold any (Guo et al., Eq. 5). The memory is two numbers a bin. torchmetrics, and
    torch-uncertainty through it, close the bins on the left and so give a confidence of exactly 1
    a bin of its own; away from the bins' edges the values are equal.

    Args:
        num_bins: How many bins of equal width.
        norm: ``"l1"`` or ``"max"``.
        kwargs: For ``torchmetrics.Metric``.

    Raises:
        ValueError: If there is no bin or no such norm.

    Example:
        >>> metric = CalibrationError()
        >>> metric.update(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.2500)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    count: Tensor
    gap: Tensor

    def __init__(
        self, num_bins: int = 15, norm: Literal["l1", "max"] = "l1", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_count("num_bins", num_bins)
        if norm not in ("l1", "max"):
            raise ValueError(f'Given norm={norm!r}, wanted "l1" (ECE) or "max" (MCE).')
        self.num_bins, self.norm = num_bins, norm
        self.add_state("count", torch.zeros(num_bins, dtype=torch.long), dist_reduce_fx="sum")
        # Summing (correct - confidence), not each of them, keeps small differences exact.
        self.add_state("gap", torch.zeros(num_bins), dist_reduce_fx="sum")

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Add mean probabilities ``(batch, classes)`` and labels ``(batch,)``."""
        confidence, correct = _top_label(probs, target)
        index = _bin_index(confidence, self.num_bins)
        self.count = self.count + _sum_per_bin(torch.ones_like(index), index, self.num_bins)
        gap = (correct.to(confidence) - confidence).to(self.gap)
        self.gap = self.gap + _sum_per_bin(gap, index, self.num_bins)

    def compute(self) -> Tensor:
        """The error, a scalar; ValueError before the first update."""
        _check_not_empty(self, self.count.sum())
        if self.norm == "l1":
            return self.gap.abs().sum() / self.count.sum()
        return (self.gap.abs() / self.count.clamp(min=1)).max()


class _Ranked(Metric):
    """Keeps each example's confidence, with a minus sign where the prediction was wrong.

    One tensor holds both because torchmetrics joins the lists of all processes in the type of the
    metric, float32: a process without examples would spoil a list of bools.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    signed_confidence: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("signed_confidence", [], dist_reduce_fx="cat")

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Add mean probabilities ``(batch, classes)`` and labels ``(batch,)``."""
        confidence, correct = _top_label(probs, target)
        # A highest probability is at least 1/classes, so its sign is free.
        signed = torch.where(correct, confidence, -confidence)
        self.signed_confidence.append(signed.detach().to(self.dtype))

    def _examples(self) -> tuple[Tensor, Tensor]:
        signed = _joined(self.signed_confidence)
        _check_not_empty(self, len(signed))
        return signed.abs(), signed > 0

    def _curve(self) -> tuple[Tensor, Tensor]:
        return risk_coverage_curve(*self._examples())

    def _like_state(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype)


class AdaptiveCalibrationError(_Ranked):
    """Calibration error over equal-mass bins: `adaptive_calibration_error`, in [0, 1].

    On confidences without ties it equals torch-uncertainty's (whose default is 10 bins); with ties
    that one depends on the order of the examples, and with fewer examples than bins it is NaN.

    Example:
        >>> metric = AdaptiveCalibrationError()
        >>> metric.update(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.2500)
    """

    def __init__(self, num_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_count("num_bins", num_bins)
        self.num_bins = num_bins

    def compute(self) -> Tensor:
        """The error, a scalar; ValueError before the first update."""
        return self._like_state(adaptive_calibration_error(*self._examples(), self.num_bins))


# ---- accumulators: selective classification ------------------------------------------------------


class AURC(_Ranked):
    """Area under the risk-coverage curve: the mean of the risk at coverage 1/n, 2/n, …, 1.

    Geifman, Uziel and El-Yaniv, *Bias-reduced uncertainty estimation*, 2019, on
    `risk_coverage_curve`. torch-uncertainty applies the trapezoidal rule from coverage 1/n to 1
    and divides by 1 - 1/n, which is (n·AURC - (first + last risk)/2) / (n - 1).

    Example:
        >>> metric = AURC()
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
        >>> metric.update(probs, torch.tensor([0, 0, 0, 1]))
        >>> metric.compute()
        tensor(0.0625)
    """

    def compute(self) -> Tensor:
        """The area, a scalar in [0, 1]; ValueError before the first update."""
        return self._like_state(self._curve()[1].mean())


class AUGRC(_Ranked):
    """Area under the generalised risk-coverage curve: coverage times risk, over coverage 0 to 1.

    The generalised risk at a coverage is the probability that an example is answered and wrong.
    Traub et al., *Overcoming common flaws in the evaluation of selective classification systems*,
    2024; the trapezoidal rule from (0, 0) gives exactly their closed form (A: the accuracy),
    (1 - AUROC)·A·(1 - A) + ½(1 - A)². torch-uncertainty leaves out the first of the n steps and
    divides by 1 - 1/n.

    Example:
        >>> metric = AUGRC()
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
        >>> metric.update(probs, torch.tensor([0, 0, 0, 1]))
        >>> metric.compute()
        tensor(0.0312)
    """

    def compute(self) -> Tensor:
        """The area, a scalar in [0, 1/2]; ValueError before the first update."""
        coverage, risk = self._curve()
        wrong = coverage * risk
        return self._like_state((wrong.sum() - wrong[-1] / 2) / len(wrong))


class CoverageAtRisk(_Ranked):
    """Largest coverage whose selective risk is at most ``risk``; 0 if there is none.

    (torch-uncertainty gives NaN where there is none.)

    Example:
        >>> metric = CoverageAtRisk(risk=0.05)
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
        >>> metric.update(probs, torch.tensor([0, 0, 0, 1]))
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better = True

    def __init__(self, risk: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("risk", risk, "a fraction from 0 to 1, as 0.05", lambda r: 0 <= r <= 1)
        self.risk = risk

    def compute(self) -> Tensor:
        """The coverage, a scalar in [0, 1]; ValueError before the first update."""
        coverage, risk = self._curve()
        return self._like_state(torch.where(risk <= self.risk, coverage, 0.0).max())


class RiskAtCoverage(_Ranked):
    """Selective risk of the smallest share of most confident examples that reaches ``coverage``.

    Example:
        >>> metric = RiskAtCoverage(coverage=1.0)
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
        >>> metric.update(probs, torch.tensor([0, 0, 0, 1]))
        >>> metric.compute()
        tensor(0.2500)
    """

    def __init__(self, coverage: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        wanted = "a fraction above 0, up to 1, as 0.8"
        check_number("coverage", coverage, wanted, lambda c: 0 < c <= 1)
        self.coverage = coverage

    def compute(self) -> Tensor:
        """The risk, a scalar in [0, 1]; ValueError before the first update."""
        risk = self._curve()[1]
        return self._like_state(risk[_ceil(self.coverage * len(risk)) - 1])


class FPR95(Metric):
    """Share of in-distribution examples flagged when at least 95 % of the OOD examples are.

    OOD is the positive class and a high score means OOD; an example is flagged when its score
    reaches the highest threshold that flags 95 % of the OOD examples, so ties are flagged together
    (Hendrycks and Gimpel 2017, Liang et al. 2018 report the same with the classes exchanged).
    Keeps every score.

    Example:
        >>> metric = FPR95()
        >>> scores = torch.tensor([0.1, 0.2, 0.6, 0.5, 0.9])
        >>> metric.update(scores, is_ood=torch.tensor([False, False, False, True, True]))
        >>> metric.compute()
        tensor(0.3333)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    id_scores: list[Tensor]
    ood_scores: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("id_scores", [], dist_reduce_fx="cat")
        self.add_state("ood_scores", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, is_ood: Tensor) -> None:
        """Add scores ``(batch,)``, high for OOD, and bools ``(batch,)``."""
        _check_confidence(scores, is_ood, names=("scores", "is_ood"))
        scores = scores.detach().to(self.dtype)
        self.id_scores.append(scores[~is_ood])
        self.ood_scores.append(scores[is_ood])

    def compute(self) -> Tensor:
        """The rate, a scalar in [0, 1]; ValueError before both kinds of example were added."""
        inside, outside = _joined(self.id_scores), _joined(self.ood_scores)
        if not (len(inside) and len(outside)):
            raise ValueError(
                f"Given {len(inside)} in-distribution and {len(outside)} OOD scores, wanted both; "
                "call update(scores, is_ood) with the missing kind."
            )
        threshold = outside.sort(descending=True).values[_ceil(0.95 * len(outside)) - 1]
        return (inside >= threshold).to(self.dtype).mean()


# ---- helpers -------------------------------------------------------------------------------------


def _top_label(probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    confidence, label = _checked(probs, target).max(-1)
    # The tolerance for sums lets half precision be above 1.
    return confidence.clamp(max=1), label == target


def _bin_index(confidence: Tensor, num_bins: int) -> Tensor:
    # Inner edges as k / M, not as multiples of 1 / M: a confidence of 1/3 is then on the edge 5/15.
    edges = torch.arange(1, num_bins, device=confidence.device).to(confidence) / num_bins
    return torch.bucketize(confidence.detach(), edges)


def _sum_per_bin(values: Tensor, index: Tensor, num_bins: int) -> Tensor:
    return values.new_zeros(num_bins).index_add_(0, index, values.detach())


def _ranked(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort by falling confidence, in float64 on the CPU (MPS has none).

    Returns the confidences, each one's group of equal confidences, and per group how many examples
    and how many right ones it holds.
    """
    confidence, order = confidence.detach().cpu().double().sort(descending=True)
    _, tie, size = confidence.unique_consecutive(return_inverse=True, return_counts=True)
    return confidence, tie, size, _sum_per_bin(correct.cpu()[order].long(), tie, len(size))


def _ceil(count: float) -> int:
    # 0.07 * 100 is 7.000000000000001 and means 7.
    return max(1, math.ceil(count - 1e-6))


def _checked(probs: Tensor, *labels: Tensor, ndim: int = 2) -> Tensor:
    """Refuse what is no distribution or no label; give the probabilities in float32 or wider.

    The values are judged by their extremes, which reach the host in one transfer.
    """
    given = dict(zip(("probs", "target"), (probs, *labels), strict=False))
    check_tensors(**given)
    check_has_values(**given)
    axes = {2: "(batch, classes)", 3: "(num_estimators, batch, classes)"}[ndim]
    if not (probs.is_floating_point() and probs.ndim == ndim and probs.numel()):
        raise ValueError(
            f"Given {probs.dtype} of shape {tuple(probs.shape)}, wanted floating point "
            f"probabilities {axes}, no axis empty; call mcbn.predictive."
            + ("mean_probs(logits)." if ndim == 2 else "probabilities(logits).")
        )
    tolerance = max(1e-4, 4 * torch.finfo(probs.dtype).eps)
    probs = probs.to(torch.promote_types(probs.dtype, torch.float32))
    extremes = [probs.detach().amin(), *probs.detach().sum(-1).aminmax()]
    for target in labels:
        check_labels(target, len(probs))
        extremes += [edge.to(probs) for edge in target.long().aminmax()]
    lowest, low_sum, high_sum, *edges = torch.stack(extremes).tolist()
    # Written so that NaN fails.
    if not (lowest >= 0 and low_sum >= 1 - tolerance and high_sum <= 1 + tolerance):
        raise ValueError(
            f"Given values from {lowest:.4g} up with sums over the classes from {low_sum:.4g} to "
            f"{high_sum:.4g}, wanted probabilities from 0 up that sum to 1; call "
            "mcbn.predictive.mean_probs(logits) on logits, and look for NaN in them."
        )
    if edges:
        check_classes(edges[0], edges[1], probs.shape[-1])
    return probs


def _check_confidence(
    confidence: Tensor,
    correct: Tensor,
    names: tuple[str, str] = ("confidence", "correct"),
    is_share: bool = False,
) -> None:
    given = dict(zip(names, (confidence, correct), strict=True))
    check_tensors(**given)
    check_has_values(**given)
    fits = confidence.is_floating_point() and confidence.ndim == 1 and confidence.numel()
    if not (fits and correct.shape == confidence.shape and correct.dtype == torch.bool):
        raise ValueError(
            f"Given {names[0]} {confidence.dtype} {tuple(confidence.shape)} and {names[1]} "
            f"{correct.dtype} {tuple(correct.shape)}, wanted floating point and bool of one shape "
            "(examples,), not empty."
        )
    lowest, highest = torch.stack(confidence.detach().aminmax()).tolist()
    if math.isnan(lowest):
        raise ValueError(f"Given {names[0]} with NaN, wanted numbers.")
    if is_share and not (lowest >= 0 and highest <= 1 + 1e-4):
        raise ValueError(
            f"Given {names[0]} from {lowest:.4g} to {highest:.4g}, wanted fractions from 0 to 1."
        )


def _check_not_empty(metric: Metric, examples: int | Tensor) -> None:
    if not examples:
        name = type(metric).__name__
        raise ValueError(f"{name} holds no examples yet; call update(...) before compute().")


def _joined(state: Tensor | list[Tensor]) -> Tensor:
    return dim_zero_cat(state) if len(state) else torch.zeros(0)
