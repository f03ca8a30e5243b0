"""Lightning's Trainer, quiet, with its results as tables for terminals, notebooks and pages."""

from __future__ import annotations

import atexit
import logging
import re
import warnings
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from html import escape
from io import BytesIO, TextIOWrapper
from numbers import Real
from typing import Any, NamedTuple

import lightning.pytorch as pl
from rich import get_console
from rich import table as rich_table
from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor, distributed, nn

from mcbn.checks import check_type
from mcbn.terminal import showable, stdout_encoding

Results = Sequence[Mapping[str, float]]

_CAPTIONS = {
    "cls": "Classification",
    "cal": "Calibration",
    "sc": "Selective classification",
    "reg": "Regression",
    "cplx": "Complexity",
}


def _percentage(value: float) -> str:
    return f"{100 * value:.{2 if value >= 0.1 else 3}f} %"


def _number(value: float) -> str:
    return f"{value:.4f}"


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


# In the order of the rows; a metric that is not here is a number, and comes last.
_FORMATS = {
    "Acc": _percentage,
    "Brier": _number,
    "Entropy": _number,
    "NLL": _number,
    "MI": _number,
    "Disagreement": _percentage,
    "ECE": _percentage,
    "aECE": _percentage,
    "MCE": _percentage,
    "AUGRC": _percentage,
    "AURC": _percentage,
    "Cov@5Risk": _percentage,
    "Risk@80Cov": _percentage,
    "RMSE": _number,
    "CRPS": _number,
    "PLL": _number,
    "Coverage": _percentage,
    "flops": _count,
    "params": _count,
}


