"""
Inside other libraries
======================

You train in scikit-learn's cross-validation, take your backbone from timm or your U-Net from
segmentation-models-pytorch, or test with torch-uncertainty. This page adds Monte Carlo Batch
Normalization (MCBN) to each, in at most ten lines. The networks are small and most are untrained:
the page shows how to wrap them, not how good they are. The digits come with scikit-learn, and the
seed is 0.

The libraries are skorch (BSD 3-clause), timm (Apache 2.0), segmentation-models-pytorch (MIT) and
torch-uncertainty (Apache 2.0). :doc:`/guide/other_libraries` covers transformers, which is too
large to install for this page.

scikit-learn, through skorch
----------------------------

skorch turns a PyTorch network into a scikit-learn classifier. In training mode a wrapper is the
plain network, so it can take the network's place. The subclass below fits the wrapper after
training. Its probabilities are the mean over the *estimators*: each is the trained network,
normalized with the statistics of one mini-batch of training data.
"""

# sphinx_gallery_tags = ["own networks", "other libraries"]

import torch
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mcbn import MCBatchNorm
from mcbn.predictive import mean_probs


class MCBNClassifier(NeuralNetClassifier):
    def fit(self, X, y, **kwargs):
        super().fit(X, y, **kwargs)
        self.module_.fit(DataLoader(TensorDataset(torch.from_numpy(X))))
        return self

    def predict_proba(self, X):
        with torch.no_grad():
            return mean_probs(self.module_.eval()(torch.from_numpy(X))).numpy()


# %%
# It goes wherever a scikit-learn classifier goes: into ``cross_val_score``, pipelines and searches.
# We compare it with the plain classifier by the negative log-likelihood, on 300 digits of 8 by 8
# pixels.

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score

torch.manual_seed(0)
digits, labels = load_digits(return_X_y=True)
X, y = (digits[:300] / 16).astype(np.float32), labels[:300]
network = nn.Sequential(
    nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(),
    nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
)  # fmt: skip

# %%
# Both classifiers have the same network and the same training.

common = {
    "criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.Adam, "lr": 3e-3,
    "batch_size": 32, "max_epochs": 10, "train_split": None, "verbose": 0,
    "iterator_train__shuffle": True, "iterator_train__drop_last": True,
}  # fmt: skip
classifiers = {
    "plain": NeuralNetClassifier(network, **common),
    "MCBN": MCBNClassifier(MCBatchNorm, module__model=network, module__mc_batch_size=32, **common),
}
for name, classifier in classifiers.items():
    scores = cross_val_score(classifier, X, y, cv=3, scoring="neg_log_loss")
    print(f"{name:6} negative log-likelihood {-scores.mean():.3f}")
    assert scores.mean() > -1

# %%
# Each trains its own three networks, so a small difference means nothing.
#
# timm
# ----
#
# Wrap a timm network as it is, including its fused layers of batch norm and activation. Methods
# such as ``forward_features`` and ``reset_classifier`` remain on the network inside, ``mc.model``.
# Here the weights are random. With ``pretrained=True`` timm downloads trained ones;
# :ref:`sphx_glr_auto_tutorials_In_Practice_tutorial_pretrained.py` shows what to watch out for.

import timm

backbone = timm.create_model("mobilenetv3_small_050", num_classes=5)
pictures = torch.randn(32, 3, 64, 64)
backbone(pictures)  # a step of training leaves running statistics
mc = MCBatchNorm(backbone, num_estimators=4, mc_batch_size=16)
mc.fit(DataLoader(TensorDataset(pictures))).eval()
with torch.no_grad():
    logits = mc(pictures[:3])
print(tuple(logits.shape))

# %%
# The wrapper runs several estimators at once. To check the result on your network, compare it with
# one forward pass for each estimator.


def check(model, data, x):
    fast, slow = (
        MCBatchNorm(model, num_estimators=4, mc_batch_size=8, path=path)
        .fit(DataLoader(TensorDataset(data)), generator=torch.Generator().manual_seed(1))
        .eval()
        for path in ("auto", "loop")
    )
    with torch.no_grad():
        torch.testing.assert_close(fast(x), slow(x), rtol=1e-3, atol=1e-3)


check(backbone, pictures, pictures[:3])

# %%
# segmentation-models-pytorch
# ---------------------------
#
# A U-Net predicts a class for every pixel. In its output, the axis of the estimators comes first.

import segmentation_models_pytorch as smp

from mcbn.plotting import plot_maps
from mcbn.predictive import summarise_classification

unet = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=4).train()
unet(pictures)
mc = MCBatchNorm(unet.eval(), num_estimators=8, mc_batch_size=16)
mc.fit(DataLoader(TensorDataset(pictures))).eval()
with torch.no_grad():
    logits = mc(pictures[:2])

# %%
# The functions of :mod:`mcbn.predictive` expect *(estimators, examples, classes)*, so the classes
# move to the end, and each pixel becomes an example. *Doubt* is the mutual information, which
# measures how far the estimators disagree.

summary = summarise_classification(logits.movedim(2, -1).flatten(1, -2))
doubt = summary.mutual_information.view(2, 64, 64)
print(tuple(logits.shape), tuple(doubt.shape))
check(unet, pictures, pictures[:2])

axes = plot_maps(pictures[:2, 0].sigmoid(), {"doubt": doubt})
axes[0, 0].figure.set_label(
    "Two images of noise, and under each the doubt of a U-Net that was never trained."
)

# %%
# torch-uncertainty
# -----------------
#
# Its routines test ensembles whose members are in the batch axis, with all images of the first
# member first: *(m b) c*. Applied to our prediction, ``flatten(0, 1)`` gives exactly that.

from torch_uncertainty.routines import ClassificationRoutine

from mcbn import Trainer


class Flat(nn.Module):
    def __init__(self, mc):
        super().__init__()
        self.mc = mc

    def forward(self, x):
        return self.mc(x).flatten(0, 1)


# %%
# We train the classifier with MCBN once more, on all 300 digits, and let the routine test it on the
# others.

rest = (digits[300:] / 16).astype(np.float32), labels[300:]
test = DataLoader(TensorDataset(*map(torch.from_numpy, rest)), batch_size=500)
classifier = classifiers["MCBN"].fit(X, y)
model = Flat(classifier.module_)
routine = ClassificationRoutine(model, num_classes=10, loss=None, is_ensemble=True)
[results] = Trainer(enable_model_summary=False).test(routine, test, verbose=False)
for name in ("test/cls/Acc", "test/cls/NLL", "test/cal/ECE", "test/ens_MI"):
    print(f"{name:14} {results[name]:.3f}")

# %%
# The accuracy agrees with the one that we compute ourselves.

accuracy = (classifier.predict(rest[0]) == rest[1]).mean()
assert abs(accuracy - results["test/cls/Acc"]) < 1e-4

# %%
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_own_network.py` says what ``fit`` needs from
# your data, and what it does when something is wrong.
