"""
Signals: which cases a person should check
==========================================

A network names the tree from the outline of a leaf. Of 242 outlines, a botanist has time to check a
few dozen. Which ones? This page trains a network for signals on 200 outlines, ranks the others by
their uncertainty with and without Monte Carlo Batch Normalization (MCBN), and compares the two.

The outlines are real: the data set *OSULeaf* of the UCR archive, made for A. Grandhi's thesis
*Content-Based Image Retrieval: Plant Species Identification*. It comes with the package ``sktime``,
whose license is BSD 3-clause; the package states no license for the data itself. Nothing is
downloaded, and the seed is 0.

An outline as a signal
----------------------

The leaf is cut out of its picture, and its boundary is followed once around, which gives 427
numbers, scaled to mean 0 and variance 1. There are six kinds of trees, all maples and oaks. We
average each pair of neighboring values, which halves the work.
"""

# sphinx_gallery_tags = ["classification", "selective classification", "signals"]

import torch
from sktime.datasets import load_osuleaf
from torch.nn.functional import avg_pool1d

trees = ["vine maple", "Douglas maple", "bigleaf maple", "box elder", "Garry oak", "black oak"]


def load(split):
    series, names = load_osuleaf(split=split, return_X_y=True, return_type="numpy3D")
    return avg_pool1d(torch.from_numpy(series).float(), 2), torch.from_numpy(names.astype(int)) - 1


torch.manual_seed(0)
train_series, train_labels = load("train")
test_series, test_labels = load("test")
print(tuple(train_series.shape), tuple(test_series.shape))

# %%
# One outline of each tree:

import matplotlib.pyplot as plt

figure, axes = plt.subplots(2, 3, figsize=(7, 3), sharex=True, sharey=True, layout="constrained")
for label, ax in enumerate(axes.flat):
    ax.plot(train_series[train_labels == label][0, 0], lw=1)
    ax.set_title(trees[label], fontsize=10)
figure.set_label(
    "An outline of each of the six trees as a curve. Some have many sharp peaks, some few."
)

# %%
# A convolutional network for series
# ----------------------------------
#
# We use the fully convolutional network of `Wang, Yan and Oates (2017)
# <https://arxiv.org/abs/1611.06455>`_: three convolutions, each followed by batch normalization,
# and a mean over the whole length. Ours has a quarter of the channels. Because an outline is
# closed, the convolutions wrap around. ``BatchNorm1d`` normalizes each channel over the batch and
# the length of the series. A mini-batch of 16 series thus has :math:`16 \cdot 213 = 3408` values
# per channel, though they are not independent.

from torch import nn


def block(channels_in, channels, width):
    conv = nn.Conv1d(channels_in, channels, width, padding="same", padding_mode="circular")
    return conv, nn.BatchNorm1d(channels), nn.ReLU()


model = nn.Sequential(
    *block(1, 32, 8), *block(32, 64, 5), *block(64, 32, 3),
    nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, len(trees)),
)  # fmt: skip

# %%
# The network is trained for 30 epochs. Each time it sees an outline, the outline starts at a random
# point.

from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR


def turned(series):
    return torch.stack([s.roll(int(torch.randint(s.shape[-1], ())), -1) for s in series])


optimizer = torch.optim.Adam(model.parameters())
scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=30 * 13)
for _ in range(30):
    for batch in torch.randperm(200).split(16):
        optimizer.zero_grad()
        cross_entropy(model(turned(train_series[batch])), train_labels[batch]).backward()
        optimizer.step()
        scheduler.step()
model.eval()

# %%
# With and without MCBN
# ---------------------
#
# We make 32 *estimators*: each is the trained network, normalized with the statistics of one
# mini-batch of 16 training outlines, as many as in a training step.

from torch.utils.data import DataLoader, TensorDataset

from mcbn import MCBatchNorm
from mcbn.diagnostics import fit_report
from mcbn.predictive import summarise_classification

mc = MCBatchNorm(model, num_estimators=32, mc_batch_size=16)
mc.fit(DataLoader(TensorDataset(train_series))).eval()
with torch.no_grad():
    mcbn, plain = (summarise_classification(network(test_series)) for network in (mc, model))

for name, summary in {"plain": plain, "MCBN": mcbn}.items():
    right = summary.label == test_labels
    nll = -summary.probs[range(242), test_labels].log().mean()
    print(f"{name:6} right {right.float().mean():.1%}, negative log-likelihood {nll:.3f}")

