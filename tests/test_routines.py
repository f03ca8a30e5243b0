import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mcbn import (
    ClassificationRoutine,
    MCBatchNorm,
    MNISTDataModule,
    RegressionRoutine,
    Trainer,
    lenet,
    optim_lenet,
)

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


@pytest.fixture(scope="module")
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


# Evaluates in two processes, with a loader in all the forms that Lightning takes. Of five examples,
# Lightning's sampler repeats the first, the only one that is wrong.
RUN = """
import json, sys
import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler, DataLoader, DistributedSampler, SequentialSampler, Subset, TensorDataset,
    WeightedRandomSampler,
)
from mcbn import ClassificationRoutine, RegressionRoutine, Trainer
from mcbn.training.routines import _Routine

class Estimators(nn.Module):
    def forward(self, x):
        return torch.stack([x, x])

class First(nn.Module):
    def forward(self, x):
        return x.movedim(1, 0)

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
    def forward(self, x):
        return x * self.weight

class Own:
    def __init__(self, sampler, batch_size, drop_last):
        self.batch_size, self.drop_last = batch_size, drop_last
        self.batches = BatchSampler(sampler, batch_size, drop_last)
    def __iter__(self):
        return iter(self.batches)
    def __len__(self):
        return len(self.batches)

class Bucket(BatchSampler):
    pass

class Data(pl.LightningDataModule):
    def __init__(self, make):
        super().__init__()
        self.make = make
    def train_dataloader(self):
        return loader()
    def test_dataloader(self):
        return self.make()
    val_dataloader = predict_dataloader = test_dataloader

class Seen(pl.Callback):
    def on_predict_batch_end(self, trainer, module, outputs, batch, *_):
        with open(f"{sys.argv[1]}/seen", "a") as file:
            file.write("".join(f"{index} " for index in batch[2].tolist()))

labels = torch.zeros(5, dtype=torch.long)
logits = torch.tensor([[0.0, 1.0]] + 4 * [[1.0, 0.0]])
data = TensorDataset(logits, labels)
targets = TensorDataset(torch.tensor([[1.0]] + 4 * [[0.0]]), torch.zeros(5, 1))

def loader(data=data, **options):
    return DataLoader(data, **({"batch_size": 2} | options))

def in_batches(kind):
    return loader(batch_size=1, batch_sampler=kind(SequentialSampler(data), 2, False))

forms = {
    "a loader": loader,
    "a list": lambda: [loader()],
    "a tuple": lambda: (loader(),),
    "a dict": lambda: {"a": [loader()]},
    "a combination": lambda: CombinedLoader([loader()], "sequential"),
    "a batch sampler": lambda: in_batches(Bucket),
    "another batch sampler": lambda: in_batches(Own),
    "a sampler": lambda: loader(sampler=WeightedRandomSampler([1.0] * 5, 5, replacement=False)),
}
found = {}

def trainer(**options):
    return Trainer(
        accelerator="cpu", strategy="ddp_fork", devices=2, enable_model_summary=False, **options
    )

def classifier(model):
    return ClassificationRoutine(2, model, nn.CrossEntropyLoss(), still)

def still(model):
    return torch.optim.SGD(model.parameters(), lr=0.0)

plain = classifier(nn.Identity())
for name, make in forms.items():
    found[name] = trainer().test(plain, dataloaders=make(), verbose=False)
found["a data module"] = trainer().test(plain, datamodule=Data(lambda: [loader()]), verbose=False)
found["its own shares"] = trainer().test(
    plain, datamodule=Data(lambda: [loader(sampler=DistributedSampler(data))]), verbose=False
)
found["validate"] = trainer().validate(plain, [loader()], verbose=False)
fitted = trainer(max_epochs=1)
fitted.fit(classifier(Mean()), datamodule=Data(lambda: [loader()]))
found["fit"] = [{k: float(v) for k, v in fitted.callback_metrics.items()}]
three = loader(Subset(data, [0, 1, 2]))
found["two loaders"] = trainer().test(plain, [loader(), three], verbose=False)
found["one example"] = trainer().test(
    classifier(Estimators()), [loader(Subset(data, [0]))], verbose=False
)
given, of_given = torch.load(f"{sys.argv[1]}/given.pt")
images, rows = TensorDataset(given, of_given), TensorDataset(given, given[:, 0])
routine = ClassificationRoutine(4, First(), nn.CrossEntropyLoss(), still)
found["61 images"] = trainer().test(routine, [loader(images)], verbose=False)
routine = RegressionRoutine(First(), nn.MSELoss(), still)
found["61 rows"] = trainer().test(routine, [loader(rows)], verbose=False)
regression = RegressionRoutine(Estimators(), nn.MSELoss(), torch.optim.Adam)
found["regression"] = trainer().test(regression, [loader(targets)], verbose=False)
found["regression of one"] = trainer().test(regression, loader(Subset(targets, [0])), verbose=False)
numbered = TensorDataset(logits, labels, torch.arange(5))
trainer(callbacks=[Seen()]).predict(plain, [loader(numbered)], return_predictions=False)
with open(f"{sys.argv[1]}/found", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory, predictions):
    """What is found there, by the form in which a loader was given."""
    folder = tmp_path_factory.mktemp("two")
    torch.save(predictions, folder / "given.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", RUN, folder],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    assert "was called before the" not in run.stderr
    return json.loads((folder / "found").read_text()) | {"seen": (folder / "seen").read_text()}


@pytest.mark.parametrize(
    "form",
    [
        *("a loader", "a list", "a tuple", "a dict", "a combination", "a batch sampler"),
        *("another batch sampler", "a sampler", "a data module", "its own shares"),
    ],
)
def test_no_example_counts_twice_in_whatever_form_a_loader_is_given(in_two_processes, form):
    [results] = in_two_processes[form]
    assert results["test/cls/Acc"] == pytest.approx(4 / 5)
    nll = (math.log1p(math.e) + 4 * math.log1p(math.exp(-1))) / 5
    assert results["test/cls/NLL"] == pytest.approx(nll)


@pytest.mark.parametrize("run", ["validate", "fit"])
def test_no_example_counts_twice_in_a_validation(in_two_processes, run):
    [results] = in_two_processes[run]
    assert results["val/Acc"] == pytest.approx(4 / 5)


def test_two_processes_measure_what_one_does(in_two_processes, predictions):
    # 61 images: Lightning's sampler repeats one of them, which must not count twice.
    [results] = in_two_processes["61 images"]
    assert results == pytest.approx(results_of(*predictions), abs=1e-6)
    logits = predictions[0]
    routine = RegressionRoutine(Fixed(), nn.MSELoss(), torch.optim.Adam)
    loader = DataLoader(TensorDataset(logits, logits[:, 0]), batch_size=7)
    [alone] = Trainer(accelerator="cpu").test(routine, loader, verbose=False)
    [results] = in_two_processes["61 rows"]
    assert results == pytest.approx(alone, rel=1e-5)


def test_two_processes_tell_two_loaders_apart(in_two_processes):
    first, second = in_two_processes["two loaders"]
    assert first["test/cls/Acc/dataloader_idx_0"] == pytest.approx(4 / 5)
    assert second["test/cls/Acc/dataloader_idx_1"] == pytest.approx(2 / 3)


def test_a_process_without_an_example_of_its_own_waits_for_the_other(in_two_processes):
    [results] = in_two_processes["one example"]
    assert results["test/cls/Acc"] == 0
    assert results["test/cls/Disagreement"] == 0
    assert results["test/sc/AURC"] == 1
    [results] = in_two_processes["regression of one"]
    assert results["test/reg/RMSE"] == 1


def test_no_row_of_a_regression_counts_twice(in_two_processes):
    [results] = in_two_processes["regression"]
    assert results["test/reg/RMSE"] == pytest.approx(math.sqrt(1 / 5))
    assert results["test/reg/PLL"] == pytest.approx(-math.log(2 * math.pi) / 2 - 1 / 10)


def test_a_prediction_sees_each_example_once(in_two_processes):
    assert sorted(in_two_processes["seen"].split()) == list("01234")


def test_each_loader_has_results_of_its_own(predictions):
    logits, labels = predictions
    sets = (logits, labels), (-logits[:20, :1], labels[:20]), (logits[9:], labels[9:])
    loaders = [DataLoader(TensorDataset(*part), batch_size=7) for part in sets]
    routine = ClassificationRoutine(4, Fixed(), nn.CrossEntropyLoss(), optim_lenet)
    for given in (loaders, {"a": loaders[0], "b": tuple(loaders[1:])}):
        found = Trainer(accelerator="cpu").test(routine, dataloaders=given, verbose=False)
        for index, (results, part) in enumerate(zip(found, sets, strict=True)):
            alone = results_of(*part)
            assert results == pytest.approx(
                {f"{key}/dataloader_idx_{index}": value for key, value in alone.items()}
            )


def test_each_loader_has_a_validation_of_its_own():
    torch.manual_seed(0)
    x = torch.randn(30, 1)
    loaders = [DataLoader(TensorDataset(x, x + shift), batch_size=8) for shift in (1.0, 2.0)]
    routine = RegressionRoutine(nn.Identity(), nn.MSELoss(), torch.optim.Adam)
    first, second = Trainer(accelerator="cpu").validate(routine, loaders, verbose=False)
    assert first == pytest.approx({"val/RMSE/dataloader_idx_0": 1.0})
    assert second == pytest.approx({"val/RMSE/dataloader_idx_1": 2.0})
    first, second = Trainer(accelerator="cpu").test(routine, loaders, verbose=False)
    assert first["test/reg/RMSE/dataloader_idx_0"] == pytest.approx(1.0)
    assert second["test/reg/RMSE/dataloader_idx_1"] == pytest.approx(2.0)


def test_a_loader_without_a_batch_has_no_results(predictions):
    logits, labels = predictions
    loaders = [
        DataLoader(TensorDataset(logits[:size], labels[:size]), batch_size=7) for size in (0, 61)
    ]
    routine = ClassificationRoutine(4, Fixed(), nn.CrossEntropyLoss(), optim_lenet)
    with pytest.warns(UserWarning, match="across ranks is zero"):
        found = Trainer(accelerator="cpu").test(routine, loaders, verbose=False)
    assert {key[-1] for results in found for key in results} == {"1"}
    accuracy = found[-1]["test/cls/Acc/dataloader_idx_1"]
    assert accuracy == pytest.approx(results_of(logits, labels)["test/cls/Acc"])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own use of torch
@pytest.mark.parametrize("mode", ["max_size", "min_size"])
def test_loaders_side_by_side_are_refused(predictions, mode):
    logits, labels = predictions
    loaders = [DataLoader(TensorDataset(logits, labels), batch_size=7) for _ in range(2)]
    routine = ClassificationRoutine(4, Fixed(), nn.CrossEntropyLoss(), optim_lenet)
    with pytest.raises(TypeError, match=r"targets of a batch are a list, .* loaders in a list\."):
        Trainer(accelerator="cpu").test(routine, CombinedLoader(loaders, mode), verbose=False)


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


class Stubborn(nn.Module):
    """Cannot be vectorized, as it looks at a value; all its operations are behind a batch norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.norm(x)
        return self.linear(x if x.sum().item() < 1e9 else -x)


