"""Runs all estimators of a network, in less time than one after another.

``torch.vmap`` carries the estimator axis: each operation has a batching rule or raises, and
whatever does not depend on the estimator is computed once. As many estimators run at once as fit
into a memory budget; the first of these chunks computes for all of them what the network does
before they differ (:class:`Prefix`). Where vmap cannot run, the plain loop takes over: one pass
after another, which costs little more than the network's own if its layers are known to look up
their running statistics.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from mcbn.method.conduct import Conduct, Snapshot
from mcbn.method.inputs import Inputs, cloned
from mcbn.method.pooling import finished, scale_and_shift, worth_deferring
from mcbn.method.prefix import Prefix
from mcbn.method.statistics import (
    Buffers,
    Handover,
    Layers,
    Substitution,
    called_otherwise,
    looking_up,
    part_of,
    recomputes,
    running,
)
from mcbn.method.tree import leaves, tensors_of, tree_map

# Where an operation has no rule, vmap runs it for each estimator, which is fine here.
warnings.filterwarnings("ignore", "There is a performance drop because we have not yet impl")


@dataclass
class Plan:
    """What is known about how a network runs.

    Attributes:
        loop_reason: Why the last prediction took the plain loop; None if it did not.
        loops: Whether the next prediction takes it without trying anything else.
        snapshot: The network's state, and how it was called, the last time without the loop.
        growth: Bytes of the largest normalized activation per byte of input. Before anything is
            known about the network, its activations are assumed to be large.
        pooled: The layers followed by max pooling, if known.
        lookups: How often every call of a layer has looked up its running mean and variance; None
            if not all passes did so alike. Empty before the first pass.
    """

    loop_reason: str | None = None
    loops: bool = False
    snapshot: Snapshot | None = field(default=None, repr=False)
    growth: float = 16.0
    pooled: set[_BatchNorm] | None = None
    lookups: dict[_BatchNorm, list[int]] | None = field(default_factory=dict)

    def learn(self, run: Substitution, nbytes: int) -> None:
        """Remember what a run with ``nbytes`` of inputs tells about the next one."""
        self.growth = run.largest / max(1, nbytes)
        if run.count == 1:
            known = run.regular and self.lookups in ({}, run.lookups)
            self.lookups = run.lookups if known else None
        if self.pooled is None and run.waiting:
            self.pooled = run.pooled

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy or a file what concerns this network alone."""
        return {**vars(self), "snapshot": None}


class Wrapper(Protocol):
    """What a prediction needs to know about the wrapper."""

    model: nn.Module
    num_estimators: int
    chunk_bytes: int | None
    _plan: Plan


# --- One pass of the network -------------------------------------------------------------------


class Estimators(Substitution):
    """Substitutes drawn statistics, of one estimator or of several under vmap.

    Args:
        drawn: For each layer and each call of it, a mean and a variance ``(num_features,)``; for
            several estimators without gradients, also the resulting scale and shift with the
            layer's own weight, bias and eps.
        others: Passed to :class:`Substitution`.
    """

    def __init__(self, drawn: Mapping[Any, Sequence[tuple[Tensor, ...]]], *others: Any) -> None:
        super().__init__(*others)
        self.drawn = drawn

    def statistics(self, layer: Any, call: int, handed: Handover) -> tuple[Tensor, Tensor, Any]:
        """The statistics of this call; RuntimeError if none were drawn."""
        calls = self.drawn[layer]
        if call >= len(calls):
            raise called_otherwise(layer, call + 1, len(calls))
        mean, var, *ready = calls[call]
        own, (_, running_mean, _, weight, bias, *_, eps) = layer._parameters, handed
        part = part_of(layer, running_mean)
        if part is not None:
            mean, var, ready = mean[part], var[part], []
        if self.count > 1 and (
            not ready
            or torch.is_grad_enabled()
            or weight is not own.get("weight")
            or bias is not own.get("bias")
            or eps != layer.eps
        ):
            ready = scale_and_shift(mean, var, weight, bias, eps)
        return mean, var, ready or None


