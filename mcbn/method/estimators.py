"""All estimators of a network, in less time than one after another.

``torch.vmap`` carries the axis of the estimators: each of its operations has a rule or raises, and
what does not depend on an estimator it computes once. As many run at once as fit into a budget of
memory; what the network computes before they differ, the first of these chunks computes for all
(:class:`Prefix`). Where vmap cannot run, the plain loop takes over: one pass after another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mcbn.method.conduct import Conduct, Snapshot
from mcbn.method.inputs import Inputs
from mcbn.method.pooling import (
    UNTRACKED,
    Deferred,
    finished,
    scale_and_shift,
    version,
    worth_deferring,
)
from mcbn.method.statistics import (
    MARKS,
    Handover,
    Layers,
    Pair,
    Substitution,
    called_otherwise,
    held,
    part_of,
    recomputes,
)
from mcbn.method.tree import leaves, tensors_of, tree_map

# Where an operation has no rule, vmap runs it for each estimator, and that is all right here.
warnings.filterwarnings("ignore", "There is a performance drop because we have not yet impl")


@dataclass
class Plan:
    """What is known of how a network runs.

    Attributes:
        loop_reason: Why the last prediction took the plain loop; None if it did not.
        loops: Whether the next one takes it without trying anything else.
        mapped: Whether one went without the loop.
        snapshot: What the network was like, that time,
        conditions: and how it was called.
        growth: Bytes of the largest normalized activation for each byte of input, if known.
        pooled: The names of the layers with a max-pooling behind them, if known.
    """

    loop_reason: str | None = None
    loops: bool = False
    mapped: bool = False
    snapshot: Snapshot | None = field(default=None, repr=False)
    conditions: Any = field(default=None, repr=False)
    growth: float | None = None
    pooled: frozenset[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what concerns this network alone, in a copy or a file."""
        return {**vars(self), "snapshot": None}


# --- What estimators share ---------------------------------------------------------------------


class Prefix:
    """The results of what a network calls before its estimators differ.

    The first run records them, those that follow get them handed out in the same order.
    """

    def __init__(self, inputs: Any) -> None:
        self.log: list[tuple[Any, Any]] = []
        self.versions = [(tensor, version(tensor)) for tensor in tensors_of(inputs)]
        self.devices = {tensor.device for tensor, _ in self.versions if tensor.is_cuda}
        self.random = self.random_state()
        self.open, self.drew, self.position = True, False, 0

    def random_state(self) -> list[Tensor]:
        """The states of the generators that the network may draw from."""
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self.devices)]

    def close(self) -> None:
        """From here on results are of single estimators."""
        if self.open:
            self.open = False
            self.drew |= not all(map(torch.equal, self.random, self.random_state()))

    def restart(self) -> bool:
        """Begin to hand out; False if what was recorded holds for its own run alone.

        That is so where a tensor has been written into since it was recorded, or where the
        network draws random numbers.
        """
        self.close()
        self.position = 0
        return not self.drew and all(version(tensor) == old for tensor, old in self.versions)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The recorded result of this call, or that of ``compute``.

        What returns no tensor is called every time: it may switch gradients off.
        """
        if self.position < len(self.log) and self.log[self.position][0] == key:
            self.position += 1
            return self.log[self.position - 1][1]
        result = compute()
        tensors = tensors_of(result)
        if tensors and self.open and any(map(_is_mapped, tensors)):
            self.close()
        elif tensors and self.open:
            self.log.append((key, result))
            self.versions += [(tensor, version(tensor)) for tensor in tensors]
        if tensors:
            self.position = len(self.log)  # at the end of it, or on another way
        return result


def _is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a run in progress: an axis of vmap, or waiting for a pooling."""
    return type(tensor) is Deferred or torch.func.debug_unwrap(tensor) is not tensor


# --- One pass of the network -------------------------------------------------------------------

Drawn = Mapping[Any, Sequence[tuple[Tensor, ...]]]

_REQUIRES_GRAD: Any = Tensor.requires_grad.__get__  # pyright: ignore[reportAttributeAccessIssue]
_MAKERS: set[Any] = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.asarray}
_GRAD_FN: Any = Tensor.grad_fn.__get__  # pyright: ignore
_LOOKED_AT = {_REQUIRES_GRAD, _GRAD_FN, *UNTRACKED, *_MAKERS}


