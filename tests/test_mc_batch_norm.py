"""The wrapper: drawing, modes, gradients, state, and what it says to wrong use."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import in_two_processes
from reference import fitted, predict, randomize, statistics_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mcbn import MCBatchNorm, lenet
from mcbn.data import batches as drawing


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomize(
        nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8),
            nn.BatchNorm1d(8), nn.Linear(8, 3),
        )
    )  # fmt: skip


def batches(count: int = 4, size: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 6, generator=generator) for _ in range(count)]


def fitted_small(**options: Any) -> MCBatchNorm:
    return MCBatchNorm(small(), 4, **options).fit(batches())


class Recorded(Dataset[tuple[Tensor, int]]):
    """Says which examples were asked for."""

    def __init__(self, size: int) -> None:
        self.x = torch.randn(size, 6, generator=torch.Generator().manual_seed(2))
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        return self.x[index], index


# --- Drawing -----------------------------------------------------------------------------------


def test_a_loader_gives_independent_draws_without_replacement_inside_each() -> None:
    data = Recorded(20)
    mc = MCBatchNorm(small(), 50, mc_batch_size=8).fit(DataLoader(data, batch_size=3))
    draws = torch.tensor(data.asked).view(50, 8)
    assert all(len(set(draw.tolist())) == 8 for draw in draws)
    # Without replacement from one draw to the next, 20 examples would be used up after 2 draws.
    counts = torch.bincount(draws.flatten(), minlength=20)
    assert counts.min() < counts.max()
    assert (counts > 0).all()
    for draw, held in zip(draws[:3], fitted(mc), strict=False):
        expected = statistics_of(small(), (data.x[draw],))
        for name, calls in expected.items():
            torch.testing.assert_close(held[name], calls)


def test_the_sampler_does_not_matter() -> None:
    data = TensorDataset(torch.arange(60.0).repeat_interleave(6).view(60, 6), torch.arange(60))
    norm = nn.BatchNorm1d(6)
    mc = MCBatchNorm(norm, 200, mc_batch_size=6).fit(DataLoader(data, batch_size=6, shuffle=False))
    means = mc.model.mc_mean[:, 0, 0]
    # Batches in the sampler's order would have means 2.5, 8.5, …; these are means of random sixes.
    assert abs(means.mean() - 29.5) < 2
    standard_error = 60 / 12**0.5 / 6**0.5 * ((60 - 6) / 59) ** 0.5
    assert abs(means.std() - standard_error) < 1


def test_seeded_by_the_generator_and_leaves_the_global_state() -> None:
    class Noisy(Dataset[tuple[Tensor]]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> tuple[Tensor]:
            return (torch.randn(6),)

    state = torch.get_rng_state()
    first, second, other = (
        MCBatchNorm(small(), 4, mc_batch_size=8) for _ in range(3)
    )  # fmt: skip
    torch.set_rng_state(state)
    first.fit(DataLoader(Noisy()), generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second.fit(DataLoader(Noisy()), generator=torch.Generator().manual_seed(3))
    other.fit(DataLoader(Noisy()), generator=torch.Generator().manual_seed(4))
    x = batches()[0]
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), other(x))


def test_workers_draw_the_same() -> None:
    data = TensorDataset(torch.randn(40, 6))
    outputs = [
        MCBatchNorm(small(), 4, mc_batch_size=8).fit(
            DataLoader(data, num_workers=workers), generator=torch.Generator().manual_seed(0)
        )(batches()[0])
        for workers in (0, 2)
    ]
    assert torch.equal(*outputs)


@dataclasses.dataclass
class Record:
    x: Tensor
    label: Tensor


def _collate(items: list[tuple[Tensor, int]]) -> Record:
    return Record(torch.stack([x for x, _ in items]), torch.tensor([i for _, i in items]))


@pytest.mark.parametrize(
    ("batch", "input_fn"),
    [
        (lambda x: x, None),
        (lambda x: (x, torch.zeros(9)), None),
        (lambda x: [x, torch.zeros(9), "meta"], None),
        (lambda x: {"x": x, "label": torch.zeros(9)}, None),
        (lambda x: Record(x, torch.zeros(9)), None),
        (lambda x: (torch.zeros(9), x), lambda batch: batch[1]),
        (lambda x: {"label": torch.zeros(9), "x": x}, lambda batch: {"input": batch["x"]}),
        (lambda x: Record(x, torch.zeros(9)), lambda batch: (batch.x,)),
    ],
)
def test_batches_of_every_kind(batch: Any, input_fn: Any) -> None:
    mc = MCBatchNorm(small(), 4).fit([batch(x) for x in batches()], input_fn=input_fn)
    assert torch.equal(mc(batches()[0]), fitted_small()(batches()[0]))


def test_the_loaders_collate_fn_is_used() -> None:
    data = Recorded(20)
    mc = MCBatchNorm(small(), 3, mc_batch_size=8).fit(DataLoader(data, collate_fn=_collate))
    draws = torch.tensor(data.asked).view(3, 8)
    expected = statistics_of(small(), (data.x[draws[0]],))
    torch.testing.assert_close(fitted(mc)[0]["1"], expected["1"])


def test_a_dataset_that_makes_whole_batches() -> None:
    class Batched(Dataset[Tensor]):
        x = torch.randn(20, 6)

        def __len__(self) -> int:
            return 20

        def __getitem__(self, indices: list[int]) -> Tensor:
            return self.x[indices]

    loader = DataLoader(Batched(), batch_size=None, sampler=[[0, 1, 2], [3, 4]])
    mc = MCBatchNorm(small(), 3, mc_batch_size=8).fit(loader)
    assert mc(batches()[0]).shape == (3, 9, 3)


def test_an_iterable_dataset_gives_its_batches_in_order() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from torch.cat(batches())

    mc = MCBatchNorm(small(), 4).fit(DataLoader(Stream(), batch_size=9))
    assert torch.equal(mc(batches()[0]), fitted_small()(batches()[0]))


def test_correction_1_reaches_the_deeper_layers_as_other_libraries_have_it() -> None:
    mc = fitted_small(correction=1)
    for batch, held in zip(batches(), fitted(mc), strict=True):
        for name, calls in statistics_of(small(), (batch,), correction=1).items():
            torch.testing.assert_close(held[name], calls)


def test_momentum_blends_into_the_trained_statistics() -> None:
    model = small()
    replaced, blended = (MCBatchNorm(model, 4, momentum=m).fit(batches()) for m in (1.0, 0.1))
    for name in ("1", "5"):
        trained = model.get_submodule(name)
        new, mixed = replaced.model.get_submodule(name), blended.model.get_submodule(name)
        for old, drawn, held in (
            (trained.running_mean, new.mc_mean, mixed.mc_mean),
            (trained.running_var, new.mc_var, mixed.mc_var),
        ):
            torch.testing.assert_close(held, 0.9 * old + 0.1 * drawn)
    spread = [mc.model.get_submodule("1").mc_mean.std(0) for mc in (replaced, blended)]
    torch.testing.assert_close(spread[1], 0.1 * spread[0])


def test_everything_but_batch_norm_stays_in_evaluation_mode_and_modes_come_back() -> None:
    model = small().train()
    model[3].eval()
    seen = []
    mc = MCBatchNorm(model, 4)
    mc.model[3].register_forward_hook(lambda m, args, y: seen.append(torch.equal(args[0], y)))
    modes = {m: m.training for m in mc.modules()}
    mc.fit(batches())
    assert seen
    assert all(seen)
    assert {m: m.training for m in mc.modules()} == modes


def test_resample_replaces_some_estimators() -> None:
    mc = fitted_small()
    before = fitted(mc)
    new = [torch.randn(9, 6), torch.randn(9, 6)]
    mc.resample(new, [2, 0])
    after = fitted(mc)
    for kept in (1, 3):
        torch.testing.assert_close(after[kept]["1"], before[kept]["1"])
    for index, batch in ((2, new[0]), (0, new[1])):
        expected = statistics_of(small(), (batch,))
        torch.testing.assert_close(after[index]["1"], expected["1"])
        torch.testing.assert_close(after[index]["5"], expected["5"])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_fit_that_takes_long_shows_a_bar_on_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, seconds = io.StringIO(), itertools.count(step=3)
    written.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(drawing, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    assert [*drawing.with_progress("Working", iter("abcde"), 5)] == [*"abcde"]
    assert ("Working" in written.getvalue()) == terminal


# --- Predicting --------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = small()
    before = copy.deepcopy(model)
    mc = MCBatchNorm(model, 4).fit(batches())
    mc(batches()[0]).sum().backward()
    assert all(type(m) is type(n) for m, n in zip(model.modules(), before.modules(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before.state_dict()[key])


def test_deterministic_is_the_plain_network() -> None:
    mc, x = fitted_small(), torch.randn(5, 6)
    with mc.deterministic():
        assert torch.equal(mc(x), small()(x))
    assert mc(x).shape == (4, 5, 3)


def test_training_mode_is_the_plain_network_with_its_running_statistics() -> None:
    model, mc = small().train(), fitted_small().train()
    model[3].eval()
    mc.model[3].eval()
    x = torch.randn(5, 6)
    ours, plain = mc(x), model(x)
    assert torch.equal(ours, plain)
    ours.sum().backward()
    plain.sum().backward()
    for a, b in zip(mc.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(mc.model[1].running_mean, model[1].running_mean)


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch() -> None:
    mc, x = fitted_small(), torch.randn(7, 6)
    torch.testing.assert_close(mc(x)[:, 2:3], mc(x[2:3]))
    order = torch.randperm(7)
    torch.testing.assert_close(mc(x)[:, order], mc(x[order]))


def test_two_wrappers_are_independent() -> None:
    first = fitted_small()
    x = torch.randn(5, 6)
    before = first(x)
    second = MCBatchNorm(small(), 2).fit([b + 3 for b in batches()])
    second(x)
    assert torch.equal(first(x), before)


def test_memory_does_not_grow_with_the_number_of_estimators() -> None:
    """The largest tensor ever made stays within the budget, but for the output."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 1, 3))
    data = [torch.randn(4, 1, 10, 10) for _ in range(64)]
    x = torch.randn(2, 1, 10, 10)
    one = 2 * 4 * 8 * 8 * 4  # bytes of the normalized activation
    largest = []

    class Looks(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            largest.append(torch.func.debug_unwrap(y).numel())
            return y

    mc = MCBatchNorm(nn.Sequential(*model[:3], Looks(), model[3]), 64, chunk_bytes=8 * one)
    mc.fit(data).eval()
    largest.clear()
    with torch.no_grad():
        mc(x)
    assert len(largest) == 8
    assert max(largest) <= 8 * one / 4


# --- State -------------------------------------------------------------------------------------


def test_a_fitted_state_loads_strictly_into_a_fresh_wrapper(tmp_path: Path) -> None:
    mc, x = fitted_small(), torch.randn(5, 6)
    torch.save(mc.state_dict(), tmp_path / "mc.pt")
    fresh = MCBatchNorm(small(), 4).eval()
    fresh.load_state_dict(torch.load(tmp_path / "mc.pt", weights_only=True))
    assert torch.equal(fresh(x), mc(x))
    with fresh.deterministic():
        assert torch.equal(fresh(x), small()(x))


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    mc, x = fitted_small(), torch.randn(5, 6)
    save_file(mc.state_dict(), tmp_path / "mc.safetensors")
    fresh = MCBatchNorm(small(), 4).eval()
    fresh.load_state_dict(load_file(tmp_path / "mc.safetensors"))
    assert torch.equal(fresh(x), mc(x))


def saved_and_loaded(mc: MCBatchNorm) -> MCBatchNorm:
    file = io.BytesIO()
    torch.save(mc, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda mc: pickle.loads(pickle.dumps(mc)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_keep_the_estimators(copied: Any) -> None:
    mc, x = fitted_small(), torch.randn(5, 6)
    other = copied(mc)
    assert torch.equal(other(x), mc(x))
    assert other(x).std(0).min() > 0
    mc.fit([b * 2 for b in batches()])
    assert not torch.equal(other(x), mc(x))


def test_a_plain_checkpoint_loads_and_takes_the_statistics_away() -> None:
    mc = fitted_small()
    torch.manual_seed(5)
    other = randomize(small())
    mc.model.load_state_dict(other.state_dict())
    assert not mc.fitted
    with mc.deterministic():
        x = torch.randn(5, 6)
        assert torch.equal(mc(x), other(x))
    unfitted = MCBatchNorm(small(), 4)
    assert set(unfitted.model.state_dict()) == set(small().state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    mc = fitted_small().to(dtype)
    x = torch.randn(5, 6, dtype=dtype)
    output = mc(x)
    assert output.dtype == dtype
    draws = fitted(mc)
    assert draws[0]["1"][0][0].dtype == torch.promote_types(dtype, torch.float32)
    expected = torch.stack(predict(small().to(dtype), draws, x))
    tolerance = 4 * torch.finfo(dtype).eps ** 0.5 if dtype != torch.float64 else 1e-10
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)


def test_compile() -> None:
    pytest.importorskip(
        "torch", "2.14", reason="an older torch.compile cannot follow a context variable"
    )
    mc, x = fitted_small(), torch.randn(5, 6)
    compiled = torch.compile(mc, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mc(x))


@pytest.mark.parametrize("network", ["lenet", "resnet"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*pytree.*:UserWarning")
def test_export_and_onnx(network: str, tmp_path: Path) -> None:
    import onnxruntime
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model = lenet(1, 10) if network == "lenet" else ResNet(BasicBlock, [1, 1, 1, 1], 10)
    shape = (1, 28, 28) if network == "lenet" else (3, 32, 32)
    mc = MCBatchNorm(randomize(model), 3).fit([torch.randn(6, *shape) for _ in range(3)])
    mc.eval().requires_grad_(False)
    x = torch.randn(3, *shape)
    exported = torch.export.export(mc, (x,))
    torch.testing.assert_close(exported.module()(x), mc(x), rtol=1e-4, atol=1e-4)
    sizes = {"args": ({0: torch.export.Dim("batch")},)}
    program = torch.onnx.export(mc, (x,), dynamo=True, dynamic_shapes=sizes, verbose=False)
    program.save(tmp_path / "mc.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "mc.onnx")
    for size in (1, 5):
        x = torch.randn(size, *shape)
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), mc(x), rtol=1e-4, atol=1e-4)


def fitted_with_a_seed_of_its_own(rank: int) -> dict[str, Tensor]:
    data = TensorDataset(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)))
    mc = MCBatchNorm(small(), 4, mc_batch_size=8)
    torch.manual_seed(rank)  # each would draw other mini-batches
    return mc.fit(DataLoader(data)).state_dict()


def test_two_processes_hold_the_same_statistics(tmp_path: Path) -> None:
    first, second = in_two_processes(fitted_with_a_seed_of_its_own, tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- Wrong use ---------------------------------------------------------------------------------


def test_a_state_with_statistics_missing() -> None:
    state = fitted_small().state_dict()
    del state["model.5.mc_mean"], state["model.5.mc_var"]
    fresh = MCBatchNorm(small(), 4)
    fresh.eval().load_state_dict(state, strict=False)
    with pytest.raises(RuntimeError, match="holds no statistics yet"):
        fresh(torch.randn(5, 6))


def one_fails(rank: int) -> tuple[list[str], bool, dict[str, Tensor]]:
    torch.manual_seed(0)
    mc = MCBatchNorm(small(), 4).fit(batches(4))
    before, said = mc.state_dict(), []
    fresh = MCBatchNorm(small(), 4)
    if rank:  # fails in the last mini-batch
        passes = iter(range(4))
        fresh.model.register_forward_hook(lambda *_: None if next(passes) < 3 else 1 / 0)
    wrong: list[Callable[[], object]] = [
        lambda: mc.fit(batches(4 if rank else 3)),
        lambda: mc.fit(batches(0 if rank else 4)),
        lambda: mc.resample(batches(4), [0, 1] if rank else [0, "1"]),
        lambda: fresh.fit(batches(4)),
    ]
    for use in wrong:
        try:
            use()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    same = all(torch.equal(value, before[key]) for key, value in mc.state_dict().items())
    same = same and not fresh.fitted and fresh._plan == MCBatchNorm(small(), 4)._plan
    mc.fit(batches(4))  # and they are still in step
    return said, same, mc.state_dict()


def test_where_fit_fails_in_one_process_it_fails_in_all(tmp_path: Path) -> None:
    (first, same, state), (second, also_same, other) = in_two_processes(one_fails, tmp_path)
    there = "RuntimeError: fit failed in 1 of 2 processes, though not in this one; look for the err"
    assert all(s.startswith(there) for s in (first[1], second[0], second[2], first[3]))
    assert second[3] == "ZeroDivisionError: division by zero"
    assert "the data ended after 3" in first[0]
    assert "the data ended after 0" in second[1]
    assert "'1' is a str" in first[2]
    assert same
    assert also_same
    assert all(torch.equal(value, other[key]) for key, value in state.items())


# --- Found by changing the code at random (tests/benchmarks/mutants.py) --------------------------


@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        ({}, torch.float64),
        ({"affine": False}, torch.float64),
        ({"track_running_stats": False}, torch.float64),
        ({"affine": False, "track_running_stats": False}, torch.float32),  # nothing to go by
    ],
)
def test_loaded_statistics_take_the_type_of_the_layer(
    options: dict[str, bool], loaded: torch.dtype
) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, **options))

    state = MCBatchNorm(make(), 4).fit(batches()).state_dict()
    fresh = MCBatchNorm(make(), 4).double()
    fresh.load_state_dict(state)
    for name in ("mc_mean", "mc_var"):
        statistic = getattr(fresh.model[1], name)
        assert statistic.dtype == loaded
        assert torch.equal(statistic.float(), state[f"model.1.{name}"])


