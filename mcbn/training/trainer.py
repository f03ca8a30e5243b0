"""Lightning's Trainer, quiet, with its model summary and its results as tables."""

from __future__ import annotations

import atexit
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
from rich import get_console
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch import distributed, nn

from mcbn.results import ResultTables, Table, Tables


def _summary(model: nn.Module) -> Tables:
    """The modules right under a network and how many parameters each has."""

    def size(module: nn.Module) -> str:
        return f"{sum(parameter.numel() for parameter in module.parameters()):,}"

    rows = [
        (f"{name}: {type(module).__name__}", size(module))
        for name, module in model.named_children()
    ]
    total = (f"{type(model).__name__}, in all", size(model))
    return Tables([Table("Model", ("Module", "Parameters"), [*rows, total])])


class _ShowSummary(pl.Callback):
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            get_console().print(_summary(getattr(pl_module, "model", pl_module)))


class _ShowProgress(pl.Callback):
    """A bar on a terminal while a training runs; it leaves nothing behind."""

    progress: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            columns = *Progress.get_default_columns(), MofNCompleteColumn()
            self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
            limits = (
                trainer.max_steps * trainer.accumulate_grad_batches,
                (trainer.max_epochs or 0) * trainer.num_training_batches,
            )  # -1 and infinity are none
            total = min((n for n in limits if 0 < n < math.inf), default=None)
            self.progress.add_task("Training", total=total)
            self.progress.start()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if self.progress:
            self.progress.advance(self.progress.task_ids[0])

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None

    on_exception = on_train_end


def _end_process_group() -> None:
    """Lightning does so with NCCL only.

    The threads of gloo then outlive the interpreter, and may abort a process that has done its work
    ("terminate called without an active exception").
    """
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

    On a terminal, a line shows how far a training is, and goes when it ends. Lightning's own
    progress bar, logger, checkpoints and sanity check are off unless asked for. Where a run fails,
    modules come back to the mode in which they were: Lightning would leave them in evaluation mode,
    and train them so the next time.

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
        atexit.register(_end_process_group)
        if not self.progress_bar_callback:
            self.callbacks.append(_ShowProgress())
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
