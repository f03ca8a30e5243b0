"""How long the first tutorial takes, next to torch-uncertainty's tutorial of the same name.

Three ratios are measured, each over runs that take turns, so that a busy machine slows both sides:

- the tutorial, whole process, against the other library's on the same digits and as many steps;
- an epoch of training through Lightning against a bare PyTorch loop over the same batches;
- ``import mcbn`` against ``import torch``.

The other library needs an environment of its own, as its dependencies differ::

    python3 -m venv tu && tu/bin/pip install "torch-uncertainty[cpu,image,others]==0.13.0"
    MCBN_DATA=data python tests/benchmarks/tutorial.py --other tu/bin/python

Without ``--other`` the first ratio is left out. The full MNIST has to be in ``MCBN_DATA``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from rich import print
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader

from mcbn import ClassificationRoutine, MNISTDataModule, Trainer, lenet, optim_lenet

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "auto_tutorials/Bayesian_Methods/tutorial_mc_batch_norm.py"

# torch-uncertainty's tutorial, but for three things: the CPU, a reshape to the batch that comes (it
# says 128), and the network's own test of the MCBN, which it lacks, left out here too.
OTHER = """
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchvision
from torch import nn
from torch_uncertainty import TUTrainer
from torch_uncertainty.datamodules import MNISTDataModule
from torch_uncertainty.models import lenet
from torch_uncertainty.optim_recipes import optim_cifar10_resnet18
from torch_uncertainty.post_processing import MCBatchNorm
from torch_uncertainty.routines import ClassificationRoutine

trainer = TUTrainer(accelerator="cpu", devices=1, max_epochs=2, enable_progress_bar=False)
datamodule = MNISTDataModule(Path(sys.argv[1]), batch_size=128)
model = lenet(datamodule.num_channels, datamodule.num_classes, norm=nn.BatchNorm2d)
routine = ClassificationRoutine(
    num_classes=datamodule.num_classes,
    model=model,
    loss=nn.CrossEntropyLoss(),
    optim_recipe=optim_cifar10_resnet18(model),
)
trainer.fit(model=routine, datamodule=datamodule)
trainer.test(model=routine, datamodule=datamodule)
routine.model = MCBatchNorm(routine.model, num_estimators=8, convert=True, mc_batch_size=16)
routine.model.fit(datamodule.train_dataloader())
routine = routine.eval()

images, labels = next(iter(datamodule.val_dataloader()))
logits = routine(images).reshape(8, len(images), 10)
probs = torch.nn.functional.softmax(logits, dim=-1)
most_uncertain = sorted(probs.var(0).sum(-1).topk(4).indices)
grid = torchvision.utils.make_grid(images[most_uncertain, ...]).numpy()
plt.imshow(np.transpose(grid, (1, 2, 0)))
plt.show()
"""


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Median seconds of each, taking turns."""
    times = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    mine, other = map(statistics.median, zip(*times, strict=True))
    return mine, other


def process(*command: str) -> Callable[[], object]:
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    return lambda: subprocess.run(
        command, check=True, env=environment, cwd=args.scratch, stdout=subprocess.DEVNULL
    )


def epochs() -> tuple[Callable[[], object], Callable[[], object]]:
    """An epoch of 60,000 digits through Lightning, and by a bare loop over the same batches."""
    datamodule = MNISTDataModule()
    batches = list(islice(datamodule.train_dataloader(), args.steps))
    loss = nn.CrossEntropyLoss()

    def through_lightning() -> None:
        routine = ClassificationRoutine(10, lenet(1, 10), loss, optim_lenet)
        trainer = Trainer(max_epochs=1, enable_model_summary=False, accelerator="cpu")
        trainer.fit(routine, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]

    def bare() -> None:
        model = lenet(1, 10).train()
        recipe = optim_lenet(model)
        for images, labels in batches:
            recipe["optimizer"].zero_grad()
            loss(model(images), labels).backward()
            recipe["optimizer"].step()
            recipe["lr_scheduler"]["scheduler"].step()

    return through_lightning, bare


def main() -> None:
    table = Table("what", "asked", "measured", "seconds")
    python = sys.executable
    if args.other:
        data = os.environ.get("MCBN_DATA", "data")
        both = process(python, str(TUTORIAL)), process(args.other, "-c", OTHER, data)
        ours, theirs = medians(*both, args.repeats)
        seen = f"{theirs / ours:.1f}", f"{ours:.1f}, {theirs:.1f}"
        table.add_row("tutorial, times as fast as torch-uncertainty's", "≥ 3", *seen)
    lightning, bare = medians(*epochs(), args.repeats)
    seen = f"{lightning / bare:.2f}", f"{lightning:.2f}, {bare:.2f}"
    table.add_row("epoch, Lightning over bare loop", "≤ 1.35", *seen)
    both = process(python, "-c", "import mcbn"), process(python, "-c", "import torch")
    mcbn, alone = medians(*both, 2 * args.repeats + 1)
    seen = f"{mcbn / alone:.2f}", f"{mcbn:.2f}, {alone:.2f}"
    table.add_row("import mcbn over import torch", "≤ 1.1", *seen)
    print(f"{torch.get_num_threads()} threads, medians of {args.repeats} runs", table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", help="python of an environment with torch-uncertainty 0.13")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=469, help="batches of an epoch")
    parser.add_argument("--scratch", default=".", help="folder where the other one leaves its logs")
    args = parser.parse_args()
    main()
