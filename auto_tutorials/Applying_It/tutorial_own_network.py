"""
Your own network
================

Monte Carlo Batch Normalization (MCBN) asks one thing of a network: that it was trained with batch
normalization. This page wraps an unusual one: it reads two images, comes with a dataset of dicts,
and returns a dict. The page shows how to fit it, how to check that the result is right, what
``fit`` needs from your data, and what the wrapper says when something is wrong. The digits come
with the package, and the seed is 0.

For a network with published weights see
:ref:`sphx_glr_auto_tutorials_In_Practice_tutorial_pretrained.py`, for signals
:ref:`sphx_glr_auto_tutorials_In_Practice_tutorial_signals.py`, and for networks from timm and other
libraries :ref:`sphx_glr_auto_tutorials_In_Practice_tutorial_other_libraries.py`.

A network with two inputs
-------------------------

The network reads two digits and predicts their sum. Both go through the same LeNet, so each of its
batch norm layers is called twice in a forward pass. The wrapper keeps the statistics of each call.
"""

# sphinx_gallery_tags = ["classification", "own networks"]

import torch
from torch import nn

from mcbn import lenet

torch.manual_seed(0)


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.reader = lenet(1, 10)
        self.head = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.out = nn.Linear(64, 19)

    def forward(self, left, right):
        read = torch.cat([self.reader(left), self.reader(right)], dim=1)
        return {"sum": self.out(self.head(read)), "read": read}


# %%
# Each item of the dataset is a dict, whose first value is the label.

from torch.utils.data import DataLoader, Dataset

from mcbn import MNISTDataModule


class Pairs(Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images) // 2

    def __getitem__(self, i):
        left, right = 2 * i, 2 * i + 1
        total = self.labels[left] + self.labels[right]
        return {"total": total, "left": self.images[left], "right": self.images[right]}


datamodule = MNISTDataModule(source="sample", batch_size=4000, random_crop=False)
[(train_images, train_labels)] = datamodule.train_dataloader()
[(test_images, test_labels)] = datamodule.test_dataloader()
train_pairs, test_pairs = Pairs(train_images, train_labels), Pairs(test_images, test_labels)

# %%
# The network is trained on 2,000 pairs for 15 epochs.

loader = DataLoader(train_pairs, batch_size=32, shuffle=True, drop_last=True)
adder = Adder()
optimizer = torch.optim.Adam(adder.parameters(), lr=3e-3)
for _ in range(15):
    for batch in loader:
        optimizer.zero_grad()
        output = adder(batch["left"], batch["right"])
        nn.functional.cross_entropy(output["sum"], batch["total"]).backward()
        optimizer.step()
adder.eval()

# %%
# Fit with ``input_fn``
# ---------------------
#
# ``fit`` draws a mini-batch for each *estimator*: the trained network, normalized with the
# statistics of that mini-batch. By default it calls the network with the first part of a batch,
# which here is the label. To choose the inputs yourself, pass ``input_fn``, a function that takes a
# batch and returns a tensor, a tuple of positional arguments, or a dict of keyword arguments.

from mcbn import MCBatchNorm


def inputs(batch):
    return {"left": batch["left"], "right": batch["right"]}


mc = MCBatchNorm(adder, num_estimators=16, mc_batch_size=32)
mc.fit(loader, input_fn=inputs)

# %%
# Predict
# -------
#
# The output is a dict again. Each tensor in it has gained a first axis, that of the estimators.

from mcbn.predictive import summarise_classification

test = next(iter(DataLoader(test_pairs, batch_size=len(test_pairs))))
with torch.no_grad():
    output = mc(**inputs(test))
print({name: tuple(value.shape) for name, value in output.items()})

summary = summarise_classification(output["sum"])
right = summary.label == test["total"]
print(f"{right.float().mean():.0%} of the sums are right")
print(f"entropy {summary.entropy[right].mean():.2f} where right", end=", ")
print(f"{summary.entropy[~right].mean():.2f} where wrong")

# %%
# Most sums are right, and the network is less sure of the wrong ones.

assert right.float().mean() > 0.5
assert summary.entropy[~right].mean() > summary.entropy[right].mean()

