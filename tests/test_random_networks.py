"""Networks put together at random: the wrapper against the slow reference, whatever comes.

285 networks; with ``MCBN_LONG=1`` in the environment 4,750.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from reference import batch_norms, fitted, predict, randomize, statistics_of
from torch import Tensor, nn
from torch.nn import functional as F

from mcbn import MCBatchNorm
from mcbn.method import pooling
from mcbn.method.tree import tensors_of

# Their running statistics are random, too, and far from those of any mini-batch.
pytestmark = pytest.mark.filterwarnings("ignore:the mini-batches of fit lie")

NUM_NETWORKS = 2500 if os.environ.get("MCBN_LONG") else 150

# --- What the networks are made of ---------------------------------------------------------------


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, name: str, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = inner, in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            x += self.inner(x)
            return x
        return self.inner(x) + x

    def extra_repr(self) -> str:
        return f"in_place={self.in_place}"


class Concatenation(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Twice(nn.Module):
    """One batch norm layer, called two times."""

    def __init__(self, norm: nn.Module, between: nn.Module) -> None:
        super().__init__()
        self.norm, self.between, self.again = norm, between, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.between(self.norm(x)))


class Fork(nn.Module):
    """The values decide on the way."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        # Not by a value that is 0 but for rounding, as the sum of what a batch norms itself is.
        return self.left(x) if x.square().mean() > 0.5 else self.right(x)


class Head(nn.Module):
    """Ends the network with one tensor or with several."""

    def __init__(self, style: str, num_features: int) -> None:
        super().__init__()
        self.style, self.linear = style, nn.Linear(num_features, 3)

    def forward(self, x: Tensor) -> Any:
        if self.style == "features":
            return x
        logits = self.linear(x.flatten(1))
        by_style = {"logits": logits, "tuple": (x, logits), "dict": {"x": x, "logits": logits}}
        return by_style[self.style]

    def extra_repr(self) -> str:
        return self.style


def attend(x: Tensor) -> Tensor:
    rows = x.flatten(1)
    return (torch.softmax(rows @ rows.T / rows.shape[1], dim=-1) @ rows).view(x.shape)


def shuffle(x: Tensor) -> Tensor:
    return x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def excite(x: Tensor) -> Tensor:
    return x * x.mean(tuple(range(2, x.dim())), keepdim=True).sigmoid()


NEW_TENSOR = {
    "relu": nn.ReLU,
    "relu6": lambda: Do("F.relu6", F.relu6),
    "ReLU6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "hardswish": nn.Hardswish,
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "torch.relu": lambda: Do("torch.relu", torch.relu),
    "Tensor.relu": lambda: Do("Tensor.relu", Tensor.relu),
    "minus": lambda: Do("minus", lambda x: -x),
    "softmax": lambda: nn.Softmax(dim=1),
    "dropout": lambda: nn.Dropout(0.5),
    "identity": nn.Identity,
}
IN_PLACE = {
    "relu_": lambda: nn.ReLU(inplace=True),
    "relu6_": lambda: nn.ReLU6(inplace=True),
    "leaky relu_": lambda: nn.LeakyReLU(0.1, inplace=True),
    "silu_": lambda: nn.SiLU(inplace=True),
    "torch.relu_": lambda: Do("torch.relu_", torch.relu_),
    "Tensor.relu_": lambda: Do("Tensor.relu_", Tensor.relu_),
    "mul_": lambda: Do("mul_", lambda x: x.mul_(0.7)),
    "look, then relu_": lambda: Do("look, then relu_", lambda x: x.abs() + F.relu(x, inplace=True)),
}
STAGE = [nn.ReLU, nn.ReLU6, NEW_TENSOR["relu6"], IN_PLACE["relu_"], IN_PLACE["relu6_"], nn.GELU]
MIXES = {
    "attend": lambda: Do("attend", attend),
    "centre": lambda: Do("centre", lambda x: x - x.mean(0)),
    "next": lambda: Do("next", lambda x: x + x.amax(0)),
}


@dataclass
class Space:
    """The shape of an activation, and what the network has done that rules a path out."""

    channels: int
    sizes: tuple[int, ...]
    normalized: bool = False
    traits: set[str] = field(default_factory=set)

    @property
    def dims(self) -> int:
        return len(self.sizes)


def of_dims(name: str, dims: int) -> Any:
    return getattr(nn, f"{name}{dims}d")


