"""Temperature scaling against SciPy's minimizer on the definition of the log-likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.optimize import minimize_scalar
from torch import Tensor

from mcbn.predictive import fit_temperature, mean_probs


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
