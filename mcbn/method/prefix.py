"""What estimators share: the results of a network's calls before the estimators differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcbn.method.pooling import Deferred, version
from mcbn.method.tree import tensors_of


class Prefix:
    """The results of a network's calls before its estimators differ.

    The first run records them; the following runs get them back in the same order.
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
        """Note that from here on, results belong to single estimators."""
        if self.open:
            self.open = False
            self.drew |= not all(map(torch.equal, self.random, self.random_state()))

    def restart(self) -> bool:
        """Start replaying; return False if the recorded results are valid only for their own run.

        This is so if a tensor has been written into since it was recorded, or if the network draws
        random numbers.
        """
        self.close()
        self.position = 0
        return not self.drew and all(version(tensor) == old for tensor, old in self.versions)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return the recorded result of this call, or that of ``compute``.

        A call that returns no tensor is made every time: it may switch gradients off.
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
            self.position = len(self.log)  # at its end, or off its path
        return result


def _is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a run in progress: under vmap, or waiting for a pooling."""
    return type(tensor) is Deferred or torch.func.debug_unwrap(tensor) is not tensor
