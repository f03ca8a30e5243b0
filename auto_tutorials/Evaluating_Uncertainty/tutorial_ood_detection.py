"""
Digits that are no digits
=========================

Show a shirt to a network that reads digits, and it reads a digit. It cannot do otherwise: its
probabilities sum to one over the ten digits. But it may be unsure, and an application could refuse
such *out-of-distribution* (OOD) images if it could tell them by a number. This page compares four
such numbers, with and without Monte Carlo Batch Normalization (MCBN), and then looks at how far the
ranking can be trusted.

The data come with the package: 4,000 digits of MNIST to train on, 1,000 to test on, and 1,000
pieces of clothing from the test images of FashionMNIST. The seed is 0. No GPU is needed.

What is a digit, and what is not?
---------------------------------
"""

# sphinx_gallery_tags = ["classification", "out of distribution"]

import torch

from mcbn import MNISTDataModule
from mcbn.plotting import plot_images

torch.manual_seed(0)
datamodule = MNISTDataModule(source="sample", random_crop=False)
digits, clothes = datamodule.dataset("test"), datamodule.dataset("ood")
axes = plot_images(torch.cat([digits.images[:4], clothes.images[:4]]) / 255, titles=[""] * 8)
axes[0].figure.set_label("Four handwritten digits, then four pieces of clothing.")

# %%
# Which network?
# --------------
#
# A LeNet, trained for 400 steps. We may need a second one, so the training is a function.

from torch import nn

from mcbn import ClassificationRoutine, Trainer, lenet, optim_lenet


def train(datamodule):
    routine = ClassificationRoutine(
        num_classes=datamodule.num_classes,
        model=lenet(datamodule.num_channels, datamodule.num_classes),
        loss=nn.CrossEntropyLoss(),
        optim_recipe=lambda model: optim_lenet(model, num_steps=400),
    )
    trainer = Trainer(max_steps=400, enable_model_summary=False)
    trainer.fit(routine, datamodule.train_dataloader())
    return routine.model.eval()


@torch.no_grad()
def predict(network, loader):
    return torch.cat([network(images) for images, _ in loader], dim=-2)


# %%
# MCBN makes 16 estimators of it, each with the batch statistics of 16 training digits. The digits
# and the clothes go through all of them.

from mcbn import MCBatchNorm

model = train(datamodule)
mc = MCBatchNorm(model, num_estimators=16, mc_batch_size=16).fit(datamodule.train_dataloader())

logits = predict(mc, datamodule.test_dataloader())
ood_logits = predict(mc, datamodule.ood_dataloader())
print(tuple(logits.shape), tuple(ood_logits.shape))

# %%
# Which numbers could tell?
# -------------------------
#
# Each score is high where an image is suspicious.
#
# - *max-softmax*: one minus the probability of the most probable digit (`Hendrycks and Gimpel, 2017
#   <https://arxiv.org/abs/1610.02136>`_).
# - *entropy* of the probabilities. It takes all ten of them into account.
# - *mutual information*: the part of the entropy that comes from the estimators' differing.
# - *energy*: :math:`-\log\sum_k e^{z_k}` of the logits :math:`z` (`Liu et al., 2020
#   <https://arxiv.org/abs/2010.03759>`_). The softmax forgets how large the logits are; the energy
#   does not. With several estimators we take its mean.

from mcbn.predictive import summarise_classification


def scores(logits):
    summary = summarise_classification(logits)
    values = {"max-softmax": 1 - summary.confidence, "entropy": summary.entropy}
    energy = -logits.logsumexp(-1)
    if logits.ndim == 2:
        return values | {"energy": energy}
    return values | {"mutual information": summary.mutual_information, "energy": energy.mean(0)}


inside, outside = scores(logits), scores(ood_logits)

# %%

import matplotlib.pyplot as plt

from mcbn.plotting import plot_histograms

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, name in zip(axes, ["entropy", "energy"], strict=True):
    plot_histograms({"digits": inside[name], "clothes": outside[name]}, name, ax)
figure.set_label(
    "Histograms of entropy and energy for digits and clothes: both are higher for most clothes, "
    "and the energy has less overlap."
)

# %%
# How is it measured?
# -------------------
#
# A threshold on a score flags some clothes, rightly, and some digits, wrongly. The *ROC* curve
# shows both shares for all thresholds. Its area, *AUROC*, is the probability that a piece of
# clothing has a higher score than a digit; one half is chance.

from torchmetrics.functional.classification import binary_roc

from mcbn.plotting import plot_roc

is_ood = torch.arange(len(digits) + len(clothes)) >= len(digits)


def ranks(values):
    # torchmetrics squashes scores outside [0, 1] with a sigmoid, which makes large ones equal.
    return values.unique(return_inverse=True)[1] / len(values)


curves = {
    name: binary_roc(ranks(torch.cat([inside[name], outside[name]])), is_ood.long())[:2]
    for name in inside
}
ax = plot_roc(curves)
ax.figure.set_label("ROC curves: the one of the energy is highest, mutual information's is lowest.")

