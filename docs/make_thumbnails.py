"""Draw the pictures of the gallery's cards: what each tutorial is about, large enough to recognize.

Run as ``python docs/make_thumbnails.py``; it writes a picture for each theme to
docs/_static/thumbnails. Those of digits show digits of the package; the others are sketches, no
results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torchvision.transforms.functional import rotate

from mcbn import MNISTDataModule
from mcbn.plotting import BLUE, GREY, ORANGE

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
from mcbn_gallery import darken

FOLDER = Path(__file__).parent / "_static/thumbnails"
LIGHT = "#fffaef"  # no grey, so that it stays light in both themes
WIDTH, HEIGHT = 8, 5  # of the axes' units, and of the picture

datamodule = MNISTDataModule(source="sample")
DIGITS = datamodule.dataset("test").images
CLOTHES = datamodule.dataset("ood").images
rng = np.random.default_rng(0)


def label(ax: Axes, x: float, y: float, text: str, size: float = 15, **style: object) -> None:
    ax.text(x, y, text, size=size, ha="center", va="center", **style)


def image(ax: Axes, x: float, y: float, pixels: object, side: float, frame: str = GREY) -> None:
    """A tile around a point, white on black as in the data set."""
    half = side / 2
    box = (x - half, x + half, y - half, y + half)
    ax.imshow(pixels, cmap="gray", extent=box, aspect="auto", interpolation="nearest", zorder=2)
    ax.add_patch(
        plt.Rectangle((x - half, y - half), side, side, fill=False, ec=frame, lw=3, zorder=3)
    )


def box(ax: Axes, x: float, y: float, width: float, text: str, color: str = BLUE) -> None:
    style = "round,pad=0,rounding_size=0.25"
    ax.add_patch(FancyBboxPatch((x - width / 2, y - 0.6), width, 1.2, style, fc=color, lw=0))
    label(ax, x, y, text, color=LIGHT, weight="bold")


def arrow(ax: Axes, x: float, y: float, length: float = 0.6) -> None:
    ax.annotate(
        "", (x + length, y), (x, y), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": GREY}
    )


def what_bn_remembers(ax: Axes) -> None:
    x = np.linspace(0.3, 7.7, 200)
    middle = 2.5 + 1.4 * np.sin(1.1 * x)
    spread = 0.08 + 0.5 * np.exp(-((x - 5.0) ** 2) / 0.6) + 0.15 * np.maximum(0, x - 6.7)
    for shift in np.linspace(-1.6, 1.6, 9):
        ax.plot(x, middle + shift * spread, color=BLUE, lw=2, alpha=0.65)
    seen = np.r_[rng.uniform(0.4, 4.1, 40), rng.uniform(5.9, 6.9, 12)]
    points = 2.5 + 1.4 * np.sin(1.1 * seen) + 0.15 * rng.normal(size=len(seen))
    ax.scatter(seen, points, s=22, color=GREY, zorder=3)


def batch_size_and_estimators(ax: Axes) -> None:
    s = np.arange(7)
    for m, start, end, color in (
        (8, 4.2, 1.9, ORANGE),
        (32, 2.9, 1.2, BLUE),
        (512, 1.5, 1.3, GREY),
    ):
        y = end + (start - end) * 0.5**s
        ax.plot(1 + 0.85 * s, y, "o-", color=color, lw=3, ms=8)
        label(ax, 7.1, y[-1] + (0.2 if m == 512 else -0.35 if m == 32 else 0.25), f"M = {m}", 13)
    label(ax, 3.6, 0.45, "number of estimators →")


def mc_batch_norm(ax: Axes) -> None:
    image(ax, 1.9, 2.5, DIGITS[DOUBTFUL], 2.9)
    arrow(ax, 3.6, 2.5)
    for i, reading in enumerate(READINGS):
        x, y = 4.9 + 0.85 * (i % 4), 3.0 - 1.0 * (i // 4)
        color = BLUE if reading == READINGS[0] else ORANGE
        ax.add_patch(plt.Rectangle((x - 0.38, y - 0.42), 0.76, 0.84, fc=color, lw=0))
        label(ax, x, y, str(reading), 19, color=LIGHT, weight="bold")


def comparison(ax: Axes) -> None:
    bars = (
        ("plain", 3.9, GREY),
        ("MCBN", 3.7, BLUE),
        ("dropout", 3.4, GREY),
        ("5 networks", 2.1, ORANGE),
    )
    for i, (name, length, color) in enumerate(bars):
        y = 4.1 - 1.05 * i
        ax.barh(y, length, 0.6, left=3.3, color=color)
        ax.text(3.1, y, name, size=15, ha="right", va="center")


def paper_table(ax: Axes) -> None:
    rows = (
        ("Boston", "8.5", "3.1"),
        ("Kin8nm", "2.9", "1.8"),
        ("Wine", "0.3", "2.0"),
        ("Yacht", "−56", "21"),
    )
    for x, name in ((4.4, "MCBN"), (6.6, "dropout")):
        label(ax, x, 4.5, name, weight="bold")
    for i, (name, ours, dropout) in enumerate(rows):
        y = 3.65 - 0.95 * i
        ax.text(0.6, y, name, size=15, va="center")
        better = float(ours.replace("−", "-")) > float(dropout)
        for x, value, first in ((4.4, ours, better), (6.6, dropout, not better)):
            ax.add_patch(
                plt.Rectangle(
                    (x - 0.9, y - 0.38),
                    1.8,
                    0.76,
                    fc=BLUE if first else GREY,
                    lw=0,
                    alpha=1 if first else 0.35,
                )
            )
            label(ax, x, y, value, color=LIGHT if first else "black", weight="bold")


def calibration(ax: Axes) -> None:
    x = np.linspace(1.4, 6.4, 6)
    ax.bar(x, 4.2 * ((x - 0.9) / 6) ** 1.7, 0.85, bottom=0.4, color=BLUE)
    ax.plot([0.9, 6.9], [0.4, 4.6], color=ORANGE, lw=3, ls="--")
    ax.plot([0.9, 0.9, 6.9], [4.6, 0.4, 0.4], color=GREY, lw=2)


def selective_classification(ax: Axes) -> None:
    x = np.linspace(0.8, 7.3, 100)
    y = 0.7 + 3.3 * ((x - 0.8) / 6.5) ** 5
    ax.plot(x, y, color=BLUE, lw=4)
    ax.axvspan(5.4, 7.4, 0.1, 0.92, color=ORANGE, alpha=0.25, lw=0)
    ax.plot([0.8, 0.8, 7.4], [4.6, 0.5, 0.5], color=GREY, lw=2)
    label(ax, 3.0, 2.2, "answer", 19, color=BLUE, weight="bold")
    label(ax, 6.2, 4.1, "decline", 16, color=ORANGE, weight="bold")


def ood_detection(ax: Axes) -> None:
    for x, pixels, frame in (
        (1.5, DIGITS[0], GREY),
        (4, DIGITS[2], GREY),
        (6.5, CLOTHES[2], ORANGE),
    ):
        image(ax, x, 2.8, pixels, 2.2, frame)
    for x, sign, color in ((1.5, "7", BLUE), (4, "1", BLUE), (6.5, "?", ORANGE)):
        label(ax, x, 0.9, sign if sign == "?" else "digit", 19, color=color, weight="bold")


def rotation_and_noise(ax: Axes) -> None:
    for i, angle in enumerate((0, 35, 70, 105)):
        turned = rotate(DIGITS[TURNED][None], angle)[0]
        image(ax, 1.15 + 1.9 * i, 3.1, turned, 1.7, (GREY, GREY, ORANGE, ORANGE)[i])
    x = np.linspace(0.4, 7.6, 100)
    ax.fill_between(x, 0.4, 0.5 + 1.3 / (1 + np.exp(-(x - 3.2) * 2)), color=ORANGE, alpha=0.8, lw=0)


def own_network(ax: Axes) -> None:
    for i, (name, color) in enumerate(
        (("conv", BLUE), ("BN", ORANGE), ("conv", BLUE), ("BN", ORANGE))
    ):
        box(ax, 1.2 + 1.87 * i, 2.9, 1.35, name, color)
        if i:
            arrow(ax, 1.2 + 1.87 * i - 1.2, 2.9, 0.5)
    label(ax, 4, 1.2, "two inputs   dicts   errors", 16)


def segmentation(ax: Axes) -> None:
    small = np.zeros((40, 64))
    for i, (top, left) in enumerate(((3, 2), (10, 20), (4, 36))):
        patch = DIGITS[i].numpy() / 255
        small[top : top + 28, left : left + 28] = np.maximum(
            small[top : top + 28, left : left + 28], patch
        )
    edges = np.hypot(*np.gradient(small))
    shown = np.stack([small * 0.15 + edges * 1.6, small * 0.45 + edges * 0.7, small * 0.75], -1)
    ax.imshow(shown.clip(0, 1), extent=(0, WIDTH, 0, HEIGHT), aspect="auto")


def regression_tables(ax: Axes) -> None:
    x = np.linspace(0.7, 7.3, 16)
    middle = 1.2 + 0.33 * x
    truth = middle + 0.75 * rng.normal(size=len(x))
    outside = abs(truth - middle) > 1.1
    ax.vlines(x, middle - 1.1, middle + 1.1, color=BLUE, lw=9, alpha=0.45)
    ax.vlines(x, middle - 0.35, middle + 0.35, color=BLUE, lw=9)
    ax.scatter(x, truth, s=40, c=np.where(outside, ORANGE, GREY), zorder=3)


def deployment(ax: Axes) -> None:
    for x, name, color in ((1.4, "fit", BLUE), (4, "ONNX", BLUE), (6.6, "serve", ORANGE)):
        box(ax, x, 3, 1.8, name, color)
    arrow(ax, 2.4, 3)
    arrow(ax, 5.0, 3)
    label(ax, 4, 1.3, "no training data, no PyTorch")


def pretrained(ax: Axes) -> None:
    for i, height in enumerate((3.4, 2.8, 2.2, 1.6)):
        for j in range(2):
            ax.add_patch(
                plt.Rectangle(
                    (0.8 + 1.2 * i + 0.5 * j, 2.6 - height / 2),
                    0.42,
                    height,
                    fc=(BLUE, ORANGE)[j],
                    lw=0,
                )
            )
    arrow(ax, 5.5, 2.6)
    for y, length in ((3.5, 1.5), (2.6, 0.6), (1.7, 0.25)):
        ax.barh(y, length, 0.6, left=6.3, color=BLUE)


def signals(ax: Axes) -> None:
    turn = np.linspace(0, 2 * np.pi, 400)
    radius = 1.25 + 0.45 * np.cos(5 * turn) + 0.16 * np.cos(15 * turn)
    x, y = 1.9 - radius * np.sin(turn), 2.55 + radius * np.cos(turn)
    ax.fill(x, y, color=BLUE, alpha=0.25, lw=0)
    ax.plot(x, y, color=BLUE, lw=3)
    ax.plot([1.9, 1.9], [0.3, 1.5], color=BLUE, lw=3)
    arrow(ax, 3.7, 2.5)
    ax.plot(4.5 + 3.2 * turn / (2 * np.pi), 1.3 + 0.9 * radius, color=ORANGE, lw=3)


def active_learning(ax: Axes) -> None:
    points = rng.uniform((0.5, 0.6), (7.5, 4.4), (90, 2))
    ax.plot([1.2, 6.8], [0.3, 4.7], color=GREY, lw=2, ls="--")
    near = abs(points[:, 1] - 0.3 - (points[:, 0] - 1.2) * 4.4 / 5.6) < 0.35
    ax.scatter(*points[~near].T, s=26, color=GREY, alpha=0.5, lw=0)
    ax.scatter(*points[near].T, s=60, color=ORANGE, lw=0)
    label(ax, 6.3, 1.1, "label?", 17, color=ORANGE, weight="bold")


def conformal(ax: Axes) -> None:
    image(ax, 1.9, 2.5, DIGITS[DOUBTFUL], 2.7)
    label(ax, 5.5, 2.9, "{ 4, 9 }", 28, color=BLUE, weight="bold")
    label(ax, 5.5, 1.5, "95 %", 17, color=BLUE)


def other_libraries(ax: Axes) -> None:
    box(ax, 4, 2.5, 2.2, "MCBN", ORANGE)
    for x, y, name in (
        (1.7, 4.1, "skorch"),
        (6.3, 4.1, "timm"),
        (1.7, 0.9, "smp"),
        (6.3, 0.9, "tu"),
    ):
        ax.plot([x, 4], [y, 2.5], color=GREY, lw=2, zorder=0)
        box(ax, x, y, 2, name)


DOUBTFUL, READINGS, TURNED = 64, (4, 4, 9, 4, 9, 4, 4, 4), 5
DRAWN: tuple[Callable[[Axes], None], ...] = (
    what_bn_remembers,
    batch_size_and_estimators,
    mc_batch_norm,
    comparison,
    paper_table,
    calibration,
    selective_classification,
    ood_detection,
    rotation_and_noise,
    own_network,
    segmentation,
    regression_tables,
    deployment,
    pretrained,
    signals,
    active_learning,
    conformal,
    other_libraries,
)


def save(path: Path) -> None:
    """In 64 colours, which is a third of the bytes."""
    plt.savefig(path, dpi=160, transparent=True)
    Image.open(path).quantize(64, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for draw in DRAWN:
        figure = plt.figure(figsize=(WIDTH / 2, HEIGHT / 2))
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        ax.axis("off")
        draw(ax)
        ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        save(FOLDER / f"{draw.__name__}.png")
        darken(figure)
        save(FOLDER / f"{draw.__name__}_dark.png")
        plt.close(figure)
