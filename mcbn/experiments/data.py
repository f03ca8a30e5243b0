"""The eight tables of the paper: where they are, where they come from, and that they are right."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcbn.data.files import Wanted, expanded, fetch, root_folder

_LARGEST = 1 << 23  # bytes


@dataclass(frozen=True)
class DataSet:
    """A table, and what the paper's protocol says of it alone.

    Attributes:
        name: Of the row in the paper's table.
        sha256: Of its numbers, row by row, the target last, as 64-bit little-endian floats; so a
            file may separate them by whatever it likes. None where any will do.
        url: Where to fetch it.
        target: The target's column.
        left_out: Columns that are neither feature nor target.
        width: Units of a hidden layer.
        tau_bounds: The search for the observation precision; None for a range of its own.
    """

    name: str
    sha256: str | None = None
    url: str | None = None
    target: int = -1
    left_out: Sequence[int] = ()
    width: int = 50
    tau_bounds: tuple[float, float] | None = None


_TABLES = Path(__file__).with_name("data_sets.toml").read_text(encoding="utf-8")
DATA_SETS = {name: DataSet(name, **fields) for name, fields in tomllib.loads(_TABLES).items()}


def load(name: str, root: str | os.PathLike[str] | None = None) -> tuple[DataSet, Tensor, Tensor]:
    """A table by the name of the paper's row, or by a path.

    Args:
        name: One of ``DATA_SETS``, read from ``root/uci/NAME.txt`` and fetched if it is not there;
            ``"diabetes"``, the table that comes with scikit-learn; or the path of a file as
            :func:`mcbn.data.tables.read_table` takes it, the target in the last column.
        root: Default: the environment variable ``MCBN_DATA``, else ``data``.

    Returns:
        What is known of it, the features ``(rows, d)`` and the targets ``(rows,)``, float64.

    Raises:
        OSError: The file cannot be read, or neither read nor fetched.
        ValueError: No such name; or the numbers are not those that the paper used.

    Example:
        >>> data_set, features, target = load("diabetes")
        >>> features.shape, data_set.width
        (torch.Size([442, 10]), 50)
    """
    data_set = DATA_SETS.get(name) or DataSet(name)
    if name == "diabetes":
        return data_set, *_read(None, data_set)
    path = expanded(name)
    if name in DATA_SETS:
        path = root_folder(root) / "uci" / f"{name}.txt"
        if not path.exists():
            _fetch_to(path, data_set)
    elif not path.exists():
        raise ValueError(
            f"Given {name!r}, wanted the path of a table or one of {', '.join(DATA_SETS)}."
        )
    features, target = _read(path, data_set)
    if data_set.sha256 not in (None, checksum(features, target)):
        raise ValueError(
            f"{path} does not hold the numbers of {name}; their SHA-256 would be "
            f"{data_set.sha256}. Delete it to have it fetched again."
        )
    return data_set, features, target


def checksum(features: Tensor, target: Tensor) -> str:
    """As ``DataSet.sha256`` says.

    Example:
        >>> checksum(torch.zeros(1, 1), torch.zeros(1))[:8]
        '374708ff'
    """
    numbers = torch.cat([features, target[:, None]], dim=1).double().numpy()
    return hashlib.sha256(numbers.astype("<f8").tobytes()).hexdigest()


def _read(path: Path | None, data_set: DataSet) -> tuple[Tensor, Tensor]:
    """Features and targets of a file, or of scikit-learn's table."""
    # Here, since it takes Lightning with it, for which the processes that train have no use.
    from mcbn.data.tables import _diabetes, read_table

    _, table = read_table(path) if path else _diabetes()
    columns = list(range(table.shape[1]))
    if len(columns) <= max(1, data_set.target, *data_set.left_out):
        raise ValueError(f"the table of {data_set.name} has {len(columns)} columns, wanted more")
    target = columns[data_set.target]
    features = [column for column in columns if column not in (target, *data_set.left_out)]
    return table[:, features], table[:, target]


def _fetch_to(path: Path, data_set: DataSet) -> None:
    def check(part: Path) -> None:
        if checksum(*_read(part, data_set)) != data_set.sha256:
            raise ValueError("it has sent other numbers than those of the paper")

    assert data_set.url is not None
    try:
        fetch([Wanted(path, [data_set.url], _LARGEST, check=check)], patient=True)
    except OSError as error:
        raise OSError(
            f"{path} is not there, and {data_set.url} gave nothing of use ({error}); put the file "
            "there, a row of numbers a line."
        ) from error
