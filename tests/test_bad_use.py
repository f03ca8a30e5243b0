"""Wrong use, over the whole public API: each row fails with plain words, and changes nothing."""

from __future__ import annotations

import ast
import copy
import functools
import gzip
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import mcbn
from mcbn import (
    ClassificationRoutine,
    MCBatchNorm,
    MNISTDataModule,
    RegressionRoutine,
    TableDataModule,
    Trainer,
    lenet,
    metrics,
    optim_lenet,
    plotting,
    predictive,
)
from mcbn.data import files
from mcbn.data.images import InMemoryImages, random_crop
from mcbn.data.tables import read_table
from mcbn.results import ResultTables, Table, Tables
from mcbn.training.models import unet

World = SimpleNamespace
Wrong = Callable[[World], object]

# --- What is there before each wrong use, and must be there after it -----------------------------


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8),
        nn.BatchNorm1d(8), nn.Linear(8, 3),
    )  # fmt: skip


def batches(count: int = 4, size: int = 9) -> list[Tensor]:
    return [torch.randn(size, 6) for _ in range(count)]


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (str(self.file), "w")


TABLES = {
    "empty": b"",
    "binary": bytes(range(256)),
    "gzipped": gzip.compress(b"1,2\n" * 99),
    "utf16": "1,2\n".encode("utf-16"),
    "nul": b"1,2\0\n3,4\n",
    "nan": b"1,2\n3,nan\n",
    "infinite": b"1e400,2\n",
    "truncated": b"1,2\n" * 9 + b"1,",
    "ragged": b"1,2\n3,4,5\n",
    "header": b"a,b,c\n1,2\n",
    "long": b"1,2\n" * 9 + b"x" * 10_000,
    "narrow": b"1\n2\n3\n",
    "short": b"1,2\n3,4\n",
    "huge": b"1e300,2\n-1e300,3\n2e300,1\n" * 5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are not what they should be, and a checkpoint."""
    folder = tmp_path_factory.mktemp("bad")
    for name, content in TABLES.items():
        (folder / f"{name}.csv").write_bytes(content)
    torch.save({"state_dict": Evil(folder / "executed")}, folder / "evil.pt")
    whole = (folder / "evil.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    return folder


GOOD = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
LABELS = torch.tensor([0, 1])
ONE = torch.ones(1)
FLAG = torch.tensor([True])


SCORES = (
    "BrierScore", "NLL", "Entropy", "CalibrationError", "AdaptiveCalibrationError",
    "AURC", "AUGRC", "CoverageAtRisk", "RiskAtCoverage",
)  # fmt: skip


def all_metrics() -> dict[str, metrics.Metric]:
    """Each with an example."""
    made: dict[str, metrics.Metric] = {}
    for name in SCORES:
        made[name] = getattr(metrics, name)()
        made[name].update(GOOD, LABELS)
    for name in ("MutualInformation", "Disagreement"):
        made[name] = getattr(metrics, name)()
        made[name].update(GOOD[None])
    for name in ("GaussianCRPS", "IntervalCoverage"):
        made[name] = getattr(metrics, name)()
        made[name].update(ONE, ONE, ONE)
    made["MixtureLogLikelihood"] = metrics.MixtureLogLikelihood()
    made["MixtureLogLikelihood"].update(ONE[None], 1.0, ONE)
    made["FPR95"] = metrics.FPR95()
    made["FPR95"].update(ONE, FLAG)
    return made


@pytest.fixture(scope="module")
def world(folder: Path) -> Iterator[World]:
    """One for all rows, as each leaves it as it was."""
    torch.manual_seed(0)
    model = network()
    fitted = MCBatchNorm(model.eval(), 4, mc_batch_size=8).fit(batches())
    fresh = MCBatchNorm(model.train(), 4, mc_batch_size=8)
    fresh.model[3].eval()
    figure, axes = plt.subplots(2, 3)
    yield World(
        model=model,
        fitted=fitted,
        fresh=fresh,
        metrics=all_metrics(),
        routine=classifier(),
        regression=regressor(),
        folder=folder,
        axes=axes,
    )
    plt.close(figure)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MIRRORS", {"MNIST": [], "FashionMNIST": []})
    monkeypatch.setattr("mcbn.data.digits._say", lambda line: None)


def fingerprint(world: World) -> dict[str, Any]:
    """All that a wrong use might change, as bytes and plain values."""
    seen: dict[str, Any] = {
        "figures": plt.get_fignums(),
        "drawn": [len(ax.get_children()) for ax in world.axes.flat],
        "files": {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(world.folder.rglob("*"))
        },
        "modes": len(_get_current_function_mode_stack()),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }
    for name, module in vars(world).items():
        if isinstance(module, nn.Module):
            state = {key: value.tolist() for key, value in module.state_dict().items()}
            modes = [part.training for part in module.modules()]
            hooks = [len(part._forward_pre_hooks) for part in module.modules()]
            seen[name] = state, modes, hooks, getattr(module, "_plan", None)
    for name, metric in world.metrics.items():
        states = metric.metric_state.items()
        seen[name] = {key: [torch.as_tensor(v).tolist() for v in value] if isinstance(value, list)
                      else value.tolist() for key, value in states}  # fmt: skip
    return seen


# --- The ways to use it wrong --------------------------------------------------------------------


class Items(Dataset[Any]):
    """Ten items, made by a function."""

    def __init__(self, item: Callable[[int], Any], size: int = 10) -> None:
        self.item, self.size = item, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class NoLength(Dataset[Tensor]):
    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(6)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randn(20, 6)


def raising(error: BaseException, after: int) -> Callable[[Any], Any]:
    """An item, a hook or a function that fails after so many calls."""
    calls = []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > after:
            raise error
        return torch.randn(6) if len(args) == 1 else None

    return fail


def midway(error: BaseException) -> Iterator[Tensor]:
    yield from batches(2)
    raise error


def hooked(
    world: World, error: BaseException, after: int, name: str = "fitted", layer: int = 4
) -> MCBatchNorm:
    """A wrapper whose network fails in one of its next forward passes."""
    mc = getattr(world, name)
    world.undo = mc.model[layer].register_forward_hook(raising(error, after)).remove
    return mc


class Unlike(nn.Module):
    """Calls its batch norm layer as often as the first value of the input says."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Any:
        times = 2 if x.shape[0] > 9 else 1
        for _ in range(times):
            x = self.norm(x)
        return x


class Half(nn.Module):
    """Reaches its layer with some batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if len(x) > 9 else x


def changed(key: str, value: Any) -> Wrong:
    """Loads a state with one entry changed, or without it."""

    def load(world: World) -> object:
        # Other values everywhere, to see that none of them got in.
        saved = {name: entry + 1 for name, entry in world.fitted.state_dict().items()}
        saved[key] = value
        if value is None:
            del saved[key]
        return world.fitted.load_state_dict(saved)

    return load


def interrupted_load(world: World) -> object:
    """Loads a state, and is interrupted in one of the last layers."""
    last = world.fitted.model[6]
    hook = last.register_load_state_dict_pre_hook(raising(KeyboardInterrupt("in a layer"), after=0))
    world.undo = hook.remove
    return world.fitted.load_state_dict({k: v + 1 for k, v in world.fitted.state_dict().items()})


# By what is used and what it raises: the words of the error, in their order, and the wrong use.
WRONG: dict[tuple[str, type[BaseException]], dict[str, Wrong]] = {}


def made(**options: Any) -> Wrong:
    return lambda w: MCBatchNorm(**{"model": network(), **options})


WRONG["convert", TypeError] = {
    "model is a type ... torch.nn.Module": made(model=nn.BatchNorm1d),
    "model is a NoneType ... pass a torch.nn.Module": made(model=None),
    "model is a str": made(model="lenet"),
    "num_estimators=1.5 is a float ... an integer": made(num_estimators=1.5),
    "num_estimators=True is a bool ... integer": made(num_estimators=True),
    "num_estimators='16' is a str ... integer": made(num_estimators="16"),
    "convert=32 is a int ... True or False ... the batch size is mc_batch_size=": lambda w: (
        MCBatchNorm(network(), 16, 32)
    ),
    "mc_batch_size=8.0 is a float ... an integer": made(mc_batch_size=8.0),
    "correction=True is a bool ... 0 (biased)": made(correction=True),
    "is a Tensor ... 1 (unbiased)": made(correction=LABELS),
    "momentum='1' is a str ... above 0, at most 1": made(momentum="1"),
}
WRONG["convert", ValueError] = {
    "Linear has no batch norm layer": made(model=nn.Linear(2, 2)),
    "lazy layers ... model(example_batch)": made(model=nn.LazyBatchNorm1d()),
    "holds an MCBatchNorm already ... pass the network in it, its .model": lambda w: MCBatchNorm(
        w.fitted, 4
    ),
    "num_estimators=4 ... statistics of 3 ... use the same number, or fit again": lambda w: (
        MCBatchNorm(MCBatchNorm(network(), 3).fit(batches(3)).model, 4, convert=False)
    ),
    "num_estimators=0 ... at least 1": made(num_estimators=0),
    "mc_batch_size=-1 ... at least 1": made(mc_batch_size=-1),
    "chunk_bytes=0 ... at least 1": made(chunk_bytes=0),
    "correction=2 ... 0 (biased)": made(correction=2),
    "momentum=0 ... above 0, at most 1": made(momentum=0),
    "momentum=1.5 ... above 0, at most 1": made(momentum=1.5),
    "momentum=nan ... above 0, at most 1": made(momentum=math.nan),
    "momentum=0.1 ... keeps none ... use momentum=1.0": made(
        model=nn.BatchNorm1d(2, track_running_stats=False), momentum=0.1
    ),
    "path='fast' ... 'auto' or 'loop'": made(path="fast"),
    "path=['fold'] ... it is 'auto'": made(path=["fold"]),
}


def fit_both(data: Callable[[], Any], **options: Any) -> Wrong:
    """First the wrapper that has statistics, then, for its error, the one that has none."""

    def fit(world: World) -> object:
        with pytest.raises(BaseException):  # noqa: B017, PT011
            world.fitted.fit(data(), **options)
        return world.fresh.fit(data(), **options)

    return fit


def loader(item: Callable[[int], Any], size: int = 10, **options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(Items(item, size), **options)


NO_TENSOR = "without a tensor; pass input_fn=, a function from a batch"
CHOICE = "if these are not its inputs, pass input_fn="

WRONG["fit", TypeError] = {
    "a NoneType ... pass a DataLoader": fit_both(lambda: None),
    "a TensorDataset ... cannot be iterated over ... pass a DataLoader": fit_both(
        lambda: TensorDataset(torch.randn(9, 6))
    ),
    "a TableDataModule ... pass a DataLoader": fit_both(TableDataModule),
    f"are a str ... {NO_TENSOR}": fit_both(lambda: "train"),
    "a NoLength without a length ... give it a __len__, or make it an IterableDataset": fit_both(
        lambda: DataLoader(NoLength(), sampler=[1, 2, 3])
    ),
    "a int, which cannot be iterated over": fit_both(lambda: 5),
    "pass input_fn=": fit_both(lambda: [("no tensor", torch.randn(9, 6))] * 4),
    "found <class 'NoneType'>": fit_both(loader(lambda i: None)),
    f"a dict ... {NO_TENSOR}": fit_both(loader(lambda i: {})),
    f"a list ... {NO_TENSOR}": fit_both(loader(lambda i: ())),
    f"a NoneType ... {NO_TENSOR}": fit_both(lambda: [None] * 4),
    f"batch are a dict ... {NO_TENSOR}": fit_both(lambda: [{}] * 4),
    f"a tuple ... {NO_TENSOR}": fit_both(lambda: [()] * 4),
    f"ndarray ... {NO_TENSOR}": fit_both(lambda: [np.zeros((9, 6))] * 4),
    f"batch are a list ... {NO_TENSOR}": fit_both(lambda: [[[1.0] * 6]] * 4),
    "generator=0 ... of the CPU": fit_both(batches, generator=0),
    "input_fn='x' is a str ... a function from a": fit_both(batches, input_fn="x"),
    "input_fn=0 is a int ... a function": fit_both(batches, input_fn=0),
    f"{NO_TENSOR}": fit_both(batches, input_fn=lambda x: None),
    f"argument 'image' ... {CHOICE}": fit_both(batches, input_fn=lambda x: {"image": x}),
    f"2 positional ... {CHOICE}": fit_both(batches, input_fn=lambda x: (x, x)),
}
WRONG["fit", ValueError] = {
    f"got 1D input ... (6,) ... {CHOICE}": fit_both(lambda: torch.randn(9, 6)),
    "each of the 4 ... after 0 ... pass more batches": fit_both(lambda: []),
    "after 0 ... more batches": fit_both(lambda: iter(())),
    "after 3 ... pass more batches": fit_both(lambda: batches(3)),
    "after 3 ... pass more batches, or a DataLoader over a dataset with a length": fit_both(
        lambda: DataLoader(Stream(), batch_size=9)
    ),
    "mc_batch_size=8 ... has 7 examples ... smaller mc_batch_size": fit_both(
        loader(lambda i: torch.randn(6), size=7)
    ),
    "mc_batch_size=8 ... has 0 examples ... give it some": fit_both(
        loader(lambda i: torch.randn(6), size=0, sampler=[])
    ),
    "0 value(s) ... larger": fit_both(lambda: [torch.zeros(0, 6)] * 4),
    "1 value(s) a channel ... needs at least 2 ... use a larger mc_batch_size": fit_both(
        lambda: [torch.randn(1, 6)] * 4
    ),
    "layer '1' saw is not finite ... look for NaN and infinite values in the": fit_both(
        lambda: [torch.full((9, 6), math.nan)] * 4
    ),
    "not finite ... look for": fit_both(lambda: [torch.full((9, 6), math.inf)] * 4),
    "not finite ... look": fit_both(lambda: [x * 1e30 for x in batches()]),
    "not finite": fit_both(lambda: [*batches(3), torch.full((9, 6), math.nan)]),
    "layer '2' saw is not finite ... in the network's weights": lambda w: (
        MCBatchNorm(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2), nn.BatchNorm1d(2)), 4)
        .requires_grad_(False)
        .apply(lambda m: m.weight.fill_(math.inf) if isinstance(m, nn.Linear) else None)
        .fit(batches())
    ),
    f"expected 4D ... {CHOICE}": lambda w: MCBatchNorm(nn.BatchNorm2d(6), 4).fit(batches()),
    "shape (3, 1, 2, 2) ... wanted 6 channels ... on the axis after the batch": lambda w: (
        MCBatchNorm(nn.BatchNorm2d(6, affine=False), 4).fit([torch.randn(3, 1, 2, 2)] * 4)
    ),
    "1 of 2 mini-batches did not reach layer 'norm' ... use a larger mc_batch_size": lambda w: (
        MCBatchNorm(Half(), 2).fit([torch.randn(9, 6), torch.randn(12, 6)])
    ),
    "input is on the meta device ... wanted some ... make it on a real device": fit_both(
        lambda: [x.to("meta") for x in batches()]
    ),
    "the network is on the meta device ... call to_empty(device=...) and load": lambda w: (
        MCBatchNorm(network().to("meta"), 4).fit(batches())
    ),
}
WRONG["fit", RuntimeError] = {
    "each tensor to be equal size": fit_both(loader(lambda i: torch.randn(i + 1))),
    f"torch.float32 of shape (9,) ... {CHOICE}": fit_both(
        lambda: [(torch.zeros(9), x) for x in batches()]
    ),
    f"same dtype ... torch.int64 of shape (9, 6) ... {CHOICE}": fit_both(
        lambda: [x.long() for x in batches()]
    ),
    f"Double ... {CHOICE}": fit_both(lambda: [x.double() for x in batches()]),
    "(9x5 and 6x8)": fit_both(lambda: [torch.randn(9, 5)] * 4),
}
WRONG["fit", OSError] = {
    "disk gone": fit_both(lambda: DataLoader(Items(raising(OSError("disk gone"), after=11)))),
    "Caught OSError in DataLoader worker process 0 ... disk gone": lambda w: w.fitted.fit(
        DataLoader(Items(raising(OSError("disk gone"), after=3)), num_workers=1)
    ),
    "gone": fit_both(lambda: midway(OSError("gone"))),
}
WRONG["fit", KeyboardInterrupt] = {
    "in the data": fit_both(lambda: midway(KeyboardInterrupt("in the data"))),
    "in the third pass": lambda w: hooked(w, KeyboardInterrupt("in the third pass"), after=2).fit(
        batches()
    ),
}
WRONG["fit", ZeroDivisionError] = {
    f"by zero ... torch.float32 of shape (9, 6) ... {CHOICE}": lambda w: hooked(
        w, ZeroDivisionError("by zero"), after=2
    ).fit(batches()),
}
WRONG["fit", KeyError] = {
    "image": fit_both(batches, input_fn=raising(KeyError("image"), after=1)),
}


WRONG["predict", RuntimeError] = {
    "holds no statistics yet ... call fit(train_dataloader) first": lambda w: copy.deepcopy(
        w.fresh
    ).eval()(torch.randn(2, 6)),
    "(2x5 and 6x8)": lambda w: w.fitted(torch.randn(2, 5)),
    "same dtype ... Double": lambda w: w.fitted(torch.randn(2, 6).double()),
    "same dtype ... Long": lambda w: w.fitted(torch.ones(2, 6).long()),
    "device meta": lambda w: w.fitted(torch.randn(2, 6, device="meta")),
}
WRONG["predict", TypeError] = {
    "must be Tensor, not numpy.ndarray": lambda w: w.fitted(np.zeros((2, 6))),
    "missing 1 required positional argument": lambda w: w.fitted(),
}
WRONG["predict", KeyboardInterrupt] = {
    "in a pass": lambda w: hooked(w, KeyboardInterrupt("in a pass"), after=0)(torch.randn(2, 6)),
}


def of_path(path: Any, network: nn.Module, *shape: int) -> Wrong:
    """Predicts for an input of another shape than that of the mini-batches."""
    data = batches() if isinstance(network, Unlike) else list(torch.randn(4, 3, 6, 2, 2))
    return lambda w: MCBatchNorm(network, 4, path=path).fit(data).eval()(torch.randn(shape))


for path in ("auto", "loop"):
    WRONG[f"predict, {path}", ValueError] = {
        "shape (2, 1, 2, 2) ... wanted 6 channels": of_path(path, nn.BatchNorm2d(6), 2, 1, 2, 2),
        "shape (2, 5, 2, 2) ... wanted 6 channels": of_path(path, nn.BatchNorm2d(6), 2, 5, 2, 2),
        "expected 4D input": of_path(path, nn.BatchNorm2d(6), 2, 6),
    }
    WRONG[f"predict, {path}", RuntimeError] = {
        "2 times ... those of fit did so 1 times ... call fit with batches": of_path(
            path, Unlike(), 12, 6
        ),
    }


def resample(estimators: Any, count: int = 4) -> Wrong:
    return lambda w: w.fitted.resample(batches(count), estimators)


WRONG["resample", RuntimeError] = {
    "no statistics yet ... call fit(": lambda w: w.fresh.resample(batches(), [0]),
    "1 times ... those of fit did so 2 times ... call fit with batches for which": lambda w: (
        MCBatchNorm(Unlike(), 2).fit(batches(2, 12)).resample(batches(1), [0])
    ),
}
WRONG["resample", TypeError] = {
    "estimators=2 is a int ... pass several indices": resample(2),
    "estimators='01' is a str ... as in [0, 3]": resample("01"),
    "0.5 is a float ... pass integers": resample([0.5]),
    "True is a bool ... pass integers": resample([True, False]),
    "True is a bool": resample(FLAG),
}
WRONG["resample", IndexError] = {
    "estimator 4 ... num_estimators=4: 0 to 3": resample([4]),
    "estimator -1 ... 0 to 3": resample([-1]),
}
WRONG["resample", ValueError] = {
    "estimators=[1, 1] ... each once": resample([1, 1]),
    "estimators=[] ... at least one index": resample([]),
    "the data ended after 1 ... more": resample([0, 1], count=1),
    "not finite": lambda w: w.fitted.resample([batches()[0] * math.nan], [0]),
}
WRONG["resample", KeyboardInterrupt] = {
    "in the data": lambda w: w.fitted.resample(midway(KeyboardInterrupt("in the data")), [0, 1, 2]),
}

SAVED = (4, 1, 8)

WRONG["load", TypeError] = {
    "dict-like ... NoneType": lambda w: w.fitted.load_state_dict(None),
}
WRONG["load", RuntimeError] = {
    "Missing key(s) ... model.0.weig": lambda w: w.fitted.load_state_dict({}),
    "Missing key(s) ... Unexpected key(s) ... size mismatch": lambda w: w.fitted.load_state_dict(
        MCBatchNorm(lenet(1, 10), 4).state_dict()
    ),
    "size mismatch for model.0.weight": lambda w: MCBatchNorm.load_state_dict(
        w.fitted,
        MCBatchNorm(nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9)), 4).state_dict(),
    ),
    "(4, 1, 8) ... num_estimators=3; build one with as many as were saved": lambda w: MCBatchNorm(
        network(), 3
    ).load_state_dict(w.fitted.state_dict()),
    "(3, 1, 8) ... num_estimators=4; build one with as many as were saved": lambda w: (
        w.fitted.load_state_dict(MCBatchNorm(network(), 3).fit(batches(3)).state_dict())
    ),
    "Missing ... model.6.bias": changed("model.6.bias", None),
    "Unexpected ... model.7.bias": changed("model.7.bias", ONE),
    "model.6.bias ... str": changed("model.6.bias", "x"),
    "NoneType and Tensor ... take bo": changed("model.1.mc_mean", None),
    "Tensor and NoneType ... wanted two tensors": changed("model.1.mc_var", None),
    "Missing key(s) ... model.5.mc_mean": lambda w: w.fitted.load_state_dict(
        {k: v + 1 for k, v in w.fitted.state_dict().items() if "5.mc" not in k}
    ),
    "str and Tensor ... two tensors": changed("model.1.mc_mean", "x"),
    "(4, 1, 5) ... features=8": changed("model.1.mc_mean", torch.zeros(4, 1, 5)),
    "(4, 2, 8) ... wanted are": changed("model.1.mc_mean", torch.zeros(4, 2, 8)),
    "(1,) ... wanted are": changed("model.1.mc_mean", ONE),
    "torch.int64 ... wanted floating point": changed("model.1.mc_mean", torch.zeros(SAVED).long()),
    "model.5.mc_mean ... NaN or infinity ... fit and save again": changed(
        "model.5.mc_mean", torch.full(SAVED, math.nan)
    ),
    "negative variance ... look whether means and variances were swapped": changed(
        "model.5.mc_var", -torch.ones(SAVED)
    ),
    "Cannot copy out of meta tensor": lambda w: w.fitted.load_state_dict(
        {k: v.to("meta") for k, v in w.fitted.state_dict().items()}
    ),
    "Missing key(s) ... model.6.bias": lambda w: w.fitted.load_state_dict(
        {k: v + 1 for k, v in w.fitted.state_dict().items() if k != "model.6.bias"},
        assign=True,
    ),
    "negative variance": lambda w: w.fitted.load_state_dict(
        OrderedDict(w.fitted.state_dict(), **{"model.5.mc_var": -torch.ones(SAVED)}),
        strict=False,
    ),
    "zip archive": lambda w: torch.load(w.folder / "half.pt"),
}
WRONG["load", KeyboardInterrupt] = {
    "in a layer": interrupted_load,
}
WRONG["load", pickle.UnpicklingError] = {
    "Weights only load": lambda w: torch.load(w.folder / "evil.pt"),
    "load failed": lambda w: trainer().test(
        w.routine, pairs(), ckpt_path=str(w.folder / "evil.pt")
    ),
}

# --- Predictive functions and metrics ------------------------------------------------------------

SUMMARIES = (
    "probabilities", "mean_probs", "entropy", "mutual_information", "disagreement",
    "summarise_classification", "summarise_regression",
)  # fmt: skip
# What the message says of a value that is given in the place of probabilities, or of labels.
NO_TENSORS = {
    "is a list, wanted a torch.Tensor": [[0.5, 0.5]],
    "is a ndarray, wanted a torch.Tensor": GOOD.numpy(),
    "is a NoneType, wanted a torch.Tensor": None,
    "torch.sparse_coo, wanted a dense tensor; call": GOOD.to_sparse(),
}
OTHER_TENSORS = {
    "torch.int64 ... wanted": GOOD.long(),
    "torch.complex64 ... wanted": GOOD.to(torch.complex64),
    "shape (), wanted floating point": torch.tensor(0.5),
    "shape (2, 0) ... wanted ... no axis empty": torch.zeros(2, 0),
    "shape (0, 2) ... wanted ... no axis empty": torch.zeros(0, 2),
}
NO_PROBABILITIES = {
    "from nan up ... wanted ... look for NaN": GOOD * math.nan,
    "sums over the classes from inf ... wanted": GOOD * math.inf,
    "from -0.5 up ... wanted": torch.tensor([[1.5, -0.5], [0.5, 0.5]]),
    "from 4 to 4, wanted probabilities": GOOD * 4,
    "from 0.9 to 0.9 ... wanted": GOOD * 0.9,
    "shape (1, 2, 2), wanted ... mean_probs(logits)": GOOD[None],
    "shape (2,), wanted": GOOD[0],
    "wanted all on one device": GOOD.to("meta"),
}
NO_LABELS = {
    "from 0 to 2, wanted 0 to 1 for 2 classes": torch.tensor([0, 2]),
    "from -1 to 1, wanted 0 to 1 for 2 classes": torch.tensor([-1, 1]),
    "shape (3,), wanted integer labels ... (2,)": torch.tensor([0, 1, 1]),
    "shape (2, 2), wanted integer labels": torch.eye(2).long(),
    "type torch.float32": LABELS.float(),
    "type torch.complex64": LABELS.to(torch.complex64),
    "wanted all on one device; move them": LABELS.to("meta"),
}


def each(values: dict[str, Any], use: Callable[[World, Any], object]) -> dict[str, Wrong]:
    return {words: lambda w, value=value: use(w, value) for words, value in values.items()}


for error, values in (TypeError, NO_TENSORS), (ValueError, OTHER_TENSORS):
    for name in SUMMARIES:
        WRONG[name, error] = each(values, lambda w, x, n=name: getattr(predictive, n)(x))
for name in SCORES:
    for error, values in (TypeError, NO_TENSORS), (ValueError, OTHER_TENSORS | NO_PROBABILITIES):
        WRONG[name, error] = each(values, lambda w, x, n=name: w.metrics[n].update(x, LABELS))
    for error, values in (TypeError, NO_TENSORS), (ValueError, NO_LABELS):
        if name == "Entropy":  # does without labels
            continue
        WRONG[f"{name}, labels", error] = each(
            values, lambda w, labels, n=name: w.metrics[n].update(GOOD, labels)
        )
for error, values in (TypeError, NO_TENSORS), (ValueError, NO_LABELS):
    WRONG["fit_temperature, labels", error] = each(
        values, lambda w, labels: predictive.fit_temperature(GOOD, labels)
    )

UNIT = torch.tensor([0.6, 0.9])
WRONG["predictive", ValueError] = {
    "(1, 1, 2, 2) ... wanted floating point logits of shape (batch, ": lambda w: (
        predictive.fit_temperature(GOOD[None, None], LABELS)
    ),
    "no axis empty": lambda w: predictive.fit_temperature(GOOD[:0], LABELS[:0]),
    "shape (2, 3, 4, 5), wanted": lambda w: predictive.mean_probs(torch.zeros(2, 3, 4, 5)),
    "shape (4,), wanted": lambda w: predictive.summarise_classification(torch.zeros(4)),
    "num_estimators, batch": lambda w: predictive.summarise_regression(torch.zeros(4)),
    "num_estimators, batch, classes": lambda w: predictive.mutual_information(torch.zeros(3, 4)),
    "num_estimators, batch, classes)": lambda w: predictive.disagreement(torch.zeros(3, 4)),
    "wanted floating point logits": lambda w: predictive.fit_temperature(torch.zeros(3), LABELS),
    "noise_variance=nan ... wanted a number": lambda w: predictive.summarise_regression(
        GOOD, math.nan
    ),
    "noise_variance=-1.0": lambda w: predictive.summarise_regression(GOOD, -1.0),
    "noise_variance=inf ... wanted a number from 0 up": lambda w: predictive.summarise_regression(
        GOOD, math.inf
    ),
    "noise_variance of shape (7,) ... broadcasts to that of a prediction, (1,)": lambda w: (
        predictive.summarise_regression(torch.zeros(3, 1), torch.ones(7))
    ),
}
WRONG["predictive", TypeError] = {
    "logits is a NoneType": lambda w: predictive.fit_temperature(None, LABELS),
    "noise_variance='1' is a str ... a number from 0 up": lambda w: predictive.summarise_regression(
        GOOD, "1"
    ),
}


def precision(predictions: Any, target: Any = UNIT, **options: Any) -> Wrong:
    return lambda w: predictive.fit_noise_precision(predictions, target, **options)


WRONG["noise precision", TypeError] = {
    "predictions is a list ... wanted a torch.Tensor": precision([1.0]),
    "target is a list ... a torch.Tensor": precision(UNIT, [1.0]),
}
WRONG["noise precision", ValueError] = {
    "torch.int64 ... floating point": precision(LABELS),
    "predictions ... NaN": precision(UNIT * math.nan),
    "target ... NaN": precision(UNIT, UNIT * math.inf),
    "(2, 3) ... (2,) ... (num_estimators, *": precision(torch.ones(2, 3)),
    "up to 1e+200 ... in another unit": precision(
        torch.tensor([[1e200], [0.0]], dtype=torch.float64), UNIT[:1], bounds=(1, 2)
    ),
    "(0, 2) ... no axis empty": precision(torch.ones(0, 2)),
    "All errors are 0 ... pass bounds=(lowest, highest)": precision(UNIT),
    "meta ... wanted all on one device": precision(UNIT.to("meta")),
    "bounds=(1,) ... two rising finite": precision(UNIT * 2, bounds=(1,)),
    "bounds=(2, 1) ... two rising": precision(UNIT * 2, bounds=(2, 1)),
    "bounds=ab ... two rising": precision(UNIT * 2, bounds="ab"),
    "bounds=(1, inf) ... two rising finite": precision(UNIT * 2, bounds=(1, math.inf)),
    "bounds=(0, 1) ... above 0": precision(UNIT * 2, bounds=(0, 1)),
}


def crps(mean: Any = ONE, std: Any = ONE, target: Any = ONE) -> Wrong:
    return lambda w: w.metrics["GaussianCRPS"].update(mean, std, target)


def pll(predictions: Any = ONE[None], tau: Any = 1.0, target: Any = ONE) -> Wrong:
    return lambda w: w.metrics["MixtureLogLikelihood"].update(predictions, tau, target)


WRONG["regression metrics", TypeError] = {
    "mean is a list, wanted a torch.Tensor": crps(mean=[1.0]),
    "std is a float, wanted a torch.Tensor": crps(std=1.0),
    "tau='1' is a str ... a finite number above 0": pll(tau="1"),
    "tau=tensor([1.]) is a Tensor ... a finite number": pll(tau=ONE),
    "level='x' is a str": lambda w: metrics.IntervalCoverage("x"),
}
WRONG["regression metrics", ValueError] = {
    "a std of -1 ... wanted 0 or more": crps(std=-ONE),
    "target torch.int64 ... wanted floa": crps(target=ONE.long()),
    "(1, 1) ... wanted floating": crps(target=ONE[None]),
    "target with NaN ... wanted finite": crps(target=ONE * math.nan),
    "wanted all on one device": crps(target=ONE.to("meta")),
    "empty": crps(ONE[:0], ONE[:0], ONE[:0]),
    "tau=0 ... wanted a finite number above 0": pll(tau=0),
    "tau=nan ... wanted a finite number above 0": pll(tau=math.nan),
    "shape (1,) ... (num_estimators, *target.shape)": pll(ONE),
    "predictions with NaN or inf": pll(ONE[None] * math.inf),
    "target with NaN or": lambda w: w.metrics["IntervalCoverage"].update(ONE, ONE, ONE * math.inf),
    "level=1.0 ... between 0 and": lambda w: metrics.IntervalCoverage(1.0),
}

WRONG["classification metrics", ValueError] = {
    "shape (2, 2) ... (num_estimators, batch, ... call mcbn.predictive.prob": lambda w: w.metrics[
        "MutualInformation"
    ].update(GOOD),
    "from 9 to 9 ... wanted probabilities": lambda w: w.metrics["MutualInformation"].update(
        GOOD[None] * 9
    ),
    "from 7 to 8": lambda w: w.metrics["Entropy"].update(GOOD, LABELS + 7),
    "risk=5 ... from 0 to 1": lambda w: metrics.CoverageAtRisk(5),
    "coverage=0 ... above 0, up": lambda w: metrics.RiskAtCoverage(0),
    "num_bins=0 ... at least 1": lambda w: metrics.CalibrationError(0),
    "norm='l2' ... \"l1\"": lambda w: metrics.CalibrationError(norm="l2"),
    "num_bins=0": lambda w: metrics.reliability_bins(ONE, FLAG, 0),
    "num_bins=0; ": lambda w: metrics.adaptive_calibration_error(ONE, FLAG, 0),
    "confidence from 90 to 90 ... wanted fractions from 0 to 1": lambda w: metrics.reliability_bins(
        ONE * 90, FLAG
    ),
    "confidence with NaN": lambda w: metrics.reliability_bins(ONE * math.nan, FLAG),
    "correct torch.float32 ... wanted floating point and bool": lambda w: metrics.reliability_bins(
        ONE, ONE
    ),
    "(0,) ... not empty": lambda w: metrics.reliability_bins(ONE[:0], FLAG[:0]),
    "from -1 to -1": lambda w: metrics.adaptive_calibration_error(-ONE, FLAG),
    "(2,) ... (1,) ... one shape": lambda w: metrics.risk_coverage_curve(UNIT, FLAG),
    "is_ood torch.float32 ... bool": lambda w: w.metrics["FPR95"].update(ONE, ONE),
    "scores with NaN": lambda w: w.metrics["FPR95"].update(ONE * math.nan, FLAG),
    "0 in-distribution and 1 OOD scores, wanted both ... call update(scores, is_ood)": lambda w: (
        w.metrics["FPR95"].compute()
    ),
}
WRONG["classification metrics", TypeError] = {
    "probs is a list": lambda w: w.metrics["Disagreement"].update([1]),
    "risk=True is a bool": lambda w: metrics.CoverageAtRisk(True),
    "coverage='1' is a str": lambda w: metrics.RiskAtCoverage("1"),
    "1.5 is a float ... integer": lambda w: metrics.CalibrationError(1.5),
    "True is a bool": lambda w: metrics.AdaptiveCalibrationError(True),
    "num_bins=1.5 is a float": lambda w: metrics.reliability_bins(ONE, FLAG, 1.5),
    "confidence is a list": lambda w: metrics.risk_coverage_curve([0.5], [True]),
}
for name in sorted(all_metrics()):

    def empty(world: World, name: str = name) -> object:
        metric = world.metrics[name].clone()
        metric.reset()
        return metric.compute()

    WRONG[f"{name} without an example", ValueError] = {"call update(": empty}

# --- Data ----------------------------------------------------------------------------------------


def table(name: str, **options: Any) -> Wrong:
    return lambda w: TableDataModule(w.folder / f"{name}.csv", **options).setup()


WRONG["table", ValueError] = {
    "empty.csv has no row of numbers": table("empty"),
    "binary.csv is no text in UTF-8 ... unpack or convert it": table("binary"),
    "gzipped.csv is no text in UTF-8 ... unpack or convert it": table("gzipped"),
    "utf16.csv is no text in UTF-8 ... convert it": table("utf16"),
    "nul.csv, line 1 ... no finite number": table("nul"),
    "nan.csv, line 2: 'nan' is no finite number": table("nan"),
    "line 1: '1e400' is no finite number": table("infinite"),
    "truncated.csv, line 10: '' is no finite number": table("truncated"),
    "line 2: 3 numbers, wanted 2 as in the lines above": table("ragged"),
    "line 2: 2 numbers, wanted 3": table("header"),
    "line 10: 'xxxxxxxxxxxx...xxxxxxxxxxxxx' is no finite number": table("long"),
    "the table has 1 columns ... wanted at least two": table("narrow"),
    "2 rows make 2 for training ... wanted at least 1 in each": table("short"),
    "up to 2e+300 ... too large to standardize ... in another unit": table("huge"),
    "line 10": table("long", target=9),
    "target=11": lambda w: TableDataModule(target=11).setup(),
    "batch_size=0 ... at le": lambda w: TableDataModule(batch_size=0),
    "test_split=0, wanted": lambda w: TableDataModule(test_split=0),
    "val_split=-0.1 and test_split=0.2, wanted": lambda w: TableDataModule(val_split=-0.1),
    "val_split=0.5 ... test_split=0.5 ... wanted": lambda w: TableDataModule(
        val_split=0.5, test_split=0.5
    ),
    "test_split=1.0 ... below": lambda w: TableDataModule(test_split=1.0),
    "part='ood' ... wanted 'train'": lambda w: TableDataModule().dataset("ood"),
    "part=['val'] ... want": lambda w: TableDataModule().dataset(["val"]),
}
WRONG["table", FileNotFoundError] = {
    "none.csv": table("none"),
}
WRONG["table", IsADirectoryError] = {
    "Is a directory": lambda w: read_table(w.folder),
}
WRONG["table", TypeError] = {
    "path=3 is a int ... the path of a": lambda w: TableDataModule(3),
    "target='age' is a str ... number of": lambda w: TableDataModule(target="age"),
    "True is a bool": lambda w: TableDataModule(batch_size=True),
    "val_split='0.2' is a str ... a share": lambda w: TableDataModule(val_split="0.2"),
    "seed='0' is a str ... integer": lambda w: TableDataModule(seed="0"),
}


def digits(**options: Any) -> Wrong:
    return lambda w: MNISTDataModule(**{"source": "sample", **options})


WRONG["digits", ValueError] = {
    "source='half' ... 'full' or 'sample'": digits(source="half"),
    "batch_size=0 ... at least 1": digits(batch_size=0),
    "num_workers=-1 ... at least 0": digits(num_workers=-1),
    "val_split=-0.1, wanted a share": digits(val_split=-0.1),
    "val_split=nan, wanted a share": digits(val_split=math.nan),
    "val_split=1 ... 0 or more and below 1": digits(val_split=1),
    "val_split=1e-05 holds out none of 4,000 images ... wanted 0 or a larger share": lambda w: (
        MNISTDataModule(source="sample", val_split=1e-5).setup()
    ),
    "name='training' ... wanted 'train', 'val', 'test' or 'ood'": lambda w: MNISTDataModule(
        source="sample"
    ).dataset("training"),
    "name=['val']": lambda w: MNISTDataModule(source="sample").dataset(["val"]),
    "'../nul.csv' is no file of the datasets ... wanted one of MNIST/raw/train-images": lambda w: (
        files.read(w.folder, "../nul.csv")
    ),
    "'/etc/passwd' is no": lambda w: files.read(w.folder, "/etc/passwd"),
    "'../new' is no file of the datasets": lambda w: files.fetch_missing(
        w.folder, ["../new"], patient=False
    ),
    "(2, 1, 8, 8) ... (batch, he": lambda w: random_crop(torch.zeros(2, 1, 8, 8), 2),
    "padding=-1": lambda w: random_crop(torch.zeros(2, 8, 8), -1),
}
WRONG["digits", TypeError] = {
    "root=3 is a int ... the path of a folder": digits(root=3),
    "batch_size=12.5 is a float; pass an integer": digits(batch_size=12.5),
    "batch_size='128' is a str; pass an integer": digits(batch_size="128"),
    "batch_size=True is a bool ... integer": digits(batch_size=True),
    "val_split=None is a NoneType ... a share": digits(val_split=None),
    "random_crop=4 is a int ... True or False": digits(random_crop=4),
    "seed=0.5 is a float ... an integer": digits(seed=0.5),
    "images is a list": lambda w: random_crop([1], 2),
    "1.5 is a float": lambda w: random_crop(torch.zeros(2, 8, 8), 1.5),
}
BYTES = torch.zeros(4, 8, 8, dtype=torch.uint8)
WRONG["images in memory", ValueError] = {
    "labels torch.int64 (3,) ... wanted uint8 (n, height, width) and int64 (n,)": lambda w: (
        InMemoryImages(BYTES, torch.arange(3), 0.0, 1.0)
    ),
    "images torch.float32 ... wanted uint8": lambda w: InMemoryImages(
        BYTES.float(), torch.arange(4), 0.0, 1.0
    ),
    "std=0.0 ... above 0": lambda w: InMemoryImages(BYTES, torch.arange(4), 0.0, 0.0),
    "mean=nan": lambda w: InMemoryImages(BYTES, torch.arange(4), math.nan, 1.0),
}
WRONG["images in memory", TypeError] = {
    "images is a ndarray ... wanted a torch.Tensor": lambda w: InMemoryImages(
        BYTES.numpy(), torch.arange(4), 0.0, 1.0
    ),
}
WRONG["images in memory", IndexError] = {
    "index 4 is out of bounds for dimension 0 with size 4": lambda w: InMemoryImages(
        BYTES, torch.arange(4), 0.0, 1.0
    )[4],
}

# --- Training and testing ------------------------------------------------------------------------


def trainer(**options: Any) -> Trainer:
    return Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **options)


def pairs(x: Any = None, y: Any = None, size: int = 4) -> DataLoader[Any]:
    x = torch.randn(8, 6) if x is None else x
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]) if y is None else y
    return DataLoader(TensorDataset(x, y), batch_size=size)


def classifier(
    num_classes: Any = 3, model: Any = None, loss: Any = None, recipe: Any = optim_lenet
):
    return ClassificationRoutine(
        num_classes, network() if model is None else model, loss or nn.CrossEntropyLoss(), recipe
    )


def regressor(**options: Any) -> RegressionRoutine:
    return RegressionRoutine(nn.Linear(6, 1), nn.MSELoss(), optim_lenet, **options)


def stage(
    name: str, routine: Callable[[World], Any], data: Callable[[], Any] = pairs, **options: Any
) -> Wrong:
    return lambda w: getattr(trainer(), name)(routine(w), data(), **options)


in_fit = functools.partial(stage, "fit")
in_validation = functools.partial(stage, "validate", verbose=False)
in_test = functools.partial(stage, "test", verbose=False)


def tuned(**attributes: Any) -> Callable[[World], RegressionRoutine]:
    def routine(world: World) -> RegressionRoutine:
        made = regressor()
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    return routine


class Gives(nn.Sequential):
    """A network that gives what a function makes of its two last layers' outputs."""

    def __init__(self, make: Callable[[list[Tensor]], Any], width: int) -> None:
        super().__init__(nn.BatchNorm1d(6), nn.Linear(6, width))
        self.make = make

    def forward(self, input: Tensor) -> Any:
        return self.make([super().forward(input)] * 2)


def gives(make: Callable[[Any], Any], wrapped: bool = False, classes: int = 0) -> Any:
    """A routine of such a network."""
    model: nn.Module = Gives(make, classes or 1)
    if wrapped:
        model = MCBatchNorm(model, 4).fit(batches())
    if classes:
        return classifier(classes, model)
    return RegressionRoutine(model, nn.MSELoss(), optim_lenet)


def targets() -> DataLoader[Any]:
    return pairs(y=torch.ones(8, 1))


def unlabelled() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(8, 6)), batch_size=4)