# %%
# In this run, MCBN's negative log-likelihood is higher. Its statistics are fit for use: the
# *shift*, the distance from the trained mean to that of the estimators, lies below the *spread* of
# the estimators, except in the first layer, which has no spread. Every outline has mean 0, and so
# has each channel of a convolution that wraps around, apart from its bias.

for name, shift, spread, _ in zip(*fit_report(mc), strict=True):
    print(f"layer {name}: shift {shift:.3f}, spread {spread:.3f} standard deviations")

# %%
# Rank the outlines by uncertainty
# --------------------------------
#
# We could hand over the outlines with the lowest confidence, or those with the highest mutual
# information, which measures how far the estimators disagree. Here are the six of which the plain
# network is least sure.

unsure = plain.confidence.topk(6, largest=False).indices
for i in unsure:
    told = f"{trees[plain.label[i]]} at {plain.confidence[i]:.0%}"
    print(f"{told:24} is a {trees[test_labels[i]]}")

# %%
# The *coverage* is the share of outlines that the network answers, the *risk* the share of errors
# among them.

from mcbn.metrics import risk_coverage_curve
from mcbn.plotting import plot_risk_coverage

plain_right, mcbn_right = (summary.label == test_labels for summary in (plain, mcbn))
rankings = {
    "plain, confidence": (plain.confidence, plain_right),
    "MCBN, confidence": (mcbn.confidence, mcbn_right),
    "MCBN, mutual information": (-mcbn.mutual_information, mcbn_right),
}
# %%
# The figure shows one against the other for three rankings.

ax = None
for name, ranking in rankings.items():
    ax = plot_risk_coverage(*risk_coverage_curve(*ranking), ax, label=name)
ax.legend(frameon=False)
ax.figure.set_label(
    "Risk against coverage: the two confidences lie close together and reach low risks early; the "
    "mutual information lies above them."
)

# %%
# Intervals from 242 outlines
# ---------------------------
#
# The area under such a curve (AURC) is the mean risk over all coverages. To see how certain it is,
# we draw 500 new test sets from the test set, with replacement, and compute the areas and their
# differences on each. The middle 95 % of the values are the interval.


def aurc(ranking, chosen):
    confidence, right = ranking
    return risk_coverage_curve(confidence[chosen], right[chosen])[1].mean()


draws = torch.randint(242, (500, 242))
areas = {
    name: 100 * torch.stack([aurc(ranking, chosen) for chosen in draws])
    for name, ranking in rankings.items()
}


def interval(values):
    low, high = values.quantile(0.025), values.quantile(0.975)
    return f"{values.mean():+.2f} from {low:+.2f} to {high:+.2f}"


for name, area in areas.items():
    print(f"{name:26} AURC in percent {interval(area)}")
for name in list(rankings)[1:]:
    print(f"{name:26} minus plain     {interval(areas[name] - areas['plain, confidence'])}")

# %%
# What the ranking is worth
# -------------------------
#
# A person who checks the fifth with the lowest confidence finds most of the errors.

found = {}
for name, (confidence, right) in rankings.items():
    handed = confidence.argsort()[:48]
    found[name] = (~right)[handed].sum() / (~right).sum()
    print(f"{name:26} the least sure 48 hold {found[name]:.0%} of the errors")

# %%
# So the ranking is worth a lot, and MCBN adds nothing to it. MCBN's confidence ranks the leaves
# about as well as the plain network's, which is free, and the mutual information ranks them worst.
# It leaves out the doubt that all estimators share, such as about a leaf that might be of either of
# two oaks.

for name in ("plain, confidence", "MCBN, confidence"):
    assert found[name] > 0.5
change = areas["MCBN, confidence"].mean() - areas["plain, confidence"].mean()
assert change.abs() < 0.75
assert areas["plain, confidence"].mean() / areas["MCBN, mutual information"].mean() < 1

# %%
# When to use it
# --------------
#
# A network for signals is wrapped like one for images: the statistics of ``BatchNorm1d`` on
# *(series, channels, length)* are taken as in training. Rank by the plain network's confidence
# first. Pay for another ranking only if the intervals on your own data show that it is better.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_selective_classification.py` sets a
# threshold that keeps a promise, and
# :ref:`sphx_glr_auto_tutorials_In_Practice_tutorial_conformal.py` predicts sets of classes.
