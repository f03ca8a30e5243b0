"""The small networks of the tutorials."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def lenet(
    in_channels: int, num_classes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Sequential:
    """A LeNet-5 with a normalization layer after each convolution.

    Images ``(batch, in_channels, height, width)`` in, logits ``(batch, num_classes)`` out. An
    adaptive pooling to 4 by 4 before the dense layers makes it take images of any size from 12
    pixels up. After LeCun et al., *Gradient-based learning applied to document recognition*, 1998.

    Args:
        in_channels: Channels of the images, 1 for MNIST.
        num_classes: Number of logits.
        norm: Called with a number of channels, returns the layer that normalizes them.
            ``nn.Identity`` gives a LeNet without normalization.

    Example:
        >>> import torch
        >>> model = lenet(in_channels=1, num_classes=10)
        >>> sum(p.numel() for p in model.parameters())
        44470
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5),
        norm(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        norm(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
