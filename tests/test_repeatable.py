"""The same seed gives the same bits: in other processes, with other workers, budgets and ranks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import in_two_processes
from reference import fitted, randomize
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from mcbn import MCBatchNorm, lenet, metrics
from mcbn.data.images import InMemoryImages, ready_batch
from mcbn.predictive import mean_probs

# Trains, fits, tests and prints all numbers, to the last bit, and the tables as they are shown.
RUN = """
import hashlib, json, sys
import torch
from mcbn import ClassificationRoutine, MCBatchNorm, MNISTDataModule, Trainer, lenet, optim_lenet
from mcbn.results import ResultTables

torch.manual_seed(0)
digits = MNISTDataModule(source="sample", batch_size=500, num_workers=int(sys.argv[1]))
routine = ClassificationRoutine(10, lenet(1, 10), torch.nn.CrossEntropyLoss(), optim_lenet)
# Two epochs: workers that persist go another way in the second.
Trainer(
    max_epochs=2, limit_train_batches=3, accelerator="cpu", enable_model_summary=False
).fit(routine, digits)
mc = MCBatchNorm(routine.model, num_estimators=4, mc_batch_size=32)
routine.model = mc.fit(digits.train_dataloader()).eval()
results = Trainer(accelerator="cpu").test(routine, digits.test_dataloader(), verbose=False)
images, _ = next(iter(digits.test_dataloader()))
tensors = mc.state_dict() | {"prediction": mc(images).detach()}
bits = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}
with open(sys.argv[2], "w") as file:
    json.dump([bits, [list(map(float.hex, r.values())) for r in results]], file)
    file.write(str(ResultTables(results)))
"""


def test_a_whole_run_is_the_same_to_the_bit_in_another_process(tmp_path: Path) -> None:
    written = []
    for number, workers in enumerate((0, 2)):
        file = tmp_path / str(number)
        environment = os.environ | {"PYTHONHASHSEED": str(number), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RUN, str(workers), str(file)]
        subprocess.run(command, check=True, env=environment, timeout=300)
        written.append(file.read_text())
    assert "prediction" in written[0]
    assert "Calibration" in written[0]
    assert written[0] == written[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_statistics_of_cropped_images_do_not_depend_on_the_workers(num_workers: int) -> None:
    torch.manual_seed(0)
    model = randomize(lenet(1, 10))
    random_images = torch.randint(256, (200, 28, 28), dtype=torch.uint8)
    dataset = InMemoryImages(random_images, torch.zeros(200).long(), 0.5, 0.5, padding=4)
    loaders = [
        DataLoader(dataset, num_workers=workers, collate_fn=ready_batch)
        for workers in (0, num_workers)
    ]
    mc, other = (
        MCBatchNorm(model, 4, mc_batch_size=16).fit(
            loader, generator=torch.Generator().manual_seed(1)
        )
        for loader in loaders
    )
    for key, value in mc.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomize(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3),
            nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(1), nn.Linear(6, 3),
        )
    )  # fmt: skip


@pytest.mark.parametrize("path", ["auto", "loop"])
@torch.no_grad()
def test_a_prediction_is_the_same_to_the_bit_each_time(path: Any) -> None:
    batches = list(torch.randn(5, 6, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    first, second = (MCBatchNorm(small(), 5, path=path).fit(batches) for _ in range(2))
    x = torch.randn(7, 3, 8, 8)
    assert torch.equal(first(x), first(x))
    assert torch.equal(first(x), second(x))


@torch.no_grad()
def test_budgets_and_paths_change_the_rounding_only() -> None:
    batches = list(torch.randn(5, 6, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(7, 3, 8, 8)
    outputs: list[Tensor] = []
    for path in ("auto", "loop"):
        for budget in (1, 10_000, 30_000, None):
            mc = MCBatchNorm(small(), 5, path=path, chunk_bytes=budget).fit(batches)
            outputs.append(mc(x))
    scale = outputs[0].abs().max()
    for output in outputs:
        assert (output - outputs[0]).abs().max() < 1e-6 * scale


def rng_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_fit_with_a_generator_leaves_the_global_states(num_workers: int) -> None:
    dataset = InMemoryImages(
        torch.zeros(40, 28, 28, dtype=torch.uint8), torch.zeros(40).long(), 0.5, 0.5, padding=4
    )
    loader = DataLoader(dataset, num_workers=num_workers, collate_fn=ready_batch, shuffle=True)
    mc = MCBatchNorm(lenet(1, 10), 3, mc_batch_size=8)
    before = rng_states()
    mc.fit(loader, generator=torch.Generator().manual_seed(0))
    mc.resample(loader, [1], generator=torch.Generator().manual_seed(1))
    mc.eval()(torch.zeros(2, 1, 28, 28))
    assert rng_states() == before


def dealt_out(rank: int, num_processes: int = 2) -> dict[str, float]:
    """The metrics of a fitted network on 240 examples, shared out to some processes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 3, 8, 8, generator=generator)
    y = torch.randint(3, (240,), generator=generator)
    data = TensorDataset(x, y)
    mc = MCBatchNorm(small(), 4, mc_batch_size=16)
    mc.fit(DataLoader(data), generator=torch.Generator().manual_seed(7))
    found = {
        "Brier": metrics.BrierScore(),
        "NLL": metrics.NLL(),
        "ECE": metrics.CalibrationError(),
        "aECE": metrics.AdaptiveCalibrationError(),
        "AURC": metrics.AURC(),
    }
    sampler = DistributedSampler(data, num_processes, rank, shuffle=False)
    with torch.no_grad():
        for images, labels in DataLoader(data, 30, sampler=sampler):
            for metric in found.values():
                metric.update(mean_probs(mc(images)), labels)
    values = {name: metric.compute().item() for name, metric in found.items()}
    values["statistics"] = sum(mean.sum().item() for mean, _ in fitted(mc)[2]["1"])
    return values


def test_two_processes_find_the_metrics_of_one(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = dealt_out(0, num_processes=1)
    torch.set_num_threads(threads)
    for together in in_two_processes(dealt_out, tmp_path):
        assert together == pytest.approx(alone, abs=1e-6, rel=1e-6)
        assert together["statistics"] == alone["statistics"]
