r"""
The paper's regression table, measured again
============================================

Before you trust a method, you may want to see its published numbers reproduced on another machine,
by another program. This page does that for the regression table of Monte Carlo Batch Normalization
(MCBN, `Teye et al., 2018 <https://arxiv.org/abs/1802.06455>`_), which compares MCBN and Monte Carlo
dropout (MCDO, `Gal and Ghahramani, 2016 <https://arxiv.org/abs/1506.02142>`_) on data sets of the
UCI repository.

Measuring the table takes hours, so its results are stored in a file that comes with the package.
One row is computed again here. Every seed is 0, and a CPU is enough.

How the table is measured
-------------------------

One command fetches the data that are missing, continues where it stopped, and writes the file::

    python -m mcbn.experiments.uci yacht boston --processes 2

Each data set is split at random five times, with a fifth of the rows for testing. On the rest,
five-fold cross-validation chooses the weight decay λ, the number of epochs, and either M, the size
of the mini-batches (MCBN), or the dropout rate (MCDO). The models of the folds also give τ, the
precision of the noise. Then five networks are trained with these settings, and each gives 500
samples of every test row. That makes 25 runs. The network has two dense layers of 50 units (100 on
Protein); for MCBN, each is followed by batch normalization.

Each run has two scores: CRPS, the *continuous ranked probability score*, in the target's unit, and
PLL, the *predictive log-likelihood*. Each is compared with two others. The *constant twin* has the
same means but one width for all rows, found in the same way. The *optimum* has the width that is
best for each row in hindsight. The *normalized* score is the share, in percent, of the way from the
one to the other:

.. math::

    100 \cdot \frac{\mathrm{score} - \mathrm{score}_\mathrm{const}}
    {\mathrm{score}_\mathrm{optimum} - \mathrm{score}_\mathrm{const}} .

So 0 means that the varying width is useless, and a negative score that it does harm.

The results
-----------
"""

# sphinx_gallery_tags = ["regression", "dropout and ensembles"]

import rich

from mcbn.experiments.table import score_table, selection_table
from mcbn.experiments.uci import read_results

results = read_results()
rich.print(score_table(results))

# %%
# Each mean of the 25 runs is shown with its standard error. The five seeds of a split share their
# test rows, so the error is that of five splits, not of 25 runs.
#
# In short: on Boston, Concrete and Kin8nm, MCBN's width goes 2 to 9 % of the way to the optimum. On
# the other data sets it goes less far or nowhere, and on Yacht it does harm by CRPS. Most of the
# published signs are reproduced, and two thirds of the numbers agree within a factor of 3.
#
# Compare with the published table
# --------------------------------
#
# We ask whether each number has the published sign, and how many times the published value it is. A
# number is *within noise* if it is at most two standard errors from 0.

import torch

from mcbn.experiments.protocol import METHODS
from mcbn.experiments.table import PUBLISHED, normalized, standard_error
from mcbn.results import Table, Tables

torch.manual_seed(0)

rows, drawn = [], {"CRPS": [], "PLL": []}
for name, entry in results.items():
    for method, title in METHODS.items():
        row = [f"{name}, {title}"]
        for score, value in zip(drawn, PUBLISHED[name][method], strict=True):
            runs = normalized(entry[method]["runs"], score.lower())
            mean, error = runs.mean().item(), standard_error(runs)
            sign = "same" if mean * value > 0 else "other"
            noise = "" if abs(mean) > 2 * error else ", within noise"
            row += [f"{sign}{noise}", f"{abs(mean / value):.1f}"]
            drawn[score].append((mean, value, error, sign, noise))
        rows.append(row)
header = ("Data set", "CRPS: sign", "times", "PLL: sign", "times")
rich.print(Tables([Table("Against the published table", header, rows)]))

# %%
# The figures show our normalized scores, with their standard errors, and the published ones.

from mcbn.plotting import plot_published

names = [row[0] for row in rows]
mean, value, error = torch.tensor([cell[:3] for cell in drawn["CRPS"]]).T
ax = plot_published(names, (mean, error), value, "CRPS, normalized, in percent")
ax.set_xscale("symlog", linthresh=1)

mean, value, error = torch.tensor([cell[:3] for cell in drawn["PLL"]]).T
ax = plot_published(names, (mean, error), value, "PLL, normalized, in percent")
ax.set_xscale("symlog", linthresh=1)

