"""The metrics against loops written from the defining papers, and against other libraries."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import in_two_processes
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError

from mcbn import metrics, predictive

Inputs = tuple[Tensor, ...]

CLASSIFICATION: dict[str, Callable[[], Metric]] = {
    "brier": metrics.BrierScore,
    "entropy": metrics.Entropy,
    "nll": metrics.NLL,
    "ece": metrics.CalibrationError,
    "mce": lambda: metrics.CalibrationError(norm="max"),
    "aece": metrics.AdaptiveCalibrationError,
    "aurc": metrics.AURC,
    "augrc": metrics.AUGRC,
    "coverage": lambda: metrics.CoverageAtRisk(0.2),
    "risk": lambda: metrics.RiskAtCoverage(0.7),
}
ESTIMATORS = {"mi": metrics.MutualInformation, "disagreement": metrics.Disagreement}
REGRESSION = {"crps": metrics.GaussianCRPS, "interval": metrics.IntervalCoverage}
ALL = CLASSIFICATION | ESTIMATORS | REGRESSION | {"fpr95": metrics.FPR95}
ALL["pll"] = metrics.MixtureLogLikelihood


def make_predictions(
    size: int, classes: int, style: str, seed: int, dtype: torch.dtype = torch.float32
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(size, classes, generator=generator, dtype=dtype)
    target = torch.randint(classes, (size,), generator=generator)
    if style == "ties":  # few different values, each many times
        noise = (4 * noise).round() + 1
        probs = noise / noise.sum(-1, keepdim=True)
    elif style == "sure":
        probs = torch.eye(classes, dtype=dtype)[noise.argmax(-1)]
    elif style == "uniform":
        probs = torch.full_like(noise, 1 / classes)
    else:
        probs = (6 * noise).softmax(-1)
    return probs, target


predictions = st.builds(
    make_predictions,
    size=st.integers(1, 40),
    classes=st.integers(2, 5),
    style=st.sampled_from(["smooth", "ties", "sure", "uniform"]),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)


def make_inputs(name: str, size: int, seed: int) -> list[Inputs]:
    """One tuple of update's arguments an example, with ties, so that they can be dealt out."""
    generator = torch.Generator().manual_seed(seed)
    if name in CLASSIFICATION:
        # 3/5 lies on the edge 9/15 of a bin, in float32 and float64 on different sides of it.
        style = "smooth" if name in ("ece", "mce") else "ties"
        probs, target = make_predictions(size, 3, style, seed)
        return [(probs[i : i + 1], target[i : i + 1]) for i in range(size)]
    probs = (4 * torch.randn(4, size, 3, generator=generator)).softmax(-1)
    mean, std, target = torch.rand(3, size, generator=generator)
    flags = torch.arange(size) % 3 == 0
    score = (8 * mean).round()
    by_name = {
        "pll": lambda i: (probs[:, i, 0], 2.0, target[i]),
        "fpr95": lambda i: (score[i], flags[i]),
        "crps": lambda i: (mean[i], std[i], target[i]),
        "interval": lambda i: (mean[i] / 9, std[i] / 9, target[i]),
    }
    take = by_name.get(name, lambda i: (probs[:, i],))
    return [take(slice(i, i + 1)) for i in range(size)]


def update_all(metric: Metric, examples: list[Inputs], batch_size: int = 1) -> Metric:
    for start in range(0, len(examples), batch_size):
        batch = zip(*examples[start : start + batch_size], strict=True)
        metric.update(*(join(column) for column in batch))
    return metric


def join(column: tuple) -> Tensor | float:
    if not isinstance(column[0], Tensor):
        return column[0]
    # The estimator axis, where there is one, is the only axis of length 4.
    return torch.cat(column, dim=int(column[0].shape[0] == 4))


def value(metric: Metric, *inputs: Tensor) -> float:
    metric.update(*inputs)
    return metric.compute().item()


# ---- slow references -----------------------------------------------------------------------------