def dicts() -> DataLoader[Any]:
    return DataLoader([{"x": torch.randn(6), "y": 0}] * 8, batch_size=4)


PREDICTIONS = "wanted a tensor of predictions of the targets' shape, with or without an estimator"
LOGITS = "wanted a tensor of logits (batch, classes) or (num_estimators, batch, classes); wrap"
PAIR = "wanted a pair of inputs and targets; give the loader a collate_fn="

WRONG["routine", ValueError] = {
    "num_classes=1 ... at least 2": lambda w: classifier(1),
    "noise_precision=inf ... above 0": lambda w: regressor(noise_precision=math.inf),
    "target_scale=-1.0 ... above 0": lambda w: regressor(target_scale=-1.0),
    "noise_precision=0": lambda w: regressor(noise_precision=0),
    "target_scale=nan ... above": lambda w: regressor(target_scale=math.nan),
    "noise_precision=-1.0 ... wanted a finite number above 0": in_test(
        tuned(noise_precision=-1.0), targets
    ),
    "target_scale=nan ... wanted a finite number above 0": in_test(
        tuned(target_scale=math.nan), targets
    ),
}
WRONG["routine", TypeError] = {
    "num_classes=None is a NoneType": lambda w: classifier(None),
    "is a Sequential ... pass an integer": lambda w: ClassificationRoutine(
        w.model, 3, nn.CrossEntropyLoss(), optim_lenet
    ),
    "model is a str ... nn.Module": lambda w: classifier(model="lenet"),
    "loss='ce' is a str ... a function": lambda w: classifier(loss="ce"),
    "optim_recipe='adam' is a str ... optimizer": lambda w: classifier(recipe="adam"),
    "optim_recipe=None ... a function": lambda w: classifier(recipe=None),
    "optim_recipe gave None ... return an optimizer": in_fit(
        lambda w: classifier(recipe=lambda model: None)
    ),
    "the loss gave a NoneType ... wanted a tensor of one number ... return the mean": in_fit(
        lambda w: classifier(loss=lambda a, b: None)
    ),
    "the loss gave a Tensor (4,) ... wanted a tensor of one number ... return the mean": in_fit(
        lambda w: classifier(loss=nn.CrossEntropyLoss(reduction="none"))
    ),
    "='1' is a str ... finite": lambda w: regressor(noise_precision="1"),
}
WRONG["routine", MisconfigurationException] = {
    "Unknown configuration for model optimizers": in_fit(
        lambda w: classifier(recipe=lambda model: model)
    ),
}
WRONG["Trainer", TypeError] = {
    "`LightningModule`": lambda w: trainer().test(datamodule=TableDataModule()),
    "argument 'max_step'": lambda w: Trainer(max_step=3),
}
WRONG["Trainer.fit", TypeError] = {
    "got `Sequential`": in_fit(lambda w: network()),
    f"the network gives a tuple ... {PREDICTIONS}": in_fit(lambda w: gives(tuple), targets),
    f"the network gives a dict ... {LOGITS}": in_fit(
        lambda w: gives(lambda x: {"logits": x[0]}, classes=3)
    ),
    f"a list of 1 ... {PAIR}": in_fit(lambda w: w.routine, unlabelled),
    f"a Tensor of 2 ... {PAIR}": in_fit(
        lambda w: w.routine, lambda: DataLoader(torch.randn(8, 6), batch_size=2)
    ),
    f"a dict of 2 ... {PAIR}": in_fit(lambda w: w.routine, dicts),
}
WRONG["Trainer.validate", TypeError] = {
    f"the network gives a NoneType ... {PREDICTIONS}": in_validation(
        lambda w: gives(lambda x: None), targets
    ),
    f"the network gives a list ... {LOGITS}": in_validation(lambda w: gives(list, classes=3)),
    f"a list of 3 ... {PAIR}": in_validation(
        lambda w: w.routine, lambda: DataLoader(TensorDataset(*[torch.zeros(8)] * 3))
    ),
}
WRONG["Trainer.test", TypeError] = {
    f"the network gives a dict ... {PREDICTIONS}": in_test(
        lambda w: gives(lambda x: {"mean": x[0]}), targets
    ),
    f"the network gives a Normal ... {PREDICTIONS}": in_test(
        lambda w: gives(lambda x: torch.distributions.Normal(x[0], 1)), targets
    ),
    "the network gives torch.int64 ... wanted floating-point numbers ... .float()": in_test(
        lambda w: gives(lambda x: x[0].long()), targets
    ),
    f"the network gives a ndarray ... {PREDICTIONS}": in_test(
        lambda w: gives(lambda x: x[0].numpy()), targets
    ),
    f"the network gives a tuple ... {PREDICTIONS}": in_test(
        lambda w: gives(tuple, wrapped=True), targets
    ),
    f"the network gives a NoneType ... {LOGITS}": in_test(
        lambda w: gives(lambda x: None, classes=3)
    ),
    "the targets of a batch are a dict ... wanted a tensor ... collate_fn=": in_test(
        lambda w: w.regression,
        lambda: DataLoader([(torch.ones(6), {"y": 1.0})] * 8, batch_size=4),
    ),
    f"a list of 1 ... {PAIR}": in_test(lambda w: w.routine, unlabelled),
    f"a dict of 2 ... {PAIR}": in_test(lambda w: w.routine, dicts),
}
WRONG["Trainer.test of a regression", TypeError] = {
    f"a dict of 2 ... {PAIR}": in_test(lambda w: w.regression, dicts),
}
WRONG["Trainer", MisconfigurationException] = {
    "`train_dataloader` must be implemented": lambda w: trainer().fit(w.routine),
    "`test_dataloader` must be": lambda w: trainer().test(w.routine),
}
WRONG["Trainer.fit", ValueError] = {
    "gives (4, 3) ... wanted num_classes=5 logits ... build the network or the": in_fit(
        lambda w: classifier(5)
    ),
}
WRONG["Trainer.validate", ValueError] = {
    "gives (4, 3) ... wanted num_classes=5 logits": in_validation(lambda w: classifier(5)),
}
WRONG["Trainer.test", ValueError] = {
    "no batch ... a loader with at least one": in_test(lambda w: w.routine, list),
    "gives (4, 3) ... wanted num_classes=2 logits": in_test(lambda w: classifier(2)),
    "from 0 to 3 ... wanted 0 to 2 for 3 classes": in_test(
        lambda w: w.routine, lambda: pairs(y=torch.arange(8))
    ),
    "type torch.float32 ... wanted integer labels": in_test(
        lambda w: w.routine, lambda: pairs(y=torch.rand(8))
    ),
    "shape (4, 3) ... wanted integer labels of shape (4,)": in_test(
        lambda w: w.routine, lambda: pairs(y=torch.eye(8)[:, :3].long())
    ),
    "from nan up ... wanted probabilities ... look for NaN": in_test(
        lambda w: w.routine, lambda: pairs(torch.full((8, 6), math.nan))
    ),
    "shape (4, 1) ... (4,) ... make the targets (batch, 1)": in_test(
        lambda w: w.regression, lambda: pairs(y=torch.ones(8))
    ),
    "target with NaN or infinity ... wanted finite numbers": in_test(
        lambda w: w.regression, lambda: pairs(y=torch.full((8, 1), math.nan))
    ),
}
WRONG["Trainer.test", RuntimeError] = {
    "holds no statistics yet ... call fit(train_dataloader) first": in_test(
        lambda w: classifier(model=MCBatchNorm(network(), 4))
    ),
}
WRONG["Trainer.test", FileNotFoundError] = {
    "no.ckpt": in_test(lambda w: w.routine, ckpt_path="no.ckpt"),
}
RESULTS = "pass what Trainer.test returned, or a dict of several such by name"
WRONG["result tables", TypeError] = {
    f"results=5 is a int ... {RESULTS}": lambda w: ResultTables(5),
    f"is a NoneType ... {RESULTS}": lambda w: ResultTables(None),
    f"results='abc' is a str ... {RESULTS}": lambda w: ResultTables("abc"),
    f"results=0.5 is a float ... {RESULTS}": lambda w: ResultTables({"test/cls/Acc": 0.5}),
    f"0.5 is a float ... {RESULTS}": lambda w: ResultTables([0.5]),
    "'Acc'='high' is a str ... a number": lambda w: ResultTables([{"Acc": "high"}]),
    "a cell=1 is a int ... text": lambda w: Tables([Table("a", ("x",), [(1,)])]),
    "a table=1 is a int ... Table(caption, header": lambda w: Tables([1]),
}
WRONG["result tables", ValueError] = {
    "['1'] ... 1 cells, wanted 2, one for each name in the header": lambda w: Tables(
        [Table("a", ("x", "y"), [("1",)])]
    ),
}
WRONG["networks and recipes", ValueError] = {
    "in_channels=0 ... at least 1": lambda w: lenet(0, 10),
    "width=-8 ... at least 1": lambda w: unet(1, 2, width=-8),
    "empty parameter list": lambda w: optim_lenet(nn.ReLU()),
    "num_steps=0 ... at least 1": lambda w: optim_lenet(w.model, 0),
}
WRONG["networks and recipes", TypeError] = {
    "num_classes=1.5 is a float ... integer": lambda w: lenet(1, 1.5),
    "norm='bn' is a str ... a function from a num": lambda w: lenet(1, 10, norm="bn"),
    "width='8' is a str ... an integer": lambda w: unet(1, 2, width="8"),
    "model is a str ... torch.nn.Module": lambda w: optim_lenet("x"),
    "num_steps='9' is a str": lambda w: optim_lenet(w.model, "9"),
}
WRONG["networks and recipes", RuntimeError] = {
    "Kernel size can't be greater": lambda w: lenet(1, 10)(torch.zeros(2, 1, 8, 8)),
    "to have 1 channels, but": lambda w: lenet(1, 10)(torch.zeros(2, 3, 28, 28)),
}

