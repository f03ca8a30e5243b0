"""
MCBN, MC dropout, deep ensembles and the plain network
======================================================

There are many ways to better the probabilities of a network, and most of them are older or better
known than MCBN. On this page they all learn from the same digits, and are measured with the same
numbers, each at its own price and all at the same price. Which of them is worth it?

To leave them something to gain, the digits are few: 500 of those that come with the package, and a
LeNet that learns them by heart. 500 more are for choosing things, 1,000 to test, and there are
1,000 images from FashionMNIST that are no digits at all. The methods run here once, with the seed
0. The same code has run with ten seeds, on these digits and on speech; those results are stored,
and this page shows them.

What do they all learn from?
----------------------------

From tensors in memory, so that a plain training loop will do.
"""

# sphinx_gallery_tags = ["classification", "dropout and ensembles", "out of distribution"]

import torch

from mcbn import MNISTDataModule, lenet

datamodule = MNISTDataModule(source="sample", batch_size=1000, random_crop=False)
images, labels = datamodule.dataset("train").__getitems__(range(1000))
train_images, train_labels = images[:500], labels[:500]
val_images, val_labels = images[500:], labels[500:]
[(test_images, test_labels)] = datamodule.test_dataloader()
[(garments, _)] = datamodule.ood_dataloader()


def network():
    return lenet(1, 10)


# %%
# How is each network trained?
# ----------------------------
#
# In batches of 16 for 15 epochs, with the recipe of the first tutorial. One of the methods asks for
# ten snapshots of the weights from the last third of a training, and for a learning rate that does
# not fall to zero.

from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from mcbn import optim_lenet

epochs, batch_size = 15, 16


