"""Draw the README's figure, docs/_static/eight_readings.png, from the digits in the package.

Run as ``python docs/make_readme_figure.py``.
"""

from __future__ import annotations

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
plt.savefig(Path(__file__).parent / "_static/eight_readings.png", dpi=110, facecolor="white")
