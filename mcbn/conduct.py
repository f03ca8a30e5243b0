"""Whether a network does more than turn its inputs into outputs, as plain passes show it.

What writes into its inputs, keeps something of a pass, or draws from generators that are not
PyTorch's, does so once a pass. Several estimators at once would be one pass: such a network takes
the plain loop.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from mcbn.inputs import trace_of, walk
from mcbn.pooling import version

_OF_EVERY_MODULE = vars(nn.Module()).keys()


class Conduct:
    """Compares what a network can reach before and after a plain pass.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.states = _random_states()
        self.traces = _traces(model)

    def fault(self, may_remember: bool = False) -> str | None:
        """What it did beside its output, in words; None if it did nothing.

        Args:
            may_remember: Let it keep new tensors that do not depend on the estimator, as a mask for
                inputs of another size.
        """
        if _random_states() != self.states:
            return "the network draws random numbers from Python or NumPy"
        for name, trace in _traces(self.model).items():
            old = self.traces.get(name, [])
            if trace != old and not (may_remember and _only_remembers(old, trace)):
                return f"the network keeps something of a pass, in {name}"
        return None


def _only_remembers(old: list[Any], new: list[Any]) -> bool:
    added = [mark for place, mark in new if (place, mark) not in old]
    return all(each in new for each in old) and all(
        isinstance(mark, tuple) and mark[-1] is True for mark in added
    )


def _traces(model: nn.Module) -> dict[str, Any]:
    """For each place in which a module keeps something, what changes when that does."""
    traces: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        kept = _own(module) | _own_buffers(module) | module._parameters
        for name, value in kept.items():
            traces[f"{type(module).__name__}.{name} of {prefix or 'the network'}"] = trace_of(value)
    return traces


def _random_states() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=False)
    return random.getstate(), state["state"]["pos"], state["state"]["key"].tobytes()


class Survivors:
    """The tensors of a pass that somebody keeps: in a module, a hook's list, a global variable."""

    def __init__(self) -> None:
        self.noted: list[weakref.ref[Tensor]] = []

    def note(self, tensors: list[Tensor]) -> None:
        """Watch what the pass has computed."""
        self.noted += map(weakref.ref, tensors)

    def any(self, model: nn.Module, inputs: Any) -> bool:
        """Whether some are there after the pass, and its output is gone."""
        known = {id(t) for t in (*model.parameters(), *model.buffers())}
        known |= {id(value) for _, value in walk(inputs) if isinstance(value, Tensor)}

        def left() -> bool:
            return any(id(t) not in known for t in (ref() for ref in self.noted) if t is not None)

        if left():
            gc.collect()  # a cycle of references keeps them for a while
        return left()


class Snapshot:
    """What a network keeps of its own, to be put back after a run that was not a plain pass.

    Args:
        modules: Its modules. Another thread may fit them meanwhile: statistics are left alone.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.held = [(module, _own(module), _own_buffers(module)) for module in modules]
        tensors = [
            tensor
            for module, _, buffers in self.held
            for tensor in (*module._parameters.values(), *buffers.values())
            if tensor is not None
        ]
        self.versions = [(tensor, version(tensor)) for tensor in tensors]

    def conditions(self) -> list[Any]:
        """What is another list when a flag, a mode or a hook of a module is another."""
        return [tuple(map(id, vars(module).values())) for module, _, _ in self.held]

    def changed(self) -> bool:
        """Whether an attribute is another object, or a tensor has been written into."""
        return any(
            _differ(_own(module), own) or _differ(_own_buffers(module), buffers)
            for module, own, buffers in self.held
        ) or any(version(tensor) != old for tensor, old in self.versions)

    def restore(self) -> None:
        """Put the attributes back."""
        for module, own, buffers in self.held:
            for holder, now, old in (
                (vars(module), _own(module), own),
                (module._buffers, _own_buffers(module), buffers),
            ):
                for name in now.keys() - old.keys():
                    del holder[name]
                holder.update(old)


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: v for name, v in vars(module).items() if name not in _OF_EVERY_MODULE}


def _own_buffers(module: nn.Module) -> dict[str, Any]:
    # By items(), as one that is being fitted notes who asks for a buffer by its name.
    return {name: b for name, b in module._buffers.items() if name not in ("mc_mean", "mc_var")}


def _differ(now: dict[str, Any], old: dict[str, Any]) -> bool:
    return now.keys() != old.keys() or any(now[name] is not old[name] for name in old)