# %%
# The axes are linear from −1 to 1 and logarithmic beyond; otherwise Yacht alone would fill them.

cells = [cell for column in drawn.values() for cell in column]
agree = sum(sign == "same" for *_, sign, _ in cells)
clear = [sign for *_, sign, noise in cells if not noise]
print(f"{agree} of {len(cells)} numbers have the published sign")
print(f"{clear.count('same')} of the {len(clear)} that are clear of 0 have it")
near = sum(1 / 3 < mean / value < 3 for mean, value, *_ in cells)
print(f"{near} of {len(cells)} numbers are within a factor of 3 of the published ones")

boston = results["boston"]
crps = {method: normalized(boston[method]["runs"], "crps").mean() for method in METHODS}
assert 0 < crps["mcdo"] < crps["mcbn"] < 20
assert clear.count("same") > 0.7 * len(clear)
assert near > 0.6 * len(cells)

# %%
# Five numbers differ in sign from the paper, and four of them are clear of 0. Three of these are
# dropout's, and small: its PLL on Kin8nm, and its CRPS on Power and Protein. The fourth is MCBN's
# PLL on Concrete, −36 in the paper and 3 here. We do not know why; a single run with a τ that is
# far too high would be enough.
#
# On Boston, the two methods are in the published order, and all four numbers are within a factor of
# 2 of the published ones. One third of all numbers are off by more than a factor of 3. There are
# several possible reasons. Our splits are not theirs, and on the smallest data sets much depends on
# the splits. On the large ones, our cross-validation tries fewer values (see below). A score on a
# validation fold uses the mean of only 10 samples. Dropout's hidden layers have no bias here, since
# the protocol mentions none. And the published means of 25 runs have standard errors, too, which we
# do not know.
#
# Where MCBN helps
# ----------------
#
# The seeds of a split have their test rows in common, so we count splits, and test the difference
# between the two methods split by split. If the methods were equally good, either sign of each
# difference would be equally likely; p is the share of all choices of signs whose mean is at least
# as far from 0. With five splits there are 32 choices, so p is never below 2/32 = 0.0625, even if
# all splits agree: five splits are too few for a proof.

from mcbn.experiments.table import sign_flip_test

for name, entry in results.items():
    ours, dropout = (normalized(entry[method]["runs"], "crps") for method in METHODS)
    better = (ours.mean(1) > 0).sum()
    print(f"{name}: better than its twin on {better} of {len(ours)} splits", end="; ")
    difference = (ours - dropout).mean(1)
    print(f"MCBN - MCDO {difference.mean():+.1f}, p = {sign_flip_test(difference):.4f}")

for name in ("power", "wine"):
    std = results[name]["mcbn"]["std"]
    print(f"{name}: MCBN's deviation rises from {std[0]:.2f} to {std[-1]:.2f}")

# %%
# On Boston, Concrete and Kin8nm, MCBN's width goes 2 to 9 % of the way to the optimum, and gains in
# every split. It goes further than dropout's in every split on Boston and Kin8nm; on Concrete, that
# may be chance. On Protein, it goes less than 1 % of the way; there, the networks were still
# improving when they were stopped after 100 epochs, where the paper allows 2000. On Energy, four
# splits gain and one loses. On Power and Wine, the width is worth next to nothing: the
# cross-validation mostly prefers M = 512, and the width is nearly the same for all rows. On Yacht
# it does harm, at least to the CRPS. By CRPS, dropout is the better method on Wine and Yacht, in
# every split.

ranges = {"boston": (2, 12), "concrete": (2, 12), "kin8nm": (2, 12), "protein": (0, 1)}
for name, (least, most) in ranges.items():
    gain = normalized(results[name]["mcbn"]["runs"], "crps")
    assert least < gain.mean() < most
    assert (gain.mean(1) > 0).all()
for name in ("power", "wine"):
    assert abs(normalized(results[name]["mcbn"]["runs"], "crps").mean()) < 0.3

# %%
# Predicted widths and actual errors
# ----------------------------------
#
# If the widths are right, they match the errors. We sort the rows of each test by their predicted
# standard deviation and cut them into ten bins. For each bin, the figure shows this deviation and
# the actual error (root mean square), as means over the 25 runs. With perfect widths, the two lines
# would coincide.

import matplotlib.pyplot as plt

from mcbn.plotting import plot_series


