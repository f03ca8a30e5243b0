"""
Active learning: which pictures to label
========================================

Pictures are plentiful, but every label takes a person's time. In *active learning* the network
chooses what to label next: the pictures that it is unsure of. This page compares three ways to
choose: by the mutual information that Monte Carlo Batch Normalization (MCBN) gives, by the entropy
of the plain network, which is free, and at random. It measures whether active learning pays, and
whether MCBN chooses better.

The pictures are digits of MNIST (Y. LeCun and C. Cortes, CC BY-SA 3.0) that come with the package,
4,000 for training and 1,000 for testing, shrunk to 14 by 14 pixels. We know all labels, but count
those that we look at. The seed is 0.

Why mutual information
----------------------

MCBN makes several *estimators* from one trained network, each normalized with the statistics of
another mini-batch of its training data. If a digit is ambiguous, the estimators agree that it is,
and its label teaches the network little. If each is sure of a different answer, a label decides
between them. *BALD* (`Houlsby et al., 2011 <https://arxiv.org/abs/1112.5745>`_) therefore asks for
the label with the highest mutual information between class and network.

Thirty networks at once
-----------------------

A single run proves nothing, since both the first labels and the weights are drawn at random. We run
ten repetitions of each way, and train their thirty networks as one: each layer holds thirty
matrices side by side, and ``BatchNorm1d`` normalizes each channel separately anyway. All tensors
are *(examples, networks, features)*.
"""

# sphinx_gallery_tags = ["active learning", "classification"]

import torch
from torch import nn

ways = ["random", "plain entropy", "mutual information"]
repetitions = 10
networks = len(ways) * repetitions