def top_label(probs: Tensor, target: Tensor) -> tuple[list[float], list[bool]]:
    rows = [max(zip(row, range(0, -len(row), -1), strict=True)) for row in probs.tolist()]
    labels = target.tolist()
    return [row[0] for row in rows], [-row[1] == y for row, y in zip(rows, labels, strict=True)]


def slow_bins(confidence: Tensor, correct: list[bool], num_bins: int) -> list[tuple]:
    p, bins = confidence.numpy(), []
    edges = [p.dtype.type(m / num_bins) for m in range(num_bins)] + [math.inf]
    for low, high in pairwise(edges):
        inside = [i for i in range(len(p)) if low < p[i] <= high]
        accuracy = np.mean([correct[i] for i in inside]) if inside else math.nan
        bins.append((len(inside), accuracy, p[inside].mean() if inside else math.nan))
    return bins


def slow_expected_risks(confidence: list[float], correct: list[bool]) -> list[Fraction]:
    """Average of the risk at k = 1…n over every order that sorts the confidences."""
    n, orders = len(confidence), []
    for order in permutations(range(n)):
        ranked = [confidence[i] for i in order]
        if ranked == sorted(ranked, reverse=True):
            wrong = [not correct[i] for i in order]
            orders.append([Fraction(sum(wrong[:k]), k) for k in range(1, n + 1)])
    return [sum(column) / len(orders) for column in zip(*orders, strict=True)]


def slow_grouped_risks(confidence: list[float], correct: list[bool]) -> list[Fraction]:
    """The same for many examples: each counts with the error rate of those tied with it."""
    rates = {
        p: Fraction(sum(not c for q, c in zip(confidence, correct, strict=True) if q == p))
        / confidence.count(p)
        for p in set(confidence)
    }
    wrong = [rates[p] for p in sorted(confidence, reverse=True)]
    return [sum(wrong[:k], Fraction()) / k for k in range(1, len(wrong) + 1)]


# ---- means over the examples ---------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(predictions)
def test_means_agree_with_numpy_and_scikit_learn(inputs: Inputs) -> None:
    probs, target = inputs
    p, y = probs.numpy().astype(float), target.numpy()
    classes = list(range(p.shape[1]))
    brier = np.mean([sum((p[i, c] - (c == y[i])) ** 2 for c in classes) for i in range(len(y))])
    assert value(metrics.BrierScore(), probs, target) == pytest.approx(brier, rel=1e-5, abs=1e-7)
    entropy = np.mean([stats.entropy(row) for row in p])
    assert value(metrics.Entropy(), probs) == pytest.approx(entropy, rel=1e-5, abs=1e-6)
    likelihood = p[np.arange(len(y)), y]
    if likelihood.min() > 0:
        nll = log_loss(y, p / p.sum(1, keepdims=True), labels=classes)
        assert value(metrics.NLL(), probs, target) == pytest.approx(nll, rel=1e-5, abs=1e-6)


def test_the_brier_score_is_scikit_learns_on_one_hot_labels() -> None:
    from sklearn.metrics import brier_score_loss

    probs, target = make_predictions(50, 4, "smooth", seed=0)
    one_hot = np.eye(4)[target.numpy()]
    by_class = sum(brier_score_loss(one_hot[:, c], probs[:, c].numpy()) for c in range(4))
    assert value(metrics.BrierScore(), probs, target) == pytest.approx(by_class, rel=1e-5)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 126), (torch.float64, 1022)])
def test_the_nll_of_an_impossible_label_is_finite(dtype: torch.dtype, bits: int) -> None:
    probs = torch.tensor([[1.0, 0.0]], dtype=dtype)
    assert value(metrics.NLL(), probs, torch.tensor([1])) == pytest.approx(bits * math.log(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))