def plot_bins(entry, unit):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    for (method, title), ax in zip(METHODS.items(), axes, strict=True):
        lines = {"predicted deviation": entry[method]["std"], "error": entry[method]["error"]}
        plot_series(range(1, 11), lines, ("tenth of the rows, the surest first", unit), ax)
        ax.set_title(title)
    return figure


plot_bins(boston, "1000 $").set_label(
    "Boston, MCBN and MC dropout: over ten bins the error rises from less than 2 to more than 5 "
    "thousand dollars, the predicted deviation from 2 to about 3."
)

# %%
# On Boston, both methods know which rows are hard. But both adjust the width far too little, MCBN
# slightly less so; hence the small positive scores.

for method in METHODS:
    std, error = boston[method]["std"], boston[method]["error"]
    print(f"{METHODS[method]}: deviation {std[0]:.1f} to {std[-1]:.1f}", end=", ")
    print(f"error {error[0]:.1f} to {error[-1]:.1f}")
    assert error[-1] > 2 * error[0]
    assert std[-1] / std[0] < error[-1] / error[0]

# %%
# Two scores that contradict each other: Yacht
# --------------------------------------------
#
# In the paper, MCBN's CRPS on Yacht is far below 0 and its PLL far above.

yacht = results["yacht"]
plot_bins(yacht, "resistance").set_label(
    "Yacht: MCBN's predicted deviation lies above the error in all bins and is more than "
    "twice as large in the last; MC dropout's lies far below the error in the last four bins."
)

# %%
# The same happens here, and the figure shows why. MCBN is too wide, most of all where it is unsure;
# dropout and the constant twin are far too narrow for the hard rows. CRPS penalizes the whole
# width. PLL depends only on how dense the samples are at the outcome: there, too wide costs little,
# and too narrow costs a lot.

taus = yacht["mcbn"]["selected"]["tau"]
print("tau of MCBN on the five splits:", *(f"{tau:.0f}" for tau in taus))
assert yacht["mcbn"]["std"][-1] > 1.3 * yacht["mcbn"]["error"][-1]
assert normalized(yacht["mcbn"]["runs"], "crps").mean() < 0
assert normalized(yacht["mcbn"]["runs"], "pll").mean() > 0

# %%
# The τ agree: 100 is the end of their range. The samples alone are wide enough and leave no room
# for noise.
#
# Compute one row again
# ---------------------
#
# We train the 25 networks of Boston's MCBN once more, with the stored settings. If Boston's file is
# missing and cannot be fetched, nothing is trained; then only the stored numbers are shown, and the
# figure below is left out.

from mcbn.experiments.data import load
from mcbn.experiments.uci import stored_tests

again = {"stored": boston["mcbn"]["runs"]}
try:
    data_set, *numbers = load("boston")
except OSError:
    print("Boston is not here, so nothing is trained")
else:
    tests = stored_tests("boston", "mcbn")
    runs = [test.run(data_set, *numbers) for test in tests]
    again["again"] = {name: [run[name] for run in runs] for name in runs[0]}

# %%
# If the networks were trained, the next cell prints their scores below the stored ones.

for name, found in again.items():
    scores = (normalized(found, score) for score in ("crps", "pll"))
    told = (f"{values.mean():.1f} +/- {standard_error(values):.1f}" for values in scores)
    print(f"{name}: RMSE {torch.tensor(found['rmse']).mean():.2f}, CRPS and PLL", *told)

# %%
# On the machine that made the file, all digits shown are equal. On another, rounding errors may
# grow over thousands of steps; then the numbers agree within their errors.

if "again" in again:
    for score in ("crps", "pll"):
        stored, found = (normalized(of, score) for of in again.values())
        assert abs(found.mean() - stored.mean()) < 3 * standard_error(stored)
    stored, found = (torch.tensor(of["rmse"]).mean() for of in again.values())
    assert abs(found / stored - 1) < 0.05

# %%
# The distance to the optimum
# ---------------------------
#
# These are the test rows of the five runs on the first split, the surest first: the error of each,
# the deviation that MCBN predicted, and the error of the 81 rows around it (root mean square).

from mcbn.plotting import plot_sorted_errors
from mcbn.predictive import summarise_regression

