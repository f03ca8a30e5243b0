"""Max-pooling before the scale and the shift of batch norm, where it is the same and cheaper.

A maximum can be taken before a scale and a shift as well as after them, if the sign of the scale is
known, and it is that of the layer's weight. So the output of a batch norm layer waits, as
:class:`Deferred`, for a pooling that may follow. To anything else it is the tensor itself.

Some poolings PyTorch does slowly, and :func:`pool` in less time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mcbn.method.tree import tree_map

# Below so many bytes, waiting takes longer than it saves.
_WORTH_DEFERRING = 1 << 17


def worth_deferring(size: float) -> bool:
    """Whether activations of so many bytes are large enough for a pooling first to pay."""
    return size >= _WORTH_DEFERRING


def nbytes(tensor: Tensor) -> int:
    """The size of a dense tensor; 0 for one that is not, or that a compiler only imagines."""
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
        ready: The scale and the shift that all this comes to, or None. They are needed under
            ``torch.vmap``, whose own rule for batch norm is up to five times slower.
        x: What is normalized.
    """
    if ready is None and mean.dtype == x.dtype:
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    scale, shift = ready or scale_and_shift(mean, var, weight, bias, eps)
    shape = (-1, *[1] * (x.dim() - 2))
    # A third of the time of torch.addcmul, on a CPU and broadcast like this.
    y = (x * scale.view(shape)).add_(shift.view(shape))
    return y if y.dtype == x.dtype else y.to(x.dtype)


def scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch norm's two numbers for each feature, the last axis of them all."""
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    return scale, -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)


# An activation that never decreases, so that it commutes with a maximum.
_RELUS = {F.relu, torch.relu, Tensor.relu}
_POOLS_2D = {F.max_pool2d, torch.max_pool2d}
# With the number of axes that they pool.
_ADAPTIVE_POOLS = {F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3}
POOLS = {*_POOLS_2D, *_ADAPTIVE_POOLS}
_MAX_POOLS = {*_POOLS_2D, F.max_pool1d, torch.max_pool1d, F.max_pool3d, torch.max_pool3d}


class Run(Protocol):
    """What a waiting output needs of the run that it is part of."""

    pooled: set[_BatchNorm]

    def differ(self) -> None:
        """Be told that from here on results are of single estimators."""

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The result of what all estimators share."""


class Deferred(Tensor):
    """The output of a batch norm layer, not yet scaled and shifted.

    Args:
        layer: That layer, with its own weight.
        raw: What it was given, or what a max-pooling has left of it.
        affine: The normalization that is to come.
        run: The pass of the network that this is a part of.
        rectified: Whether a ReLU comes after it.
    """

    @staticmethod
    def __new__(
        cls: type[Deferred], layer: _BatchNorm, raw: Tensor, *_: Any, **__: Any
    ) -> Deferred:
        """Have the shape of ``raw``, and no data."""
        # No public way makes a tensor without data whose every use can be seen.
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
        """The scaled and shifted tensor.

        Raises:
            Overwritten: The network has written into ``raw`` meanwhile.
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
        """Raise Overwritten if the network has written into ``raw`` meanwhile."""
        if version(self.raw) != self.version:
            raise Overwritten("the network writes into the input of a batch norm layer")

    def activate(self, inplace: bool) -> Deferred:
        """Put a ReLU off, too."""
        if inplace:
            self.rectified = True
            return self
        return self.another(True)

    def another(self, rectified: bool) -> Deferred:
        """One of the same, that the network may write into."""
        return Deferred(self.layer, self.raw, self.affine, self.run, rectified)

    def pool(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Deferred:
        """Pool now: where the weight is negative, the maximum is that of the negative."""
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
        """Go on waiting if ``func`` allows it, and be the tensor otherwise."""
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
        """Be the tensor for what reaches an operation by another way, as a script does."""
        return func(*finished(args), **finished(kwargs or {}))


# What gives a way to write into a tensor without a trace.
UNTRACKED: set[Any] = {
    Tensor.data.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.data.__set__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.numpy,
    Tensor.__array__,
}


class Overwritten(RuntimeError):
    """A tensor was needed as it had been before the network wrote into it."""


def version(tensor: Tensor) -> int:
    """A number that changes when the tensor is written into, under ``torch.vmap`` as well."""
    # An inference tensor cannot be written into where estimators run at once.
    return 0 if tensor.is_inference() else torch.func.debug_unwrap(tensor)._version


def finished(tree: Any) -> Any:
    """The same tree without a tensor that waits."""
    return tree_map(lambda t: t.finish() if type(t) is Deferred else t, tree)


def pool(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The same as ``func``, one of :data:`POOLS`, in less time where there is a way."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.layout is torch.strided
    # At ties the gradient would be another.
    if not (plain and x.is_floating_point() and x.is_contiguous()) or torch.is_grad_enabled():
        return func(x, *args, **kwargs)
    if func in _ADAPTIVE_POOLS and _keeps_size(func, x, *args, **kwargs):
        return x.clone()
    if func in _POOLS_2D and _halves(x, args, kwargs):
        # Four to ten times as fast as the native pooling.
        x = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
        return torch.maximum(x[..., ::2], x[..., 1::2])
    return func(x, *args, **kwargs)


def _keeps_size(func: Any, x: Tensor, output_size: int | Sequence[int | None]) -> bool:
    """Whether an adaptive pooling to this size would change nothing."""
    size = x.shape[-_ADAPTIVE_POOLS[func] :]
    wanted = [output_size] * len(size) if isinstance(output_size, int) else output_size
    return all(w is None or w == s for w, s in zip(wanted, size, strict=True))


def _halves(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this pooling takes the maximum of each 2 by 2 pixels of an image of even sizes."""
    given = dict(zip(("kernel_size", "stride", "padding", "dilation"), args, strict=False)) | kwargs
    two, size = (2, [2, 2], (2, 2)), given.get("kernel_size")
    return (
        x.shape[-1] % 2 == x.shape[-2] % 2 == 0
        and size in two
        and (given.get("stride") or size) in two
        and given.get("padding", 0) in (0, [0, 0], (0, 0))
        and given.get("dilation", 1) in (1, [1, 1], (1, 1))
    )
