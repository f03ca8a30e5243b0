"""Monte Carlo Batch Normalization (MCBN) for PyTorch.

One prediction flows one way: train, convert, fit the statistics, predict, summarise, plot.
Names that need Lightning, torchvision or matplotlib are imported when they are first used, so
``import mcbn`` costs little more than ``import torch``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mcbn.mc_batch_norm import MCBatchNorm
from mcbn.models import lenet

if TYPE_CHECKING:
    from mcbn.datamodules import MNISTDataModule
    from mcbn.recipes import optim_lenet
    from mcbn.routines import ClassificationRoutine, RegressionRoutine
    from mcbn.tables import TableDataModule
    from mcbn.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "ClassificationRoutine",
    "MCBatchNorm",
    "MNISTDataModule",
    "RegressionRoutine",
    "TableDataModule",
    "Trainer",
    "lenet",
    "optim_lenet",
]

_LAZY = {
    "MNISTDataModule": "mcbn.datamodules",
    "ClassificationRoutine": "mcbn.routines",
    "RegressionRoutine": "mcbn.routines",
    "TableDataModule": "mcbn.tables",
    "Trainer": "mcbn.trainer",
    "optim_lenet": "mcbn.recipes",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mcbn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