def train(model, part=1.0, snapshots=None):
    steps = round(part * epochs * (len(train_images) // batch_size))
    recipe = optim_lenet(model.train(), steps if snapshots is None else 2 * steps)
    optimizer, scheduler = recipe["optimizer"], recipe["lr_scheduler"]["scheduler"]
    batches = []
    for step in range(steps):
        if not batches:
            order = torch.randperm(len(train_images))
            batches = list(order[: len(order) // batch_size * batch_size].split(batch_size))
        batch = batches.pop()
        optimizer.zero_grad()
        cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
        optimizer.step()
        scheduler.step()
        if snapshots is not None and step >= steps * 2 // 3 and step % (steps // 30) == 0:
            snapshots.append(parameters_to_vector(model.parameters()).detach())
    return model.eval()


# %%
# What needs a trained network only?
# ----------------------------------
#
# A method is a function from images to logits, with or without an axis for the estimators.
# *Temperature scaling* (`Guo et al., 2017 <https://arxiv.org/abs/1706.04599>`_) divides the logits
# by a number, chosen on the validation images. *Test-time augmentation* reads each image 16 times,
# shifted a little; the validation images choose whether by up to one pixel or two. *MCBN* takes its
# mini-batches from the training images: as large as those of the training, or of the size that the
# validation images choose.

from functools import partial

from torch.utils.data import DataLoader, TensorDataset

from mcbn import MCBatchNorm
from mcbn.metrics import negative_log_likelihood
from mcbn.predictive import fit_temperature, mean_probs


@torch.no_grad()
def val_nll(predict):
    return negative_log_likelihood(mean_probs(predict(val_images)), val_labels).mean().item()


def scaled(predict):
    with torch.no_grad():
        temperature = fit_temperature(predict(val_images), val_labels)
    return lambda images: predict(images) / temperature


def shift(images, most):
    return images.roll(torch.randint(-most, most + 1, (2,)).tolist(), (-2, -1))


def augmented(model):
    def predict(images, most):
        return torch.stack([model(shift(images, most)) for _ in range(16)])

    return min((partial(predict, most=most) for most in (1, 2)), key=val_nll)


def mcbn(model, mc_batch_size):
    loader = DataLoader(TensorDataset(train_images))
    return MCBatchNorm(model, num_estimators=16, mc_batch_size=mc_batch_size).fit(loader)


def mcbn_chosen(model):
    sizes = [batch_size * quarters // 4 for quarters in (1, 2, 4, 8)]
    return min((mcbn(model, size) for size in sizes), key=val_nll)


# %%
# A *Laplace approximation* of the last layer (`Daxberger et al., 2021
# <https://arxiv.org/abs/2106.14806>`_) takes its weights for normally distributed, with the
# curvature of the loss as precision. The package ``laplace-torch`` does that for whole networks;
# for one layer it is this: the variance of each logit makes it smaller.


@torch.no_grad()
def last_layer_laplace(model):
    def with_bias(images):
        return torch.nn.functional.pad(model[:-1](images), (0, 1), value=1.0)

    curvature: torch.Tensor | float = 0.0
    for part in train_images.split(500):
        probs = model(part).softmax(-1)
        of_logits = probs.diag_embed() - probs[:, :, None] * probs[:, None, :]
        phi = with_bias(part)
        curvature = curvature + torch.einsum("nab,ni,nj->aibj", of_logits, phi, phi)
    classes, inputs = curvature.shape[:2]

    def with_prior(precision):
        prior = precision * torch.eye(classes * inputs)
        covariance = torch.linalg.inv(curvature.reshape(prior.shape) + prior)
        blocks = covariance.view(classes, inputs, classes, inputs).diagonal(dim1=0, dim2=2)

        def predict(images):
            phi = with_bias(images)
            variance = torch.einsum("ni,ija,nj->na", phi, blocks, phi)
            return model(images) / (1 + torch.pi / 8 * variance).sqrt()

        return predict

    return min(map(with_prior, (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)), key=val_nll)


# %%
# What needs a training of its own?
# ---------------------------------
#
# *MC dropout* (`Gal and Ghahramani, 2016 <https://arxiv.org/abs/1506.02142>`_) leaves dropout on
# when it predicts: ours drops 30 % of the values in front of each dense layer. *SWA* takes the mean
# of the snapshots, *SWAG* (`Maddox et al., 2019 <https://arxiv.org/abs/1902.02476>`_) draws weights
# from a normal distribution that is fitted to them; the batch norm's statistics are computed anew
# for each. A *deep ensemble* (`Lakshminarayanan et al., 2017 <https://arxiv.org/abs/1612.01474>`_)
# trains five networks.

from copy import deepcopy

from torch import nn
from torch.nn.utils import vector_to_parameters
from torch.optim.swa_utils import update_bn


def with_dropout(model):
    layers = []
    for layer in model:
        layers += [nn.Dropout(0.3), layer] if isinstance(layer, nn.Linear) else [layer]
    return nn.Sequential(*layers)


def mc_dropout(model):
    def predict(images):
        for layer in model:
            layer.train(isinstance(layer, nn.Dropout))
        logits = torch.stack([model(images) for _ in range(16)])
        model.eval()
        return logits

    return predict


def with_weights(model, weights):
    model = deepcopy(model)
    vector_to_parameters(weights, model.parameters())
    update_bn(train_images[:5000].split(500), model)
    return model.eval()


def swag(model, snapshots):
    weights = torch.stack(snapshots)
    mean, deviations = weights.mean(0), weights - weights.mean(0)
    draws = []
    for _ in range(16):
        low_rank = torch.randn(len(weights)) @ deviations / (len(weights) - 1) ** 0.5
        diagonal = torch.randn_like(mean) * deviations.square().mean(0).sqrt()
        draws.append(with_weights(model, mean + (low_rank + diagonal) / 2**0.5))
    return with_weights(model, mean), ensemble(draws)


def ensemble(members):
    return lambda images: torch.stack([member(images) for member in members])


# %%
# What is the same price?
# -----------------------
#
# In predictions: MCBN, MC dropout, SWAG and the augmentation get 16 forward passes for an image,
# and once more only 5, as many as the ensemble. In training: an ensemble of 5 costs five trainings,
# so there is a short one, too, whose members share the steps of a single training. Each method is
# listed with its number of trainings.


def methods(seed):
    torch.manual_seed(seed)
    snapshots = []
    members = [train(network()) for _ in range(5)]
    plain, short = members[0], [train(network(), part=0.2) for _ in range(5)]
    dropout = train(with_dropout(network()))
    swa, swag_draws = swag(train(network(), snapshots=snapshots), snapshots)
    chosen = mcbn_chosen(plain)
    wrapped = [mcbn(member, batch_size) for member in members]
    return {
        "plain": (1, plain),
        "plain, scaled": (1, scaled(plain)),
        "Laplace": (1, last_layer_laplace(plain)),
        "augmented": (1, augmented(plain)),
        "MCBN": (1, wrapped[0]),
        "MCBN, M chosen": (1, chosen),
        "MCBN, scaled": (1, scaled(chosen)),
        "dropout off": (1, dropout),
        "MC dropout": (1, mc_dropout(dropout)),
        "SWA": (1, swa),
        "SWAG": (1, swag_draws),
        "short ensemble": (1, ensemble(short)),
        "ensemble": (5, ensemble(members)),
        "ensemble, scaled": (5, scaled(ensemble(members))),
        "ens. + MCBN": (5, lambda images: torch.cat([member(images) for member in wrapped])),
    }


# %%
# What is measured?
# -----------------
#
# Five numbers. *NLL* and *ECE* say how well the probabilities fit, and *AURC* what an error rate is
# left when the network may decline, averaged over all rates of declining: for these three, lower is
# better. The *OOD AUROC* is the chance that a garment gets a higher entropy than a digit.

from torchmetrics.functional.classification import binary_auroc

from mcbn.metrics import AURC, NLL, CalibrationError
from mcbn.predictive import entropy


def judge(logits, foreign):
    probs = mean_probs(logits)
    accuracy = (probs.argmax(-1) == test_labels).float().mean()
    fit = [metric(probs, test_labels) for metric in (NLL(), CalibrationError(), AURC())]
    scores = torch.cat([entropy(probs), entropy(mean_probs(foreign))])
    is_foreign = torch.arange(len(scores)) >= len(probs)
    auroc = binary_auroc(scores / scores.max(), is_foreign.long())
    return [value.item() for value in (accuracy, *fit, auroc)]


def run(seed):
    """For each method and number of passes: trainings, and the five scores."""
    found = {}
    for name, (trainings, predict) in methods(seed).items():
        with torch.no_grad():
            both = predict(test_images), predict(garments)
        passes = 1 if both[0].ndim == 2 else len(both[0])
        found[name, passes] = trainings, judge(*both)
        if passes == 16:
            found[name, 5] = trainings, judge(*(logits[:5] for logits in both))
    return found


# %%
# All methods of a seed share its networks, so they are compared seed by seed. Over ten of them, a
# mean difference has a 95 % interval (Student's) of this half width:


def interval(paired):
    return paired.mean().item(), (2.262 * paired.std() / len(paired) ** 0.5).item()


# %%
# Who wins?
# ---------
#
# One seed cannot tell. ``docs/measure_comparison.py`` has run these functions with the seeds 0 to
# 9, and its scores come with the package. *Digits* are the 500 of this page. *Vowels* are speech:
# which of nine speakers said it? Ten utterances of each are for training, 20 for choosing, and 370
# in all for the test, as series of 25 steps that come with the `package aeon
# <https://www.aeon-toolkit.org>`_. A small convolutional network learns them for 90 epochs in
# batches of 16, and what is foreign are the utterances run backwards.
#
# First, whether this page's own run fits the stored ones: how far is its NLL from the mean of the
# ten seeds, in their standard deviations?

import csv
from importlib.resources import files

with (files("mcbn.experiments") / "results/comparison.csv").open(encoding="utf-8") as file:
    stored = list(csv.DictReader(file))
names = ("Acc", "NLL", "ECE", "AURC", "AUROC")


def scores_of(data):
    """``(seeds, scores)`` for each method and number of passes."""
    rows = {}
    for row in stored:
        if row["data"] == data:
            key = row["method"], int(row["passes"])
            rows.setdefault(key, []).append([float(row[name]) for name in names])
    return {key: torch.tensor(values) for key, values in rows.items()}


digits, live = scores_of("digits"), run(seed=0)
for key in live:
    nll = digits[key][:, 1]
    away = (live[key][1][1] - nll.mean()) / nll.std()
    print(f"{key[0]:17}{key[1]:3} passes: {live[key][1][1]:.3f}, {away:+.1f}")
    assert abs(away) < 6

# %%
# Now the ten seeds. A *change* is the mean difference from the plain network and the half width of
# its interval, with a star where the interval leaves out zero. (One in twenty does so by chance.)
# This is the chance of the training; the test images are the same for all seeds.

import rich

from mcbn.results import Table, Tables

kinds = list(dict.fromkeys(row["data"] for row in stored))
trainings = {row["method"]: int(row["trainings"]) for row in stored}
columns = {data: scores_of(data) for data in kinds}


def change(data, score, method, passes, other=("plain", 1)):
    paired = columns[data][method, passes] - columns[data][other]
    return interval(paired[:, names.index(score)])


def shown(mean, half, places):
    return f"{mean:+.{places}f}±{half:.{places}f}{'*' if abs(mean) > half else ''}"


for data in kinds:
    rows = []
    for key, scores in columns[data].items():
        percent = [[100 * value for value in change(data, name, *key)] for name in ("ECE", "AURC")]
        changes = [shown(*change(data, "NLL", *key), 3), *(shown(*pair, 2) for pair in percent)]
        cost = f"{trainings[key[0]]}, {key[1]}"
        rows.append([key[0], cost, f"{scores[:, 1].mean():.3f}", *changes])
    header = "Method", "Cost", "NLL", "change", "of ECE", "of AURC"
    rich.print(Tables([Table(f"{data}, {len(scores)} seeds", header, rows)]))

# %%
# *Cost* is the number of trainings, and of forward passes for each input; the changes of ECE and
# AURC are in points. Here are the seeds themselves, on the 500 digits: a dot for each, and a bar
# for their mean.

from mcbn.plotting import plot_scores

own_cost = [key for key in digits if key[1] != 5 or "ensemble" in key[0]]
of_seeds = torch.stack([digits[key] for key in own_cost]).permute(2, 0, 1)
plot_scores(
    dict(zip(["NLL", "ECE", "AURC", "OOD AUROC"], of_seeds[1:], strict=True)),
    names=[f"{method}, {passes}" for method, passes in own_cost],
)

# %%
# Which one for the money?
# ------------------------
#
# With at most so many trainings, and so many passes for each image: which method has the lowest
# mean NLL, and what is the lowest of MCBN without a temperature?

rows = []
for data in kinds:
    mean_nll = {key: scores[:, 1].mean().item() for key, scores in columns[data].items()}
    for most_trainings, most_passes in [(1, 1), (1, 5), (1, 16), (5, 5)]:
        paid = {
            key: nll
            for key, nll in mean_nll.items()
            if trainings[key[0]] <= most_trainings and key[1] <= most_passes
        }
        best = min(paid, key=paid.get)
        of_mcbn = [nll for key, nll in paid.items() if key[0] in ("MCBN", "MCBN, M chosen")]
        cells = best[0], f"{paid[best]:.3f}", f"{min(of_mcbn):.3f}" if of_mcbn else ""
        rows.append([data, f"{most_trainings}", f"{most_passes}", *cells])
header = "Data", "Trainings", "Passes", "Lowest NLL of", "NLL", "MCBN"
rich.print(Tables([Table("What a budget buys", header, rows)]))

# %%
# What do the samples add?
# ------------------------
#
# Four methods come in pairs, with and without the samples: MCBN on top of a temperature, dropout on
# and off, SWAG and SWA, the ensemble with MCBN in each member and without. This is what the samples
# change in the NLL.

pairs = {
    ("MCBN, scaled", 16): ("plain, scaled", 1),
    ("MC dropout", 16): ("dropout off", 1),
    ("SWAG", 16): ("SWA", 1),
    ("ens. + MCBN", 80): ("ensemble", 5),
}
rows = [
    [key[0], other[0], *(shown(*change(data, "NLL", *key, other), 3) for data in kinds)]
    for key, other in pairs.items()
]
rich.print(Tables([Table("Change of the NLL by sampling", ("With", "Without", *kinds), rows)]))

# %%
# **Five trainings win.** On all of the data the ensemble has a lower NLL than the plain network and
# puts the inputs into a better order: the intervals of both leave out zero. Nothing with one
# training does that on both.

for key in digits:
    ends = [sum(change(data, score, *key)) for data in kinds for score in ("NLL", "AURC")]
    if key[0] == "ensemble":
        assert max(ends) < 0
    if trainings[key[0]] == 1:
        assert max(ends) >= 0

# %%
# **With one training, a single number does most.** On the 500 digits a temperature takes off more
# than two thirds of what the ensemble does. The last layer's Laplace approximation and dropout come
# close. All of them need one pass: what dropout does, it has done in the training. The augmentation
# does as much as a temperature, for 16 passes. On the vowels none of them does much.

of_ensemble, _ = change("digits", "NLL", "ensemble", 5)
for method in ("plain, scaled", "Laplace", "dropout off"):
    mean, _ = change("digits", "NLL", method, 1)
    print(
        f"{method:14}{mean / of_ensemble:.0%} of what the ensemble takes off the NLL of the digits"
    )
assert change("digits", "NLL", "plain, scaled", 1)[0] / of_ensemble > 2 / 3

# %%
# **MCBN does little, and not always good.** With mini-batches as large as those of the training it
# takes a hundredth off the NLL of the digits, less than a sixth of what the temperature does, and
# makes that of the vowels worse. Nor does it put the images into a better order. Where the
# validation images choose :math:`M`, it does no harm; but with them a temperature could be fitted,
# and after that MCBN adds nothing: the interval of what it changes has zero inside.

by_temperature, _ = change("digits", "NLL", "plain, scaled", 1)
assert change("digits", "NLL", "MCBN", 16)[0] / by_temperature < 1 / 6
mean, half = change("vowels", "NLL", "MCBN", 16)
assert mean - half > 0
for data in ("digits", "vowels"):
    mean, half = change(data, "NLL", "MCBN, scaled", 16, ("plain, scaled", 1))
    assert mean - half < 0 < mean + half
    mean, half = change(data, "AURC", "MCBN", 16)
    assert mean + half > 0

# %%
# **In an ensemble it is no help.** On the digits, MCBN in each member changes the ensemble's NLL by
# a thousandth; on the vowels it takes most of its gain away, as members and mini-batches together
# doubt too much. That need not be so elsewhere. `Atanov et al., 2018
# <https://arxiv.org/abs/1802.04893>`_ put stochastic batch normalization, a near relative of MCBN,
# into the members of ensembles on CIFAR-10, and the NLL fell from 0.191 to 0.162 (VGG-11) and from
# 0.138 to 0.110 (ResNet-18).

pair = ("ens. + MCBN", 80), ("ensemble", 5)
assert abs(change("digits", "NLL", *pair[0], pair[1])[0]) < 0.005
by_mcbn, by_ensemble = change("vowels", "NLL", *pair[0], pair[1]), change("vowels", "NLL", *pair[1])
assert by_mcbn[0] / -by_ensemble[0] > 0.5

# %%
# **One training, cut in five, is something else.** The short ensemble betters the digits, whose
# training is long enough to overfit, and worsens the vowels. And SWA as it is here, with a learning
# rate that stays high to the end, costs the digits more than SWAG's samples win back. With steps of
# its own on top of a finished training it might do better, at another price.

assert sum(change("digits", "NLL", "short ensemble", 5)) < 0
mean, half = change("vowels", "NLL", "short ensemble", 5)
assert mean - half > 0
assert change("digits", "NLL", "SWAG", 16)[0] > 0

# %%
# So when is MCBN the one to take?
# --------------------------------
#
# When the network is there already, and nothing else can be had: no second training, and no
# validation images either. Even then it is worth little here. :doc:`/guide/which_method` makes a
# table and a short list of questions of it. These are small networks, and few sets of data; yours
# may differ, and this page is short enough to try.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Understanding_tutorial_batch_size_and_estimators.py` has more on the
# choice of M and S, and
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_calibration.py` on what the ECE does
# and does not see.
