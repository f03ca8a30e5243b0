r"""The paper's regression table, by one command.

::

    python -m mcbn.experiments.uci                      # all eight tables, the paper's grid
    python -m mcbn.experiments.uci yacht boston         # two of them
    python -m mcbn.experiments.uci my_table.csv         # one of yours, the target last
    python -m mcbn.experiments.uci --help               # grid, splits, seeds, processes

Data sets are read from ``MCBN_DATA/uci/NAME.txt`` (``--root``), and fetched if they are not there.
On each of five random splits, networks for all weight decays λ and all M (MCBN) or rates (MC
dropout) are trained on five folds until they no longer improve. Where the mean error over the folds
is lowest, the precision τ of the noise is found with the same fold models, once for the method and
once for its twin with constant uncertainty. Five networks with these settings are then trained on
the whole training part, and scored on the test part. :mod:`mcbn.experiments.protocol` has it all.

Every cross-validation and every test is kept in a journal as soon as it is there (``OUT`` with the
ending ``.jsonl``). A run that was killed goes on where it was when the same command is given again;
a run with another grid takes from the journal what it can use. The result file (``--out``) is the
same, whether the run was interrupted or not, and however many processes it had; it keeps the data
sets of earlier runs. On a terminal a bar shows the time left.

The results that come with the package took 61 minutes on two cores for the five small tables
(Yacht, Boston, Energy, Concrete, Wine) with the whole grid, and 50 for the three large ones with a
part of it. With all of it, we estimate hours for Kin8nm and Power, and more than a day for Protein.
A minute's look at how it goes::

    python -m mcbn.experiments.uci yacht --splits 1 --seeds 2 --max-epochs 200 \
        --decays 1e-3 --batch-sizes 32 --rates 0.05
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import get_console
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from mcbn.checks import check_count
from mcbn.data.files import expanded, write_whole
from mcbn.experiments.data import DATA_SETS, DataSet, checksum, load
from mcbn.experiments.protocol import METHODS, Evaluation, Settings, Validation, selected
from mcbn.experiments.store import Journal

RESULTS = Path(__file__).with_name("results") / "uci.json"

Work = Validation | Evaluation
Task = tuple[DataSet, np.ndarray, np.ndarray]  # arrays, as tensors would travel in shared memory
Compute = Callable[[Sequence[Work], Task], Iterator[tuple[Work, dict[str, Any]]]]
Advance = Callable[[int, bool], object]


@dataclass(frozen=True)
class Configuration:
    """What is tried, and how often.

    Attributes:
        decays: λ.
        batch_sizes: M of MCBN; those that are not below a fold's training rows are left out.
        rates: Of MC dropout.
        num_splits: Random splits, with the seeds 1 to num_splits.
        num_seeds: Networks that are trained on each of them.
        settings: The rest.
    """

    decays: Sequence[float] = tuple(float(f"1e-{power}") for power in range(1, 16))
    batch_sizes: Sequence[int] = (32, 64, 128, 256, 512, 1024)
    rates: Sequence[float] = (0.2, 0.1, 0.05, 0.01, 0.005, 0.001)
    num_splits: int = 5
    num_seeds: int = 5
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        check_count("num_splits", self.num_splits)
        check_count("num_seeds", self.num_seeds)

    def validations(self, name: str, table: str, rows: int) -> Iterator[list[Validation]]:
        """The cross-validations of a table, those of one method and split together."""
        in_fold = rows - round(0.2 * rows)
        in_fold -= in_fold // self.settings.num_folds
        sizes = [size for size in self.batch_sizes if size < in_fold]
        if not sizes:
            raise ValueError(
                f"{name} leaves {in_fold} training rows in a fold, but the batch sizes are "
                f"{list(self.batch_sizes)}; give a smaller one."
            )
        for method, tried in zip(METHODS, (sizes, self.rates), strict=True):
            for split in range(1, self.num_splits + 1):
                yield [
                    Validation(
                        name, table, method, strength, split, self.settings, tuple(self.decays)
                    )
                    for strength in tried
                ]


def run(
    sources: Sequence[str],
    configuration: Configuration,
    out: str | os.PathLike[str],
    *,
    root: str | None = None,
    processes: int = 1,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Compute what the journal lacks, data set after data set, and write the result file.

    Args:
        sources: As for :func:`mcbn.experiments.data.load`.
        configuration: The grid and the rest.
        out: The result file; the journal is beside it.
        root: Where the tables are.
        processes: How many units are computed at a time; each has one thread.
        advance: Called for each unit that is done, with the rows of its networks' data in all,
            and whether it was done before.

    Returns:
        The results, by the name of the data set.
    """
    out = expanded(out)
    journal, advance = Journal(out.with_suffix(".jsonl")), advance or (lambda *_: None)
    with _workers(processes) as compute:
        for source in sources:
            data_set, features, target = load(source, root)
            name, table = Path(data_set.name).stem, checksum(features, target)[:16]

            groups = list(configuration.validations(name, table, len(target)))
            task = data_set, features.numpy(), target.numpy()
            _finish([unit for group in groups for unit in group], task, journal, compute, advance)
            tests = [
                selected({unit: _found(journal, unit) for unit in group}, configuration.num_seeds)
                for group in groups
            ]
            _finish(tests, task, journal, compute, advance)
            entry = _entry(configuration, groups, tests, journal)
            _write(out, name, {"rows": len(target), "table": table, **entry})
    results = read_results(out)
    return {name: results[name] for name in results if name in {Path(s).stem for s in sources}}


