import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import scoringrules
import torch
from scipy import stats

from mcbn.experiments.batched import Training
from mcbn.experiments.data import DataSet
from mcbn.experiments.protocol import (
    Evaluation,
    Settings,
    Validation,
    error_by_std,
    fold_rows,
    scores,
    selected,
    split_rows,
    standardized,
)
from mcbn.experiments.table import (
    PUBLISHED,
    normalized,
    score_table,
    selection_table,
    sign_flip_test,
    standard_error,
)
from mcbn.predictive import fit_noise_precision

SETTINGS = Settings(
    num_folds=3, max_epochs=150, check_every=5, patience=1, num_cv_samples=4, num_samples=30
)
TABLE = DataSet("noise", width=6)


def table(rows=60):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(rows, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)
    return features, 10 * features.sum(1) + noise


def validation(method="mcbn", strength=8, decays=(1e-2,)):
    return Validation("noise", "", method, strength, 1, SETTINGS, decays)


def evaluation(**fields):
    given = {"decay": 1e-2, "epochs": 20, "tau": 1.0, "tau_constant": 0.5, "num_seeds": 2, **fields}
    return Evaluation("noise", "", "mcbn", 8, 1, SETTINGS, **given)


def test_the_scores_are_those_of_scoringrules_and_of_the_papers_formulas():
    rng = np.random.default_rng(0)
    samples, target = 3 * rng.normal(size=(20, 50)), rng.normal(size=50)
    tau, tau_constant = 0.7, 0.3
    found = scores(torch.tensor(samples), torch.tensor(target), tau, tau_constant)

    mean, std = samples.mean(0), np.sqrt(samples.var(0) + 1 / tau)
    error = np.abs(target - mean)
    mixture = stats.norm.pdf(target, samples, tau**-0.5).mean(0)
    assert found == pytest.approx(
        {
            "rmse": np.sqrt((error**2).mean()),
            "crps": scoringrules.crps_normal(target, mean, std).mean(),
            "crps_constant": scoringrules.crps_normal(target, mean, tau_constant**-0.5).mean(),
            "crps_optimum": 0.59490 * error.mean(),
            "pll": np.log(mixture).mean(),
            "pll_constant": stats.norm.logpdf(target, mean, tau_constant**-0.5).mean(),
            "pll_optimum": stats.norm.logpdf(error, scale=error).mean(),
        },
        rel=1e-5,
    )


def test_no_width_is_better_than_the_optimum():
    target = torch.tensor([0.3, -2.0, 7.0], dtype=torch.float64)
    mean = torch.zeros(1, 3, dtype=torch.float64)
    best = scores(mean, target, 1.0, 1.0)
    tried = [
        [
            scores(mean[:, i : i + 1], target[i : i + 1], 1.0, tau)
            for tau in np.geomspace(1e-2, 1e2, 301)
        ]
        for i in range(3)
    ]
    lowest = np.mean([min(found["crps_constant"] for found in row) for row in tried])
    highest = np.mean([max(found["pll_constant"] for found in row) for row in tried])
    assert lowest == pytest.approx(best["crps_optimum"], rel=1e-3)
    assert highest == pytest.approx(best["pll_optimum"], rel=1e-3)
    assert lowest >= best["crps_optimum"]
    assert highest <= best["pll_optimum"]


def test_bins_go_from_the_surest_rows_to_the_least_sure():
    torch.manual_seed(0)
    samples, target = torch.randn(30, 47).double() * torch.rand(47), torch.randn(47).double()
    found = error_by_std(samples, target, tau=2.0)
    std = np.sqrt(samples.numpy().var(0) + 0.5)
    order = np.array_split(np.argsort(std), 10)
    error = (target - samples.mean(0)).numpy()
    np.testing.assert_allclose(found["std"], [std[rows].mean() for rows in order])
    expected = [np.sqrt((error[rows] ** 2).mean()) for rows in order]
    np.testing.assert_allclose(found["error"], expected)


def test_each_row_is_in_one_part_and_a_split_is_known_by_its_number():
    train, test = split_rows(103, split=2)
    assert (len(train), len(test)) == (82, 21)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(103))
    assert torch.equal(test, split_rows(103, split=2)[1])
    assert not torch.equal(test, split_rows(103, split=3)[1])
    inner, held_out = fold_rows(train, 5)
    assert (inner.shape, held_out.shape) == ((5, 66), (5, 16))
    for rows, others in zip(inner.tolist(), held_out.tolist(), strict=True):
        assert sorted(rows + others) == sorted(train.tolist())
    assert len(held_out.unique()) == held_out.numel()


