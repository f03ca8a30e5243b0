"""Threads, forked and spawned processes, and memory that stays.

With ``MCBN_LONG=1`` in the environment, 10,000 predictions instead of 2,000.
"""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import fitted, predict, randomize
from torch import Tensor, multiprocessing, nn

from mcbn import MCBatchNorm

NUM_PREDICTIONS = 10_000 if os.environ.get("MCBN_LONG") else 2_000
PATIENCE = 60  # seconds, after which a thread or a process is taken to hang


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(1),
            nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3),
        )
    )  # fmt: skip


def batches(seed: int, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 1, 8, 8, generator=generator) for _ in range(count)]


def wrapped(seed: int = 0, **options: Any) -> MCBatchNorm:
    return MCBatchNorm(network(seed), 4, **options).fit(batches(seed))


@torch.no_grad()
def slow(mc: MCBatchNorm, x: Tensor, seed: int = 0) -> Tensor:
    return torch.stack(predict(network(seed), fitted(mc), x))


def run_threads(*work: Callable[[], None]) -> None:
    """Run each in a thread of its own, all at once; what one raises is raised here."""
    barrier, errors = threading.Barrier(len(work)), []

    def run(function: Callable[[], None]) -> None:
        try:
            barrier.wait(PATIENCE)
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    for error in errors:
        raise error


# --- Threads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["auto", "loop"])
def test_threads_that_share_a_wrapper_get_what_each_would_alone(path: Any) -> None:
    mc = wrapped(path=path, chunk_bytes=4000)
    inputs = [torch.randn(size, 1, 8, 8) for size in (1, 2, 3, 5)]
    expected = [slow(mc, x) for x in inputs]

    def work(index: int) -> None:
        for _ in range(15):
            with torch.no_grad():
                torch.testing.assert_close(mc(inputs[index]), expected[index])

    run_threads(*(lambda index=index: work(index) for index in range(len(inputs))))


def test_threads_with_a_wrapper_each() -> None:
    x = torch.randn(3, 1, 8, 8)
    expected = [slow(wrapped(seed), x, seed) for seed in range(3)]
    models = [network(seed) for seed in range(3)]

    def work(seed: int) -> None:
        for _ in range(5):
            mc = MCBatchNorm(models[seed], 4).fit(batches(seed))
            with torch.no_grad():
                torch.testing.assert_close(mc(x), expected[seed])

    run_threads(*(lambda seed=seed: work(seed) for seed in range(3)))


def test_threads_that_find_the_path_at_once_leave_warnings_as_they_were() -> None:
    state, x = wrapped().state_dict(), torch.randn(3, 1, 8, 8)
    expected = slow(wrapped(), x)
    before = list(warnings.filters)
    for _ in range(10):
        fresh = [MCBatchNorm(network(), 4) for _ in range(4)]
        for mc in fresh:
            mc.load_state_dict(state)

        def work(mc: MCBatchNorm) -> None:
            with torch.no_grad():
                torch.testing.assert_close(mc(x), expected)

        run_threads(*(lambda mc=mc: work(mc) for mc in fresh))
        assert warnings.filters == before


def test_deterministic_in_one_thread_does_not_reach_another() -> None:
    mc, x = wrapped(), torch.randn(3, 1, 8, 8)
    inside, done = threading.Event(), threading.Event()

    def plain() -> None:
        with mc.deterministic():
            inside.set()
            assert done.wait(PATIENCE)
            assert mc(x).shape == (3, 3)

    def sampled() -> None:
        assert inside.wait(PATIENCE)
        try:
            assert mc(x).shape == (4, 3, 3)
        finally:
            done.set()

    run_threads(plain, sampled)


def test_a_wrapper_fitted_aside_and_put_in_place_is_old_or_new() -> None:
    x = torch.randn(3, 1, 8, 8)
    served = {"mc": MCBatchNorm(network(), 4).fit(batches(0))}
    known = [slow(served["mc"], x)]
    known.append(slow(MCBatchNorm(network(), 4).fit(batches(1)), x))
    model, stop = network(), threading.Event()

    def fit() -> None:
        try:
            for index in range(1, 11):
                served["mc"] = MCBatchNorm(model, 4).fit(batches(index % 2))
        finally:
            stop.set()

    def serve() -> None:
        while not stop.is_set():
            with torch.no_grad():
                output = served["mc"](x)
            assert any(torch.allclose(output, each, rtol=1e-4, atol=1e-4) for each in known)

    run_threads(fit, serve, serve)