class Estimators(Substitution):
    """Puts in statistics that were drawn before, of one estimator or of several under vmap.

    Args:
        layers: The network's batch norm layers by name.
        drawn: For each layer and each call of it, a mean and a variance ``(num_features,)``; of
            several estimators without gradients, also the scale and the shift that these come to
            with the layer's own weight, bias and eps.
        count: How many estimators these are of, on an axis of ``torch.vmap`` if more than one.
        prefix: What was, or is to be, computed once for all; None to compute all of it.
        waiting: The layers whose output waits for a max-pooling, to let it go first.
        plain: Whether it is the network's own pass and nothing else.
    """

    def __init__(
        self,
        layers: Layers,
        drawn: Drawn,
        count: int,
        prefix: Prefix | None = None,
        waiting: Iterable[nn.Module] = (),
        plain: bool = False,
    ) -> None:
        super().__init__(layers, count, waiting)
        self.drawn, self.prefix, self.plain = drawn, prefix, plain

    def statistics(self, layer: Any, call: int, handed: Handover) -> Pair:
        """Those of this call; RuntimeError where none were drawn."""
        calls = self.drawn[layer]
        if call >= len(calls):
            raise called_otherwise(layer, call + 1, len(calls))
        mean, var, *_ = calls[call]
        part = part_of(layer, handed.mean)
        return (mean, var) if part is None else (mean[part], var[part])

    def scale_and_shift(self, layer: Any, call: int, handed: Handover) -> Pair | None:
        """Those computed before, without gradients, if the layer hands over what is its own."""
        own = layer._parameters
        if (
            self.count == 1
            or self.grad
            or torch.is_grad_enabled()
            or handed.mean is not layer.running_mean
            or handed.weight is not own.get("weight")
            or handed.bias is not own.get("bias")
            or handed.eps != layer.eps
        ):
            return None
        _, _, scale, shift = self.drawn[layer][call]
        return scale, shift

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Ask the prefix."""
        return compute() if self.prefix is None else self.prefix.once(key, compute)

    def differ(self) -> None:
        """Close the prefix."""
        if self.prefix is not None:
            self.prefix.close()

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Share what is the same for all estimators."""
        if func in _LOOKED_AT and not self.plain:
            if func in UNTRACKED:
                raise RuntimeError(f"the network uses {func.__name__}, past what PyTorch records")
            if func in _MAKERS and args and isinstance(args[0], np.ndarray):
                raise RuntimeError("the network makes a tensor of NumPy's numbers")
            if func == _GRAD_FN and self.count > 1 and self.grad:
                raise RuntimeError("the network looks at the graph of its gradients")
            if func == _REQUIRES_GRAD and self.count > 1 and self.grad:
                return torch.func.debug_unwrap(args[0]).requires_grad  # vmap says False
        prefix = self.prefix
        if prefix is None or (not prefix.open and prefix.position == len(prefix.log)):
            return func(*args, **kwargs)
        if args and type(args[0]) is Deferred:  # it asks by itself
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            prefix.drew = True
        return prefix.once(func, lambda: func(*args, **kwargs))


def _run(
    model: nn.Module,
    layers: Layers,
    start: int,
    count: int,
    inputs: Any,
    **sharing: Any,
) -> tuple[Any, Estimators]:
    """A pass for some estimators: the output with their axis, and what it was run with.

    ``sharing`` is for :class:`Estimators`.
    """
    args, kwargs = inputs
    if count == 1:
        held_here = {layer: held(layer, start, start + 1) for layer in layers.values()}
        drawn = {layer: list(zip(m[0], v[0], strict=True)) for layer, (m, v) in held_here.items()}
        run = Estimators(layers, drawn, 1, **sharing)
        with run:
            output = finished(model(*args, **kwargs))
        _check_recomputation(run, output)
        _check_leaves(output)
        return tree_map(lambda t: t.unsqueeze(0), output), run

    # vmap returns tensors only: what they stood in is kept aside, and filled again.
    aside: list[Any] = []
    numbers = {layer: _numbers(layer, start, start + count) for layer in layers.values()}

    def mapped(flat: list[Tensor]) -> list[Tensor]:
        values = iter(flat)
        drawn = {
            layer: [tuple(next(values) for _ in call) for call in calls]
            for layer, calls in numbers.items()
        }
        run = Estimators(layers, drawn, count, **sharing)
        with run:
            output = finished(model(*args, **kwargs))
        aside.extend((run, output))
        return tensors_of(output)

    # What a checkpoint saves under vmap cannot be used after it.
    with torch.autograd.graph.disable_saved_tensors_hooks("it saves tensors in its own way"):
        flat = [value for calls in numbers.values() for call in calls for value in call]
        tensors = iter(torch.vmap(mapped, randomness="different")(flat))
    run, output = aside
    _check_leaves(output)
    return tree_map(lambda _: next(tensors), output), run


