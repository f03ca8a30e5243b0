"""Lightning modules that train and test a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sized
from typing import Any, ClassVar, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler, Sampler
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics import MeanMetric, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from mcbn import metrics
from mcbn.checks import (
    check_callable,
    check_count,
    check_module,
    check_number,
    check_tensors,
    check_type,
)
from mcbn.data.batches import default_inputs
from mcbn.predictive import mean_probs, probabilities, summarise_regression

Batch = tuple[Tensor, Tensor]
M = TypeVar("M", Metric, MetricCollection)
OptimRecipe = Callable[[nn.Module], Any] | dict[str, Any]


class _Routine(LightningModule):
    """Ordinary training, and evaluation in which no example counts twice.

    Each loader has its own metrics. With several loaders, Lightning appends
    ``/dataloader_idx_0``, ``/dataloader_idx_1``, … to the names.
    """

    _output: ClassVar[str]  # what the network should return, in words

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optim_recipe: OptimRecipe,
    ) -> None:
        super().__init__()
        check_module("model", model)
        check_callable("loss", loss, "a function from predictions and targets to a scalar tensor")
        if not callable(optim_recipe):
            wanted = "a function from the network to an optimizer, or what Lightning takes as one"
            check_type("optim_recipe", optim_recipe, (dict, Optimizer, list, tuple), wanted)
        self.model = model
        self.loss = loss
        self.optim_recipe = optim_recipe
        self.train_loss = MeanMetric(nan_strategy="disable")

    def forward(self, inputs: Tensor) -> Tensor:
        """The output of the network."""
        return self.model(inputs)

    def configure_optimizers(self) -> Any:
        """The optimizer that the recipe returns."""
        made = self.optim_recipe(self.model) if callable(self.optim_recipe) else self.optim_recipe
        if made is None:
            raise TypeError(
                "optim_recipe gave None, so nothing would be trained; return an optimizer."
            )
        return made

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        inputs, target = _pair(batch)
        loss: Any = self.loss(self._predictions(inputs), target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else ""
            raise TypeError(
                f"the loss gave a {type(loss).__name__} {shape}, wanted a tensor of one number; "
                "return the mean over the batch."
            )
        self.train_loss.update(loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:
        """Clears what a failed epoch may have left."""
        self.train_loss.reset()
        self._widen(self.train_loss)

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss of the epoch, once, as logging is slow compared with a small step."""
        self.log("train/loss", self.train_loss.compute(), prog_bar=True, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Starts with fresh metrics, and finds this process's own examples."""
        self._begin(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        """Starts with fresh metrics, and finds this process's own examples."""
        self._begin(self.trainer.test_dataloaders)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The output of the network for a batch, with the estimator axis if there is one."""
        return self.model(default_inputs(batch))

    def _predictions(self, inputs: Tensor) -> Tensor:
        given: Any = self.model(inputs)
        if not isinstance(given, Tensor):
            raise TypeError(
                f"the network gives a {type(given).__name__}, wanted a tensor of {self._output}; "
                "wrap the network in a module whose forward returns that tensor alone."
            )
        check_tensors(predictions=given)
        if not given.is_floating_point():
            raise TypeError(
                f"the network gives {given.dtype}, wanted floating-point numbers; end its forward "
                "in .float()."
            )
        return given

    def _begin(self, loaders: Any) -> None:
        self._running: dict[tuple[int, MetricCollection], MetricCollection] = {}
        # Loaders may be nested in lists and dicts; Lightning numbers them in this order.
        flat = CombinedLoader(loaders, "sequential").flattened
        self._unseen = [_own_examples(loader) for loader in flat]

    def _widen(self, metric: M) -> M:
        """The metric with states of 32 bits or more.

        Lightning's half precision makes the states as narrow as the network, and a 16-bit sum
        stops growing after a few hundred examples.
        """
        return metric.to(torch.promote_types(torch.float32, self.dtype))  # pyright: ignore

    def _counted(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor, slice]:
        """Inputs, targets, and the examples that count in this process: all but repeated ones."""
        inputs, target = _pair(batch)
        if not isinstance(target, Tensor):
            raise TypeError(
                f"the targets of a batch are a {type(target).__name__}, wanted a tensor; give the "
                "loader a collate_fn= that makes one, and several loaders in a list."
            )
        own = int(min(len(target), self._unseen[dataloader_idx]))
        self._unseen[dataloader_idx] -= own
        return inputs, target, slice(own)

    def _add(
        self, metrics: MetricCollection, dataloader_idx: int, predictions: Tensor, *others: Any
    ) -> None:
        """Adds a batch to a loader's own copy of the metrics, and lets Lightning log them."""
        key = dataloader_idx, metrics
        new = key not in self._running
        if new:
            self._running[key] = self._widen(metrics.clone())
        running = self._running[key]
        if predictions.numel():
            running.update(predictions, *others)
        # Asking for the items updates the metrics that share a state. Lightning computes the
        # logged ones once, at the end of the loader, over all processes.
        for name, metric in running.items(keep_base=False, copy_state=False):
            if new:
                self.log(str(name), metric, metric_attribute=str(name))


def _own_examples(loader: Any) -> float:
    """How many examples of a loader are this process's own; infinity if none is repeated.

    A distributed sampler repeats some at the end, so that all processes get the same number.
    """
    for name in ("sampler", "batch_sampler"):
        for sampler in _samplers(getattr(loader, name, None)):
            if isinstance(sampler, DistributedSampler):
                size = len(sampler.dataset)  # pyright: ignore[reportArgumentType]
                return len(range(sampler.rank, size, sampler.num_replicas))
    return math.inf


def _samplers(outer: Any) -> Iterator[Any]:
    """A sampler and those inside it, as Lightning puts its own into a loader's batch sampler."""
    yield outer
    for inner in getattr(outer, "__dict__", {}).values():
        if isinstance(inner, Sampler):
            yield from _samplers(inner)


def _pair(batch: Any) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, Sized) else ""
        raise TypeError(
            f"the batch is a {type(batch).__name__}{size}, wanted a pair of inputs and targets; "
            "give the loader a collate_fn= that makes one."
        )
    return batch[0], batch[1]


class ClassificationRoutine(_Routine):
    """Trains a classifier and measures the quality of its probabilities.

    The network may return logits ``(batch, classes)`` or ``(num_estimators, batch, classes)``; the
    test uses the mean of the estimators' probabilities. A trained ``routine.model`` can thus be
    replaced with an :class:`~mcbn.MCBatchNorm` of it and tested again.

    Testing logs fractions, not percentages, under ``test/cls/…`` (classification), ``test/cal/…``
    (calibration), ``test/sc/…`` (selective classification) and ``test/cplx/…`` (the parameters, and
    the floating-point operations of one prediction for 128 images, with all estimators).

    Args:
        num_classes: Number of logits.
        model: The network.
        loss: Takes logits and labels and returns the training loss.
        optim_recipe: Takes the network when training begins and returns what Lightning's
            ``configure_optimizers`` returns; or that object itself, valid for one training run.

    Raises:
        TypeError: An argument has the wrong type; or, later, a batch is not a pair, the network
            does not return a tensor, or the loss is not a number.
        ValueError: ``num_classes`` is below 2; or, later, the network returns a different number
            of logits, or a label is out of range.

    Example:
        >>> from mcbn import MNISTDataModule, Trainer, lenet, optim_lenet
        >>> routine = ClassificationRoutine(10, lenet(1, 10), nn.CrossEntropyLoss(), optim_lenet)
        >>> trainer = Trainer(max_steps=1, enable_model_summary=False)
        >>> datamodule = MNISTDataModule(source="sample")
        >>> trainer.fit(routine, datamodule=datamodule)
        >>> [results] = trainer.test(routine, datamodule=datamodule, verbose=False)
        >>> results["test/cplx/params"]
        44470.0
    """

    _output = "logits (batch, classes) or (num_estimators, batch, classes)"

    def __init__(
        self,
        num_classes: int,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optim_recipe: OptimRecipe,
    ) -> None:
        check_count("num_classes", num_classes, least=2)
        super().__init__(model, loss, optim_recipe)
        self.num_classes = num_classes
        self.val_metrics = MetricCollection(
            {"val/Acc": MulticlassAccuracy(num_classes, average="micro"), "val/NLL": metrics.NLL()}
        )
        self.test_metrics = MetricCollection(
            {
                "test/cls/Acc": MulticlassAccuracy(num_classes, average="micro"),
                "test/cls/Brier": metrics.BrierScore(),
                "test/cls/Entropy": metrics.Entropy(),
                "test/cls/NLL": metrics.NLL(),
                "test/cal/ECE": metrics.CalibrationError(norm="l1"),
                "test/cal/aECE": metrics.AdaptiveCalibrationError(),
                "test/cal/MCE": metrics.CalibrationError(norm="max"),
                "test/sc/AUGRC": metrics.AUGRC(),
                "test/sc/AURC": metrics.AURC(),
                "test/sc/Cov@5Risk": metrics.CoverageAtRisk(risk=0.05),
                "test/sc/Risk@80Cov": metrics.RiskAtCoverage(coverage=0.8),
            }
        )
        self.estimator_metrics = MetricCollection(
            {
                "test/cls/MI": metrics.MutualInformation(),
                "test/cls/Disagreement": metrics.Disagreement(),
            }
        )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the accuracy and the negative log-likelihood."""
        images, labels, own = self._counted(batch, dataloader_idx)
        probs = mean_probs(self._predictions(images))
        self._add(self.val_metrics, dataloader_idx, probs[own], labels[own])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the test metrics, and to those of several estimators if there are any."""
        images, labels, own = self._counted(batch, dataloader_idx)
        if batch_idx == 0:
            self._log_complexity(images[:1])
        logits = self._predictions(images)
        self._add(self.test_metrics, dataloader_idx, mean_probs(logits)[own], labels[own])
        if logits.ndim == 3 and len(logits) > 1:
            self._add(self.estimator_metrics, dataloader_idx, probabilities(logits)[:, own])

    def _predictions(self, inputs: Tensor) -> Tensor:
        logits = super()._predictions(inputs)
        if logits.shape[-1:] != (self.num_classes,):
            raise ValueError(
                f"the network gives {tuple(logits.shape)}, wanted num_classes={self.num_classes} "
                "logits on the last axis; build the network or the routine with the other number."
            )
        return logits

    def _log_complexity(self, image: Tensor) -> None:
        images = image.repeat_interleave(128, dim=0)
        # A network may learn in its first prediction how to run the others, as a wrapper with a
        # loaded state does; their cost is what counts.
        self.model(images.clone())
        with FlopCounterMode(display=False) as counter:
            self.model(images)
        params = sum(parameter.numel() for parameter in self.model.parameters())
        self.log("test/cplx/flops", float(counter.get_total_flops()), sync_dist=True)
        self.log("test/cplx/params", float(params), sync_dist=True)


class RegressionRoutine(_Routine):
    """Trains a regression network and measures the quality of its predictive distribution.

    The network may return predictions of the targets' shape, ``(batch,)`` or ``(batch, targets)``,
    or with an estimator axis in front, ``(num_estimators, batch, …)``. A trained ``routine.model``
    can thus be replaced with an :class:`~mcbn.MCBatchNorm` of it and tested again.

    Testing logs, in the targets' own unit, ``test/reg/RMSE``, the error of the estimators' mean;
    ``test/reg/CRPS``, the continuous ranked probability score of the normal distribution with their
    mean and their variance plus ``1 / noise_precision``; ``test/reg/PLL``, the predictive
    log-likelihood of the mixture of the estimators; and ``test/reg/Coverage``, the share of targets
    in the central 95 % of that normal distribution. These are the scores of Teye et al., *Bayesian
    Uncertainty Estimation for Batch Normalized Deep Networks*, 2018, section 4, plus the coverage.

    Args:
        model: The network.
        loss: Takes predictions and targets and returns the training loss.
        optim_recipe: Takes the network when training begins and returns what Lightning's
            ``configure_optimizers`` returns; or that object itself, valid for one training run.
        noise_precision: The paper's tau, 1 / (unit of the target)², as found by
            :func:`mcbn.predictive.fit_noise_precision`. The attribute may be changed between
            tests.
        target_scale: Factor that brings predictions and targets to their own unit: for
            standardized ones, the standard deviation by which they were divided.

    Raises:
        TypeError: An argument has the wrong type; or, later, a batch is not a pair, the network
            does not return a tensor, or the loss is not a number.
        ValueError: A precision or scale is not a finite number above 0; or, in a test, the shape of
            the predictions does not match that of the targets.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from mcbn import Trainer
        >>> loader = DataLoader(TensorDataset(torch.ones(4, 3), torch.full((4, 1), 2.0)))
        >>> routine = RegressionRoutine(nn.Identity(), nn.MSELoss(), torch.optim.Adam)
        >>> routine.model = nn.AvgPool1d(3)  # a mean of 1 where 2 is right
        >>> [results] = Trainer().test(routine, loader, verbose=False)
        >>> results["test/reg/RMSE"], results["test/reg/Coverage"]
        (1.0, 1.0)
    """

    _output = "predictions of the targets' shape, with or without an estimator axis in front"

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optim_recipe: OptimRecipe,
        noise_precision: float = 1.0,
        target_scale: float = 1.0,
    ) -> None:
        super().__init__(model, loss, optim_recipe)
        self.noise_precision = noise_precision
        self.target_scale = target_scale
        self._check_numbers()
        self.val_metrics = MetricCollection({"val/RMSE": MeanSquaredError(squared=False)})
        self.error_metrics = MetricCollection({"test/reg/RMSE": MeanSquaredError(squared=False)})
        self.gaussian_metrics = MetricCollection(
            {
                "test/reg/CRPS": metrics.GaussianCRPS(),
                "test/reg/Coverage": metrics.IntervalCoverage(level=0.95),
            }
        )
        self.estimator_metrics = MetricCollection({"test/reg/PLL": metrics.MixtureLogLikelihood()})

    def _check_numbers(self) -> None:
        for name in ("noise_precision", "target_scale"):
            wanted = "a finite number above 0"
            check_number(name, getattr(self, name), wanted, lambda value: 0 < value < math.inf)

    def on_test_epoch_start(self) -> None:
        """Starts as any test does, and checks the precision and scale, which may have changed."""
        super().on_test_epoch_start()
        self._check_numbers()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the root mean squared error."""
        inputs, target, own = self._counted(batch, dataloader_idx)
        predictions, target = self._in_own_unit(inputs, target)
        self._add(self.val_metrics, dataloader_idx, predictions.mean(0)[own], target[own])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the test metrics."""
        inputs, target, own = self._counted(batch, dataloader_idx)
        predictions, target = self._in_own_unit(inputs, target)
        mean, _, variance = summarise_regression(predictions, 1 / self.noise_precision)
        std, target = variance.sqrt()[own], target[own]
        self._add(self.error_metrics, dataloader_idx, mean[own], target)
        self._add(self.gaussian_metrics, dataloader_idx, mean[own], std, target)
        predictions, tau = predictions[:, own], self.noise_precision
        self._add(self.estimator_metrics, dataloader_idx, predictions, tau, target)

    def _in_own_unit(self, inputs: Tensor, target: Tensor) -> Batch:
        """Predictions ``(num_estimators, *target.shape)``, and the target."""
        predictions = self._predictions(inputs)
        estimators = predictions[None] if predictions.ndim == target.ndim else predictions
        if estimators.shape[1:] != target.shape:
            raise ValueError(
                f"Given predictions of shape {tuple(predictions.shape)} for targets of shape "
                f"{tuple(target.shape)}, wanted the targets' shape, with or without an estimator "
                "axis in front; make the targets (batch, 1) if the network ends in nn.Linear(n, 1)."
            )
        # Half precision suffices for the network, but not for sums over a test set.
        estimators, target = (
            part.to(torch.promote_types(part.dtype, torch.float32)) * self.target_scale
            for part in (estimators, target)
        )
        return estimators, target