class InPlace(nn.Linear):
    """Writes into its input."""

    def forward(self, x):
        return super().forward(x.mul_(2))


def shallow():
    return nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))


def deep():
    return nn.Sequential(
        nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5), nn.BatchNorm1d(5),
        nn.Dropout(), nn.Linear(5, 3),
    )  # fmt: skip


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("path", ["auto", "loop"])
@pytest.mark.parametrize("network", [Stubborn, shallow, deep])
def test_the_first_test_of_a_wrapper_counts_the_flops_that_all_others_count(network, path, loaded):
    torch.manual_seed(0)
    mc = MCBatchNorm(network(), 4, mc_batch_size=8, path=path).fit(list(torch.randn(4, 8, 5)))
    if loaded:
        state = mc.state_dict()
        mc = MCBatchNorm(network(), 4, mc_batch_size=8, path=path)
        mc.load_state_dict(state)
    routine = ClassificationRoutine(3, mc, nn.CrossEntropyLoss(), optim_lenet)
    loader = DataLoader(TensorDataset(torch.randn(9, 5), torch.arange(9) % 3), batch_size=9)
    counts = [
        Trainer(accelerator="cpu").test(routine, loader, verbose=False)[0]["test/cplx/flops"]
        for _ in range(3)
    ]
    assert counts[0] == counts[1] == counts[2]
    if network is not deep:  # there the estimators may share what is before the first batch norm
        assert counts[0] == 4 * 2 * 128 * 5 * 3


