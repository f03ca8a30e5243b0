"""
A set with a guarantee
======================

"It is a 3 or an 8, with 95 % certainty": an answer that is a *set* of classes, and that holds the
right one as often as it promises. *Conformal prediction* makes such sets of any network's
probabilities, in ten lines. This page does it with and without Monte Carlo Batch Normalization
(MCBN), and asks whether MCBN makes better sets, what its mutual information adds, and what becomes
of the promise where digits are turned.

The data are digits of MNIST that come with the package: 200 to train on, 3,800 held out, and 1,000
more, which we turn. The seed is 0.

A network that errs
-------------------

A LeNet, trained for 400 steps on 200 digits, and 16 estimators made of it.
"""

# sphinx_gallery_tags = ["classification", "conformal prediction", "distribution shift"]

import torch
from torch import nn

from mcbn import (
    ClassificationRoutine,
    MCBatchNorm,
    MNISTDataModule,
    Trainer,
    lenet,
    optim_lenet,
)

torch.manual_seed(0)
datamodule = MNISTDataModule(source="sample", val_split=0.95, random_crop=False, batch_size=32)
model = lenet(datamodule.num_channels, datamodule.num_classes)
routine = ClassificationRoutine(
    num_classes=datamodule.num_classes,
    model=model,
    loss=nn.CrossEntropyLoss(),
    optim_recipe=lambda model: optim_lenet(model, num_steps=400),
)
Trainer(max_steps=400, enable_model_summary=False).fit(routine, datamodule.train_dataloader())
mc = MCBatchNorm(model.eval(), num_estimators=16, mc_batch_size=32)
mc.fit(datamodule.train_dataloader())

# %%

from mcbn.predictive import summarise_classification


def predict(network, images):
    with torch.no_grad():
        return summarise_classification(torch.cat([network(x) for x in images.split(500)], dim=-2))


