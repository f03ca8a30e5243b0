"""Regression tables as a Lightning datamodule."""

from __future__ import annotations

import math
import os
from decimal import Decimal
from numbers import Real
from reprlib import repr as short
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mcbn.checks import check_count, check_type
from mcbn.data.files import expanded

Part = Literal["train", "val", "test"]


@runtime_checkable
class DataFrame(Protocol):
    """The required interface of a DataFrame, which those of pandas and Polars have."""

    @property
    def columns(self) -> Any:
        """The column names."""
        ...

    def to_numpy(self) -> Any:
        """The cells ``(rows, columns)``."""
        ...


class TableDataModule(LightningDataModule):
    """A table of numbers for regression, with one column as the target and the rest as features.

    Features and target are standardized with the mean and the population standard deviation of the
    training part; a column that is constant there is divided by 1. Loaders return features
    ``(batch, num_features)`` and targets ``(batch, 1)``, float32. Multiply a prediction by
    ``target_std`` and add ``target_mean`` to get it in the table's own unit; a routine takes
    ``target_std`` as its ``target_scale``.

    Args:
        path: A text file with one row of numbers per line, separated by white space, commas or
            semicolons. Its first line may name the columns. Empty lines are skipped, and ``~`` is
            the home folder. Or a pandas or Polars DataFrame of numbers. By default, scikit-learn's
            diabetes table: 442 patients, 10 features, and the progression of the disease after a
            year.
        target: The target's column, from 0; negative numbers count from the end.
        batch_size: Rows in a training batch.
        val_split: Share of the rows for validation.
        test_split: Share of the rows for the test.
        seed: Decides which rows are in which part.

    Attributes:
        num_features: Number of features. Like the attributes below, it is known after ``setup``.
        names: The column names, features first; numbers if the file has no names.
        target_mean: Mean of the training part's targets.
        target_std: Their population standard deviation.

    Raises:
        ImportError: No path was given, and scikit-learn is not installed.
        OSError: The file cannot be read.
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range; the file is not UTF-8 text, has a line that is not
            a row of finite numbers or has a different length, too few rows, numbers too large to
            standardize, or no such column; or a cell of the DataFrame is not a finite number.

    Example:
        >>> datamodule = TableDataModule(batch_size=32)
        >>> features, target = next(iter(datamodule.train_dataloader()))
        >>> features.shape, target.shape
        (torch.Size([32, 10]), torch.Size([32, 1]))
        >>> [len(datamodule.dataset(part)) for part in ("train", "val", "test")]
        [266, 88, 88]
    """

    num_features: int
    names: list[str]
    target_mean: float
    target_std: float

    def __init__(
        self,
        path: str | os.PathLike[str] | DataFrame | None = None,
        target: int = -1,
        batch_size: int = 32,
        *,
        val_split: float = 0.2,
        test_split: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (path is None or isinstance(path, DataFrame)):
            check_type("path", path, (str, os.PathLike), "the path of a text file, or a DataFrame")
        check_type("target", target, int, "the number of a column")
        check_count("batch_size", batch_size)
        check_type("seed", seed, int, "an integer")
        for name, share in {"val_split": val_split, "test_split": test_split}.items():
            check_type(name, share, Real, "a share of the rows, as 0.2")
        if not (val_split >= 0 and test_split > 0 and val_split + test_split < 1):
            raise ValueError(
                f"val_split={val_split} and test_split={test_split}, wanted shares whose sum is "
                "below 1; only val_split may be 0."
            )
        self.path = path
        self.target = target
        self.batch_size = batch_size
        self.val_split = val_split
        self.test_split = test_split
        self.seed = seed
        self._datasets: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits and standardizes the table, once for all stages."""
        if self._datasets:
            return
        if self.path is None:
            names, table = _diabetes()
        elif isinstance(self.path, DataFrame):
            names, table = _numbers_of(self.path)
        else:
            names, table = read_table(self.path)
        columns = list(range(table.shape[1]))
        if len(columns) < 2 or not -len(columns) <= self.target < len(columns):
            raise ValueError(
                f"target={self.target}, but the table has {len(columns)} columns; wanted at least "
                "two, and the number of one of them."
            )
        columns.append(columns.pop(self.target))
        table = table[:, columns]
        self.names = [names[column] for column in columns]
        self.num_features = len(columns) - 1
        rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(self.seed))
        num_test, num_val = (round(p * len(table)) for p in (self.test_split, self.val_split))
        test, val, train = rows.split([num_test, num_val, len(table) - num_test - num_val])
        if not (len(train) and len(test) and (len(val) or not self.val_split)):
            raise ValueError(
                f"{len(table)} rows make {len(train)} for training, {len(val)} for validation and "
                f"{len(test)} for the test, wanted at least 1 in each."
            )
        std, mean = torch.std_mean(table[train], dim=0, correction=0)
        if not (std.isfinite().all() and mean.isfinite().all()):
            raise ValueError(
                f"the numbers go up to {table.abs().amax():.3g}, too large to standardize; give "
                "them in another unit."
            )
        # Rounding may leave a constant column with a tiny standard deviation.
        std[table[train].amin(0) == table[train].amax(0)] = 1
        self.target_mean, self.target_std = mean[-1].item(), std[-1].item()
        table = ((table - mean) / std).float()
        self._datasets = {
            part: TensorDataset(table[chosen, :-1], table[chosen, -1:])
            for part, chosen in (("train", train), ("val", val), ("test", test))
        }

    def dataset(self, part: Part) -> TensorDataset:
        """The dataset of a part, with standardized features and targets in ``.tensors``."""
        self.setup()
        if part not in ("train", "val", "test"):
            raise ValueError(f"part={part!r}, wanted 'train', 'val' or 'test'.")
        return self._datasets[part]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Training rows in random order; an incomplete last batch is dropped, as in the paper."""
        data = self.dataset("train")
        size = min(self.batch_size, len(data))
        return DataLoader(data, batch_size=size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Validation rows in a fixed order, all in one batch."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Test rows in a fixed order, all in one batch."""
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The test rows again, with their targets."""
        return self._in_order("test")

    def _in_order(self, part: Part) -> DataLoader[tuple[Tensor, ...]]:
        data = self.dataset(part)
        return DataLoader(data, batch_size=max(len(data), 1))


def read_table(path: str | os.PathLike[str]) -> tuple[list[str], Tensor]:
    r"""The column names and the numbers ``(rows, columns)``, float64, of a text file.

    Args:
        path: As :class:`TableDataModule` describes it.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not UTF-8 text; a line is not a row of finite numbers, or differs in
            length from the first row; or there is no row. The message names the line, from 1.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "t.csv").write_text("length,weight\n1,2\n\n3,4.5\n")
        ...     names, table = read_table(Path(folder, "t.csv"))
        >>> names, table.tolist()
        (['length', 'weight'], [[1.0, 2.0], [3.0, 4.5]])
    """
    name = expanded(path).name
    header: list[str] = []
    rows: list[list[float]] = []
    try:
        text = expanded(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is no text in UTF-8 ({error.reason} at byte {error.start}); unpack or convert "
            "it first."
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        cells = _cells(line)
        if not any(cells):
            continue
        if not rows and not header and not any(map(_is_number, cells)):
            header = cells
            continue
        for cell in cells:
            if not _is_number(cell) or not math.isfinite(float(cell)):
                raise ValueError(f"{name}, line {number}: {short(cell)} is no finite number.")
        row = list(map(float, cells))
        wanted = len(rows[0]) if rows else len(header) or len(row)
        if len(row) != wanted:
            raise ValueError(
                f"{name}, line {number}: {len(row)} numbers, wanted {wanted} as in the lines above."
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{name} has no row of numbers.")
    names = header or [str(column) for column in range(len(rows[0]))]
    return names, torch.tensor(rows, dtype=torch.float64)


def _cells(line: str) -> list[str]:
    """The cells of a line, split at semicolons, else at commas, else at white space."""
    separator = next((mark for mark in ";," if mark in line), None)
    return [cell.strip().strip("\"'") for cell in line.split(separator)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers_of(frame: DataFrame) -> tuple[list[str], Tensor]:
    names, cells = list(map(str, frame.columns)), frame.to_numpy()
    for number, row in enumerate(cells):
        for name, cell in zip(names, row, strict=True):
            if not isinstance(cell, (Real, Decimal)) or not math.isfinite(cell):
                raise ValueError(
                    f"row {number} of the column {name!r}: {short(str(cell))} is no finite number."
                )
    return names, torch.from_numpy(cells.astype(float))


def _diabetes() -> tuple[list[str], Tensor]:
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ImportError(
            "The diabetes table comes with scikit-learn, which is not installed; "
            "pip install scikit-learn, or give a table of your own: TableDataModule(path=...)."
        ) from error
    data: Any = load_diabetes(scaled=False)
    table = torch.from_numpy(data["data"]), torch.from_numpy(data["target"])[:, None]
    return [*data["feature_names"], "progression"], torch.cat(table, dim=1).double()
