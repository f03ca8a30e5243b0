"""MCBN against torch-uncertainty's and a former version, on the same networks and inputs.

All run in one process, in turn, with the same weights and statistics, and the medians' ratio is
printed with what was asked for. It needs torch-uncertainty, which is no dependency of this project,
in an environment of its own:

    python3 -m venv bench && bench/bin/pip install -e . "torch-uncertainty==0.13.0"
    bench/bin/python tests/benchmarks/inference.py [--only WORD] [--csv FILE] [--former CHECKOUT]

``--compile`` measures ``torch.compile`` instead. On a machine with a GPU, predictions there are
measured against plain passes.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    former: float | None
    ours: float
    asked: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours

    @property
    def cells(self) -> list[str]:
        former = "" if self.former is None else f"{self.former:.2f}"
        numbers = [f"{n:.2f}" for n in (self.ours, self.ratio, self.asked)]
        return [self.case, f"{self.theirs:.2f}", former, *numbers]


HEADER = ["Case", "The other, ms", "Former, ms", "mcbn, ms", "Ratio", "Asked"]


def resnet18_cifar() -> nn.Module:
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet": (lambda: lenet(1, 10), (1, 28, 28)),
    "ResNet-18 (CIFAR)": (resnet18_cifar, (3, 32, 32)),
    "resnet18 224": (torchvision.models.resnet18, (3, 224, 224)),
    "resnet18 64": (torchvision.models.resnet18, (3, 64, 64)),
    "resnet50 224": (torchvision.models.resnet50, (3, 224, 224)),
}

# network, estimators, batch, at least how many times as fast
PREDICT = [
    ("LeNet", 8, 1, 1.0),
    ("LeNet", 32, 1, 1.0),
    ("LeNet", 8, 32, 1.0),
    ("LeNet", 8, 128, 1.0),
    ("LeNet", 8, 512, 1.0),
    ("LeNet", 32, 32, 1.0),
    ("LeNet", 32, 128, 1.0),
    ("LeNet", 32, 512, 1.0),
    ("ResNet-18 (CIFAR)", 8, 1, 1.0),
    ("ResNet-18 (CIFAR)", 8, 32, 1.0),
    ("resnet18 224", 8, 1, 1.0),
    ("resnet18 224", 8, 8, 1.35),
    ("resnet50 224", 8, 8, 1.15),
]
LAST = [("resnet18 224", 8, 8, 1.35), ("resnet50 224", 8, 8, 1.15)]
FIT = [
    ("LeNet", 8, 16, 1.3),
    ("LeNet", 8, 128, 1.3),
    ("ResNet-18 (CIFAR)", 8, 16, 1.1),
]
PASSES = [("LeNet", 8, 128, 1.8), ("LeNet", 8, 512, 1.8)]
COMPILE = [("LeNet", 1), ("LeNet", 128), ("resnet18 64", 1), ("resnet18 64", 8)]


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


def wrappers(
    name: str, num_estimators: int, mc_batch_size: int, memory_format: torch.memory_format
) -> tuple[list[Any], nn.Module]:
    """Our wrapper, the former one if there is one, and theirs, with the same statistics."""
    from torch_uncertainty.post_processing import MCBatchNorm as Theirs

    model, shape = trained(name).to(memory_format=memory_format), NETWORKS[name][1]  # pyright: ignore
    images = torch.randn(num_estimators * mc_batch_size, *shape)
    if images.dim() == 4:
        images = images.to(memory_format=memory_format)
    batches = list(images.split(mc_batch_size))
    ours = [
        each(model, num_estimators, mc_batch_size=mc_batch_size, correction=1).fit(batches).eval()
        for each in (MCBatchNorm, *FORMER)
    ]
    Theirs.mc_batch_norm_layers = []  # kept on the class: earlier wrappers would be driven too
    theirs = Theirs(model, num_estimators, mc_batch_size=mc_batch_size)
    theirs.fit(DataLoader(TensorDataset(images, torch.zeros(len(images)))))
    return ours, theirs.eval()


FORMER: list[Any] = []


def load_former(checkout: Path) -> None:
    """The MCBatchNorm of another checkout, beside the one that is imported."""
    ours = {
        name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "mcbn"
    }
    sys.path.insert(0, str(checkout))
    import mcbn

    FORMER.append(mcbn.MCBatchNorm)
    for name in [name for name in sys.modules if name.split(".")[0] == "mcbn"]:
        del sys.modules[name]
    sys.modules.update(ours)
    sys.path.pop(0)


def row(case: str, theirs: Callable[[], object], ours: list[Any], asked: float) -> Row:
    b, a, *former = in_turn(ours[0], theirs, *ours[1:])
    return Row(case, a, former[0] if former else None, b, asked)


def predict_row(
    name: str, num_estimators: int, batch: int, asked: float, last: bool = False
) -> Row:
    layout = torch.channels_last if last else torch.contiguous_format
    ours, theirs = wrappers(name, num_estimators, 16, layout)
    x = torch.randn(batch, *NETWORKS[name][1]).to(memory_format=layout)
    with torch.inference_mode():
        expected = theirs(x)
        for each in ours:
            error = (each(x).flatten(0, 1) - expected).abs().max() / expected.abs().max()
            if error > 1e-4:
                raise SystemExit(f"{name}: the two differ by {error:.1e}")
        case = f"{name}, {num_estimators} estimators, batch {batch}"
        case += ", channels last" if last else ""
        return row(case, lambda: theirs(x), [lambda e=e: e(x) for e in ours], asked)


def fit_row(name: str, num_estimators: int, mc_batch_size: int, asked: float) -> Row:
    ours, theirs = wrappers(name, num_estimators, mc_batch_size, torch.contiguous_format)
    images = torch.randn(num_estimators * mc_batch_size, *NETWORKS[name][1])
    loader = DataLoader(TensorDataset(images, torch.zeros(len(images))))
    case = f"fit, {name}, {num_estimators} of {mc_batch_size}"
    return row(case, lambda: theirs.fit(loader), [lambda e=e: e.fit(loader) for e in ours], asked)


def plain_passes_row(name: str, num_estimators: int, batch: int, passes: float, device: str) -> Row:
    """A prediction against so many passes of the plain network."""
    model, shape = trained(name).to(device), NETWORKS[name][1]
    batches = [torch.randn(16, *shape, device=device) for _ in range(num_estimators)]
    ours = [
        each(model, num_estimators, mc_batch_size=16).fit(batches).eval()
        for each in (MCBatchNorm, *FORMER)
    ]
    x = torch.randn(batch, *shape, device=device)
    case = f"{name}, {num_estimators} estimators, batch {batch}, against {passes:g} plain passes"
    with torch.inference_mode():
        result = row(f"{case} ({device})", lambda: model(x), [lambda e=e: e(x) for e in ours], 1.0)
    result.theirs *= passes
    return result


def compile_rows(name: str, batch: int) -> list[Row]:
    """Seconds to compile, against twice the plain network's; and a call, against an eager one."""
    model, shape = trained(name), NETWORKS[name][1]
    ours = MCBatchNorm(model, 8, mc_batch_size=16).fit([torch.randn(16, *shape) for _ in range(8)])
    ours.eval()
    x = torch.randn(batch, *shape)
    torch.compile(lambda x: x + 1)(x)  # the compiler's own start
    seconds, compiled = [], ours
    with torch.no_grad():
        for network in (model, ours):
            torch.compiler.reset()
            compiled = torch.compile(network)
            start = time.perf_counter()
            compiled(x)
            seconds.append((time.perf_counter() - start) * 1e3)
        error = (compiled(x) - ours(x)).abs().max() / ours(x).abs().max()
        if error > 1e-4:
            raise SystemExit(f"{name}: the compiled wrapper is off by {error:.1e}")
        case = f"{name}, 8 estimators, batch {batch}, compiled"
        run = row(f"{case}: a call, against eager", lambda: ours(x), [lambda: compiled(x)], 1.0)
    return [
        Row(f"{case}: compiling it, against the network", seconds[0], None, seconds[1], 0.5),
        run,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this word")
    parser.add_argument("--csv", type=Path, help="write the rows to this file, too")
    parser.add_argument("--former", type=Path, help="a checkout of a former version")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile")
    options = parser.parse_args()
    if options.former:
        load_former(options.former)

    jobs: list[tuple[str, Callable[[], list[Row]]]] = []
    if options.compile:
        jobs += [(f"{c[0]} {c[1]}", lambda c=c: compile_rows(*c)) for c in COMPILE]
    elif torch.cuda.is_available():
        for case in [("LeNet", 32, 128, 4.0), ("ResNet-18 (CIFAR)", 32, 128, 32.0)]:
            jobs.append((case[0], lambda c=case: [plain_passes_row(*c, "cuda")]))
    else:
        jobs += [(f"{c[0]} {c[1]} {c[2]}", lambda c=c: [predict_row(*c)]) for c in PREDICT]
        jobs += [(f"last {c[0]}", lambda c=c: [predict_row(*c, last=True)]) for c in LAST]
        jobs += [(f"fit {c[0]}", lambda c=c: [fit_row(*c)]) for c in FIT]
        jobs += [(f"passes {c[0]}", lambda c=c: [plain_passes_row(*c, "cpu")]) for c in PASSES]
    rows: list[Row] = []
    print("".join(f"{word:>{72 if word == HEADER[0] else 14}}" for word in HEADER))
    for name, job in jobs:
        if options.only in name:
            for each in job():
                rows.append(each)
                verdict = "" if each.ratio >= each.asked else "  short"
                cells = "".join(f"{cell:>14}" for cell in each.cells[1:])
                print(f"{each.case:<72}{cells}{verdict}", flush=True)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows(each.cells for each in rows)


if __name__ == "__main__":
    main()
