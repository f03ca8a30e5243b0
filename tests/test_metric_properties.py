"""What the metrics owe to their definitions for any input: bounds, relations and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_metrics import (
    ALL,
    CLASSIFICATION,
    ESTIMATORS,
    Inputs,
    make_inputs,
    make_predictions,
    predictions,
    update_all,
    value,
)
from torch import Tensor

from mcbn import metrics
from mcbn.predictive import (
    disagreement,
    entropy,
    fit_temperature,
    mean_probs,
    mutual_information,
    probabilities,
    summarise_regression,
)

seeds = st.integers(0, 2**31)


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    """``(num_estimators, batch, classes)`` in float64, from vague to sharp."""
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(seeds))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def ranked(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Confidences, some of them equal, and whether each prediction was right."""
    size, levels = draw(st.integers(1, 40)), draw(st.sampled_from([1, 3, 10, 10**6]))
    generator = torch.Generator().manual_seed(draw(seeds))
    confidence = torch.randint(1, levels + 1, (size,), generator=generator).double() / levels
    return confidence, torch.rand(size, generator=generator) < draw(st.floats(0, 1))


def two_classes(confidence: Tensor, correct: Tensor) -> Inputs:
    """Predictions of two classes with these top labels."""
    top = 0.5 + confidence / 2.1
    return torch.stack([top, 1 - top], 1), (~correct).long()


# --- Invariances -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), size=st.integers(6, 24), seed=seeds)
def test_any_order_and_any_parts_give_what_all_at_once_gives(
    name: str, data: st.DataObject, size: int, seed: int
) -> None:
    examples = make_inputs(name, size, seed)
    once = update_all(ALL[name](), examples, size).compute()
    order = data.draw(st.permutations(range(size)))
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=4)))
    metric = ALL[name]()
    for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
        update_all(metric, [examples[i] for i in order[start:stop]], stop - start)
    torch.testing.assert_close(metric.compute(), once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLASSIFICATION | ESTIMATORS)
@settings(max_examples=15, deadline=None)
@given(values=logits(), seed=seeds)
def test_the_names_of_the_classes_do_not_matter(name: str, values: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = probabilities(values)
    first, second = probs.mean(0).topk(2).values.unbind(-1)
    assume(bool((first - second > 1e-6).all()))  # of two that are equal, a name decides
    classes = values.shape[-1]
    target = torch.randint(classes, (values.shape[1],), generator=generator)
    renamed = torch.randperm(classes, generator=generator)
    if name in ESTIMATORS:
        before, after = (probs,), (probs[..., renamed.argsort()],)
    else:
        mean = probs.mean(0)
        before, after = (mean, target), (mean[:, renamed.argsort()], renamed[target])
    metric = {**CLASSIFICATION, **ESTIMATORS}[name]
    assert value(metric(), *after) == pytest.approx(value(metric(), *before), abs=1e-6, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(logits(), seeds)
def test_the_order_of_the_estimators_does_not_matter(values: Tensor, seed: int) -> None:
    turned = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    target = torch.randn(values.shape[1:], dtype=values.dtype)
    for function in (
        mean_probs,
        lambda x: mutual_information(probabilities(x)),
        disagreement,
        lambda x: torch.stack(summarise_regression(x)),
        lambda x: metrics.mixture_log_likelihood(x, 0.7, target),
        lambda x: fit_temperature(x, torch.zeros(x.shape[1]).long()),
    ):
        torch.testing.assert_close(function(turned), function(values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["brier", "nll", "entropy", "ece", "mce", "augrc", "mi", "disagreement", "crps", "pll"]
)
@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 20), seed=seeds)
def test_each_example_twice_changes_nothing(name: str, size: int, seed: int) -> None:
    examples = make_inputs(name, size, seed)
    once = update_all(ALL[name](), examples).compute()
    twice = update_all(ALL[name](), examples + examples).compute()
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(ranked())
def test_only_the_order_of_the_confidences_counts_for_selection(
    example: tuple[Tensor, Tensor],
) -> None:
    confidence, correct = example
    coverage, risk = metrics.risk_coverage_curve(confidence, correct)
    for raised in (confidence**3 - 7, 1e3 * confidence, confidence.exp()):
        again = metrics.risk_coverage_curve(raised, correct)
        assert torch.equal(again[0], coverage)
        assert torch.equal(again[1], risk)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 5), seeds)