def _run(
    model: nn.Module,
    layers: Layers,
    start: int,
    count: int,
    inputs: Any,
    prefix: Prefix | None = None,
    waiting: Iterable[_BatchNorm] = (),
) -> tuple[Any, Estimators]:
    """Run a pass for some estimators: return the output with their axis, and the run."""
    args, kwargs = inputs
    numbers = {layer: _numbers(layer, start, start + count) for layer in layers.values()}
    flat = [number for calls in numbers.values() for call in calls for number in call]
    # vmap takes and returns only tensors: their containers are set aside and filled again.
    aside: list[Any] = []

    def one(flat: list[Tensor]) -> list[Tensor]:
        values = iter(flat)
        drawn = {
            layer: [tuple(next(values) for _ in call) for call in calls]
            for layer, calls in numbers.items()
        }
        run = Estimators(drawn, layers, count, prefix, waiting)
        with run:
            output = finished(model(*args, **kwargs))
        _check_leaves(output)
        aside.extend((run, output))
        return tensors_of(output)

    if count == 1:
        tensors = [tensor.unsqueeze(0) for tensor in one([number[0] for number in flat])]
        _check_recomputation(*aside)
    else:
        # What a checkpoint saves under vmap cannot be used afterwards.
        with torch.autograd.graph.disable_saved_tensors_hooks("it saves tensors in its own way"):
            tensors = torch.vmap(one, randomness="different")(flat)
    run, output = aside
    values = iter(tensors)
    return tree_map(lambda _: next(values), output), run


def _numbers(layer: Any, start: int, stop: int) -> list[tuple[Tensor, ...]]:
    """For each call, what :class:`Estimators` needs for estimators ``start`` to ``stop``."""
    numbers = layer.mc_mean[start:stop], layer.mc_var[start:stop]
    if stop - start > 1 and not torch.is_grad_enabled():
        own = layer._parameters
        numbers += scale_and_shift(*numbers, own.get("weight"), own.get("bias"), layer.eps)
    return list(zip(*(number.unbind(1) for number in numbers), strict=True))


def _check_recomputation(run: Substitution, output: Any) -> None:
    """Raise RuntimeError if a backward pass would rerun a layer with other statistics."""
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


