"""Tries MCBatchNorm on networks that nobody here wrote; run by hand, once a release.

    pip install --no-deps -r tests/census-requirements.txt
    pip install --no-deps -e .
    python tests/census.py                      # all of them, into docs/guide/census.csv
    python tests/census.py --page               # what the file says, into docs/guide/census.rst
    python tests/census.py --only levit --again --csv /tmp/levit.csv

Each network gets random weights, its prediction is compared with that of plain forward passes of a
copy whose running statistics are each estimator's, and both are timed. Each is tried in a process
of its own, so that a crash, a hang or too much memory ends one row and not the run. A row that the
file holds is not tried again, unless asked for. ``tests/census_networks.py`` lists the networks.
"""

from __future__ import annotations

import argparse
import copy
import csv
import ctypes.util
import dataclasses
import io
import math
import multiprocessing
import os
import platform
import re
import resource
import statistics
import textwrap
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from census_networks import NETWORKS, Case
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcbn import MCBatchNorm

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/guide/census.rst"
MARK = ".. What follows is written by tests/census.py."
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
COLUMNS = [
    *("library", "version", "network", "layers", "parameters", "dtype", "result", "why"),
    *(
        "error",
        "rounding",
        "statistics error",
        "path",
        "loop because",
        "loop ms",
        "ours ms",
        "ratio",
        "ratio, memory kept",
        "date",
    ),
]
Row = dict[str, str]
Task = Callable[[tuple[str, str], int], Row]
Statistics = Callable[[str, int, Tensor], tuple[Tensor, Tensor]]


# --- The network -------------------------------------------------------------------------------


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    named = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    return {name.removeprefix("_orig_mod."): m for name, m in named.items()}  # torch.compile's


def spread_weights(model: nn.Module) -> None:
    """Give weights that are all alike or tiny values that let a mistake reach the output."""
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.is_floating_point() and p.numel() > 1):
            std = 1 / math.sqrt(p[0].numel()) if p.dim() > 1 else 1.0
            if p.min() == p.max():  # a layer scale of 1e-6, a last layer of zeros
                p.add_(torch.randn_like(p), alpha=0.3 * std)
            elif p.dim() > 1 and p.std() < std:  # 0.02, as transformers draws them
                p.mul_(std / p.std())
        for layer in batch_norms(model).values():
            if layer.weight is not None:
                layer.weight.uniform_(-1.5, 1.5)
                layer.bias.normal_(0, 0.3)
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2.0)


def build(key: tuple[str, str], dtype: torch.dtype, size: int) -> Case:
    """The network with random weights, in evaluation mode; its inputs come out in ``dtype`` too."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    case = NETWORKS[key]()
    case.batch = min(case.batch, size) if case.batch <= 8 else case.batch
    case.model.to(dtype).eval()
    spread_weights(case.model)
    return case


def call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors in an output, in order, whatever it is made of."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (t for value in output.values() for t in tensors_of(value))
    elif isinstance(output, list | tuple):
        yield from (t for value in output for t in tensors_of(value))
    elif dataclasses.is_dataclass(output):
        yield from tensors_of(vars(output))


# --- The plain loop ----------------------------------------------------------------------------


class PlainLoop:
    """A copy of a network that sets the running statistics of a layer just before it runs.

    Only so can a layer that a pass calls twice have others the second time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval()  # a copy of an fx graph is in training mode
        self.calls: Counter[str] = Counter()
        for name, layer in batch_norms(self.model).items():
            layer.forward = partial(self._forward, name, layer, layer.forward)

    def _forward(
        self, name: str, layer: Any, forward: Any, x: Tensor, *args: Any, **kw: Any
    ) -> Any:
        layer.running_mean, layer.running_var = self.statistics(name, self.calls[name], x)
        self.calls[name] += 1
        return forward(x, *args, **kw)

    def run(self, inputs: Any, statistics: Statistics) -> list[Tensor]:
        self.calls.clear()
        self.statistics = statistics
        return list(tensors_of(call(self.model, inputs)))


