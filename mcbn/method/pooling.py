"""Max pooling before batch norm's scale and shift, where this is equivalent and cheaper.

A maximum can be taken before a scale and shift as well as after them if the sign of the scale is
known, and it is that of the layer's weight. So the output of a batch norm layer waits, as a
:class:`Deferred`, for a pooling that may follow. For all other uses it is the tensor itself.

Where PyTorch pools slowly, :func:`pool` takes less time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mcbn.method.tree import tree_map

# Below this many bytes, waiting costs more time than it saves.
_WORTH_DEFERRING = 1 << 17


def worth_deferring(size: float) -> bool:
    """Whether activations of ``size`` bytes are large enough for early pooling to pay off."""
    return size >= _WORTH_DEFERRING


def nbytes(tensor: Tensor) -> int:
    """The size of a dense tensor in bytes; 0 for other tensors, and while compiling."""
    dense = tensor.layout is torch.strided and not torch.compiler.is_compiling()
    return tensor.nbytes if dense else 0


def normalized(
    mean: Tensor, var: Tensor, weight: Any, bias: Any, eps: float, ready: Any, x: Tensor
) -> Tensor:
    """Batch norm of ``(batch, num_features, …)``, in the precision of the statistics.

    Args:
        mean: ``(num_features,)``.
        var: ``(num_features,)``.
        weight: ``(num_features,)``, or None for ones.
        bias: ``(num_features,)``, or None for zeros.
        eps: Added to the variance.
        ready: The resulting scale and shift, or None. They are needed under ``torch.vmap``, whose
            own rule for batch norm is up to five times slower.
        x: The input to normalize.
    """
    if ready is None and mean.dtype == x.dtype:
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    scale, shift = ready or scale_and_shift(mean, var, weight, bias, eps)
    shape = (-1, *[1] * (x.dim() - 2))
    # On a CPU and with this broadcast, a third of the time of torch.addcmul.
    y = (x * scale.view(shape)).add_(shift.view(shape))
    return y if y.dtype == x.dtype else y.to(x.dtype)


def scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch norm's scale and shift for each feature, which is the last axis of all arguments."""
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    return scale, -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)


# A nondecreasing activation, which commutes with a maximum.
_RELUS = {F.relu, torch.relu, Tensor.relu}
_POOLS_2D = {F.max_pool2d, torch.max_pool2d}
# With the number of axes they pool.
_ADAPTIVE_POOLS = {F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3}
POOLS = {*_POOLS_2D, *_ADAPTIVE_POOLS}
_MAX_POOLS = {*_POOLS_2D, F.max_pool1d, torch.max_pool1d, F.max_pool3d, torch.max_pool3d}


