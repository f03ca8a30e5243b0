"""The networks of the tutorials against numbers counted by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcbn import MCBatchNorm, lenet
from mcbn.training.models import unet


def test_lenet_has_the_published_parameters_and_operations() -> None:
    assert sum(p.numel() for p in lenet(1, 10).parameters()) == 44_470
    model = lenet(1, 10, norm=nn.Identity)
    assert sum(p.numel() for p in model.parameters()) == 44_470 - 2 * (6 + 16)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(128, 1, 28, 28))
    convolutions = 24 * 24 * 6 * 25 + 8 * 8 * 16 * 6 * 25
    dense = 256 * 120 + 120 * 84 + 84 * 10
    assert counter.get_total_flops() == 2 * 128 * (convolutions + dense)
    assert round(counter.get_total_flops() / 1e6, 2) == 72.10


def test_unet_sees_each_pixel_at_three_scales() -> None:
    torch.manual_seed(0)
    model = unet(1, 3, width=4).eval()
    x = torch.randn(1, 1, 48, 48)
    logits = model(x)
    assert logits.shape == (1, 3, 48, 48)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 10
    # A pixel sees as far as the chain of 3 by 3 convolutions reaches: 2 on each side at each of
    # the two full-size and two half-size blocks, and at quarter size: 2·2 + 2·2·2 + 4·2 = 20, and
    # up to 3 more where a pooling window or a copied pixel is not centred on it.
    x[..., 24, 24] += 1
    rows, columns = (model(x) - logits).abs().amax((0, 1)).nonzero().T
    for places in (rows, columns):
        assert 24 - 23 <= places.min() <= 24 - 18
        assert 24 + 18 <= places.max() <= 24 + 23


def test_the_full_size_reaches_the_output_of_the_unet_past_the_poolings() -> None:
    torch.manual_seed(0)
    model = unet(1, 3, width=4).eval()
    for parameter in model.get_submodule("down").parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 1, 16, 16)
    assert model(x)[0, 0].std() > 0


def test_unet_can_be_wrapped() -> None:
    torch.manual_seed(0)
    mc = MCBatchNorm(unet(1, 3, width=2), num_estimators=3)
    mc.fit([torch.randn(4, 1, 16, 17) for _ in range(3)]).eval()
    logits = mc(torch.randn(2, 1, 16, 17))
    assert logits.shape == (3, 2, 3, 16, 17)
    assert logits.std(0).mean() > 0
