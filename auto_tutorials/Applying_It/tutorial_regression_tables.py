r"""
Regression with real tables
===========================

Predicting one column of a table from the others is a very common task, and the paper on Monte Carlo
Batch Normalization (MCBN, `Teye et al., 2018 <https://arxiv.org/abs/1802.06455>`_) tests the method
on it. Here, a prediction is a mean and a width. This page shows how to tell a good width from a bad
one, and measures what MCBN's are worth.

We use the diabetes table that comes with scikit-learn: ten measurements of each of 442 patients,
and the progress of their disease a year later. The seed is 0, and a CPU is enough.

The table
---------

The datamodule splits the rows into three parts, for training, validation and test, and standardizes
all columns with the means and standard deviations of the training part.
"""

# sphinx_gallery_tags = ["regression", "calibration"]

from lightning.pytorch import seed_everything

from mcbn import TableDataModule

seed_everything(0, verbose=False)
datamodule = TableDataModule(batch_size=32, seed=0)
datamodule.setup()
sizes = [len(datamodule.dataset(part)) for part in ("train", "val", "test")]
print("rows:", *sizes)
print("features:", *datamodule.names[:-1])
print(f"{datamodule.names[-1]}: mean {datamodule.target_mean:.0f}", end=", ")
print(f"standard deviation {datamodule.target_std:.0f}")

# %%
# Train a network
# ---------------
#
# As in the paper, the network has two dense layers of 50 units, each followed by batch
# normalization. The loss is the squared error. Before it measures anything, the routine multiplies
# by ``target_scale``, so the results are in the target's own unit.

import torch
from torch import nn

from mcbn import RegressionRoutine, Trainer


def optim_adam(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def train(datamodule):
    model = nn.Sequential(
        *(nn.Linear(datamodule.num_features, 50, bias=False), nn.BatchNorm1d(50), nn.ReLU()),
        *(nn.Linear(50, 50, bias=False), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 1)),
    )
    scale = datamodule.target_std
    routine = RegressionRoutine(model, nn.MSELoss(), optim_adam, target_scale=scale)
    trainer = Trainer(max_epochs=40, enable_model_summary=False)
    trainer.fit(routine, datamodule)
    return model.eval(), routine, trainer


model, routine, trainer = train(datamodule)

# %%
# Fit the noise of the target
# ---------------------------
#
# No network can predict everything about a patient. What remains is noise, of precision
# :math:`\tau` in the paper's notation and so of variance :math:`1 / \tau`. We do not know
# :math:`\tau`, so we take the value with the smallest mean CRPS on the validation data. The
# *continuous ranked probability score* of a forecast with the distribution function :math:`F` and
# an outcome :math:`y` is
#
# .. math::
#
#     \mathrm{CRPS}(F, y) = \int (F(z) - [z \ge y])^2 \, dz .
#
# It has the unit of the target, and for a forecast without width it is the absolute error. A wrong
# mean and a wrong width both make it larger.

from mcbn.metrics import gaussian_crps
from mcbn.plotting import plot_series
from mcbn.predictive import fit_noise_precision


def predict(model, datamodule, part):
    features, target = datamodule.dataset(part).tensors
    with torch.no_grad():
        both = model(features), target
    return (values * datamodule.target_std + datamodule.target_mean for values in both)


# %%
# The figure shows the mean CRPS for a range of widths. The dashed line is at the width that
# ``fit_noise_precision`` finds.

predictions, target = predict(model, datamodule, "val")
tau = fit_noise_precision(predictions, target)
widths = torch.linspace(15, 180, 34)
scores = [gaussian_crps(predictions, width.expand(88, 1), target).mean() for width in widths]
ax = plot_series(
    widths, {"validation data": scores}, ("standard deviation of the noise", "CRPS"), marker=""
)
ax.axvline(tau**-0.5, ls="--", lw=1, color="gray")
ax.figure.set_label(
    "The CRPS on validation data against the standard deviation: a valley, and a dashed line at "
    "its lowest point."
)

# %%
# We test the plain network with this width, and check that no other width in the figure scores
# better on the validation data.

routine.noise_precision = tau
plain = trainer.test(routine, datamodule, verbose=False)
print(f"standard deviation of the noise: {tau**-0.5:.0f}")

best = gaussian_crps(predictions, torch.full_like(target, tau**-0.5), target).mean()
torch.testing.assert_close(best, min(best, *scores), rtol=1e-4, atol=0)

# %%
# What MCBN adds
# --------------
#
# We make 100 *estimators*: each is the trained network, normalized with the statistics of one
# mini-batch of 32 training rows, as many as in a training step. The variance between the estimators
# is now part of the width, which leaves less for the noise, so :math:`\tau` is fitted again.

import rich

from mcbn import MCBatchNorm
from mcbn.results import ResultTables


def wrap(model, routine, trainer, datamodule):
    mc = MCBatchNorm(model, num_estimators=100, mc_batch_size=32)
    routine.model = mc.fit(datamodule.train_dataloader())
    routine.noise_precision = fit_noise_precision(*predict(mc, datamodule, "val"))
    return trainer.test(routine, datamodule, verbose=False)


mcbn = wrap(model, routine, trainer, datamodule)
rich.print(ResultTables({"plain": plain, "MCBN": mcbn}))
print(f"standard deviation of the noise: {routine.noise_precision**-0.5:.0f}")

# %%
# RMSE is the error of the mean alone. PLL is the predictive log-likelihood (higher is better): the
# log of the density that the mixture of the :math:`S` estimators gives to the outcome,
#
# .. math::
#
#     \mathrm{PLL} = \log \frac{1}{S} \sum_{s} \mathcal{N}(y; f_s(x), 1 / \tau) .
#
# Coverage is the share of outcomes inside the central 95 % of the forecast. If it is well below
# 95 %, the widths are too narrow; if well above, too wide.

