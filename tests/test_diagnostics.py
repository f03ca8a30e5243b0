"""The comparison of drawn with trained statistics, against plain NumPy and against theory."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mcbn import MCBatchNorm
from mcbn.diagnostics import fit_report, probability_moved
from mcbn.training.models import lenet


def trained(features: int = 64) -> nn.Sequential:
    """A network that has seen a thousand mini-batches of 32, of mean 3 and sd 2."""
    model = nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, 4), nn.BatchNorm1d(4))
    for _ in range(1000):
        model(2 * torch.randn(32, features) + 3)
    return model


def batches(count: int, shift: float = 0, scale: float = 1, features: int = 64):
    return [scale * (2 * torch.randn(32, features)) + 3 + 2 * shift for _ in range(count)]


def test_the_report_is_that_of_numpy():
    torch.manual_seed(0)
    model = trained(5)
    data = batches(6, 0.5, 1.5, features=5)
    report = fit_report(MCBatchNorm(model, num_estimators=6).fit(data))
    assert report.names == ["0", "2"]

    means = np.stack([batch.double().numpy().mean(0) for batch in data])
    variances = np.stack([batch.double().numpy().var(0) for batch in data])
    trained_mean, trained_var = model[0].running_mean.numpy(), model[0].running_var.numpy()
    shift, spread, scale = [], [], []
    for c in range(5):
        sd = (trained_var[c] + 1e-5) ** 0.5
        centre = sum(means[:, c]) / 6
        shift.append((centre - trained_mean[c]) / sd)
        spread += [(mean - centre) / sd for mean in means[:, c]]
        scale.append(np.log(np.sqrt(sum(variances[:, c]) / 6 + 1e-5) / sd))
    rms = lambda values: np.sqrt(np.mean(np.square(values)))  # noqa: E731
    assert report.shift[0].item() == pytest.approx(rms(shift), rel=1e-4)
    assert report.spread[0].item() == pytest.approx(rms(spread), rel=1e-4)
    assert report.scale[0].item() == pytest.approx(np.exp(rms(scale)), rel=1e-4)


def test_mini_batches_of_the_training_have_the_shift_that_theory_says():
    torch.manual_seed(0)
    report = fit_report(MCBatchNorm(trained(2000)).fit(batches(16, features=2000)))
    # The running mean is an average, too; the spread is about the estimators' own mean.
    expected = np.sqrt((1 / 16 + 0.1 / 1.9) / (1 - 1 / 16))
    assert (report.shift / report.spread)[0].item() == pytest.approx(expected, rel=0.05)
    assert report.spread[0].item() == pytest.approx(np.sqrt((1 - 1 / 16) / 32), rel=0.05)
    assert report.scale[0].item() == pytest.approx(1, abs=0.1)


def test_shift_and_scale_are_those_of_the_data():
    torch.manual_seed(0)
    report = fit_report(MCBatchNorm(trained()).fit(batches(16, shift=0.7, scale=3)))
    assert report.shift[0].item() == pytest.approx(0.7, abs=0.1)
    assert report.scale[0].item() == pytest.approx(3, rel=0.1)
    assert report.shift[1] < 0.2, "batch norm has taken the difference out before the second layer"


def test_calls_of_a_layer_count_as_estimators():
    layer = nn.BatchNorm1d(3)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x[:, 0]) + self.layer(x[:, 1])

    torch.manual_seed(0)
    data = [torch.randn(8, 2, 3) + 1 for _ in range(4)]
    layer.running_mean.fill_(0.5)
    twice = fit_report(MCBatchNorm(Twice(), num_estimators=4).fit(data))
    calls = [call for batch in data for call in batch.unbind(1)]
    once = fit_report(MCBatchNorm(nn.Sequential(layer), num_estimators=8).fit(calls))
    for left, right in zip(twice[1:], once[1:], strict=True):
        torch.testing.assert_close(left, right)


def test_layers_without_trained_statistics_are_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
    mc = MCBatchNorm(model, num_estimators=2).fit(batches(2, features=4))
    with pytest.raises(ValueError, match="no trained running statistics"):
        fit_report(mc)
    model(torch.randn(8, 4) + 1)
    mc = MCBatchNorm(model, num_estimators=2).fit(batches(2, features=4))
    assert fit_report(mc).names == ["0"]


def test_a_wrapper_that_is_not_fitted():
    with pytest.raises(RuntimeError, match="call fit"):
        fit_report(MCBatchNorm(trained()))
    with pytest.raises(TypeError, match="pass a fitted MCBatchNorm"):
        fit_report(nn.BatchNorm1d(3))


def test_fit_warns_of_pixels_that_were_not_scaled():
    torch.manual_seed(0)
    model = lenet(1, 10)
    pixels = [torch.rand(32, 1, 28, 28) for _ in range(8)]
    for batch in pixels * 20:
        model(batch)
    MCBatchNorm(model, num_estimators=8).fit(pixels)
    with pytest.warns(UserWarning, match=r"trained standard deviations .*preprocessed") as caught:
        MCBatchNorm(model, num_estimators=8).fit([255 * batch for batch in pixels])
    assert caught[0].filename == __file__


def test_a_warning_that_is_an_error_leaves_the_old_statistics():
    torch.manual_seed(0)
    mc = MCBatchNorm(trained(), num_estimators=2).fit(batches(2))
    old = {name: value.clone() for name, value in mc.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="trained standard deviations"):
            mc.fit(batches(2, shift=1000))
    assert all(torch.equal(value, old[name]) for name, value in mc.state_dict().items())


def test_fit_says_nothing_of_a_network_that_was_never_trained():
    torch.manual_seed(0)
    mc = MCBatchNorm(nn.Sequential(nn.BatchNorm1d(64)), num_estimators=2)
    assert mc.fit(batches(2, shift=100)).fitted, "a warning would have been an error"


def test_probability_moved_is_the_distance_of_total_variation():
    torch.manual_seed(0)
    logits, plain = torch.randn(5, 7, 3), torch.randn(7, 3)
    for image, moved in enumerate(probability_moved(logits, plain)):
        each = [np.exp(one) / np.exp(one).sum() for one in logits[:, image].double().numpy()]
        alone = np.exp(plain[image].double().numpy())
        more = np.mean(each, axis=0) - alone / alone.sum()
        assert moved.item() == pytest.approx(more[more > 0].sum(), rel=1e-5)
    torch.testing.assert_close(probability_moved(plain[None], plain), torch.zeros(7))


@pytest.mark.parametrize("shape", [(7, 4), (7,), (5, 7, 3)])
def test_plain_logits_of_another_shape(shape):
    with pytest.raises(ValueError, match="wanted"):
        probability_moved(torch.randn(5, 7, 3), torch.randn(shape))