# --- Plots ---------------------------------------------------------------------------------------

PICTURES = torch.zeros(2, 8, 8)
THREE = torch.rand(3)
PROBS = torch.rand(3, 2, 4)
plot: Any = plotting
WRONG["plot", ValueError] = {
    "titles of shape (1,) ... wanted (2)": lambda w: plot.plot_images(PICTURES, ["a"]),
    "axes of shape (3,) ... wanted (2)": lambda w: plot.plot_images(PICTURES, "ab", w.axes[0]),
    "axes of shape ()": lambda w: plot.plot_images(PICTURES[:1], "a", w.axes[0, 0]),
    "(0, 8, 8) ... no axis emp": lambda w: plot.plot_images(PICTURES[:0], ""),
    "images of shape (2, 3, 8, 8) ... wanted (n, height, width)": lambda w: plot.plot_images(
        torch.rand(2, 3, 8, 8), "ab"
    ),
    "on the meta": lambda w: plot.plot_images(PICTURES.to("meta"), "ab"),
    "probs of shape (2, 4) ... wanted (num_estimators, 2, classes)": lambda w: plot.plot_estimators(
        PICTURES, PROBS[0]
    ),
    "(3, 2, 4) ... wanted (num_": lambda w: plot.plot_estimators(PICTURES[:1], PROBS),
    "labels of shape (1,)": lambda w: plot.plot_estimators(PICTURES, PROBS, [1]),
    "labels [1, 9] ... wanted 0 to 3": lambda w: plot.plot_estimators(PICTURES, PROBS, [1, 9]),
    "axes of shape (2,) ... wanted (2, 2)": lambda w: plot.plot_estimators(
        PICTURES, PROBS, axes=w.axes[0, :2]
    ),
    "2 tensors as": lambda w: plot.plot_reliability((THREE, THREE)),
    "accuracy ... of shape (2,), wanted (3)": lambda w: plot.plot_reliability((THREE, UNIT, THREE)),
    "published of shape (3,), wanted (2)": lambda w: plot.plot_published(
        "ab", (UNIT, UNIT), THREE, "CRPS"
    ),
    "3 tensors as measured": lambda w: plot.plot_published("ab", (UNIT,) * 3, UNIT, "CRPS"),
    "widths['x'] of shape (3,), wanted (2)": lambda w: plot.plot_sorted_errors(
        UNIT, {"x": THREE}, "price"
    ),
    "hold no image": lambda w: plot.plot_reliability((THREE * 0, THREE, THREE)),
    "risk of shape (2,) ... (3)": lambda w: plot.plot_risk_coverage(THREE, UNIT),
    "curves of shape (4, 5) ... wanted (num_estimators, 3)": lambda w: plot.plot_curves(
        THREE, torch.rand(4, 5), ax=w.axes[0, 0]
    ),
    "(0, 3) ... no axis empty": lambda w: plot.plot_curves(THREE, torch.rand(0, 3)),
    "points ... of shape (2,) ... wanted (3)": lambda w: plot.plot_curves(
        THREE, torch.rand(4, 3), (THREE, UNIT), ax=w.axes[0, 0]
    ),
    "1 tensors as poi": lambda w: plot.plot_curves(THREE, torch.rand(4, 3), (THREE,)),
    "bands['two'] of shape (2,) ... wanted (3)": lambda w: plot.plot_bands(
        THREE, THREE, {"two": UNIT}, ax=w.axes[0, 0]
    ),
    "bands of shape (0,)": lambda w: plot.plot_bands(THREE, THREE, {}),
    "series['a'] of shape (3,) ... wanted (2)": lambda w: plot.plot_series(
        [1, 2], {"a": [1, 2, 3]}, ("x", "y"), w.axes[0, 0]
    ),
    "labels of shape (1,), wanted (2)": lambda w: plot.plot_series([1], {"a": [1]}, ("x",)),
    "log='z' ... 'x' or": lambda w: plot.plot_series([1], {"a": [1]}, "xy", log="z"),
    "x with values of 0 or below ... wanted others on a log axis": lambda w: plot.plot_series(
        [0, 1], {"a": [1, 2]}, "xy", log="x"
    ),
    "inner of shape (2,) ... wanted (3)": lambda w: plot.plot_intervals(
        THREE, THREE, UNIT, THREE, w.axes[0, 0]
    ),
    "mean of shape (3, 1)": lambda w: plot.plot_intervals(*[THREE[:, None]] * 4),
    "scores['NLL'] of shape (2, 3) ... wanted (1, runs)": lambda w: plot.plot_scores(
        {"NLL": torch.rand(2, 3)}, ["one"]
    ),
    "axes of shape (3,) ... wanted (1)": lambda w: plot.plot_scores(
        {"NLL": torch.rand(2, 3)}, "ab", w.axes[0]
    ),
    "scores of shape (0,)": lambda w: plot.plot_scores({}, ["one"]),
    "maps['entropy'] of shape (3, 8, 8) ... wanted (2, 8, 8)": lambda w: plot.plot_maps(
        PICTURES, {"entropy": torch.rand(3, 8, 8)}
    ),
    "(2, 4, 4)": lambda w: plot.plot_maps(PICTURES, {"entropy": torch.rand(2, 4, 4)}),
    "axes of shape (2, 3) ... wanted (2, 2)": lambda w: plot.plot_maps(
        PICTURES, {"entropy": PICTURES}, w.axes
    ),
    "the name 'image'": lambda w: plot.plot_maps(PICTURES, {"image": PICTURES}),
    "groups of shape (0": lambda w: plot.plot_histograms({}, "x"),
    "values['a'] of shape (0,)": lambda w: plot.plot_histograms({"a": THREE[:0]}, "x"),
    "values['a'] with NaN or infinity ... wanted finite numbers": lambda w: plot.plot_histograms(
        {"a": THREE * math.nan}, "x", w.axes[0, 0]
    ),
    "curves['a'] ... of shape (2,)": lambda w: plot.plot_roc({"a": (THREE, UNIT)}),
    "3 tensors ... rate": lambda w: plot.plot_roc({"a": (THREE, THREE, THREE)}),
    "rows of shape (3,) ... wanted (2)": lambda w: plot.plot_heatmap(
        torch.rand(2, 3), "abc", "xyz", "abc", w.axes[0, 0]
    ),
    "labels of shape (2,) ... wanted (3)": lambda w: plot.plot_heatmap(
        torch.rand(2, 3), "ab", "xyz", ("a", "b")
    ),
}
WRONG["plot", TypeError] = {
    "titles=None ... a sequence": lambda w: plot.plot_images(PICTURES, None),
    "images is a ndarray": lambda w: plot.plot_images(PICTURES.numpy(), "ab"),
    "ax is a ndarray ... wanted one Matplotlib Axes ... pass ax=axes[0]": lambda w: (
        plot.plot_reliability((THREE, THREE, THREE), w.axes)
    ),
    "coverage is a list ... as_tensor": lambda w: plot.plot_risk_coverage([0.5], [0.5]),
    "bands['two'] is a float": lambda w: plot.plot_bands(THREE, THREE, {"two": 0.5}),
    "is a list ... half-widths by nam": lambda w: plot.plot_bands(THREE, THREE, [THREE]),
    "a list ... values by name": lambda w: plot.plot_series([1, 2], [1, 2], ("x", "y")),
}


