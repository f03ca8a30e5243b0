"""How far the tutorials' claims hold: each script with other seeds, each assert with its margin.

A claim is an assert that compares sizes, see ``docs/_ext/asserts.py``. A run executes a script with
another number in the place of each of its seeds, and writes down for each claim whether it held and
by how much, instead of stopping where one fails. The runs are kept in a journal, so that the tool
goes on where it was stopped; a run counts until the script's code or ``--journal`` changes::

    python tests/claims.py --seeds 30                      # all tutorials, on the sample
    python tests/claims.py --seeds 30 --source full        # those that read MNIST or Boston
    python tests/claims.py --seeds 5 --tutorial calibration --threads 1 2
    python tests/claims.py --seeds 30 --jobs 16 --minutes 8
    python tests/claims.py --seeds 0                       # only write the report

Seed 0 is the script's own. With another PyTorch, processor or device the runs are others, and
journals from several machines are put together with ``cat``. The report is
``docs/guide/claims.csv``, a row a claim, with a summary beside it. *Margin* is by how much the
comparison held (negative: it failed), *sds* the mean margin in standard deviations over the runs. A
claim should have held in all runs, and by 3 sds or more.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs/guide"
SEEDED = {"manual_seed", "seed_everything"}
STEP = 1000  # between the seeds of two runs, as a script may count its own up from the first


class OtherSeeds(ast.NodeTransformer):
    """Add a number to whatever a script gives as a seed."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def moved(self, seed: ast.expr) -> ast.expr:
        return ast.BinOp(seed, ast.Add(), ast.Constant(self.offset))

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in SEEDED and node.args:
            node.args[0] = self.moved(node.args[0])
        for keyword in node.keywords:
            if keyword.arg == "seed":
                keyword.value = self.moved(keyword.value)
        return node


def code_of(script: Path) -> ast.Module:
    """The script without its text."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    tree.body = tree.body[1:]
    return tree


def data_of(tree: ast.Module) -> str:
    """What a script works on: files under ``MCBN_DATA``, the package's sample, or its own data."""
    found = "its own"
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="mcbn.experiments.data"):
                return "files"
            case ast.Call(func=ast.Name("MNISTDataModule"), keywords=keywords):
                if not any(keyword.arg == "source" for keyword in keywords):
                    return "files"
                found = "sample"
    return found


# --- One run, in a process of its own ---


def execute(script: Path, seed: int, source: str, output: Path) -> None:
    sys.path.insert(0, str(ROOT / "docs/_ext"))
    import asserts
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if source == "sample":
        forbid_downloads()
    found: list[tuple[str, bool, float]] = []
    tree = OtherSeeds(STEP * seed).visit(code_of(script))
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(script)}
    asserts.watch(
        tree,
        namespace,
        lambda claim: found.append((claim.text, not claim.failed, claim.margin)),
    )
    exec(compile(ast.fix_missing_locations(tree), str(script), "exec"), namespace)
    output.write_text(json.dumps({"claims": found}), encoding="utf-8")


def forbid_downloads() -> None:
    import socket

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no network while the claims are measured on the sample")

    socket.getaddrinfo = refuse


def run(script: Path, seed: int, source: str, threads: int, gpu: bool) -> dict[str, Any]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MPLBACKEND": "agg",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if source == "sample":
            environment["MCBN_DATA"] = folder
        output = Path(folder, "claims.json")
        worker = ["--worker", str(script), str(seed), source, str(output)]
        done = subprocess.run(
            [sys.executable, __file__, *worker],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        seconds = round(time.perf_counter() - start, 1)
        if done.returncode:
            return {"error": done.stderr[-2000:], "claims": [], "seconds": seconds}
        return json.loads(output.read_text(encoding="utf-8")) | {"seconds": seconds}


# --- All runs, and the journal ---


def plan(options: argparse.Namespace) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs that are asked for, one seed of all tutorials after the other."""
    here = machine(options.gpu)
    for seed in range(options.seeds):
        for threads in options.threads:
            for script, tree in options.scripts.items():
                if options.source == "full" and data_of(tree) != "files":
                    continue
                yield (
                    script,
                    {
                        "tutorial": name_of(script),
                        "code": digest(script),
                        "seed": seed,
                        "source": options.source,
                        "threads": threads,
                        **here,
                    },
                )


def machine(gpu: bool) -> dict[str, str]:
    """What else than the seed may change a script's numbers."""
    import torch

    return {
        "torch": version("torch").partition("+")[0],
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if gpu else "CPU",
    }


def name_of(script: Path) -> str:
    return script.stem.removeprefix("tutorial_")


def digest(script: Path) -> str:
    """Of the lines of code, wherever mcbn has its names; `ast.unparse` differs between Pythons."""
    text = script.read_text(encoding="utf-8")
    after = text.splitlines()[ast.parse(text).body[0].end_lineno :]
    code = [line for line in after if line and not line.startswith(("#", "from mcbn"))]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:12]


def read_journal(journal: Path) -> list[dict[str, Any]]:
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