def statistics_of(loop: PlainLoop, inputs: Any) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """Mean and variance of what each call of each layer gets, each normalized with its own."""
    found = {}

    def own(name: str, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [d for d in range(x.dim()) if d != 1]
        wide = x.to(torch.get_default_dtype())  # a network may compute a part in single precision
        found[name, index] = wide.mean(dims), wide.var(dims, correction=0)
        return found[name, index]

    loop.run(inputs, own)
    return found


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value; infinite where shapes or infinities differ."""
    if ours.shape != expected.shape or ours.dtype != expected.dtype:
        return math.inf
    if not expected.dtype.is_floating_point and not expected.dtype.is_complex:
        return 0.0 if torch.equal(ours, expected) else math.inf
    finite = expected.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return math.inf
    ours, expected = ours[finite], expected[finite]
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().item()
    return (ours - expected).abs().max().item() / (scale or 1.0)


# --- One network -------------------------------------------------------------------------------


def nudge(pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Statistics as another order of their sums might have rounded them."""
    step = torch.finfo(dtype).eps
    return [t * (1 + step * torch.randint_like(t, -1, 2)) for t in pair]


class NotComparableError(Exception):
    pass


def fit_and_predict(case: Case, batches: list[Any], inputs: Any) -> tuple[MCBatchNorm, Any]:
    mc = MCBatchNorm(case.model, num_estimators=len(batches), mc_batch_size=case.batch).eval()
    # Evaluation mode comes first, as some networks keep what they compute until it is set again.
    mc.fit(batches, input_fn=lambda batch: batch)
    return mc, call(mc, inputs)


def compare(case: Case, dtype: torch.dtype, estimators: int) -> Row:
    """Fit, predict, and compare both with the plain loop."""
    batches = [case.inputs(case.batch) for _ in range(estimators)]
    inputs = case.inputs(case.batch)
    loop = PlainLoop(case.model)
    drawn = [statistics_of(loop, batch) for batch in batches]

    def estimator(held: Any) -> Statistics:
        return lambda name, index, x: held[name, index]

    first = loop.run(inputs, estimator(drawn[0]))
    again = loop.run(inputs, estimator(drawn[0]))
    if any(relative_error(a, b) > TOLERANCE[dtype] for a, b in zip(again, first, strict=True)):
        raise NotComparableError("the network draws random numbers in evaluation mode")
    if not all(t.isfinite().any() for t in first if t.is_floating_point() and t.numel()):
        raise NotComparableError("its outputs are not finite")

    mc, output = fit_and_predict(case, batches, inputs)
    ours = list(tensors_of(output))
    error = statistics_error = rounding = 0.0
    held: list[dict[tuple[str, int], Any]] = [{} for _ in range(estimators)]
    for name, layer in batch_norms(mc.model).items():
        for s, c in ((s, c) for s in range(estimators) for c in range(layer.mc_mean.shape[1])):
            held[s][name, c] = layer.mc_mean[s, c], layer.mc_var[s, c]
            for one, wanted in zip(held[s][name, c], drawn[s][name, c], strict=True):
                statistics_error = max(statistics_error, relative_error(one, wanted))
    assert held[0].keys() == drawn[0].keys()
    for s in range(estimators):
        expected = loop.run(inputs, estimator(held[s]))
        if len(expected) != len(ours):
            raise AssertionError(f"{len(ours)} tensors come out, and {len(expected)} of the loop")
        errors = [relative_error(o[s], e) for o, e in zip(ours, expected, strict=True)]
        error = max(error, *errors)
        if s and not any(relative_error(a, b) > 1e-6 for a, b in zip(expected, first, strict=True)):
            raise NotComparableError("all its estimators agree")
    right = max(error, statistics_error) <= TOLERANCE[dtype]
    if error > TOLERANCE[dtype] >= statistics_error:  # can the loop itself be no more exact?
        for statistics in held:
            nudged = loop.run(inputs, lambda *args, s=statistics: nudge(s[args[:2]], dtype))
            plain = loop.run(inputs, estimator(statistics))
            rounding = max(rounding, *map(relative_error, nudged, plain))
        right = error <= 10 * rounding
    reason = getattr(mc, "loop_reason", None)
    return {
        "result": "exact" if right else "wrong",
        "error": f"{error:.0e}",
        "rounding": f"{rounding:.0e}" if rounding else "",
        "statistics error": f"{statistics_error:.0e}",
        "path": "loop" if reason else "vmap",
        "loop because": reason or "",
    }


def try_exactness(key: tuple[str, str], size: int) -> Row:
    """In float64, or float32 where the network itself allows no float64."""
    dtype = torch.float64
    case = build(key, dtype, size)
    if case.float32 or not runs(case):
        dtype = torch.float32
        case = build(key, dtype, size)
        call(case.model, case.inputs(case.batch))  # if this fails, the case is at fault
    row = {
        "layers": str(len(batch_norms(case.model))),
        "parameters": f"{sum(p.numel() for p in case.model.parameters()) / 1e6:.2f}",
        "dtype": str(dtype).removeprefix("torch."),
    }
    try:
        return row | compare(case, dtype, size)
    except NotComparableError as error:
        return row | {"result": "not comparable", "why": str(error)}
    except (TypeError, ValueError, RuntimeError) as error:
        traceback.print_exc()
        return row | {"result": "refused", "why": f"{type(error).__name__}: {error}"}


def runs(case: Case) -> bool:
    try:
        call(case.model, case.inputs(case.batch))
    except RuntimeError:  # a tensor of float32 that the network makes itself
        traceback.print_exc()
        return False
    return True


def try_times(key: tuple[str, str], size: int) -> Row:
    """Medians of interleaved predictions in float32, the loop's and ours."""
    case = build(key, torch.float32, size)
    batches = [case.inputs(case.batch) for _ in range(size)]
    inputs = case.inputs(case.batch)
    mc, _ = fit_and_predict(case, batches, inputs)
    model = copy.deepcopy(case.model).eval()
    held = [
        (layer, mc_layer.mc_mean[:, 0].unbind(), mc_layer.mc_var[:, 0].unbind())
        for layer, mc_layer in zip(
            batch_norms(model).values(), batch_norms(mc.model).values(), strict=True
        )
        if mc_layer.mc_mean.shape[1]
    ]

    def plain() -> list[Tensor]:
        outputs = []
        for s in range(size):
            for layer, mean, var in held:
                layer.running_mean, layer.running_var = mean[s], var[s]
            outputs.append(tensors_of(call(model, inputs)))
        return [torch.stack(tensors) for tensors in zip(*outputs, strict=True)]

    loop, ours = medians(plain, lambda: call(mc, inputs))
    keep_memory()
    kept_loop, kept_ours = medians(plain, lambda: call(mc, inputs))
    return {
        "loop ms": f"{loop:.1f}",
        "ours ms": f"{ours:.1f}",
        "ratio": f"{loop / ours:.2f}",
        "ratio, memory kept": f"{kept_loop / kept_ours:.2f}",
    }


def medians(*runs: Callable[[], Any]) -> list[float]:
    """Milliseconds that each takes, in turn."""
    taken: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    for repetition in range(42):
        if repetition > 5 and time.perf_counter() - start > 8:
            break
        order = list(zip(runs, taken, strict=True))
        for run, times in order[:: -1 if repetition % 2 else 1]:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return [1000 * statistics.median(times[1:]) for times in taken]  # the first warms up


def keep_memory() -> None:
    """Let glibc keep freed memory, as MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ do."""
    if libc := ctypes.util.find_library("c"):
        mallopt = ctypes.CDLL(libc).mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_trim_threshold, 1 << 30)
        mallopt(m_mmap_threshold, 32 << 20)  # the largest value that is allowed everywhere


