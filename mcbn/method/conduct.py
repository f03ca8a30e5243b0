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
from operator import itemgetter
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mcbn.method.inputs import cloned, same, trace_of, walk
from mcbn.method.tree import tensors_of

_OF_EVERY_MODULE = vars(nn.Module()).keys()


class Conduct(TorchFunctionMode):
    """Compares what a network can reach before and after a pass.

    As a context of a plain pass it also notes the tensors that come out of each function, to see
    which ones somebody keeps: in a hook's list, say, or a global variable.

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
        """Note what comes out."""
        result = func(*args, **(kwargs or {}))
        self.noted += map(weakref.ref, tensors_of(result))
        return result

    def fault(self) -> str | None:
        """What the network did beside its output, in words; None if it did nothing."""
        if _random_states() != self.states:
            return "the network draws random numbers from Python or NumPy"
        kept = _kept(self.model)
        for name in {**kept, **self.kept}:
            if kept.get(name) != self.kept.get(name):
                return f"the network keeps something of a pass, in {name}"
        if self._any_survives():
            return "the network keeps a tensor of a pass"
        # Some writes leave a trace and no other value, some a value and no trace.
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
            gc.collect()  # a cycle of references keeps them for a while
        return survivors()


def _kept(model: nn.Module) -> dict[str, Any]:
    """For each place in which a module keeps something, what changes when that does."""
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
    """What a network keeps of its own, to be put back after a run that was not a plain pass.

    Args:
        modules: Its modules. Another thread may fit them meanwhile: statistics are left alone.
        conditions: How it is called.
    """

    def __init__(self, modules: Sequence[nn.Module], conditions: Any) -> None:
        self.modules, self.conditions = modules, conditions
        self.attributes = [itemgetter(*vars(m).keys() - {"_buffers"}) for m in modules]
        # While these are held, the id of one is that of no other object.
        self.held = [({**vars(module)}, _own_buffers(module)) for module in modules]
        self.marks = self.current_marks()
        self.tensors = [
            tensor
            for attributes, buffers in self.held
            for tensor in (*attributes["_parameters"].values(), *buffers.values())
            if tensor is not None and not tensor.is_inference()  # of those no writes are counted
        ]

    def current_marks(self) -> list[Any]:
        """What is another list when an attribute, a flag or a buffer is another object."""
        marks: list[Any] = []
        for module, attributes in zip(self.modules, self.attributes, strict=True):
            own = vars(module)
            marks.append(len(own))
            try:
                marks += map(id, attributes(own))
            except KeyError as error:
                marks.append(str(error))
            if own["_buffers"]:
                marks += map(id, _own_buffers(module).values())
        return marks

    def holds_for(self, modules: Sequence[nn.Module], conditions: Any) -> bool:
        """Whether these are the same modules, as they were, and are called in the same way."""
        called_alike = self.conditions == conditions
        return called_alike and self.modules == modules and self.current_marks() == self.marks

    def versions(self) -> list[int]:
        """What is another list after a write into a parameter or a buffer."""
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


def _own_buffers(module: nn.Module) -> dict[str, Any]:
    # By items(), as one that is being fitted notes who asks for a buffer by its name.
    return {name: b for name, b in module._buffers.items() if name not in ("mc_mean", "mc_var")}
