"""The predictive functions against NumPy and SciPy loops written from their definitions."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.optimize import minimize_scalar
from torch import Tensor

from mcbn import predictive
from mcbn.predictive import fit_temperature, mean_probs


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    """(num_estimators, batch, classes), from flat to so sharp that some probabilities are 0."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)))
    scale = draw(st.sampled_from([0.0, 1.0, 10.0, 1000.0]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return scale * torch.randn(shape, generator=generator, dtype=dtype)


def tolerance(values: Tensor) -> float:
    return 2e-6 if values.dtype == torch.float32 else 1e-12


@settings(max_examples=60, deadline=None)
@given(logits())
def test_every_function_agrees_with_its_definition(values: Tensor) -> None:
    size, batch, _ = values.shape
    probs = predictive.probabilities(values)
    expected = special.softmax(values.numpy(), axis=-1)
    near = {"abs": tolerance(values), "rel": 1e-4}
    assert probs.dtype == values.dtype
    np.testing.assert_allclose(probs, expected, atol=near["abs"])
    np.testing.assert_allclose(
        predictive.mean_probs(values), expected.mean(0), atol=tolerance(values)
    )
    entropy = predictive.entropy(probs)
    information = predictive.mutual_information(probs)
    disagreement = predictive.disagreement(probs)
    for i in range(batch):
        of_each = [stats.entropy(probs[s, i].numpy()) for s in range(size)]
        of_mean = stats.entropy(probs[:, i].numpy().mean(0))
        votes = [int(probs[s, i].argmax()) for s in range(size)]
        pairs = [a != b for a, b in combinations(votes, 2)]
        assert entropy[:, i].tolist() == pytest.approx(of_each, **near)
        assert information[i].item() == pytest.approx(of_mean - np.mean(of_each), abs=5e-6)
        assert disagreement[i].item() == pytest.approx(np.mean(pairs) if pairs else 0.0, abs=1e-6)
    assert (information >= 0).all()
    assert (information <= math.log(size) + 1e-5).all()


@settings(max_examples=30, deadline=None)
@given(logits())
def test_the_summary_is_made_of_the_functions(values: Tensor) -> None:
    summary = predictive.summarise_classification(values)
    probs = predictive.mean_probs(values)
    torch.testing.assert_close(summary.probs, probs)
    assert summary.label.tolist() == probs.argmax(-1).tolist()
    torch.testing.assert_close(summary.confidence, probs.amax(-1))
    torch.testing.assert_close(summary.entropy, predictive.entropy(probs))
    torch.testing.assert_close(
        summary.mutual_information, predictive.mutual_information(values.softmax(-1))
    )


def test_mutual_information_is_that_of_the_joint_distribution() -> None:
    probs = torch.rand(4, 3, 5, dtype=torch.float64).softmax(-1)
    joint = probs.numpy() / 4  # a uniform choice of the estimator, then a class
    expected = [
        sum(
            joint[s, i, c] * math.log(joint[s, i, c] / (0.25 * joint[:, i, c].sum()))
            for s in range(4)
            for c in range(5)
        )
        for i in range(3)
    ]
    assert predictive.mutual_information(probs).tolist() == pytest.approx(expected)


def test_estimators_that_agree_share_no_negative_information() -> None:
    probs = torch.rand(1000, 10, generator=torch.manual_seed(0)).softmax(-1)
    information = predictive.mutual_information(probs.expand(7, -1, -1))
    assert information.min() == 0
    assert information.max() < 1e-6


def test_a_plain_network_is_one_estimator() -> None:
    values = torch.randn(6, 4)
    torch.testing.assert_close(predictive.mean_probs(values), values.softmax(-1))
    assert predictive.summarise_classification(values).mutual_information.tolist() == [0.0] * 6
    assert predictive.disagreement(values[None]).tolist() == [0.0] * 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_probabilities(dtype: torch.dtype) -> None:
    values = torch.randn(3, 4, 10).to(dtype)
    probs = predictive.mean_probs(values)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, values.float().softmax(-1).mean(0))


def test_the_entropy_of_a_sure_prediction_is_zero() -> None:
    assert predictive.entropy(torch.eye(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("noise", [0.0, 0.3, torch.tensor([[0.1], [0.2], [0.3]])])
def test_the_regression_summary_adds_noise_to_the_biased_variance(noise: float | Tensor) -> None:
    predictions = torch.randn(5, 3, 2, dtype=torch.float64)
    summary = predictive.summarise_regression(predictions, noise)
    np.testing.assert_allclose(summary.mean, predictions.numpy().mean(0))
    np.testing.assert_allclose(summary.epistemic_variance, predictions.numpy().var(0))
    np.testing.assert_allclose(
        summary.total_variance, predictions.numpy().var(0) + np.asarray(noise)
    )


def test_gradients_flow() -> None:
    values = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    for function in (predictive.mean_probs, lambda x: predictive.mutual_information(x.softmax(-1))):
        assert torch.autograd.gradcheck(function, (values,))


# --- Temperature scaling, against SciPy's minimizer on the log-likelihood ---


def nll(log_temperature: float, logits: Tensor, target: Tensor) -> float:
    probs = special.softmax(logits.double().numpy() / np.exp(log_temperature), axis=-1).mean(0)
    return -np.log(probs[np.arange(len(target)), target.numpy()]).mean()


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Estimators that agree for the most part, and labels drawn from them at some temperature."""
    size, classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    scale = draw(st.floats(0.3, 5.0))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    common = 2 * torch.randn(1, 300, classes, generator=generator)
    logits = common + 0.5 * torch.randn(size, 300, classes, generator=generator)
    target = torch.multinomial(mean_probs(logits), 1, generator=generator)[:, 0]
    return scale * logits, target


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_the_temperature_is_where_the_likelihood_is_highest(given_: tuple[Tensor, Tensor]) -> None:
    logits, target = given_
    found = minimize_scalar(
        nll, bounds=np.log([0.05, 20]), args=given_, method="bounded", options={"xatol": 1e-8}
    )
    assert fit_temperature(logits, target).item() == pytest.approx(np.exp(found.x), rel=1e-3)


def test_logits_that_are_too_large_by_a_factor_get_that_factor_more() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 500, 4).double()
    target = torch.multinomial(mean_probs(logits), 1)[:, 0]
    once = fit_temperature(logits, target)
    torch.testing.assert_close(fit_temperature(7 * logits, target), 7 * once, rtol=1e-5, atol=0)
    plain = fit_temperature(logits[0], target)
    torch.testing.assert_close(fit_temperature(logits[:1], target), plain)


def test_the_value_stays_between_its_ends() -> None:
    logits = 3 * torch.eye(4)
    assert fit_temperature(logits, torch.arange(4)).item() == pytest.approx(0.01, rel=1e-4)
    assert fit_temperature(-logits, torch.arange(4)).item() == pytest.approx(100, rel=1e-4)


def test_nan_in_nan_out_and_half_precision_gives_float32() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    target = torch.tensor([0, 0, 1])
    half = fit_temperature(logits.half(), target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, fit_temperature(logits, target))
    logits[1, 0] = torch.nan
    assert fit_temperature(logits, target).isnan()


def test_a_network_in_training_keeps_its_gradients() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    temperature = fit_temperature(logits, torch.arange(5) % 3)
    assert not temperature.requires_grad
    (logits / temperature).sum().backward()
    torch.testing.assert_close(logits.grad, (1 / temperature).expand(5, 3))