ROWS = [
    pytest.param(use, error, words, id=f"{group}: {words}")
    for (group, error), uses in WRONG.items()
    for words, use in uses.items()
]


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize(("use", "error", "words"), ROWS)
def test_wrong_use_fails_in_plain_words_and_changes_nothing(
    use: Wrong, error: type[BaseException], words: str, world: World
) -> None:
    before = fingerprint(world)
    with pytest.raises(error) as raised:
        use(world)
    if hasattr(world, "undo"):
        world.undo()
        del world.undo
    assert raised.type is error
    said = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    pattern = ".*".join(re.escape(part) for part in words.split(" ... "))
    assert re.search(pattern, said, re.DOTALL), said
    assert fingerprint(world) == before


def test_no_error_from_inside_is_asked_for() -> None:
    inside = (AttributeError, AssertionError, StopIteration)
    assert not [group for group, error in WRONG if issubclass(error, inside)]


# Figures and result tables, whose signs are replaced where they cannot be shown; and a module that
# another task has in hand.
SHOWN = {"plotting.py", "table.py", "terminal.py"}


def test_what_may_be_printed_is_ascii() -> None:
    """A user who prints an error must not get one of the terminal's encoding instead."""
    files = [path for path in Path(mcbn.__file__).parent.rglob("*.py") if path.name not in SHOWN]
    assert len(files) > 15
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
        }
        texts = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            if id(node) not in docs
        ]
        assert [text for text in texts if not text.isascii()] == [], path.name


