"""
Segmentation: a map of doubt
============================

A network that segments an image makes a prediction for every pixel, so its uncertainty is a map. On
this page a small U-Net learns to find digits in cluttered scenes and to label each pixel with the
digit that it belongs to. Monte Carlo Batch Normalization (MCBN) then shows where the network is in
doubt. We measure whether that is where the errors are.

The scenes are made from the digits that come with the package: 1,280 training scenes from 4,000
digits, and 64 test scenes from 1,000 others. The seed is 0.

The scenes
----------

A scene shows five digits, shrunk to half their size and placed at random on 32 by 32 pixels. Later
digits lie on top of earlier ones, and noise covers everything. A pixel's class is its digit plus
one; 0 is the background.
"""

# sphinx_gallery_tags = ["segmentation", "own networks", "selective classification"]

import torch
from torch.nn.functional import avg_pool2d

from mcbn import MNISTDataModule

torch.manual_seed(0)
datamodule = MNISTDataModule(source="sample")


def scenes(count, digits):
    small = avg_pool2d(digits.images / 255, 2)
    pictures, layers = torch.zeros(2, count, 32, 32)
    truth = torch.zeros(count, 32, 32, dtype=torch.long)
    for picture, classes, layer in zip(pictures, truth, layers, strict=True):
        for i in torch.randint(len(small), (5,)):
            top, left = torch.randint(32 - 14 + 1, (2,)).tolist()
            place = slice(top, top + 14), slice(left, left + 14)
            picture[place] = torch.maximum(picture[place], small[i])
            classes[place] = torch.where(small[i] > 0.4, digits.labels[i] + 1, classes[place])
            layer[place] += small[i] > 0.4
    return (0.8 * pictures + 0.2 * torch.rand(pictures.shape)).unsqueeze(1), truth, layers


# %%
# ``layers`` counts the digits on each pixel, to find overlaps later.

train_scenes, train_truth, _ = scenes(1280, datamodule.dataset("train"))
test_scenes, test_truth, test_layers = scenes(64, datamodule.dataset("test"))
background = (test_truth == 0).float().mean()
print(tuple(train_scenes.shape), f"{background:.0%} of the test pixels are background")

# %%
# Train a U-Net
# -------------
#
# A U-Net processes the scene at three resolutions and combines the results at the full one. Ours
# has a batch norm layer after each of its ten 3 by 3 convolutions. It is trained with the
# cross-entropy of each pixel, for 9 epochs in batches of 16 scenes.

from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from mcbn.training.models import unet

model = unet(in_channels=1, num_classes=11, width=16)
optimizer = torch.optim.Adam(model.parameters())
scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=9 * 80)
for _ in range(9):
    for batch in torch.randperm(1280).split(16):
        optimizer.zero_grad()
        cross_entropy(model(train_scenes[batch]), train_truth[batch]).backward()
        optimizer.step()
        scheduler.step()
model.eval()

# %%
# Wrap it
# -------
#
# The U-Net is wrapped like any other network. ``fit`` draws a mini-batch of 16 training scenes, as
# many as in a training step, for each of 16 *estimators*: the trained network, normalized with the
# statistics of one mini-batch.

from torch.utils.data import DataLoader, TensorDataset

from mcbn import MCBatchNorm

mc = MCBatchNorm(model, num_estimators=16, mc_batch_size=16)
mc.fit(DataLoader(TensorDataset(train_scenes)))

with torch.no_grad():
    logits = mc(test_scenes)
    plain_logits = model(test_scenes)
print(tuple(logits.shape))

# %%
# The axes are estimators, scenes, classes, height and width. The functions of
# :mod:`mcbn.predictive` expect *(estimators, examples, classes)*, so each pixel becomes an example
# of its own. We call the pixels of the digits the *ink*.

from mcbn.predictive import summarise_classification


def pixels(logits):
    return logits.movedim(-3, -1).flatten(-4, -2)


summary = summarise_classification(pixels(logits))
truth = test_truth.flatten()
wrong = summary.label != truth
ink = truth > 0
print(
    f"wrong: {wrong.float().mean():.1%} of all pixels, {wrong[ink].float().mean():.0%} of the ink"
)

# %%
# The map of doubt
# ----------------
#
# Here are four test scenes. In the rows *truth* and *prediction*, the color tells which digit it
# is. The *entropy* measures the whole doubt about a pixel, the *mutual information* the part of it
# that comes from disagreement among the estimators.

from mcbn.plotting import plot_maps


def maps(values):
    return values.view(test_truth.shape)[:4]


axes = plot_maps(
    test_scenes[:4, 0],
    {
        "truth": test_truth[:4],
        "prediction": maps(summary.label),
        "errors": maps(wrong),
        "entropy": maps(summary.entropy),
        "mutual inf.": maps(summary.mutual_information),
    },
)
axes[0, 0].figure.set_label(
    "Four scenes in columns. From top to bottom: the scene, the true classes as colors, the "
    "predicted ones, the wrong pixels, the entropy and the mutual information. Both are high on "
    "parts of the digits that are misread and where digits overlap, and low on the background."
)

