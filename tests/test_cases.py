"""Networks as they are found in the wild, against a plain loop over the estimators.

The letters are the kinds of ``engine.py``'s promise: A, batch norm layers with arithmetic of their
own; B, layers that normalize where nobody looks; C, outputs of every type; D, predictions under
other conditions than ``fit``; E, gradients; F, axes that are no examples; G, inputs of every type;
H, what a network keeps on itself; L, numbers and wrappers around networks.

A case is either right, which is to say equal to separate passes of the plain network, each with
one mini-batch's means and variances for its running statistics; or, where it says ``refused``, an
exception may tell in words why it is not to be had. It is never another value.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
import random
import re
import threading
import types
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from reference import batch_norms, randomize
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision.models.feature_extraction import create_feature_extractor

from mcbn import MCBatchNorm

REFUSALS = (TypeError, ValueError, RuntimeError)

# torch's own, whoever calls what uses TorchScript.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

# --- The plain loop ------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


V = list(normal(4, 32, 6) * normal(4, 1, 6, seed=3) + normal(4, 1, 6, seed=4))
X = normal(8, 6, seed=1)


def called(net: nn.Module, batch: Any) -> Any:
    if type(batch) is dict:
        return net(**batch)
    return net(*batch) if type(batch) is tuple else net(batch)


def draw(net: nn.Module, batches: list[Any]) -> list[dict[nn.Module, list[Any]]]:
    """The mean and the biased variance of what comes into each layer, call by call.

    The layer itself normalizes with them: they are its running statistics just before it runs.
    """
    drawn = []
    for batch in batches:
        seen: dict[nn.Module, list[Any]] = {}

        def before(layer: Any, args: Any, seen: Any = seen) -> None:
            x = args[0].detach()
            x = x if x.element_size() > 2 else x.float()
            dims = [d for d in range(x.dim()) if d != 1]
            layer.running_mean, layer.running_var = x.mean(dims), x.var(dims, correction=0)
            seen.setdefault(layer, []).append((layer.running_mean, layer.running_var))

        hooks = [m.register_forward_pre_hook(before) for m in batch_norms(net).values()]
        with torch.no_grad():
            called(net, fresh(batch))
        for hook in hooks:
            hook.remove()
        drawn.append(seen)
    return drawn


def estimators(net: nn.Module, drawn: list[dict[nn.Module, list[Any]]]) -> Iterator[nn.Module]:
    """The plain network, with one mini-batch's statistics after the other."""
    for seen in drawn:
        hooks = []
        for layer, calls in seen.items():
            if len(calls) == 1:
                layer.running_mean, layer.running_var = calls[0]
                continue

            turn = iter(calls)

            def before(layer: Any, _: Any, turn: Any = turn) -> None:
                layer.running_mean, layer.running_var = next(turn)

            hooks.append(layer.register_forward_pre_hook(before))
        yield net
        for hook in hooks:
            hook.remove()


def fresh(tree: Any) -> Any:
    return copy.deepcopy(tree)


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return randomize(make().double())


# --- Comparing -----------------------------------------------------------------------------------


def flat(tree: Any, path: str = "output") -> list[tuple[str, Any]]:
    """Every tensor and every other value of a tree, with where it is and the types around it."""
    if isinstance(tree, Tensor):
        assert not torch._C._functorch.is_functorch_wrapped_tensor(tree), f"{path} is in vmap"
        return [(path, tree)]
    parts: dict[Any, Any] = {}
    if isinstance(tree, Mapping):
        parts |= dict(tree.items())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts |= {f".{f.name}": getattr(tree, f.name, None) for f in dataclasses.fields(tree)}
    if isinstance(tree, list | tuple | deque):
        parts |= dict(enumerate(tree))
    if isinstance(tree, types.SimpleNamespace):
        parts |= vars(tree)
    if isinstance(tree, defaultdict):
        parts["default_factory"] = tree.default_factory
    if not parts:
        return [(path, tree)]
    inner = [leaf for key, part in parts.items() for leaf in flat(part, f"{path}[{key!r}]")]
    return [(path, type(tree)), *inner]


def assert_same(got: Any, wanted: Any, pick: Callable[[Tensor], Tensor] = lambda t: t) -> None:
    """Equal trees; ``pick`` takes one estimator from a tensor of ``got``."""
    ours, theirs = flat(got), flat(wanted)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, value), (_, other) in zip(ours, theirs, strict=True):
        if isinstance(other, Tensor):
            assert isinstance(value, Tensor), f"{path} is {value!r}"
            torch.testing.assert_close(
                pick(value), other, rtol=1e-10, atol=1e-10, msg=lambda m, path=path: f"{path}: {m}"
            )
        else:
            assert value == other, f"{path} is {value!r}, not {other!r}"


def assert_estimators(got: Any, wanted: list[Any]) -> None:
    """``got`` has every tensor of ``wanted[s]`` at ``[s]``, and everything else is the same."""
    for path, value in flat(got):
        if isinstance(value, Tensor):
            assert len(value) == len(wanted), f"{path}: {tuple(value.shape)}"
    for s, each in enumerate(wanted):
        assert_same(got, each, lambda t, s=s: t[s])


def assert_in_words(error: BaseException, pattern: str) -> None:
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    assert re.search(pattern, text), f"{type(error).__name__}: {text}"


Wrap = Callable[..., MCBatchNorm]


def wrapper(net: nn.Module, num_estimators: int = 4, **options: Any) -> MCBatchNorm:
    return MCBatchNorm(net, num_estimators, **options)


@pytest.fixture(params=["all at once", "one at a time", "loop"])
def wrap(request: pytest.FixtureRequest) -> Wrap:
    path = "loop" if request.param == "loop" else "auto"
    chunk_bytes = 1 if request.param == "one at a time" else None
    return functools.partial(wrapper, path=path, chunk_bytes=chunk_bytes)


def fitted(wrap: Wrap, make: Callable[[], nn.Module], batches: list[Any] = V) -> MCBatchNorm:
    mc = wrap(build(make), num_estimators=len(batches))
    return mc.fit(fresh(batches), input_fn=lambda batch: batch).eval()


@dataclasses.dataclass
class Case:
    """A network, what it is fitted on and called with; and the same network as plain modules."""

    make: Callable[[], nn.Module]
    batches: list[Any] = dataclasses.field(default_factory=lambda: V)
    call: Any = dataclasses.field(default_factory=lambda: X)
    plain: Callable[[], nn.Module] | None = None
    refused: str | None = None

    def loop(self) -> list[Any]:
        net = build(self.plain or self.make)
        drawn = draw(net, self.batches)
        return [called(each, fresh(self.call)) for each in estimators(net, drawn)]


class Net(nn.Module):
    """A function as the forward of a network with a batch norm layer ``b``."""

    def __init__(self, function: Callable[..., Any], **modules: Any) -> None:
        super().__init__()
        self.function = function
        self.b: Any = nn.BatchNorm1d(6)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def case(function: Callable[..., Any], *args: Any, **options: Any) -> Case:
    """Of the function alone; ``modules`` makes what else the network has."""
    modules = options.pop("modules", dict)
    return Case(lambda: Net(function, **modules()), *args, **options)


def just_b(n: Net, x: Tensor) -> Tensor:
    return n.b(x)


CASES: dict[str, Case] = {}

# --- A: a layer with arithmetic of its own -------------------------------------------------------


class Layer(nn.BatchNorm1d):
    """A function as the forward of a batch norm layer, and another such layer within it."""

    def __init__(self, function: Callable[..., Any], nested: bool = False) -> None:
        super().__init__(6)
        self.function = function
        if nested:
            self.aux = nn.BatchNorm1d(6)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


class CalledOtherwise(nn.BatchNorm1d):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


def stats(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean, layer.running_var


def bn(layer: Any, x: Tensor) -> Tensor:
    return nn.BatchNorm1d.forward(layer, x)


def layer(function: Callable[..., Any], *args: Any, nested: bool = False, **options: Any) -> Case:
    def make() -> nn.Module:
        return Net(lambda n, *inputs: n.b(*inputs), b=Layer(function, nested))

    return Case(make, *args, **options)


def with_second(*shape: int) -> dict[str, Any]:
    """A second argument of these shapes, in ``fit`` and at prediction."""
    batches = [(v, normal(32, *shape, seed=5)) for v in V]
    return {"batches": batches, "call": (X, normal(8, *shape, seed=6))}


def ghost(layer: Any, x: Tensor) -> Tensor:
    return torch.cat([bn(layer, part) for part in x.split(3)])


def plain_ghost() -> nn.Module:
    return Net(lambda n, x: torch.cat([n.b(part) for part in x.split(3)]))


ROWS = list(normal(4, 8, 6, seed=7))

CASES |= {
    "A1 mask on the weight": layer(
        lambda m, x: F.batch_norm(x, *stats(m), torch.arange(6.0).double() % 2 * m.weight, m.bias)
    ),
    "A2 nested": layer(lambda m, x: m.aux(x), nested=True),
    "A nested, both": layer(lambda m, x: bn(m, x) * 2 + m.aux(x), nested=True),
    "A nested, one after the other": layer(lambda m, x: m.aux(bn(m, x).tanh()), nested=True),
    "A nested, a flag": layer(
        lambda m, x, clean: bn(m, x) if clean else m.aux(x),
        [(v, False) for v in V],
        (X, False),
        nested=True,
    ),
    "A3 conditional": layer(lambda m, x, y: bn(m, x) * y, **with_second(1)),
    "A residual inside": layer(lambda m, x, y: F.relu(bn(m, x) + y), **with_second(6)),
    "A gain and bias from outside": layer(
        lambda m, x, y: F.batch_norm(x, *stats(m), None, None, eps=m.eps) * (1 + y) + y.square(),
        **with_second(6),
    ),
    "A 1 + weight, own eps": layer(
        lambda m, x: F.batch_norm(x, *stats(m), 1 + m.weight, m.bias, eps=0.1)
    ),
    "A all by keyword": layer(
        lambda m, x: F.batch_norm(
            input=x,
            running_var=m.running_var,
            running_mean=m.running_mean,
            bias=m.bias,
            training=m.training,
        )
    ),
    "A torch.batch_norm": layer(
        lambda m, x: torch.batch_norm(x, m.weight, m.bias, *stats(m), False, 0.1, m.eps, True)
    ),
    "A activation inside": layer(lambda m, x: F.silu(bn(m, x))),
    "A activation in place (InPlaceABN)": layer(
        lambda m, x: F.leaky_relu_(F.batch_norm(x, *stats(m), m.weight.abs() + m.eps, m.bias), 0.01)
    ),
    "A the first features (slimmable)": layer(
        lambda m, x: F.batch_norm(
            x[:, :4], *(s[:4] for s in stats(m)), m.weight[:4], m.bias[:4], eps=m.eps
        )
    ),
    "A the last features, a view of a view": layer(
        lambda m, x: F.batch_norm(x[:, 3:], *(s.view(2, 3)[1] for s in stats(m)), eps=m.eps)
    ),
    "A a view that is no slice": layer(
        lambda m, x: F.batch_norm(x, *(s.view(2, 3).view(-1) for s in stats(m)))
    ),
    "A features last": Case(
        lambda: Net(
            lambda n, x: n.b(x),
            b=Layer(lambda m, x: bn(m, x.transpose(1, 2)).transpose(1, 2)),
        ),
        list(normal(4, 5, 7, 6)),
        normal(2, 3, 6),
        lambda: Net(lambda n, x: n.b(x.transpose(1, 2)).transpose(1, 2)),
    ),
    "A examples and steps in one axis": Case(
        lambda: Net(
            lambda n, x: n.b(x), b=Layer(lambda m, x: bn(m, x.flatten(0, 1)).view(x.shape))
        ),
        list(normal(4, 5, 7, 6)),
        normal(2, 3, 6),
        lambda: Net(lambda n, x: n.b(x.flatten(0, 1)).view(x.shape)),
    ),
    "A twice the same statistics": Case(
        lambda: Net(just_b, b=Layer(lambda m, x: bn(m, bn(m, x)))),
        plain=lambda: Net(lambda n, x: n.b(n.b(x))),
    ),
    "A two halves": Case(
        lambda: Net(
            just_b, b=Layer(lambda m, x: torch.cat([bn(m, part) for part in x.chunk(2)]).relu())
        ),
        plain=lambda: Net(lambda n, x: torch.cat([n.b(part) for part in x.chunk(2)]).relu()),
    ),
    "A its own __call__": Case(
        lambda: Net(just_b, b=CalledOtherwise(6)), plain=lambda: Net(lambda n, x: n.b(x) * 2)
    ),
    "A not affine": case(just_b, modules=lambda: {"b": nn.BatchNorm1d(6, affine=False)}),
    "A no running statistics": case(
        just_b, modules=lambda: {"b": nn.BatchNorm1d(6, track_running_stats=False)}
    ),
    "A one layer a domain": case(
        lambda n, x, domain: n.bns[domain](x).relu(),
        [(v, 1) for v in V],
        (X, 1),
        modules=lambda: {"b": None, "bns": nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6)])},
    ),
    "A a domain that fit did not see": case(
        lambda n, x, domain: n.bns[domain](x).relu(),
        [(v, 1) for v in V],
        (X, 0),
        modules=lambda: {"b": None, "bns": nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6)])},
        refused="fit",
    ),
    "A one layer under two names": case(
        lambda n, x: n.again(n.b(x).tanh()), modules=lambda: dict.fromkeys(("b", "again"), Same())
    ),
    "A shared by two branches": case(
        lambda n, x: n.left(x) * n.right(x.tanh()),
        modules=lambda: (lambda b: {"b": b, "left": nn.Sequential(b), "right": nn.Sequential(b)})(
            nn.BatchNorm1d(6)
        ),
    ),
    "A called three times, as the argument says": case(
        lambda n, x, times: functools.reduce(lambda h, _: n.b(h.sin()), range(times), x),
        [(v, 3) for v in V],
        (X, 3),
    ),
    "A called less often than in fit": case(
        lambda n, x, times: functools.reduce(lambda h, _: n.b(h.sin()), range(times), x),
        [(v, 3) for v in V],
        (X, 2),
    ),
}