class Run(Protocol):
    """What a waiting output needs from its run."""

    pooled: set[_BatchNorm]

    def differ(self) -> None:
        """Note that from here on, results belong to single estimators."""

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The result of a computation that all estimators share."""


class Deferred(Tensor):
    """The output of a batch norm layer, not yet scaled and shifted.

    Args:
        layer: The layer, with its own weight.
        raw: The layer's input, possibly max-pooled.
        affine: The normalization still to come.
        run: The pass of the network that this output belongs to.
        rectified: Whether a ReLU comes after it.
    """

    @staticmethod
    def __new__(
        cls: type[Deferred], layer: _BatchNorm, raw: Tensor, *_: Any, **__: Any
    ) -> Deferred:
        """Make a tensor with the shape of ``raw`` and no data."""
        # There is no public way to make a tensor without data whose every use can be intercepted.
        return Tensor._make_wrapper_subclass(
            cls, raw.shape, raw.stride(), dtype=raw.dtype, device=raw.device
        )

    def __init__(
        self,
        layer: _BatchNorm,
        raw: Tensor,
        affine: Callable[[Tensor], Tensor],
        run: Run,
        rectified: bool = False,
    ) -> None:
        self.layer, self.raw, self.affine, self.run = layer, raw, affine, run
        self.rectified = rectified
        self.version, self.value = version(raw), None

    def finish(self) -> Tensor:
        """Return the scaled and shifted tensor.

        Raises:
            Overwritten: The network has written into ``raw`` in the meantime.
        """
        if self.value is None:
            self.check_unwritten()
            self.run.differ()
            value = self.affine(self.raw)
            self.raw = self.value = (
                value.relu_() if self.rectified else value
            )  # the memory is needed
        return self.value

    def check_unwritten(self) -> None:
        """Raise Overwritten if the network has written into ``raw`` in the meantime."""
        if version(self.raw) != self.version:
            raise Overwritten("the network writes into the input of a batch norm layer")

    def activate(self, inplace: bool) -> Deferred:
        """Defer a ReLU, too."""
        if inplace:
            self.rectified = True
            return self
        return self.another(True)

    def another(self, rectified: bool) -> Deferred:
        """Another one like this, which the network may write into."""
        return Deferred(self.layer, self.raw, self.affine, self.run, rectified)

    def pool(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Deferred:
        """Pool now; where the weight is negative, take the minimum instead of the maximum."""
        self.check_unwritten()
        self.run.pooled.add(self.layer)
        raw, weight = self.raw, self.layer.weight

        def maximum() -> Tensor:
            if weight is None or not bool((weight < 0).any()):
                return pool(func, raw, *args, **kwargs)
            sign = torch.where(weight < 0, -1.0, 1.0).to(raw.dtype)
            sign = sign.view(-1, *[1] * (raw.dim() - 2))
            return pool(func, raw * sign, *args, **kwargs) * sign

        pooled = self.run.once(("pool", func), maximum)
        return Deferred(self.layer, pooled, self.affine, self.run, self.rectified)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep waiting if ``func`` allows it; otherwise act as the tensor."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Deferred) and first.value is None:
            if func in _RELUS:
                return first.activate(kwargs.get("inplace", len(args) > 1 and args[1]))
            if func in _ADAPTIVE_POOLS and _keeps_size(func, first.raw, *args[1:], **kwargs):
                return first.another(first.rectified)
            if func in _MAX_POOLS and not kwargs.get("return_indices", len(args) > 6 and args[6]):
                return first.pool(func, args[1:], kwargs)
        return func(*finished(args), **finished(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Act as the tensor for calls that reach an operation in another way, as scripts do."""
        return func(*finished(args), **finished(kwargs or {}))


# Ways to write into a tensor without a trace.
UNTRACKED: set[Any] = {
    Tensor.data.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.data.__set__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.numpy,
    Tensor.__array__,
}


class Overwritten(RuntimeError):
    """A tensor was needed as it was before the network wrote into it."""


def version(tensor: Tensor) -> int:
    """A number that changes when the tensor is written into, under ``torch.vmap`` as well."""
    # An inference tensor cannot be written into where estimators run at once.
    return 0 if tensor.is_inference() else torch.func.debug_unwrap(tensor)._version


def finished(tree: Any) -> Any:
    """The same tree with all waiting tensors finished."""
    return tree_map(lambda t: t.finish() if type(t) is Deferred else t, tree)


def pool(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Do the same as ``func``, one of :data:`POOLS`, in less time where possible."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.layout is torch.strided
    # At ties, the gradient would differ.
    if not (plain and x.is_floating_point() and x.is_contiguous()) or torch.is_grad_enabled():
        return func(x, *args, **kwargs)
    if func in _ADAPTIVE_POOLS and _keeps_size(func, x, *args, **kwargs):
        return x.clone()
    if func in _POOLS_2D and _halves(x, args, kwargs):
        # Four to ten times as fast as native pooling.
        x = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
        return torch.maximum(x[..., ::2], x[..., 1::2])
    return func(x, *args, **kwargs)


def _keeps_size(func: Any, x: Tensor, output_size: int | Sequence[int | None]) -> bool:
    """Whether adaptive pooling to this size would change nothing."""
    size = x.shape[-_ADAPTIVE_POOLS[func] :]
    wanted = [output_size] * len(size) if isinstance(output_size, int) else output_size
    return all(w is None or w == s for w, s in zip(wanted, size, strict=True))


def _halves(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this pooling takes the maximum of each 2-by-2 block of an even-sized image."""
    given = dict(zip(("kernel_size", "stride", "padding", "dilation"), args, strict=False)) | kwargs
    two, size = (2, [2, 2], (2, 2)), given.get("kernel_size")
    return (
        x.shape[-1] % 2 == x.shape[-2] % 2 == 0
        and size in two
        and (given.get("stride") or size) in two
        and given.get("padding", 0) in (0, [0, 0], (0, 0))
        and given.get("dilation", 1) in (1, [1, 1], (1, 1))
    )