# %%
# Doubt and errors
# ----------------
#
# The table shows the mean doubt where the prediction is wrong and where it is right. The AUROC is
# the chance that a wrong pixel gets more doubt than a right one; a coin would score 0.5.

import rich
from torchmetrics.functional.classification import binary_auroc

from mcbn.results import Table, Tables

doubts = {
    "plain entropy": summarise_classification(pixels(plain_logits)).entropy,
    "MCBN entropy": summary.entropy,
    "MCBN mutual information": summary.mutual_information,
}


def row(name):
    doubt = doubts[name]
    means = doubt[wrong].mean(), doubt[~wrong].mean()
    return [name, *(f"{m:.3f}" for m in means), f"{binary_auroc(doubt, wrong.long()):.3f}"]


header = ["doubt", "where wrong", "where right", "AUROC"]
rich.print(Tables([Table("64 scenes, pixel by pixel", header, [row(name) for name in doubts])]))

# %%
# The doubt does lie where the errors are.

for doubt in doubts.values():
    assert doubt[wrong].mean() > 3 * doubt[~wrong].mean()
    assert binary_auroc(doubt, wrong.long()) > 0.8

# %%
# But most pixels are background, and easy. On the ink alone, it is harder to tell misread strokes
# from well-read ones: the AUROC is lower. That of the mutual information also varies from training
# to training, and can fall below 0.5; those of the entropies stay above 0.6.

for name, doubt in doubts.items():
    print(f"{name:24} AUROC on the ink {binary_auroc(doubt[ink], wrong[ink].long()):.3f}")

for name in ("plain entropy", "MCBN entropy"):
    assert binary_auroc(doubts[name][ink], wrong[ink].long()) > 0.6

# %%
# Leave doubtful pixels out
# -------------------------
#
# Doubtful pixels can be left to a person. The figure shows the share of errors among the pixels
# that are kept (the *risk*) against the share that is kept (the *coverage*), if the most doubtful
# go first.

from mcbn.metrics import risk_coverage_curve
from mcbn.plotting import plot_risk_coverage

ax = None
for name, doubt in doubts.items():
    ax = plot_risk_coverage(*risk_coverage_curve(-doubt, ~wrong), ax=ax, label=name)
ax.set_xlim(0.8, 1)
ax.legend(frameon=False)
ax.figure.set_label(
    "Share of wrong pixels among those kept, against the share kept, from 0.8 to 1, for three "
    "measures of doubt. All are near zero at first, rise steeply at the end and lie close together."
)

# %%
# The most doubtful tenth of the pixels holds most of the errors. But MCBN's entropy finds them no
# better than the plain network's: on these scenes the two differ by less than 0.02 in AUROC.

for name, doubt in doubts.items():
    doubtful = doubt > doubt.sort().values[int(0.9 * len(doubt))]
    print(f"{name:24} the top tenth holds {wrong[doubtful].sum() / wrong.sum():.0%} of the errors")
    assert wrong[doubtful].sum() > 0.5 * wrong.sum()

aurocs = [binary_auroc(doubts[f"{kind} entropy"], wrong.long()) for kind in ("plain", "MCBN")]
assert abs(aurocs[0] - aurocs[1]) < 0.02

# %%
# What the mutual information adds
# --------------------------------
#
# The mutual information is often read as the network's own doubt, and the rest of the entropy as
# the ambiguity of the picture. If that were so, its share of the entropy would be smaller where
# digits overlap, since nobody can know which of them is on top. Here is the share near overlaps and
# elsewhere.

from torch.nn import MaxPool2d

near = MaxPool2d(3, stride=1, padding=1)((test_layers > 1).float()).flatten() > 0
shares = {}
for name, chosen in {"near overlaps": near, "elsewhere": ~near}.items():
    shares[name] = summary.mutual_information[chosen].sum() / summary.entropy[chosen].sum()
    print(f"{name:14} mutual information is {shares[name]:.1%} of the entropy")

assert max(shares.values()) < 0.1
assert abs(shares["near overlaps"] - shares["elsewhere"]) < 0.02

# %%
# Both shares are below a tenth, and nearly the same. So the last row of the maps shows little more
# than the entropy on another scale, and does not tell one kind of doubt from the other.
#
# When to use it
# --------------
#
# Not on scenes like these: to find errors in images like those of the training, the plain entropy
# is enough. This page shows how to get a map of MCBN's doubt. Measure on your own images, as above,
# whether it tells you more than the plain one.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_selective_classification.py` chooses
# a threshold for declining to answer, and
# :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_deployment.py` deploys a network.
