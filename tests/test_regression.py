import math

import numpy as np
import pytest
import scoringrules
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mcbn import MCBatchNorm, Trainer
from mcbn.predictive import fit_noise_precision
from mcbn.results import ResultTables
from mcbn.training.routines import RegressionRoutine


class Fixed(nn.Module):
    """Gives the predictions that it finds in the input, ``(batch, S, targets)``, estimators first.

    Of a single estimator it drops the axis, as a plain network does.
    """

    def forward(self, x):
        return x[:, 0] if x.shape[1] == 1 else x.movedim(1, 0)


def results_of(predictions, target, batch_size=7, trainer_options=None, **options):
    """What a test logs for given predictions ``(n, S, targets)``."""
    loader = DataLoader(TensorDataset(predictions, target), batch_size=batch_size)
    routine = RegressionRoutine(Fixed(), nn.MSELoss(), torch.optim.Adam, **options)
    trainer = Trainer(accelerator="cpu", **(trainer_options or {}))
    [results] = trainer.test(routine, loader, verbose=False)
    return results


def sample(num_estimators, num_targets, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(61, num_targets, generator=generator)
    spread = torch.randn(61, num_estimators, num_targets, generator=generator)
    return target[:, None] + 0.5 * spread + 0.3, target


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", "bfloat16"), ("16-true", "float16")]
)
def test_half_precision_measures_what_single_precision_does(precision, dtype):
    # So that nothing is lost when it is halved.
    f, y = (part.to(getattr(torch, dtype)).float() for part in sample(5, 1))
    options = {"noise_precision": 0.04, "target_scale": 12.3}
    half = results_of(f, y, trainer_options={"precision": precision}, **options)
    assert half == pytest.approx(results_of(f, y, **options), rel=1e-5)


def expected(predictions, target, tau, scale):
    """The four scores, in NumPy and float64, from the formulas of the paper."""
    f = scale * predictions.double().numpy()
    y = scale * target.double().numpy()
    mean, sd = f.mean(1), np.sqrt(f.var(1) + 1 / tau)
    kernel = np.sqrt(tau / (2 * np.pi)) * np.exp(-tau / 2 * (f - y[:, None]) ** 2)
    low, high = norm.interval(0.95, mean, sd)
    return {
        "test/reg/RMSE": np.sqrt(((mean - y) ** 2).mean()),
        "test/reg/CRPS": scoringrules.crps_normal(y, mean, sd).mean(),
        "test/reg/PLL": np.log(kernel.mean(1)).mean(),
        "test/reg/Coverage": ((low <= y) & (y <= high)).mean(),
    }


@pytest.mark.parametrize("num_estimators", [1, 5])
@pytest.mark.parametrize("num_targets", [1, 3])
@pytest.mark.parametrize(("tau", "scale"), [(1.0, 1.0), (0.04, 12.5)])
def test_metrics_are_those_of_the_paper(num_estimators, num_targets, tau, scale):
    predictions, target = sample(num_estimators, num_targets)
    results = results_of(predictions, target, noise_precision=tau, target_scale=scale)
    assert results == pytest.approx(expected(predictions, target, tau, scale), rel=1e-5)


def test_targets_without_an_axis_of_their_own_are_one_target():
    predictions, target = sample(5, 1)
    flat = results_of(predictions[:, :, 0], target[:, 0])
    assert flat == pytest.approx(results_of(predictions, target))


def test_a_line_is_learnt_validated_and_wrapped():
    torch.manual_seed(0)
    x = torch.randn(256, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def recipe(model):
        return torch.optim.Adam(model.parameters(), lr=0.05)

    routine = RegressionRoutine(model, nn.MSELoss(), recipe, target_scale=10.0)
    trainer = Trainer(max_epochs=10, accelerator="cpu", enable_model_summary=False)
    trainer.fit(routine, loader, loader)
    rmse = 10 * (model.eval()(x) - y).square().mean().sqrt().item()
    assert trainer.callback_metrics["val/RMSE"].item() == pytest.approx(rmse, rel=1e-4)
    assert rmse < 0.2 * 10 * y.std()
    routine.model = MCBatchNorm(model, num_estimators=4, mc_batch_size=16).fit(loader)
    [results] = trainer.test(routine, loader, verbose=False)
    tables = ResultTables([results]).tables
    assert [table.caption for table in tables] == ["Regression"]
    assert [row[0] for row in tables[0].rows] == ["RMSE", "CRPS", "PLL", "Coverage"]
    assert torch.cat(trainer.predict(routine, loader), dim=1).shape == (4, 256, 1)


def mean_crps(log_tau, predictions, target):
    f, y = predictions.double().numpy(), target.double().numpy()
    sd = np.sqrt(f.var(0) + np.exp(-log_tau))
    return scoringrules.crps_normal(y, f.mean(0), sd).mean()


@pytest.mark.parametrize("num_estimators", [1, 6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("seed", range(3))
def test_precision_is_where_scipy_finds_it(num_estimators, scale, seed):
    predictions, target = sample(num_estimators, 1, seed)
    # A spread that is small next to the error of the mean leaves something to the noise.
    predictions = scale * (0.3 * predictions.movedim(1, 0) + 0.7 * predictions.mean(1) + 1)
    target = scale * target
    low = -2 * math.log(scale) - 7
    best = minimize_scalar(
        mean_crps,
        (low, low + 7),
        (low, low + 14),
        (predictions, target),
        method="bounded",
        options={"xatol": 1e-9},
    )
    tau = fit_noise_precision(predictions, target)
    assert tau == pytest.approx(math.exp(best.x), rel=1e-4)
    if num_estimators == 1:
        assert fit_noise_precision(predictions[0], target) == tau


def test_noise_of_known_size_is_found():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert fit_noise_precision(torch.zeros(20_000), 3 * noise) == pytest.approx(1 / 9, rel=0.05)


def test_precision_keeps_to_its_bounds():
    predictions, target = sample(5, 1)
    predictions = predictions.movedim(1, 0)
    free = fit_noise_precision(predictions.mean(0), target)
    assert fit_noise_precision(predictions.mean(0), target, bounds=(1e-9, free / 2)) == (
        pytest.approx(free / 2)
    )
    # Estimators that spread more than they err need no noise.
    wide = target + torch.tensor([-9.0, 9.1])[:, None, None]
    assert fit_noise_precision(wide, target, bounds=(1e-3, 50)) == pytest.approx(50)