# --- Each in a process of its own --------------------------------------------------------------


def child(
    key: tuple[str, str], task: Task, threads: int, size: int, log: str, pipe: Connection
) -> None:
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    resource.setrlimit(resource.RLIMIT_AS, (20 << 30, 20 << 30))
    warnings.simplefilter("ignore")
    try:
        with torch.no_grad():
            pipe.send(task(key, size))
    except BaseException as error:
        traceback.print_exc()
        pipe.send({"result": "error", "why": f"{type(error).__name__}: {error}"})


def in_process(
    key: tuple[str, str], task: Task, threads: int, size: int, timeout: float, log: Path
) -> Row:
    """What ``task(key)`` returns, or what became of its process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mcbn", "torchvision", "timm", "transformers"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(key, task, threads, size, str(log), theirs))
    process.start()
    theirs.close()
    row = None
    why = f"not ready after {timeout:.0f} s"
    try:
        if ours.poll(timeout):
            row = ours.recv()
            process.join(5)
    except EOFError:
        process.join(5)
        why = f"its process ended with {process.exitcode}"
    process.kill()
    process.join()
    return row or {"result": "error", "why": why}


# --- The table ---------------------------------------------------------------------------------


def read(path: Path) -> dict[tuple[str, str], Row]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["library"], row["network"]): row for row in csv.DictReader(file)}


def write(path: Path, rows: dict[tuple[str, str], Row]) -> None:
    """In the order of the list, so that a second run changes no more than what it found."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in NETWORKS if key in rows)


def escaped(text: str) -> str:
    return re.sub(r"([*_`|\\])", r"\\\1", text)