def test_a_state_without_values_loads_into_a_network_without_values() -> None:
    state = {name: value.to("meta") for name, value in fitted_small().state_dict().items()}
    fresh = MCBatchNorm(small().to("meta"), 4)
    fresh.load_state_dict(state)
    assert fresh.model[1].mc_mean.shape == (4, 1, 8)
    assert fresh.model[1].mc_mean.is_meta


def test_converted_layers_of_one_class_have_one_class() -> None:
    one, other = (MCBatchNorm(small(), 4).model[1] for _ in range(2))
    assert type(one) is type(other) is type(pickle.loads(pickle.dumps(one)))


def test_a_layer_that_fit_did_not_reach_is_named() -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.both = nn.BatchNorm1d(6), nn.BatchNorm1d(6), False

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x) if self.both else x

    mc = MCBatchNorm(Detour(), 4).fit(batches()).eval()
    mc.model.both = True
    with pytest.raises(RuntimeError, match=r"BatchNorm1d.* 1 times, .*those of fit did so 0 time"):
        mc(torch.randn(5, 6))


@pytest.mark.parametrize("narrow", [nn.Module.half, nn.Module.bfloat16])
def test_statistics_keep_their_precision_when_the_network_loses_its(narrow: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = [1000 * torch.randn(9, 6) for _ in range(4)]  # variances beyond 65504
    mc = MCBatchNorm(model, 4).fit(data).eval()
    before = mc.model[1].mc_var.clone()
    assert before.max() > torch.finfo(torch.float16).max
    with torch.no_grad():
        wanted = mc(data[0])
        narrow(mc)
        got = mc(data[0].to(mc.model[0].weight.dtype))
    assert torch.equal(mc.model[1].mc_var, before)
    torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.05)
    assert mc.double().model[1].mc_var.dtype == torch.float64
    mc.model.half()  # goes past the wrapper
    with pytest.raises(RuntimeError, match=r"layer '1' are torch.float16.*fit again"):
        mc(data[0].half())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("by zero")])
def test_a_prediction_that_is_interrupted_leaves_no_tensor_of_its_own(error: BaseException) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.kept, self.fails = nn.BatchNorm1d(6), None, False

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            if self.fails:
                self.kept = y
                raise error
            return y

    mc = MCBatchNorm(Keeps(), 4).fit(batches()).eval()
    mc.model.fails = True
    with pytest.raises(type(error)):
        mc(torch.randn(5, 6))
    kept = mc.model.kept
    assert kept is None or torch.func.debug_unwrap(kept) is kept
    mc.model.fails = False
    assert mc(torch.randn(5, 6)).shape == (4, 5, 6)
    assert mc.loop_reason is None