def read_results(path: str | os.PathLike[str] = RESULTS) -> dict[str, Any]:
    """The data sets of a result file, by name; by default of that which comes with the package.

    Each holds the number of its rows, its configuration, the versions, and by method:
    ``selected``: strength (M or rate), decay, epochs, tau and tau_constant of each split;
    ``runs``: each score of :func:`mcbn.experiments.protocol.scores`, ``[split][seed]``;
    ``std`` and ``error``: the bins of :func:`mcbn.experiments.protocol.error_by_std`, mean over the
    runs; ``grid``: the lowest RMSE of the cross-validation, ``[split][strength][decay]``.

    Example:
        >>> "yacht" in read_results()
        True
    """
    return json.loads(expanded(path).read_text(encoding="utf-8"))


def stored_tests(
    name: str, method: str, results: Mapping[str, Any] | None = None
) -> list[Evaluation]:
    """The tests behind a row of the results, one a split, to be run again.

    Args:
        name: The data set.
        method: ``"mcbn"`` or ``"mcdo"``.
        results: As :func:`read_results` gives them, its default if there are none.

    Example:
        >>> test = stored_tests("yacht", "mcbn")[0]
        >>> test.split, test.num_seeds
        (1, 5)
    """
    entry = (read_results() if results is None else results)[name]
    given, chosen = entry["configuration"], entry[method]["selected"]
    settings = Settings(**given["settings"])
    return [
        Evaluation(
            name,
            entry["table"],
            method,
            split=index + 1,
            settings=settings,
            num_seeds=given["num_seeds"],
            **{field: values[index] for field, values in chosen.items()},
        )
        for index in range(given["num_splits"])
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    # Here, since it takes Lightning with it, for which the processes that train have no use.
    from mcbn.experiments.table import score_table

    options = _parser().parse_args(arguments)
    configuration = Configuration(
        decays=options.decays,
        batch_sizes=options.batch_sizes,
        rates=options.rates,
        num_splits=options.splits,
        num_seeds=options.seeds,
        settings=Settings(
            max_epochs=options.max_epochs,
            num_cv_samples=options.cv_samples,
            num_samples=options.samples,
            seed=options.seed,
        ),
    )
    total = 0
    for source in options.data:
        data_set, _, target = load(source, options.root)
        groups = configuration.validations(data_set.name, "", len(target))
        networks = (sum(unit.num_networks for unit in group) + options.seeds for group in groups)
        total += len(target) * sum(networks)
    columns = *Progress.get_default_columns(), TimeElapsedColumn()
    console, is_terminal = Console(stderr=True), sys.stderr.isatty()
    with Progress(
        *columns, console=console, disable=not is_terminal, speed_estimate_period=600
    ) as progress:
        names = ", ".join(Path(source).stem for source in options.data)
        task = progress.add_task(names, total=total)

        def advance(rows: int, done_before: bool) -> None:
            if done_before:  # it must not make the others seem as fast
                progress.update(task, total=(progress.tasks[task].total or 0) - rows)
            else:
                progress.advance(task, rows)

        results = run(
            options.data,
            configuration,
            options.out,
            root=options.root,
            processes=options.processes,
            advance=advance,
        )
    get_console().print(score_table(results))


def _parser() -> argparse.ArgumentParser:
    default = Configuration()
    parser = argparse.ArgumentParser(
        prog="python -m mcbn.experiments.uci",
        description="The regression table of Teye et al. (2018), from the data to the scores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("data", nargs="*", default=list(DATA_SETS), help="names, or paths of tables")
    add("--root", help="folder with uci/NAME.txt; the variable MCBN_DATA, or else data")
    add("--out", type=Path, default=Path("uci.json"), help="the result file")
    add("--processes", type=int, default=os.cpu_count(), help="units computed at a time")
    add("--decays", type=float, nargs="+", default=default.decays, help="lambda")
    add("--batch-sizes", type=int, nargs="+", default=default.batch_sizes, help="M of MCBN")
    add("--rates", type=float, nargs="+", default=default.rates, help="of MC dropout")
    add("--splits", type=int, default=default.num_splits, help="random splits")
    add("--seeds", type=int, default=default.num_seeds, help="networks tested on each split")
    add("--max-epochs", type=int, default=Settings.max_epochs, help="of the cross-validation")
    add("--samples", type=int, default=Settings.num_samples, help="T")
    add("--cv-samples", type=int, default=Settings.num_cv_samples, help="T while training")
    add("--seed", type=int, default=Settings.seed, help="of everything but the splits")
    return parser


def _found(journal: Journal, unit: Work) -> dict[str, Any]:
    result = journal.get(unit)
    assert result is not None
    return result


def _entry(
    configuration: Configuration,
    groups: Sequence[Sequence[Validation]],
    tests: Sequence[Evaluation],
    journal: Journal,
) -> dict[str, Any]:
    """What the result file says of a data set."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    entry: dict[str, Any] = {"configuration": asdict(configuration), "versions": versions}
    for method in METHODS:
        chosen = [test for test in tests if test.method == method]
        runs = [_found(journal, test) for test in chosen]
        tried = [group for group in groups if group[0].method == method]
        grids = torch.tensor([[_found(journal, unit)["rmse"] for unit in group] for group in tried])
        fields = "strength", "decay", "epochs", "tau", "tau_constant"
        entry[method] = {
            "strengths": [unit.strength for unit in tried[0]],
            "selected": {name: [getattr(test, name) for test in chosen] for name in fields},
            "runs": {name: [run[name] for run in runs] for name in runs[0] if name not in _BINNED},
            **{
                name: torch.tensor([run[name] for run in runs]).mean((0, 1)).tolist()
                for name in _BINNED
            },
            "grid": grids.tolist(),
        }
    return entry


_BINNED = ("std", "error")


def _write(out: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Put a data set into the result file, a line a data set, six digits a number."""
    results = {**(read_results(out) if out.exists() else {}), name: _rounded(entry)}
    lines = [f"{json.dumps(name)}: {json.dumps(results[name])}" for name in sorted(results)]
    write_whole(out, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _finish(
    units: Sequence[Work],
    task: Task,
    journal: Journal,
    compute: Compute,
    advance: Advance,
) -> None:
    """Have the journal hold them all."""
    rows, missing = len(task[2]), [unit for unit in units if journal.get(unit) is None]
    for unit in units:
        if unit not in missing:
            advance(rows * unit.num_networks, True)
    for unit, result in compute(missing, task):
        journal.add(unit, result)
        advance(rows * unit.num_networks, False)


@contextmanager
def _workers(processes: int) -> Iterator[Compute]:
    """A function from units to them with their results, in the order in which they come."""
    if processes < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda units, task: ((unit, _compute(unit, *task)) for unit in units)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker)

    def compute(units: Sequence[Work], task: Task) -> Iterator[tuple[Work, dict[str, Any]]]:
        futures = {pool.submit(_compute, unit, *task): unit for unit in units}
        for future in as_completed(futures):
            yield futures[future], future.result()

    try:
        yield compute
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    # One that was killed cannot tell its workers to stop.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _compute(
    unit: Work, data_set: DataSet, features: np.ndarray, target: np.ndarray
) -> dict[str, Any]:
    return unit.run(data_set, torch.from_numpy(features), torch.from_numpy(target))


if __name__ == "__main__":
    main()
