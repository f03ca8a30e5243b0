"""
Signals, and which to hand to a person
======================================

A network reads 242 outlines of leaves and names the tree. A botanist has time for a few dozen of
them: which ones? This page trains a network for signals on 200 outlines, lets it choose with and
without MCBN, and looks whether MCBN chooses better.

The outlines are real: *OSULeaf* of the UCR archive, made for A. Grandhi's thesis *Content-Based
Image Retrieval: Plant Species Identification*. They come inside the package ``sktime``, whose
license is BSD 3-clause (of the data's own it says nothing), so that nothing is downloaded. The seed
is 0.

An outline as a signal
----------------------

A picture of a leaf is cut out, and its boundary followed once around: a number at each of 427
places, brought to mean 0 and variance 1. There are six trees, maples and oaks. We average pairs of
neighbours, which halves the work.
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

import matplotlib.pyplot as plt

figure, axes = plt.subplots(2, 3, figsize=(7, 3), sharex=True, sharey=True, layout="constrained")
for label, ax in enumerate(axes.flat):
    ax.plot(train_series[train_labels == label][0, 0], lw=1)
    ax.set_title(trees[label], fontsize=10)
figure.set_label(
    "An outline of each of the six trees as a curve. Some have many sharp peaks, some few."
)

# %%
# The network
# -----------
#
# The fully convolutional network of `Wang, Yan and Oates (2017)
# <https://arxiv.org/abs/1611.06455>`_: three convolutions, each with batch normalization, and a
# mean over the whole length. Ours has a quarter of its channels. As an outline is closed, the
# convolutions go around the end. ``BatchNorm1d`` normalizes each channel over the batch and the
# length of the series, so that 16 series of 213 values make a mini-batch of 3,408 values a channel,
# though not of independent ones.

from torch import nn


def block(channels_in, channels, width):
    conv = nn.Conv1d(channels_in, channels, width, padding="same", padding_mode="circular")
    return conv, nn.BatchNorm1d(channels), nn.ReLU()


model = nn.Sequential(
    *block(1, 32, 8), *block(32, 64, 5), *block(64, 32, 3),
    nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, len(trees)),
)  # fmt: skip

# %%
# It is trained for 30 epochs. Each time an outline starts at another point.

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
# The statistics are fit for use: the trained mean lies within the spread of the mini-batches. In
# the first layer there is none. As every outline has mean 0, so has each channel of a convolution
# that goes around, but for its bias.

for name, shift, spread, _ in zip(*fit_report(mc), strict=True):
    print(f"layer {name}: shift {shift:.3f}, spread {spread:.3f} standard deviations")

# %%
# Which to hand over?
# -------------------
#
# Those with the lowest confidence, the highest entropy, or the highest mutual information of the
# estimators. Here are the six of which the plain network is least sure.

unsure = plain.confidence.topk(6, largest=False).indices
for i in unsure:
    told = f"{trees[plain.label[i]]} at {plain.confidence[i]:.0%}"
    print(f"{told:24} is a {trees[test_labels[i]]}")

# %%
# The *risk* is the share of errors among those that the network answers, the *coverage* the share
# that it answers.

from mcbn.metrics import risk_coverage_curve
from mcbn.plotting import plot_risk_coverage

plain_right, mcbn_right = (summary.label == test_labels for summary in (plain, mcbn))
rankings = {
    "plain, confidence": (plain.confidence, plain_right),
    "MCBN, confidence": (mcbn.confidence, mcbn_right),
    "MCBN, mutual information": (-mcbn.mutual_information, mcbn_right),
}
ax = None
for name, ranking in rankings.items():
    ax = plot_risk_coverage(*risk_coverage_curve(*ranking), ax, label=name)
ax.legend(frameon=False)
ax.figure.set_label(
    "Risk against coverage: the two confidences lie close together and reach low risks early; the "
    "mutual information lies above them."
)

# %%
# How sure is that, with 242 leaves?
# ----------------------------------
#
# The area under such a curve (AURC) is the mean risk over all coverages. We draw 500 test sets from
# the test set, with replacement, and compute the differences on each: the middle 95 % of them are
# the interval.


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
# What it is worth, and what MCBN adds
# ------------------------------------
#
# A person who takes the least sure fifth finds most of the errors.

found = {}
for name, (confidence, right) in rankings.items():
    handed = confidence.argsort()[:48]
    found[name] = (~right)[handed].sum() / (~right).sum()
    print(f"{name:26} the least sure 48 hold {found[name]:.0%} of the errors")

# %%
# So it is worth a lot, and MCBN adds nothing to it. Its confidence puts the leaves into nearly the
# same order as the plain network's, which is there for free, and the order by mutual information is
# the worst of the three. It leaves out that part of the doubt on which the estimators agree, and a
# leaf between two oaks is that kind of case.

for name in ("plain, confidence", "MCBN, confidence"):
    assert found[name] > 0.5
change = areas["MCBN, confidence"].mean() - areas["plain, confidence"].mean()
assert change.abs() < 0.75
assert areas["MCBN, mutual information"].mean() / areas["plain, confidence"].mean() > 1

# %%
# What to take along
# ------------------
#
# Wrapping a network for signals takes no more than one for images: ``BatchNorm1d`` on *(series,
# channels, length)* is drawn as it was trained. Rank by the plain confidence first. Only where the
# intervals say that another order is better, and on data of your own, pay for it.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_selective_classification.py` sets a
# threshold that keeps a promise, and
# :ref:`sphx_glr_auto_tutorials_In_Practice_tutorial_conformal.py` answers with a set of classes.
