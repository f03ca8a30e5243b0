"""The small networks of the tutorials."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcbn.checks import check_callable, check_count


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

    Raises:
        TypeError: A number is no integer, or ``norm`` cannot be called.
        ValueError: A number is below 1.

    Example:
        >>> model = lenet(in_channels=1, num_classes=10)
        >>> sum(p.numel() for p in model.parameters())
        44470
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    check_count("in_channels", in_channels)
    check_count("num_classes", num_classes)
    check_callable("norm", norm, "a function from a number of channels to a layer")
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


def unet(in_channels: int, num_classes: int, width: int = 8) -> nn.Module:
    """A U-Net over three scales, with batch normalization after each convolution.

    Images ``(batch, in_channels, height, width)`` in, logits of each pixel ``(batch, num_classes,
    height, width)`` out. After Ronneberger, Fischer and Brox, *U-Net: convolutional networks for
    biomedical image segmentation*, 2015, with padded convolutions and far fewer channels.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits of a pixel.
        width: Channels at the full size; each halving of the size doubles them.

    Raises:
        TypeError: A number is no integer.
        ValueError: A number is below 1.

    Example:
        >>> model = unet(in_channels=1, num_classes=11)
        >>> model(torch.zeros(2, 1, 48, 50)).shape
        torch.Size([2, 11, 48, 50])
    """
    given = {"in_channels": in_channels, "num_classes": num_classes, "width": width}
    for name, value in given.items():
        check_count(name, value)
    return _UNet(in_channels, num_classes, width)


class _UNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.first = _two_convolutions(in_channels, width)
        self.down = nn.ModuleList([_two_convolutions(k * width, 2 * k * width) for k in (1, 2)])
        self.up = nn.ModuleList([_two_convolutions(3 * k * width, k * width) for k in (2, 1)])
        self.last = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        scales = [self.first(x)]
        for down in self.down:
            scales.append(down(F.max_pool2d(scales[-1], 2)))
        x = scales.pop()
        for up in self.up:
            same_size = scales.pop()
            x = F.interpolate(x, size=same_size.shape[2:])
            x = up(torch.cat([same_size, x], dim=1))
        return self.last(x)


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
