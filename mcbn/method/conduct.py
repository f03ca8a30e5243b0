"""Checks in plain passes whether a network does more than turn inputs into outputs.

A network that writes into its inputs, keeps something of a pass, or draws from generators other
than PyTorch's does so once per pass. Several estimators at once would be a single pass, so such a
network takes the plain loop.
"""

from __future__ import annotations

import gc
import operator
import random
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mcbn.method.inputs import cloned, same, trace_of, walk
from mcbn.method.tree import tensors_of

_OF_EVERY_MODULE = vars(nn.Module()).keys()


class Conduct(TorchFunctionMode):
    """Compares what a network can reach before and after a pass.

    As the context of a plain pass it also notes the tensors that each function returns, to find
    those that are kept: in a hook's list, say, or a global variable.

    Args:
        model: The network.
        inputs: Its inputs.

    Attributes:
        given: A copy of the inputs, for that pass.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model, self.inputs, self.given = model, inputs, cloned(inputs)
        self.trace, self.kept, self.states = trace_of(self.given), _kept(model), _random_states()
        self.noted: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the returned tensors."""
        result = func(*args, **(kwargs or {}))
        self.noted += map(weakref.ref, tensors_of(result))
        return result

    def fault(self) -> str | None:
        """What the network did besides its output, in words; None if nothing."""
        if _random_states() != self.states:
            return "the network draws random numbers from Python or NumPy"
        kept = _kept(self.model)
        for name in {**kept, **self.kept}:
            if kept.get(name) != self.kept.get(name):
                return f"the network keeps something of a pass, in {name}"
        if self._any_survives():
            return "the network keeps a tensor of a pass"
        # Some writes leave a trace but change no value, others change a value without a trace.
        if trace_of(self.given) != self.trace or not same(self.given, self.inputs):
            return "the network writes into its input"
        return None

    def _any_survives(self) -> bool:
        inputs = (value for _, value in walk(self.given))
        own = (*self.model.parameters(), *self.model.buffers())
        known = {id(value) for value in (None, *own, *inputs)}

        def survivors() -> bool:
            return any(id(ref()) not in known for ref in self.noted)

        if survivors():
            gc.collect()  # a reference cycle may keep them for a while
        return survivors()


def _kept(model: nn.Module) -> dict[str, Any]:
    """For each place where a module keeps something, a trace that changes with it."""
    traces: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        own = {name: v for name, v in vars(module).items() if name not in _OF_EVERY_MODULE}
        for name, value in (own | _own_buffers(module) | module._parameters).items():
            traces[f"{type(module).__name__}.{name} of {prefix or 'the network'}"] = trace_of(value)
    return traces


def _random_states() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=False)
    return random.getstate(), state["state"]["pos"], state["state"]["key"].tobytes()


class Snapshot:
    """A network's own state, to restore after a run that was not a plain pass.

    Args:
        modules: Its modules. Another thread may fit them meanwhile, so statistics are left alone.
        conditions: How the network is called.
    """

    def __init__(self, modules: Sequence[nn.Module], conditions: Any) -> None:
        self.modules, self.conditions = modules, conditions
        self.attributes = [operator.itemgetter(*vars(m).keys() - {"_buffers"}) for m in modules]
        self.held = [({**vars(module)}, _own_buffers(module)) for module in modules]
        self.values = self.current_values()
        self.tensors = [
            tensor
            for attributes, buffers in self.held
            for tensor in (*attributes["_parameters"].values(), *buffers.values())
            if tensor is not None and not tensor.is_inference()  # these do not count writes
        ]

    def current_values(self) -> list[Any]:
        """The values of attributes, flags and buffers."""
        values: list[Any] = []
        for module, attributes in zip(self.modules, self.attributes, strict=True):
            own = vars(module)
            values.append(len(own))
            try:
                values += attributes(own)
            except KeyError as error:
                values.append(error)
            if own["_buffers"]:
                values += _own_buffers(module).values()
        return values

    def holds_for(self, modules: Sequence[nn.Module], conditions: Any) -> bool:
        """Whether these are the same modules, unchanged and called in the same way."""
        if self.conditions != conditions or self.modules != modules:
            return False
        now = self.current_values()
        if len(now) != len(self.values):
            return False
        return all(map(operator.is_, now, self.values)) or all(map(_alike, now, self.values))

    def versions(self) -> list[int]:
        """A list that changes after a write into a parameter or a buffer."""
        return [tensor._version for tensor in self.tensors]

    def restore(self) -> None:
        """Put the attributes back."""
        for module, (attributes, buffers) in zip(self.modules, self.held, strict=True):
            own = vars(module)
            for holder, now, before in (
                (own, own.keys() - {"_buffers"}, {**attributes, "_buffers": own["_buffers"]}),
                (module._buffers, _own_buffers(module).keys(), buffers),
            ):
                for name in now - before.keys():
                    del holder[name]
                holder.update(before)


def _alike(value: Any, other: Any) -> bool:
    """Whether two values are the same, or equal ones such as a padding that each pass computes."""
    return value is other or trace_of(value) == trace_of(other)


def _own_buffers(module: nn.Module) -> dict[str, Any]:
    # Through items(), as a layer that is being fitted notes requests for a buffer by name.
    return {name: b for name, b in module._buffers.items() if name not in ("mc_mean", "mc_var")}