def test_estimator_metrics_are_means_of_the_predictive_functions(
    estimators: int, size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = (5 * torch.randn(estimators, size, 3, generator=generator)).softmax(-1)
    p = probs.numpy().astype(float)
    information = stats.entropy(p.mean(0), axis=-1) - stats.entropy(p, axis=-1).mean(0)
    assert value(metrics.MutualInformation(), probs) == pytest.approx(information.mean(), abs=1e-5)
    votes = p.argmax(-1)
    pairs = [votes[i] != votes[j] for i in range(estimators) for j in range(i)]
    expected = np.mean(pairs) if pairs else 0.0
    assert value(metrics.Disagreement(), probs) == pytest.approx(expected, abs=1e-6)


# ---- calibration ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(predictions, st.integers(1, 20))
def test_calibration_errors_agree_with_a_loop_over_the_bins(inputs: Inputs, bins: int) -> None:
    confidence, correct = inputs[0].amax(-1), top_label(*inputs)[1]
    expected = slow_bins(confidence, correct, bins)
    gaps = [(n, abs(accuracy - mean)) for n, accuracy, mean in expected if n]
    ece = sum(n * gap for n, gap in gaps) / len(correct)
    mce = max(gap for _, gap in gaps)
    assert value(metrics.CalibrationError(bins), *inputs) == pytest.approx(ece, abs=2e-6)
    assert value(metrics.CalibrationError(bins, "max"), *inputs) == pytest.approx(mce, abs=2e-6)
    drawn = metrics.reliability_bins(confidence, torch.tensor(correct), bins)
    np.testing.assert_allclose(torch.stack(drawn, dim=1), expected, atol=2e-6)


@pytest.mark.parametrize("norm", ["l1", "max"])
@pytest.mark.parametrize("seed", range(5))
def test_calibration_errors_agree_with_torchmetrics(norm, seed: int) -> None:
    probs, target = make_predictions(300, 4, "smooth", seed)
    theirs = MulticlassCalibrationError(4, n_bins=15, norm=norm)
    ours = value(metrics.CalibrationError(norm=norm), probs, target)
    assert ours == pytest.approx(value(theirs, probs, target), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(predictions, st.integers(1, 20))
def test_the_adaptive_error_agrees_with_a_loop_over_equal_masses(inputs: Inputs, bins: int) -> None:
    confidence, correct = top_label(*inputs)
    rank = sorted(range(len(confidence)), key=confidence.__getitem__)
    pairs = list(zip(confidence, correct, strict=True))
    total = 0.0
    for part in np.array_split(np.array(rank), bins):
        gap = 0.0
        for i in part:
            tied = [right for p, right in pairs if p == confidence[i]]
            gap += sum(tied) / len(tied) - confidence[i]
        total += abs(gap)
    ours = value(metrics.AdaptiveCalibrationError(bins), *inputs)
    assert ours == pytest.approx(total / len(rank), abs=2e-6)


# ---- selective classification --------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=6))
def test_the_curve_is_the_mean_over_all_orders_of_ties(examples: list[tuple[float, bool]]) -> None:
    confidence, correct = map(list, zip(*examples, strict=True))
    coverage, risk = metrics.risk_coverage_curve(torch.tensor(confidence), torch.tensor(correct))
    n = len(examples)
    assert coverage.tolist() == [k / n for k in range(1, n + 1)]
    expected = slow_expected_risks(confidence, correct)
    assert risk.tolist() == [float(r) for r in expected]  # equal to the last bit
    assert expected == slow_grouped_risks(confidence, correct)


@settings(max_examples=60, deadline=None)
@given(predictions, st.integers(0, 20), st.integers(1, 100))
def test_selective_metrics_agree_with_exact_fractions(
    inputs: Inputs, risk: int, coverage: int
) -> None:
    probs, target = inputs[0].float(), inputs[1]
    risks = slow_grouped_risks(*top_label(probs, target))
    n = len(risks)
    assert value(metrics.AURC(), probs, target) == pytest.approx(float(sum(risks) / n), abs=1e-6)
    allowed = [k for k in range(1, n + 1) if risks[k - 1] <= Fraction(risk, 20)]
    ours = value(metrics.CoverageAtRisk(risk / 20), probs, target)
    assert ours == pytest.approx(max(allowed, default=0) / n, abs=1e-6)
    needed = min(k for k in range(1, n + 1) if Fraction(k, n) >= Fraction(coverage, 100))
    ours = value(metrics.RiskAtCoverage(coverage / 100), probs, target)
    assert ours == pytest.approx(float(risks[needed - 1]), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(predictions)
def test_augrc_is_the_closed_form_of_its_paper(inputs: Inputs) -> None:
    probs, target = inputs[0].float(), inputs[1]
    confidence, correct = top_label(probs, target)
    accuracy = np.mean(correct)
    auroc = roc_auc_score(correct, confidence) if 0 < accuracy < 1 else 1.0
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert value(metrics.AUGRC(), probs, target) == pytest.approx(expected, abs=1e-6)


def test_a_risk_exactly_at_the_limit_is_allowed() -> None:
    confidence = torch.linspace(1, 0.6, 20)
    probs = torch.stack([confidence, 1 - confidence], dim=1)
    target = torch.zeros(20, dtype=torch.long)
    target[-1] = 1
    assert value(metrics.CoverageAtRisk(0.05), probs, target) == 1.0
    assert value(metrics.CoverageAtRisk(0.049), probs, target) == pytest.approx(0.95)
    assert value(metrics.CoverageAtRisk(0.0), probs[-1:], target[-1:]) == 0.0


def test_seven_percent_of_a_hundred_is_seven() -> None:
    confidence = torch.linspace(0.99, 0.6, 100)
    probs = torch.stack([confidence, 1 - confidence], dim=1)
    target = (torch.arange(100) == 7).long()  # the eighth is the first error
    assert value(metrics.RiskAtCoverage(0.07), probs, target) == 0.0
    assert value(metrics.RiskAtCoverage(0.08), probs, target) == pytest.approx(1 / 8)


def test_the_curve_takes_any_score() -> None:
    correct = torch.tensor([True, False, True])
    _, risk = metrics.risk_coverage_curve(-torch.tensor([0.1, 7.0, 0.3]), correct)
    assert risk.tolist() == [0.0, 0.0, 1 / 3]


# ---- out of distribution -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.integers(0, 2**31))
def test_fpr95_agrees_with_scikit_learns_roc_curve(
    inside: int, outside: int, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    is_ood = torch.arange(inside + outside) >= inside
    scores = torch.randint(levels, is_ood.shape, generator=generator) + 0.3 * levels * is_ood
    rates, recalls, _ = roc_curve(is_ood, scores, drop_intermediate=False)
    expected = min(f for f, r in zip(rates, recalls, strict=True) if r >= 0.95 - 1e-12)
    assert value(metrics.FPR95(), scores, is_ood) == pytest.approx(expected, abs=1e-6)


# ---- regression ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.sampled_from([1e-3, 1.0, 1e3]), st.integers(0, 2**31))
def test_regression_metrics_agree_with_scoringrules_and_scipy(
    size: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, target = scale * torch.randn(2, size, generator=generator, dtype=torch.float64)
    std = scale * torch.rand(size, generator=generator, dtype=torch.float64) + 1e-3 * scale
    m, s, y = mean.numpy(), std.numpy(), target.numpy()
    crps = metrics.gaussian_crps(mean, std, target)
    np.testing.assert_allclose(crps, scoringrules.crps_normal(y, m, s), rtol=1e-9)
    low, high = stats.norm.interval(0.8, m, s)
    expected = np.mean((low <= y) & (y <= high))
    ours = value(metrics.IntervalCoverage(0.8), mean, std, target)
    assert ours == pytest.approx(expected, abs=1e-6)
    samples = mean + std * torch.randn(5, size, generator=generator, dtype=torch.float64)
    tau = 0.5 / scale**2
    density = stats.norm.pdf(y, samples.numpy(), tau**-0.5).mean(0)
    ours = metrics.mixture_log_likelihood(samples, tau, target)
    np.testing.assert_allclose(ours, np.log(density), rtol=1e-9)
    pll = value(metrics.MixtureLogLikelihood(), samples, tau, target)
    assert pll == pytest.approx(np.log(density).mean(), rel=1e-5)


def test_crps_is_the_absolute_error_without_spread_and_has_the_papers_optimum() -> None:
    error = torch.tensor([0.0, 2.0, -3.0], dtype=torch.float64)
    zero = torch.zeros_like(error)
    torch.testing.assert_close(metrics.gaussian_crps(zero, zero, error), error.abs())
    std = error.abs() / math.sqrt(math.log(2)) + 1e-300
    best = metrics.gaussian_crps(zero, std, error)
    assert best.tolist() == pytest.approx((0.59490 * error.abs()).tolist(), rel=1e-4)


# ---- accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_merged_states_reset_and_pickle(name: str) -> None:
    examples = make_inputs(name, 24, seed=2)
    once = update_all(ALL[name](), examples).compute()
    left, right = update_all(ALL[name](), examples[:9]), update_all(ALL[name](), examples[9:])
    left.merge_state(pickle.loads(pickle.dumps(right)))
    torch.testing.assert_close(left.compute(), once)
    left.reset()
    torch.testing.assert_close(update_all(left, examples).compute(), once)


@pytest.mark.parametrize("name", CLASSIFICATION)
@settings(max_examples=15, deadline=None)
@given(inputs=predictions)
def test_classification_values_are_bounded(name: str, inputs: Inputs) -> None:
    top = {"brier": 2, "entropy": math.log(5), "nll": 709, "augrc": 0.5}.get(name, 1)
    metric = CLASSIFICATION[name]()
    result = value(metric, *inputs)
    assert -1e-6 <= result <= top + 1e-6
    assert metric.compute().dtype == torch.float32


def test_a_collection_never_takes_two_metrics_for_one() -> None:
    both = {
        "in90": lambda: metrics.IntervalCoverage(0.9),
        "in99": lambda: metrics.IntervalCoverage(0.99),
    }
    sure = torch.eye(3), torch.arange(3)  # Brier, entropy, NLL and all errors are 0 here
    other = make_predictions(30, 3, "smooth", seed=3)
    for factories, batches in [
        (CLASSIFICATION, [sure, other]),
        (ESTIMATORS, [(torch.eye(3)[None],), (other[0].reshape(2, 15, 3),)]),
        (
            both,
            [
                (torch.zeros(4), torch.ones(4), torch.zeros(4)),
                tuple(torch.tensor([[0.0], [1.0], [2.0]])),
            ],
        ),
    ]:
        collection = MetricCollection({name: make() for name, make in factories.items()})
        alone = {name: make() for name, make in factories.items()}
        for batch in batches:
            collection.update(*batch)
            for metric in alone.values():
                metric.update(*batch)
        assert collection.compute() == {name: metric.compute() for name, metric in alone.items()}
        if factories is CLASSIFICATION:
            shared = ["aece", "augrc", "aurc", "coverage", "risk"]
            assert shared in [sorted(group) for group in collection.compute_groups.values()]


def widen(x: Tensor | float) -> Tensor | float:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def with_the_other(rank: int) -> dict[tuple[str, int], Tensor]:
    """Of 24 examples, of which the first process has 7 or all."""
    warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # where one has none
    results = {}
    for name, make in ALL.items():
        examples = make_inputs(name, 24, seed=4)
        for first in (7, 24):
            mine = [tuple(map(widen, row)) for row in examples[:first]]  # in float64 on rank 0
            mine = mine if rank == 0 else examples[first:]
            results[name, first] = update_all(make(), mine).compute()
    return results


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    for results in in_two_processes(with_the_other, tmp_path):
        assert len(results) == 2 * len(ALL)
        for (name, _), result in results.items():
            alone = update_all(ALL[name](), make_inputs(name, 24, seed=4)).compute()
            torch.testing.assert_close(result, alone)


@pytest.mark.parametrize("name", ["brier", "entropy", "nll"])
def test_the_value_of_a_batch_can_be_differentiated(name: str) -> None:
    probs, target = make_predictions(5, 3, "smooth", seed=5)
    metric, leaf = CLASSIFICATION[name](), probs.clone().requires_grad_()
    metric(leaf, target).backward()
    p, hit = probs.double(), torch.nn.functional.one_hot(target, 3)
    expected = {"brier": 2 * (p - hit), "entropy": -1 - p.log(), "nll": -hit / p}[name] / 5
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-5, atol=1e-6)
    assert not metric.compute().requires_grad


def test_a_metric_can_count_in_float64() -> None:
    probs, target = make_predictions(30, 3, "smooth", seed=6, dtype=torch.float64)
    for make in CLASSIFICATION.values():
        metric = make().set_dtype(torch.float64)
        metric.update(probs, target)
        assert metric.compute().dtype == torch.float64
    brier = metrics.BrierScore().set_dtype(torch.float64)
    expected = ((probs - torch.eye(3)[target]) ** 2).sum(-1).mean().item()
    assert value(brier, probs, target) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_probabilities_are_taken(dtype: torch.dtype) -> None:
    probs, target = make_predictions(64, 10, "smooth", seed=7)
    for name in ("brier", "entropy", "nll", "aurc"):
        half = value(CLASSIFICATION[name](), probs.to(dtype), target)
        assert half == pytest.approx(value(CLASSIFICATION[name](), probs, target), abs=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_a_cuda_device_gives_the_same(name: str) -> None:
    examples = make_inputs(name, 24, seed=8)
    alone = update_all(ALL[name](), examples).compute()
    moved = [tuple(x.cuda() if isinstance(x, Tensor) else x for x in row) for row in examples]
    result = update_all(ALL[name]().cuda(), moved, batch_size=5).compute()
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), alone)


# ---- errors --------------------------------------------------------------------------------------


def test_fpr95_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="1 in-distribution and 0 OOD scores, wanted both"):
        value(metrics.FPR95(), torch.ones(1), torch.tensor([False]))


def test_routine_and_metrics_agree_on_what_mean_probs_gives() -> None:
    logits = 9 * torch.randn(8, 40, 10)
    probs = predictive.mean_probs(logits)
    result = value(metrics.NLL(), probs, torch.zeros(40, dtype=torch.long))
    assert result == pytest.approx(-probs[:, 0].log().mean().item(), rel=1e-5)


# Found by changing the code at random (tests/benchmarks/mutants.py)

DIFFERENTIABLE = {"brier", "nll", "entropy", "mi", "crps", "pll"}
NEITHER_HIGH_NOR_LOW = {"entropy", "mi", "disagreement", "interval"}
HIGHER_IS_BETTER = {"pll", "coverage"}


@pytest.mark.parametrize("name", ALL)
def test_metrics_say_of_what_kind_they_are(name: str) -> None:
    metric = ALL[name]()
    assert metric.is_differentiable == (name in DIFFERENTIABLE)
    better = None if name in NEITHER_HIGH_NOR_LOW else name in HIGHER_IS_BETTER
    assert metric.higher_is_better is better
    assert metric.full_state_update is False


@pytest.mark.parametrize(
    ("make", "good", "bad"),
    [
        (metrics.IntervalCoverage, (1e-6, 0.999), (-0.5, 0, 1, 1.5, math.nan)),
        (metrics.CoverageAtRisk, (0, 1), (-1e-6, 1.001, 2, math.nan)),
        (metrics.RiskAtCoverage, (1e-6, 1), (-0.5, 0, 1.001, 2, math.nan)),
        (metrics.CalibrationError, (1, 20), (0, -1)),
        (metrics.AdaptiveCalibrationError, (1, 20), (0, -1)),
    ],
)
def test_an_argument_is_taken_up_to_its_limits(make, good, bad) -> None:
    for value in good:
        assert isinstance(make(value), Metric)
    for value in bad:
        with pytest.raises(ValueError, match=f"{value}"):
            make(value)


def test_the_precision_of_observations_is_positive_and_finite() -> None:
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"tau={tau}"):
            metrics.mixture_log_likelihood(torch.zeros(3, 1), tau, torch.zeros(1))
    value = metrics.mixture_log_likelihood(torch.zeros(3, 1), 0.5, torch.ones(1))
    wanted = stats.norm(0, math.sqrt(2)).logpdf(1)
    assert value.item() == pytest.approx(wanted, rel=1e-6)


def test_what_is_not_said_is_15_bins_95_percent_and_so_on() -> None:
    probs, target = make_predictions(200, 3, "smooth", seed=0, dtype=torch.float64)
    confidence, predicted = probs.max(-1)
    correct = predicted == target
    pairs = [
        (metrics.CalibrationError(), metrics.CalibrationError(15, "l1")),
        (metrics.AdaptiveCalibrationError(), metrics.AdaptiveCalibrationError(15)),
        (metrics.CoverageAtRisk(), metrics.CoverageAtRisk(0.05)),
        (metrics.RiskAtCoverage(), metrics.RiskAtCoverage(0.8)),
    ]
    for default, explicit in pairs:
        for metric in (default, explicit):
            metric.update(probs, target)
        assert default.compute() == explicit.compute()
    assert metrics.IntervalCoverage().level == 0.95
    assert len(metrics.reliability_bins(confidence, correct)[0]) == 15
    errors = {n: metrics.adaptive_calibration_error(confidence, correct, n) for n in (14, 15, 16)}
    assert metrics.adaptive_calibration_error(confidence, correct) == errors[15]
    assert len(set(errors.values())) == 3


def test_confidences_that_are_no_shares_are_refused_where_they_must_be() -> None:
    correct = torch.tensor([True, False])
    for function in (metrics.reliability_bins, metrics.adaptive_calibration_error):
        for confidence in ([0.5, 1.5], [-0.5, 0.5]):
            low, high = (f"{value:.4g}" for value in confidence)
            with pytest.raises(ValueError, match=f"confidence from {low} to {high}"):
                function(torch.tensor(confidence), correct)
        function(torch.tensor([0.0, 1.00005]), correct)  # a sum of float32 may be off by that
        with pytest.raises(ValueError, match=r"confidence from 0 to 1\.001"):
            function(torch.tensor([0.0, 1.001]), correct)
    assert metrics.risk_coverage_curve(torch.tensor([-3.0, 7.0]), correct)[1].tolist() == [1, 0.5]


def test_confidence_and_correct_are_named_apart() -> None:
    with pytest.raises(ValueError, match=r"confidence torch.int64 \(2,\) and correct torch.int32"):
        metrics.risk_coverage_curve(torch.tensor([1, 2]), torch.tensor([1, 0], dtype=torch.int32))


@pytest.mark.parametrize(
    ("dtype", "fine", "wrong"),
    [
        (torch.float64, 0.9e-4, 1.2e-4),
        (torch.float32, 0.9e-4, 1.2e-4),
        (torch.float16, 3e-3, 5e-3),
        (torch.bfloat16, 2.5e-2, 4e-2),
    ],
)
def test_sums_may_be_off_by_rounding_and_no_more(dtype, fine, wrong) -> None:
    target = torch.tensor([0])
    for sign in (-1, 1):
        metrics.brier_score(torch.tensor([[0.5, 0.5 + sign * fine]], dtype=dtype), target)
        with pytest.raises(ValueError, match="sums over the classes"):
            metrics.brier_score(torch.tensor([[0.5, 0.5 + sign * wrong]], dtype=dtype), target)
