"""Some networks of the census that are hard to get right, and the census itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import census
import pytest
import torch
from census_networks import NETWORKS, Case, noise
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def compared(case: Case) -> census.Row:
    """What the census finds out, with three estimators: its plain loop against the wrapper."""
    census.spread_weights(case.model.eval())
    with torch.no_grad():
        return census.compare(case, torch.float64, 3)


def assert_exact(case: Case) -> None:
    row = compared(case)
    assert row["result"] == "exact", row
    assert float(row["error"]) <= 1e-10, row
    assert row["path"] == "vmap", row


@pytest.mark.parametrize("name", ["levit_128s", "tf_efficientnet_lite0", "test_byobnet"])
def test_timm(name: str) -> None:
    """Batch norm over tokens folded into the batch; padding that depends on the input's size."""
    pytest.importorskip("timm")
    assert_exact(NETWORKS["timm", name]())


def test_the_census_notices_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of one estimator that is off by a millionth."""
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def slightly_off(*args: Any) -> Any:
        mc, output = right(*args)
        output[2, 1, 1] += 1e-6
        return mc, output

    right = census.fit_and_predict
    assert compared(Case(model, noise(5)))["result"] == "exact"
    monkeypatch.setattr(census, "fit_and_predict", slightly_off)
    assert compared(Case(model, noise(5)))["result"] == "wrong"


def test_the_census_notices_what_it_cannot_compare() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), Noisy())
    with pytest.raises(census.NotComparableError, match="random"):
        compared(Case(model, noise(5)))
    model = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Softmax(1), nn.Sigmoid()
    )
    model[-1].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    with pytest.raises(census.NotComparableError, match="agree"):
        compared(Case(model, noise(5)))