for results in (plain[0], mcbn[0]):
    assert results["test/reg/Coverage"] > 0.8
    assert results["test/reg/RMSE"] < 1.1 * datamodule.target_std
assert abs(mcbn[0]["test/reg/CRPS"] / plain[0]["test/reg/CRPS"] - 1) < 0.15

# %%
# Forecasts, patient by patient
# -----------------------------
#
# The figure shows the test patients in the order of their forecasts, each with the central 95 %.
# The thick part is the width that the spread of the estimators alone would give.

from mcbn.plotting import plot_intervals
from mcbn.predictive import summarise_regression

predictions, target = predict(routine.model, datamodule, "test")
mean, epistemic, total = summarise_regression(predictions, 1 / routine.noise_precision)
order = mean[:, 0].argsort()
shown = (
    values[order, 0] for values in (mean, 1.96 * total.sqrt(), 1.96 * epistemic.sqrt(), target)
)
_ = plot_intervals(*shown)

# %%
# How much of the variance comes from the estimators, and how much do the widths differ?

share, ratio = (epistemic / total).mean(), (total.max() / total.min()).sqrt()
print(f"the estimators' part of the variance: {share:.0%}")
print(f"the widest forecast is {ratio:.1f} times as wide as the narrowest")

assert share < 0.3
assert ratio < 2

# %%
# The forecasts are almost equally wide: most of the variance is noise, which is the same for every
# patient.
#
# Compare with a constant width
# -----------------------------
#
# Is a varying width better than a constant one? The paper's table answers this with a score. The
# *constant* twin of MCBN has the same means, and one width for all patients, fitted on the same
# validation data. The *optimum* has the width that is best in hindsight for each patient; its CRPS
# is 0.5949 times the absolute error. The score says how far MCBN has come from the constant towards
# the optimum:
#
# .. math::
#
#     100 \cdot \frac{\mathrm{CRPS}_\mathrm{const} - \mathrm{CRPS}}
#     {\mathrm{CRPS}_\mathrm{const} - \mathrm{CRPS}_\mathrm{opt}} .
#
# The twin shares MCBN's means, so it cannot show whether they are any better than the plain
# network's. We therefore add the plain network, with a constant width of its own. And because one
# split of a small table says little, we take five splits, and train a network on each.

from mcbn.results import Table, Tables


def constant_width(predictions):
    """The mean CRPS on the test data with the width that is best on the validation data."""
    (val, val_target), (test, test_target) = predictions
    width = fit_noise_precision(val, val_target) ** -0.5
    return gaussian_crps(test, torch.full_like(test, width), test_target).mean().item()


# %%
# Each split gives a row of the table: the CRPS of the plain network, of the constant twin, of MCBN
# and of the optimum, and the score.

rows, points, changes = [], [], []
for seed in range(5):
    split = TableDataModule(batch_size=32, seed=seed)
    split.setup()
    model, routine, trainer = train(split)
    alone = constant_width([predict(model, split, part) for part in ("val", "test")])
    results = wrap(model, routine, trainer, split)[0]["test/reg/CRPS"]
    means = []
    for part in ("val", "test"):
        predictions, target = predict(routine.model, split, part)
        means.append((predictions.mean(0), target))
    constant = constant_width(means)
    mean, target = means[1]
    optimum = 0.5949 * (mean - target).abs().mean().item()
    points.append(100 * (constant - results) / (constant - optimum))
    changes.append(results / alone - 1)
    scores = alone, constant, results, optimum, points[-1]
    rows.append([str(seed), *(f"{score:.1f}" for score in scores)])

# %%
# Then the table, the mean score, and how far MCBN changes the plain network's CRPS:

header = ("Split", "CRPS, plain", "constant", "MCBN", "optimum", "Score")
rich.print(Tables([Table("Five splits of the diabetes table", header, rows)]))
points, changes = torch.tensor(points), torch.tensor(changes)
print(f"score: {points.mean():.1f} +/- {points.std() / 5**0.5:.1f} (standard error)")
print(f"MCBN changes the plain network's CRPS by {changes.mean():+.1%}", end=", ")
print(f"from {changes.min():+.1%} to {changes.max():+.1%}")

assert abs(points.mean()) < 10
assert abs(changes.mean()) < 0.05

# %%
# Compared with the plain network, MCBN is neutral: over the five splits it changes the CRPS by less
# than 5 % on average; in this run, for the better on some splits and for the worse on others. A
# score of 100 would be perfect, and 0 is no gain at all; ours is within 10 of 0. The table in the
# paper's first version has scores from 0.2 to 8.5 on seven data sets, and −56 on the eighth. So
# MCBN's varying width is no cure for a noisy target. It is a small correction that needs no
# training.
#
# Use your own table
# ------------------
#
# Pass the path of a file with one row per line. The target is in the last column, or in the column
# whose number you pass. If a line is not a row, nothing is repaired silently: an error names the
# line.

from pathlib import Path
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder:
    path = Path(folder, "cars.csv")
    path.write_text("power,weight,consumption\n" + "90,1.2,6.1\n120,1.5,7.4\n" * 10)
    cars = TableDataModule(path, target=-1)
    cars.setup()
    print(cars.names, cars.num_features)

    path.write_text("power,weight,consumption\n90,1.2,6.1\n120,1.5\n")
    try:
        TableDataModule(path).setup()
    except ValueError as error:
        print(error)

# %%
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Understanding_tutorial_what_bn_remembers.py` shows on a simple curve
# where MCBN's width comes from, and
# :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_own_network.py` fits other networks and other
# kinds of batches.