def test_each_fold_is_standardized_by_its_own_training_rows():
    features, target = table()
    features[:, 1] = 0.1  # a constant
    train, other = fold_rows(torch.arange(60), 3)
    part = standardized(features, target, train, other)
    x, y = features.numpy(), target.numpy()
    for fold in range(3):
        rows, others = train[fold].numpy(), other[fold].numpy()
        std = x[rows].std(0)
        std[1] = 1
        np.testing.assert_allclose(part.x[fold], (x[rows] - x[rows].mean(0)) / std, atol=1e-6)
        np.testing.assert_allclose(
            part.other_x[fold], (x[others] - x[rows].mean(0)) / std, atol=1e-6
        )
        scaled = (y[rows] - y[rows].mean()) / y[rows].std()
        np.testing.assert_allclose(part.y[fold, :, 0], scaled, atol=1e-6)
        back = part.in_unit(part.y.transpose(1, 2))[fold, 0]
        np.testing.assert_allclose(back, y[rows], rtol=1e-6)
        np.testing.assert_array_equal(part.other_target[fold], y[others])


def slow_cross_validation(unit, decay, features, target):
    """One decay by itself: train on, look, remember the best, stop after a look in vain."""
    train, _ = split_rows(len(features), unit.split)
    part = standardized(features, target, *fold_rows(train, 3))
    generator = unit.generator("start")
    initial = unit.network.initial(3, 3, TABLE.width, generator)
    training = Training(unit.network, initial, part.x, part.y, [decay], generator)

    @torch.no_grad()
    def predict(params, count):
        look = unit.generator("look")
        return part.in_unit(unit.network.sample(params, part.x, part.other_x, count, look))

    best, best_epoch, kept, in_vain, epoch = math.inf, 0, None, 0, 0
    while in_vain < 1 and epoch < 150:
        for _ in range(5):
            training.epoch()
        epoch += 5
        errors = [
            np.sqrt(((p.mean(0) - y).numpy() ** 2).mean())
            for p, y in zip(predict(training.params, 4), part.other_target, strict=True)
        ]
        in_vain += 1
        if np.mean(errors) < best:
            best, best_epoch, in_vain = np.mean(errors), epoch, 0
            kept = copy.deepcopy([param.detach() for param in training.params])
    samples = torch.cat(list(predict(kept, 30)), dim=1)
    observed = part.other_target.flatten()
    taus = fit_noise_precision(samples, observed), fit_noise_precision(samples.mean(0), observed)
    return best, best_epoch, taus


@pytest.mark.parametrize(("method", "strength", "rows"), [("mcbn", 8, 60), ("mcdo", 0.1, 200)])
def test_decays_validated_together_find_what_each_finds_alone(method, strength, rows):
    decays = (1.0, 0.3, 1e-4)
    unit = validation(method, strength, decays)
    found = unit.run(TABLE, *table(rows))
    alone = [slow_cross_validation(unit, decay, *table(rows)) for decay in decays]
    assert found["rmse"] == pytest.approx([rmse for rmse, _, _ in alone], rel=1e-4)
    assert found["epochs"] == [epochs for _, epochs, _ in alone]
    assert len(set(found["epochs"])) > 1  # they have stopped at different times
    best = found["rmse"].index(min(found["rmse"]))
    assert (found["tau"], found["tau_constant"]) == pytest.approx(alone[best][2], rel=1e-3)


def test_tau_stays_in_the_bounds_of_the_data_set():
    bounds = (50.0, 60.0)
    found = validation().run(replace(TABLE, tau_bounds=bounds), *table())
    assert found["tau"] == pytest.approx(50.0)
    assert found["tau_constant"] == pytest.approx(50.0)


def test_the_lowest_mean_rmse_is_selected():
    few, many = (
        validation(strength=8, decays=(0.1, 0.01)),
        validation(strength=16, decays=(0.1, 0.01)),
    )
    records = {
        few: {"rmse": [3.0, 2.0], "epochs": [20, 40], "tau": 1.0, "tau_constant": 0.9},
        many: {"rmse": [1.5, 4.0], "epochs": [60, 80], "tau": 2.0, "tau_constant": 1.9},
    }
    chosen = selected(records, num_seeds=3)
    assert (chosen.strength, chosen.decay, chosen.epochs) == (16, 0.1, 60)
    assert (chosen.tau, chosen.tau_constant, chosen.num_seeds) == (2.0, 1.9, 3)
    assert (chosen.split, chosen.settings) == (few.split, few.settings)


