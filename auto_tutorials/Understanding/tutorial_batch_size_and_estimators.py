r"""
Choosing the batch size and the number of estimators
====================================================

Monte Carlo Batch Normalization (MCBN) has two numbers to choose: :math:`M`, the number of training
images in each mini-batch, and :math:`S`, the number of mini-batches, each of which gives one
estimator. What do they cost, and what do they bring?

We train one LeNet on the 4,000 digits that come with the package, in batches of 32, and test it on
1,000 others. The seed is 0. Everything below uses this one network.
"""

# sphinx_gallery_tags = ["classification", "batch size", "number of estimators", "speed"]

from lightning.pytorch import seed_everything
from torch import nn

from mcbn import ClassificationRoutine, MNISTDataModule, Trainer, lenet, optim_lenet

seed_everything(0, verbose=False)
datamodule = MNISTDataModule(source="sample", batch_size=32)
model = lenet(datamodule.num_channels, datamodule.num_classes)


def optim(model):
    return optim_lenet(model, num_steps=1000)


routine = ClassificationRoutine(10, model, nn.CrossEntropyLoss(), optim)
trainer = Trainer(max_steps=1000, enable_model_summary=False)
trainer.fit(routine, datamodule=datamodule)
model = model.eval()

# %%
# Score many values at once
# -------------------------
#
# We will draw 64 estimators for each :math:`M`. A smaller :math:`S` needs no new ones: the 64 make
# 64 groups of one, 32 groups of two, and so on, and ``scores`` takes the mean over the groups. So
# no value depends on a single draw.

import torch

from mcbn import MCBatchNorm
from mcbn.metrics import negative_log_likelihood
from mcbn.predictive import mutual_information, probabilities

images, labels = map(torch.cat, zip(*datamodule.test_dataloader(), strict=True))


def predict(network):
    with torch.no_grad():
        return probabilities(torch.cat([network(part) for part in images.split(250)], dim=-2))


def scores(probs, size):
    """Mean accuracy and NLL over groups of so many estimators."""
    groups = probs.unflatten(0, (-1, size)).mean(1)
    accuracy = (groups.argmax(-1) == labels).float().mean()
    nll = torch.stack([negative_log_likelihood(group, labels).mean() for group in groups])
    return accuracy.item(), nll.mean().item()


# %%
# We try the following values, with a new ``fit`` for each size. The plain network is scored as a
# single estimator.

sizes, counts = [4, 8, 16, 32, 64, 128, 512], [1, 2, 4, 8, 16, 32, 64]
sweep = {}
for size in sizes:
    mc = MCBatchNorm(model, num_estimators=64, mc_batch_size=size)
    sweep[size] = predict(mc.fit(datamodule.train_dataloader()))
plain = scores(predict(model)[None], 1)
print(f"plain: accuracy {plain[0]:.1%}, NLL {plain[1]:.3f}")

# %%
# The number of estimators
# ------------------------
#
# The negative log-likelihood (NLL, lower is better) of the mean probabilities, taken as a mean over
# groups in this way, can only fall as :math:`S` grows, because :math:`-\log` is convex: the NLL of
# two estimators together is at most the mean of their own. The question is how fast it falls.

from mcbn.plotting import plot_series

nll = {size: [scores(sweep[size], count)[1] for count in counts] for size in sizes}
lines = {f"M = {size}": nll[size] for size in (8, 16, 32, 128)}
ax = plot_series(counts, lines, ("S", "NLL"), dashed={"plain": plain[1]}, log="x")
ax.figure.set_label(
    "NLL against S from 1 to 64: four falling lines, the steepest and highest for M = 8, the "
    "flattest for M = 128; each flattens after 8 or 16, near the plain network's dashed line."
)

# %%
# We check that it never rises, and compare both ends of the curves with the plain network:

for values in map(torch.tensor, nll.values()):  # never higher than before, but for rounding
    torch.testing.assert_close(values, values.cummin(0).values, rtol=0, atol=1e-5)
assert nll[8][0] > plain[1]
assert nll[32][-1] < 1.1 * plain[1]