def _numbers(layer: Any, start: int, stop: int) -> list[tuple[Tensor, ...]]:
    """For each call, what :class:`Estimators` needs of so many of them."""
    numbers = held(layer, start, stop)
    if not torch.is_grad_enabled():
        own = layer._parameters
        numbers += scale_and_shift(*numbers, own.get("weight"), own.get("bias"), layer.eps)
    return list(zip(*(number.unbind(1) for number in numbers), strict=True))


def _check_recomputation(run: Substitution, output: Any) -> None:
    """Raise RuntimeError where a backward pass would run a layer again, with other statistics."""
    if not run.ran_without_grad:
        return
    seen, nodes = set[Any](), [t.grad_fn for t in tensors_of(output) if t.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            raise recomputes(type(node).__name__)
        new = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= new
        nodes += new


# --- All passes --------------------------------------------------------------------------------


def predict(
    model: nn.Module,
    layers: Layers,
    num_estimators: int,
    plan: Plan,
    chunk_bytes: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The network's output, every tensor of it with a leading axis ``num_estimators``.

    At most so many estimators run at once that their largest activation stays below
    ``chunk_bytes``; one always does. ``plan`` is brought up to date.

    Raises:
        RuntimeError: A layer is called more often than in ``fit``, or would run in a backward pass.
        TypeError: The output holds something that is no tensor.
        ValueError: A layer gets another number of channels than its own, or the output has another
            shape or structure for each estimator.
    """
    inputs = Inputs(args, kwargs)
    modules = list(model.modules())
    reason = plan.loop_reason if plan.loops else _why_loop(modules)
    if reason is None:
        snapshot, conduct = plan.snapshot, None
        if not (snapshot and inputs.conditions == plan.conditions and snapshot.holds_for(modules)):
            # What is called in another way than the last time may do other things.
            snapshot, conduct = Snapshot(modules), Conduct(model)
        versions = snapshot.versions()
        try:
            given = inputs.given if conduct is None else inputs.fresh()
            output = _in_chunks(model, layers, num_estimators, plan, chunk_bytes, given, inputs)
            fault = conduct and (conduct.fault(may_remember=True) or inputs.fault())
            if not fault and not (snapshot.holds_for(modules) and snapshot.versions() == versions):
                fault = "the network keeps something of a pass"
            if fault:
                raise _DoesMore(fault)
        except Exception as error:  # if it is not vmap's, the loop raises it as well
            snapshot.restore()
            if type(error).__module__ == "torch.utils.checkpoint":
                raise  # it is how a checkpoint around the wrapper stops
            inputs.check_unwritten(error)
            reason = _first_sentence(error)
            output = _loop(model, layers, num_estimators, inputs)
            plan.loops = not isinstance(error, _DoesMore)
        except BaseException:  # an interrupt leaves no tensor of vmap's either
            snapshot.restore()
            raise
        else:
            inputs.check_unwritten(None)
            plan.mapped, plan.snapshot, plan.conditions = True, snapshot, inputs.conditions
    else:
        output = _loop(model, layers, num_estimators, inputs)
    plan.loop_reason = reason
    return output


class _DoesMore(RuntimeError):
    """What the network did this time it may not do the next time."""


def _loop(model: nn.Module, layers: Layers, num_estimators: int, inputs: Inputs) -> Any:
    """One plain pass after another; the last one gets the caller's own objects."""
    outputs: list[Any] = []
    for estimator in range(num_estimators):
        given = inputs.given if estimator == num_estimators - 1 else inputs.fresh()
        outputs.append(_run(model, layers, estimator, 1, given, plain=True)[0])
    return _joined(outputs)


@contextmanager
def _recorded() -> Iterator[None]:
    """Where tensors count how often they are written into: not in inference mode."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


_UNKNOWN_GROWTH = 16.0


def _in_chunks(
    model: nn.Module,
    layers: Layers,
    num_estimators: int,
    plan: Plan,
    chunk_bytes: int,
    given: Any,
    inputs: Inputs,
) -> Any:
    size = max(1, inputs.nbytes)
    outputs: list[Any] = []
    prefix: Prefix | None = None
    done = 0
    while done < num_estimators:
        # Before anything is known of the network, its activations are taken to be large.
        growth = _UNKNOWN_GROWTH if plan.growth is None else plan.growth
        fitting = int(chunk_bytes // max(1.0, growth * size))
        left = num_estimators - done
        num_chunks = -(-left // max(1, min(fitting, left)))
        chunk = -(-left // num_chunks)
        pooled = layers.keys() if plan.pooled is None else plan.pooled
        waiting = [layers[n] for n in pooled] if worth_deferring(chunk * growth * size) else []
        # Where all run at once and nothing waits, nothing is kept that must not be written into.
        with nullcontext() if chunk == num_estimators and not waiting else _recorded():
            if chunk < num_estimators and (prefix is None or not prefix.restart()):
                prefix = Prefix(given)
            output, run = _run(model, layers, done, chunk, given, prefix=prefix, waiting=waiting)
        outputs.append(output)
        plan.growth = run.largest / size
        if plan.pooled is None and run.waiting:
            plan.pooled = run.names_pooled
        done += chunk
    return _joined(outputs)


def _why_loop(modules: Sequence[nn.Module]) -> str | None:
    """Why this prediction takes the plain loop, if that can be said beforehand."""
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return "autocast chooses other precisions under vmap"
    # The hooks on all modules have no public name.
    everywhere = nn.modules.module
    hooks = [*everywhere._global_forward_hooks.values()]
    hooks += everywhere._global_forward_pre_hooks.values()
    for module in modules:
        hooks += module._forward_hooks.values()
        hooks += module._forward_pre_hooks.values()
        hooks += module._backward_hooks.values()
        hooks += module._backward_pre_hooks.values()
    for hook in hooks:
        # Those of torch's own, such as weight norm's, look at weights or count operations.
        if hook not in MARKS and not str(getattr(hook, "__module__", "")).startswith("torch."):
            return "the network has a hook, which sees one estimator at a time"
    return None


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:160].rstrip(".")


# --- Outputs -----------------------------------------------------------------------------------

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def _check_leaves(output: Any) -> None:
    """Raise TypeError for what may hide a tensor, and could not get the axis of the estimators."""
    for path, leaf in leaves(output):
        if not isinstance(leaf, (Tensor, *_PLAIN)):
            raise TypeError(
                f"the network's {path} is a {type(leaf).__module__}.{type(leaf).__qualname__}, "
                "wanted tensors, in tuples, lists, dicts or dataclasses; let the network return "
                "the tensors that it is made of, and build it from those of the estimators."
            )


def _joined(outputs: list[Any]) -> Any:
    """Concatenate outputs along the axis of the estimators, with errors in words."""
    first, *rest = (dict(leaves(output)) for output in outputs)
    if not rest:
        return outputs[0]
    for other in rest:
        if other.keys() != first.keys():
            differing = sorted(first.keys() ^ other.keys())[0]
            raise ValueError(
                f"the network's {differing} is there for some estimators and not for others, "
                f"wanted one structure for all; {_FIXED}"
            )
    columns: list[Tensor] = []
    for path, leaf in first.items():
        column = [leaf, *(other[path] for other in rest)]
        if not isinstance(leaf, Tensor):
            if any(type(each) is not type(leaf) or each != leaf for each in column):
                raise TypeError(
                    f"the network's {path} is a {type(leaf).__name__} that is not the same for all "
                    "estimators; return a tensor in its place."
                )
            continue
        if not all(isinstance(each, Tensor) for each in column):
            raise ValueError(f"the network's {path} is a tensor for some estimators only; {_FIXED}")
        for each in column:
            if each.shape[1:] != leaf.shape[1:]:
                raise ValueError(
                    f"the network's {path} has sizes {tuple(leaf.shape[1:])} and "
                    f"{tuple(each.shape[1:])} for different estimators, wanted one; {_FIXED}"
                )
        columns.append(torch.cat(column))
    tensors = iter(columns)
    return tree_map(lambda _: next(tensors), outputs[0])


_FIXED = (
    "wrap the part of the network whose output has a fixed shape (a detector's backbone, the "
    "scores before a selection), and select afterwards."
)


# --- Compile and export ------------------------------------------------------------------------


def predict_traced(
    model: nn.Module,
    layers: Layers,
    num_estimators: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The same as one plain graph, for ``torch.compile`` and ``torch.export`` to see."""
    buffers: dict[str, Tensor] = {}
    for name, layer in layers.items():
        mean, var = held(layer, 0, num_estimators)
        if mean.shape[1]:
            buffers |= {f"{name}.running_mean": mean[:, 0], f"{name}.running_var": var[:, 0]}

    def one(statistics: dict[str, Tensor]) -> Any:
        return functional_call(model, statistics, args, kwargs)

    if not torch.compiler.is_exporting():
        return torch.vmap(one, randomness="different")(buffers)
    # Under vmap, export would fix the size of the batch.
    outputs = [
        tree_map(lambda t: t.unsqueeze(0), one({name: b[s] for name, b in buffers.items()}))
        for s in range(num_estimators)
    ]
    return _joined(outputs)


def is_traceable(layers: Mapping[str, Any]) -> bool:
    """Whether running statistics can stand for an estimator's in every layer."""
    return all(
        layer.running_mean is not None and layer.mc_mean.shape[1] <= 1 for layer in layers.values()
    )
