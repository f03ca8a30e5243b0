import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mcbn import ClassificationRoutine, MCBatchNorm, MNISTDataModule, Trainer, lenet, optim_lenet

pytestmark = pytest.mark.filterwarnings(
    # Lightning recommends one device, as its sampler repeats images; here they do not count.
    "ignore:Using `DistributedSampler` with the dataloaders"
)


class Fixed(nn.Module):
    """Gives the logits that it finds in the input, ``(batch, S, classes)``, estimators first."""

    def forward(self, x):
        return x[:, 0] if x.shape[1] == 1 else x.movedim(1, 0)


def results_of(logits, labels, batch_size=7, **options):
    """What a test logs for given logits ``(n, S, classes)``."""
    loader = DataLoader(TensorDataset(logits, labels), batch_size=batch_size)
    routine = ClassificationRoutine(logits.shape[-1], Fixed(), nn.CrossEntropyLoss(), optim_lenet)
    trainer = Trainer(accelerator="cpu", **options)
    [results] = trainer.test(routine, loader, verbose=False)
    return results


@pytest.fixture
def predictions():
    torch.manual_seed(0)
    labels = torch.randint(4, (61,))
    logits = torch.randn(61, 5, 4) + 2 * nn.functional.one_hot(labels, 4)[:, None]
    return logits, labels


def softmax(logits):
    powers = np.exp(logits.double().numpy())
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("num_estimators", [1, 5])
def test_metrics_are_those_of_the_mean_probabilities(predictions, num_estimators):
    logits, labels = predictions
    logits = logits[:, :num_estimators]
    results = results_of(logits, labels)
    probs, y = softmax(logits).mean(1), labels.numpy()
    confidence, right = probs.max(1), probs.argmax(1) == y
    gaps = [
        (right[chosen].mean() - confidence[chosen].mean(), chosen.sum())
        for low in np.arange(15) / 15
        if (chosen := (confidence > low) & (confidence <= low + 1 / 15)).any()
    ]
    risks = np.cumsum(~right[np.argsort(-confidence)]) / np.arange(1, 62)
    expected = {
        "test/cls/Acc": accuracy_score(y, probs.argmax(1)),
        "test/cls/NLL": log_loss(y, probs),
        "test/cls/Brier": ((probs - np.eye(4)[y]) ** 2).sum(1).mean(),
        "test/cls/Entropy": -(probs * np.log(probs)).sum(1).mean(),
        "test/cal/ECE": sum(abs(gap) * size for gap, size in gaps) / 61,
        "test/cal/MCE": max(abs(gap) for gap, _ in gaps),
        "test/sc/Risk@80Cov": risks[math.ceil(0.8 * 61) - 1],
        "test/sc/Cov@5Risk": max((np.flatnonzero(risks <= 0.05) + 1) / 61, default=0),
    }
    for key, value in expected.items():
        assert results[key] == pytest.approx(value, abs=1e-6), key


def test_metrics_have_the_names_of_the_tables(predictions):
    names = {
        "cls": ["Acc", "Brier", "Entropy", "NLL"],
        "cal": ["ECE", "MCE", "aECE"],
        "sc": ["AUGRC", "AURC", "Cov@5Risk", "Risk@80Cov"],
        "cplx": ["flops", "params"],
    }
    keys = {f"test/{group}/{name}" for group, members in names.items() for name in members}
    logits, labels = predictions
    assert set(results_of(logits[:, :1], labels)) == keys
    assert set(results_of(logits, labels)) - keys == {"test/cls/MI", "test/cls/Disagreement"}


def test_estimators_are_compared_with_each_other(predictions):
    logits, labels = predictions
    results = results_of(logits, labels)
    probs = softmax(logits)
    entropies = -(probs * np.log(probs)).sum(-1)
    mean = probs.mean(1)
    information = -(mean * np.log(mean)).sum(-1) - entropies.mean(1)
    reads = probs.argmax(-1)
    differ = [(reads[:, i] != reads[:, j]).mean() for i in range(5) for j in range(i)]
    assert results["test/cls/MI"] == pytest.approx(information.mean(), abs=1e-6)
    assert results["test/cls/Disagreement"] == pytest.approx(np.mean(differ), abs=1e-6)


def test_batches_make_no_difference(predictions):
    assert results_of(*predictions, batch_size=7) == pytest.approx(
        results_of(*predictions, batch_size=61)
    )