# %%
# A single estimator has the noise of one mini-batch, and nothing to average it out: with small
# mini-batches, here of 8, it is worse than the plain network. From there, each doubling of
# :math:`S` helps about half as much as the one before. With mini-batches of 32, as in training, 64
# estimators end below the plain network's NLL or at most a tenth above it. On these digits there is
# little to gain, and more to lose with a small :math:`S`.
#
# Another network and data set
# ----------------------------
#
# The `log of another implementation
# <https://github.com/Glutamat42/mcbn-pytorch/blob/e0195368a4a3236ec5e680ca36f59126707eeed5/run.log>`_
# on CIFAR-10 (ResNet-32, :math:`M` about 32, one run) goes from an NLL of 0.373 with one estimator
# to 0.268 with 128, against 0.33 without MCBN. There the gain is real; does the curve have the same
# shape? We draw the share of the gain that each :math:`S` has reached, with 64 estimators as the
# end for the log, too.

log = [0.373, 0.326, 0.300, 0.287, 0.278, 0.271, 0.269]
share = {
    name: [(values[0] - value) / (values[0] - values[-1]) for value in values]
    for name, values in {"digits, M = 32": nll[32], "CIFAR-10 log": log}.items()
}
ax = plot_series(counts, share, ("S", "share of the gain of 64"), dashed={"90 %": 0.9}, log="x")
ax.figure.set_label(
    "Share of the gain against S: the lines of the digits and of the CIFAR-10 log rise together, "
    "and cross 90 % between 8 and 16 estimators."
)

# %%
# This is the share reached with 16 estimators:

at_16 = {name: values[counts.index(16)] for name, values in share.items()}
for name, value in at_16.items():
    print(f"{name}: {value:.0%} of the gain of 64 estimators with 16")
    assert value > 0.85

# %%
# In both, 16 estimators reach at least 85 % of the gain of 64. The log's accuracy shows the same
# start: one estimator is worse than none, 91.85 % against 92.66 %, and 8 estimators are back at
# that level.
#
# The size of the mini-batches
# ----------------------------
#
# The larger a mini-batch, the less its mean and variance vary, and the less the estimators differ.
# We measure their spread as mutual information, the part of the entropy that comes from their
# disagreement.

spread = [mutual_information(sweep[size]).mean().item() for size in sizes]
ax = plot_series(sizes, {"spread": spread}, ("M", "mutual information (nats)"), log="xy")
ax.figure.set_label("Mutual information against M: a falling, nearly straight line in log scales.")

# %%
# Both axes are logarithmic, and the line is nearly straight. The variance of a mean falls as
# :math:`1 / M`, and the mutual information is about proportional to it. We fit the slope, which
# would be −1 if both held exactly:

import rich

from mcbn.results import Table, Tables

x, y = torch.tensor(sizes).log(), torch.tensor(spread).log()
slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
print(f"slope: {slope:.1f}")
assert -1.5 < slope < -0.6

# %%
# The table shows what the size does to the accuracy and to the NLL:

rows = []
for size in sizes:
    accuracies = (f"{scores(sweep[size], count)[0]:.1%}" for count in (1, 4, 16, 64))
    rows.append([f"{size}", *accuracies, f"{nll[size][-1]:.3f}"])
rows.append(["plain", f"{plain[0]:.1%}", "", "", "", f"{plain[1]:.3f}"])
header = ("M", "S = 1", "S = 4", "S = 16", "S = 64", "NLL, S = 64")
rich.print(Tables([Table("Accuracy, and the NLL of all 64", header, rows)]))

assert nll[4][0] / nll[32][0] > 1
assert abs(nll[512][-1] / plain[1] - 1) < 0.1

