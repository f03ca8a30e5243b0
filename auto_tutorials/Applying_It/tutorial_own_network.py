"""
Your own network
================

MCBN asks one thing of a network: that it was trained with batch normalization. This page wraps
three that have little in common: a ResNet-18 from torchvision, a network for signals, and one that
takes two images in a dict. It shows what ``fit`` needs from your data, and what the wrapper says
when something is wrong. The signals are made on the spot, the digits come with the package.

Does it work with a network from a library?
-------------------------------------------

Yes, as it is. Here is a ResNet-18, whose 20 batch norm layers are spread over its blocks. Its
weights are random, and its images are 32 random ones of 32 by 32 pixels: this cell shows how to
wrap it, and says nothing about how good it is.
"""

# sphinx_gallery_tags = ["classification", "own networks"]

import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from mcbn import MCBatchNorm

torch.manual_seed(0)
resnet = resnet18(num_classes=10)
pictures = TensorDataset(torch.randn(32, 3, 32, 32), torch.zeros(32))
mc = MCBatchNorm(resnet, num_estimators=4, mc_batch_size=8)
mc.fit(DataLoader(pictures)).eval()
with torch.no_grad():
    logits = mc(torch.randn(5, 3, 32, 32))
print(tuple(logits.shape))

# %%
# Four estimators, five images, ten classes. The axis of the estimators comes first, always. The
# ResNet itself is unchanged: the wrapper holds a copy.
#
# Is the result right for my network?
# -----------------------------------
#
# The wrapper runs several estimators at once where it can, and one after another where it cannot.
# To see that both give the same, ask for one forward pass after another with ``path="loop"``, and
# draw the same mini-batches with a generator.

fast, slow = (
    MCBatchNorm(resnet, num_estimators=4, mc_batch_size=8, path=path).fit(
        DataLoader(pictures), generator=torch.Generator().manual_seed(1)
    )
    for path in ("auto", "loop")
)
with torch.no_grad():
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(fast.eval()(x), slow.eval()(x), rtol=1e-3, atol=1e-3)

# %%
# And with signals?
# -----------------
#
# ``BatchNorm1d`` is as good as ``BatchNorm2d``, and so are ``BatchNorm3d`` and ``SyncBatchNorm``.
# Our signals are tones in noise, recorded at very different volumes, whose pitch rises (class 1) or
# falls (class 0) from the first of 128 samples to the last. A small network learns from 256 of
# them.

from torch import nn


def tones(slope, phase, volume, noise):
    time = torch.linspace(-1, 1, 128)
    return volume * (torch.sin(phase + 20 * time + 4 * slope * time**2) + noise)


slopes = 2 * torch.rand(256, 1, 1) - 1
signals = tones(
    slopes,
    phase=2 * torch.pi * torch.rand(256, 1, 1),
    volume=(torch.randn(256, 1, 1) / 2).exp(),
    noise=torch.randn(256, 1, 128),
)
rises = (slopes > 0).long().flatten()

network = nn.Sequential(
    nn.Conv1d(1, 16, 9), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4),
    nn.Conv1d(16, 32, 9), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(4),
    nn.Flatten(), nn.Linear(128, 2),
)  # fmt: skip
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
for _ in range(15):
    for batch in torch.randperm(256).split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(signals[batch]), rises[batch]).backward()
        optimizer.step()

# %%
# Then we wrap it, with as many signals in a mini-batch as in the training, and play it one tone
# with one noise, whose slope we turn from falling to rising.

from mcbn.plotting import plot_curves
from mcbn.predictive import probabilities

mc = MCBatchNorm(network, num_estimators=16, mc_batch_size=16)
mc.fit(DataLoader(TensorDataset(signals))).eval()

sweep = torch.linspace(-1, 1, 101)
with torch.no_grad():
    logits = mc(tones(sweep.view(-1, 1, 1), phase=0, volume=1, noise=torch.randn(128)))
curves = probabilities(logits)[..., 1]

ax = plot_curves(sweep, curves)
ax.set(xlabel="slope of the pitch", ylabel="probability of rising", ylim=(0, 1))
ax.figure.set_label(
    "The probability of a rising tone against the slope of its pitch, a curve for each of 16 "
    "estimators: low for falling tones, high for rising ones, and a little apart from each other."
)

# %%
# On average the estimators tell a clearly falling tone from a clearly rising one. Where the curves
# lie apart, the mini-batch has a say in the answer: loud tones in it make the same tone look quiet.