class Dense(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(networks, inputs, outputs) * (2 / inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(networks, outputs))

    def forward(self, x):
        return torch.einsum("bni,nio->bno", x, self.weight) + self.bias


# %%
# Batch norm sees the features of the thirty networks as channels of one layer.


class BatchNormReLU(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.norm = nn.BatchNorm1d(networks * features)

    def forward(self, x):
        return self.norm(x.flatten(1)).view_as(x).relu()


# %%
# The networks have two hidden layers, and are trained from scratch whenever labels are added. Each
# gets mini-batches of 16 of its labeled digits, in training as in MCBN.

from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR


def mini_batch(pool, labeled):
    places = torch.rand(labeled.shape).argsort(1)[:, :16]
    chosen = labeled.gather(1, places).T
    return pool.images[chosen], pool.labels[chosen]


# %%
# The loss is summed over the networks, so each gets its own gradient.


def train(pool, labeled, steps=150):
    hidden = [Dense(196, 64), BatchNormReLU(64), Dense(64, 64), BatchNormReLU(64)]
    model = nn.Sequential(*hidden, Dense(64, 10))
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        images, wanted = mini_batch(pool, labeled)
        optimizer.zero_grad()
        loss = cross_entropy(model(images).flatten(0, 1), wanted.flatten(), reduction="sum")
        loss.backward()
        optimizer.step()
        scheduler.step()
    return model.eval()


# %%
# Choose what to label
# --------------------
#
# Each network looks at 500 digits drawn from the pool and gives each a value: a random number, its
# entropy, or its mutual information. The digits with the highest values are labeled.

from mcbn import MCBatchNorm
from mcbn.predictive import entropy, mutual_information


def values(model, images, batches):
    with torch.no_grad():
        plain = entropy(model(images).softmax(-1))
        mc = MCBatchNorm(model, num_estimators=16).fit(batches).eval()
        of_mcbn = mutual_information(mc(images).softmax(-1).flatten(1, 2)).view_as(plain)
    each = zip((torch.rand_like(plain), plain, of_mcbn), range(len(ways)), strict=True)
    return torch.cat([value.chunk(len(ways), dim=1)[way] for value, way in each], dim=1)


# %%
# ``ask`` adds the best of the 500 to the labeled digits, leaving out those that have a label.


def ask(pool, model, labeled, count):
    seen = torch.stack([torch.randperm(len(pool.labels))[:500] for _ in range(networks)])
    batches = [mini_batch(pool, labeled)[0] for _ in range(16)]
    value = values(model, pool.images[seen].transpose(0, 1), batches).T
    known = (seen[:, :, None] == labeled[:, None]).any(2)
    best = value.masked_fill(known, -1).topk(count).indices
    return torch.cat([labeled, seen.gather(1, best)], dim=1)


# %%
# We start with 20 labels and end with 100. The first 20 are the same for all three ways, so that
# repetitions can be compared in pairs.

from itertools import pairwise
from typing import NamedTuple

from torch.nn.functional import avg_pool2d

from mcbn import MNISTDataModule


class Pool(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


def small(digits):
    return Pool(avg_pool2d(digits.images / 255, 2).flatten(1), digits.labels)


datamodule = MNISTDataModule(source="sample")
everything, test = small(datamodule.dataset("train")), small(datamodule.dataset("test"))


# %%
# ``learn`` trains, asks and trains again, and returns the accuracy after each round.


def accuracy(model):
    with torch.no_grad():
        read = model(test.images[:, None].expand(-1, networks, -1)).argmax(-1)
    right = (read == test.labels[:, None]).float().mean(0)
    return 100 * right.view(len(ways), repetitions)


def learn(pool, counts):
    drawn = [torch.randperm(len(pool.labels))[: counts[0]] for _ in range(repetitions)]
    labeled = torch.stack(drawn).repeat(len(ways), 1)
    model = train(pool, labeled)
    curves = [accuracy(model)]
    for before, after in pairwise(counts):
        labeled = ask(pool, model, labeled, after - before)
        model = train(pool, labeled)
        curves.append(accuracy(model))
    return torch.stack(curves), labeled  # (rounds, ways, repetitions), (networks, labels)


# %%
# A balanced pool
# ---------------
#
# The pool has 400 of each digit, and the network asks for 20 labels at a time.

torch.manual_seed(0)
even, _ = learn(everything, range(20, 101, 20))


def compare(curves):
    last = dict(zip(ways, curves[-1], strict=True))
    print(
        "after 100 labels:", ", ".join(f"{way} {right.mean():.1f} %" for way, right in last.items())
    )
    for way, other in (ways[1::-1], ways[2::-2], ways[2:0:-1]):
        gain = last[way] - last[other]
        error = gain.std() / repetitions**0.5
        print(f"{way} minus {other}: {gain.mean():+.1f} +/- {error:.1f} points")
    return last


last = compare(even)

# %%
# Neither way is far from random choice. Random choice soon sees all ten digits, and twenty digits
# that are doubtful at the same time may all be doubtful for the same reason.

for way in ways[1:]:
    assert (last[way].mean() - last["random"].mean()).abs() < 6

# %%
# A pool with rare classes
# ------------------------
#
# Often the interesting cases are the rare ones. Here the digits from 5 to 9 are rare: we keep one
# in ten of them. The test set is the same as before. The network asks for ten labels at a time.

rare = everything.labels > 4
keep = ~rare | (torch.rand(len(rare)) < 0.1)
uneven = Pool(everything.images[keep], everything.labels[keep])
counts = range(20, 101, 10)
curves, labeled = learn(uneven, counts)

# %%
# The figure shows the mean over the ten repetitions.

from mcbn.plotting import plot_series

means = dict(zip(ways, curves.mean(-1).T.tolist(), strict=True))
plot_series(list(counts), means, ("labels", "right in percent"))

# %%
# After 100 labels, and with fewer labels than random choice:

last = compare(curves)
saved = curves[5, 1].mean() - last["random"].mean()
print(f"plain entropy with {counts[5]} labels minus random with 100: {saved:+.1f} points")

for way in ways[1:]:
    assert last[way].mean() > last["random"].mean()
assert saved > -3

# %%
# Here active learning pays: 70 labels chosen by the plain entropy are about as good as 100 chosen
# at random, and in most runs better. Many of the doubtful digits are rare ones, of which the
# network has seen few.

rare_ones = uneven.labels[labeled].gt(4).float().mean(1).chunk(len(ways))
print(f"rare in the pool: {uneven.labels.gt(4).float().mean():.0%}")
for way, share in zip(ways, rare_ones, strict=True):
    print(f"rare among the labels, {way}: {share.mean():.0%}")

# %%
# In this run, the plain entropy finds the most of them, and it needs no MCBN.
#
# When to use it
# --------------
#
# - If everything that matters is frequent in the pool, choose at random. It is about as good, and
#   it cannot mislead.
# - If what matters is rare, ask for what the network is unsure of. Try the plain entropy first: it
#   is free, and in the run on this page it was ahead of the mutual information.
# - Repeat. In the balanced pool, the differences are about as large as the error of a mean over ten
#   runs.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Understanding_tutorial_batch_size_and_estimators.py` shows what the
# mutual information depends on, and
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_selective_classification.py` leaves
# doubtful cases to a person.