def test_fpr95_follows_the_order_of_the_scores(
    inside: int, outside: int, shift: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(20, (inside + outside,), generator=generator).float()
    is_ood = torch.arange(len(scores)) >= inside
    rate = value(metrics.FPR95(), scores, is_ood)
    assert 0 <= rate <= 1
    assert value(metrics.FPR95(), (scores / 9).exp(), is_ood) == rate
    assert value(metrics.FPR95(), scores + shift * is_ood, is_ood) <= rate
    assert value(metrics.FPR95(), scores + 20 * is_ood, is_ood) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.floats(0.1, 100), st.floats(-50, 50), seeds)
def test_regression_scores_have_the_unit_of_the_target(
    size: int, unit: float, origin: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, target = torch.randn(2, size, generator=generator, dtype=torch.float64)
    std = torch.rand(size, generator=generator, dtype=torch.float64) + 0.01
    f = mean + torch.randn(4, size, generator=generator, dtype=torch.float64)
    crps = metrics.gaussian_crps(mean, std, target)
    assert (crps >= 0).all()
    assert (crps <= (target - mean).abs() + std).all()
    near = {"rtol": 1e-9, "atol": 1e-9 * unit}
    moved, y = unit * mean + origin, unit * target + origin
    torch.testing.assert_close(metrics.gaussian_crps(moved, unit * std, y), unit * crps, **near)
    pll = metrics.mixture_log_likelihood(f, 0.7, target)
    again = metrics.mixture_log_likelihood(unit * f + origin, 0.7 / unit**2, y)
    torch.testing.assert_close(again, pll - math.log(unit), rtol=1e-8, atol=1e-8)
    covered = [value(metrics.IntervalCoverage(p), mean, std, target) for p in (0.1, 0.5, 0.95)]
    assert covered == sorted(covered)
    assert covered[1] == value(metrics.IntervalCoverage(0.5), moved, unit * std, y)
    assert covered[1] <= value(metrics.IntervalCoverage(0.5), mean, 2 * std, target)


# --- Bounds and relations ----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(predictions, st.integers(1, 20))
def test_calibration_errors_hold_each_other(inputs: Inputs, bins: int) -> None:
    probs, target = inputs
    confidence, label = probs.max(-1)
    gap = ((label == target).double().mean() - confidence.double().mean()).abs().item()
    ece, mce, adaptive = (
        value(metric, probs, target)
        for metric in (
            metrics.CalibrationError(bins),
            metrics.CalibrationError(bins, norm="max"),
            metrics.AdaptiveCalibrationError(bins),
        )
    )
    assert gap - 2e-6 <= ece <= mce + 2e-6 <= 1 + 4e-6
    assert gap - 2e-6 <= adaptive <= 1 + 2e-6
    # With a single bin all three are the gap itself.
    assert value(metrics.CalibrationError(1), probs, target) == pytest.approx(gap, abs=2e-6)
    assert value(metrics.AdaptiveCalibrationError(1), probs, target) == pytest.approx(gap, abs=2e-6)


@settings(max_examples=60, deadline=None)
@given(ranked())
def test_the_areas_lie_between_the_best_and_the_worst_order(
    example: tuple[Tensor, Tensor],
) -> None:
    confidence, correct = example
    n, errors = len(correct), int((~correct).sum())
    inputs = two_classes(confidence, correct)
    aurc, augrc = value(metrics.AURC(), *inputs), value(metrics.AUGRC(), *inputs)
    best = sum(max(0, k - (n - errors)) / k for k in range(1, n + 1)) / n
    worst = sum(min(k, errors) / k for k in range(1, n + 1)) / n
    assert best - 1e-6 <= aurc <= worst + 1e-6
    rate = errors / n
    assert rate**2 / 2 - 1e-6 <= augrc <= rate - rate**2 / 2 + 1e-6
    assert augrc <= aurc + 1e-6  # coverage times risk is at most the risk
    assert value(metrics.RiskAtCoverage(1.0), *inputs) == pytest.approx(rate, abs=1e-6)
    assert value(metrics.CoverageAtRisk(1.0), *inputs) == 1


@settings(max_examples=40, deadline=None)
@given(ranked(), st.floats(0, 1), st.floats(0, 1))
def test_more_risk_buys_more_coverage(
    example: tuple[Tensor, Tensor], one: float, other: float
) -> None:
    inputs = two_classes(*example)
    low, high = sorted((one, other))
    coverage = value(metrics.CoverageAtRisk(low), *inputs)
    assert coverage <= value(metrics.CoverageAtRisk(high), *inputs)
    if coverage > 0:
        assert value(metrics.RiskAtCoverage(coverage), *inputs) <= low + 1e-6


@settings(max_examples=40, deadline=None)
@given(ranked(), seeds)
def test_an_error_that_changes_places_with_a_surer_hit_lowers_the_areas(
    example: tuple[Tensor, Tensor], seed: int
) -> None:
    confidence, correct = example
    order = confidence.argsort(descending=True)
    wrong, right = ((~correct[order]).nonzero(), correct[order].nonzero())
    if len(wrong) and len(right) and wrong[0] < right[-1]:
        better = correct.clone()
        better[order[wrong[0]]], better[order[right[-1]]] = True, False
        for metric in (metrics.AURC, metrics.AUGRC):
            before = value(metric(), *two_classes(confidence, correct))
            after = value(metric(), *two_classes(confidence, better))
            tied = confidence[order[wrong[0]]] == confidence[order[right[-1]]]
            assert after <= before + 1e-6
            assert tied or after < before


@settings(max_examples=60, deadline=None)
@given(logits(), seeds)
def test_uncertainties_are_bounded_and_the_mean_scores_better_than_its_parts(
    values: Tensor, seed: int
) -> None:
    estimators, batch, classes = values.shape
    probs, mean = probabilities(values), mean_probs(values)
    total, shared = entropy(mean), mutual_information(probs)
    assert (total >= 0).all()
    assert (total <= math.log(classes) + 1e-9).all()
    assert (shared >= 0).all()
    assert (shared <= total + 1e-9).all()
    assert (shared <= math.log(estimators) + 1e-9).all()
    share = disagreement(probs)
    assert (share >= 0).all()
    assert (share <= 1).all()
    votes = probs.argmax(-1)
    assert torch.equal(share == 0, (votes == votes[0]).all(0))
    # Jensen: both scores are convex.
    target = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    for score in (metrics.brier_score, metrics.negative_log_likelihood):
        parts = torch.stack([score(each, target) for each in probs])
        assert (score(mean, target) <= parts.mean(0) + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(logits(), st.floats(0.05, 20), st.floats(1.01, 10))
def test_a_higher_temperature_makes_a_network_less_sure_and_keeps_its_labels(
    values: Tensor, temperature: float, factor: float
) -> None:
    one = values[0]
    cold, warm = mean_probs(one / temperature), mean_probs(one / (temperature * factor))
    assert (entropy(warm) >= entropy(cold) - 1e-9).all()
    assert (warm.amax(-1) <= cold.amax(-1) + 1e-9).all()
    assert torch.equal(warm.argmax(-1), one.argmax(-1))


def test_a_perfect_and_sure_classifier_has_no_error_and_no_doubt() -> None:
    probs, target = torch.eye(4), torch.arange(4)
    for name, make in CLASSIFICATION.items():
        assert value(make(), probs, target) == (1 if name == "coverage" else 0)


@pytest.mark.parametrize("style", ["smooth", "ties", "sure", "uniform"])
def test_a_wrong_and_sure_classifier_has_the_highest_errors(style: str) -> None:
    probs, _ = make_predictions(30, 3, style, seed=0)
    target = (probs.argmax(-1) + 1) % 3
    for name in ("aurc", "risk"):
        assert value(CLASSIFICATION[name](), probs, target) == 1
    assert value(metrics.AUGRC(), probs, target) == 0.5
    assert value(metrics.CalibrationError(), probs, target) == pytest.approx(
        probs.amax(-1).mean().item(), abs=1e-6
    )