def test_fit_beside_predictions_does_no_lasting_harm() -> None:
    mc, x, stop = wrapped(), torch.randn(3, 1, 8, 8), threading.Event()

    def fit() -> None:
        try:
            for index in range(10):
                mc.fit(batches(index % 2))
        finally:
            stop.set()

    def serve() -> None:
        while not stop.is_set():
            with torch.no_grad():
                assert mc(x).isfinite().all()

    run_threads(fit, serve)
    with torch.no_grad():
        torch.testing.assert_close(mc(x), slow(mc, x))
    torch.testing.assert_close(fitted(mc), fitted(MCBatchNorm(network(), 4).fit(batches(1))))


# --- Processes ---------------------------------------------------------------------------------


@torch.no_grad()
def predict_in_child(mc: MCBatchNorm, x: Tensor, results: Any) -> None:
    torch.set_num_threads(1)
    results.put(mc(x).tolist())
    results.put(mc.fit(batches(1))(x).tolist())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_process_predicts_and_fits(start: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of OpenMP do not outlive a fork, and some builds wait
    context = multiprocessing.get_context(start)
    mc, x = wrapped(), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = [mc(x), MCBatchNorm(network(), 4).fit(batches(1))(x)]
    results = context.Queue()
    children = [
        context.Process(target=predict_in_child, args=(mc, x, results), daemon=True)
        for _ in range(2)
    ]
    try:
        for child in children:
            child.start()
        outputs = [torch.tensor(results.get(timeout=PATIENCE)) for _ in range(4)]
        for child in children:
            child.join(PATIENCE)
            assert child.exitcode == 0
    finally:
        for child in children:
            child.kill()
        torch.set_num_threads(threads)
    outputs.sort(key=lambda output: (output - expected[0]).abs().max().item())
    for output, wanted in zip(outputs, [*expected[:1] * 2, *expected[1:] * 2], strict=True):
        torch.testing.assert_close(output, wanted)


def test_a_trainer_ends_the_process_group_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcbn import RegressionRoutine, Trainer

    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        routine = RegressionRoutine(nn.Linear(2, 1), nn.MSELoss(), torch.optim.Adam)
        trainer = Trainer(accelerator="cpu")
        for callback in trainer.callbacks:
            callback.setup(trainer, routine, "test")
        assert torch.distributed.is_initialized()
        for each in at_exit:
            each()
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# --- Memory ------------------------------------------------------------------------------------


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc"
)


@needs_proc
@pytest.mark.parametrize("path", ["auto", "loop"])
@torch.no_grad()
def test_predictions_leave_nothing_behind(path: Any) -> None:
    mc = wrapped(path=path, chunk_bytes=4000)
    x = torch.randn(2, 1, 8, 8)

    def rounds(count: int) -> tuple[int, int]:
        for _ in range(count):
            mc(x)
        gc.collect()
        return len(gc.get_objects()), resident_bytes()

    rounds(NUM_PREDICTIONS // 4)  # the allocator takes some hundred to settle
    objects, size = rounds(10)
    more_objects, more_size = rounds(NUM_PREDICTIONS // 4)
    assert more_objects - objects < 20
    # A page every second prediction would be 1 MiB in the short run, and 5 in the long one.
    assert more_size - size < max(NUM_PREDICTIONS // 4 * 1024, 1 << 19)


@needs_proc
def test_fits_leave_nothing_behind() -> None:
    mc, data = wrapped(), batches(2)

    def rounds(count: int) -> tuple[int, int]:
        for index in range(count):
            mc.fit(data)
            mc.resample(data[:1], [index % 4])
            MCBatchNorm(mc.model, 4, convert=False).load_state_dict(mc.state_dict())
        gc.collect()
        return len(gc.get_objects()), resident_bytes()

    rounds(50)
    objects, size = rounds(10)
    more_objects, more_size = rounds(200)
    assert more_objects - objects < 20
    assert more_size - size < 1 << 20


def test_no_reference_cycle_keeps_a_tensor() -> None:
    mc, x = wrapped(), torch.randn(2, 1, 8, 8)
    mc(x)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(5):
            mc(x)
        gc.collect()
        # torch.vmap leaves some functions that refer to themselves.
        assert {type(each).__name__ for each in gc.garbage} <= _OF_VMAP
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


_OF_VMAP = {"tuple", "cell", "function", "GenericAlias"}