mean, spread = curves.mean(0), curves.std(0).max()
print(f"mean probability at slope -1: {mean[0]:.2f}, at slope 1: {mean[-1]:.2f}")
print(f"spread of the estimators: at most {spread:.2f}")
assert mean[0] < 0.5 < mean[-1]
assert 0.005 < spread < 0.3

# %%
# What about several inputs, and batches that are dicts?
# ------------------------------------------------------
#
# This network reads two digits and tells their sum. Both go through the same LeNet, so that each of
# its batch norm layers is called twice in a forward pass; the wrapper keeps the statistics of each
# call. The dataset gives dicts, and the label comes first in them.

from mcbn import MNISTDataModule, lenet


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.reader = lenet(1, 10)
        self.head = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.out = nn.Linear(64, 19)

    def forward(self, left, right):
        read = torch.cat([self.reader(left), self.reader(right)], dim=1)
        return {"sum": self.out(self.head(read)), "read": read}


class Pairs(torch.utils.data.Dataset):
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
# It is trained on 2,000 pairs for 15 epochs.

loader = DataLoader(train_pairs, batch_size=32, shuffle=True, drop_last=True)
adder = Adder()
optimizer = torch.optim.Adam(adder.parameters(), lr=3e-3)
for _ in range(15):
    for batch in loader:
        optimizer.zero_grad()
        output = adder(batch["left"], batch["right"])
        nn.functional.cross_entropy(output["sum"], batch["total"]).backward()
        optimizer.step()

# %%
# ``fit`` takes the first part of a batch for the network's input, which here would be the label.
# ``input_fn`` says it better: it gets the batch, and returns a tensor, a tuple of positional
# arguments or a dict of keyword arguments.

mc = MCBatchNorm(adder, num_estimators=16, mc_batch_size=32)
mc.fit(loader, input_fn=lambda batch: {"left": batch["left"], "right": batch["right"]})

# %%
# The output is a dict, too, and each tensor in it gains the axis of the estimators.

from mcbn.predictive import summarise_classification

test = next(iter(DataLoader(test_pairs, batch_size=len(test_pairs))))
with torch.no_grad():
    output = mc.eval()(left=test["left"], right=test["right"])
print({name: tuple(value.shape) for name, value in output.items()})

summary = summarise_classification(output["sum"])
right = summary.label == test["total"]
print(f"{right.float().mean():.0%} of the sums are right")
print(f"entropy {summary.entropy[right].mean():.2f} where right", end=", ")
print(f"{summary.entropy[~right].mean():.2f} where wrong")

# %%
# Most sums are right, and the network is less sure of those that are not.

assert right.float().mean() > 0.8
assert summary.entropy[~right].mean() > summary.entropy[right].mean()

# %%
# What does ``fit`` need?
# -----------------------
#
# - The training data, without labels if you like: a ``DataLoader``, from whose dataset it draws at
#   random, through the loader's own transforms and ``collate_fn``; its sampler and batch size do
#   not matter. Or any iterable that gives one batch for each estimator.
# - At least ``mc_batch_size`` examples, and two values a channel.
# - The trained network. After more training, call ``fit`` again.
#
# What if something is wrong?
# ---------------------------
#
# Then it says so, and the statistics of an earlier ``fit`` stay in force. These are the errors that
# are met most often:

import textwrap

table = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
rows = torch.randn(40, 6)
bad_rows = rows.clone()
bad_rows[:, 2] = torch.nan


def wrap(size=32):
    return MCBatchNorm(table, num_estimators=4, mc_batch_size=size)


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
for name, mistake in mistakes.items():
    try:
        mistake()
    except (RuntimeError, TypeError, ValueError) as error:
        print(name)
        print(textwrap.indent(textwrap.fill(f"{type(error).__name__}: {error}", 84), "    "))
    else:
        raise AssertionError(f"{name} passed unnoticed")

# %%
# One mistake raises no error. A wrapper in training mode is the plain network, without the axis of
# the estimators, so that it can go on training; and a network that was in training mode gives a
# wrapper in training mode. Call ``eval()`` before you predict.

mc = wrap().fit([rows] * 4).train()
print(tuple(mc(rows).shape), "in training mode,", tuple(mc.eval()(rows).shape), "after eval()")
assert mc(rows).shape == (4, 40, 3)

# %%
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_segmentation.py` has a network whose output is
# an image, and :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_deployment.py` takes a fitted
# wrapper into service. A network whose training data you lack is the subject of
# :ref:`sphx_glr_auto_tutorials_In_Practice_tutorial_pretrained.py`, and
# :ref:`sphx_glr_auto_tutorials_In_Practice_tutorial_other_libraries.py` puts one into the libraries
# that you use already.
