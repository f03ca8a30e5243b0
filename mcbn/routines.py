"""Training and testing as Lightning wants them: one module around a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from mcbn import metrics
from mcbn.predictive import mean_probs, probabilities

Batch = tuple[Tensor, Tensor]


class ClassificationRoutine(LightningModule):
    """Trains a classifier and measures how good its probabilities are.

    The network may give logits ``(batch, classes)`` or ``(num_estimators, batch, classes)``; the
    mean of the estimators' probabilities is what is tested. So a trained ``routine.model`` can be
    replaced with an :class:`~mcbn.MCBatchNorm` of it, and tested again.

    Testing logs fractions, not percentages, under ``test/cls/…`` (classification), ``test/cal/…``
    (calibration), ``test/sc/…`` (selective classification) and ``test/cplx/…`` (the parameters, and
    the floating-point operations of one prediction of 128 images, with all estimators).

    Args:
        num_classes: Number of logits.
        model: The network.
        loss: Called with logits and labels, gives the training loss.
        optim_recipe: Called with the network when a training begins, gives what Lightning's
            ``configure_optimizers`` returns; or such a thing itself, good for one training.

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

    def __init__(
        self,
        num_classes: int,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optim_recipe: Callable[[nn.Module], Any] | dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.optim_recipe = optim_recipe
        self.train_loss = MeanMetric(nan_strategy="disable")
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
        self._several = False

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits."""
        return self.model(images)

    def configure_optimizers(self) -> Any:
        """What the recipe says."""
        return self.optim_recipe(self.model) if callable(self.optim_recipe) else self.optim_recipe

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        loss = self.loss(self.model(images), labels)
        self.train_loss.update(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss of the epoch: once, as logging takes a while next to a small step."""
        self.log("train/loss", self.train_loss.compute(), prog_bar=True, sync_dist=True)
        self.train_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to accuracy and negative log-likelihood."""
        images, labels = batch
        self.val_metrics.update(mean_probs(self.model(images)), labels)

    def on_validation_epoch_end(self) -> None:
        """Logs both."""
        self._log_and_reset(self.val_metrics)

    def on_test_epoch_start(self) -> None:
        """Finds out how many images are this process's own."""
        self._unseen: int | None = None
        sampler: Any = getattr(self.trainer.test_dataloaders, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            # It repeats images at the end so that all processes get equally many; they must not
            # count twice.
            size = len(sampler.dataset)  # pyright: ignore[reportArgumentType]
            self._unseen = len(range(sampler.rank, size, sampler.num_replicas))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the test metrics, and to those of several estimators if there are."""
        if batch_idx == 0:
            self._log_complexity(batch[0][:1])
        images, labels = (part[: self._unseen] for part in batch)
        if self._unseen is not None:
            self._unseen -= len(images)
        if not len(images):
            return
        logits = self.model(images)
        self.test_metrics.update(mean_probs(logits), labels)
        self._several = logits.ndim == 3 and len(logits) > 1
        if self._several:
            self.estimator_metrics.update(probabilities(logits))

    def on_test_epoch_end(self) -> None:
        """Logs them."""
        self._log_and_reset(self.test_metrics)
        if self._several:
            self._log_and_reset(self.estimator_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits of a batch, with the estimators' axis if there is one."""
        return self.model(batch[0])

    def _log_complexity(self, image: Tensor) -> None:
        with FlopCounterMode(display=False) as counter:
            self.model(image.expand(128, *image.shape[1:]))
        params = sum(parameter.numel() for parameter in self.model.parameters())
        self.log("test/cplx/flops", float(counter.get_total_flops()), sync_dist=True)
        self.log("test/cplx/params", float(params), sync_dist=True)

    def _log_and_reset(self, collection: MetricCollection) -> None:
        # All processes have the same values by now; sync_dist only tells Lightning so.
        self.log_dict(collection.compute(), sync_dist=True)
        collection.reset()