def table(head: str, rows: list[list[str]]) -> str:
    """A csv-table, as text."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([[escaped(cell) for cell in r] for r in rows])
    body = textwrap.indent(file.getvalue(), "   ")
    return f".. csv-table::\n   :header: {head}\n   :align: left\n\n{body}"


def by_reason(rows: list[Row], column: str) -> str:
    """Which networks share a reason, of which the first clause is enough."""
    reasons = defaultdict(list)
    for row in rows:
        reason = re.split(r"; |\. |, wanted|, so ", row[column].removeprefix("RuntimeError: "))[0]
        reason = re.sub(r"^\w+ has a hook", "A module has a hook", reason)
        reasons[reason].append(f"{row['network']} ({row['library']})")
    found = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return table("Why, Networks", [[reason, "; ".join(names)] for reason, names in found])


def page(rows: list[Row]) -> str:
    """What the table says, in words and grouped by library."""
    counts = Counter(row["result"] for row in rows)
    exact = [row for row in rows if row["result"] == "exact"]
    loops = [row for row in exact if row["path"] == "loop"]
    rest = [row for row in rows if row["result"] != "exact"]
    ratios = sorted(float(row["ratio"]) for row in exact if row["ratio"])
    days = sorted({row["date"] for row in rows})
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    told = ", ".join(f"{number} {result}" for result, number in counts.most_common())
    parts = [
        f"{len(rows)} networks of {len(libraries)} libraries: {told}. Of those that are exact "
        f"{len(exact) - len(loops)} ran under ``torch.vmap`` and {len(loops)} as a plain loop. "
        f"Measured with torch {torch.__version__.split('+')[0]} on {platform.machine()} from "
        f"{days[0]} to {days[-1]}."
    ]
    if ratios:
        low, middle, high = statistics.quantiles(ratios, n=4)
        kept = [float(row["ratio, memory kept"]) for row in exact if row["ratio, memory kept"]]
        slower, kept_slower = (sum(ratio < 0.95 for ratio in each) for each in (ratios, kept))
        parts.append(
            f"The loop took {middle:.2f} times as long as the wrapper in the median of "
            f"{len(ratios)} networks; the quartiles are {low:.2f} and {high:.2f}. With {slower} of "
            "them the wrapper took over 5 % longer than the loop. If freed memory is kept "
            f"(:ref:`how <keep-memory>`), the loop took {statistics.median(kept):.2f} times as "
            f"long in the median, and the wrapper over 5 % longer with {kept_slower} of them."
        )
    if loops:
        parts += [heading("Run as a plain loop"), by_reason(loops, "loop because")]
    if rest:
        parts += [heading("Refused, or not to be compared"), by_reason(rest, "why")]
    head = (
        "Network, Layers, Million parameters, Result, Error, Path, Loop (ms), Wrapper (ms), Ratio, "
        "Ratio (memory kept)"
    )
    shown = ("network", "layers", "parameters", "result", "error", "path")
    for library in libraries:
        here = [row for row in rows if row["library"] == library]
        parts.append(heading(f"{library} {here[0]['version']}"))
        parts.append(
            table(
                head,
                [
                    [row[column] for column in (*shown, *COLUMNS[-5:-1])]
                    for row in sorted(here, key=lambda row: row["network"].lower())
                ],
            )
        )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def heading(title: str) -> str:
    title = escaped(title)
    return f"{title}\n{'-' * len(title)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="those with it in their name")
    parser.add_argument("--library", help="those of one library")
    parser.add_argument("--no-times", action="store_true", help="compare only")
    parser.add_argument("--times-only", action="store_true", help="time rows that are exact")
    parser.add_argument("--again", action="store_true", help="also those that the file holds")
    parser.add_argument("--csv", type=Path, default=ROOT / "docs/guide/census.csv")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what libraries print")
    parser.add_argument("--threads", type=int, default=2, help="to time with")
    parser.add_argument("--timeout", type=float, default=400, help="seconds for a network")
    parser.add_argument("--size", type=int, default=8, help="estimators, and examples in a batch")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    parser.add_argument("--list", action="store_true", help="name the networks, and end")
    options = parser.parse_args()

    chosen = [
        (library, name)
        for library, name in NETWORKS
        if options.only in name and options.library in (None, library)
    ]
    if options.list:
        print(*(f"{library}: {name}" for library, name in chosen), sep="\n")
        return
    rows = read(options.csv)
    if options.page:
        chosen = []
    run = partial(in_process, size=options.size, timeout=options.timeout, log=options.log.resolve())
    for key in chosen:
        try:
            found = version(key[0])
        except PackageNotFoundError:
            print(*key, "not installed", sep=" | ", flush=True)
            continue
        row = rows.get(key)
        if not options.times_only and (row is None or options.again):
            row = {"library": key[0], "network": key[1], "version": found} | run(
                key, try_exactness, 1
            )
        if row is None:
            continue
        fast = row["result"] == "exact" and not options.no_times
        if fast and (options.again or not row.get("ratio")):
            row |= {
                k: v
                for k, v in run(key, try_times, options.threads).items()
                if k.endswith("ms") or k.startswith("ratio")
            }
        elif key in rows and not options.again:
            continue
        rows[key] = dict.fromkeys(COLUMNS, "") | row
        rows[key]["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
        write(options.csv, rows)
        shown = (
            "result",
            "why",
            "dtype",
            "error",
            "statistics error",
            "path",
            "loop because",
            "ratio",
        )
        print(*key, *(row[k][:300] for k in shown if row.get(k)), sep=" | ", flush=True)
    if options.page:
        start = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
        text = f"{start}{MARK}\n\n{page([rows[key] for key in NETWORKS if key in rows])}"
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
