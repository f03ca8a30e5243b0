"""Wrong use in one of two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from processes import in_two_processes
from torch import Tensor, nn

from mcbn import MCBatchNorm


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


def batches(count: int) -> list[Tensor]:
    return [torch.randn(9, 6) for _ in range(count)]


def one_fails(rank: int) -> tuple[list[str], bool, dict[str, Tensor]]:
    torch.manual_seed(0)
    mc = MCBatchNorm(network(), 4).fit(batches(4))
    before, said = mc.state_dict(), []
    fresh = MCBatchNorm(network(), 4)
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
    same = same and not fresh.fitted and fresh._plan == MCBatchNorm(network(), 4)._plan
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
