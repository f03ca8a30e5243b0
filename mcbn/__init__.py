"""Monte Carlo Batch Normalization (MCBN) for PyTorch.

The steps to a prediction: train, convert, fit the statistics, predict, summarize, plot.
Names that need Lightning, torchvision or Matplotlib are imported when first used, so
``import mcbn`` costs little more than ``import torch``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mcbn.method.mc_batch_norm import MCBatchNorm
from mcbn.training.models import lenet

if TYPE_CHECKING:
    from mcbn.data.digits import MNISTDataModule
    from mcbn.data.tables import TableDataModule
    from mcbn.training.recipes import optim_lenet
    from mcbn.training.routines import ClassificationRoutine, RegressionRoutine
    from mcbn.training.trainer import Trainer

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
    "MNISTDataModule": "mcbn.data.digits",
    "ClassificationRoutine": "mcbn.training.routines",
    "RegressionRoutine": "mcbn.training.routines",
    "TableDataModule": "mcbn.data.tables",
    "Trainer": "mcbn.training.trainer",
    "optim_lenet": "mcbn.training.recipes",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mcbn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