class Same(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(6)


def test_a_mask_of_zeros_gives_zeros(wrap: Wrap) -> None:
    """A1 and A2 in numbers."""
    for masked in (
        Layer(lambda m, x: F.batch_norm(x, *stats(m), 0 * m.weight, m.bias)),
        Layer(lambda m, x: m.aux(x), nested=True),
    ):
        if hasattr(masked, "aux"):
            nn.init.zeros_(masked.aux.weight)
        mc = wrap(nn.Sequential(masked).double().eval()).fit(V)
        assert torch.equal(mc(X), torch.zeros(4, 8, 6))


# --- B: a layer that normalizes where nobody looks -----------------------------------------------


def twice_the_old_forward(module: Any, x: Tensor) -> Tensor:
    return module._old_forward(x) * 2


def patched(how: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net(lambda n, x: n.b(x) + x)
        b = net.b
        if how == "accelerate":
            b._old_forward = b.forward
            partial = functools.partial(twice_the_old_forward, b)
            b.forward = functools.update_wrapper(partial, b._old_forward)
        elif how == "method":
            b.forward = types.MethodType(lambda self, x: bn(self, x) * 2, b)
        elif how == "partial of the class":
            b.forward = functools.partial(nn.BatchNorm1d.forward, b)
        elif how == "closure":
            old = b.forward
            b.forward = lambda x: old(x) * 2
        elif how == "the network's":
            net.forward = functools.partial(lambda n, x: n.b(x) * 3, net)
        return net

    return make


def plain_b() -> nn.Module:
    return Net(just_b)


def without_torch_functions(n: Net, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return n.b(x)


def in_threads(n: Net, x: Tensor) -> Tensor:
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda branch: branch(x), (n.b, n.other))
    return a + b


def in_a_thread(n: Net, x: Tensor) -> Tensor:
    found = []
    thread = threading.Thread(target=lambda: found.append(n.b(x)))
    thread.start()
    thread.join()
    return found[0]


def functional_call(n: Net, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    state = {name: change(value) for name, value in n.b.state_dict(keep_vars=True).items()}
    return torch.func.functional_call(n.b, state, (x,))


def fused(n: Net, x: Tensor) -> Tensor:
    """As RepVGG's layers do: the batch norm is part of the weights before it."""
    scale = n.b.weight / (n.b.running_var + n.b.eps).sqrt()
    weight = n.linear.weight * scale[:, None]
    return F.linear(x, weight, (n.linear.bias - n.b.running_mean) * scale + n.b.bias)


def with_linear() -> dict[str, Any]:
    return {"linear": nn.Linear(6, 6)}


def unfused() -> nn.Module:
    return Net(lambda n, x: n.b(n.linear(x)), **with_linear())


def scripted_norm(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var)


def ours(function: Callable[..., Any], **options: Any) -> Case:
    """The function does what calling ``b`` does; it may be refused by the layer's name."""
    return case(function, plain=plain_b, refused="'b'", **options)


CASES |= {
    **{
        f"B1 forward patched, {how}": Case(patched(how))
        for how in ("accelerate", "method", "partial of the class", "the network's")
    },
    "B1 forward patched, closure": Case(patched("closure"), refused="'b'"),
    "B1 forward called, not the layer": case(lambda n, x: n.b.forward(x), plain=plain_b),
    "B1 the class's forward called": case(lambda n, x: bn(n.b, x), plain=plain_b),
    "B1 forward called, no running statistics": case(
        lambda n, x: n.b.forward(x),
        modules=lambda: {"b": nn.BatchNorm1d(6, track_running_stats=False)},
        plain=lambda: Net(just_b, b=nn.BatchNorm1d(6, track_running_stats=False)),
        refused="'b'",
    ),
    "B2 own formula": layer(
        lambda m, x: (x - m.running_mean) / torch.sqrt(m.running_var + m.eps), refused="'b'"
    ),
    "B2 own formula, folded": layer(
        lambda m, x: x.mul(s := m.weight * (m.running_var + m.eps).rsqrt()).add(
            m.bias - m.running_mean * s
        ),
        refused="'b'",
    ),
    "B2 own formula in a second layer": Case(
        lambda: Net(
            lambda n, x: n.own(n.b(x)),
            own=Layer(lambda m, x: (x - m.running_mean) / (m.running_var + m.eps) ** 0.5),
        ),
        refused="'own'",
    ),
    "B2 own formula where it is wide": layer(
        lambda m, x: bn(m, x) if len(x) > 8 else (x - m.running_mean) / m.running_var.sqrt(),
        refused="'b'",
    ),
    "B2 the batch's own statistics": layer(
        lambda m, x: F.batch_norm(x, None, None, m.weight, m.bias, True), refused="'b'"
    ),
    "B2 the mean alone": layer(
        lambda m, x: F.batch_norm(x, m.running_mean, torch.ones(6).double()), refused="'b'"
    ),
    "B2 the variance alone": layer(
        lambda m, x: F.batch_norm(x, torch.zeros(6).double(), m.running_var), refused="'b'"
    ),
    "B2 statistics copied": layer(
        lambda m, x: F.batch_norm(x, *(s.clone() for s in stats(m))), refused="'b'"
    ),
    "B2 statistics cast": layer(
        lambda m, x: F.batch_norm(x.float(), *(s.float() for s in stats(m))).double(),
        refused="'b'",
    ),
    "B2 statistics detached": layer(
        lambda m, x: F.batch_norm(x, *(s.detach() for s in stats(m)), m.weight), refused="'b'"
    ),
    "B2 statistics turned round": Case(
        lambda: Net(
            just_b,
            b=Layer(lambda m, x: F.batch_norm(x.flip(1), *(s.flip(0) for s in stats(m))).flip(1)),
        ),
        plain=lambda: Net(just_b, b=Layer(lambda m, x: F.batch_norm(x, *stats(m)))),
        refused="'b'",
    ),
    "B3 outside of the layer": ours(
        lambda n, x: F.batch_norm(x, *stats(n.b), n.b.weight, n.b.bias)
    ),
    "B3 outside, torch.batch_norm": ours(
        lambda n, x: torch.batch_norm(
            x, n.b.weight, n.b.bias, *stats(n.b), False, 0.0, 1e-5, torch.backends.cudnn.enabled
        )
    ),
    "B3 outside, by its name in aten": ours(
        lambda n, x: torch.ops.aten.batch_norm.default(
            x, n.b.weight, n.b.bias, *stats(n.b), False, 0.0, 1e-5, False
        )
    ),
    "B3 outside, native": ours(
        lambda n, x: torch.native_batch_norm(
            x, n.b.weight, n.b.bias, *stats(n.b), False, 0.0, 1e-5
        )[0]
    ),
    "B3 a functional call, the same buffers": ours(
        lambda n, x: functional_call(n, x, lambda value: value)
    ),
    "B3 a functional call, copies": ours(lambda n, x: functional_call(n, x, Tensor.clone)),
    "B3 fused into the linear layer": case(
        fused, modules=with_linear, plain=unfused, refused="'b'"
    ),
    "B3 fused where it is not trained": case(
        lambda n, x: n.b(n.linear(x)) if len(x) > 8 else fused(n, x),
        modules=with_linear,
        plain=unfused,
        refused="'b'",
    ),
    "B3 where torch functions are off": case(without_torch_functions, refused="'b'"),
    "B3 a thread": case(in_a_thread, refused="'b'"),
    "B3 two threads": case(
        in_threads, modules=lambda: {"other": nn.BatchNorm1d(6)}, refused="'(b|other)'"
    ),
    "B3 a thread beside": case(
        lambda n, x: n.other(x) + in_a_thread(n, x),
        modules=lambda: {"other": nn.BatchNorm1d(6)},
        refused="'b'",
    ),
    "B3 jit.fork": ours(lambda n, x: torch.jit.wait(torch.jit.fork(n.b, x))),
}


def on_small(way: Callable[..., Any], **options: Any) -> Case:
    """What ``fit``, which passes larger batches, has not seen."""
    return ours(lambda n, x: n.b(x) if len(x) > 8 else way(n, x), **options)


def replaced(n: Net, x: Tensor) -> Tensor:
    n.b.running_mean = n.b.running_mean
    return n.b(x)


def from_buffers(n: Net, x: Tensor) -> Tensor:
    held = dict(n.b.named_buffers())
    return F.batch_norm(x, held["running_mean"], held["running_var"], n.b.weight, n.b.bias)


CASES |= {
    "B4 from a dict of the buffers": ours(from_buffers),
    "B4 from such a dict later": on_small(from_buffers),
    "B4 looked up here and used from a dict": ours(
        lambda n, x: from_buffers(n, x) if None not in stats(n.b) else x
    ),
    "B4 looked at later": on_small(lambda n, x: n.b(x) * n.b.running_var.dim()),
    "B4 replaced": ours(replaced),
    "B4 replaced later": on_small(replaced),
    "B4 a functional call later": on_small(lambda n, x: functional_call(n, x, lambda v: v)),
    "B4 a functional call of copies later": on_small(
        lambda n, x: functional_call(n, x, Tensor.clone)
    ),
    "B4 a copy of the layer later": on_small(lambda n, x: copy.deepcopy(n.b)(x)),
    "B4 the copy of a layer": ours(lambda n, x: copy.copy(n.b)(x)),
    "B4 the copy of a layer later": on_small(lambda n, x: copy.copy(n.b)(x)),
    "B4 looked at between two calls": case(
        lambda n, x: n.b(n.b(x) * n.b.running_mean.dim() * n.b.running_var.dim())
    ),
    "B4 looked at after two calls": case(
        lambda n, x: (n.b(n.b(x)), n.b.running_mean.dim(), n.b.running_var.dim())[0]
    ),
    "B4 one half, then all": Case(
        lambda: Net(
            lambda n, x: n.b(torch.cat([n.b(x[:, :3]), x[:, 3:]], 1)),
            b=Layer(
                lambda m, x: F.batch_norm(
                    x, *(s[: x.shape[1]] if x.shape[1] < 6 else s for s in stats(m))
                )
            ),
        ),
    ),
    "B4 not called later": case(
        lambda n, x: n.other(n.b(x)) if len(x) > 8 else n.b(x).sin(),
        modules=lambda: {"other": nn.BatchNorm1d(6)},
    ),
    "B4 called twice later": case(
        lambda n, x: n.b(x) if len(x) > 8 else n.b(n.b(x)), refused="fit"
    ),
    "B4 called later": case(
        lambda n, x: n.b(x) if len(x) > 8 else n.other(n.b(x)),
        modules=lambda: {"other": nn.BatchNorm1d(6)},
        refused="fit",
    ),
    "B4 another layer later": case(
        lambda n, x: n.b(n.other(x)) if len(x) > 8 else n.other(n.b(x)),
        modules=lambda: {"other": nn.BatchNorm1d(6)},
    ),
    "B4 one estimator skips it": case(
        lambda n, x: n.other(x) if len(x) > 8 or (x := n.b(x))[0, 0] > 0 else x * 2,
        modules=lambda: {"other": nn.BatchNorm1d(6)},
        refused="fit",
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("how", ["its mode", "its call", "its call later"])
def test_b4_a_layer_that_trains_at_prediction_keeps_its_statistics(how: str, wrap: Wrap) -> None:
    def trains(m: Any, x: Tensor) -> Tensor:
        training = how == "its call" or (how == "its call later" and len(x) == 8) or m.training
        return F.batch_norm(x, *stats(m), m.weight, m.bias, training, 0.1, m.eps)

    mc = fitted(wrap, lambda: Net(just_b, b=Layer(trains)))
    before = fresh((mc.model.b.mc_mean, mc.model.b.mc_var))
    mc.model.b.training = how == "its mode"
    for _ in range(2):
        assert_estimators(mc(X), Case(lambda: Net(just_b)).loop())
    assert_same((mc.model.b.mc_mean, mc.model.b.mc_var), before)


@torch.no_grad()
def test_b4_a_layer_that_is_skipped_later_costs_one_pass_each(wrap: Wrap) -> None:
    passes = 0

    def forward(n: Net, x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return n.other(n.b(x)) if len(x) > 8 else n.b(x)

    mc = fitted(wrap, lambda: Net(forward, other=nn.BatchNorm1d(6)))
    mc(X)
    passes = 0
    mc(X)
    assert passes == (1 if mc.path == "auto" and mc.chunk_bytes is None else 4)


@torch.no_grad()
def test_b4_each_estimator_is_one_pass_whatever_it_looks_up(wrap: Wrap) -> None:
    passes: list[int] = []

    def forward(n: Net, x: Tensor) -> Tensor:
        passes.append(len(x))
        return n.b(x) * (n.b.running_var.dim() if len(passes) % 2 else 1)

    mc = fitted(wrap, lambda: Net(forward))
    passes.clear()
    mc(X)
    mc(X)
    assert mc.loop_reason is None or len(passes) == 8


@torch.no_grad()
def test_b4_an_input_is_written_once_whatever_the_last_pass_looks_up(wrap: Wrap) -> None:
    passes = -len(V)

    def forward(n: Net, x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return n.b(x.mul_(2)) * (n.b.running_var.dim() if passes == 4 else 1)

    mc = fitted(wrap, lambda: Net(forward))
    x = X.clone()
    assert_estimators(mc(x), Case(lambda: Net(lambda n, x: n.b(x * 2)), batches=V).loop())
    assert_same(x, 2 * X)


def test_b_scripted_function_gets_the_statistics(wrap: Wrap) -> None:
    scripted = torch.jit.script(scripted_norm)
    assert_right_or_refused(
        Case(
            lambda: Net(lambda n, x: scripted(x, *stats(n.b))),
            plain=lambda: Net(just_b, b=Layer(lambda m, x: scripted_norm(x, *stats(m)))),
            refused="'b'",
        ),
        wrap,
    )


@pytest.mark.parametrize("name", ["b.b", "deep.0.norm"])
def test_b_refusal_names_the_layer_in_full(name: str, wrap: Wrap) -> None:
    own = Layer(lambda m, x: (x - m.running_mean) / m.running_var.sqrt())
    if name == "b.b":
        net: nn.Module = Net(lambda n, x: n.b(x), b=Net(just_b, b=own))
    else:
        net = nn.Sequential(OrderedDict(deep=nn.Sequential(nn.Sequential(OrderedDict(norm=own)))))
    assert_right_or_refused(Case(lambda: copy.deepcopy(net), refused=re.escape(f"'{name}'")), wrap)


# --- C: outputs ----------------------------------------------------------------------------------


class Pair(NamedTuple):
    mean: Tensor
    extra: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    y: Tensor
    name: str = "y"


@dataclasses.dataclass(slots=True, kw_only=True)
class Slots:
    y: Tensor
    z: Any = None


@dataclasses.dataclass
class Later:
    """A field that is set after the constructor, and one that the constructor computes."""

    y: Tensor
    later: Any = dataclasses.field(init=False, default=None)
    double: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.double = 2 * self.y


@dataclasses.dataclass
class Strict:
    """Looks at its tensor; and takes something that it does not keep."""

    y: Tensor
    scale: dataclasses.InitVar[float] = 1.0

    def __post_init__(self, scale: float) -> None:
        if self.y.dim() != 2 or self.y.shape[1] != 6 or not self.y.isfinite().all():
            raise AssertionError(f"{self.y} is not of shape (rows, 6)")


class ModelOutput(OrderedDict):
    """What transformers returns, in short."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore
            if (value := getattr(self, field.name)) is not None:
                self[field.name] = value

    def __delitem__(self, *_: Any) -> None:
        raise Exception("You cannot delete from a ModelOutput.")

    pop = update = setdefault = __delitem__  # type: ignore

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self) -> Any:
        return type(self), tuple(getattr(self, f.name) for f in dataclasses.fields(self))  # pyright: ignore


@dataclasses.dataclass
class Classified(ModelOutput):
    logits: Any = None
    hidden: Any = None
    loss: Any = None


class Attributes(dict):
    """A dictionary whose keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    __setattr__ = dict.__setitem__  # type: ignore


class Listed(list):
    pass


class ImageTensor(Tensor):
    def __deepcopy__(self, memo: Any) -> Any:
        return self.as_subclass(Tensor).clone().as_subclass(ImageTensor)


class Holder:
    """An object of its own class that holds a tensor."""

    def __init__(self, y: Any) -> None:
        self.y = y


class SlotHolder:
    __slots__ = ("y",)

    def __init__(self, y: Any) -> None:
        self.y = y


def later(y: Tensor) -> Later:
    out = Later(y)
    out.later = y.exp()
    return out


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "C2 defaultdict": lambda h: defaultdict(list, y=h),
    "C2 OrderedDict": lambda h: OrderedDict(b=h, a=h * 2),
    "C2 dict in dict in list": lambda h: [{"a": {"b": (h, [h + 1])}, 3: h.sum()}],
    "C2 keys that are no strings": lambda h: {0: h, (1, 2): h + 1, None: h + 2},
    "C2 attribute dict": lambda h: Attributes(y=h, name="y"),
    "C2 named tuple": lambda h: Pair(h, {"z": Pair(h * 2)}),
    "C2 frozen dataclass": lambda h: Frozen(h),
    "C2 dataclass with slots": lambda h: Slots(y=h, z=[h.sum(), None]),
    "C2 dataclass with a field set later": later,
    "C2 dataclass that looks at its tensor": lambda h: Strict(h, 2.0),
    "C2 dataclass in a dataclass": lambda h: Frozen(Slots(y=h, z=Pair(h)), "nested"),
    "C2 ModelOutput": lambda h: Classified(logits=h, hidden=(h, h.relu())),
    "C2 torch's named tuple": lambda h: h.topk(2),
    "C2 list subclass": lambda h: Listed([h, h * 2]),
    "C2 None beside, texts and numbers": lambda h: (None, h, "text", 1, 2.5, True, h.shape[1]),
    "C2 empty beside": lambda h: ((), [], {}, h),
    "C2 one tensor twice": lambda h: (h, h),
    "C2 views of one another": lambda h: (h, h[0], h.T, h[:, 1:3]),
    "C2 integers and truth values": lambda h: (h.argmax(1), h > 0, h.sum(), h.round().int()),
    "C2 complex": lambda h: torch.fft.rfft(h),
    "C2 expanded": lambda h: h[:, :1].expand(-1, 5),
    "C2 no elements": lambda h: (h[:0], h),
}
CASES |= {name: case(lambda n, x, f=f: f(n.b(x))) for name, f in OUTPUTS.items()}
CASES |= {
    "C2 what does not depend on the estimator": case(
        lambda n, x: (n.b(x), x, x * 2, torch.ones(3), n.b.weight * 1)
    ),
    "C2 nothing that depends on the estimator": case(lambda n, x: (n.b(x), x)[1] + 1),
    "C2 a parameter": case(lambda n, x: {"h": n.b(x), "w": n.b.weight.detach()}),
    "C2 None alone": case(lambda n, x: (n.b(x), None)[1]),
}
REFUSED_OR_RIGHT: dict[str, Callable[[Tensor], Any]] = {
    "UserDict": lambda h: UserDict(y=h),
    "deque": lambda h: deque([h, h * 2]),
    "SimpleNamespace": lambda h: types.SimpleNamespace(y=h),
    "mappingproxy": lambda h: types.MappingProxyType({"y": h}),
}
CASES |= {
    f"C {name}": case(lambda n, x, f=f: f(n.b(x)), refused=name)
    for name, f in REFUSED_OR_RIGHT.items()
}

# Each with what the message has to name.
NO_TENSORS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "C1 distribution": ("Normal", lambda h: Normal(h, 1.0)),
    "C1 distribution in a dict": ("Normal", lambda h: {"y": h, "p": Normal(h, 1.0)}),
    "C1 distribution of distributions": ("Independent", lambda h: Independent(Normal(h, 1.0), 1)),
    "C1 distribution in a dataclass": ("Categorical", lambda h: Frozen(Categorical(logits=h))),
    "C1 own class": ("Holder", Holder),
    "C1 own class with slots": ("SlotHolder", SlotHolder),
    "C1 own class in a list": ("Holder", lambda h: [h, Holder(h)]),
    "C1 generator": ("generator", lambda h: (part for part in h)),
    "C1 iterator": ("map", lambda h: map(torch.exp, h)),
    "C1 set": ("set", lambda h: {h}),
    "C1 values of a dict": ("dict_values", lambda h: {"y": h}.values()),
    "C1 function": ("function", lambda h: lambda: h),
    "C1 partial": ("partial", lambda h: functools.partial(torch.add, h)),
    "C1 array": ("ndarray", lambda h: h.detach().numpy()),
    "C1 number": ("float", lambda h: h.mean().item()),
    "C1 number in a dict": ("float", lambda h: {"y": h, "score": float(h.sum())}),
    "C1 numbers in a list": ("float", lambda h: h.sum(0).tolist()),
    "C1 whole number": ("int", lambda h: int((h * 1e6).sum())),
    "C1 text": ("str", lambda h: f"{h.mean():.6f}"),
    "C1 number of numpy's": ("float64", lambda h: h.detach().numpy().mean()),
    "C1 module": ("Linear", lambda h: holds(nn.Linear(1, 1), h)),
}


def holds(module: nn.Module, h: Tensor) -> nn.Module:
    module.h = h
    return module


@pytest.mark.parametrize("name", NO_TENSORS)
def test_c_output_without_tensors_is_refused(name: str, wrap: Wrap) -> None:
    """Unless every estimator has it alike, it would be the output of one of them."""
    kind, function = NO_TENSORS[name]
    mc = fitted(wrap, lambda: Net(lambda n, x: function(n.b(x))))
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=rf"\b{kind}\b") as error, torch.no_grad():
            mc(X)
        assert_in_words(error.value, "[Tt]ensor")


# --- D: a prediction under other conditions than fit's -------------------------------------------


def centred(n: Net, x: Tensor, centre: bool = False) -> Tensor:
    h = n.b(x)
    return h - h.mean(0) if centre else h


def labelled(n: Net, x: Tensor, y: Tensor | None = None) -> Any:
    h = n.b(x)
    return h if y is None else (h, (h - y).square().mean())


def into(n: Net, h: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :3] = h[:, 3:]
    return out


def halved(h: Tensor) -> Tensor:
    while h.norm() > 1:
        h = h / 2
    return h


def siamese() -> nn.Module:
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU())
    return Net(lambda n, a, b: n.encoder(a) * n.encoder(b), b=None, encoder=encoder)


EQUAL_PAIRS = list(zip(normal(8, 5, 6, seed=8), normal(8, 5, 6, seed=9), strict=True))
KEYWORDS = [{"x": v} for v in V]

CASES |= {
    "D2 subtracts the mean": case(centred, KEYWORDS, {"x": X, "centre": True}),
    "D2 leaves the mean": case(
        centred, [{"x": v, "centre": True} for v in V], {"x": X, "centre": False}
    ),
    "D3 labels": case(
        lambda n, x, y=None: n.b(x) if y is None else n.b(x) * y,
        KEYWORDS,
        {"x": normal(32, 6, seed=2), "y": normal(32, 1, seed=3)},
    ),
    "D3 labels, a loss beside": case(labelled, KEYWORDS, {"x": X, "y": normal(8, 6, seed=3)}),
    "D3 labels of fit are absent": case(
        labelled, [{"x": v, "y": v.flip(0)} for v in V], {"x": X, "y": None}
    ),
    "D4 one row and eight": Case(
        siamese, EQUAL_PAIRS, (normal(1, 6, seed=2), normal(8, 6, seed=3))
    ),
    "D4 three rows and three": Case(
        siamese, EQUAL_PAIRS, (normal(3, 6, seed=2), normal(3, 6, seed=3))
    ),
    "D4 support and query": case(
        lambda n, a, b: torch.cdist(n.b(a).view(2, -1, 6).mean(1), n.b(b)),
        [(v[:8], v[8:]) for v in V],
        (normal(4, 6), normal(7, 6)),
    ),
    "D4 the second only once in a while": case(
        lambda n, a, b: n.b(a) if b is None else n.b(a) + n.b(b),
        [(v, v.flip(1)) for v in V],
        (X, None),
    ),
    "D5 ghost, longer than a mini-batch": Case(
        lambda: Net(
            lambda n, x: n.ghost(n.b(x).tanh()),
            ghost=Layer(lambda m, x: torch.cat([bn(m, part) for part in x.split(64)])),
        ),
        list(normal(16, 32, 6)),
    ),
    "D5 ghost, sizes that do not divide": Case(
        lambda: Net(just_b, b=Layer(ghost)), ROWS, normal(7, 6), plain_ghost
    ),
    "D5 ghost, one part": Case(
        lambda: Net(just_b, b=Layer(ghost)), ROWS, normal(2, 6), plain_ghost
    ),
    "D6 large and small": case(
        lambda n, x: torch.cat([1e9 * n.b(x), (h := n.b(x)) - h.mean(0)], 1)
    ),
    "D6 boxes beside probabilities": case(
        lambda n, x: {"boxes": 1e9 * n.b(x), "p": (n.b(x) - n.b(x).mean(0)).softmax(1)}
    ),
    "D mode is an attribute": case(
        lambda n, x, pool: n.b(x).mean(0) if pool else n.b(x),
        [(v, False) for v in V],
        (X, True),
    ),
    "D the number of rows decides": case(
        lambda n, x: n.b(x) - n.b(x).mean(0) if len(x) < 16 else n.b(x) + n.b(x)
    ),
    "D another number of rows than in fit": case(lambda n, x: n.b(x).softmax(1), call=X[:1]),
    "D the batch's order": case(lambda n, x: n.b(x).cumsum(0).roll(1, 0)),
}

OPERATIONS: dict[str, Callable[..., Any]] = {
    # a value decides
    "if": lambda n, h, x: h.tanh() if h.mean() > 0 else h * 3,
    "while": lambda n, h, x: halved(h),
    "item": lambda n, h, x: h / h.abs().max().item(),
    "index": lambda n, h, x: x[int(h.sum(1).argmax())],
    "tolist": lambda n, h, x: x * sum(h[0].tolist()),
    "numpy": lambda n, h, x: torch.from_numpy(np.sort(h.detach().numpy())),
    "assert": lambda n, h, x: (h, [] if bool(torch.isfinite(h).all()) else None)[0],
    "format": lambda n, h, x: h * float(f"{h.mean():.2f}"),
    "maximum of Python": lambda n, h, x: h * max(h[0, 0], h[1, 1]),
    "sorted": lambda n, h, x: torch.stack(sorted(h[:, 0])),
    "torch.tensor": lambda n, h, x: torch.tensor([h.mean().item(), 1.0]).double(),
    "equal": lambda n, h, x: h if torch.equal(h, x) else -h,
    "in": lambda n, h, x: h * (2 if h[0, 0] in h[0] else 3),
    # masks and indices
    "mask of the input": lambda n, h, x: h[x[:, 0] > 0],
    "nonzero of the input": lambda n, h, x: h[(x[:, 0] > 0).nonzero()[:, 0]],
    "masked_select by the input": lambda n, h, x: h.masked_select(x > 0),
    "assigned at a mask": lambda n, h, x: assigned(h.clone(), h > 0, 0.0),
    "assigned at a mask, tensor": lambda n, h, x: assigned(h.clone(), x > 0, h[x > 0] * 2),
    "where": lambda n, h, x: torch.where(h > 0, h, x),
    "masked_fill": lambda n, h, x: h.masked_fill(x > 0, -1),
    "rows by the estimator": lambda n, h, x: h[h.argmax(0)] + x[h.argsort(0)[:6, 0]],
    "gather": lambda n, h, x: x.gather(1, h.argsort(1)),
    "scatter": lambda n, h, x: torch.zeros_like(x).scatter(1, h.argsort(1), h),
    "sort": lambda n, h, x: torch.sort(h, 0),
    "one_hot": lambda n, h, x: F.one_hot(h.argmax(1), 6) * x,
    "searchsorted": lambda n, h, x: torch.searchsorted(h.flatten().sort()[0], x),
    "repeat_interleave": lambda n, h, x: h.repeat_interleave(torch.arange(len(h)), 0),
    "index_add": lambda n, h, x: x.new_zeros(3, 6).index_add_(0, torch.arange(len(h)) % 3, h),
    "scatter_reduce": lambda n, h, x: x.new_zeros(6).scatter_reduce(0, h.argmax(1), h[:, 0], "sum"),
    "histogram": lambda n, h, x: torch.histc(h, 5),
    "bincount": lambda n, h, x: torch.bincount(h.argmax(1), minlength=6),
    # writes
    "into zeros": into,
    "copy_": lambda n, h, x: torch.empty_like(x).copy_(h) * 2,
    "add to a shared tensor": lambda n, h, x: (x * 1).add_(h),
    "out=": lambda n, h, x: torch.add(h.detach(), 1, out=torch.empty_like(x)),
    "rows one by one": lambda n, h, x: rows_one_by_one(h),
    "fill_diagonal_": lambda n, h, x: (h.T @ h).fill_diagonal_(0),
    "in place on a view": lambda n, h, x: (h[:, 0].mul_(2), h)[1],
    "relu_ used before and after": lambda n, h, x: (h + 0, h.relu_(), h),
    "data": lambda n, h, x: h.data.clone(),
    "detach, requires_grad_": lambda n, h, x: h.detach().requires_grad_().detach() * 2,
    "unpacked": lambda n, h, x: sum(row * i for i, row in enumerate(h)),
    # memory
    "view of what is transposed": lambda n, h, x: h.T.reshape(-1).view(2, -1),
    "as_strided": lambda n, h, x: h.contiguous().as_strided((4, 6), (12, 1)),
    "strides": lambda n, h, x: h.view(-1) if h.is_contiguous() and h.stride() == (6, 1) else h,
    "unfold": lambda n, h, x: h.unfold(0, 3, 2).mean(-1),
    "copy": lambda n, h, x: copy.copy(h) + copy.deepcopy(h.detach()),
    "element_size": lambda n, h, x: h * h.element_size() * h.nelement() * len(h),
    # algebra
    "cdist": lambda n, h, x: torch.cdist(h, x),
    "cov": lambda n, h, x: torch.linalg.inv(torch.eye(6) + torch.cov(h.T)),
    "cholesky": lambda n, h, x: torch.linalg.cholesky(torch.eye(6) + h.T @ h),
    "solve": lambda n, h, x: torch.linalg.solve(torch.eye(6) + h.T @ h, x.T),
    "einsum": lambda n, h, x: torch.einsum("ni,nj->ij", h, x),
    "fft": lambda n, h, x: torch.fft.fft2(h).abs(),
    "standardized": lambda n, h, x: F.layer_norm(h, (6,)) + F.normalize(h) + F.softmax(h, 0),
    "instance and group norm": lambda n, h, x: (
        F.group_norm(F.instance_norm(h[None]), 2) if len(h) % 2 == 0 else h
    ),
    "own filters": lambda n, h, x: F.conv1d(x[None], h.view(len(h), 1, 6)[..., :3], groups=len(h)),
    "norm without statistics": lambda n, h, x: F.batch_norm(h, None, None, training=True),
    "norm with statistics of its own": lambda n, h, x: F.batch_norm(h, *2 * [torch.ones(6).to(h)]),
    "norm with statistics of its estimator": lambda n, h, x: F.batch_norm(
        x, h.detach().mean(0), h.detach().var(0)
    ),
    "frozen norm": lambda n, h, x: torchvision.ops.FrozenBatchNorm2d(6).double()(
        h[..., None, None]
    ),
    "interpolate": lambda n, h, x: F.interpolate(h[None, None], scale_factor=2, mode="bilinear"),
    "grid_sample": lambda n, h, x: F.grid_sample(
        x[None, None], h[:, :2].tanh()[None, None], align_corners=False
    ),
    "max_pool with indices": lambda n, h, x: F.max_unpool1d(
        *F.max_pool1d(h[None], 2, return_indices=True), 2
    ),
    "attention": lambda n, h, x: F.scaled_dot_product_attention(h[None], h[None], x[None]),
    "attention, causal": lambda n, h, x: F.scaled_dot_product_attention(
        *(h.view(1, 2, -1, 6),) * 3, is_causal=True
    ),
    "attention, a mask of the input": lambda n, h, x: F.scaled_dot_product_attention(
        h[None], h[None], h[None], attn_mask=(x @ x.T > 0)[None] | torch.eye(len(x)).bool()
    ),
    "embedding_bag": lambda n, h, x: F.embedding_bag(
        h.argmax(1)[None], torch.eye(6).double(), mode="sum"
    ),
    "loss": lambda n, h, x: F.cross_entropy(h, x.argmax(1)),
    # of other libraries, or with modes
    "deform_conv2d": lambda n, h, x: torchvision.ops.deform_conv2d(
        h[..., None, None], torch.zeros(len(h), 2, 1, 1).double(), torch.ones(2, 6, 1, 1).double()
    ),
    "roi_align": lambda n, h, x: torchvision.ops.roi_align(
        h[None, None], [torch.tensor([[0.0, 0.0, 4.0, 4.0]]).double()], 2
    ),
    "nms": lambda n, h, x: torchvision.ops.nms(apart(len(h)), h.sum(1), 0.5),
    "nested vmap": lambda n, h, x: torch.vmap(lambda row: row / row.norm())(h),
    "func.grad": lambda n, h, x: torch.func.grad(lambda t: t.pow(3).sum())(h),
    "func.jacrev": lambda n, h, x: torch.func.jacrev(lambda t: t.pow(2).sum(0))(h),
    "func.jvp": lambda n, h, x: torch.func.jvp(torch.sin, (h,), (x,))[1],
    "tensor subclass": lambda n, h, x: (h.as_subclass(ImageTensor) * 2).as_subclass(Tensor),
    "no_grad inside": lambda n, h, x: switched(torch.no_grad(), lambda: h * 2) + h,
    "modules of its own": lambda n, h, x: nn.Sequential(nn.Flatten(0), nn.Softmax(0))(h),
}


def assigned(h: Tensor, mask: Tensor, value: Any) -> Tensor:
    h[mask] = value
    return h


def rows_one_by_one(h: Tensor) -> Tensor:
    out = torch.zeros(len(h), 6, dtype=h.dtype)
    for i in range(len(h)):
        out[i] = h[i].cumsum(0)
    return out


def apart(count: int) -> Tensor:
    """Boxes that do not overlap."""
    start = 10.0 * torch.arange(count).double()[:, None]
    return torch.cat([start, start, start + 1, start + 1], 1)


def switched(context: Any, function: Callable[[], Tensor]) -> Tensor:
    with context:
        return function()


CASES |= {f"D {name}": case(lambda n, x, f=f: f(n, n.b(x), x)) for name, f in OPERATIONS.items()}

# Of images so large that a pooling may go before the scale and the shift.


def after(value: Any, *_: Any) -> Any:
    """The value, once other things have been done."""
    return value


def norm_of_written(n: Net, x: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    raw = x * 1
    h = n.b(raw)
    change(raw)
    return F.max_pool2d(h, 2)


def view_of_written(h: Tensor) -> tuple[Tensor, Tensor]:
    view = h[:, :2]
    h.relu_()
    return h, view


POOLED: dict[str, Callable[..., Any]] = {
    "relu, pool": lambda n, h, x: F.max_pool2d(F.relu(h), 2),
    "kept": lambda n, h, x: after(F.max_pool2d(h, 2) * 1, setattr(n, "kept", h), n.kept.sum()),
    "relu_ after the pool": lambda n, h, x: (F.max_pool2d(h, 2), h.relu_(), h.sum(0)),
    "a view, then relu_": lambda n, h, x: view_of_written(h),
    "relu, then written": lambda n, h, x: (F.relu(h), h.mul_(2), F.max_pool2d(h, 2)),
    "written, then pooled": lambda n, h, x: (h.mul_(-1), F.max_pool2d(h, 2)),
    "assigned, then pooled": lambda n, h, x: F.max_pool2d(assigned(h, slice(2), 0.0), 2),
    "its input written": lambda n, h, x: norm_of_written(n, x, lambda raw: raw.zero_()),
    "its input written, no version": lambda n, h, x: norm_of_written(
        n, x, lambda raw: raw.data.mul_(2)
    ),
    "added to its input": lambda n, h, x: F.max_pool2d(F.relu(h) + x, 2),
    "indices": lambda n, h, x: F.max_pool2d(h, 2, return_indices=True),
    "pooled twice": lambda n, h, x: (F.max_pool2d(h, 2), F.max_pool2d(h, 3), F.avg_pool2d(h, 2)),
    "pool of the pool": lambda n, h, x: F.max_pool2d(F.relu6(F.max_pool2d(h, 2)), (2, 1)),
    "max": lambda n, h, x: h.amax((2, 3)) + h.flatten(2).max(-1)[0],
    "1d": lambda n, h, x: F.max_pool1d(h.flatten(2), 4),
    "adaptive": lambda n, h, x: F.adaptive_max_pool2d(h, 3),
    "unpooled": lambda n, h, x: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
    "in containers": lambda n, h, x: {"h": [h, (h,)], "pool": Pair(F.max_pool2d(h, 2))},
    "a key": lambda n, h, x: {h: 1}[h] * h,
    "type": lambda n, h, x: h * (2 if isinstance(h, Tensor) else 3),
    "attributes": lambda n, h, x: (
        h * (h.is_floating_point() + h.dim() + h.stride(0) + h.size(1) + (h.device == x.device))
    ),
    "copies": lambda n, h, x: copy.copy(h) + copy.deepcopy(h.detach()) + h.clone() + h.data,
    "numpy": lambda n, h, x: torch.from_numpy(h.detach().numpy().copy()),
    "item": lambda n, h, x: F.max_pool2d(h, 2) * h[0, 0, 0, 0].item(),
    "function": lambda n, h, x: F.max_pool2d(Swish.apply(h), 2),
    "custom operator": lambda n, h, x: F.max_pool2d(torch.ops.mcbn_cases.cube(h), 2),
    "aten": lambda n, h, x: torch.ops.aten.max_pool2d(torch.ops.aten.relu(h), [2, 2]),
    "concatenated": lambda n, h, x: F.max_pool2d(torch.cat([h, x, F.relu(h)], 1), 2),
    "two calls": lambda n, h, x: F.max_pool2d(F.relu(n.b(F.max_pool2d(F.relu(h), 2))), 2),
    "vmap": lambda n, h, x: torch.vmap(lambda part: F.max_pool2d(part, 2))(h),
    "order of its pool": lambda n, h, x: F.max_pool2d(h, 2).argsort(-1),
    "lists": lambda n, h, x: [F.max_pool2d(each[None], 2) for each in h],
    "out=": lambda n, h, x: torch.mul(h.detach(), 2, out=torch.empty_like(x)),
    "values that are not finite": lambda n, h, x: F.max_pool2d(h / (x > 1), 2).nan_to_num(),
}
BIG = normal(4, 8, 6, 30, 14, seed=11) * normal(4, 1, 6, 1, 1, seed=12)
CASES |= {
    f"D pooled, {name}": case(
        lambda n, x, f=f: f(n, n.b(x), x),
        list(BIG),
        normal(8, 6, 30, 14, seed=13),
        modules=lambda: {"b": nn.BatchNorm2d(6)},
    )
    for name, f in POOLED.items()
}


MODULES: dict[str, tuple[Callable[..., Any], Callable[[], nn.Module]]] = {
    "LSTM": (lambda n, h: n.m(h[None])[0], lambda: nn.LSTM(6, 3, 2, batch_first=True)),
    "GRU, its state": (lambda n, h: n.m(h[:, None])[1], lambda: nn.GRU(6, 3, bidirectional=True)),
    "LSTMCell": (lambda n, h: n.m(h), lambda: nn.LSTMCell(6, 3)),
    "MultiheadAttention": (
        lambda n, h: n.m(h[None], h[None], h[None], key_padding_mask=h.new_zeros(1, len(h)) > 0),
        lambda: nn.MultiheadAttention(6, 2, batch_first=True),
    ),
    "TransformerEncoder": (
        lambda n, h: n.m(h[None]),
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2, enable_nested_tensor=False
        ),
    ),
    "TransformerEncoder, padded": (
        lambda n, h: n.m(
            torch.stack([h, h]), src_key_padding_mask=torch.arange(len(h)).expand(2, -1) > 5
        ),
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
    ),
    "InstanceNorm that tracks": (
        lambda n, h: n.m(h.T[None]),
        lambda: nn.InstanceNorm1d(6, track_running_stats=True),
    ),
    "Bilinear, PReLU, Embedding": (
        lambda n, h: n.m[0](h, h) + n.m[1](h[:, :3]) + n.m[2](h.argmax(1)),
        lambda: nn.ModuleList([nn.Bilinear(6, 6, 3), nn.PReLU(), nn.Embedding(6, 3)]),
    ),
}
CASES |= {
    f"D {name}": case(
        lambda n, x, f=f: f(n, n.b(x)),
        list(normal(4, 8, 6)),
        modules=lambda make=make: {"m": make()},
    )
    for name, (f, make) in MODULES.items()
}


def test_d1_dropout_that_is_switched_on_after_fit(wrap: Wrap) -> None:
    """Before the first batch norm layer, where all estimators would share one mask."""
    mc = fitted(wrap, lambda: nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(6)))
    mc.model[0].train()
    x = normal(200, 6, seed=2)
    with torch.no_grad():
        got = mc(x)
    net = build(lambda: nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(6)))
    drawn = draw(net, V)
    dropped = torch.stack([each(0 * x) for each in estimators(net, drawn)])
    kept = torch.stack([each(2 * x) for each in estimators(net, drawn)])
    off, on = ((got - wanted).abs() < 1e-10 for wanted in (dropped, kept))
    assert (off | on).all()
    assert 0.4 < off.double().mean() < 0.6
    for s in range(4):
        for t in range(s):
            assert 0.4 < (off[s] == off[t]).double().mean() < 0.6


NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "D1 dropout": lambda x: F.dropout(torch.ones_like(x), 0.5, training=True),
    "D1 dropout in place": lambda x: F.dropout(x.clone().fill_(1), 0.5, True, inplace=True),
    "D1 dropout of features": lambda x: F.dropout1d(torch.ones_like(x).T, 0.5, training=True).T,
    "D1 alpha dropout": lambda x: F.alpha_dropout(torch.ones_like(x), 0.5, training=True),
    "D1 rand_like": torch.rand_like,
    "D1 randn": lambda x: torch.randn(x.shape, dtype=x.dtype),
    "D1 normal_": lambda x: torch.empty_like(x).normal_(),
    "D1 bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.5)),
    "D1 bernoulli_": lambda x: torch.zeros_like(x).bernoulli_(0.5),
    "D1 randint": lambda x: torch.randint(1000, x.shape).to(x),
    "D1 randperm": lambda x: torch.randperm(x.numel()).view_as(x).to(x),
    "D1 multinomial": lambda x: (
        torch.multinomial(torch.ones(x.numel()), x.numel(), replacement=True).view_as(x).to(x)
    ),
    "D1 gumbel": lambda x: F.gumbel_softmax(x, tau=0.5),
    "D1 rrelu": lambda x: F.rrelu(-torch.ones_like(x), training=True),
    "D1 distribution": lambda x: Normal(0.0, 1.0).sample(x.shape).to(x),
    "D1 generator of its own": lambda x: torch.rand(x.shape, generator=GENERATOR, dtype=x.dtype),
    "D1 generator of its own, in place": lambda x: torch.empty_like(x).uniform_(
        generator=GENERATOR
    ),
    "D1 init": lambda x: nn.init.trunc_normal_(torch.empty_like(x)),
    "D1 Python's": lambda x: torch.full_like(x, random.random()),
    "D1 numpy's": lambda x: torch.as_tensor(np.random.rand(*x.shape)),
    "D1 numpy's generator": lambda x: torch.as_tensor(RNG.random(x.shape)),
    "D1 stochastic depth": lambda x: torchvision.ops.stochastic_depth(
        torch.ones(64, 6).double(), 0.5, "row"
    )[: len(x)],
}
GENERATOR = torch.Generator().manual_seed(0)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", NOISE)
def test_d_randomness_differs_between_estimators(name: str, where: str, wrap: Wrap) -> None:
    noise = NOISE[name]

    def noisy(n: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        if where == "after":
            return (h := n.b(x)) + (z := noise(h)), z
        z = noise(x) if len(x) == 8 else torch.ones_like(x)  # none in fit
        return n.b(x * z), z

    random.seed(0)
    np.random.seed(0)
    mc = fitted(wrap, lambda: Net(noisy))
    torch.manual_seed(0)
    for _ in range(2):
        with torch.no_grad():
            y, z = mc(X)
        net = build(plain_b)
        for s, each in enumerate(estimators(net, draw(net, V))):
            wanted = each(X) + z[s] if where == "after" else each(X * z[s])
            torch.testing.assert_close(y[s], wanted, rtol=1e-10, atol=1e-10)
        assert len({str(each.tolist()) for each in z}) == 4


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", NOISE)
def test_d_randomness_from_the_third_prediction_on(name: str, where: str, wrap: Wrap) -> None:
    """Test-time augmentation, switched on where all went well without."""
    noise = NOISE[name]

    def noisy(n: Net, x: Tensor, on: bool) -> tuple[Tensor, Tensor]:
        if where == "before":
            return (z := noise(x) if on else torch.ones_like(x)), n.b(x * z)
        h = n.b(x)
        return (z := noise(h) if on else h), h + z

    mc = fitted(wrap, lambda: Net(noisy), [(v, False) for v in V])
    with torch.no_grad():
        mc(X, False)
        mc(X, False)
        z, y = mc(X, True)
    net = build(plain_b)
    for s, each in enumerate(estimators(net, draw(net, V))):
        wanted = each(X * z[s]) if where == "before" else each(X) + z[s]
        torch.testing.assert_close(y[s], wanted, rtol=1e-10, atol=1e-10)
    assert len({str(each.tolist()) for each in z}) == 4


@pytest.mark.parametrize("name", ["D1 dropout", "D1 rand_like", "D1 normal_", "D1 randperm"])
def test_d_seed_repeats_a_prediction(name: str, wrap: Wrap) -> None:
    mc = fitted(wrap, lambda: Net(lambda n, x: n.b(x * NOISE[name](x))))
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(mc(X))
    assert torch.equal(*outputs)
    assert not torch.equal(mc(X), outputs[0])


def test_d_more_calls_than_fit_saw_is_refused(wrap: Wrap) -> None:
    for make, fit, call in (
        (lambda: Net(just_b, b=Layer(ghost)), ROWS, normal(20, 6)),
        (siamese, [(a, a) for a, _ in EQUAL_PAIRS], (X, X)),
    ):
        mc = fitted(wrap, make, fit)
        if make is siamese:
            mc.model.function = lambda n, a, b: n.encoder(a) + n.encoder(b) + n.encoder(a)
        with pytest.raises(RuntimeError, match=r"3 times|7 times") as error:
            called(mc, call)
        assert_in_words(error.value, "fit")


# D7 --------------------------------------------------------------------------------------------


def written(change: Callable[[Tensor], Any], in_fit: bool = True) -> Callable[..., Any]:
    def function(n: Net, x: Tensor) -> Tensor:
        if in_fit or len(x) == 8:
            change(x)
        return n.b(x)

    return function


def assign(x: Tensor, index: Any, value: Any) -> None:
    x[index] = value


def normalized_in_place(n: Net, x: Tensor) -> Tensor:
    x += n.b(x)
    return x * 2


WRITES: dict[str, Callable[..., Any]] = {
    "D7 mul_": written(lambda x: x.mul_(2)),
    "D7 mul_, not in fit": written(lambda x: x.mul_(2), in_fit=False),
    "D7 a column": written(lambda x: assign(x, (slice(None), 0), 0.0)),
    "D7 a mask": written(lambda x: assign(x, x > 1, 1.0)),
    "D7 relu in place": written(lambda x: F.relu(x, inplace=True)),
    "D7 a view": written(lambda x: x.view(-1)[::2].add_(1)),
    "D7 detached": written(lambda x: x.detach().mul_(3)),
    "D7 data": written(lambda x: x.data.mul_(3)),
    "D7 data replaced": written(lambda x: setattr(x, "data", x.data * 3)),
    "D7 numpy": written(lambda x: np.multiply(x.numpy(), 2, out=x.numpy())),
    "D7 out=": written(lambda x: torch.add(x, 1, out=x)),
    "D7 copy_": written(lambda x: x.copy_(x.flip(0))),
    "D7 zero_ after the layer": lambda n, x: (n.b(x), x.zero_())[0],
    "D7 used, written, used": lambda n, x: n.b(x) + x.mul_(2),
    "D7 the layer's output added": normalized_in_place,
    "D7 the layer's output at a mask": lambda n, x: (assign(x, x > 0, n.b(x)[x > 0]), x * 2)[1],
}


@pytest.mark.parametrize("name", WRITES)
def test_d7_network_that_writes_into_its_input(name: str, wrap: Wrap) -> None:
    function = WRITES[name]
    net = build(lambda: Net(function))
    results = []
    for each in estimators(net, draw(net, V)):
        x = X.clone()
        with torch.no_grad():
            results.append((each(x), x))
    mc = fitted(wrap, lambda: Net(function))
    for _ in range(2):
        x = X.clone()
        with torch.no_grad():
            got = mc(x)
        assert_estimators(got, [output for output, _ in results])
        assert any(torch.allclose(x, left, 1e-10, 1e-10) for _, left in results)


@pytest.mark.parametrize("name", WRITES)
def test_d7_network_that_writes_from_the_third_prediction_on(name: str, wrap: Wrap) -> None:
    def function(n: Net, x: Tensor, on: bool) -> Tensor:
        return WRITES[name](n, x) if on else n.b(x)

    net = build(lambda: Net(function))
    wanted, left = [], []
    for each in estimators(net, draw(net, [(v, False) for v in V])):
        left.append(X.clone())
        with torch.no_grad():
            wanted.append(each(left[-1], True))
    mc = fitted(wrap, lambda: Net(function), [(v, False) for v in V])
    x = X.clone()
    with torch.no_grad():
        mc(x, False)
        mc(x, False)
        assert torch.equal(x, X)
        try:
            got = mc(x, True)
        except REFUSALS as error:
            assert_in_words(error, "path='loop'")
            return
    assert_estimators(got, wanted)
    assert any(torch.allclose(x, each, 1e-10, 1e-10) for each in left)


def test_d7_same_mini_batch_four_times(wrap: Wrap) -> None:
    mc = fitted(wrap, lambda: Net(written(lambda x: x.mul_(2))), [V[0]] * 4)
    x = X.clone()
    with torch.no_grad():
        got = mc(x)
    for s in range(1, 4):
        torch.testing.assert_close(got[s], got[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(x, 2 * X)


ALIASES: dict[str, tuple[Callable[..., Any], Callable[[Tensor], tuple[Any, ...]]]] = {
    "one tensor twice": (lambda n, a, b: (a.mul_(2), n.b(a) + b)[1], lambda x: (x, x)),
    "a view": (lambda n, a, b: (b.mul_(2), n.b(a))[1], lambda x: (x, x[:3])),
    "a transposed view": (lambda n, a, b: (b[0].zero_(), n.b(a))[1], lambda x: (x, x.T)),
    "in a dict": (lambda n, a, b: (b["x"].mul_(2), n.b(a))[1], lambda x: (x, {"x": x})),
    "in a list": (lambda n, a, b: (b[0].add_(1), n.b(b[0]))[1], lambda x: (1, [x])),
    "in a dataclass": (lambda n, a, b: (b.y.add_(1), n.b(b.y))[1], lambda x: (1, Frozen(x))),
    "in an object": (lambda n, a, b: (b.y.add_(1), n.b(b.y))[1], lambda x: (1, Holder(x))),
    # the containers themselves
    "list emptied": (lambda n, a, b: n.b(b.pop()), lambda x: (1, [x])),
    "dict emptied": (lambda n, a, b: n.b(b.pop("x")), lambda x: (1, {"x": x})),
    "dict written": (
        lambda n, a, b: (b.update(x=n.b(b["x"])), b["x"] * 2)[1],
        lambda x: (1, {"x": x}),
    ),
    "list written": (lambda n, a, b: (assign(b, 0, n.b(b[0])), b[0] * 2)[1], lambda x: (1, [x])),
    "attribute written (graphs)": (
        lambda n, a, b: (setattr(b, "y", n.b(b.y)), b.y * 2)[1],
        lambda x: (1, Holder(x)),
    ),
    "dataclass written": (
        lambda n, a, b: (setattr(b, "y", n.b(b.y)), b.y * 2)[1],
        lambda x: (1, Slots(y=x)),
    ),
    "namespace written": (
        lambda n, a, b: (setattr(b, "y", n.b(b.y)), b.y * 2)[1],
        lambda x: (1, types.SimpleNamespace(y=x)),
    ),
}


@pytest.mark.parametrize("name", ALIASES)
def test_d7_inputs_that_share_memory_or_change(name: str, wrap: Wrap) -> None:
    function, arguments = ALIASES[name]
    net = build(lambda: Net(function))
    drawn = draw(net, [arguments(v.clone()) for v in V])
    wanted = [each(*arguments(X.clone())) for each in estimators(net, drawn)]
    mc = wrap(build(lambda: Net(function)))
    try:
        mc.fit([arguments(v.clone()) for v in V], input_fn=lambda batch: batch).eval()
        with torch.no_grad():
            outputs = [mc(*arguments(X.clone())) for _ in range(2)]
    except REFUSALS as error:  # of what only its own class can copy
        if not re.search("object|attribute|namespace", name):
            raise
        assert_in_words(error, "Holder|SimpleNamespace|without a tensor")
        return
    for output in outputs:
        assert_estimators(output, wanted)


# --- E: gradients --------------------------------------------------------------------------------


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * (x.sigmoid() * (1 + x * (1 - x.sigmoid())))


class NewStyle(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.saved_tensors[0]


class Generated(NewStyle):
    generate_vmap_rule = True


class WithVmap(NewStyle):
    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> Any:
        return NewStyle.apply(x), in_dims[0]


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return -ctx.factor * grads[0], None


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].clamp(-1, 1)


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 3 * grads[0]


class TwoOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        values, indices = x.sort(1)
        ctx.save_for_backward(indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return torch.zeros_like(grads[0]).scatter(1, indices, 5 * grads[0])


@torch.library.custom_op("mcbn_cases::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


cube.register_autograd(
    lambda ctx, grad: 3 * grad * ctx.saved_tensors[0] ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


def hooked(register: Callable[[Net], Any], **modules: Any) -> nn.Module:
    net = Net(lambda n, x: n.after(n.b(x)) + x, after=nn.Tanh(), **modules)
    register(net)
    return net


def forces(n: Net, x: Tensor) -> Tensor:
    """The gradient of an energy is the output."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        energy = n.b(x).pow(3).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


def checkpointed(n: Net, x: Tensor, reentrant: bool) -> Tensor:
    return checkpoint(lambda t: n.b(t).tanh(), x, use_reentrant=reentrant)


def tensor_hook(n: Net, x: Tensor) -> Tensor:
    h = n.b(x).sin()
    if h.requires_grad:
        h.register_hook(lambda grad: 2 * grad)
    return h + x


def offloaded(n: Net, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        return n.b(x).exp()


def momentum_target(n: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        target = n.b(x).tanh()
    return n.b(x) * target + n.b(x).detach()


SWAPPED = r"(?i)path=|gradient|checkpoint|use_reentrant|no_grad|loop"
GRADIENTS: dict[str, Case] = {
    "E1 function, 2000 rows": case(
        lambda n, x: Swish.apply(n.b(x)) + x, call=normal(2000, 6, seed=1)
    ),
    "E1 Swish": case(lambda n, x: Swish.apply(n.b(x))),
    "E1 new style": case(lambda n, x: NewStyle.apply(n.b(x))),
    "E1 new style, generated rule": case(lambda n, x: Generated.apply(n.b(x))),
    "E1 new style, own rule": case(lambda n, x: WithVmap.apply(n.b(x))),
    "E1 reversal": case(lambda n, x: Reversal.apply(n.b(x).sin(), 0.5)),
    "E1 straight through": case(lambda n, x: StraightThrough.apply(n.b(x)) * x),
    "E1 in place": case(lambda n, x: InPlace.apply(n.b(x).sin()) + x),
    "E1 two outputs": case(lambda n, x: TwoOutputs.apply(n.b(x))[0].sin()),
    "E1 before the layer": case(lambda n, x: n.b(Swish.apply(x)).sin()),
    "E1 custom operator": case(lambda n, x: torch.ops.mcbn_cases.cube(n.b(x))),
    "E1 custom operator before": case(lambda n, x: n.b(torch.ops.mcbn_cases.cube(x)).sin()),
    "E2 checkpoint": case(lambda n, x: checkpointed(n, x, False), refused=SWAPPED),
    "E2 checkpoint, reentrant": case(lambda n, x: checkpointed(n, x, True), refused=SWAPPED),
    "E2 checkpoint without the layer": case(
        lambda n, x: n.b(x) * checkpoint(torch.sin, n.b(x), use_reentrant=False), refused=SWAPPED
    ),
    "E2 checkpoint, then the layer again": case(
        lambda n, x: n.b(checkpoint(lambda t: n.linear(t).sin(), x, use_reentrant=False)).exp(),
        modules=with_linear,
        refused=SWAPPED,
    ),
    "E2 checkpoint_sequential": case(
        lambda n, x: checkpoint_sequential([n.b, torch.sin, n.linear], 2, x, use_reentrant=False),
        modules=with_linear,
        refused=SWAPPED,
    ),
    "E3 full backward hook": Case(
        lambda: hooked(lambda n: n.after.register_full_backward_hook(lambda m, i, o: None))
    ),
    "E3 full backward hook that changes": Case(
        lambda: hooked(lambda n: n.after.register_full_backward_hook(lambda m, i, o: (2 * i[0],)))
    ),
    "E3 backward hook on the layer": Case(
        lambda: hooked(lambda n: n.b.register_full_backward_hook(lambda m, i, o: (3 * i[0],)))
    ),
    "E3 backward pre-hook": Case(
        lambda: hooked(lambda n: n.after.register_full_backward_pre_hook(lambda m, o: (2 * o[0],)))
    ),
    "E3 hook on a tensor": case(tensor_hook),
    "E3 hook on a parameter": Case(
        lambda: hooked(lambda n: n.b.weight.register_hook(lambda grad: grad * 2))
    ),
    "E3 saved tensors": case(offloaded),
    "E forces": case(forces),
    "E func.grad": case(lambda n, x: torch.func.grad(lambda t: t.pow(3).sum())(n.b(x)) * x),
    "E target without gradient": case(momentum_target),
    "E in place": case(lambda n, x: F.relu(n.b(x).sin(), inplace=True) * x),
    "E in place on what is shared": case(lambda n, x: (x * 1).add_(n.b(x)).sin()),
    "E into zeros": case(lambda n, x: into(n, n.b(x).sin(), x)),
    "E a value decides": case(lambda n, x: n.b(x).sin() if n.b(x).mean() > 0 else n.b(x) * 3),
    "E frozen weight": Case(lambda: frozen(Net(lambda n, x: n.b(x).sin()))),
    "E mask of the input": case(lambda n, x: n.b(x)[x[:, 0] > 0].sin()),
    "E indices": case(lambda n, x: n.b(x).sin().sort(0)[0].cumsum(0)),
    "E LSTM": case(
        lambda n, x: n.rnn(n.b(x)[None])[0],
        modules=lambda: {"rnn": nn.LSTM(6, 3, batch_first=True)},
    ),
    "E weight norm": case(
        lambda n, x: n.linear(n.b(n.linear(x)).sin()),
        modules=lambda: {"linear": parametrizations.weight_norm(nn.Linear(6, 6))},
    ),
    "E two calls": case(lambda n, x: n.b(n.b(x).sin())),
    "E pooled": case(
        lambda n, x: F.max_pool1d(F.relu(n.b(x[..., None].expand(-1, -1, 4) * PATTERN)), 2).sin(),
        list(normal(4, 9, 6)),
    ),
}
PATTERN = normal(4, seed=9)


def frozen(net: Any) -> nn.Module:
    net.b.weight.requires_grad_(False)
    return net


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str, wrap: Wrap) -> None:
    """Those of the inputs and of all parameters, in one backward pass over all estimators."""
    this = GRADIENTS[name]
    net = build(this.plain or this.make)
    drawn = draw(net, this.batches)
    x = this.call.clone().requires_grad_()
    wanted, factors = [], []
    for s, each in enumerate(estimators(net, drawn)):
        wanted.append(each(x))
        factors.append(normal(*wanted[-1].shape, seed=20 + s))
        (wanted[-1] * factors[-1]).sum().backward()
    expected = {"input": x.grad} | {name: p.grad for name, p in net.named_parameters()}
    y = this.call.clone().requires_grad_()
    try:
        mc = fitted(wrap, this.make, this.batches)
        got = mc(y)
        (got * torch.stack(factors)).sum().backward()
    except REFUSALS as error:
        if this.refused is None:
            raise
        assert_in_words(error, this.refused)
        return
    assert_estimators(got, wanted)
    found = {"input": y.grad} | {name: p.grad for name, p in mc.model.named_parameters()}
    assert_same(found, expected)


@pytest.mark.parametrize(
    "function",
    [lambda n, x: n.b(x).sin(), lambda n, x: Swish.apply(n.b(x)), forces],
    ids=["plain", "Swish", "forces"],
)
def test_e_second_derivatives(function: Callable[..., Any], wrap: Wrap) -> None:
    net, x, y = build(lambda: Net(function)), *(X.clone().requires_grad_() for _ in range(2))
    wanted = [each(x) for each in estimators(net, draw(net, V))]
    mc = fitted(wrap, lambda: Net(function))
    results = []
    for output, z in ((torch.stack(wanted), x), (mc(y), y)):
        (gradient,) = torch.autograd.grad(output.square().sum(), z, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), z)[0])
    assert_same(results[1], results[0])


@pytest.mark.parametrize("transform", ["jacobian", "jacrev", "grad", "jvp", "hessian", "vmap"])
def test_e_transforms_around_the_wrapper(transform: str, wrap: Wrap) -> None:
    def apply(function: Callable[[Tensor], Tensor]) -> Any:
        summed = lambda x: function(x).square().sum()  # noqa: E731
        return {
            "jacobian": lambda: torch.autograd.functional.jacobian(function, X[:2]),
            "jacrev": lambda: torch.func.jacrev(function)(X[:2]),
            "grad": lambda: torch.func.grad(summed)(X[:2]),
            "jvp": lambda: torch.func.jvp(function, (X[:2],), (X[2:4],))[1],
            "hessian": lambda: torch.func.hessian(summed)(X[:1]),
            "vmap": lambda: torch.vmap(function)(X.view(4, 2, 6)),
        }[transform]()

    def model(n: Net, x: Tensor) -> Tensor:
        return n.b(x).sin()

    net = build(lambda: Net(model))
    drawn = draw(net, V)
    wanted = apply(lambda x: torch.stack([each(x) for each in estimators(net, drawn)]))
    mc = fitted(wrap, lambda: Net(model))
    try:
        got = apply(mc)
    except REFUSALS as error:
        assert_in_words(error, SWAPPED + "|vmap|transform")
        return
    assert_same(got, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_e2_checkpoint_around_the_wrapper(reentrant: bool, wrap: Wrap) -> None:
    net = build(lambda: Net(lambda n, x: n.b(x).sin()))
    mc = wrap(net).fit(V).eval()
    x, y = (X.clone().requires_grad_() for _ in range(2))
    for each in estimators(net, draw(net, V)):
        each(x).square().sum().backward()
    checkpoint(mc, y, use_reentrant=reentrant).square().sum().backward()
    assert_same(y.grad, x.grad)


@pytest.mark.parametrize("on", ["after", "b"])
def test_e3_grad_cam(on: str, wrap: Wrap) -> None:
    """Hooks that collect activations and gradients get those of one estimator after the other."""

    def collecting(found: list[Any]) -> Callable[[], nn.Module]:
        def register(net: Net) -> None:
            module = getattr(net, on)
            module.register_forward_hook(lambda m, i, o: found.append(o.detach().clone()))
            module.register_full_backward_hook(lambda m, i, o: found.append(o[0].clone()))

        return lambda: hooked(register)

    wanted: list[Any] = []
    net = build(collecting(wanted))
    drawn = draw(net, V)
    wanted.clear()
    for each in estimators(net, drawn):
        each(X.clone().requires_grad_()).square().sum().backward()
    got: list[Any] = []
    mc = wrap(build(collecting(got))).fit(V).eval()
    got.clear()
    mc(X.clone().requires_grad_()).square().sum().backward()
    assert len(got) == len(wanted)
    for each in wanted:
        assert any(torch.allclose(each, other, 1e-10, 1e-10) for other in got)
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(each) for each in got)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "inputs of inference_mode"])
def test_e_modes(mode: str, wrap: Wrap) -> None:
    function = WRITES["D7 used, written, used"]
    wanted = Case(lambda: Net(function)).loop()
    with getattr(torch, "no_grad" if mode == "no_grad" else "inference_mode")():
        mc = fitted(wrap, lambda: Net(function))
        x = X.clone()
        if mode != "inputs of inference_mode":
            assert_estimators(mc(x), wanted)
            assert_estimators(mc(X.clone()), wanted)
            return
    mc = fitted(wrap, lambda: Net(lambda n, x: n.b(x) + 2 * x))
    with torch.no_grad():
        assert_estimators(mc(x), Case(lambda: Net(lambda n, x: n.b(x) + 2 * x)).loop())


def test_e_gradients_after_a_fit_in_inference_mode(wrap: Wrap) -> None:
    net = build(lambda: Net(lambda n, x: n.b(x).sin()))
    mc = wrap(net)
    with torch.inference_mode():
        mc.fit(fresh(V)).eval()
    x = X.clone().requires_grad_()
    mc(x).sum().backward()
    y = X.clone().requires_grad_()
    for each in estimators(net, draw(net, V)):
        each(y).sum().backward()
    assert_same(x.grad, y.grad)


@pytest.mark.parametrize("where", ["around", "inside"])
def test_e_autocast(where: str, wrap: Wrap) -> None:
    def inner(n: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "inside"):
            h = n.linear(n.b(n.linear(x)))
            with torch.autocast("cpu", enabled=False):
                return n.b(h.float()).sin()

    def make() -> nn.Module:
        torch.manual_seed(1)
        return randomize(Net(inner if where == "inside" else model, linear=nn.Linear(6, 6)))

    def model(n: Net, x: Tensor) -> Tensor:
        return n.linear(n.b(n.linear(x))).sin()

    batches = [v.float() for v in V]
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "around"):
        net, mc = make(), wrap(make()).fit(batches).eval()
        wanted = torch.stack([each(X.float()) for each in estimators(net, draw(net, batches))])
        got = mc(X.float())
    assert got.dtype == wanted.dtype
    assert got.std(0).mean() > 0.01
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05)


# --- F: axis 0 is not examples -------------------------------------------------------------------


class Graph:
    """As PyTorch Geometric's Data: an object with a ``to`` of its own."""

    def __init__(self, x: Tensor, edges: Tensor, graph: Tensor) -> None:
        self.x, self.edges, self.graph = x, edges, graph

    def to(self, *args: Any, **kwargs: Any) -> Graph:
        return Graph(*(t.to(*args, **kwargs) for t in vars(self).values()))


def graph(x: Tensor) -> Graph:
    count = len(x)
    edges = torch.stack([torch.arange(count), (3 * torch.arange(count) + 1) % count])
    return Graph(x, edges, torch.arange(count) % 2)


def convolved(n: Net, data: Graph) -> Tensor:
    h = n.b(data.x)
    h = torch.zeros_like(h).index_add(0, data.edges[1], h[data.edges[0]])
    return h.new_zeros(2, 6).index_add_(0, data.graph, h.relu())


def sparse(count: int) -> Tensor:
    indices = torch.stack([torch.arange(count), (3 * torch.arange(count) + 1) % count])
    dense = torch.zeros(count, count).double()
    dense[indices[0], indices[1]] = 1.0
    return dense.to_sparse()


def images(n: Net, pictures: list[Tensor]) -> Tensor:
    return n.b(n.conv(torch.stack(pictures))).mean((2, 3))


def of_many_sizes(n: Net, pictures: list[Tensor]) -> list[Tensor]:
    features = torch.stack([F.adaptive_avg_pool2d(n.conv(p[None])[0], 2) for p in pictures])
    return [h * p.shape[-1] for h, p in zip(n.b(features), pictures, strict=True)]


def conv() -> dict[str, Any]:
    return {"b": nn.BatchNorm2d(4), "conv": nn.Conv2d(3, 4, 3)}


def picture(seed: int, size: int = 8) -> Tensor:
    return normal(3, size, 8, seed=seed)


CASES |= {
    "F1 segments": case(lambda n, x: n.b(x).view(-1, 4, 6).mean(1)),
    "F1 segments shifted": case(
        lambda n, x: torch.cat([x[:1], n.b(x)[:-1]]).view(-1, 4, 6).roll(1, 1).flatten(0, 1)
    ),
    "F1 segments that pair up": case(lambda n, x: torch.stack(n.b(x).chunk(2), 1).flatten(1)),
    "F1 at least four rows": case(lambda n, x: n.b(x).unfold(0, 4, 1)[0] @ n.b(x)[:4]),
    "F1 views of an image": case(lambda n, x: n.b(x[::2]) - n.b(x[1::2])),
    "F steps first": case(
        lambda n, x: n.b(x.flatten(0, 1)).view(x.shape).mean(0),
        list(normal(4, 5, 7, 6)),
        normal(3, 2, 6),
    ),
    "F no batch axis": case(lambda n, x: n.b(x[None])[0], list(normal(4, 6, 9)), normal(6, 5)),
    "F scalar out": case(lambda n, x: n.b(x).mean()),
    "F pairs out": case(lambda n, x: n.b(x) @ n.b(x).T),
    "F features first": case(lambda n, x: n.b(x.T).T.contiguous(), [v.T for v in V], X.T),
    "F one row": case(lambda n, x: n.b(x).squeeze(), call=X[:1]),
    "F no rows": case(lambda n, x: n.b(x) * 2, call=X[:0]),
    "F channels last": case(
        lambda n, x: n.b(x).permute(0, 2, 3, 1).reshape(len(x), -1),
        [t.to(memory_format=torch.channels_last) for t in normal(4, 5, 4, 3, 3)],
        normal(2, 4, 3, 3).to(memory_format=torch.channels_last),
        modules=lambda: {"b": nn.BatchNorm2d(4)},
    ),
    "F a sum of its rows": case(lambda n, x: F.normalize(n.b(x), dim=0), call=normal(3, 6)),
    "F tokens": case(
        lambda n, tokens, offsets: n.b(n.bag(tokens, offsets)),
        [(torch.arange(20) * (s + 3) % 11, torch.arange(0, 20, 4)) for s in range(4)],
        (torch.tensor([1, 2, 3]), torch.tensor([0, 2])),
        modules=lambda: {"bag": nn.EmbeddingBag(11, 6)},
    ),
    "F graph": case(
        lambda n, x, edges: torch.zeros_like(x).index_add_(0, edges[1], n.b(x)[edges[0]]),
        [(v, graph(v).edges) for v in V],
        (X, graph(X).edges),
    ),
    "F sparse matrix": case(
        lambda n, x, a: torch.sparse.mm(a, n.b(x)), [(v, sparse(32)) for v in V], (X, sparse(8))
    ),
    "F sparse matrix before": case(
        lambda n, x, a: n.b(a @ x), [(v, sparse(32)) for v in V], (X, sparse(8))
    ),
    "F sparse rows": case(
        lambda n, x: n.b(torch.sparse.mm(x, n.linear.weight)),
        [v.relu().to_sparse() for v in V],
        X.relu().to_sparse(),
        modules=with_linear,
    ),
    "F temperature": case(
        lambda n, x, t, power: (n.b(x) / t) ** power,
        [(v, torch.tensor(2.0).double(), 2) for v in V],
        (X, torch.tensor(3.0).double(), 3),
    ),
    "F3 list of images": case(
        images,
        [[picture(10 * s), picture(10 * s + 1)] for s in range(4)],
        [picture(3), picture(4), picture(5)],
        modules=conv,
    ),
    "F3 one image": case(
        images,
        [[picture(10 * s), picture(10 * s + 1)] for s in range(4)],
        [picture(3)],
        modules=conv,
    ),
    "F3 images of many sizes": case(
        of_many_sizes,
        [[picture(10 * s, 8 + s), picture(10 * s + 1, 6)] for s in range(4)],
        [picture(3, 5), picture(4, 7)],
        modules=conv,
    ),
    "F3 cameras in a dict": case(
        lambda n, views: n.b(n.conv(views["left"]) - n.conv(views["right"])),
        [({"left": normal(2, 3, 8, 8, seed=s), "right": normal(2, 3, 8, 8)},) for s in range(4)],
        (
            {
                "left": normal(1, 3, 8, 8),
                "right": normal(1, 3, 6, 6)[..., :1, :1].expand(1, 3, 8, 8),
            },
        ),
        modules=conv,
    ),
    "F5 graph object": case(
        convolved, [graph(v) for v in V], graph(X), refused="(?i)Graph.*(wrap|tensor|module)"
    ),
    "F5 object in a tuple": case(
        lambda n, data, scale: convolved(n, data) * scale,
        [(graph(v), 2.0) for v in V],
        (graph(X), 3.0),
        refused="(?i)Graph.*(wrap|tensor|module)",
    ),
}


def test_f5_object_is_moved_by_its_own_to(wrap: Wrap) -> None:
    moved = []

    class Moves(Graph):
        def to(self, *args: Any, **kwargs: Any) -> Graph:
            moved.append((args, kwargs))
            return super().to(*args, **kwargs)

    mc = wrap(build(lambda: Net(convolved)))
    try:
        mc.fit([Moves(*vars(graph(v)).values()) for v in V], input_fn=lambda batch: batch)
    except REFUSALS as error:
        assert_in_words(error, "(?i)Moves.*(wrap|tensor|module)")
        return
    assert len(moved) == 4


SIZES: dict[str, tuple[str, Callable[..., Any]]] = {
    "F4 rows that are kept": (r"output", lambda n, h: h[h[:, 0] > 0]),
    "F4 boxes of a dict": (r"boxes", lambda n, h: {"all": h, "boxes": h[h[:, 0] > 0]}),
    "F4 boxes of a list of dicts": (
        r"boxes",
        lambda n, h: [{"boxes": part[part[:, 0] > 0], "n": 1} for part in h.chunk(2)],
    ),
    "F4 different values": (r"output", lambda n, h: h.round().unique()),
    "F4 longer where it is larger": (r"output", lambda n, h: h.repeat(1 + int(h.max()), 1)),
    "F4 a field of a dataclass": (r"\by\b", lambda n, h: Frozen(h[h > 0.5])),
    "F4 a named tuple": (r"mean|\[0\]", lambda n, h: Pair(h[h > 0.5])),
    "F4 nonzero": (r"output", lambda n, h: torch.nonzero(h > 0.5)),
}


@pytest.mark.parametrize("name", SIZES)
def test_f4_output_whose_size_depends_on_the_estimator(name: str, wrap: Wrap) -> None:
    where, function = SIZES[name]
    net = build(lambda: Net(lambda n, x: function(n, n.b(x))))
    outputs = [flat(each(X)) for each in estimators(net, draw(net, V))]
    ragged = next(
        t
        for t in zip(*outputs, strict=True)
        if len({str(v.shape) for _, v in t if isinstance(v, Tensor)}) > 1
    )
    sizes = {len(value) for _, value in ragged}
    mc = fitted(wrap, lambda: Net(lambda n, x: function(n, n.b(x))))
    with pytest.raises(ValueError, match=where) as error, torch.no_grad():
        mc(X)
    assert sum(bool(re.search(rf"\b{size}\b", str(error.value))) for size in sizes) > 1, error.value


STRUCTURES: dict[str, Callable[..., Any]] = {
    "a list as long as it says": lambda n, h: list(h[h[:, 0] > 0]),
    "a key now and then": lambda n, h: {"y": h} | ({"more": h} if h.mean() > MEAN else {}),
    "None now and then": lambda n, h: (h, h if h.mean() > MEAN else None),
    "a tuple now and then": lambda n, h: (h, h) if h.mean() > MEAN else h,
    "another text": lambda n, h: (h, "high" if h.mean() > MEAN else "low"),
    "another number": lambda n, h: {"y": h, "n": int(h.mean() > MEAN)},
    "a truth value": lambda n, h: (h, bool(h.mean() > MEAN)),
}


def middle() -> float:
    """Between the second and the third of the estimators' means."""
    return torch.stack(Case(plain_b).loop()).mean((1, 2)).sort()[0][1:3].mean().item()


MEAN = middle()


@pytest.mark.parametrize("name", STRUCTURES)
def test_f4_output_whose_structure_depends_on_the_estimator(name: str, wrap: Wrap) -> None:
    mc = fitted(wrap, lambda: Net(lambda n, x: STRUCTURES[name](n, n.b(x))))
    with pytest.raises((ValueError, TypeError), match=r"(?i)estimator") as error, torch.no_grad():
        mc(X)
    assert_in_words(error.value, "(?i)output|same|structure")


@pytest.mark.parametrize("name", ["fasterrcnn", "ssdlite"])
def test_f2_detection(name: str) -> None:
    """Boxes cannot be stacked; the backbone can be wrapped."""
    torch.manual_seed(0)
    models = torchvision.models.detection
    none = {"weights": None, "weights_backbone": None}
    if name == "fasterrcnn":
        net = models.fasterrcnn_mobilenet_v3_large_320_fpn(
            **none, num_classes=3, min_size=64, max_size=64, box_score_thresh=0.3
        )
    else:
        net = models.ssdlite320_mobilenet_v3_large(**none, num_classes=3, score_thresh=0.5)
    pictures = [[torch.rand(3, 64, 64), torch.rand(3, 64, 48)] for _ in range(2)]
    mc = MCBatchNorm(randomize(net), 2).fit(pictures, input_fn=lambda batch: (batch,)).eval()
    with pytest.raises(ValueError, match="boxes") as error, torch.no_grad():
        mc(pictures[0])
    assert_in_words(error.value, r"\b\d+\b.*\b\d+\b")
    assert_in_words(error.value, "(?i)backbone|wrap|part")


# --- G: inputs -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Looks:
    """Its constructor reads the tensor, and computes from it."""

    x: Tensor
    length: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not bool((self.x.abs().sum() > 0).item()):
            raise ValueError("no values")
        self.length = len(self.x)


class Odd(dict):
    """Cannot be made of pairs."""

    def __init__(self, x: Tensor, name: str) -> None:
        super().__init__(x=x, name=name)


class Sized(NamedTuple("Sized", [("x", Tensor), ("size", int)])):
    def __new__(cls, x: Tensor, size: Any = None) -> Sized:
        return super().__new__(cls, x, len(x))


class ReadOnly(Mapping):
    def __init__(self, x: Tensor) -> None:
        self._x = x

    def __getitem__(self, key: str) -> Tensor:
        return {"x": self._x}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["x"])

    def __len__(self) -> int:
        return 1


def packed(x: Tensor) -> PackedSequence:
    half = len(x) // 2
    steps = torch.stack([x[:half], x[half:]])
    return pack_padded_sequence(steps, torch.tensor([half - 1, half]), True, enforce_sorted=False)


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], Callable[..., Any]]] = {
    "G1 dataclass that looks": (Looks, lambda n, d: n.b(d.x) * d.length),
    "G1 dataclass that looks, returned": (Looks, lambda n, d: (n.b(d.x), {"x": d.x})),
    "G frozen dataclass": (Frozen, lambda n, d: Frozen(n.b(d.y), d.name)),
    "G dataclass with slots": (lambda x: Slots(y=x), lambda n, d: n.b(d.y)),
    "G dataclass with a field set later": (later, lambda n, d: n.b(d.y) + d.later + d.double),
    "G dataclass, InitVar": (lambda x: Strict(x, 2.0), lambda n, d: n.b(d.y)),
    "G named tuple": (Pair, lambda n, d: n.b(d.mean) if d.extra is None else None),
    "G named tuple with its own __new__": (Sized, lambda n, d: n.b(d.x) * d.size),
    "G defaultdict": (
        lambda x: defaultdict(list, x=x),
        lambda n, d: n.b(d["x"]) if d["none"] == [] else None,
    ),
    "G OrderedDict": (lambda x: OrderedDict(x=x, y=1), lambda n, d: n.b(d["x"])),
    "G UserDict": (lambda x: UserDict(x=x, y="text"), lambda n, d: n.b(d["x"])),
    "G dict made of other things": (lambda x: Odd(x, "odd"), lambda n, d: n.b(d["x"])),
    "G mapping without a constructor": (ReadOnly, lambda n, d: n.b(d["x"])),
    "G ModelOutput": (lambda x: Classified(logits=x), lambda n, d: Classified(n.b(d.logits), d[0])),
    "G attribute dict": (lambda x: Attributes(x=x), lambda n, d: n.b(d.x)),
    "G SimpleNamespace": (lambda x: types.SimpleNamespace(x=x), lambda n, d: n.b(d.x)),
    "G deque": (lambda x: deque([x, x]), lambda n, d: n.b(d[0]) + d[1]),
    "G list in tuple in dict": (lambda x: {"a": ([x], None)}, lambda n, d: n.b(d["a"][0][0])),
    "G own class": (Holder, lambda n, d: n.b(d.y)),
    "G tensor subclass": (lambda x: x.as_subclass(ImageTensor), lambda n, d: n.b(d) * 2),
    "G array": (lambda x: x.numpy(), lambda n, d: n.b(torch.from_numpy(d))),
    "G PackedSequence": (packed, lambda n, d: n.b(d.data)),
    "G PackedSequence, returned": (packed, lambda n, d: d._replace(data=n.b(d.data))),
    "G PackedSequence, padded again": (
        packed,
        lambda n, d: pad_packed_sequence(d._replace(data=n.b(d.data)), batch_first=True),
    ),
}
# Opaque to whoever has to move and copy what is in it; so it may be refused by its name.
OPAQUE = {
    "G array": "ndarray|without a tensor",
    "G own class": "Holder|without a tensor",
    "G SimpleNamespace": "SimpleNamespace|without a tensor",
    "G deque": "deque|without a tensor",
}
CASES |= {
    name: case(f, [(make(v), 1)[:1] for v in V], (make(X),), refused=OPAQUE.get(name))
    for name, (make, f) in CONTAINERS.items()
}
CASES |= {
    "G PackedSequence through an LSTM": case(
        lambda n, d: pad_packed_sequence(n.rnn(d._replace(data=n.b(d.data)))[0])[0],
        [(packed(v),) for v in V],
        (packed(X),),
        modules=lambda: {"rnn": nn.LSTM(6, 3)},
    ),
    "G None and flags": case(
        lambda n, x, mask, flag, mode: n.b(x) * (2 if flag and mask is None and mode == "a" else 3),
        [(v, None, True, "a") for v in V],
        (X, None, True, "a"),
    ),
    "G flags that differ": case(
        lambda n, x, flag=False, mode="a": n.b(x) * (2 if flag else 3) if mode == "a" else x,
        KEYWORDS,
        {"x": X, "flag": True, "mode": "a"},
    ),
    "G dtype, device and slice": case(
        lambda n, x, dtype, device, part: n.b(x)[part].to(device, dtype),
        [(v, torch.float64, torch.device("cpu"), slice(2)) for v in V],
        (X, torch.float32, torch.device("cpu"), slice(3)),
    ),
}


@pytest.mark.parametrize("make", [Looks, Frozen, Pair, lambda x: Slots(y=x), lambda x: {"x": x}])
def test_g1_input_is_the_first_part_of_a_batch(make: Callable[[Tensor], Any], wrap: Wrap) -> None:
    mc = wrap(build(plain_b)).fit([make(v) for v in V]).eval()
    assert_estimators(mc(X), Case(plain_b).loop())


def test_g_input_that_cannot_be_copied(wrap: Wrap) -> None:
    mc = fitted(wrap, lambda: Net(lambda n, x, other: n.b(x)), [(v, None) for v in V])
    with pytest.raises(TypeError, match="inputs cannot be copied"):
        mc(X, threading.Lock())


# --- H: what a network keeps on itself -----------------------------------------------------------

FEATURES: list[Any] = []


class Keeps(nn.Module):
    """Keeps something of its runs in one of many places."""

    shared: Any = None

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.b, self.act = nn.BatchNorm1d(6), nn.Tanh()
        self.register_buffer("held", torch.zeros(6))
        self.count, self.feat, self.cache, self.previous = 0, None, None, None
        self.total, self.numbers = 1000, [0]
        self.listed, self.by_name, self.box = [], {}, types.SimpleNamespace(h=None)
        self.queue: Any = deque(maxlen=3)
        if how == "hook":
            self.act.register_forward_hook(keep_output)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(x)
        y = HOW[self.how](self, h, x)
        return (y if isinstance(y, Tensor) else h) + self.act(h)

    def state(self) -> Any:
        """All that it keeps."""
        own = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training"}
        return own, self.held, getattr(self.act, "feat", None), type(self).shared, list(FEATURES)


def keep_output(module: Any, args: Any, output: Tensor) -> None:
    module.feat = output


def set_to(owner: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(owner, name, value)


def counted_twice(m: Any, h: Tensor, x: Tensor) -> None:
    m.total += 1  # the second number may lie where the one before the first lay
    m.total += 1


def counted_before(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.count += 1
    return m.b(x * m.count)


def counted_after(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.count += 1
    return h * m.count


def cached(m: Any, h: Tensor, x: Tensor) -> Tensor:
    if m.cache is None:
        m.cache = h.detach().std(0)
    return h / m.cache


def cached_by_shape(m: Any, h: Tensor, x: Tensor) -> Tensor:
    if m.cache is None or len(m.cache) != len(h):
        m.cache = torch.arange(len(h)).to(h)[:, None]
    return h * m.cache


def with_previous(m: Any, h: Tensor, x: Tensor) -> Tensor:
    old, m.previous = m.previous, h.detach()
    return h if old is None or old.shape != h.shape else h - old


def in_turns(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.flag = not getattr(m, "flag", False)
    return h.exp() if m.flag else h.cos()


# Of the network, its layer's output and its input; a tensor that it gives is used in its place.
HOW: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "attribute": lambda m, h, x: set_to(m, feat=h),
    "submodule": lambda m, h, x: set_to(m.act, feat=h * 2),
    "tuple": lambda m, h, x: set_to(m, feat=(x, h, {"shape": h.shape})),
    "list": lambda m, h, x: m.listed.append(h),
    "list anew": lambda m, h, x: set_to(m, listed=[h, h.mean(0)]),
    "dict": lambda m, h, x: m.by_name.update(h=h),
    "namespace": lambda m, h, x: set_to(m.box, h=h),
    "deque": lambda m, h, x: m.queue.append(h),
    "buffer": lambda m, h, x: set_to(m, held=h.mean(0)),
    "buffer in place": lambda m, h, x: (m.held.copy_(h.detach().mean(0)), None)[1],
    "running average": lambda m, h, x: h - m.held.mul_(0.9).add_(h.detach().mean(0), alpha=0.1),
    "running average anew": lambda m, h, x: (
        set_to(m, held=0.9 * m.held + 0.1 * h.detach().mean(0)),
        h - m.held,
    )[1],
    "average of the input": lambda m, h, x: h - m.held.mul_(0.9).add_(x.mean(0), alpha=0.1),
    "count": lambda m, h, x: set_to(m, count=m.count + 1),
    "list of numbers": lambda m, h, x: m.numbers.append(len(h)),
    "count twice": counted_twice,
    "count before": counted_before,
    "turns": in_turns,
    "count that decides": counted_after,
    "cache": cached,
    "cache of the shape": cached_by_shape,
    "previous": with_previous,
    "class": lambda m, h, x: set_to(type(m), shared=h),
    "module variable": lambda m, h, x: FEATURES.append(h),
    "hook": lambda m, h, x: None,
}


def clear() -> None:
    FEATURES.clear()
    Keeps.shared = None


@pytest.mark.parametrize("how", HOW)
def test_h1_kept_tensors(how: str, wrap: Wrap) -> None:
    """As separate passes leave them, prediction after prediction, and the wrapper can be saved."""
    clear()
    net: Any = build(lambda: Keeps(how))
    drawn = draw(net, V)
    wanted, states = [], [fresh(net.state())]
    for _ in range(2):
        with torch.no_grad():
            wanted.append([each(X) for each in estimators(net, drawn)])
        states.append(fresh(net.state()))
    clear()
    mc = fitted(wrap, lambda: Keeps(how))
    saved(mc)
    assert_same(mc.model.state(), states[0])
    for i in range(2):
        with torch.no_grad():
            assert_estimators(mc(X), wanted[i])
        assert_same(mc.model.state(), states[i + 1])
        saved(mc)
    clear()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tuple", "large number", "text", "list", "array", "none"])
def test_h_an_equal_value_that_is_kept_is_no_reason_for_the_loop(kind: str) -> None:
    """As a padding that each pass computes anew."""
    values: dict[str, Callable[[int], Any]] = {
        "tuple": lambda n: (n, n + 1),
        "large number": lambda n: 1000 * n,
        "text": lambda n: f"{n} examples",
        "list": lambda n: [n, {"n": n}],
        "array": np.arange,
        "none": lambda n: None,
    }
    net = build(lambda: Net(lambda n, x: (set_to(n, kept=values[kind](x.shape[1])), n.b(x))[1]))
    mc = MCBatchNorm(net, 4).fit(V).eval()
    for size in 8, 8, 5:
        assert_estimators(mc(X[:size]), [each[:size] for each in Case(lambda: Net(just_b)).loop()])
        assert mc.loop_reason is None
    assert np.array_equal(mc.model.kept, values[kind](6))


@torch.no_grad()
def test_h_a_network_that_always_does_more_is_run_once_per_estimator() -> None:
    passes: list[int] = []

    def forward(n: Net, x: Tensor) -> Tensor:
        passes.append(len(x))
        if len(x) == 8:  # fit does not see it
            n.kept = x * 2
        return n.b(x)

    mc = MCBatchNorm(build(lambda: Net(forward)), 4).fit(V).eval()
    wanted = Case(lambda: Net(just_b)).loop()
    for _ in range(3):
        passes.clear()
        assert_estimators(mc(X), wanted)
        assert mc.loop_reason is not None
    assert len(passes) == 4


def test_h_an_image_that_is_kept_in_fit_is_an_ordinary_tensor(wrap: Wrap) -> None:
    """One that still waits for a pooling could be neither copied nor saved."""

    def keeps(n: Net, x: Tensor) -> Tensor:
        n.kept = n.b(x)
        return F.max_pool2d(n.kept, 2)

    mc = fitted(wrap, lambda: Net(keeps, b=nn.BatchNorm2d(6)), list(BIG))
    net = build(lambda: Net(just_b, b=nn.BatchNorm2d(6)))
    *_, last = estimators(net, draw(net, list(BIG)))
    assert type(mc.model.kept) is Tensor
    assert_same(mc.model.kept, last(BIG[-1]).detach())


def saved(mc: MCBatchNorm) -> None:
    """Copies, pickles and files of it hold the same statistics."""
    file = io.BytesIO()
    torch.save(mc, file)
    file.seek(0)
    copies = copy.deepcopy(mc), pickle.loads(pickle.dumps(mc)), torch.load(file, weights_only=False)
    for each in copies:
        assert_same(each.state_dict(), mc.state_dict())
        kept = FEATURES[:], Keeps.shared
        with torch.no_grad():
            assert each(X).shape == (4, 8, 6)  # not equal: it goes on from what it keeps
        FEATURES[:], Keeps.shared = kept


@pytest.mark.parametrize("how", ["attribute", "list", "hook", "buffer", "module variable"])
def test_h_kept_with_gradients(how: str, wrap: Wrap) -> None:
    """What is kept is a tensor like any other: a loss may use it."""
    clear()
    net: Any = build(lambda: Keeps(how))
    drawn = draw(net, V)
    x, y = (X.clone().requires_grad_() for _ in range(2))
    for each in estimators(net, drawn):
        each(x)
    last = [v for _, v in flat(net.state()) if isinstance(v, Tensor) and v.requires_grad]
    (wanted,) = torch.autograd.grad(sum(v.square().sum() for v in last), x)
    clear()
    mc = fitted(wrap, lambda: Keeps(how))
    clear()
    mc.model.listed.clear()
    mc(y)
    last = [v for _, v in flat(mc.model.state()) if isinstance(v, Tensor) and v.requires_grad]
    (got,) = torch.autograd.grad(sum(v.square().sum() for v in last), y)
    assert_same(got, wanted)
    clear()


HOOKS: dict[str, Callable[[Net, list[Any]], Any]] = {
    "after the layer": lambda n, seen: n.after.register_forward_hook(
        lambda m, i, o: seen.append(o)
    ),
    "on the layer": lambda n, seen: n.b.register_forward_hook(lambda m, i, o: seen.append(o)),
    "with keywords": lambda n, seen: n.after.register_forward_hook(
        lambda m, i, k, o: seen.append(i[0] + o), with_kwargs=True
    ),
    "before": lambda n, seen: n.after.register_forward_pre_hook(lambda m, i: seen.append(i[0])),
    "to numpy": lambda n, seen: n.after.register_forward_hook(
        lambda m, i, o: seen.append(torch.from_numpy(o.detach().numpy().copy()))
    ),
    "on the network": lambda n, seen: n.register_forward_hook(lambda m, i, o: seen.append(o)),
    "detached copy": lambda n, seen: n.after.register_forward_hook(
        lambda m, i, o: seen.append(o.detach().clone())
    ),
}


@pytest.mark.parametrize("name", HOOKS)
def test_h_hooks_that_collect(name: str, wrap: Wrap) -> None:
    """Each call of a hook sees one estimator's tensor, an ordinary one."""
    wanted: list[Any] = []
    net = build(lambda: hooked(lambda n: HOOKS[name](n, wanted)))
    drawn = draw(net, V)
    wanted.clear()
    got: list[Any] = []
    mc = wrap(build(lambda: hooked(lambda n: None)))
    mc.fit(V).eval()
    HOOKS[name](mc.model, got)
    with torch.no_grad():
        outputs = [each(X) for each in estimators(net, drawn)]
        assert_estimators(mc(X), outputs)
    assert_same(got, wanted)


def test_h_hook_before_the_layer(wrap: Wrap) -> None:
    """What estimators share it may see once, or as often as there are estimators."""
    seen: list[Tensor] = []
    mc = fitted(wrap, lambda: Net(lambda n, x: n.b(n.linear(x)), **with_linear()))
    mc.model.linear.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        mc(X)
        wanted = build(lambda: Net(lambda n, x: n.linear(x), **with_linear()))(X)
    assert len(seen) in (1, 4)
    for each in seen:
        assert_same(each, wanted)


CASES |= {
    "H hook that changes the output": Case(
        lambda: hooked(lambda n: n.b.register_forward_hook(lambda m, i, o: o.relu() * 2))
    ),
    "H hook that changes the input": Case(
        lambda: hooked(lambda n: n.after.register_forward_pre_hook(lambda m, i: (i[0] * 2,)))
    ),
    "H hook that reads values": Case(
        lambda: hooked(
            lambda n: n.after.register_forward_hook(
                lambda m, i, o: o if o.mean().item() > 0 else o * 3
            )
        )
    ),
}


def test_h_hook_on_every_module(wrap: Wrap) -> None:
    mc = fitted(wrap, lambda: hooked(lambda n: None))
    seen: list[Any] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, i, o: seen.append(o) if isinstance(m, nn.Tanh) else None
    )
    try:
        with torch.no_grad():
            got = mc(X)
    finally:
        handle.remove()
    wanted = Case(lambda: hooked(lambda n: None)).loop()
    assert_estimators(got, wanted)
    assert_same(seen, [output - X for output in wanted])


# --- L: numbers, and what is around a network ----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("mean", "std"), [(0, 400), (500, 1), (0, 3e-3), (-3000, 900)])
def test_l1_half_precision(dtype: torch.dtype, mean: float, std: float, wrap: Wrap) -> None:
    net = nn.Sequential(nn.BatchNorm1d(6)).to(dtype).eval()
    batches = [
        (v.sub(v.mean(0)).div(v.std(0)) * std + mean + s * std).to(dtype) for s, v in enumerate(V)
    ]
    mc = wrap(net).fit(batches).eval()
    assert mc.model[0].mc_mean.dtype == mc.model[0].mc_var.dtype == torch.float32
    x = (X * std + mean).to(dtype)
    with torch.no_grad():
        got = mc(x)
    assert got.dtype == dtype
    wanted = []
    for batch in batches:
        wide = batch.double()
        var = wide.var(0, correction=0)
        wanted.append((x.double() - wide.mean(0)) / (var + 1e-5).sqrt())
    tolerance = 4e-3 if dtype == torch.float16 else 3e-2
    torch.testing.assert_close(
        got.double(), torch.stack(wanted), rtol=tolerance, atol=tolerance * (1 + 4 * (mean == 500))
    )


def test_l1_half_precision_with_batch_norm_in_float(wrap: Wrap) -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).half().eval()
    net[1].float()
    mc = wrap(net).fit([(v * 50).half() for v in V]).eval()
    with torch.no_grad():
        got = mc(X.half())
    wanted = []
    weight, bias = (p.detach().double() for p in net[0].parameters())
    for v in V:
        h = (v * 50).half().double() @ weight.T + bias
        y = X.half().double() @ weight.T + bias
        wanted.append((y - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt())
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.double(), torch.stack(wanted), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("how", ["script", "trace", "freeze", "a part of it", "exported"])
def test_l3_scripted(how: str) -> None:
    net = build(lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    if how == "exported":
        made: Any = torch.export.export(net, (X,)).module()
    elif how == "a part of it":
        made = nn.Sequential(torch.jit.script(net), nn.BatchNorm1d(6))
    else:
        made = torch.jit.trace(net, X) if how == "trace" else torch.jit.script(net)
    if how == "freeze":
        made = torch.jit.freeze(made)
    with pytest.raises((TypeError, ValueError), match="wrap the module before"):
        MCBatchNorm(made, 4)


def test_l3_program() -> None:
    program = torch.export.export(build(lambda: nn.Sequential(nn.BatchNorm1d(6))), (X,))
    with pytest.raises(TypeError, match=r"ExportedProgram"):
        MCBatchNorm(program, 4)


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())


AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fx": torch.fx.symbolic_trace,
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "feature extractor": lambda net: Picked(create_feature_extractor(net, {"2": "out"})),
}


class Picked(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["out"]


@pytest.mark.parametrize("name", AROUND)
def test_l3_what_else_is_around_a_network(name: str, wrap: Wrap) -> None:
    assert_estimators(
        wrap(AROUND[name](build(sequential)).eval()).fit(V).eval()(X), Case(sequential).loop()
    )


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)


def old_weight_norm(net: Any) -> None:
    nn.utils.weight_norm(net[0])


def on_the_layer(net: Any) -> None:
    parametrize.register_parametrization(net[1], "weight", Positive())


REPARAMETRIZED: dict[str, Callable[[Any], Any]] = {
    "L5 weight_norm": lambda net: parametrizations.weight_norm(net[0]),
    "L5 weight_norm, old": old_weight_norm,
    "L5 spectral_norm": lambda net: parametrizations.spectral_norm(net[0]),
    "L5 spectral_norm, old": lambda net: nn.utils.spectral_norm(net[0]),
    "L5 orthogonal": lambda net: parametrizations.orthogonal(net[0]),
    "L5 pruned": lambda net: prune.l1_unstructured(net[0], "weight", 0.5),
    "L5 pruned layer": lambda net: prune.random_unstructured(net[1], "weight", 0.5),
    "L5 pruned bias of the layer": lambda net: prune.ln_structured(net[0], "weight", 0.5, 2, 0),
    "L5 batch norm layer": on_the_layer,
    "L5 batch norm layer, weight_norm": lambda net: parametrizations.weight_norm(net[1], dim=None),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*spectral_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_l5_reparametrized(name: str, wrap: Wrap) -> None:
    """After a forward pass with gradients their weights are no leaves, and cannot be copied."""

    def make() -> Any:
        torch.manual_seed(1)
        net = randomize(sequential().double())
        REPARAMETRIZED[name](net)
        net.eval()(V[0]).sum().backward()
        net.zero_grad()
        return net

    net = make()
    with torch.no_grad():
        drawn = draw(net, V)
        wanted = [each(X) for each in estimators(net, drawn)]
    try:
        mc = wrap(make())
    except REFUSALS as error:
        assert_in_words(error, "no_grad")
        return
    mc.fit(V).eval()
    for _ in range(2):
        assert_estimators(mc(X), wanted)
    copied = wrap(make()).fit(V).eval()
    with torch.no_grad():
        assert_estimators(copied(X), wanted)
        assert_estimators(copy.deepcopy(copied)(X), wanted)


@pytest.mark.parametrize(
    "how",
    ["compile", "a part of it", "in place", "after a call", "function", "function with the layer"],
)
def test_l8_compiled(how: str, wrap: Wrap) -> None:
    """Two sizes of batches, so that it would be compiled again for each estimator."""
    torch._dynamo.reset()
    net: Any = build(sequential)
    if how == "a part of it":
        net[1] = torch.compile(net[1], backend="eager")
    elif how == "in place":
        net.compile(backend="eager")
    elif how == "function":
        activation = torch.compile(torch.sin, backend="eager")
        net = build(lambda: Net(lambda n, x: activation(n.b(x))))
    elif how == "function with the layer":
        norm = torch.compile(lambda n, x: n.b(x).sin(), backend="eager")
        net = build(lambda: Net(lambda n, x: norm(n, x)))
    else:
        net = torch.compile(net, backend="eager")
    if how == "after a call":
        net(X)
    plain = (lambda: Net(lambda n, x: n.b(x).sin())) if "function" in how else sequential
    try:
        mc = wrap(net).fit(V).eval()
    except REFUSALS as error:
        assert_in_words(error, "'b'")
        assert how == "function with the layer"
        return
    wanted = Case(plain).loop()
    with torch.no_grad():
        assert_estimators(mc(X), wanted)
        assert_estimators(mc(X[:3]), [each[:3] for each in wanted])
    assert_estimators(mc(X), wanted)
    torch._dynamo.reset()


# --- All of them ---------------------------------------------------------------------------------


def assert_right_or_refused(this: Case, wrap: Wrap) -> None:
    wanted = this.loop()
    try:
        mc = fitted(wrap, this.make, this.batches)
        with torch.no_grad():
            outputs = [called(mc, fresh(this.call)) for _ in range(2)]
        outputs.append(called(mc, fresh(this.call)))
    except REFUSALS as error:
        if this.refused is None:
            raise
        assert_in_words(error, this.refused)
        return
    for output in outputs:
        assert_estimators(output, wanted)


@pytest.mark.parametrize("name", CASES)
def test_as_the_loop(name: str, wrap: Wrap) -> None:
    assert_right_or_refused(CASES[name], wrap)


def test_layers_keep_their_class_and_hold_the_statistics(wrap: Wrap) -> None:
    mc = fitted(wrap, lambda: Net(lambda n, x: n.b(n.b(x).sin()), b=Same()))
    assert type(mc.model.b) is Same
    net = build(lambda: Net(lambda n, x: n.b(n.b(x).sin())))
    drawn = [next(iter(seen.values())) for seen in draw(net, V)]
    mean, var = (
        torch.stack([torch.stack([c[i] for c in calls]) for calls in drawn]) for i in (0, 1)
    )
    assert_same((mc.model.b.mc_mean, mc.model.b.mc_var), (mean, var))
    assert mean.shape == (4, 2, 6)


def test_wrapper_says_which_way_it_took(wrap: Wrap) -> None:
    mc = fitted(wrap, lambda: Net(lambda n, x: n.b(x).sin()))
    mc(X)
    if mc.path == "auto":
        assert mc.loop_reason is None
    if mc.chunk_bytes == 1:
        return  # one at a time, and yet what they share once
    mc = fitted(wrap, lambda: Net(lambda n, x: n.b(x) * n.b(x).max().item()))
    mc(X)
    assert len(mc.loop_reason.split()) > 3
    assert mc.loop_reason.split("\n")[0][:40] in repr(mc)


def test_a_loop_is_remembered_where_the_next_one_would_be_no_other() -> None:
    mc = fitted(wrapper, lambda: Keeps("cache of the shape"))
    with torch.no_grad():
        mc(X)
        assert "keeps" in mc.loop_reason
        mc(X)  # what it keeps of this size is there
    assert mc.loop_reason is None

    runs: list[Tensor] = []
    mc = fitted(
        wrapper, lambda: Net(lambda n, x: (runs.append(x), n.b(x) * n.b(x).max().item())[1])
    )
    mc(X)
    runs.clear()
    mc(X)
    assert len(runs) == 4