def norm(draw: st.DrawFn, space: Space) -> nn.Module:
    space.normalized = True
    # A large eps, since with a small one a channel that is almost constant amplifies rounding.
    return of_dims("BatchNorm", max(space.dims, 1))(
        space.channels,
        eps=0.05,
        affine=draw(st.integers(0, 3)) > 0,
        track_running_stats=draw(st.integers(0, 3)) > 0,
    )


def linear(draw: st.DrawFn, space: Space, channels: int, stride: int = 1) -> nn.Module:
    bias = draw(st.booleans())
    if not space.dims:
        return nn.Linear(space.channels, channels, bias)
    size = draw(st.sampled_from([1, 3]))
    conv = of_dims("Conv", space.dims)
    return conv(space.channels, channels, size, stride, padding=size // 2, bias=bias)


def pool(draw: st.DrawFn, space: Space) -> nn.Module:
    kind = draw(st.sampled_from(["Max", "Max", "Max", "Max", "Avg", "AdaptiveAvg", "AdaptiveMax"]))
    if kind.startswith("Adaptive"):
        size = draw(st.sampled_from([1, 2, tuple(max(1, s // 2) for s in space.sizes)]))
        return of_dims(f"{kind}Pool", space.dims)(size)
    size = min(*space.sizes, draw(st.integers(1, 3))) if space.sizes else 1
    stride, padding = draw(st.sampled_from([None, 1, 2])), draw(st.integers(0, size // 2))
    ceil = draw(st.booleans()) and kind == "Max"
    return of_dims(f"{kind}Pool", space.dims)(size, stride, padding, ceil_mode=ceil)


KEEP = ["norm", "norm", "linear", "new tensor", "in place", "residual", "twice", "shuffle"]
KEEP = [*KEEP, "excite", "mixes", "new tensor"]
ANY = [
    *KEEP,
    "stage",
    "stage",
    "stage",
    "pool",
    "widen",
    "concatenation",
    "concatenation",
    "fork",
    "flatten",
]


def block(draw: st.DrawFn, kind: str, space: Space, depth: int) -> nn.Module:
    """A part of a network; ``space`` becomes that of its output."""

    def chain(kinds: list[str] = KEEP) -> nn.Module:
        """Some blocks, that keep the shape."""
        inner = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
        return nn.Sequential(*(block(draw, each, space, depth + 1) for each in inner))

    if kind in ("residual", "concatenation", "twice", "fork") and depth > 1:
        kind = "norm"
    if kind in ("pool", "stage", "excite") and not space.dims:
        kind = "new tensor"
    if kind == "shuffle" and (space.channels % 2 or depth):
        kind = "norm"
    if kind == "new tensor":
        return NEW_TENSOR[draw(st.sampled_from(sorted(NEW_TENSOR)))]()
    if kind == "in place":
        if depth:  # then there is another branch that sees it
            space.traits.add("in place")
        return IN_PLACE[draw(st.sampled_from(sorted(IN_PLACE)))]()
    if kind == "mixes":
        space.traits.add("mixes")
        return MIXES[draw(st.sampled_from(sorted(MIXES)))]()
    if kind == "linear":
        return linear(draw, space, space.channels)
    if kind == "twice":
        between = draw(st.sampled_from(["linear", "new tensor", "in place", "norm"]))
        return Twice(norm(draw, space), block(draw, between, space, depth))
    if kind == "fork":
        space.traits.add("reads values")
        # Batch norm there would sometimes have been called by no mini-batch.
        return Fork(chain(["new tensor", "linear"]), chain(["new tensor", "linear"]))
    if kind in ("residual", "concatenation") and not space.normalized:
        space.traits.add("joins shared")
    if kind == "residual":
        in_place = draw(st.integers(0, 4)) == 0
        space.traits |= {"in place"} if in_place else set()
        return Residual(chain(), in_place)
    if kind == "concatenation":
        module = Concatenation(*(chain() for _ in range(draw(st.integers(1, 2)))), nn.Identity())
        space.channels *= len(module.branches)
        return module
    if kind == "shuffle":
        return Do("shuffle", shuffle)
    if kind == "excite":
        return Do("excite", excite)
    if kind == "stage":
        first, activation = norm(draw, space), draw(st.sampled_from(STAGE))
        return nn.Sequential(first, activation(), block(draw, "pool", space, depth))
    if kind == "widen":
        channels = draw(st.integers(1, 6))
        module = linear(draw, space, channels, stride=draw(st.integers(1, 2)))
    elif kind == "pool":
        module = pool(draw, space)
    elif kind == "flatten":
        module = nn.Flatten(1)
    else:
        return norm(draw, space)
    _, space.channels, *sizes = module(torch.zeros(1, space.channels, *space.sizes)).shape
    space.sizes = tuple(sizes)
    return module


@dataclass
class Case:
    """A network, and how to run it."""

    network: nn.Module
    shape: tuple[int, ...]
    traits: set[str]
    dtype: torch.dtype
    num_estimators: int
    mc_batch_size: int
    chunk_bytes: int | None
    path: Any
    correction: int
    seed: int


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...], kinds: list[str] = ANY) -> Case:
    seed = draw(st.integers(0, 2**31))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dims = draw(st.sampled_from([0, 1, 2, 2, 2, 3]))
        largest = (0, 12, 9, 5)[dims]
        sizes = tuple(draw(st.integers(3, largest)) for _ in range(dims))
        space = Space(draw(st.integers(1, 4)), sizes)
        shape = (space.channels, *sizes)
        # The first block makes a tensor of its own, so that nothing is done to the input in place.
        chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))
        chosen.insert(draw(st.integers(0, len(chosen))), "norm")
        chosen.insert(0, draw(st.sampled_from(["widen", "widen", "widen", "norm"])))
        blocks = [block(draw, kind, space, 0) for kind in chosen]
        num_features = space.channels * torch.Size(space.sizes).numel()
        style = draw(st.sampled_from(["logits", "logits", "features", "tuple", "dict"]))
        network = randomize(nn.Sequential(*blocks, Head(style, num_features)))
        # So large that a ReLU6 reaches its upper end.
        if draw(st.booleans()):
            for layer in batch_norms(network).values():
                if layer.bias is not None:
                    layer.bias.data += 6
    return Case(
        network,
        shape,
        space.traits,
        draw(st.sampled_from(dtypes)),
        num_estimators=draw(st.integers(1, 5)),
        mc_batch_size=draw(st.integers(2, 6)),
        chunk_bytes=draw(st.sampled_from([None, 1, 500, 4000, 1 << 30])),
        path=draw(st.sampled_from(["auto", "auto", "auto", "loop"])),
        correction=draw(st.integers(0, 1)),
        seed=seed,
    )


@pytest.fixture(autouse=True, scope="module")
def small_networks_pool_first_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "_WORTH_DEFERRING", 1500)
        yield


# --- What holds for each -------------------------------------------------------------------------


def check_equal(output: Any, expected: list[Any] | Any, tolerance: float) -> None:
    """``expected`` is the same tree of tensors, or a list with one for each estimator."""
    if isinstance(expected, list):
        columns = zip(*map(tensors_of, expected), strict=True)
        wanted = [torch.stack(column) for column in columns]
    else:
        wanted = tensors_of(expected)
    assert len(tensors_of(output)) == len(wanted)
    for ours, theirs in zip(tensors_of(output), wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        error = (ours - theirs).abs().max().item()
        assert error <= tolerance * max(1.0, theirs.abs().max().item())


def wrapped(case: Case) -> MCBatchNorm:
    return MCBatchNorm(
        case.network,
        case.num_estimators,
        mc_batch_size=case.mc_batch_size,
        correction=case.correction,
        path=case.path,
        chunk_bytes=case.chunk_bytes,
    )


def fit(case: Case, batches: list[Tensor]) -> MCBatchNorm:
    return wrapped(case).fit(batches)


def make_batches(case: Case) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(case.seed)
    return lambda size: torch.randn(size, *case.shape, generator=generator).to(case.dtype)


@torch.no_grad()
def check_wrapper(case: Case) -> None:
    tolerance = 1e-10 if case.dtype == torch.float64 else 1e-4
    case.network.to(case.dtype)
    random = make_batches(case)
    batches = [random(case.mc_batch_size) for _ in range(case.num_estimators)]
    mc = fit(case, batches)
    event(f"{case.path}: {repr(mc).splitlines()[0]}")
    draws = [statistics_of(case.network, (batch,), case.correction) for batch in batches]
    for _ in range(2):
        for held, draw in zip(fitted(mc), draws, strict=True):
            for name, calls in draw.items():
                check_equal(held[name], tuple(calls), tolerance)
        mc.fit(batches)  # now that a path is known, it goes another way

    outputs = {}
    for size in (1, 3, 2):
        x = random(size)
        before = x.clone()
        outputs[size] = x, mc(x)
        check_equal(outputs[size][1], predict(case.network, draws, x), tolerance)
        assert torch.equal(x, before)

    x, output = outputs[3]
    order = torch.tensor([2, 0, 1])
    turned = [tensor[:, order] for tensor in tensors_of(output)]
    check_equal(mc(x[order]), tuple(turned), tolerance)

    state = {
        key: value.flip(0) if ".mc_" in key else value for key, value in mc.state_dict().items()
    }
    exchanged = wrapped(case)
    exchanged.load_state_dict(state)
    turned = [tensor.flip(0) for tensor in tensors_of(output)]
    check_equal(exchanged(x), tuple(turned), tolerance)

    file = io.BytesIO()
    torch.save(mc.state_dict(), file)
    file.seek(0)
    loaded = wrapped(case)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    loaded(x)  # tells how large the activations are, hence how many run at once
    for ours, saved in zip(tensors_of(loaded(x)), tensors_of(output), strict=True):
        assert torch.equal(ours, saved)


def networks(count: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=slow)


@networks(NUM_NETWORKS)
@given(case=cases((torch.float64, torch.float64, torch.float32)))
def test_every_network_equals_the_slow_reference(case: Case) -> None:
    check_wrapper(case)


@networks(NUM_NETWORKS // 2)
@given(case=cases((torch.float64,), ["stage", "stage", "norm", "linear", "widen"]))
def test_networks_that_pool_what_batch_norm_gives(case: Case) -> None:
    check_wrapper(case)


@networks(NUM_NETWORKS // 5)
@given(case=cases((torch.float64,)))
def test_gradients_are_those_of_the_slow_reference(case: Case) -> None:
    assume("in place" not in case.traits)
    assume(not any(isinstance(m, Do) and m.name.endswith("_") for m in case.network.modules()))
    assume(not any(getattr(m, "inplace", False) for m in case.network.modules()))
    network, random = case.network.to(case.dtype), make_batches(case)
    mc = fit(case, [random(case.mc_batch_size) for _ in range(case.num_estimators)])
    x = random(3).requires_grad_()
    ours, theirs = mc(x), predict(network, fitted(mc), x)
    (gradient,) = torch.autograd.grad(sum(t.square().sum() for t in tensors_of(ours)), x)
    (wanted,) = torch.autograd.grad(sum(t.square().sum() for t in tensors_of(theirs)), x)
    check_equal(gradient, wanted, 1e-10)


@networks(NUM_NETWORKS // 5)
@given(case=cases((torch.bfloat16,)))
@torch.no_grad()
def test_half_precision_is_as_exact_as_the_slow_reference(case: Case) -> None:
    # A value beside the boundary of a decision falls on either side of it, and attention can make
    # much of a rounding error. Pooling in three dimensions has no half precision.
    assume(not case.traits & {"reads values", "mixes"} and len(case.shape) < 4)
    network, random = case.network.to(case.dtype), make_batches(case)
    mc = fit(case, [random(case.mc_batch_size) for _ in range(case.num_estimators)])
    x, draws = random(3), fitted(mc)
    theirs = predict(network, draws, x)
    wide = [
        {name: [(mean.double(), var.double()) for mean, var in calls] for name, calls in d.items()}
        for d in draws
    ]
    exact = predict(network.double(), wide, x.double())
    # How much the network makes of a rounding error: its input is off by one unit.
    off = predict(network, wide, x.double() * (1 + torch.finfo(x.dtype).eps))
    columns = (zip(*map(tensors_of, each), strict=True) for each in (theirs, exact, off))
    for ours, *parts in zip(tensors_of(mc(x)), *columns, strict=True):
        low, high, moved = map(torch.stack, parts)
        assert ours.dtype == torch.bfloat16
        error, slow_error, sensitivity, size = (
            each.double().square().mean().sqrt()
            for each in (ours - high, low - high, moved - high, high)
        )
        assert error <= 2 * (slow_error + sensitivity) + 0.01 * size


@pytest.mark.parametrize("chunk_bytes", [1, None])
@pytest.mark.parametrize("num_estimators", [1, 2, 3, 5])
@torch.no_grad()
def test_a_change_in_place_is_seen_by_each_estimator_once(
    num_estimators: int, chunk_bytes: int | None
) -> None:
    # Found by the above: of two estimators, the second got what the first had changed.
    torch.manual_seed(0)
    change = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(8))
    both = Concatenation(nn.Sequential(nn.BatchNorm1d(8), nn.Tanh()), change)
    model = randomize(nn.Sequential(nn.Linear(6, 8), both).double())
    batches = [torch.randn(7, 6).double() for _ in range(num_estimators)]
    mc = MCBatchNorm(model, num_estimators, chunk_bytes=chunk_bytes).fit(batches)
    x = torch.randn(3, 6).double()
    check_equal(mc(x), predict(model, fitted(mc), x), 1e-10)
