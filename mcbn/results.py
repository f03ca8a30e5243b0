"""Result tables: what was measured, as text in a terminal and as HTML on a page."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO, TextIOWrapper
from numbers import Real
from typing import Any, NamedTuple

from rich import table as rich_table
from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor

from mcbn.checks import check_type
from mcbn.terminal import showable, stdout_encoding

Results = Sequence[Mapping[str, float]]

# The caption of each group, and its metrics in the order of the rows; others come after them.
_GROUPS = {
    "cls": ("Classification", ["Acc", "Brier", "Entropy", "NLL", "MI", "Disagreement"]),
    "cal": ("Calibration", ["ECE", "aECE", "MCE"]),
    "sc": ("Selective classification", ["AUGRC", "AURC", "Cov@5Risk", "Risk@80Cov"]),
    "reg": ("Regression", ["RMSE", "CRPS", "PLL", "Coverage"]),
    "cplx": ("Complexity", ["flops", "params"]),
}
_ORDER = [metric for _, metrics in _GROUPS.values() for metric in metrics]
_PERCENTAGES = {"Acc", "Disagreement", "Coverage", *_GROUPS["cal"][1], *_GROUPS["sc"][1]}
_COUNTS = {"flops", "params"}


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
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in _GROUPS}
        for key in dict.fromkeys(key for column in columns for key in column):
            *_, group, metric = f"Other/{key}".split("/")
            groups.setdefault(group, []).append((metric, key))
        super().__init__(
            [
                Table(
                    _GROUPS[group][0] if group in _GROUPS else group,
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
    return [*_ORDER, metric].index(metric)


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric in _PERCENTAGES:
        return f"{100 * value:.{2 if value >= 0.1 else 3}f} %"
    if metric in _COUNTS:
        return _count(value)
    return f"{value:.4f}"


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"