def everything(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


held_out, labels = everything(datamodule.val_dataloader())
networks = {"plain": model, "MCBN": mc}
summaries = {name: predict(network, held_out) for name, network in networks.items()}
for name, summary in summaries.items():
    print(f"{name:6}{(summary.label == labels).float().mean():.1%} right")

# %%
# The ten lines
# -------------
#
# Put aside some labelled digits, the *calibration set*. The *score* of a digit is what its true
# class lacks to a probability of 1, and the threshold is a high one among the :math:`n` scores:
# that of rank :math:`\lceil (n + 1) (1 - \alpha) \rceil` from below. The set of a new digit is
# every class that lacks no more. `Angelopoulos and Bates (2021)
# <https://arxiv.org/abs/2107.07511>`_ introduce it, and prove that the true class is in the set
# with a probability of at least :math:`1 - \alpha`, whatever the network, if new digits are like
# those put aside. Libraries such as MAPIE and TorchCP have this and more.

import math

alpha = 0.05


def threshold(probs, labels):
    scores = 1 - probs[range(len(labels)), labels]
    rank = math.ceil((len(labels) + 1) * (1 - alpha))
    return scores.sort().values[rank - 1] if rank <= len(labels) else torch.inf


def sets(probs, limit):
    return 1 - probs <= limit


# %%
# With 500 digits for calibration, here are digits whose set is not a single class.

from mcbn.plotting import plot_images

order = torch.randperm(len(labels))
calibration, new = order[:500], order[500:]
probs = summaries["MCBN"].probs
answers = sets(probs[new], threshold(probs[calibration], labels[calibration]))
several = (answers.sum(1) > 1).nonzero().flatten()[:6]
titles = [" or ".join(map(str, answers[i].nonzero().flatten().tolist())) for i in several]
plot_images(held_out[new[several]] * 0.3081 + 0.1307, titles)

# %%
# Is the promise kept?
# --------------------
#
# It is one for the mean over calibration sets. So we draw 100 of them, and count on the digits that
# are left how often the true class is in the set (the *coverage*), and how large the sets are.


def covered(answers, labels):
    return answers[range(len(labels)), labels].float()


draws = [torch.randperm(len(labels)).split([500, len(labels) - 500]) for _ in range(100)]


def measure(probs):
    outcomes = []
    for calibration, new in draws:
        answers = sets(probs[new], threshold(probs[calibration], labels[calibration]))
        outcomes.append((covered(answers, labels[new]).mean(), answers.sum(1).float().mean()))
    return torch.tensor(outcomes).T


coverage, size = {}, {}
for name, summary in summaries.items():
    coverage[name], size[name] = measure(summary.probs)
    print(f"{name:6} coverage {coverage[name].mean():.1%} +/- {coverage[name].std():.1%}", end=", ")
    print(f"{size[name].mean():.3f} classes in a set")

# %%
# It is kept, by both. The guarantee knows nothing of networks, so it could not be otherwise. What a
# better network brings is smaller sets.
#
# Does MCBN make smaller sets?
# ----------------------------
#
# The draws are the same for both, so that we can look at their differences.

difference = size["MCBN"] - size["plain"]
print(f"MCBN minus plain: {difference.mean():+.3f} +/- {difference.std():.3f} classes in a set")

for name in networks:
    assert 0.94 < coverage[name].mean() < 0.96
assert difference.mean().abs() < 0.1 * size["plain"].mean()

# %%
# Hardly. The sets differ by less than a tenth in size, with the one or the other ahead as the seed
# will have it.
#
# Whom does the promise leave out?
# --------------------------------
#
# It is a promise for digits on the whole. Among the hard ones it may be broken often, and made up
# for by the easy ones. Hard is the fifth with the highest doubt: the entropy of the plain network,
# or the mutual information of MCBN. The remedy is a threshold for the hard ones, and one for the
# others, each from digits of its kind.


def by_group(summary, doubt):
    outcomes = []
    for calibration, new in draws:
        limit = doubt[calibration].quantile(0.8)
        answers = sets(
            summary.probs[new], threshold(summary.probs[calibration], labels[calibration])
        )
        inside = covered(answers, labels[new])
        own = torch.empty(len(new))
        for hard in (True, False):
            kind = calibration[(doubt[calibration] > limit) == hard]
            own[(doubt[new] > limit) == hard] = threshold(summary.probs[kind], labels[kind])
        of_kind = sets(summary.probs[new], own[:, None])
        hard = doubt[new] > limit
        outcomes.append((
            inside[hard].mean(), covered(of_kind, labels[new])[hard].mean(),
            of_kind.sum(1).float().mean(),
        ))  # fmt: skip
    return torch.tensor(outcomes).mean(0)


kinds = {
    "plain entropy": (summaries["plain"], summaries["plain"].entropy),
    "MCBN entropy": (summaries["MCBN"], summaries["MCBN"].entropy),
    "mutual information": (summaries["MCBN"], summaries["MCBN"].mutual_information),
}
print("coverage of the hard fifth, with one threshold and with its own")
grouped = {name: by_group(*kind) for name, kind in kinds.items()}
for name, (one, own, classes) in grouped.items():
    print(f"{name:20}{one:.1%} {own:.1%}, {classes:.3f} classes in a set")

# %%
# With its own threshold the hard fifth gets what was promised, at the price of larger sets. To find
# it, the mutual information is no better than the entropy of the plain network.

for one, own, _ in grouped.values():
    assert one < 0.92
    assert own > 0.93
change = grouped["mutual information"][2] - grouped["plain entropy"][2]
assert change.abs() < 0.2

# %%
# What breaks the promise
# -----------------------
#
# Digits that are not like those put aside. We turn the 1,000 others, and keep the thresholds.

from torchvision.transforms.v2.functional import InterpolationMode, rotate

others, other_labels = everything(datamodule.test_dataloader())
angles = [0, 15, 30, 45, 60]
limits = {name: threshold(summary.probs, labels) for name, summary in summaries.items()}
kept, sizes = ({name: [] for name in networks} for _ in range(2))
for angle in angles:
    images = rotate(others, angle, InterpolationMode.BILINEAR, fill=float(others.min()))
    for name, network in networks.items():
        answers = sets(predict(network, images).probs, limits[name])
        kept[name].append(covered(answers, other_labels).mean().item())
        sizes[name].append(answers.sum(1).float().mean().item())

# %%

from mcbn.plotting import plot_series

plot_series(angles, kept, ("rotation in degrees", "coverage"), dashed={"promise": 1 - alpha})

# %%

for name in networks:
    print(f"{name:6} coverage", *(f"{share:.0%}" for share in kept[name]), end="; ")
    print("classes", *(f"{mean:.2f}" for mean in sizes[name]))
    assert kept[name][-1] < 0.7

# %%
# The sets grow, but not nearly enough, and those of MCBN no more than the others. A guarantee
# covers what it was made for. Before you rely on it, see to it that inputs of another kind are
# noticed.
#
# What to take along
# ------------------
#
# Conformal sets are a good answer to "how sure?", they cost ten lines, and they work on the plain
# network. On these digits MCBN makes them neither smaller nor more robust.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_selective_classification.py`
# declines to answer instead, and
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_ood_detection.py` looks for inputs
# of another kind.
