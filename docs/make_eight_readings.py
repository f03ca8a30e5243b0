"""Draw the figure of the first page from the digits in the package.

Run as ``python docs/make_eight_readings.py``; it writes docs/_static/eight_readings.png, and
eight_readings_dark.png for the site's dark theme.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
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
from mcbn.plotting import plot_estimators
from mcbn.predictive import mutual_information, probabilities

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
from mcbn_gallery import darken

torch.manual_seed(0)
datamodule = MNISTDataModule(source="sample")
model = lenet(1, 10)
routine = ClassificationRoutine(10, model, nn.CrossEntropyLoss(), optim_lenet)
Trainer(max_steps=938, accelerator="cpu").fit(routine, datamodule=datamodule)

mc = MCBatchNorm(model, num_estimators=8, mc_batch_size=16).fit(datamodule.train_dataloader())
test_set = datamodule.dataset("test")
images, labels = test_set.__getitems__(range(len(test_set)))
with torch.no_grad():
    probs = probabilities(mc.eval()(images))
information = mutual_information(probs)
# One digit that all estimators read alike, and the three about which they differ most.
chosen = torch.cat([information.argsort()[-500:-499], information.topk(3).indices])
plot_estimators(test_set.images[chosen] / 255, probs[:, chosen], labels[chosen])
static = Path(__file__).parent / "_static"
plt.savefig(static / "eight_readings.png", dpi=2 * 96, facecolor="white")
darken(plt.gcf())
plt.savefig(static / "eight_readings_dark.png", dpi=2 * 96, transparent=True)