class Table(NamedTuple):
    """A caption, the columns' names, and rows of as many cells; the first names its row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Tables:
    """Tables that show themselves where they are: as text in a terminal, as HTML on a page.

    Signs that a terminal's encoding does not have are replaced, as ± with +/- in ASCII.

    Raises:
        TypeError: A table is no :class:`Table`, or a cell no text.
        ValueError: A row has not as many cells as the header.

    Example:
        >>> print(Tables([Table("Digits", ("Digit", "Images"), [("0", "980")])]))
              Digits
        ┏━━━━━━━┳━━━━━━━━┓
        ┃ Digit ┃ Images ┃
        ┡━━━━━━━╇━━━━━━━━┩
        │ 0     │    980 │
        └───────┴────────┘
        <BLANKLINE>
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        for table in tables:
            check_type("a table", table, Table, "tables as Table(caption, header, rows)")
            for row in table.rows:
                for cell in row:
                    check_type("a cell", cell, str, "text")
                if len(row) != len(table.header):
                    raise ValueError(
                        f"the row {list(row)} of the table {table.caption!r} has {len(row)} cells, "
                        f"wanted {len(table.header)}, one for each name in the header."
                    )
        self.tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def shown(text: str) -> str:
            return showable(text, options.encoding)

        for caption, header, rows in self.tables:
            drawn = rich_table.Table(title=shown(caption), title_style="bold")
            for i, name in enumerate(header):
                drawn.add_column(
                    shown(name),
                    justify="right" if i else "left",
                    # Where there is no sign for an ellipsis, a long cell goes on in the next line.
                    no_wrap=not options.ascii_only,
                    overflow="fold" if options.ascii_only else "ellipsis",
                )
            for row in rows:
                drawn.add_row(*map(shown, row))
            yield drawn

    def __str__(self) -> str:
        file = TextIOWrapper(BytesIO(), stdout_encoding())
        console = Console(file=file, width=100, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"

    def _repr_html_(self) -> str:
        return f'<div class="mcbn-results">{"".join(map(_html, self.tables))}</div>'


def _html(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in table.rows
    )
    return (
        f"<table><caption>{escape(table.caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


class ResultTables(Tables):
    """What ``Trainer.test`` measured, one table for each kind of metric.

    Args:
        results: What ``Trainer.test`` returned; or several such, by name, to be put side by side.
            A test with several loaders has a column for each.

    Raises:
        TypeError: They are something else.

    Example:
        >>> plain = [{"test/cls/Acc": 0.9716, "test/cplx/flops": 72.1e6}]
        >>> mcbn = [{"test/cls/Acc": 0.9731, "test/cplx/flops": 487.0e6}]
        >>> ResultTables({"plain": plain, "MCBN": mcbn}).tables[0].rows
        [['Acc', '97.16 %', '97.31 %']]
    """

    def __init__(self, results: Results | Mapping[str, Results]) -> None:
        named = results if isinstance(results, Mapping) else {"Value": results}
        by_title = {
            title: values
            for name, result in named.items()
            for title, values in _by_loader(name, _values(result)).items()
        }
        columns = list(by_title.values())
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in _CAPTIONS}
        for key in dict.fromkeys(key for column in columns for key in column):
            *_, group, metric = f"Other/{key}".split("/")
            groups.setdefault(group, []).append((metric, key))
        super().__init__(
            [
                Table(
                    _CAPTIONS.get(group, group),
                    ["Metric", *by_title],
                    [
                        [metric, *(_cell(metric, column.get(key)) for column in columns)]
                        for metric, key in sorted(rows, key=lambda row: _rank(row[0]))
                    ],
                )
                for group, rows in groups.items()
                if rows
            ]
        )


def _values(results: Any) -> dict[str, float]:
    """What was measured, by the full name of the metric."""
    wanted = "what Trainer.test returned, or a dict of several such by name"
    check_type("results", results, (list, tuple), wanted)
    for measured in results:
        check_type("an element of results", measured, Mapping, wanted)
    values = dict(ChainMap(*map(dict, results)))
    for key, value in values.items():
        check_type(f"the value of {key!r}", value, (Real, Tensor), "a number")
    return values


def _by_loader(name: str, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The columns of a test by their titles, one a loader."""
    # Lightning says in the names which loader it was, if there are several.
    found = {key: re.fullmatch(r"(.*)/dataloader_idx_(\d+)", key) for key in values}
    loaders = sorted({int(match[2]) for match in found.values() if match})
    return {
        f"{name}, loader {loader}": {
            match[1] if match else key: values[key]
            for key, match in found.items()
            if match is None or int(match[2]) == loader
        }
        for loader in loaders
    } or {name: dict(values)}


def _rank(metric: str) -> int:
    return [*_FORMATS, metric].index(metric)


def _cell(metric: str, value: float | None) -> str:
    return "-" if value is None else _FORMATS.get(metric, _number)(value)


def _summary(model: nn.Module) -> Tables:
    """The modules right under a network and how many parameters each has."""

    def size(module: nn.Module) -> str:
        return f"{sum(parameter.numel() for parameter in module.parameters()):,}"

    rows = [
        (f"{name}: {type(module).__name__}", size(module))
        for name, module in model.named_children()
    ]
    total = (f"{type(model).__name__}, all in all", size(model))
    return Tables([Table("Model", ("Module", "Parameters"), [*rows, total])])


class _ShowSummary(pl.Callback):
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            get_console().print(_summary(getattr(pl_module, "model", pl_module)))


class _EndProcessGroup(pl.Callback):
    """Ends the process group when the process does.

    Lightning does so with NCCL only. The threads of gloo then outlive the interpreter, and may
    abort a process that has done its work ("terminate called without an active exception").
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        atexit.register(_end_process_group)


def _end_process_group() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notices off; its warnings stay, but for those that tell the caller nothing."""
    with ExitStack() as undo:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.WARNING)
        undo.enter_context(warnings.catch_warnings())
        # Images in memory load faster without workers.
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        # A training without validation is one.
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no")
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        # Where there are more processes than examples, one has none; the others' count in it, too.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        # Who says accelerator="cpu" knows.
        warnings.filterwarnings("ignore", message="GPU available but not used")
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield


class Trainer(pl.Trainer):
    """Lightning's Trainer that shows a model summary, the results of a test, and nothing else.

    Progress bar, logger, checkpoints and Lightning's sanity check are off unless asked for. Where a
    run fails, modules come back to the mode in which they were: Lightning would leave them in
    evaluation mode, and train them so the next time.

    Args:
        enable_model_summary: Show the network's modules and parameters when a training begins.
        kwargs: Lightning's own.

    Example:
        >>> trainer = Trainer(max_steps=938)
        >>> trainer.loggers
        []
    """

    callbacks: list[pl.Callback]

    def __init__(self, *, enable_model_summary: bool = True, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "num_sanity_val_steps": 0,
        }
        with _quiet():
            super().__init__(enable_model_summary=False, **(defaults | kwargs))
        self.callbacks.append(_EndProcessGroup())
        if enable_model_summary:
            self.callbacks.append(_ShowSummary())

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        with self._undone_if_this_fails(*args, **kwargs):
            super().fit(*args, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's."""
        with self._undone_if_this_fails(*args, **kwargs):
            return super().validate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's."""
        with self._undone_if_this_fails(*args, **kwargs):
            return super().predict(*args, **kwargs)

    def test(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        verbose: bool = True,
        datamodule: pl.LightningDataModule | None = None,
        **kwargs: Any,
    ) -> list[Mapping[str, float]]:
        """As Lightning's; a verbose test prints :class:`ResultTables`, in one process only.

        Raises:
            ValueError: There was no batch, so that nothing was tested.
        """
        with self._undone_if_this_fails(model):
            results = super().test(model, dataloaders, ckpt_path, False, datamodule, **kwargs)
        if not results:
            raise ValueError("the test saw no batch; give a loader with at least one example.")
        if verbose and self.is_global_zero:
            get_console().print(ResultTables(results))
        return list(results)

    @contextmanager
    def _undone_if_this_fails(self, model: Any = None, *_: Any, **__: Any) -> Iterator[None]:
        """Quiet, and every module in the mode in which it was if anything fails."""
        model = model or self.lightning_module
        modules = model.modules() if isinstance(model, nn.Module) else ()
        modes = {module: module.training for module in modules}
        try:
            with _quiet():
                yield
        except BaseException:
            for module, training in modes.items():
                module.training = training
            raise