def test_a_second_test_does_not_remember_the_first(predictions):
    logits, labels = predictions
    routine = ClassificationRoutine(4, Fixed(), nn.CrossEntropyLoss(), optim_lenet)
    loaders = [
        DataLoader(TensorDataset(part, labels), batch_size=9) for part in (-logits, logits[:, :1])
    ]
    trainer = Trainer(accelerator="cpu")
    *_, [second] = [trainer.test(routine, loader, verbose=False) for loader in loaders]
    assert second == pytest.approx(results_of(logits[:, :1], labels))


def test_two_processes_measure_what_one_does(predictions):
    # 61 images: Lightning's sampler repeats one of them, which must not count twice.
    options = {"strategy": "ddp_spawn", "devices": 2}
    assert results_of(*predictions, **options) == pytest.approx(results_of(*predictions), abs=1e-6)


def test_the_plain_network_and_mcbn_take_one_path():
    torch.manual_seed(0)
    datamodule = MNISTDataModule(source="sample")
    model = lenet(1, 10)
    routine = ClassificationRoutine(10, model, nn.CrossEntropyLoss(), optim_lenet)
    trainer = Trainer(max_steps=60, enable_model_summary=False, accelerator="cpu")
    trainer.fit(routine, datamodule=datamodule)
    [plain] = trainer.test(routine, datamodule=datamodule, verbose=False)
    routine.model = MCBatchNorm(model, num_estimators=3).fit(datamodule.train_dataloader())
    [mcbn] = trainer.test(routine, datamodule=datamodule, verbose=False)
    assert plain["test/cls/Acc"] > 0.6
    assert mcbn["test/cls/Acc"] > 0.6
    assert mcbn["test/cls/MI"] > 0
    # LeNet's published size, whatever wraps it; a prediction with three estimators costs more.
    assert plain["test/cplx/params"] == mcbn["test/cplx/params"] == 44_470
    assert plain["test/cplx/flops"] == pytest.approx(72.10e6, rel=1e-4)
    assert 72.2e6 < mcbn["test/cplx/flops"] <= 3 * 72.11e6
    logits = trainer.predict(routine, datamodule=datamodule)
    assert logits[0].shape == (3, 128, 10)


@pytest.mark.parametrize("batch_size", [10, 250])
def test_flops_are_those_of_128_images_whatever_the_loader_gives(batch_size):
    images = torch.zeros(250, 5)
    labels = torch.zeros(250, dtype=torch.long)
    routine = ClassificationRoutine(3, nn.Linear(5, 3), nn.CrossEntropyLoss(), optim_lenet)
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch_size)
    [results] = Trainer(accelerator="cpu").test(routine, loader, verbose=False)
    assert results["test/cplx/flops"] == 2 * 128 * 5 * 3


class Points(LightningDataModule):
    """Points of a plane, and on which side of a line they are."""

    def setup(self, stage=None):
        points = torch.randn(64, 2)
        self.data = TensorDataset(points, (points.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=16)

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=64)


@pytest.mark.parametrize("as_value", [False, True])
def test_training_lowers_the_loss_and_logs_it_with_the_validation(as_value):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    recipe = optim_lenet(model, num_steps=80) if as_value else optim_lenet
    routine = ClassificationRoutine(2, model, nn.CrossEntropyLoss(), recipe)
    trainer = Trainer(max_epochs=20, enable_model_summary=False, accelerator="cpu")
    points = Points()
    trainer.fit(routine, datamodule=points)
    logged = trainer.callback_metrics
    x, y = points.data.tensors
    with torch.no_grad():
        probs = model(x).softmax(-1).numpy()
    assert float(logged["val/NLL"]) == pytest.approx(log_loss(y.numpy(), probs), rel=1e-5)
    assert float(logged["val/Acc"]) == accuracy_score(y.numpy(), probs.argmax(1)) > 0.9
    # The mean over the epoch's steps, of which the validation came after the last.
    assert float(logged["val/NLL"]) < float(logged["train/loss"]) < 0.5


def test_the_learning_rate_falls_to_zero_and_stays_there():
    model = nn.Linear(2, 2)
    recipe = optim_lenet(model, num_steps=4)
    rates = []
    for _ in range(6):
        rates.append(recipe["optimizer"].param_groups[0]["lr"])
        recipe["optimizer"].step()
        recipe["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.05, 0.0375, 0.025, 0.0125, 0, 0])


def test_a_second_training_starts_with_a_fresh_optimizer():
    torch.manual_seed(0)
    routine = ClassificationRoutine(2, nn.Linear(2, 2), nn.CrossEntropyLoss(), optim_lenet)
    rates = []
    for _ in range(2):
        trainer = Trainer(max_epochs=1, enable_model_summary=False, accelerator="cpu")
        trainer.fit(routine, datamodule=Points())
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    assert rates[0] == rates[1] > 0.049
