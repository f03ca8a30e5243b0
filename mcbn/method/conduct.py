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

from mcbn.method.inputs import trace_of, walk
from mcbn.method.tree import tensors_of

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


class Survivors(TorchFunctionMode):
    """The tensors of a pass that somebody keeps: in a module, a hook's list, a global variable."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[weakref.ref[Tensor]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Note what comes out."""
        result = func(*args, **(kwargs or {}))
        self.noted += map(weakref.ref, tensors_of(result))
        return result

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
        self.modules = modules
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

    def holds_for(self, modules: Sequence[nn.Module]) -> bool:
        """Whether these are the same modules, as they were."""
        return self.modules == modules and self.current_marks() == self.marks

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


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: v for name, v in vars(module).items() if name not in _OF_EVERY_MODULE}


def _own_buffers(module: nn.Module) -> dict[str, Any]:
    # By items(), as one that is being fitted notes who asks for a buffer by its name.
    return {name: b for name, b in module._buffers.items() if name not in ("mc_mean", "mc_var")}
