"""Wrong use, over the whole public API: each row fails with plain words, and changes nothing."""

from __future__ import annotations

import ast
import copy
import gzip
import math
import pickle
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

IDX_HEADER = bytes([0, 0, 8, 3]) + (10_000).to_bytes(4, "big") + bytes([0, 0, 0, 28] * 2)
IMAGES = {
    "nothing": b"",
    "truncated": IDX_HEADER + bytes(28),
    "promising": IDX_HEADER[:4] + b"\x7f\xff\xff\xff" + IDX_HEADER[8:],
    "of the right size": bytes(47_040_016),
    "bomb": gzip.compress(bytes(10_000_000)),
    "html": b"<html>404</html>",
    "pickle": pickle.dumps([1, 2]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are not what they should be, and a checkpoint."""
    folder = tmp_path_factory.mktemp("bad")
    for name, content in TABLES.items():
        (folder / f"{name}.csv").write_bytes(content)
    for name, content in IMAGES.items():
        for file in (*files.MNIST, *files.FASHION):
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_bytes(b"" if len(content) > 1e6 else content)
        (folder / name / files.MNIST[0]).write_bytes(content)
    torch.save({"state_dict": Evil(folder / "executed")}, folder / "evil.pt")
    whole = (folder / "evil.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    return folder


GOOD = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
LABELS = torch.tensor([0, 1])
ONE = torch.ones(1)
FLAG = torch.tensor([True])


def all_metrics() -> dict[str, metrics.Metric]:
    """Each with an example."""
    made: dict[str, metrics.Metric] = {}
    for name in ("BrierScore", "NLL", "Entropy", "CalibrationError", "AdaptiveCalibrationError",
                 "AURC", "AUGRC", "CoverageAtRisk", "RiskAtCoverage"):  # fmt: skip
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
    hook = last.register_load_state_dict_pre_hook(raising(KeyboardInterrupt(), after=0))
    world.undo = hook.remove
    return world.fitted.load_state_dict({k: v + 1 for k, v in world.fitted.state_dict().items()})


Row = tuple[Wrong, type[BaseException], list[str]]
ROWS: dict[str, Row] = {}


def rows(group: str, **named: Row) -> None:
    for name, row in named.items():
        ROWS[f"{group}: {name.replace('_', ' ')}"] = row


def made(**options: Any) -> Wrong:
    return lambda w: MCBatchNorm(**{"model": network(), **options})


rows(
    "convert",
    a_class=(made(model=nn.BatchNorm1d), TypeError, ["model is a type", "torch.nn.Module"]),
    nothing=(made(model=None), TypeError, ["model is a NoneType", "pass a torch.nn.Module"]),
    no_batch_norm=(made(model=nn.Linear(2, 2)), ValueError, ["Linear has no batch norm layer"]),
    lazy=(made(model=nn.LazyBatchNorm1d()), ValueError, ["lazy layers", "model(example_batch)"]),
    a_wrapper=(
        lambda w: MCBatchNorm(w.fitted, 4),
        ValueError,
        ["holds an MCBatchNorm already", "pass the network in it, its .model"],
    ),
    fitted_for_another_S=(
        lambda w: MCBatchNorm(MCBatchNorm(network(), 3).fit(batches(3)).model, 4, convert=False),
        ValueError,
        ["num_estimators=4", "statistics of 3", "use the same number, or fit again"],
    ),
    S_zero=(made(num_estimators=0), ValueError, ["num_estimators=0", "at least 1"]),
    S_float=(made(num_estimators=1.5), TypeError, ["num_estimators=1.5 is a float", "an integer"]),
    S_true=(made(num_estimators=True), TypeError, ["num_estimators=True is a bool", "integer"]),
    S_text=(made(num_estimators="16"), TypeError, ["num_estimators='16' is a str", "integer"]),
    M_in_the_place_of_convert=(
        lambda w: MCBatchNorm(network(), 16, 32),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["convert=32 is a int", "True or False", "the batch size is mc_batch_size="],
    ),
    M_negative=(made(mc_batch_size=-1), ValueError, ["mc_batch_size=-1", "at least 1"]),
    M_float=(made(mc_batch_size=8.0), TypeError, ["mc_batch_size=8.0 is a float", "an integer"]),
    budget_zero=(made(chunk_bytes=0), ValueError, ["chunk_bytes=0", "at least 1"]),
    correction_two=(made(correction=2), ValueError, ["correction=2", "0 (biased)"]),
    correction_true=(made(correction=True), TypeError, ["correction=True is a bool", "0 (biased)"]),
    correction_tensor=(made(correction=LABELS), TypeError, ["is a Tensor", "1 (unbiased)"]),
    momentum_zero=(made(momentum=0), ValueError, ["momentum=0", "above 0, at most 1"]),
    momentum_nan=(made(momentum=math.nan), ValueError, ["momentum=nan", "above 0, at most 1"]),
    momentum_text=(made(momentum="1"), TypeError, ["momentum='1' is a str", "above 0, at most 1"]),
    momentum_without_running_statistics=(
        made(model=nn.BatchNorm1d(2, track_running_stats=False), momentum=0.1),
        ValueError,
        ["momentum=0.1", "keeps none", "use momentum=1.0"],
    ),
    path_unknown=(made(path="fast"), ValueError, ["path='fast'", "'auto' or 'loop'"]),
    path_list=(made(path=["fold"]), ValueError, ["path=['fold']", "it is 'auto'"]),
)


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

rows(
    "fit",
    nothing=(fit_both(lambda: None), TypeError, ["a NoneType", "pass a DataLoader"]),
    a_dataset=(
        fit_both(lambda: TensorDataset(torch.randn(9, 6))),
        TypeError,
        ["a TensorDataset", "cannot be iterated over", "pass a DataLoader over the training set"],
    ),
    a_datamodule=(fit_both(TableDataModule), TypeError, ["a TableDataModule", "pass a DataLoader"]),
    text=(fit_both(lambda: "train"), TypeError, ["are a str", NO_TENSOR]),
    one_batch=(fit_both(lambda: torch.randn(9, 6)), ValueError, ["got 1D input", "(6,)", CHOICE]),
    no_batch=(fit_both(lambda: []), ValueError, ["each of the 4", "after 0", "pass more batches"]),
    an_iterator_at_its_end=(fit_both(lambda: iter(())), ValueError, ["after 0", "more batches"]),
    too_few_batches=(fit_both(lambda: batches(3)), ValueError, ["after 3", "pass more batches"]),
    stream_too_short=(
        fit_both(lambda: DataLoader(Stream(), batch_size=9)),
        ValueError,
        ["after 3", "pass more batches, or a DataLoader over a dataset with a length"],
    ),
    dataset_too_small=(
        fit_both(loader(lambda i: torch.randn(6), size=7)),
        ValueError,
        ["mc_batch_size=8", "has 7 examples", "smaller mc_batch_size"],
    ),
    dataset_empty=(
        fit_both(loader(lambda i: torch.randn(6), size=0, sampler=[])),
        ValueError,
        ["mc_batch_size=8", "has 0 examples", "give it some"],
    ),
    dataset_without_length=(
        fit_both(lambda: DataLoader(NoLength(), sampler=[1, 2, 3])),
        TypeError,
        ["a NoLength without a length", "give it a __len__, or make it an IterableDataset"],
    ),
    dataset_of_nothing=(fit_both(loader(lambda i: None)), TypeError, ["found <class 'NoneType'>"]),
    dataset_of_empty_dicts=(fit_both(loader(lambda i: {})), TypeError, ["a dict", NO_TENSOR]),
    dataset_of_empty_tuples=(fit_both(loader(lambda i: ())), TypeError, ["a list", NO_TENSOR]),
    dataset_of_unequal_sizes=(
        fit_both(loader(lambda i: torch.randn(i + 1))),
        RuntimeError,
        ["each tensor to be equal size"],
    ),
    dataset_that_fails_midway=(
        fit_both(lambda: DataLoader(Items(raising(OSError("disk gone"), after=11)))),
        OSError,
        ["disk gone"],
    ),
    worker_that_fails=(
        lambda w: w.fitted.fit(
            DataLoader(Items(raising(OSError("disk gone"), after=3)), num_workers=1)
        ),
        OSError,
        ["Caught OSError in DataLoader worker process 0", "disk gone"],
    ),
    batches_that_fail_midway=(fit_both(lambda: midway(OSError("gone"))), OSError, ["gone"]),
    interrupt_in_the_data=(fit_both(lambda: midway(KeyboardInterrupt())), KeyboardInterrupt, []),
    interrupt_in_the_third_pass=(
        lambda w: hooked(w, KeyboardInterrupt(), after=2).fit(batches()),
        KeyboardInterrupt,
        [],
    ),
    network_that_fails=(
        lambda w: hooked(w, ZeroDivisionError("by zero"), after=2).fit(batches()),
        ZeroDivisionError,
        ["by zero", "torch.float32 of shape (9, 6)", CHOICE],
    ),
    batches_of_none=(fit_both(lambda: [None] * 4), TypeError, ["a NoneType", NO_TENSOR]),
    batches_of_empty_dicts=(fit_both(lambda: [{}] * 4), TypeError, ["a dict", NO_TENSOR]),
    batches_of_empty_tuples=(fit_both(lambda: [()] * 4), TypeError, ["a tuple", NO_TENSOR]),
    batches_of_arrays=(fit_both(lambda: [np.zeros((9, 6))] * 4), TypeError, ["ndarray", NO_TENSOR]),
    batches_of_numbers=(fit_both(lambda: [[[1.0] * 6]] * 4), TypeError, ["a list", NO_TENSOR]),
    labels_first=(
        fit_both(lambda: [(torch.zeros(9), x) for x in batches()]),
        RuntimeError,
        ["torch.float32 of shape (9,)", CHOICE],
    ),
    integers=(
        fit_both(lambda: [x.long() for x in batches()]),
        RuntimeError,
        ["same dtype", "torch.int64 of shape (9, 6)", CHOICE],
    ),
    doubles=(fit_both(lambda: [x.double() for x in batches()]), RuntimeError, ["Double", CHOICE]),
    other_features=(fit_both(lambda: [torch.randn(9, 5)] * 4), RuntimeError, ["(9x5 and 6x8)"]),
    empty_batches=(fit_both(lambda: [torch.zeros(0, 6)] * 4), ValueError, ["0 value(s)", "larger"]),
    batches_of_one=(
        fit_both(lambda: [torch.randn(1, 6)] * 4),
        ValueError,
        ["1 value(s) a channel", "needs at least 2", "use a larger mc_batch_size"],
    ),
    nan=(
        fit_both(lambda: [torch.full((9, 6), math.nan)] * 4),
        ValueError,
        ["layer '1' saw is not finite", "look for NaN and infinite values in the training data"],
    ),
    infinite=(
        fit_both(lambda: [torch.full((9, 6), math.inf)] * 4),
        ValueError,
        ["not finite", "look for"],
    ),
    overflow=(fit_both(lambda: [x * 1e30 for x in batches()]), ValueError, ["not finite", "look"]),
    nan_in_the_last_batch_only=(
        fit_both(lambda: [*batches(3), torch.full((9, 6), math.nan)]),
        ValueError,
        ["not finite"],
    ),
    infinite_weights=(
        lambda w: (
            MCBatchNorm(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2), nn.BatchNorm1d(2)), 4)
            .requires_grad_(False)
            .apply(lambda m: m.weight.fill_(math.inf) if isinstance(m, nn.Linear) else None)
            .fit(batches())
        ),
        ValueError,
        ["layer '2' saw is not finite", "in the network's weights"],
    ),
    images_to_a_layer_of_rows=(
        lambda w: MCBatchNorm(nn.BatchNorm2d(6), 4).fit(batches()),
        ValueError,
        ["expected 4D", CHOICE],
    ),
    one_channel_that_would_broadcast=(
        lambda w: MCBatchNorm(nn.BatchNorm2d(6, affine=False), 4).fit(
            [torch.randn(3, 1, 2, 2)] * 4
        ),
        ValueError,
        ["shape (3, 1, 2, 2)", "wanted 6 channels", "on the axis after the batch"],
    ),
    layer_not_reached_without_running_statistics=(
        lambda w: MCBatchNorm(Half(), 2).fit([torch.randn(9, 6), torch.randn(12, 6)]),
        ValueError,
        ["1 of 2 mini-batches did not reach layer 'norm'", "use a larger mc_batch_size"],
    ),
    meta_inputs=(
        fit_both(lambda: [x.to("meta") for x in batches()]),
        ValueError,
        ["input is on the meta device", "wanted some", "make it on a real device"],
    ),
    meta_network=(
        lambda w: MCBatchNorm(network().to("meta"), 4).fit(batches()),
        ValueError,
        ["the network is on the meta device", "call to_empty(device=...) and load_state_dict(...)"],
    ),
    generator_a_seed=(fit_both(batches, generator=0), TypeError, ["generator=0", "of the CPU"]),
    input_fn_a_name=(
        fit_both(batches, input_fn="x"),
        TypeError,
        ["input_fn='x' is a str", "a function from a"],
    ),
    input_fn_zero=(fit_both(batches, input_fn=0), TypeError, ["input_fn=0 is a int", "a function"]),
    input_fn_without_return=(fit_both(batches, input_fn=lambda x: None), TypeError, [NO_TENSOR]),
    input_fn_of_another_keyword=(
        fit_both(batches, input_fn=lambda x: {"image": x}),
        TypeError,
        ["argument 'image'", CHOICE],
    ),
    input_fn_of_too_many=(
        fit_both(batches, input_fn=lambda x: (x, x)),
        TypeError,
        ["2 positional", CHOICE],
    ),
    input_fn_that_fails=(
        fit_both(batches, input_fn=raising(KeyError("image"), after=1)),
        KeyError,
        ["image"],
    ),
)


rows(
    "predict",
    before_fit=(
        lambda w: copy.deepcopy(w.fresh).eval()(torch.randn(2, 6)),
        RuntimeError,
        ["holds no statistics yet", "call fit(train_dataloader) first"],
    ),
    other_features=(lambda w: w.fitted(torch.randn(2, 5)), RuntimeError, ["(2x5 and 6x8)"]),
    doubles=(
        lambda w: w.fitted(torch.randn(2, 6).double()),
        RuntimeError,
        ["same dtype", "Double"],
    ),
    integers=(lambda w: w.fitted(torch.ones(2, 6).long()), RuntimeError, ["same dtype", "Long"]),
    meta=(lambda w: w.fitted(torch.randn(2, 6, device="meta")), RuntimeError, ["device meta"]),
    array=(lambda w: w.fitted(np.zeros((2, 6))), TypeError, ["must be Tensor, not numpy.ndarray"]),
    nothing=(lambda w: w.fitted(), TypeError, ["missing 1 required positional argument"]),
    interrupt=(
        lambda w: hooked(w, KeyboardInterrupt(), after=0)(torch.randn(2, 6)),
        KeyboardInterrupt,
        [],
    ),
)
for path in ("auto", "loop"):

    def of_path(path: str, x: Tensor) -> Wrong:
        data = [torch.randn(3, 6, 2, 2) for _ in range(4)]
        return lambda w: MCBatchNorm(nn.BatchNorm2d(6), 4, path=path).fit(data).eval()(x)  # pyright: ignore

    rows(
        f"predict, {path}",
        one_channel_that_would_broadcast=(
            of_path(path, torch.randn(2, 1, 2, 2)),
            ValueError,
            ["shape (2, 1, 2, 2)", "wanted 6 channels"],
        ),
        other_channels=(of_path(path, torch.randn(2, 5, 2, 2)), ValueError, ["wanted 6 channels"]),
        other_rank=(of_path(path, torch.randn(2, 6)), ValueError, ["expected 4D input"]),
        called_more_often_than_in_fit=(
            lambda w, path=path: (
                MCBatchNorm(Unlike(), 4, path=path)  # pyright: ignore
                .fit(batches())
                .eval()(torch.randn(12, 6))
            ),
            RuntimeError,
            ["2 times", "those of fit did so 1 times", "call fit with batches for which"],
        ),
    )


def resample(estimators: Any, count: int = 4) -> Wrong:
    return lambda w: w.fitted.resample(batches(count), estimators)


rows(
    "resample",
    before_fit=(
        lambda w: w.fresh.resample(batches(), [0]),
        RuntimeError,
        ["no statistics yet", "call fit("],
    ),
    a_number=(resample(2), TypeError, ["estimators=2 is a int", "pass several indices"]),
    text=(resample("01"), TypeError, ["estimators='01' is a str", "as in [0, 3]"]),
    a_float=(resample([0.5]), TypeError, ["0.5 is a float", "pass integers"]),
    a_mask=(resample([True, False]), TypeError, ["True is a bool", "pass integers"]),
    a_mask_tensor=(resample(FLAG), TypeError, ["True is a bool", "pass integers"]),
    too_high=(resample([4]), IndexError, ["estimator 4", "num_estimators=4: 0 to 3"]),
    negative=(resample([-1]), IndexError, ["estimator -1", "0 to 3"]),
    twice=(resample([1, 1]), ValueError, ["estimators=[1, 1]", "each once"]),
    none=(resample([]), ValueError, ["estimators=[]", "at least one index"]),
    too_few_batches=(resample([0, 1], count=1), ValueError, ["the data ended after 1", "more"]),
    interrupt=(
        lambda w: w.fitted.resample(midway(KeyboardInterrupt()), [0, 1, 2]),
        KeyboardInterrupt,
        [],
    ),
    nan=(lambda w: w.fitted.resample([batches()[0] * math.nan], [0]), ValueError, ["not finite"]),
    called_less_often_than_in_fit=(
        lambda w: MCBatchNorm(Unlike(), 2).fit(batches(2, 12)).resample(batches(1), [0]),
        RuntimeError,
        ["1 times", "those of fit did so 2 times", "call fit with batches for which"],
    ),
)

SAVED = (4, 1, 8)

rows(
    "load",
    nothing=(lambda w: w.fitted.load_state_dict(None), TypeError, ["dict-like", "NoneType"]),
    empty=(
        lambda w: w.fitted.load_state_dict({}),
        RuntimeError,
        ["Missing key(s)", "model.0.weig"],
    ),
    another_architecture=(
        lambda w: w.fitted.load_state_dict(MCBatchNorm(lenet(1, 10), 4).state_dict()),
        RuntimeError,
        ["Missing key(s)", "Unexpected key(s)", "size mismatch"],
    ),
    another_width=(
        lambda w: MCBatchNorm.load_state_dict(
            w.fitted,
            MCBatchNorm(nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9)), 4).state_dict(),
        ),
        RuntimeError,
        ["size mismatch for model.0.weight"],
    ),
    another_S=(
        lambda w: MCBatchNorm(network(), 3).load_state_dict(w.fitted.state_dict()),
        RuntimeError,
        ["(4, 1, 8)", "num_estimators=3; build one with as many as were saved"],
    ),
    another_S_into_a_fitted_one=(
        lambda w: w.fitted.load_state_dict(MCBatchNorm(network(), 3).fit(batches(3)).state_dict()),
        RuntimeError,
        ["(3, 1, 8)", "num_estimators=4; build one with as many as were saved"],
    ),
    a_weight_missing=(changed("model.6.bias", None), RuntimeError, ["Missing", "model.6.bias"]),
    a_name_too_many=(changed("model.7.bias", ONE), RuntimeError, ["Unexpected", "model.7.bias"]),
    a_weight_of_text=(changed("model.6.bias", "x"), RuntimeError, ["model.6.bias", "str"]),
    mean_missing=(
        changed("model.1.mc_mean", None),
        RuntimeError,
        ["NoneType and Tensor", "take bo"],
    ),
    variance_missing=(
        changed("model.1.mc_var", None),
        RuntimeError,
        ["Tensor and NoneType", "wanted two tensors"],
    ),
    statistics_of_one_layer_missing=(
        lambda w: w.fitted.load_state_dict(
            {k: v + 1 for k, v in w.fitted.state_dict().items() if "5.mc" not in k}
        ),
        RuntimeError,
        ["Missing key(s)", "model.5.mc_mean"],
    ),
    mean_of_text=(changed("model.1.mc_mean", "x"), RuntimeError, ["str and Tensor", "two tensors"]),
    mean_of_other_features=(
        changed("model.1.mc_mean", torch.zeros(4, 1, 5)),
        RuntimeError,
        ["(4, 1, 5)", "features=8"],
    ),
    mean_of_other_calls=(
        changed("model.1.mc_mean", torch.zeros(4, 2, 8)),
        RuntimeError,
        ["(4, 2, 8)", "wanted are"],
    ),
    mean_of_another_rank=(changed("model.1.mc_mean", ONE), RuntimeError, ["(1,)", "wanted are"]),
    mean_of_integers=(
        changed("model.1.mc_mean", torch.zeros(SAVED).long()),
        RuntimeError,
        ["torch.int64", "wanted floating point"],
    ),
    mean_of_nan=(
        changed("model.5.mc_mean", torch.full(SAVED, math.nan)),
        RuntimeError,
        ["model.5.mc_mean", "NaN or infinity", "fit and save again"],
    ),
    variance_negative=(
        changed("model.5.mc_var", -torch.ones(SAVED)),
        RuntimeError,
        ["negative variance", "look whether means and variances were swapped"],
    ),
    of_the_meta_device=(
        lambda w: w.fitted.load_state_dict(
            {k: v.to("meta") for k, v in w.fitted.state_dict().items()}
        ),
        RuntimeError,
        ["Cannot copy out of meta tensor"],
    ),
    assigned_and_missing=(
        lambda w: w.fitted.load_state_dict(
            {k: v + 1 for k, v in w.fitted.state_dict().items() if k != "model.6.bias"},
            assign=True,
        ),
        RuntimeError,
        ["Missing key(s)", "model.6.bias"],
    ),
    interrupt=(
        lambda w: interrupted_load(w),
        KeyboardInterrupt,
        [],
    ),
    wrong_and_not_strict=(
        lambda w: w.fitted.load_state_dict(
            OrderedDict(w.fitted.state_dict(), **{"model.5.mc_var": -torch.ones(SAVED)}),
            strict=False,
        ),
        RuntimeError,
        ["negative variance"],
    ),
    code_in_the_file=(
        lambda w: torch.load(w.folder / "evil.pt"),
        pickle.UnpicklingError,
        ["Weights only load"],
    ),
    half_a_file=(lambda w: torch.load(w.folder / "half.pt"), RuntimeError, ["zip archive"]),
    code_in_a_checkpoint=(
        lambda w: trainer().test(w.routine, pairs(), ckpt_path=str(w.folder / "evil.pt")),
        pickle.UnpicklingError,
        ["Weights only load"],
    ),
)

# --- Predictive functions and metrics ------------------------------------------------------------

KINDS = {
    "a list": ([[0.5, 0.5]], TypeError, "is a list, wanted a torch.Tensor"),
    "an array": (GOOD.numpy(), TypeError, "is a ndarray, wanted a torch.Tensor"),
    "nothing": (None, TypeError, "is a NoneType, wanted a torch.Tensor"),
    "sparse": (GOOD.to_sparse(), TypeError, "torch.sparse_coo, wanted a dense tensor; call"),
    "integers": (GOOD.long(), ValueError, "torch.int64"),
    "complex": (GOOD.to(torch.complex64), ValueError, "torch.complex64"),
    "a scalar": (torch.tensor(0.5), ValueError, "shape (), wanted floating point"),
    "no class": (torch.zeros(2, 0), ValueError, "no axis empty"),
    "no image": (torch.zeros(0, 2), ValueError, "no axis empty"),
}
for kind, (value, error, words) in KINDS.items():
    for name in ("probabilities", "mean_probs", "entropy", "mutual_information", "disagreement",
                 "summarise_classification", "summarise_regression"):  # fmt: skip

        def call(world: World, name: str = name, value: Any = value) -> object:
            return getattr(predictive, name)(value)

        ROWS[f"{name}: {kind}"] = call, error, [words, "wanted"]
    for name in ("BrierScore", "NLL", "Entropy", "CalibrationError", "AdaptiveCalibrationError",
                 "AURC", "AUGRC", "CoverageAtRisk", "RiskAtCoverage"):  # fmt: skip

        def update(world: World, name: str = name, value: Any = value) -> object:
            return world.metrics[name].update(value, LABELS)

        ROWS[f"{name}: {kind}"] = update, error, [words, "wanted"]

BAD_ROWS = {
    "nan": (GOOD * math.nan, "from nan up"),
    "infinite": (GOOD * math.inf, "sums over the classes from inf"),
    "negative": (torch.tensor([[1.5, -0.5], [0.5, 0.5]]), "from -0.5 up"),
    "logits": (GOOD * 4, "from 4 to 4"),
    "a sum of 0.9": (GOOD * 0.9, "from 0.9 to 0.9"),
    "estimators": (GOOD[None], "shape (1, 2, 2)"),
    "meta": (GOOD.to("meta"), "one device"),
}
BAD_LABELS = {
    "too high": (torch.tensor([0, 2]), ValueError, "from 0 to 2, wanted 0 to 1 for 2 classes"),
    "negative": (torch.tensor([-1, 1]), ValueError, "from -1 to 1, wanted 0 to 1 for 2 classes"),
    "too many": (torch.tensor([0, 1, 1]), ValueError, "shape (3,), wanted integer labels"),
    "one-hot": (torch.eye(2).long(), ValueError, "shape (2, 2), wanted integer labels"),
    "float": (LABELS.float(), ValueError, "type torch.float32"),
    "complex": (LABELS.to(torch.complex64), ValueError, "type torch.complex64"),
    "a list": ([0, 1], TypeError, "target is a list, wanted a torch.Tensor"),
    "an array": (LABELS.numpy(), TypeError, "target is a ndarray, wanted a torch.Tensor"),
    "nothing": (None, TypeError, "target is a NoneType, wanted a torch.Tensor"),
    "meta": (LABELS.to("meta"), ValueError, "wanted all on one device; move them"),
}
for kind, (value, words) in BAD_ROWS.items():
    ROWS[f"NLL of {kind}"] = (
        lambda w, value=value: w.metrics["NLL"].update(value, LABELS),
        ValueError,
        [words, "wanted"],
    )
    ROWS[f"AURC of {kind}"] = (
        lambda w, value=value: w.metrics["AURC"].update(value, LABELS),
        ValueError,
        [words, "wanted"],
    )
for kind, (value, error, words) in BAD_LABELS.items():
    for name in ("BrierScore", "CalibrationError"):
        ROWS[f"{name} with labels {kind}"] = (
            lambda w, name=name, value=value: w.metrics[name].update(GOOD, value),
            error,
            [words],
        )
    ROWS[f"fit_temperature with labels {kind}"] = (
        lambda w, value=value: predictive.fit_temperature(GOOD, value),
        error,
        [words],
    )

UNIT = torch.tensor([0.6, 0.9])
rows(
    "predictive",
    temperature_of_four_axes=(
        lambda w: predictive.fit_temperature(GOOD[None, None], LABELS),
        ValueError,
        ["(1, 1, 2, 2)", "wanted floating point logits of shape (batch, classes) or (num_esti"],
    ),
    temperature_of_nothing=(
        lambda w: predictive.fit_temperature(None, LABELS),
        TypeError,
        ["logits is a NoneType"],  # pyright: ignore
    ),
    temperature_of_no_image=(
        lambda w: predictive.fit_temperature(GOOD[:0], LABELS[:0]),
        ValueError,
        ["no axis empty"],
    ),
    noise_negative=(
        lambda w: predictive.summarise_regression(GOOD, -1.0),
        ValueError,
        ["noise_variance=-1.0"],
    ),
    noise_infinite=(
        lambda w: predictive.summarise_regression(GOOD, math.inf),
        ValueError,
        ["noise_variance=inf", "wanted a number from 0 up"],
    ),
    noise_of_text=(
        lambda w: predictive.summarise_regression(GOOD, "1"),  # pyright: ignore
        TypeError,
        ["noise_variance='1' is a str", "a number from 0 up"],
    ),
    noise_that_would_broadcast=(
        lambda w: predictive.summarise_regression(torch.zeros(3, 1), torch.ones(7)),
        ValueError,
        ["noise_variance of shape (7,)", "broadcasts to that of a prediction, (1,)"],
    ),
)


def precision(predictions: Any, target: Any = UNIT, **options: Any) -> Wrong:
    return lambda w: predictive.fit_noise_precision(predictions, target, **options)


rows(
    "noise precision",
    of_a_list=(precision([1.0]), TypeError, ["predictions is a list", "wanted a torch.Tensor"]),
    target_a_list=(precision(UNIT, [1.0]), TypeError, ["target is a list", "a torch.Tensor"]),
    of_integers=(precision(LABELS), ValueError, ["torch.int64", "wanted floating point"]),
    of_nan=(
        precision(UNIT * math.nan),
        ValueError,
        ["predictions with NaN or inf", "wanted finite"],
    ),
    target_infinite=(precision(UNIT, UNIT * math.inf), ValueError, ["target with NaN or infin"]),
    other_shape=(precision(torch.ones(2, 3)), ValueError, ["(2, 3)", "(2,)", "(num_estimators, *"]),
    too_large=(
        precision(torch.tensor([[1e200], [0.0]], dtype=torch.float64), UNIT[:1], bounds=(1, 2)),
        ValueError,
        ["up to 1e+200", "in another unit"],
    ),
    no_estimator=(precision(torch.ones(0, 2)), ValueError, ["(0, 2)", "no axis empty"]),
    no_error=(precision(UNIT), ValueError, ["All errors are 0", "pass bounds=(lowest, highest)"]),
    meta=(precision(UNIT.to("meta")), ValueError, ["meta", "wanted all on one device"]),
    one_bound=(precision(UNIT * 2, bounds=(1,)), ValueError, ["bounds=(1,)", "two rising finite"]),
    falling_bounds=(
        precision(UNIT * 2, bounds=(2, 1)),
        ValueError,
        ["bounds=(2, 1)", "two rising"],
    ),
    bounds_of_text=(precision(UNIT * 2, bounds="ab"), ValueError, ["bounds=ab", "two rising"]),
    bound_zero=(precision(UNIT * 2, bounds=(0, 1)), ValueError, ["bounds=(0, 1)", "above 0"]),
)


def crps(mean: Any = ONE, std: Any = ONE, target: Any = ONE) -> Wrong:
    return lambda w: w.metrics["GaussianCRPS"].update(mean, std, target)


def pll(predictions: Any = ONE[None], tau: Any = 1.0, target: Any = ONE) -> Wrong:
    return lambda w: w.metrics["MixtureLogLikelihood"].update(predictions, tau, target)


rows(
    "regression metrics",
    mean_a_list=(crps(mean=[1.0]), TypeError, ["mean is a list, wanted a torch.Tensor"]),
    std_a_number=(crps(std=1.0), TypeError, ["std is a float, wanted a torch.Tensor"]),
    std_negative=(crps(std=-ONE), ValueError, ["a std of -1", "wanted 0 or more"]),
    target_of_integers=(crps(target=ONE.long()), ValueError, ["target torch.int64", "wanted floa"]),
    target_that_would_broadcast=(crps(target=ONE[None]), ValueError, ["(1, 1)", "wanted floating"]),
    target_nan=(crps(target=ONE * math.nan), ValueError, ["target with NaN", "wanted finite"]),
    target_meta=(crps(target=ONE.to("meta")), ValueError, ["wanted all on one device"]),
    nothing=(crps(ONE[:0], ONE[:0], ONE[:0]), ValueError, ["no axis empty"]),
    tau_zero=(pll(tau=0), ValueError, ["tau=0", "wanted a finite number above 0"]),
    tau_text=(pll(tau="1"), TypeError, ["tau='1' is a str", "a finite number above 0"]),
    tau_tensor=(pll(tau=ONE), TypeError, ["tau=tensor([1.]) is a Tensor", "a finite number"]),
    tau_nan=(pll(tau=math.nan), ValueError, ["tau=nan", "wanted a finite number above 0"]),
    no_estimators=(
        pll(ONE),
        ValueError,
        ["shape (1,)", "of shape (num_estimators, *target.shape)"],
    ),
    predictions_infinite=(pll(ONE[None] * math.inf), ValueError, ["predictions with NaN or inf"]),
    level_one=(lambda w: metrics.IntervalCoverage(1.0), ValueError, ["level=1.0", "between 0 and"]),
    level_text=(lambda w: metrics.IntervalCoverage("x"), TypeError, ["level='x' is a str"]),  # pyright: ignore
)

rows(
    "classification metrics",
    information_of_a_mean=(
        lambda w: w.metrics["MutualInformation"].update(GOOD),
        ValueError,
        ["shape (2, 2)", "(num_estimators, batch, classes)", "call mcbn.predictive.probabilities("],
    ),
    information_of_logits=(
        lambda w: w.metrics["MutualInformation"].update(GOOD[None] * 9),
        ValueError,
        ["from 9 to 9", "wanted probabilities"],
    ),
    disagreement_of_a_list=(
        lambda w: w.metrics["Disagreement"].update([1]),
        TypeError,
        ["probs is a list"],
    ),
    entropy_of_other_labels=(
        lambda w: w.metrics["Entropy"].update(GOOD, LABELS + 7),
        ValueError,
        ["from 7 to 8"],
    ),
    risk_of_five=(lambda w: metrics.CoverageAtRisk(5), ValueError, ["risk=5", "from 0 to 1"]),
    risk_true=(lambda w: metrics.CoverageAtRisk(True), TypeError, ["risk=True is a bool"]),
    coverage_zero=(lambda w: metrics.RiskAtCoverage(0), ValueError, ["coverage=0", "above 0, up"]),
    coverage_text=(lambda w: metrics.RiskAtCoverage("1"), TypeError, ["coverage='1' is a str"]),  # pyright: ignore
    no_bins=(lambda w: metrics.CalibrationError(0), ValueError, ["num_bins=0", "at least 1"]),
    half_a_bin=(lambda w: metrics.CalibrationError(1.5), TypeError, ["1.5 is a float", "integer"]),  # pyright: ignore
    bins_true=(lambda w: metrics.AdaptiveCalibrationError(True), TypeError, ["True is a bool"]),
    norm_unknown=(lambda w: metrics.CalibrationError(norm="l2"), ValueError, ["norm='l2'", '"l1"']),  # pyright: ignore
    diagram_of_percents=(
        lambda w: metrics.reliability_bins(ONE * 90, FLAG),
        ValueError,
        ["confidence from 90 to 90", "wanted fractions from 0 to 1"],
    ),
    diagram_of_nan=(
        lambda w: metrics.reliability_bins(ONE * math.nan, FLAG),
        ValueError,
        ["confidence with NaN"],
    ),
    diagram_of_numbers=(
        lambda w: metrics.reliability_bins(ONE, ONE),
        ValueError,
        ["correct torch.float32", "wanted floating point and bool"],
    ),
    diagram_of_nothing=(
        lambda w: metrics.reliability_bins(ONE[:0], FLAG[:0]),
        ValueError,
        ["(0,)", "not empty"],
    ),
    diagram_with_a_float_of_bins=(
        lambda w: metrics.reliability_bins(ONE, FLAG, 1.5),
        TypeError,
        ["num_bins=1.5 is a float"],  # pyright: ignore
    ),
    equal_masses_of_negatives=(
        lambda w: metrics.adaptive_calibration_error(-ONE, FLAG),
        ValueError,
        ["from -1 to -1"],
    ),
    curve_of_lists=(
        lambda w: metrics.risk_coverage_curve([0.5], [True]),
        TypeError,
        ["confidence is a list"],  # pyright: ignore
    ),
    curve_of_two_lengths=(
        lambda w: metrics.risk_coverage_curve(UNIT, FLAG),
        ValueError,
        ["(2,)", "(1,)", "one shape"],
    ),
    ood_of_labels=(
        lambda w: w.metrics["FPR95"].update(ONE, ONE),
        ValueError,
        ["is_ood torch.float32", "bool"],
    ),
    ood_of_nan=(
        lambda w: w.metrics["FPR95"].update(ONE * math.nan, FLAG),
        ValueError,
        ["scores with NaN"],
    ),
    ood_of_one_kind=(
        lambda w: w.metrics["FPR95"].compute(),
        ValueError,
        ["0 in-distribution and 1 OOD scores, wanted both", "call update(scores, is_ood)"],
    ),
)
for name in sorted(all_metrics()):

    def empty(world: World, name: str = name) -> object:
        metric = world.metrics[name].clone()
        metric.reset()
        return metric.compute()

    ROWS[f"{name} without an example"] = empty, ValueError, ["call update("]

# --- Data ----------------------------------------------------------------------------------------


def table(name: str, **options: Any) -> Wrong:
    return lambda w: TableDataModule(w.folder / f"{name}.csv", **options).setup()


def row_of(name: str, *words: str) -> Row:
    return table(name), ValueError, list(words)


rows(
    "table",
    empty=row_of("empty", "empty.csv has no row of numbers"),
    binary=row_of("binary", "binary.csv is no text in UTF-8", "unpack or convert it"),
    gzipped=row_of("gzipped", "gzipped.csv is no text in UTF-8", "unpack or convert it"),
    utf16=row_of("utf16", "utf16.csv is no text in UTF-8", "convert it"),
    nul=row_of("nul", "nul.csv, line 1", "no finite number"),
    nan=row_of("nan", "nan.csv, line 2: 'nan' is no finite number"),
    infinite=row_of("infinite", "line 1: '1e400' is no finite number"),
    truncated=row_of("truncated", "truncated.csv, line 10: '' is no finite number"),
    ragged=row_of("ragged", "line 2: 3 numbers, wanted 2 as in the lines above"),
    header=row_of("header", "line 2: 2 numbers, wanted 3"),
    long=row_of("long", "line 10: 'xxxxxxxxxxxx...xxxxxxxxxxxxx' is no finite number"),
    narrow=row_of("narrow", "the table has 1 columns", "wanted at least two"),
    short=row_of("short", "2 rows make 2 for training", "wanted at least 1 in each"),
    huge=row_of("huge", "up to 2e+300", "too large to standardize", "in another unit"),
    missing=(table("none"), FileNotFoundError, ["none.csv"]),
    a_folder=(lambda w: read_table(w.folder), IsADirectoryError, ["Is a directory"]),
    path_a_number=(lambda w: TableDataModule(3), TypeError, ["path=3 is a int", "the path of a"]),  # pyright: ignore
    target_beyond=(table("long", target=9), ValueError, ["line 10"]),
    target_out_of_range=(lambda w: TableDataModule(target=11).setup(), ValueError, ["target=11"]),
    target_by_name=(
        lambda w: TableDataModule(target="age"),
        TypeError,
        ["target='age' is a str", "number of"],  # pyright: ignore
    ),
    batch_size_zero=(
        lambda w: TableDataModule(batch_size=0),
        ValueError,
        ["batch_size=0", "at le"],
    ),
    batch_size_true=(lambda w: TableDataModule(batch_size=True), TypeError, ["True is a bool"]),
    split_of_one=(
        lambda w: TableDataModule(test_split=1.0),
        ValueError,
        ["test_split=1.0", "below"],
    ),
    split_of_text=(
        lambda w: TableDataModule(val_split="0.2"),
        TypeError,
        ["val_split='0.2' is a str", "a share"],  # pyright: ignore
    ),
    seed_of_text=(lambda w: TableDataModule(seed="0"), TypeError, ["seed='0' is a str", "integer"]),  # pyright: ignore
    unknown_part=(
        lambda w: TableDataModule().dataset("ood"),
        ValueError,
        ["part='ood'", "wanted 'train'"],  # pyright: ignore
    ),
    part_a_list=(
        lambda w: TableDataModule().dataset(["val"]),
        ValueError,
        ["part=['val']", "want"],
    ),  # pyright: ignore
)


def digits(**options: Any) -> Wrong:
    return lambda w: MNISTDataModule(**{"source": "sample", **options})


rows(
    "digits",
    source_unknown=(digits(source="half"), ValueError, ["source='half'", "'full' or 'sample'"]),
    root_a_number=(digits(root=3), TypeError, ["root=3 is a int", "the path of a folder"]),
    batch_size_zero=(digits(batch_size=0), ValueError, ["batch_size=0", "at least 1"]),
    batch_size_true=(digits(batch_size=True), TypeError, ["batch_size=True is a bool", "integer"]),
    workers_negative=(digits(num_workers=-1), ValueError, ["num_workers=-1", "at least 0"]),
    split_of_one=(digits(val_split=1), ValueError, ["val_split=1", "0 or more and below 1"]),
    split_of_nothing=(
        digits(val_split=None),
        TypeError,
        ["val_split=None is a NoneType", "a share"],
    ),
    split_too_small=(
        lambda w: MNISTDataModule(source="sample", val_split=1e-5).setup(),
        ValueError,
        ["val_split=1e-05 holds out none of 4,000 images", "wanted 0 or a larger share"],
    ),
    crop_of_pixels=(digits(random_crop=4), TypeError, ["random_crop=4 is a int", "True or False"]),
    seed_float=(digits(seed=0.5), TypeError, ["seed=0.5 is a float", "an integer"]),
    unknown_part=(
        lambda w: MNISTDataModule(source="sample").dataset("training"),  # pyright: ignore
        ValueError,
        ["name='training'", "wanted 'train', 'val', 'test' or 'ood'"],
    ),
    part_a_list=(
        lambda w: MNISTDataModule(source="sample").dataset(["val"]),
        ValueError,
        ["name=['val']"],  # pyright: ignore
    ),
    no_mirror=(
        lambda w: MNISTDataModule(w.folder / "new", source="full").prepare_data(),
        ConnectionError,
        ["no mirror gave train-images-idx3-ubyte"],
    ),
    not_downloaded=(
        lambda w: MNISTDataModule(w.folder / "new", source="full").setup(),
        FileNotFoundError,
        ["train-images-idx3-ubyte is missing", "call prepare_data() to download"],
    ),
    path_out_of_the_folder=(
        lambda w: files.read(w.folder / "html", "../nul.csv"),
        ValueError,
        ["'../nul.csv' is no file of the datasets", "wanted one of MNIST/raw/train-images"],
    ),
    absolute_path=(
        lambda w: files.read(w.folder, "/etc/passwd"),
        ValueError,
        ["'/etc/passwd' is no"],
    ),
    download_out_of_the_folder=(
        lambda w: files.fetch_missing(w.folder / "html", ["../new"], patient=False),
        ValueError,
        ["'../new' is no file of the datasets"],
    ),
    images_of_four_axes=(
        lambda w: random_crop(torch.zeros(2, 1, 8, 8), 2),
        ValueError,
        ["(2, 1, 8, 8)", "(batch, he"],
    ),
    crop_of_a_list=(lambda w: random_crop([1], 2), TypeError, ["images is a list"]),  # pyright: ignore
    padding_negative=(lambda w: random_crop(torch.zeros(2, 8, 8), -1), ValueError, ["padding=-1"]),
    padding_float=(lambda w: random_crop(torch.zeros(2, 8, 8), 1.5), TypeError, ["1.5 is a float"]),  # pyright: ignore
)
BYTES = torch.zeros(4, 8, 8, dtype=torch.uint8)
rows(
    "images in memory",
    labels_missing=(
        lambda w: InMemoryImages(BYTES, torch.arange(3), 0.0, 1.0),
        ValueError,
        ["labels torch.int64 (3,)", "wanted uint8 (n, height, width) and int64 (n,)"],
    ),
    of_floats=(
        lambda w: InMemoryImages(BYTES.float(), torch.arange(4), 0.0, 1.0),
        ValueError,
        ["images torch.float32", "wanted uint8"],
    ),
    of_an_array=(
        lambda w: InMemoryImages(BYTES.numpy(), torch.arange(4), 0.0, 1.0),  # pyright: ignore
        TypeError,
        ["images is a ndarray", "wanted a torch.Tensor"],
    ),
    std_zero=(
        lambda w: InMemoryImages(BYTES, torch.arange(4), 0.0, 0.0),
        ValueError,
        ["std=0.0", "above 0"],
    ),
    mean_nan=(
        lambda w: InMemoryImages(BYTES, torch.arange(4), math.nan, 1.0),
        ValueError,
        ["mean=nan"],
    ),
    index_beyond=(
        lambda w: InMemoryImages(BYTES, torch.arange(4), 0.0, 1.0)[4],
        IndexError,
        ["index 4 is out of bounds for dimension 0 with size 4"],
    ),
)
for kind in IMAGES:
    for source in ("auto", "full"):
        ROWS[f"digits: a file that is {kind}, {source}"] = (
            lambda w, kind=kind, source=source: MNISTDataModule(
                w.folder / kind,
                source=source,  # pyright: ignore
            ).dataset("train"),
            ValueError,
            ["train-images-idx3-ubyte is damaged", "wanted are the 47,040,016 bytes", "Delete it"],
        )
    ROWS[f"clothes: a file that is {kind}"] = (
        lambda w, kind=kind: files.read(w.folder / kind, files.FASHION[1]),
        ValueError,
        [
            "t10k-labels-idx1-ubyte is damaged",
            "wanted are the 10,008 bytes",
            "Delete it to have it",
        ],
    )

# --- Training and testing ------------------------------------------------------------------------


def trainer(**options: Any) -> Trainer:
    return Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **options)


def pairs(x: Any = None, y: Any = None, size: int = 4) -> DataLoader[Any]:
    x = torch.randn(8, 6) if x is None else x
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]) if y is None else y
    return DataLoader(TensorDataset(x, y), batch_size=size)


def parts(**items: Any) -> DataLoader[Any]:
    return DataLoader([items] * 8, batch_size=4)  # pyright: ignore[reportArgumentType]


def classifier(
    num_classes: Any = 3, model: Any = None, loss: Any = None, recipe: Any = optim_lenet
):
    return ClassificationRoutine(
        num_classes, network() if model is None else model, loss or nn.CrossEntropyLoss(), recipe
    )


def regressor(**options: Any) -> RegressionRoutine:
    return RegressionRoutine(nn.Linear(6, 1), nn.MSELoss(), optim_lenet, **options)


def run_test(routine: Callable[[World], Any], loader: Callable[[], Any] | None = None) -> Wrong:
    return lambda w: trainer().test(routine(w), (loader or pairs)(), verbose=False)


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


PREDICTIONS = "wanted a tensor of predictions of the targets' shape, with or without an estimator"
LOGITS = "wanted a tensor of logits (batch, classes) or (num_estimators, batch, classes); wrap"
PAIR = "wanted a pair of inputs and targets; give the loader a collate_fn="
TARGETS = torch.ones(8, 1)

rows(
    "routine",
    classes_one=(lambda w: classifier(1), ValueError, ["num_classes=1", "at least 2"]),
    classes_none=(lambda w: classifier(None), TypeError, ["num_classes=None is a NoneType"]),
    classes_and_model_swapped=(
        lambda w: ClassificationRoutine(w.model, 3, nn.CrossEntropyLoss(), optim_lenet),  # pyright: ignore
        TypeError,
        ["is a Sequential", "pass an integer"],
    ),
    model_of_text=(lambda w: classifier(model="lenet"), TypeError, ["model is a str", "nn.Module"]),
    loss_of_text=(lambda w: classifier(loss="ce"), TypeError, ["loss='ce' is a str", "a function"]),
    recipe_of_text=(
        lambda w: classifier(recipe="adam"),
        TypeError,
        ["optim_recipe='adam' is a str", "optimizer"],
    ),
    recipe_none=(lambda w: classifier(recipe=None), TypeError, ["optim_recipe=None", "a function"]),
    recipe_without_return=(
        lambda w: trainer().fit(classifier(recipe=lambda model: None), pairs()),
        TypeError,
        ["optim_recipe gave None", "return an optimizer"],
    ),
    recipe_that_gives_the_network=(
        lambda w: trainer().fit(classifier(recipe=lambda model: model), pairs()),
        MisconfigurationException,
        ["Unknown configuration for model optimizers"],
    ),
    loss_without_return=(
        lambda w: trainer().fit(classifier(loss=lambda a, b: None), pairs()),
        TypeError,
        ["the loss gave a NoneType", "wanted a tensor of one number", "return the mean"],
    ),
    loss_of_each_example=(
        lambda w: trainer().fit(classifier(loss=nn.CrossEntropyLoss(reduction="none")), pairs()),
        TypeError,
        ["the loss gave a Tensor (4,)", "wanted a tensor of one number", "return the mean"],
    ),
    precision_zero=(lambda w: regressor(noise_precision=0), ValueError, ["noise_precision=0"]),
    precision_text=(
        lambda w: regressor(noise_precision="1"),
        TypeError,
        ["='1' is a str", "finite"],
    ),
    scale_nan=(
        lambda w: regressor(target_scale=math.nan),
        ValueError,
        ["target_scale=nan", "above"],
    ),
    precision_set_to_a_negative=(
        run_test(tuned(noise_precision=-1.0), lambda: pairs(y=TARGETS)),
        ValueError,
        ["noise_precision=-1.0", "wanted a finite number above 0"],
    ),
    scale_set_to_nan=(
        run_test(tuned(target_scale=math.nan), lambda: pairs(y=TARGETS)),
        ValueError,
        ["target_scale=nan", "wanted a finite number above 0"],
    ),
)
rows(
    "trainer",
    of_a_network=(lambda w: trainer().fit(network(), pairs()), TypeError, ["got `Sequential`"]),  # pyright: ignore
    without_data=(
        lambda w: trainer().fit(w.routine),
        MisconfigurationException,
        ["`train_dataloader` must be implemented"],
    ),
    tests_without_data=(
        lambda w: trainer().test(w.routine),
        MisconfigurationException,
        ["`test_dataloader` must be"],
    ),
    tests_nothing=(
        lambda w: trainer().test(datamodule=TableDataModule()),
        TypeError,
        ["`LightningModule`"],
    ),
    tests_no_batch=(
        run_test(lambda w: w.routine, list),
        ValueError,
        ["no batch", "a loader with at least one"],
    ),
    of_an_unknown_option=(lambda w: Trainer(max_step=3), TypeError, ["argument 'max_step'"]),
    of_a_missing_checkpoint=(
        lambda w: trainer().test(w.routine, pairs(), ckpt_path=str(w.folder / "no.ckpt")),
        FileNotFoundError,
        ["no.ckpt"],
    ),
    trains_another_number_of_classes=(
        lambda w: trainer().fit(classifier(5), pairs()),
        ValueError,
        ["gives (4, 3)", "wanted num_classes=5 logits", "build the network or the routine with"],
    ),
    tests_another_number_of_classes=(
        run_test(lambda w: classifier(2)),
        ValueError,
        ["gives (4, 3)", "wanted num_classes=2 logits"],
    ),
    validates_another_number_of_classes=(
        lambda w: trainer().validate(classifier(5), pairs(), verbose=False),
        ValueError,
        ["gives (4, 3)", "wanted num_classes=5 logits"],
    ),
    tests_labels_out_of_range=(
        run_test(lambda w: w.routine, lambda: pairs(y=torch.arange(8))),
        ValueError,
        ["from 0 to 3", "wanted 0 to 2 for 3 classes"],
    ),
    tests_labels_of_floats=(
        run_test(lambda w: w.routine, lambda: pairs(y=torch.rand(8))),
        ValueError,
        ["type torch.float32", "wanted integer labels"],
    ),
    tests_labels_one_hot=(
        run_test(lambda w: w.routine, lambda: pairs(y=torch.eye(8)[:, :3].long())),
        ValueError,
        ["shape (4, 3)", "wanted integer labels of shape (4,)"],
    ),
    tests_nan=(
        run_test(lambda w: w.routine, lambda: pairs(torch.full((8, 6), math.nan))),
        ValueError,
        ["from nan up", "wanted probabilities", "look for NaN"],
    ),
    tests_an_unfitted_wrapper=(
        run_test(lambda w: classifier(model=MCBatchNorm(network(), 4))),
        RuntimeError,
        ["holds no statistics yet", "call fit(train_dataloader) first"],
    ),
    trains_a_regression_of_a_tuple=(
        lambda w: trainer().fit(gives(tuple), pairs(y=TARGETS)),
        TypeError,
        ["the network gives a tuple", PREDICTIONS],
    ),
    tests_a_regression_of_a_dict=(
        run_test(lambda w: gives(lambda x: {"mean": x[0]}), lambda: pairs(y=TARGETS)),
        TypeError,
        ["the network gives a dict", PREDICTIONS],
    ),
    validates_a_regression_of_nothing=(
        lambda w: trainer().validate(gives(lambda x: None), pairs(y=TARGETS), verbose=False),
        TypeError,
        ["the network gives a NoneType", PREDICTIONS],
    ),
    tests_a_regression_of_a_distribution=(
        run_test(
            lambda w: gives(lambda x: torch.distributions.Normal(x[0], 1)),
            lambda: pairs(y=TARGETS),
        ),
        TypeError,
        ["the network gives a Normal", PREDICTIONS],
    ),
    tests_a_regression_of_integers=(
        run_test(lambda w: gives(lambda x: x[0].long()), lambda: pairs(y=TARGETS)),
        TypeError,
        ["the network gives torch.int64", "wanted floating-point numbers", ".float()"],
    ),
    tests_a_regression_of_arrays=(
        run_test(lambda w: gives(lambda x: x[0].numpy()), lambda: pairs(y=TARGETS)),
        TypeError,
        ["the network gives a ndarray", PREDICTIONS],
    ),
    tests_a_wrapper_of_pairs=(
        run_test(lambda w: gives(tuple, wrapped=True), lambda: pairs(y=TARGETS)),
        TypeError,
        ["the network gives a tuple", PREDICTIONS],
    ),
    trains_a_classifier_of_a_dict=(
        lambda w: trainer().fit(gives(lambda x: {"logits": x[0]}, classes=3), pairs()),
        TypeError,
        ["the network gives a dict", LOGITS],
    ),
    validates_a_classifier_of_a_list=(
        lambda w: trainer().validate(gives(list, classes=3), pairs(), verbose=False),
        TypeError,
        ["the network gives a list", LOGITS],
    ),
    tests_a_classifier_of_nothing=(
        run_test(lambda w: gives(lambda x: None, classes=3)),
        TypeError,
        ["the network gives a NoneType", LOGITS],
    ),
    tests_targets_of_dicts=(
        run_test(
            lambda w: w.regression,
            lambda: DataLoader([(torch.ones(6), {"y": 1.0})] * 8, batch_size=4),  # pyright: ignore
        ),
        TypeError,
        ["the targets of a batch are a dict", "wanted a tensor", "collate_fn="],
    ),
    trains_without_labels=(
        lambda w: trainer().fit(w.routine, DataLoader(TensorDataset(torch.randn(8, 6)))),
        TypeError,
        ["a list of 1", PAIR],
    ),
    tests_without_labels=(
        run_test(lambda w: w.routine, lambda: DataLoader(TensorDataset(torch.randn(8, 6)))),
        TypeError,
        ["a list of 1", PAIR],
    ),
    trains_on_tensors=(
        lambda w: trainer().fit(w.routine, DataLoader(torch.randn(8, 6), batch_size=2)),  # pyright: ignore
        TypeError,
        ["a Tensor of 2", PAIR],
    ),
    trains_on_dicts=(
        lambda w: trainer().fit(w.routine, parts(x=torch.randn(6), y=0)),
        TypeError,
        ["a dict of 2", PAIR],
    ),
    tests_dicts=(
        run_test(lambda w: w.routine, lambda: parts(x=torch.randn(6), y=0)),
        TypeError,
        ["a dict of 2", PAIR],
    ),
    validates_three_parts=(
        lambda w: trainer().validate(
            w.routine, DataLoader(TensorDataset(*[torch.zeros(8)] * 3)), verbose=False
        ),
        TypeError,
        ["a list of 3", PAIR],
    ),
    tests_a_regression_of_another_shape=(
        run_test(lambda w: w.regression, lambda: pairs(y=torch.ones(8))),
        ValueError,
        ["shape (4, 1)", "(4,)", "make the targets (batch, 1)"],
    ),
    tests_a_regression_of_nan=(
        run_test(lambda w: w.regression, lambda: pairs(y=TARGETS * math.nan)),
        ValueError,
        ["target with NaN or infinity", "wanted finite numbers"],
    ),
    tests_a_regression_of_dicts=(
        run_test(lambda w: w.regression, lambda: parts(x=torch.randn(6), y=0)),
        TypeError,
        ["a dict of 2", PAIR],
    ),
)
RESULTS = "pass what Trainer.test returned, or a dict of several such by name"
rows(
    "result tables",
    of_a_number=(lambda w: ResultTables(5), TypeError, ["results=5 is a int", RESULTS]),  # pyright: ignore
    of_nothing=(lambda w: ResultTables(None), TypeError, ["is a NoneType", RESULTS]),  # pyright: ignore
    of_text=(lambda w: ResultTables("abc"), TypeError, ["results='abc' is a str", RESULTS]),  # pyright: ignore
    of_one_dict=(
        lambda w: ResultTables({"test/cls/Acc": 0.5}),
        TypeError,
        ["results=0.5 is a float", RESULTS],  # pyright: ignore
    ),
    of_a_list_of_numbers=(lambda w: ResultTables([0.5]), TypeError, ["0.5 is a float", RESULTS]),  # pyright: ignore
    of_text_values=(
        lambda w: ResultTables([{"Acc": "high"}]),
        TypeError,
        ["'Acc'='high' is a str", "a number"],  # pyright: ignore
    ),
    of_a_ragged_row=(
        lambda w: Tables([Table("a", ("x", "y"), [("1",)])]),
        ValueError,
        ["['1']", "1 cells, wanted 2, one for each name in the header"],
    ),
    of_a_cell_of_numbers=(
        lambda w: Tables([Table("a", ("x",), [(1,)])]),
        TypeError,
        ["a cell=1 is a int", "text"],  # pyright: ignore
    ),
    of_no_table=(lambda w: Tables([1]), TypeError, ["a table=1 is a int", "Table(caption, header"]),  # pyright: ignore
)
rows(
    "networks and recipes",
    channels_zero=(lambda w: lenet(0, 10), ValueError, ["in_channels=0", "at least 1"]),
    classes_float=(lambda w: lenet(1, 1.5), TypeError, ["num_classes=1.5 is a float", "integer"]),  # pyright: ignore
    norm_of_text=(
        lambda w: lenet(1, 10, norm="bn"),
        TypeError,
        ["norm='bn' is a str", "a function from a num"],  # pyright: ignore
    ),
    width_negative=(lambda w: unet(1, 2, width=-8), ValueError, ["width=-8", "at least 1"]),
    width_text=(lambda w: unet(1, 2, width="8"), TypeError, ["width='8' is a str", "an integer"]),  # pyright: ignore
    images_too_small=(
        lambda w: lenet(1, 10)(torch.zeros(2, 1, 8, 8)),
        RuntimeError,
        ["Kernel size can't be greater"],
    ),
    other_channels=(
        lambda w: lenet(1, 10)(torch.zeros(2, 3, 28, 28)),
        RuntimeError,
        ["to have 1 channels, but"],
    ),
    recipe_for_text=(lambda w: optim_lenet("x"), TypeError, ["model is a str", "torch.nn.Module"]),  # pyright: ignore
    recipe_for_no_parameter=(
        lambda w: optim_lenet(nn.ReLU()),
        ValueError,
        ["empty parameter list"],
    ),
    recipe_of_no_step=(
        lambda w: optim_lenet(w.model, 0),
        ValueError,
        ["num_steps=0", "at least 1"],
    ),
    recipe_of_text_steps=(
        lambda w: optim_lenet(w.model, "9"),
        TypeError,
        ["num_steps='9' is a str"],
    ),  # pyright: ignore
)

# --- Plots ---------------------------------------------------------------------------------------

PICTURES = torch.zeros(2, 8, 8)
THREE = torch.rand(3)
PROBS = torch.rand(3, 2, 4)
plot: Any = plotting
rows(
    "plot",
    too_few_titles=(
        lambda w: plot.plot_images(PICTURES, ["a"]),
        ValueError,
        ["titles of shape (1,)", "wanted (2)"],
    ),
    titles_none=(
        lambda w: plot.plot_images(PICTURES, None),
        TypeError,
        ["titles=None", "a sequence"],
    ),
    too_many_axes=(
        lambda w: plot.plot_images(PICTURES, "ab", w.axes[0]),
        ValueError,
        ["axes of shape (3,)", "wanted (2)"],
    ),
    one_ax_for_images=(
        lambda w: plot.plot_images(PICTURES[:1], "a", w.axes[0, 0]),
        ValueError,
        ["axes of shape ()"],
    ),
    no_image=(
        lambda w: plot.plot_images(PICTURES[:0], ""),
        ValueError,
        ["(0, 8, 8)", "no axis emp"],
    ),
    colours=(
        lambda w: plot.plot_images(torch.rand(2, 3, 8, 8), "ab"),
        ValueError,
        ["images of shape (2, 3, 8, 8)", "wanted (n, height, width)"],
    ),
    array_of_images=(
        lambda w: plot.plot_images(PICTURES.numpy(), "ab"),
        TypeError,
        ["images is a ndarray"],
    ),
    meta_images=(
        lambda w: plot.plot_images(PICTURES.to("meta"), "ab"),
        ValueError,
        ["on the meta"],
    ),
    estimators_of_a_mean=(
        lambda w: plot.plot_estimators(PICTURES, PROBS[0]),
        ValueError,
        ["probs of shape (2, 4)", "wanted (num_estimators, 2, classes)"],
    ),
    estimators_of_other_images=(
        lambda w: plot.plot_estimators(PICTURES[:1], PROBS),
        ValueError,
        ["(3, 2, 4)", "wanted (num_"],
    ),
    estimators_with_one_label=(
        lambda w: plot.plot_estimators(PICTURES, PROBS, [1]),
        ValueError,
        ["labels of shape (1,)"],
    ),
    estimators_with_labels_out_of_range=(
        lambda w: plot.plot_estimators(PICTURES, PROBS, [1, 9]),
        ValueError,
        ["labels [1, 9]", "wanted 0 to 3"],
    ),
    estimators_on_a_row_of_axes=(
        lambda w: plot.plot_estimators(PICTURES, PROBS, axes=w.axes[0, :2]),
        ValueError,
        ["axes of shape (2,)", "wanted (2, 2)"],
    ),
    reliability_of_two=(
        lambda w: plot.plot_reliability((THREE, THREE)),
        ValueError,
        ["2 tensors as"],
    ),
    reliability_of_two_lengths=(
        lambda w: plot.plot_reliability((THREE, UNIT, THREE)),
        ValueError,
        ["bins (accuracy) of shape (2,)", "wanted (3)"],
    ),
    reliability_of_nothing=(
        lambda w: plot.plot_reliability((THREE * 0, THREE, THREE)),
        ValueError,
        ["hold no image"],
    ),
    reliability_on_an_array=(
        lambda w: plot.plot_reliability((THREE, THREE, THREE), w.axes),
        TypeError,
        ["ax is a ndarray", "wanted one Matplotlib Axes", "pass ax=axes[0]"],
    ),
    risk_of_two_lengths=(
        lambda w: plot.plot_risk_coverage(THREE, UNIT),
        ValueError,
        ["risk of shape (2,)", "(3)"],
    ),
    risk_of_a_list=(
        lambda w: plot.plot_risk_coverage([0.5], [0.5]),
        TypeError,
        ["coverage is a list", "as_tensor"],
    ),
    curves_of_other_length=(
        lambda w: plot.plot_curves(THREE, torch.rand(4, 5), ax=w.axes[0, 0]),
        ValueError,
        ["curves of shape (4, 5)", "wanted (num_estimators, 3)"],
    ),
    curves_of_no_estimator=(
        lambda w: plot.plot_curves(THREE, torch.rand(0, 3)),
        ValueError,
        ["(0, 3)", "no axis empty"],
    ),
    curves_with_unequal_points=(
        lambda w: plot.plot_curves(THREE, torch.rand(4, 3), (THREE, UNIT), ax=w.axes[0, 0]),
        ValueError,
        ["points (y) of shape (2,)", "wanted (3)"],
    ),
    curves_with_points_without_y=(
        lambda w: plot.plot_curves(THREE, torch.rand(4, 3), (THREE,)),
        ValueError,
        ["1 tensors as poi"],
    ),
    bands_of_other_length=(
        lambda w: plot.plot_bands(THREE, THREE, {"two": UNIT}, ax=w.axes[0, 0]),
        ValueError,
        ["bands['two'] of shape (2,)", "wanted (3)"],
    ),
    bands_of_a_number=(
        lambda w: plot.plot_bands(THREE, THREE, {"two": 0.5}),
        TypeError,
        ["bands['two'] is a float"],
    ),
    bands_without_names=(
        lambda w: plot.plot_bands(THREE, THREE, [THREE]),
        TypeError,
        ["is a list", "half-widths by nam"],
    ),
    no_band=(lambda w: plot.plot_bands(THREE, THREE, {}), ValueError, ["bands of shape (0,)"]),
    series_of_other_length=(
        lambda w: plot.plot_series([1, 2], {"a": [1, 2, 3]}, ("x", "y"), w.axes[0, 0]),
        ValueError,
        ["series['a'] of shape (3,)", "wanted (2)"],
    ),
    series_without_names=(
        lambda w: plot.plot_series([1, 2], [1, 2], ("x", "y")),
        TypeError,
        ["a list", "values by name"],
    ),
    series_with_one_label=(
        lambda w: plot.plot_series([1], {"a": [1]}, ("x",)),
        ValueError,
        ["labels of shape (1,)"],
    ),
    series_on_another_scale=(
        lambda w: plot.plot_series([1], {"a": [1]}, "xy", log="z"),
        ValueError,
        ["log='z'", "'x' or"],
    ),
    series_of_zero_on_a_log_axis=(
        lambda w: plot.plot_series([0, 1], {"a": [1, 2]}, "xy", log="x"),
        ValueError,
        ["x with values of 0 or below", "wanted others on a log axis"],
    ),
    intervals_of_other_length=(
        lambda w: plot.plot_intervals(THREE, THREE, UNIT, THREE, w.axes[0, 0]),
        ValueError,
        ["inner of shape (2,)", "wanted (3)"],
    ),
    intervals_of_columns=(
        lambda w: plot.plot_intervals(*[THREE[:, None]] * 4),
        ValueError,
        ["mean of shape (3, 1)"],
    ),
    scores_of_other_methods=(
        lambda w: plot.plot_scores({"NLL": torch.rand(2, 3)}, ["one"]),
        ValueError,
        ["scores['NLL'] of shape (2, 3)", "wanted (1, runs)"],
    ),
    scores_on_other_axes=(
        lambda w: plot.plot_scores({"NLL": torch.rand(2, 3)}, "ab", w.axes[0]),
        ValueError,
        ["axes of shape (3,)", "wanted (1)"],
    ),
    no_scores=(lambda w: plot.plot_scores({}, ["one"]), ValueError, ["scores of shape (0,)"]),
    maps_of_other_images=(
        lambda w: plot.plot_maps(PICTURES, {"entropy": torch.rand(3, 8, 8)}),
        ValueError,
        ["maps['entropy'] of shape (3, 8, 8)", "wanted (2, 8, 8)"],
    ),
    maps_of_another_size=(
        lambda w: plot.plot_maps(PICTURES, {"entropy": torch.rand(2, 4, 4)}),
        ValueError,
        ["(2, 4, 4)"],
    ),
    maps_on_other_axes=(
        lambda w: plot.plot_maps(PICTURES, {"entropy": PICTURES}, w.axes),
        ValueError,
        ["axes of shape (2, 3)", "wanted (2, 2)"],
    ),
    map_by_the_name_of_the_images=(
        lambda w: plot.plot_maps(PICTURES, {"image": PICTURES}),
        ValueError,
        ["the name 'image'"],
    ),
    histograms_of_nothing=(
        lambda w: plot.plot_histograms({}, "x"),
        ValueError,
        ["groups of shape (0"],
    ),
    histogram_of_an_empty_group=(
        lambda w: plot.plot_histograms({"a": THREE[:0]}, "x"),
        ValueError,
        ["values['a'] of shape (0,)"],
    ),
    histogram_of_nan=(
        lambda w: plot.plot_histograms({"a": THREE * math.nan}, "x", w.axes[0, 0]),
        ValueError,
        ["values['a'] with NaN or infinity", "wanted finite numbers"],
    ),
    roc_of_two_lengths=(
        lambda w: plot.plot_roc({"a": (THREE, UNIT)}),
        ValueError,
        ["curves['a'] (true positive rate) of shape (2,)"],
    ),
    roc_with_thresholds=(
        lambda w: plot.plot_roc({"a": (THREE, THREE, THREE)}),
        ValueError,
        ["3 tensors", "false positive rate, true"],
    ),
    heatmap_with_other_rows=(
        lambda w: plot.plot_heatmap(torch.rand(2, 3), "abc", "xyz", "abc", w.axes[0, 0]),
        ValueError,
        ["rows of shape (3,)", "wanted (2)"],
    ),
    heatmap_with_two_labels=(
        lambda w: plot.plot_heatmap(torch.rand(2, 3), "ab", "xyz", ("a", "b")),
        ValueError,
        ["labels of shape (2,)", "wanted (3)"],
    ),
)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("name", ROWS)
def test_wrong_use_fails_in_plain_words_and_changes_nothing(name: str, world: World) -> None:
    wrong, error, words = ROWS[name]
    before = fingerprint(world)
    with pytest.raises(error) as raised:
        wrong(world)
    if hasattr(world, "undo"):
        world.undo()
        del world.undo
    assert raised.type is error
    said = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    for expected in words:
        assert expected in said
    assert fingerprint(world) == before


def test_the_table_is_long_and_asks_for_no_error_from_inside() -> None:
    assert len(ROWS) >= 80
    inside = (AttributeError, AssertionError, StopIteration)
    assert not [name for name, (_, error, _) in ROWS.items() if issubclass(error, inside)]


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
        MCBatchNorm(Centred(masks=True).eval(), 4, path=path).fit(data)(x)  # pyright: ignore
        for path in ("auto", "loop")
    )
    torch.testing.assert_close(chosen, loop)