def predict(mc: Wrapper, layers: Layers, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The network's output, with a leading axis ``num_estimators`` on every tensor.

    The wrapper's ``chunk_bytes`` limits the largest activation of the estimators that run at once,
    but at least one always runs. The wrapper's plan is updated.

    Raises:
        RuntimeError: A layer is called more often than in ``fit``, or would run in a backward pass.
        TypeError: The output holds something that is not a tensor.
        ValueError: A layer gets the wrong number of channels, or the output's shape or structure
            differs between estimators.
    """
    plan, inputs, modules = mc._plan, Inputs(args, kwargs), list(mc.model.modules())
    reason, loops = plan.loop_reason if plan.loops else _why_loop(modules), plan.loops
    if reason is None:
        snapshot = plan.snapshot
        known = snapshot is not None and snapshot.holds_for(modules, inputs.conditions)
        if snapshot is None or not known:
            snapshot = Snapshot(modules, inputs.conditions)
        versions = snapshot.versions()
        try:
            # A network called in another way than last time may do other things.
            conduct = None if known else Conduct(mc.model, inputs.given)
            given = inputs.given if conduct is None else conduct.given
            output = _in_chunks(mc, layers, plan, given, inputs.nbytes)
            fault = conduct and conduct.fault()
            if inputs.written():
                fault = "the network writes into its input"
            elif not (
                snapshot.holds_for(modules, inputs.conditions) and snapshot.versions() == versions
            ):
                fault = fault or "the network keeps something of a pass"
            if fault:
                raise _DoesMore(fault)
        except BaseException as error:
            snapshot.restore()
            is_a_stop = type(error).__module__ == "torch.utils.checkpoint"  # one around mcbn
            if is_a_stop or not isinstance(error, Exception):
                raise
            if inputs.written():
                raise RuntimeError(
                    "the network writes into its input, as it did not in fit; build the wrapper "
                    "with path='loop'."
                ) from error
            # If the error is not vmap's, the loop raises it as well.
            reason = _first_sentence(error)
            loops = not isinstance(error, _DoesMore) or reason == plan.loop_reason
        else:
            plan.loop_reason, plan.snapshot = None, snapshot
            return output
    output = _loop(mc, layers, plan, inputs)
    plan.loop_reason, plan.loops = reason, loops
    return output


class _DoesMore(RuntimeError):
    """The network did something that it may not do next time, unless it did so last time, too."""


def _loop(mc: Wrapper, layers: Layers, plan: Plan, inputs: Inputs) -> Any:
    """One pass after another; the last one gets the caller's own objects."""
    given = inputs.given
    if not torch.is_grad_enabled() and all(_asks(layer, plan) for layer in layers.values()):
        given = cloned(given)
        with suppress(_AsksOtherwise):
            return _plain_passes(mc, layers, plan, inputs.given)
    outputs: list[Any] = []
    for each in _for_each(mc.num_estimators, given):
        output, run = _run(mc.model, layers, len(outputs), 1, each)
        plan.learn(run, inputs.nbytes)
        outputs.append(output)
    return _joined(outputs)


def _for_each(num_estimators: int, given: Any) -> Iterator[Any]:
    """Copies of the inputs, and at last the inputs themselves."""
    yield from (cloned(given) for _ in range(num_estimators - 1))
    yield given


class _AsksOtherwise(RuntimeError):
    """A pass did not look up the running statistics as often as those before, or changed them."""


def _asks(layer: Any, plan: Plan) -> bool:
    """Whether a layer is known to look up its running statistics, where others can be put."""
    calls = layer.mc_mean.shape[1]
    return (
        plan.lookups is not None
        and isinstance(layer._buffers, Buffers)
        and layer.running_mean is not None
        and layer.running_mean.dtype == layer.mc_mean.dtype
        and (calls == 0 or 0 not in plan.lookups.get(layer, [0]))
    )


class _Loan:
    """A layer's means, or its variances, for the passes of the loop.

    Args:
        own: The running statistic in whose place they are found.
        kept: ``(num_estimators, num_calls, num_features)``.
        times: How often a call looks up the running statistic.
    """

    def __init__(self, own: Tensor, kept: Tensor, times: int) -> None:
        self.own, self.kept, self.times, self.calls = own, kept, times, kept.shape[1]
        self.lent = kept.clone()  # a layer in training mode would write into the original
        self.rows = self.lent.flatten(0, 1).unbind()

    def found(self, estimator: int) -> tuple[Tensor, list[Tensor]]:
        """The running statistic, and what is found at each lookup."""
        rows = self.rows[estimator * self.calls :][: self.calls]
        return self.own, [row for row in rows for _ in range(self.times)] or [self.own]


def _plain_passes(mc: Wrapper, layers: Mapping[str, Any], plan: Plan, given: Any) -> Any:
    """Passes in which layers find an estimator's statistics where they look up their running ones.

    They take little longer than the network's own, as no function call is watched.
    """
    lookups = plan.lookups or {}
    loans = [
        _Loan(own, kept, times)
        for layer in layers.values()
        for own, kept, times in zip(
            running(layer), (layer.mc_mean, layer.mc_var), lookups.get(layer, (0, 0)), strict=True
        )
    ]
    outputs: list[Any] = []
    for args, kwargs in _for_each(mc.num_estimators, given):
        with looking_up([loan.found(len(outputs)) for loan in loans]) as counts:
            output = mc.model(*args, **kwargs)
        if any(counts[id(loan.own)] != loan.times * loan.calls for loan in loans):
            raise _AsksOtherwise
        _check_leaves(output)
        outputs.append(tree_map(lambda tensor: tensor.unsqueeze(0), output))
    if not all(torch.equal(loan.lent, loan.kept) for loan in loans):
        raise _AsksOtherwise
    return _joined(outputs)


# Measured on two cores: larger activations leave the cache. On a GPU, launches dominate the cost.
_CHUNK_BYTES_CPU = 8 << 20
_CHUNK_BYTES_ELSEWHERE = 1 << 30


def _in_chunks(mc: Wrapper, layers: Layers, plan: Plan, given: Any, nbytes: int) -> Any:
    on_cpu = next(iter(layers.values())).mc_mean.device.type == "cpu"
    budget = mc.chunk_bytes or (_CHUNK_BYTES_CPU if on_cpu else _CHUNK_BYTES_ELSEWHERE)
    outputs: list[Any] = []
    prefix: Prefix | None = None
    done, grad = 0, torch.is_grad_enabled()
    while done < mc.num_estimators:
        one, left = plan.growth * max(1, nbytes), mc.num_estimators - done
        num_chunks = -(-left // max(1, int(budget // max(1.0, one))))
        chunk = -(-left // num_chunks)
        pooled = layers.values() if plan.pooled is None else plan.pooled
        waiting = pooled if worth_deferring(chunk * one) else ()
        # In inference mode, tensors do not count writes.
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            if chunk < mc.num_estimators:
                prefix = prefix if prefix is not None and prefix.restart() else Prefix(given)
            output, run = _run(mc.model, layers, done, chunk, given, prefix, waiting)
        outputs.append(output)
        plan.learn(run, nbytes)
        done += chunk
    return _joined(outputs)


def _why_loop(modules: Sequence[nn.Module]) -> str | None:
    """Why this prediction takes the plain loop, if that is known in advance."""
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return "autocast chooses other precisions under vmap"
    # Global hooks have no public name.
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
        if str(getattr(hook, "__module__", "")).split(".")[0] not in ("torch", "mcbn"):
            return "the network has a hook, which sees one estimator at a time"
    return None


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:160].rstrip(".")


# --- Outputs -----------------------------------------------------------------------------------

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def _check_leaves(output: Any) -> None:
    """Raise TypeError for objects that may hide a tensor, which would lack the estimator axis."""
    for path, leaf in leaves(output):
        if not isinstance(leaf, (Tensor, *_PLAIN)):
            raise TypeError(
                f"the network's {path} is a {type(leaf).__module__}.{type(leaf).__qualname__}, "
                "wanted tensors, in tuples, lists, dicts or dataclasses; let the network return "
                "the tensors that it is made of, and build it from those of the estimators."
            )


def _joined(outputs: list[Any]) -> Any:
    """Concatenate outputs along the estimator axis, with readable errors."""
    if len(outputs) == 1:
        return outputs[0]
    first, *rest = trees = [dict(leaves(output)) for output in outputs]
    for other in rest:
        if other.keys() != first.keys():
            differing = sorted(first.keys() ^ other.keys())[0]
            raise ValueError(
                f"the network's {differing} is there for some estimators and not for others, "
                f"wanted one structure for all; {_FIXED}"
            )
    columns: list[Tensor] = []
    for path in first:
        column = [tree[path] for tree in trees]
        if all(isinstance(each, Tensor) for each in column):
            for each in column:  # their sizes may be symbolic, which cannot be hashed
                if each.shape[1:] != column[0].shape[1:]:
                    raise ValueError(
                        f"the network's {path} has sizes {tuple(column[0].shape[1:])} and "
                        f"{tuple(each.shape[1:])} for different estimators, wanted one; {_FIXED}"
                    )
            columns.append(torch.cat(column))
            continue
        kinds = dict.fromkeys(type(each).__name__ for each in column)
        if len(kinds) > 1 or any(each != column[0] for each in column):
            raise TypeError(
                f"the network's {path} is a {' or a '.join(kinds)} that is not the same for all "
                "estimators; return a tensor in its place."
            )
    tensors = iter(columns)
    return tree_map(lambda _: next(tensors), outputs[0])


_FIXED = (
    "wrap the part of the network whose output has a fixed shape (a detector's backbone, the "
    "scores before a selection), and select afterwards."
)


# --- Compile and export ------------------------------------------------------------------------


def predict_traced(
    mc: Wrapper, layers: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Predict in one plain graph that ``torch.compile`` and ``torch.export`` can trace."""
    buffers: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if layer.mc_mean.shape[1]:
            buffers[f"{name}.running_mean"] = layer.mc_mean[:, 0]
            buffers[f"{name}.running_var"] = layer.mc_var[:, 0]

    def one(statistics: dict[str, Tensor]) -> Any:
        return functional_call(mc.model, statistics, args, kwargs)

    if not torch.compiler.is_exporting():
        return torch.vmap(one, randomness="different")(buffers)
    # Under vmap, export would fix the size of the batch.
    outputs = [
        tree_map(lambda t: t.unsqueeze(0), one({name: b[s] for name, b in buffers.items()}))
        for s in range(mc.num_estimators)
    ]
    return _joined(outputs)


def is_traceable(layers: Mapping[str, Any]) -> bool:
    """Whether an estimator's statistics fit into the running statistics of every layer."""
    return all(
        layer.running_mean is not None and layer.mc_mean.shape[1] <= 1 for layer in layers.values()
    )