if "again" in again:
    widths, errors = [], []
    for samples, target in tests[0].predict(data_set, *numbers):
        mean, _, variance = summarise_regression(samples, 1 / tests[0].tau)
        widths.append(variance.sqrt())
        errors.append((target - mean).abs())
    width, order = torch.cat(widths).sort()
    error = torch.cat(errors)[order]
    square = error.square()[None]
    around = torch.nn.functional.avg_pool1d(square, 81, 1, 40, count_include_pad=False)[0].sqrt()
    lines = {"predicted deviation": width, "error of the rows around": around}
    plot_sorted_errors(error, lines, "target")

# %%
# In terms of CRPS, over all 25 runs:

runs = boston["mcbn"]["runs"]
names = {"constant twin": "crps_constant", "MCBN": "crps", "optimum": "crps_optimum"}
for name, key in names.items():
    print(f"CRPS, {name}: {torch.tensor(runs[key]).mean():.3f}")

# %%
# MCBN's width is a small step from the constant one, and the optimum is far away. Much of that
# distance is out of reach for any method: the optimum knows each error.
#
# What was left out
# -----------------
#
# The paper's grid has 15 decays from 10⁻¹ to 10⁻¹⁵, six values of M from 32 to 1024 as long as a
# fold has more rows than that, six dropout rates from 0.2 to 0.001, and up to 2000 epochs. (On
# Energy, M is at most 512: `the authors' configuration file
# <https://github.com/icml-mcbn/mcbn/blob/f62d71d4fd015f580d6d14cab0283236ca0f8bce/code/mcbn/setup.yml>`_
# says that 1024 would always be selected there. On so small a data set, that makes MCBN the same as
# its constant twin.) The five small data sets had the whole grid, which took 61 minutes on two
# cores. By our estimate, the three large ones would take days with it. They had part of it, in 50
# minutes, with options like these::
#
#     python -m mcbn.experiments.uci power --max-epochs 400 \
#         --decays 1e-2 1e-4 --batch-sizes 32 128 512 --rates 0.05 0.005 0.001

rows = []
for name, entry in results.items():
    given, row = entry["configuration"], [name]
    for values in (given["decays"], given["batch_sizes"], given["rates"]):
        row.append("all" if len(values) in (6, 15) else " ".join(f"{v:g}" for v in values))
    rows.append([*row, str(given["settings"]["max_epochs"])])
header = ("Data set", "λ", "M", "rate", "epochs")
rich.print(Tables([Table("The grids", header, rows)]))

# %%
# Are two decays enough? For each M on Yacht, this is the lowest error of the cross-validation
# against the decay, as the mean over the splits:

grid = torch.tensor(yacht["mcbn"]["grid"]).mean(0)
lines = {f"M = {m}": row for m, row in zip(yacht["mcbn"]["strengths"], grid, strict=True)}
ax = plot_series(range(1, 16), lines, ("−log₁₀ λ", "validation RMSE"))
ax.figure.set_label(
    "Validation RMSE on Yacht against the weight decay for three values of M. "
    "From a decay of 1e-6 on, the lines are level but for noise."
)

# %%
# From 10⁻⁶ on, the lines go up and down without a trend. So the large data sets had one decay that
# matters, 10⁻², and one that hardly does, 10⁻⁴. The small ones tell us what these two alone would
# have chosen, and how much higher the error on the folds would be. Some of that is luck: the lowest
# of 15 noisy numbers lies below the lowest of two.

for name, entry in results.items():
    decays = entry["configuration"]["decays"]
    if len(decays) < 15:
        continue
    few = [decays.index(decay) for decay in (1e-2, 1e-4)]
    for method, title in METHODS.items():
        grid = torch.tensor(entry[method]["grid"])
        loss = grid[..., few].amin((1, 2)) / grid.amin((1, 2)) - 1
        same = (grid.amin(2).argmin(1) == grid[..., few].amin(2).argmin(1)).sum()
        print(f"{name}, {title}: same M or rate on {same} of {len(grid)} splits", end="; ")
        print(f"error {100 * loss.mean():.1f} % higher")
        assert loss.mean() < 0.1

# %%
# Finally, this is what was selected: M or the rate on each of the five splits, and the ranges of λ
# and of the epochs.

rich.print(selection_table(results))

# %%
# On Power and Protein, the selection is mostly the largest M, the smallest rate and the longest
# training that were tried, so the whole grid would probably have found lower errors there.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_regression_tables.py` does all this by hand, on
# a table of your own if you like, and
# :ref:`sphx_glr_auto_tutorials_Bayesian_Methods_tutorial_comparison.py` compares MCBN with dropout
# and with several trained networks on images.
