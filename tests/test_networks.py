"""The wrapper against the slow reference, over the kinds of network that there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from reference import Statistics, fitted, predict, randomize, relative_error, statistics_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mcbn import MCBatchNorm, lenet
from mcbn.method import pooling
from mcbn.method.tree import tensors_of


class PreActivation(nn.Module):
    """The tensor from before the first batch norm is used again after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn2, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1(F.relu(self.bn1(x)))
        x = F.max_pool2d(F.relu(self.bn2(x)), 2)
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenates earlier tensors, as DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        second = self.conv1(F.relu(self.bn1(first), inplace=True))
        both = F.relu(self.bn2(torch.cat([first, second], 1)))
        return self.conv2(F.max_pool2d(both, 3, stride=2, padding=1)).mean((2, 3))


class TwoCalls(nn.Module):
    """One batch norm layer, two times in a forward pass, also under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.again = self.bn

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 2)
        return self.again(self.conv(x)).flatten(1)


class MixesExamples(nn.Module):
    """What an example gets depends on the others in its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.linear(x)))
        x = torch.softmax(x @ x.T, dim=-1) @ x
        return self.head(x - x.mean(0))


class Branches(nn.Module):
    """The values decide which way to go."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.linear(x))
        return self.left(x) if x.sum() > 0 else self.right(x.tanh())


class InPlaceOnShared(nn.Module):
    """Changes a tensor from before the first batch norm after it was used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn(x)
        x += y.relu()
        return x


class ActivatesInPlace(nn.Module):
    """Uses the batch norm's output itself after an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        pooled = F.max_pool2d(y, 2)
        F.relu(y, inplace=True)
        return y.mean((2, 3)) + pooled.mean((2, 3))


class Squeezes(nn.Module):
    """Loses its batch axis where the batch is one example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.bn(self.conv(x)), 1)
        return self.head(x.squeeze())


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(1)
    )


def signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU6(), nn.MaxPool1d(3), nn.Flatten(1)
    )


def pools_to_the_size_it_has() -> nn.Module:
    stem = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5))


def table() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8, affine=False),
        nn.Dropout(0.5),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8, track_running_stats=False),
        nn.Linear(8, 3),
    )


NETWORKS = {
    "pre-activation": (PreActivation, (3, 8, 8)),
    "dense": (Dense, (3, 9, 9)),
    "two calls": (TwoCalls, (3, 8, 8)),
    "mixes examples": (MixesExamples, (6,)),
    "branches": (Branches, (6,)),
    "in place on shared": (InPlaceOnShared, (6,)),
    "activates in place": (ActivatesInPlace, (3, 8, 8)),
    "squeezes": (Squeezes, (3, 8, 8)),
    "volume": (volume, (1, 6, 6, 6)),
    "signal": (signal, (2, 12)),
    "pools to the size it has": (pools_to_the_size_it_has, (3, 8, 8)),
    "table": (table, (6,)),
    "a batch norm itself": (lambda: nn.BatchNorm2d(3), (3, 4, 4)),
    "sync": (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(PreActivation()), (3, 8, 8)),
}
LOOPS = {"branches", "in place on shared"}


def assert_statistics(mc: MCBatchNorm, draws: list[Statistics]) -> None:
    for draw, held in zip(draws, fitted(mc), strict=True):
        for layer, calls in draw.items():
            for (mean, var), (held_mean, held_var) in zip(calls, held[layer], strict=True):
                torch.testing.assert_close(held_mean, mean)
                torch.testing.assert_close(held_var, var)


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 1 << 30])
@pytest.mark.parametrize("name", NETWORKS)
def test_wrapper_equals_the_slow_reference(name: str, chunk_bytes: int) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = randomize(make().double())
    batches = [torch.randn(7, *shape).double() for _ in range(5)]
    mc = MCBatchNorm(model, 5, mc_batch_size=7, chunk_bytes=chunk_bytes).fit(batches)
    draws = [statistics_of(model, (batch,)) for batch in batches]
    assert_statistics(mc, draws)
    for batch_size in (1, 3):
        x = torch.randn(batch_size, *shape).double()
        before = x.clone()
        with torch.no_grad():
            output = mc(x)
            expected = torch.stack(predict(model, draws, x))
        assert relative_error(output, expected) < 1e-10
        torch.testing.assert_close(x, before)
    if chunk_bytes > 3000:  # so that several run at once
        assert (mc.loop_reason is not None) == (name in LOOPS)


