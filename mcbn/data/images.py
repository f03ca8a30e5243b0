"""Images in memory, cropped and normalized one whole batch at a time.

Separate from the datamodule, so that a spawned loading process need not import Lightning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from mcbn.checks import check_count, check_number, check_tensors


def random_crop(images: Tensor, padding: int, generator: torch.Generator | None = None) -> Tensor:
    """Pads images with zeros and crops each one to its old size at its own random position.

    Args:
        images: ``(batch, height, width)``, any dtype.
        padding: Pixels added on each side.
        generator: Source of the positions; torch's global one by default.

    Returns:
        ``(batch, height, width)``, with the same dtype.

    Raises:
        TypeError: ``images`` is not a tensor, or ``padding`` is not an integer.
        ValueError: The images have the wrong shape, or the padding is negative.

    Example:
        >>> random_crop(torch.ones(5, 28, 28, dtype=torch.uint8), padding=4).shape
        torch.Size([5, 28, 28])
    """
    check_tensors(images=images)
    check_count("padding", padding, least=0)
    if images.ndim != 3:
        raise ValueError(
            f"Given images of shape {tuple(images.shape)}, wanted (batch, height, width)."
        )
    batch, height, width = images.shape
    windows = pad(images, [padding] * 4).unfold(1, height, 1).unfold(2, width, 1)
    rows, columns = torch.randint(2 * padding + 1, (2, batch), generator=generator)
    return windows[torch.arange(batch), rows, columns]


class InMemoryImages(Dataset[tuple[Tensor, int]]):
    """Grayscale images held as uint8, returned one batch at a time.

    A ``DataLoader`` asks for the items of a batch all at once (``__getitems__``), so cropping and
    normalizing take a few tensor operations per batch instead of per image. Give the loader
    ``collate_fn=ready_batch``, as the batch is already complete. The requested indices determine
    the crops: a batch has the same crops in whichever process it is made, and a reshuffled epoch
    has new ones. A single image is cropped with torch's global generator.

    Args:
        images: ``(n, height, width)`` uint8.
        labels: ``(n,)`` int64.
        mean: Subtracted from the pixels once they are in [0, 1].
        std: Divides the pixels after that.
        padding: Pixels added around an image before a random crop to its old size; 0 for no crop.

    Raises:
        TypeError: Images or labels are not tensors, or ``mean``, ``std`` or ``padding`` is not a
            number of the right type.
        ValueError: Shapes or dtypes are wrong, or a number is out of range.

    Example:
        >>> images = torch.zeros(10, 28, 28, dtype=torch.uint8)
        >>> dataset = InMemoryImages(images, torch.arange(10), mean=0.5, std=0.5)
        >>> batch, labels = dataset.__getitems__([3, 1])
        >>> batch.shape, batch.unique(), labels
        (torch.Size([2, 1, 28, 28]), tensor([-1.]), tensor([3, 1]))
    """

    def __init__(
        self, images: Tensor, labels: Tensor, mean: float, std: float, padding: int = 0
    ) -> None:
        check_tensors(images=images, labels=labels)
        kinds = images.dtype == torch.uint8 and labels.dtype == torch.long
        if not (kinds and images.ndim == 3 and labels.shape == images.shape[:1]):
            raise ValueError(
                f"Given images {images.dtype} {tuple(images.shape)} and labels {labels.dtype} "
                f"{tuple(labels.shape)}, wanted uint8 (n, height, width) and int64 (n,)."
            )
        check_number("mean", mean, "a finite number", math.isfinite)
        check_number("std", std, "a finite number above 0", lambda value: 0 < value < math.inf)
        check_count("padding", padding, least=0)
        self.images, self.labels = images, labels
        self.mean, self.std, self.padding = mean, std, padding

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images ``(batch, 1, height, width)`` float32 and labels ``(batch,)`` int64."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        images = self.images[chosen]
        if self.padding:
            images = random_crop(images, self.padding, _seeded_by(chosen))
        pixels = images.unsqueeze(1).float().div_(255).sub_(self.mean).div_(self.std)
        return pixels, self.labels[chosen]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image ``(1, height, width)`` float32 and its label."""
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])


def _seeded_by(indices: Tensor) -> torch.Generator | None:
    """A generator for the crops of these images.

    The training process draws the indices, whichever process loads, so that whatever they determine
    is the same with any number of workers. A single index is always the same for its image, so it
    cannot be a source of randomness.
    """
    if len(indices) < 2:
        return None
    return torch.Generator().manual_seed(crc32(indices.numpy().tobytes()))


def ready_batch(batch: Any) -> Any:
    """The ``collate_fn`` for `InMemoryImages`: returns the batch unchanged.

    Example:
        >>> ready_batch((torch.zeros(1), torch.ones(1)))
        (tensor([0.]), tensor([1.]))
    """
    return batch