def test_counting_flops_leaves_the_images_alone():
    x, model = torch.randn(9, 5), InPlace(5, 3)
    routine = ClassificationRoutine(3, model, nn.CrossEntropyLoss(), optim_lenet)
    labels = nn.functional.linear(2 * x, model.weight, model.bias).argmax(1)
    loader = DataLoader(TensorDataset(x, labels), batch_size=9)
    [results] = Trainer(accelerator="cpu").test(routine, loader, verbose=False)
    assert results["test/cls/Acc"] == 1
    assert results["test/cplx/flops"] == 2 * 128 * 5 * 3


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", "bfloat16"), ("16-true", "float16")]
)
def test_half_precision_measures_what_single_precision_does(predictions, precision, dtype):
    logits, labels = predictions
    logits = logits.to(getattr(torch, dtype)).float()  # so that nothing is lost when it is halved
    half = results_of(logits, labels, precision=precision)
    assert half == pytest.approx(results_of(logits, labels), abs=1e-6)


def test_the_mean_loss_of_a_training_in_half_precision_is_a_mean():
    given = [1.0, 3.0] * 400
    routine = ClassificationRoutine(
        2, nn.Linear(1, 2), lambda logits, _: 0 * logits.mean() + given.pop(), optim_lenet
    )
    data = TensorDataset(torch.ones(800, 1), torch.zeros(800, dtype=torch.long))
    trainer = Trainer(
        max_epochs=1, precision="bf16-true", accelerator="cpu", enable_model_summary=False
    )
    trainer.fit(routine, DataLoader(data))
    assert trainer.callback_metrics["train/loss"] == 2


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed", "64-true"])
def test_a_wrapper_is_tested_and_predicts_in_other_precisions(precision):
    torch.manual_seed(0)
    mc = MCBatchNorm(deep(), 4, mc_batch_size=8).fit(list(torch.randn(4, 8, 5)))
    routine = ClassificationRoutine(3, mc, nn.CrossEntropyLoss(), optim_lenet)
    x = torch.randn(30, 5)
    labels = mc.eval()(x).softmax(-1).mean(0).argmax(1)
    loader = DataLoader(TensorDataset(x, labels), batch_size=8)
    trainer = Trainer(accelerator="cpu", precision=precision)
    [results] = trainer.test(routine, loader, verbose=False)
    assert results["test/cls/Acc"] >= 0.9
    logits = torch.cat(trainer.predict(routine, loader), dim=1)
    assert logits.shape == (4, 30, 3)
    dtypes = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    assert logits.dtype == dtypes[precision.split("-")[0]]


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