@pytest.mark.parametrize("path", ["auto", "loop"])
def test_every_path_that_can_be_forced_is_right(path: str) -> None:
    torch.manual_seed(0)
    model = randomize(table().double())
    mc = MCBatchNorm(model, 5, path=path).fit([torch.randn(7, 6).double() for _ in range(5)])
    x = torch.randn(3, 6).double()
    assert relative_error(mc(x), torch.stack(predict(model, fitted(mc), x))) < 1e-10
    assert f"path={'vmap' if path == 'auto' else 'loop'}" in repr(mc)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_what_estimators_share_is_computed_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = lenet(1, 10)
    mc = MCBatchNorm(model, 5).fit([torch.randn(7, 1, 28, 28) for _ in range(5)]).eval()
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        mc(x)
    mc.chunk_bytes = int(at_once * mc._plan.growth * x.nbytes) + 1
    with FlopCounterMode(display=False) as all_of_it, torch.no_grad():
        mc(x)
    with FlopCounterMode(display=False) as first, torch.no_grad():
        hidden = model[0](x)
    with FlopCounterMode(display=False) as rest, torch.no_grad():
        model[1:](hidden)
    assert all_of_it.get_total_flops() == first.get_total_flops() + 5 * rest.get_total_flops()
    pooled = []
    pool = pooling.pool
    monkeypatch.setattr(pooling, "_WORTH_DEFERRING", 0)
    monkeypatch.setattr(pooling, "pool", lambda *a, **k: pooled.append(a) or pool(*a, **k))
    with torch.no_grad():
        mc(x)
        mc.chunk_bytes = int(at_once * mc._plan.growth * x.nbytes) + 1
        pooled.clear()
        mc(x)
    assert len(pooled) == 1 + -(-5 // at_once)  # the first pooling once, the second in every chunk


def test_lazy_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU()).eval()
    with pytest.raises(ValueError, match=r"call model\(example_batch\) first"):
        MCBatchNorm(model, 3)
    model(torch.randn(6, 3, 8, 8))
    mc = MCBatchNorm(randomize(model), 3).fit([torch.randn(6, 3, 8, 8) for _ in range(3)])
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(mc(x), torch.stack(predict(model, fitted(mc), x)))


def test_mini_batches_that_do_not_reach_a_layer() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.sometimes = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.always(x)
            return self.sometimes(y) if x.sum() > 0 else y

    torch.manual_seed(0)
    model = randomize(Sometimes())
    batches = [torch.rand(7, 6), -torch.rand(7, 6), torch.rand(7, 6)]
    mc = MCBatchNorm(model, 3)
    with pytest.warns(UserWarning, match="1 of 3 mini-batches did not reach layer 'sometimes'"):
        mc.fit(batches)
    draws = [statistics_of(model, (batch,)) for batch in batches]
    trained = model.sometimes
    draws[1]["sometimes"] = [(trained.running_mean, trained.running_var)]
    x = torch.rand(2, 6)
    torch.testing.assert_close(mc(x), torch.stack(predict(model, draws, x)))


def _torchvision(name: str) -> nn.Module:
    models = torchvision.models
    if name in ("googlenet", "inception_v3"):
        return getattr(models, name)(init_weights=False)
    if name == "deeplabv3":
        return models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None)
    if name == "fcn":
        return models.segmentation.fcn_resnet50(weights_backbone=None)
    if name == "r3d_18":
        return models.video.r3d_18()
    return getattr(models, name)()


