"""The wrapper on a GPU against the wrapper on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import fitted, predict, randomize, relative_error
from torch.utils.data import DataLoader, TensorDataset

from mcbn import MCBatchNorm, lenet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("path", ["auto", "loop"])
def test_predictions_of_every_path(path: str) -> None:
    torch.manual_seed(0)
    model = randomize(lenet(1, 10)).double().cuda()
    mc = MCBatchNorm(model, 8, path=path)
    mc.fit(DataLoader(TensorDataset(torch.randn(50, 1, 28, 28).double())))
    x = torch.randn(4, 1, 28, 28).double().cuda()
    assert relative_error(mc(x), torch.stack(predict(model, fitted(mc), x))) < 1e-10


def test_a_state_moves_between_devices() -> None:
    torch.manual_seed(0)
    model = randomize(lenet(1, 10))
    mc = MCBatchNorm(model, 8).fit([torch.randn(16, 1, 28, 28) for _ in range(8)])
    x = torch.randn(4, 1, 28, 28)
    expected = mc(x)
    there = MCBatchNorm(copy.deepcopy(model).cuda(), 8).eval()
    there.load_state_dict(mc.state_dict())
    torch.testing.assert_close(there(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mc.cuda()(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


def test_half_precision_and_autocast() -> None:
    torch.manual_seed(0)
    mc = MCBatchNorm(randomize(lenet(1, 10)).cuda(), 8)
    mc.fit([torch.randn(16, 1, 28, 28) for _ in range(8)])
    x = torch.randn(4, 1, 28, 28).cuda()
    expected = mc(x)
    with torch.autocast("cuda"):
        torch.testing.assert_close(mc(x).float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(mc.half()(x.half()).float(), expected, rtol=0.1, atol=0.1)
