"""Some networks of the census that are hard to get right, and the census itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import census
import pytest
import torch
from census_networks import NETWORKS, Case, noise
from torch import Tensor, nn
from torch.nn import functional as F


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


def check(case: Case) -> None:
    row = compared(case)
    assert row["result"] == "exact", row
    assert float(row["error"]) <= 1e-10, row
    assert row["path"] == "vmap", row


@pytest.mark.parametrize("name", ["levit_128s", "tf_efficientnet_lite0", "test_byobnet"])
def test_timm(name: str) -> None:
    """Batch norm over tokens folded into the batch; padding that depends on the input's size."""
    pytest.importorskip("timm")
    check(NETWORKS["timm", name]())


class GhostBatchNorm(nn.Module):
    """As in pytorch-tabnet: normalizes chunks of the batch, so that a pass calls a layer often."""

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.size = size
        self.bn = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.bn(part) for part in x.chunk(-(-len(x) // self.size))])


def test_ghost_batch_norm() -> None:
    ghost = GhostBatchNorm(4, 16)
    check(Case(nn.Sequential(nn.Linear(5, 16), ghost, nn.GLU(), nn.Linear(8, 3)), noise(5)))


class GraphNetwork(nn.Module):
    """Sums over neighbours, batch norm over the nodes of all graphs, the mean of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(5, 8), nn.Linear(8, 8)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(8), nn.BatchNorm1d(8)])

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        source, target = edges
        for linear, norm in zip(self.linears, self.norms, strict=True):
            h = linear(x)
            h = h + torch.zeros_like(h).index_add_(0, target, h[source])
            x = F.elu(norm(h))
        sums = x.new_zeros(8, x.shape[1])
        return sums.scatter_reduce(0, graph[:, None].expand_as(x), x, "mean", include_self=False)


def test_graph_network() -> None:
    def graphs(n: int) -> tuple[Tensor, ...]:
        graph = torch.arange(n).repeat_interleave(5)
        return torch.randn(5 * n, 5), torch.randint(5 * n, (2, 40)), graph

    check(Case(GraphNetwork(), graphs))


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: a mapping of those fields that are not None, and a dataclass."""

    logits: Tensor | None = None
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> ModelOutput:
        hidden = self.embed(inputs)
        logits = self.head(hidden.relu())
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ModelOutput(logits, loss, (inputs, hidden))


def test_output_of_transformers_kind() -> None:
    case = Case(
        Classifier(), lambda n: {"inputs": torch.randn(n, 5), "labels": torch.arange(n) % 3}
    )
    check(case)
    _, output = census.fit_and_predict(case, [case.inputs(8)] * 2, case.inputs(4))
    assert type(output) is ModelOutput
    assert output["loss"] is output.loss
    assert output.loss.shape == (2,)
    assert [h.shape for h in output.hidden_states] == [(2, 4, 5), (2, 4, 8)]


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