# %%
# Two more numbers look at one part of it. *AUPR*, the average precision, asks how many of the
# flagged images are clothes. *FPR95* is the share of digits that are flagged when the threshold is
# as low as it takes to flag 95 % of the clothes. Mind the directions: the first two should be high,
# the last one low.

import rich
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from mcbn.metrics import FPR95
from mcbn.trainer import Table, Tables


def detect(inside, outside):
    rows = {}
    for name in inside:
        values = torch.cat([inside[name], outside[name]])
        fpr95 = FPR95()
        fpr95.update(values, is_ood)
        ranked, target = ranks(values), is_ood.long()
        auroc, aupr = binary_auroc(ranked, target), binary_average_precision(ranked, target)
        rows[name] = auroc.item(), aupr.item(), fpr95.compute().item()
    return rows


def show(caption, header, rows):
    cells = [(name, *(f"{100 * value:.1f} %" for value in row)) for name, row in rows.items()]
    rich.print(Tables([Table(caption, header, cells)]))


header = "Score", "AUROC", "AUPR", "FPR95"
mcbn = detect(inside, outside)
show("MCBN", header, mcbn)

# %%
# Is it MCBN that finds them?
# ---------------------------
#
# The plain network has three of the four scores as well. It has no mutual information, as it is a
# single one.

from mcbn.predictive import disagreement, probabilities

loaders = datamodule.test_dataloader(), datamodule.ood_dataloader()
plain = detect(*(scores(predict(model, loader)) for loader in loaders))
show("Plain network", header, plain)

agreement = 1 - disagreement(probabilities(ood_logits)).mean()
print(f"Two estimators read the same digit in {agreement:.0%} of the clothes.")

assert abs(mcbn["entropy"][0] - plain["entropy"][0]) < 0.02
assert plain["energy"][0] > plain["entropy"][0] > plain["max-softmax"][0]
assert mcbn["mutual information"][0] < mcbn["entropy"][0] - 0.01
assert agreement > 0.6

# %%
# No. The plain network finds the clothes just as well, and the energy, which needs no estimators,
# is best. Mutual information comes last. It sees only where the estimators differ, and two of them
# read the same digit in most of the clothes; the doubt that they share escapes it.
#
# Is the energy the best score, then?
# -----------------------------------
#
# On these clothes, with this network. We change two things. The network: a second one is trained
# with random crops. It reads the digits just as well.

cropped = MNISTDataModule(source="sample", random_crop=True)
networks = {"no crops": model, "random crops": train(cropped)}

for name, network in networks.items():
    readings = predict(network, datamodule.test_dataloader()).argmax(-1)
    accuracy = (readings == digits.labels).float().mean()
    print(f"{name:13} {accuracy:.1%} of the digits right")
    assert accuracy > 0.94

# %%
# And the images: beside the clothes we take the digits with black and white exchanged, the digits
# in a mirror, and noise.

pixels = digits.images / 255
kinds = {
    "clothes": clothes.images / 255,
    "inverted": 1 - pixels,
    "mirrored": pixels.flip(-1),
    "noise": torch.rand_like(pixels),
}
plot_images(torch.cat([images[:2] for images in kinds.values()]), [k for k in kinds for _ in "12"])

# %%


@torch.no_grad()
def scores_of(network, pixels):
    return scores(network((pixels[:, None] - datamodule.mean) / datamodule.std))


found = {}
for name, network in networks.items():
    rows = {
        kind: detect(scores_of(network, pixels), scores_of(network, kinds[kind])) for kind in kinds
    }
    found[name] = {kind: [row["entropy"][0], row["energy"][0]] for kind, row in rows.items()}
    show(f"AUROC, {name}", ("Images", "entropy", "energy"), found[name])

assert found["no crops"]["inverted"][1] > 0.85
assert found["random crops"]["inverted"][1] < 0.5
for aurocs in found.values():
    assert max(aurocs["mirrored"]) < 0.93

# %%
# The energy of the second network is *lower* for inverted digits than for most digits: less than
# one half, worse than a coin. And digits in a mirror, which are nearest to digits, are often missed
# by both scores of both networks.
#
# What is there to take away?
# ---------------------------
#
# A score that wins on one set of images may be the worst on another, and two networks that are
# equally good at digits may be very different at noticing what is none. So an AUROC on
# FashionMNIST says what a network does with FashionMNIST. Try a detector on images like those that
# it will meet, with more than one training; where errors are expensive, do not rely on it alone.
#
# MCBN is no detector of foreign images: here it changed the AUROC of the entropy by less than two
# points, and its mutual information was the weakest score.
#
# What to read next
# -----------------
#
# Between a digit and no digit there are many steps:
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_rotation_and_noise.py` goes along
# them. To refuse digits that may be read wrongly is a task of its own:
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_selective_classification.py`.