TORCHVISION = {
    "resnet18": (3, 64, 64),
    "resnet50": (3, 64, 64),
    "densenet121": (3, 64, 64),
    "mobilenet_v3_small": (3, 64, 64),
    "efficientnet_b0": (3, 64, 64),
    "googlenet": (3, 64, 64),
    "inception_v3": (3, 96, 96),
    "shufflenet_v2_x0_5": (3, 64, 64),
    "regnet_y_400mf": (3, 64, 64),
    "deeplabv3": (3, 64, 64),
    "fcn": (3, 64, 64),
    "r3d_18": (3, 4, 32, 32),
}


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("resnet18", torch.float32, 1e-4), *((name, torch.float64, 1e-10) for name in TORCHVISION)],
)
def test_torchvision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = randomize(_torchvision(name)).to(dtype)
    shape = TORCHVISION[name]
    # Of so many values that no variance is close to 0, where a network amplifies rounding.
    mc = MCBatchNorm(model, 2).fit([torch.randn(8, *shape, dtype=dtype) for _ in range(2)])
    x = torch.randn(2, *shape, dtype=dtype)
    with torch.no_grad():
        outputs = tensors_of(mc(x))
        expected = [tensors_of(each) for each in predict(model, fitted(mc), x)]
    assert "path=loop" not in repr(mc)
    for output, parts in zip(outputs, zip(*expected, strict=True), strict=True):
        assert relative_error(output, torch.stack(parts)) < tolerance


# --- Found by changing the code at random (tests/benchmarks/mutants.py) ---------------------------


@pytest.mark.parametrize(
    "size", [4, 6, 2, (4, 6), (6, 4), (None, 6), (4, None), (None, 2), (None, None), (2, 6)]
)
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_an_adaptive_pooling_to_every_size(
    pool: type[nn.Module], size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "_WORTH_DEFERRING", 0)
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), pool(size), nn.Sigmoid()
    model = randomize(nn.Sequential(*layers).double())
    for shape in ((4, 6), (6, 4)):
        batches = [torch.randn(5, 1, *shape).double() for _ in range(3)]
        mc = MCBatchNorm(model, 3).fit(batches)
        x = torch.randn(2, 1, *shape).double()
        assert relative_error(mc(x), torch.stack(predict(model, fitted(mc), x))) < 1e-10


POOL_OR_ACTIVATE = {
    "in place, by position": lambda y: (F.relu(y, True), y)[1],
    "in place, by name": lambda y: (F.relu6(y, inplace=True), y)[1],
    "in place, a method": lambda y: (y.relu_(), y)[1],
    "in place, torch's": lambda y: (torch.relu_(y), y)[1],
    "not in place": lambda y: (F.relu(y, False), y)[1],
    "with the old one": lambda y: F.relu(y) + y,
    "indices, by position": lambda y: F.max_pool2d(y, 2, None, 0, 1, False, True)[1].double(),
    "indices, by name": lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
    "no indices, by position": lambda y: F.max_pool2d(y, 2, None, 0, 1, True, False),
    "overlapping": lambda y: F.max_pool2d(F.relu(y), 3, 2, 1),
    "halves of a step": lambda y: torch.max_pool2d(y, 2, 1),
    "dilated": lambda y: torch.max_pool2d(y, [2, 2], [2, 2], 0, 2),
    "padded": lambda y: F.max_pool2d(y, (2, 2), padding=1),
    "of odd sizes": lambda y: F.max_pool2d(F.max_pool2d(y, 2), 2, ceil_mode=True),
    "to its size, and on": lambda y: F.adaptive_avg_pool2d(y, (6, None)).mul_(2) + y,
    "to its size, and in place": lambda y: F.adaptive_avg_pool2d(y, (6, None)).relu_() + y,
    "twice": lambda y: F.relu6(F.max_pool2d(F.relu(F.max_pool2d(y, 2)), 2)),
}