# --- What a table cannot hold --------------------------------------------------------------------


def test_a_failed_run_leaves_nothing_in_the_results_of_the_next() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(8, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 9])
    targets = torch.cat([torch.ones(7, 1), torch.full((1, 1), math.nan)])
    for routine, bad, run in (
        (classifier(), labels, trainer().test),
        (classifier(), labels, trainer().validate),
        (regressor(), targets, trainer().test),
    ):
        good = pairs(x, bad.nan_to_num(0).clamp(max=2))
        expected = run(routine, good, verbose=False)
        with pytest.raises(ValueError, match="Given"):
            run(routine, pairs(x, bad), verbose=False)
        assert run(routine, good, verbose=False) == expected


def test_a_failed_training_leaves_nothing_in_the_loss_of_the_next() -> None:
    losses: list[float] = [5.0]
    routine = classifier(loss=lambda logits, labels: 0 * logits.mean() + losses.pop())
    with pytest.raises(IndexError):
        trainer().fit(routine, pairs())
    losses += [1.0, 1.0]
    second = trainer()
    second.fit(routine, pairs())
    assert second.callback_metrics["train/loss"] == 1.0


class Centred(nn.Module):
    """Takes the mean of the batch away, so that estimators must not be folded into the batch."""

    def __init__(self, masks: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = y - y.mean(0, keepdim=True)
        return torch.cat([y, torch.full_like(y, -math.inf)], dim=1) if self.masks else y


@pytest.mark.parametrize("first", [torch.zeros(0, 6), torch.full((3, 6), math.nan)])
def test_a_batch_that_tells_nothing_chooses_no_path(first: Tensor) -> None:
    fitted = MCBatchNorm(Centred().eval(), 4).fit([k * x for k, x in enumerate(batches(), 1)])
    loaded = MCBatchNorm(Centred().eval(), 4)
    loaded.load_state_dict(fitted.state_dict())
    loaded(first)
    x = torch.randn(5, 6)
    torch.testing.assert_close(loaded(x), fitted(x))


def test_infinite_outputs_hide_no_difference_between_the_paths() -> None:
    data, x = [k * x for k, x in enumerate(batches(), 1)], torch.randn(5, 6)
    chosen, loop = (
        MCBatchNorm(Centred(masks=True).eval(), 4, path=path).fit(data)(x)
        for path in ("auto", "loop")
    )
    torch.testing.assert_close(chosen, loop)