def measure(options: argparse.Namespace) -> None:
    done = read_journal(options.journal)
    waiting = [
        (script, key)
        for script, key in plan(options)
        if not any(key.items() <= record.items() for record in done)
    ]
    stop = time.monotonic() + 60 * options.minutes

    def start(script: Path, key: dict[str, Any]) -> dict[str, Any] | None:
        if time.monotonic() > stop:
            return None
        result = run(script, key["seed"], key["source"], key["threads"], options.gpu)
        return key | result | {"date": f"{datetime.now(UTC):%Y-%m-%d}"}

    with ThreadPoolExecutor(options.jobs) as pool:
        started = [pool.submit(start, *each) for each in waiting]
        try:
            for future in as_completed(started):
                if record := future.result():
                    note(options.journal, record)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def note(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(record) + "\n")
    failed = sorted({text for text, held, _ in record["claims"] if not held})
    print(f"{record['tutorial']}, seed {record['seed']}, {record['seconds']:.0f} s", flush=True)
    for line in [*failed, *record.get("error", "").strip().splitlines()[-1:]]:
        print("   ", line, flush=True)


# --- The report ---

COLUMNS = "tutorial", "claim", "data", "runs", "held", "least margin", "mean", "sd", "sds"
SUMMARY = (
    *("Tutorial", "Data", "Claims", "Seeds", "Runs", "Held in all", "Fewest sds"),
    *("PyTorch", "Date"),
)


class Spread(NamedTuple):
    """Of the margins of one claim over the runs; of an assert in a loop, where it is closest."""

    sds: float
    least: float
    mean: float
    sd: float

    @classmethod
    def of(cls, margins: list[float]) -> Spread:
        mean = statistics.fmean(margins)
        sd = statistics.stdev(margins) if len(margins) > 1 else 0.0
        return cls(mean / sd if sd else math.copysign(math.inf, mean), min(margins), mean, sd)


def turns_of(record: dict[str, Any]) -> dict[str, list[tuple[bool, float]]]:
    """The claims of a run, each with its turns: an assert in a loop has several."""
    turns = defaultdict(list)
    for text, held, margin in record["claims"]:
        turns[text].append((held, margin))
    return turns


def evaluate(records: list[dict[str, Any]]) -> dict[str, tuple[int, int, Spread]]:
    """For each claim: in how many runs it was made, in how many it held, and its closest turn."""
    runs = defaultdict(list)
    for record in records:
        for text, turns in turns_of(record).items():
            runs[text].append(turns)
    found = {}
    for text, made in runs.items():
        held = sum(all(ok for ok, _ in turns) for turns in made)
        by_turn = zip_longest(*([margin for _, margin in turns] for turns in made))
        spreads = [Spread.of([m for m in margins if m is not None]) for margins in by_turn]
        found[text] = len(made), held, min(spreads)
    return found


def report(options: argparse.Namespace) -> None:
    rows, summary = [], []
    key = "tutorial", "code", "seed", "source", "threads", "torch", "cpu", "device"
    once = {
        tuple(record[field] for field in key): record for record in read_journal(options.journal)
    }
    for script, tree in options.scripts.items():
        groups = defaultdict(list)
        for record in once.values():
            if (record["tutorial"], record["code"]) == (name_of(script), digest(script)):
                data = data_of(tree)
                groups[record["source"] if data == "files" else data].append(record)
        for data, records in sorted(groups.items()):
            found = evaluate(records)
            for text, (made, held, spread) in found.items():
                margins = spread.least, spread.mean, spread.sd, spread.sds
                numbers = (f"{value:.3g}" for value in margins)
                rows.append([name_of(script), text, data, made, held, *numbers])
            whole = sum(made == held for made, held, _ in found.values())
            fewest = min((spread.sds for *_, spread in found.values()), default=math.nan)
            seeds, versions = ({record[key] for record in records} for key in ("seed", "torch"))
            counts = len(found), len(seeds), len(records), whole, f"{fewest:.1f}"
            latest = max(record["date"] for record in records)
            summary.append([name_of(script), data, *counts, ", ".join(sorted(versions)), latest])
    for path, header, lines in (
        (options.report, COLUMNS, rows),
        (options.report.with_stem(options.report.stem + "_summary"), SUMMARY, summary),
    ):
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *lines])


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        script, seed, source, output = sys.argv[2:]
        return execute(Path(script), int(seed), source, Path(output))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=30, help="how many; 0 is the script's own")
    parser.add_argument("--tutorial", nargs="*", help="names, as calibration; all by default")
    parser.add_argument("--source", choices=["sample", "full"], default="sample")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--jobs", type=int, default=1, help="how many runs at once")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then start no new run")
    parser.add_argument("--gpu", action="store_true", help="let the scripts see the GPU")
    parser.add_argument("--scripts", type=Path, default=ROOT / "auto_tutorials")
    parser.add_argument("--journal", type=Path, default=ROOT / "build/claims.jsonl")
    parser.add_argument("--report", type=Path, default=GUIDE / "claims.csv")
    options = parser.parse_args()
    options.journal.parent.mkdir(parents=True, exist_ok=True)
    scripts = {script: code_of(script) for script in sorted(options.scripts.rglob("tutorial_*.py"))}
    unknown = set(options.tutorial or ()) - set(map(name_of, scripts))
    if unknown:
        parser.error(f"no tutorial is called {', '.join(sorted(unknown))}")
    options.scripts = {
        script: tree
        for script, tree in scripts.items()
        if not options.tutorial or name_of(script) in options.tutorial
    }
    measure(options)
    options.scripts = scripts
    report(options)


if __name__ == "__main__":
    main()