@pytest.mark.parametrize("chunk_bytes", [1, None])
@pytest.mark.parametrize("name", POOL_OR_ACTIVATE)
def test_every_way_to_pool_or_activate(
    name: str, chunk_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return POOL_OR_ACTIVATE[name](self.bn(self.conv(x)))

    monkeypatch.setattr(pooling, "_WORTH_DEFERRING", 0)
    torch.manual_seed(0)
    model = randomize(Network().double())
    batches = [torch.randn(5, 1, 6, 12).double() for _ in range(3)]
    mc = MCBatchNorm(model, 3, chunk_bytes=chunk_bytes).fit(batches)
    x = torch.randn(2, 1, 6, 12).double()
    with torch.no_grad():
        assert relative_error(mc(x), torch.stack(predict(model, fitted(mc), x))) < 1e-10


POOL = {
    **POOL_OR_ACTIVATE,
    "named": lambda y: torch.max_pool2d(input=y, kernel_size=2),
    "of one image": lambda y: torch.stack([F.max_pool2d(each, 2) for each in y]),
    "adaptive, of one image": lambda y: torch.stack(
        [F.adaptive_avg_pool2d(each, (None, 12)) for each in y]
    ),
    "adaptive, of one signal": lambda y: F.adaptive_avg_pool1d(y[0].flatten(1), 3)[None, ..., None],
    "transposed": lambda y: F.max_pool2d(y.mT, 2).view(5, 4, 3, 6),
    "channels last": lambda y: F.max_pool2d(y.to(memory_format=torch.channels_last), 2),
    "of integers": lambda y: F.max_pool2d((8 * y).int(), 2).double(),
    "quantized": lambda y: (
        F.max_pool2d(torch.quantize_per_tensor(y.float(), 0.1, 0, torch.quint8), 2)
        .dequantize()
        .double()
    ),
    "opaque": lambda y: F.max_pool2d(y.float().to_mkldnn(), 2).to_dense().double(),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", POOL)
def test_every_way_to_pool_while_fitting(name: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(POOL[name](self.conv(x)))

    torch.manual_seed(0)
    model = randomize(Network().double())
    batches = [torch.randn(5, 1, 6, 12).double() for _ in range(3)]
    mc = MCBatchNorm(model, 3).fit(batches)
    assert_statistics(mc, [statistics_of(model, (batch,)) for batch in batches])


def test_the_gradient_of_a_tie_while_fitting() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                flat = torch.ones_like(x).requires_grad_()
                (gradient,) = torch.autograd.grad(F.max_pool2d(flat, 2).sum(), flat)
            return self.bn(x * gradient)

    batches = [torch.randn(5, 1, 6, 12) for _ in range(2)]
    mc = MCBatchNorm(Slope(), 2).fit(batches)
    # PyTorch gives all of it to the first of each four.
    expected = torch.stack([batch[..., ::2, ::2].sum() / batch.numel() for batch in batches])
    torch.testing.assert_close(mc.model.bn.mc_mean.flatten(), expected)


def test_gradients_through_two_activations_in_a_row() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.ReLU()).double()
    batches = [torch.randn(7, 6).double() for _ in range(2)]
    mc = MCBatchNorm(model, 2, chunk_bytes=1).fit(batches).eval()
    x = torch.randn(3, 6).double().requires_grad_()
    (gradient,) = torch.autograd.grad(mc(x).square().sum(), x)
    expected = torch.stack(predict(model, fitted(mc), x))
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(gradient, wanted)


def test_layers_that_always_normalize_with_the_batch_at_hand() -> None:
    class Always(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            own = self.running_mean, self.running_var
            return F.batch_norm(x, *own, self.weight, self.bias, training=True)

    torch.manual_seed(0)
    model = randomize(
        nn.Sequential(nn.Linear(4, 6), Always(6), nn.ReLU(), nn.Linear(6, 2)).double()
    )
    batches = [torch.randn(9, 4).double() for _ in range(3)]
    mc = MCBatchNorm(model, 3).fit(batches)
    x = torch.randn(5, 4).double()
    with torch.no_grad():
        expected = predict(model, [statistics_of(model, (batch,)) for batch in batches], x)
        assert relative_error(mc(x), torch.stack(expected)) < 1e-12
        assert torch.equal(mc.model[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize(
    ("looks", "reason"),
    [
        (lambda y: y.requires_grad, None),
        (lambda y: y.grad_fn is not None, "the network looks at the graph of its gradients"),
    ],
)
def test_a_network_that_looks_whether_it_is_trained(looks: Any, reason: str | None) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(x)
            return 2 * y if looks(y) else 3 * y

    torch.manual_seed(0)
    model = randomize(Looks().double())
    mc = MCBatchNorm(model, 3).fit([torch.randn(9, 4).double() for _ in range(3)]).eval()
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(mc(x), torch.stack(predict(model, fitted(mc), x)))
    assert mc.loop_reason == reason
