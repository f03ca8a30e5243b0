r"""
Regression with real tables
===========================

Predicting one column of a table from the others is among the most common tasks there are, and the
paper of Monte Carlo Batch Normalization (MCBN, `Teye et al., 2018
<https://arxiv.org/abs/1802.06455>`_) measured the method on it. A prediction here is a mean and a
width. How do we tell a good width from a bad one, and are MCBN's any good?

We use the diabetes table that comes with scikit-learn: for 442 patients, ten measurements and the
progress of the disease a year later. The seed is 0, and a CPU is enough.

The table
---------

The datamodule splits the rows into three parts, and standardizes all columns with the means and
standard deviations of the training part alone.
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
# The network and its training
# ----------------------------
#
# The network has the two dense layers of 50 units of the paper, each followed by batch
# normalization. The loss is the squared error. The routine multiplies by ``target_scale`` before it
# measures anything, so the results have the table's own unit.

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
# The noise in the target
# -----------------------
#
# No network can predict everything about a patient. The paper calls the precision of what is left
# :math:`\tau`, so that its variance is :math:`1 / \tau`. We do not know it, but we have validation
# data. There we take the :math:`\tau` that makes the mean CRPS smallest, the *continuous ranked
# probability score*: for a forecast with the distribution function :math:`F` and an outcome
# :math:`y`,
#
# .. math::
#
#     \mathrm{CRPS}(F, y) = \int (F(z) - [z \ge y])^2 \, dz .
#
# It has the unit of the target, and for a forecast without width it is the absolute error. Both a
# wrong mean and a wrong width make it larger.

from mcbn.metrics import gaussian_crps
from mcbn.plotting import plot_series
from mcbn.predictive import fit_noise_precision


def predict(model, datamodule, part):
    features, target = datamodule.dataset(part).tensors
    with torch.no_grad():
        both = model(features), target
    return (values * datamodule.target_std + datamodule.target_mean for values in both)


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

routine.noise_precision = tau
plain = trainer.test(routine, datamodule, verbose=False)
print(f"standard deviation of the noise: {tau**-0.5:.0f}")

best = gaussian_crps(predictions, torch.full_like(target, tau**-0.5), target).mean()
torch.testing.assert_close(best, min(best, *scores), rtol=1e-4, atol=0)

# %%
# What MCBN adds
# --------------
#
# A hundred estimators from mini-batches of 32, as in the training. Their variance is a part of the
# width, so less is left for the noise, and :math:`\tau` has to be found anew.

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
# RMSE is the error of the mean alone. PLL is the predictive log likelihood (higher is better), the
# log of the density that the mixture of the estimators gives to the outcome:
#
# .. math::
#
#     \mathrm{PLL} = \log \frac{1}{S} \sum_{s} \mathcal{N}(y; f_s(x), 1 / \tau) .
#
# Coverage is the share of outcomes inside the central 95 % of the forecast; well below 95 % the
# widths are too narrow, well above too wide.

for results in (plain[0], mcbn[0]):
    assert results["test/reg/Coverage"] > 0.8
    assert results["test/reg/RMSE"] < 1.1 * datamodule.target_std
assert abs(mcbn[0]["test/reg/CRPS"] / plain[0]["test/reg/CRPS"] - 1) < 0.15

# %%
# Forecasts, patient by patient
# -----------------------------
#
# Below are the test patients in the order of their forecasts, each with the central 95 %; the thick
# part is what the estimators' spread alone would give.

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

share, ratio = (epistemic / total).mean(), (total.max() / total.min()).sqrt()
print(f"the estimators' part of the variance: {share:.0%}")
print(f"the widest forecast is {ratio:.1f} times as wide as the narrowest")

assert share < 0.3
assert ratio < 2

# %%
# The forecasts are nearly of one width: most of the variance is noise, the same for everybody.
#
# Is a varying width better than a constant one?
# ----------------------------------------------
#
# That is the question of the paper's table. The *constant* twin of MCBN has the same means, and one
# width for all, chosen on the same validation data. The *optimum* has, for each patient, the width
# that is best in hindsight; its CRPS is 0.5949 times the absolute error. The score says how much of
# the way from the constant to the optimum MCBN has gone:
#
# .. math::
#
#     100 \cdot \frac{\mathrm{CRPS}_\mathrm{const} - \mathrm{CRPS}}
#     {\mathrm{CRPS}_\mathrm{const} - \mathrm{CRPS}_\mathrm{opt}} .
#
# The twin shares MCBN's mean, so it cannot tell whether this mean is any better than that of the
# plain network. So the plain network stands beside them, with a width of its own. And one split of
# a small table says little, so we take five splits, with a training for each.

from mcbn.results import Table, Tables


def constant_width(predictions):
    """The mean CRPS on the test data with the width that is best on the validation data."""
    (val, val_target), (test, test_target) = predictions
    width = fit_noise_precision(val, val_target) ** -0.5
    return gaussian_crps(test, torch.full_like(test, width), test_target).mean().item()


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

header = ("Split", "CRPS, plain", "constant", "MCBN", "optimum", "Score")
rich.print(Tables([Table("Five splits of the diabetes table", header, rows)]))
points, changes = torch.tensor(points), torch.tensor(changes)
print(f"score: {points.mean():.1f} +/- {points.std() / 5**0.5:.1f} (standard error)")
print(f"MCBN changes the plain network's CRPS by {changes.mean():+.1%}", end=", ")
print(f"from {changes.min():+.1%} to {changes.max():+.1%}")

assert abs(points.mean()) < 10
assert abs(changes.mean()) < 0.05

# %%
# Against the plain network, MCBN is neutral: over the five splits its CRPS changes by less than 5 %
# on average, for the better on some splits and for the worse on others. In the score, 100 would be
# perfect and 0 is no gain at all; ours is within 10 of nothing. The paper's
# own first table has scores from 0.2 to 8.5 on seven data sets, and −56 on the eighth. So a varying
# width from MCBN is no cure for a noisy target; it is a small correction that costs no training.
#
# A table of your own
# -------------------
#
# Give its path: a file with one row per line, and the target in the last column or in the one whose
# number you give. Lines that are no row are named in the error, since a silent repair would be
# worse.

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
# :ref:`sphx_glr_auto_tutorials_Understanding_tutorial_what_bn_remembers.py` shows where the width
# of MCBN comes from, on a curve that can be drawn, and
# :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_own_network.py` fits other networks and other
# kinds of batches.