@torch.no_grad()
def test_each_seed_is_tested_on_the_rows_that_no_training_saw():
    features, target = table()
    _, test = split_rows(60, 1)
    unit = evaluation()
    predicted = unit.predict(TABLE, features, target)
    for samples, observed in predicted:
        assert samples.shape == (30, 12)
        torch.testing.assert_close(observed, target[test])
        assert (samples.mean(0) - observed).square().mean() < observed.var()
    assert not torch.equal(predicted[0][0], predicted[1][0])
    changed = target.clone()
    changed[test] += 100
    again = unit.predict(TABLE, features, changed)
    torch.testing.assert_close(again[0][0], predicted[0][0])  # the test's targets play no part

    found = unit.run(TABLE, features, target)
    expected = [scores(samples, observed, 1.0, 0.5) for samples, observed in predicted]
    for name in expected[0]:
        assert found[name] == [run[name] for run in expected]
    assert [len(bins) for bins in found["std"]] == [10, 10]


def test_longer_training_and_another_seed_change_the_networks():
    features, target = table()
    first = evaluation().predict(TABLE, features, target)[0][0]
    longer = evaluation(epochs=21).predict(TABLE, features, target)[0][0]
    other = replace(evaluation(), settings=replace(SETTINGS, seed=1))
    assert not torch.equal(first, longer)
    assert not torch.equal(first, other.predict(TABLE, features, target)[0][0])


def test_settings_that_never_look_are_refused():
    with pytest.raises(ValueError, match="max_epochs=10 is below check_every=20"):
        Settings(max_epochs=10)


def results():
    rng = np.random.default_rng(0)
    names = [s + end for s in ("crps", "pll") for end in ("", "_constant", "_optimum")]
    method = {
        "runs": {name: rng.normal(size=(5, 5)).tolist() for name in [*names, "rmse"]},
        "selected": {"strength": [32] * 5, "decay": [1e-3] * 5, "epochs": [40] * 5},
    }
    method["runs"]["crps"] = (np.array(method["runs"]["crps_constant"])).tolist()
    return {"yacht": {"mcbn": method, "mcdo": method}, "mine": {"mcbn": method, "mcdo": method}}


def test_normalized_scores_are_those_of_the_paper():
    runs = results()["yacht"]["mcbn"]["runs"]
    own, constant, optimum = (np.array(runs["pll" + end]) for end in ("", "_constant", "_optimum"))
    found = normalized(runs, "pll")
    np.testing.assert_allclose(found, 100 * (own - constant) / (optimum - constant))
    assert standard_error(found) == pytest.approx(stats.sem(found.numpy().mean(1)))
    assert standard_error(found[:, 0]) == pytest.approx(stats.sem(found[:, 0].numpy()))
    assert math.isnan(standard_error(found[:1, 0]))


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_the_sign_flip_test_is_scipys(shift):
    values = np.random.default_rng(1).normal(size=12) + shift
    exact = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_test(torch.tensor(values)) == pytest.approx(exact)
    assert sign_flip_test(torch.tensor(values), num_flips=4000) == pytest.approx(exact, abs=0.02)


def test_the_tables_name_each_row_and_show_the_published_value_beside_ours():
    table, errors = score_table(results()).tables
    assert [row[0] for row in table.rows] == [
        "mine, MCBN",
        "mine, MCDO",
        "yacht, MCBN",
        "yacht, MCDO",
    ]
    assert table.rows[0][1:3] == ["0.00 ± 0.00", "-"]
    assert [row[4] for row in table.rows[2:]] == ["45.58", "-41.54"]
    assert all(len(row) == len(table.header) for row in table.rows)
    assert [row[0] for row in errors.rows] == ["mine", "yacht"]
    assert errors.rows[0][1] == errors.rows[1][2]
    found = results()
    other = {"strength": [0.2, 1e-3], "decay": [1e-2, 1e-5], "epochs": [20, 1960]}
    found["mine"]["mcdo"] = {"selected": other}
    [chosen] = selection_table(found).tables
    assert chosen.rows[0] == ["mine, MCBN", "32 32 32 32 32", "0.001", "40"]
    assert chosen.rows[1] == ["mine, MCDO", "0.2 0.001", "1e-05–0.01", "20–1960"]
    assert set(PUBLISHED) == {
        *("boston", "concrete", "energy", "kin8nm", "power", "protein", "wine", "yacht")
    }
