"""Figures: values go in, axes come out, and nothing is computed on the way.

The functions draw on the axes they are given, or on a new figure with a text that describes it to
those who cannot see it (``fig.get_label()``). The colours are those of Okabe and Ito, *Color
universal design*, 2008, that read on light and dark ground and for the colour-blind.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#808080"
_BLUES = LinearSegmentedColormap.from_list("white to blue", ["white", BLUE])


def plot_images(
    images: Tensor, titles: Sequence[object] | Tensor, axes: np.ndarray | None = None
) -> np.ndarray:
    """Images in a row, each with its title.

    Args:
        images: ``(n, 1, height, width)`` or ``(n, height, width)``, pixels from 0 to 1.
        titles: What stands above them, ``(n,)``.
        axes: Where to draw, ``(n,)``.

    Raises:
        ValueError: If there are not as many titles or axes as images.

    Example:
        >>> import torch
        >>> axes = plot_images(torch.zeros(2, 28, 28), titles=["seven", "two"])
        >>> axes[1].get_title()
        'two'
        >>> axes[0].figure.get_label()
        'A row of images: seven, two.'
    """
    titles = [str(title.item() if isinstance(title, Tensor) else title) for title in titles]
    if axes is None:
        figure = plt.figure(figsize=(0.3 + 1.1 * len(images), 1.5), layout="tight")
        axes = figure.subplots(1, len(images), squeeze=False).ravel()
        figure.set_label(f"A row of images: {', '.join(titles)}.")
    for image, title, ax in zip(images, titles, axes, strict=True):
        ax.imshow(_array(image.squeeze()), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_axis_off()
    return axes


def plot_estimators(
    images: Tensor,
    probs: Tensor,
    labels: Sequence[int] | Tensor | None = None,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Images, and under each what the estimators read: a row an estimator, a column a class.

    The darker a cell, the more probable the class to this estimator; its reading, the most probable
    one, is written there. A frame marks the true class.

    Args:
        images: ``(n, 1, height, width)`` or ``(n, height, width)``, pixels from 0 to 1.
        probs: ``(num_estimators, n, classes)``.
        labels: The true classes, ``(n,)``.
        axes: ``(2, n)``, above for the images, below for the readings.

    Raises:
        ValueError: If there are not as many predictions, labels or axes as images.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]])
        >>> axes = plot_estimators(torch.zeros(1, 28, 28), probs, labels=[1])
        >>> [text.get_text() for text in axes[1, 0].texts]
        ['0', '1']
        >>> axes[0, 0].figure.get_label()
        'Images, and the class that 2 estimators read in each. true: 1 read: 0 1.'
    """
    n = len(images)
    given = {"predictions": probs.shape[1], "labels": n if labels is None else len(labels)}
    if axes is not None:
        given["axes"] = axes.shape[-1]
    if set(given.values()) != {n}:
        raise ValueError(f"Given {given} for {n} images, wanted {n} of each.")
    size, _, classes = probs.shape
    readings = probs.argmax(-1).T.tolist()
    true = ["" if labels is None else f"true: {int(labels[i])}" for i in range(n)]
    if axes is None:
        shape = {"figsize": (0.6 + 2 * n, 4.2), "height_ratios": [3, 4]}
        figure, axes = plt.subplots(2, n, squeeze=False, layout="constrained", **shape)
        told = "; ".join(
            f"{t} read: {' '.join(map(str, r))}" for t, r in zip(true, readings, strict=True)
        )
        figure.set_label(f"Images, and the class that {size} estimators read in each. {told}.")
    plot_images(images, true, axes[0])
    for i, ax in enumerate(axes[1]):
        ax.imshow(_array(probs[:, i]), cmap=_BLUES, vmin=0, vmax=1, aspect="auto")
        for estimator, reading in enumerate(readings[i]):
            color = "white" if probs[estimator, i, reading] > 0.8 else "black"
            ax.text(reading, estimator, reading, color=color, ha="center", va="center", fontsize=9)
        if labels is not None:
            corner = int(labels[i]) - 0.5, -0.5
            frame = Rectangle(corner, 1, size, fill=False, ec=ORANGE, lw=2.5, clip_on=False)
            ax.add_patch(frame)
        ax.set_xticks(range(classes))
        ax.set_yticks(range(size), range(1, size + 1) if i == 0 else [""] * size)
        ax.tick_params(length=0, labelsize=8)
    axes[1, 0].set_ylabel("estimator")
    return axes


def plot_reliability(bins: tuple[Tensor, Tensor, Tensor], ax: Axes | None = None) -> Axes:
    """Accuracy against confidence: on the diagonal where a network is as often right as it says.

    Args:
        bins: What :func:`mcbn.metrics.reliability_bins` returns: per bin the number of images,
            their accuracy and their mean confidence. A dot's area grows with the number.
        ax: Where to draw.

    Example:
        >>> import torch
        >>> bins = torch.tensor([10, 90]), torch.tensor([0.5, 1.0]), torch.tensor([0.6, 0.9])
        >>> plot_reliability(bins).get_ylabel()
        'accuracy'
    """
    ax = ax or _new("Reliability diagram: accuracy against confidence, a dot a bin.")
    count, accuracy, confidence = map(_array, bins)
    ax.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, zorder=0)
    area = 15 + 150 * count / count.max()
    ax.scatter(confidence, accuracy, s=area, color=BLUE, alpha=0.8, linewidths=0)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    return ax


def plot_risk_coverage(
    coverage: Tensor, risk: Tensor, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """Share of errors among the answers when only the most confident images are answered.

    Args:
        coverage: Share of images answered, as :func:`mcbn.metrics.risk_coverage_curve` returns it.
        risk: Share of errors among these.
        ax: Where to draw.
        label: The line's name in a legend.

    Example:
        >>> import torch
        >>> ax = plot_risk_coverage(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.1]))
        >>> ax.lines[0].get_ydata().tolist()
        [0.0, 0.10000000149011612]
    """
    ax = ax or _new("Selective risk against coverage.")
    ax.plot(_array(coverage), _array(risk), label=label)
    ax.set(xlabel="coverage", ylabel="risk", xlim=(0, 1), ylim=(0, None))
    return ax


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _new(label: str) -> Axes:
    figure, ax = plt.subplots(figsize=(4, 4), layout="constrained")
    figure.set_label(label)
    return ax
