"""MCBN against torch-uncertainty's, on the same networks, weights, statistics and inputs.

Both run in one process, in turn, and the medians' ratio is printed with what was asked for. It
needs torch-uncertainty, which is no dependency of this project, in an environment of its own:

    python3 -m venv bench && bench/bin/pip install -e . "torch-uncertainty==0.13.0"
    bench/bin/python tests/benchmarks/inference.py [--only WORD] [--csv FILE]

On a machine with a GPU the rows that are asked for there are measured against plain passes.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mcbn import MCBatchNorm, lenet


@dataclass
class Row:
    """One line of the table: times in milliseconds."""

    case: str
    theirs: float
    ours: float
    ratio: float
    asked: float
    path: str

    @property
    def figures(self) -> tuple[float, float, float, float]:
        return self.theirs, self.ours, self.ratio, self.asked

    @property
    def met(self) -> bool:
        return self.ratio >= self.asked


def resnet18_cifar() -> nn.Module:
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet": (lambda: lenet(1, 10), (1, 28, 28)),
    "ResNet-18 (CIFAR)": (resnet18_cifar, (3, 32, 32)),
    "resnet18 224": (torchvision.models.resnet18, (3, 224, 224)),
    "resnet50 224": (torchvision.models.resnet50, (3, 224, 224)),
}

# network, estimators, batch, at least how many times as fast
PREDICT = [
    ("LeNet", 8, 1, 5.0),
    ("LeNet", 32, 1, 10.0),
    ("LeNet", 8, 32, 3.5),
    ("LeNet", 8, 128, 3.5),
    ("LeNet", 8, 512, 3.5),
    ("LeNet", 32, 32, 3.5),
    ("LeNet", 32, 128, 3.5),
    ("LeNet", 32, 512, 3.5),
    ("ResNet-18 (CIFAR)", 8, 1, 1.5),
    ("ResNet-18 (CIFAR)", 8, 32, 1.0),
    ("resnet18 224", 8, 1, 1.4),
    ("resnet18 224", 8, 8, 1.15),
    ("resnet50 224", 8, 8, 1.05),
]
FIT = [("LeNet", 8, 16, 1.3), ("ResNet-18 (CIFAR)", 8, 16, 1.0)]


def in_turn(*functions: Callable[[], object], seconds: float = 6.0) -> list[float]:
    """Median milliseconds of each function, called in turn: at least 5 and at most 200 times."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    start = time.perf_counter()
    while len(times[0]) < 5 or (time.perf_counter() - start < seconds and len(times[0]) < 200):
        for function, taken in zip(functions, times, strict=True):
            before = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append((time.perf_counter() - before) * 1e3)
    return [statistics.median(taken) for taken in times]


def trained(name: str) -> nn.Module:
    """The network with batch norm weights of both signs, as training gives."""
    torch.manual_seed(0)
    model = NETWORKS[name][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval()


def both(name: str, num_estimators: int, mc_batch_size: int = 16) -> tuple[MCBatchNorm, nn.Module]:
    """Our wrapper and theirs, with the same statistics."""
    from torch_uncertainty.post_processing import MCBatchNorm as Theirs

    model, shape = trained(name), NETWORKS[name][1]
    batches = [torch.randn(mc_batch_size, *shape) for _ in range(num_estimators)]
    ours = MCBatchNorm(model, num_estimators, mc_batch_size=mc_batch_size, correction=1)
    ours.fit(batches).eval()
    Theirs.mc_batch_norm_layers = []  # kept on the class: earlier wrappers would be driven too
    theirs = Theirs(model, num_estimators, mc_batch_size=mc_batch_size)
    images = torch.cat(batches)
    theirs.fit(DataLoader(TensorDataset(images, torch.zeros(len(images)))))
    return ours, theirs.eval()


def predict_row(name: str, num_estimators: int, batch: int, asked: float) -> Row:
    ours, theirs = both(name, num_estimators)
    x = torch.randn(batch, *NETWORKS[name][1])
    with torch.inference_mode():
        got = ours(x).flatten(0, 1)
        expected = theirs(x)
        error = ((got - expected).abs().max() / expected.abs().max()).item()
        if error > 1e-4:
            raise SystemExit(f"{name}: the two differ by {error:.1e}")
        a, b = in_turn(lambda: theirs(x), lambda: ours(x))
    case = f"{name}, {num_estimators} estimators, batch {batch}"
    return Row(case, a, b, a / b, asked, "loop" if ours.loop_reason else "vmap")


def fit_row(name: str, num_estimators: int, mc_batch_size: int, asked: float) -> Row:
    ours, theirs = both(name, num_estimators)
    images = torch.randn(num_estimators * mc_batch_size, *NETWORKS[name][1])
    loader = DataLoader(TensorDataset(images, torch.zeros(len(images))))
    a, b = in_turn(lambda: theirs.fit(loader), lambda: ours.fit(loader))
    return Row(f"fit, {name}, {num_estimators} of {mc_batch_size}", a, b, a / b, asked, "")


def plain_passes_row(name: str, num_estimators: int, batch: int, passes: float, device: str) -> Row:
    """A prediction against so many passes of the plain network."""
    model, shape = trained(name).to(device), NETWORKS[name][1]
    ours = MCBatchNorm(model, num_estimators, mc_batch_size=16)
    ours.fit([torch.randn(16, *shape, device=device) for _ in range(num_estimators)]).eval()
    x = torch.randn(batch, *shape, device=device)
    with torch.inference_mode():
        a, b = in_turn(lambda: model(x), lambda: ours(x))
    case = f"{name}, {num_estimators} estimators, batch {batch}, against {passes:g} plain passes"
    return Row(
        f"{case} ({device})",
        passes * a,
        b,
        passes * a / b,
        1.0,
        "loop" if ours.loop_reason else "vmap",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this word")
    parser.add_argument("--csv", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()

    jobs: list[tuple[str, Callable[[], Row]]] = [
        (f"{c[0]} {c[1]} {c[2]}", lambda c=c: predict_row(*c)) for c in PREDICT
    ]
    jobs += [(f"fit {c[0]}", lambda c=c: fit_row(*c)) for c in FIT]
    jobs.append(("LeNet plain", lambda: plain_passes_row("LeNet", 8, 128, 2.0, "cpu")))
    if torch.cuda.is_available():
        jobs.append(("LeNet plain gpu", lambda: plain_passes_row("LeNet", 32, 128, 4.0, "cuda")))
        jobs.append(
            (
                "ResNet-18 plain gpu",
                lambda: plain_passes_row("ResNet-18 (CIFAR)", 32, 128, 32.0, "cuda"),
            )
        )
    rows = []
    print(f"{'case':<72}{'theirs ms':>10}{'ours ms':>9}{'ratio':>7}{'asked':>7}")
    for name, job in jobs:
        if options.only and options.only not in name:
            continue
        row = job()
        rows.append(row)
        verdict = "" if row.met else "  short"
        print(
            f"{row.case:<72}{row.theirs:>10.2f}{row.ours:>9.2f}{row.ratio:>7.2f}{row.asked:>7.2f}{verdict}",
            flush=True,
        )
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["Case", "The other, ms", "mcbn, ms", "Ratio", "Asked"])
            for row in rows:
                writer.writerow([row.case, *map("{:.2f}".format, row.figures)])


if __name__ == "__main__":
    main()