# %%
# These are the four pairs with the highest entropy. Below each pair is a row for each estimator and
# a column for each sum from 0 to 18: the darker a cell, the more probable the sum. The frame marks
# the true one.

from mcbn.plotting import plot_estimators
from mcbn.predictive import probabilities

doubtful = summary.entropy.topk(4).indices
pairs = torch.cat([test["left"], test["right"]], dim=-1)[doubtful]
pairs = (pairs - pairs.min()) / (pairs.max() - pairs.min())
plot_estimators(pairs, probabilities(output["sum"])[:, doubtful], test["total"][doubtful])

# %%
# Check the result on your network
# --------------------------------
#
# Where possible, the wrapper runs several estimators at once. ``print(mc)`` shows which path it
# took, and why if it ran one estimator after another. To check the fast path on your own network,
# build a second wrapper with ``path="loop"``, which makes one plain forward pass for each
# estimator, and use a generator to give both the same mini-batches.

print(mc.extra_repr())

fast, slow = (
    MCBatchNorm(adder, num_estimators=4, mc_batch_size=32, path=path).fit(
        loader, input_fn=inputs, generator=torch.Generator().manual_seed(1)
    )
    for path in ("auto", "loop")
)
with torch.no_grad():
    torch.testing.assert_close(fast(**inputs(test)), slow(**inputs(test)), rtol=1e-3, atol=1e-3)

# %%
# What ``fit`` needs
# ------------------
#
# - *The training data*, with or without labels. From a ``DataLoader`` it draws examples at random,
#   through the dataset's transforms and the loader's ``collate_fn``; the loader's sampler and batch
#   size do not matter. Any other iterable has to give one batch for each estimator.
# - *Enough data*: at least ``mc_batch_size`` examples, and at least two values per channel in each
#   mini-batch.
# - *The trained network.* After more training, call ``fit`` again.
#
# Error messages
# --------------
#
# When something is wrong, the wrapper raises an error, and the statistics of an earlier ``fit``
# stay in force. These are the most common mistakes:

import textwrap

from torch.utils.data import TensorDataset

table = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
rows = torch.randn(40, 6)
bad_rows = rows.clone()
bad_rows[:, 2] = torch.nan


def wrap(size=32):
    return MCBatchNorm(table, num_estimators=4, mc_batch_size=size)


# %%
# Each entry of ``mistakes`` makes one of them when it is called.

mistakes = {
    "predict before fit": lambda: wrap().eval()(rows),
    "no batch norm": lambda: MCBatchNorm(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))),
    "few examples": lambda: wrap(64).fit(DataLoader(TensorDataset(rows))),
    "few batches": lambda: wrap().fit([rows, rows]),
    "a mini-batch of one": lambda: wrap(1).fit(DataLoader(TensorDataset(rows))),
    "NaN in the data": lambda: wrap().fit([bad_rows] * 4),
    "the wrong part of a batch": lambda: wrap().fit([("row 1", rows)] * 4),
    "another num_estimators": lambda: wrap().load_state_dict(
        MCBatchNorm(table, num_estimators=8).fit([rows] * 8).state_dict()
    ),
}

# %%
# We call each and print the message.

for name, mistake in mistakes.items():
    try:
        mistake()
    except (RuntimeError, TypeError, ValueError) as error:
        print(name)
        print(textwrap.indent(textwrap.fill(f"{type(error).__name__}: {error}", 84), "    "))
    else:
        raise AssertionError(f"{name} passed unnoticed")

# %%
# Training mode
# -------------
#
# One mistake raises no error. In training mode the wrapper is the plain network, without the axis
# of the estimators, so that you can train it further. A wrapper starts in the mode of its network,
# and ``fit`` does not change it. Call ``eval()`` before you predict.

mc = wrap().fit([rows] * 4).train()
print(tuple(mc(rows).shape), "in training mode,", tuple(mc.eval()(rows).shape), "after eval()")
assert mc(rows).shape == (4, 40, 3)

# %%
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_segmentation.py` has a network whose output is
# an image, and :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_deployment.py` takes a fitted
# wrapper into production. The guide has a page :doc:`/guide/own_networks`, too: it lists which
# networks are refused, and what the wrapper leaves untouched.