# %%
# Mini-batches of 4 put the network under conditions that it never met in training: the NLL of a
# single estimator is higher than with 32. The last column shows what is left of that when 64
# estimators are averaged. With 512, the estimators hardly differ, and MCBN's NLL is within 10 % of
# the plain network's. At the size of the training set, each mini-batch would be the whole set, and
# the spread would be zero (but for the random crops).
#
# Variance, and replacing or blending
# -----------------------------------
#
# Two choices are settled by how the network was trained. First, training divides the variance by
# :math:`n`, the number of values in a channel; other implementations take the unbiased variance,
# with :math:`n - 1`. Second, a mini-batch *replaces* the running statistics, as in the authors'
# code; some have read the paper as *blending* it in, with the weight of 0.1 that a training step
# gives it. To compare them, we draw the same mini-batches for each choice.


def fit(size=32, **options):
    mc = MCBatchNorm(model, num_estimators=64, mc_batch_size=size, **options)
    return mc.fit(datamodule.train_dataloader(), generator=torch.Generator().manual_seed(0))


# %%
# ``mc_mean`` and ``mc_var`` are the statistics that a batch norm layer holds; we look at those of
# the first layer.

choices = {
    "biased, replace (default)": fit(),
    "unbiased, replace": fit(correction=1),
    "biased, blend 0.1": fit(momentum=0.1),
}
rows = []
for name, mc in choices.items():
    probs, means = predict(mc), mc.model[1].mc_mean
    values = means.std(0).mean(), mutual_information(probs).mean(), scores(probs, 64)[1]
    rows.append([name, *(f"{value:.4f}" for value in values)])
header = ("Choice", "Spread of means", "Mutual information", "NLL")
rich.print(Tables([Table("M = 32, S = 64", header, rows)]))

# %%
# We compare the three choices in the first layer, and blending with replacing in the predictions:

default, unbiased, blend = (mc.model[1] for mc in choices.values())
assert torch.allclose(blend.mc_mean.std(0), 0.1 * default.mc_mean.std(0), rtol=1e-2)
assert mutual_information(predict(choices["biased, blend 0.1"])).mean() < 0.2 * spread[3]
assert torch.allclose(unbiased.mc_var, default.mc_var, rtol=1e-3)

# %%
# Blending leaves a tenth of the spread of the means, and so almost none in the predictions. The
# unbiased variance changes nothing here: the layer follows a convolution, and each of its channels
# has :math:`n = 32 \cdot 24 \cdot 24` values. In a dense layer :math:`n = M`, and the ratio of the
# two variances is :math:`M / (M - 1)`:

for size in (2, 4, 32):
    values = torch.randn(size)
    print(f"M = {size}: {values.var(correction=1) / values.var(correction=0):.2f}")

# %%
# The cost
# --------
#
# ``fit`` costs :math:`S` forward passes of :math:`M` images, once. A prediction costs up to
# :math:`S` forward passes, but many estimators run together, and whatever comes before the first
# batch normalization is the same for all of them and is computed once. We measure the time for 128
# images on the machine that runs this script.

from time import perf_counter


def seconds(network, repeats=5):
    with torch.no_grad():
        network(images[:128])
        runs = []
        for _ in range(repeats):
            start = perf_counter()
            network(images[:128])
            runs.append(perf_counter() - start)
    return min(runs)


# %%
# The figure compares it with :math:`S` times that of the plain network.

once = seconds(model)
times = []
for count in counts:
    mc = MCBatchNorm(model, num_estimators=count).fit(datamodule.train_dataloader())
    times.append(1000 * seconds(mc))
passes = {"MCBN": times, "S plain passes": [1000 * count * once for count in counts]}
ax = plot_series(counts, passes, ("S", "milliseconds"), log="xy")
ax.figure.set_label(
    "Milliseconds against S in log scales: a rising line for MCBN, and one for S plain passes."
)

# %%
# Which values to take
# --------------------
#
# * :math:`M`: the batch size of the training. If you have validation data, try half and twice that,
#   too; this takes another ``fit`` but no training. A very small :math:`M` makes each estimator
#   worse.
# * :math:`S`: 16. With fewer than 8, the plain network may well be better; beyond 16, there is
#   little left to gain.
# * Variance and replacing: keep the defaults.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Bayesian_Methods_tutorial_comparison.py` puts MCBN next to MC
# dropout and ensembles, and :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_deployment.py`
# chooses :math:`S` for a time limit.
