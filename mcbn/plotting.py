"""Figures: values go in, axes come out, and nothing is computed on the way.

The functions draw on the axes they are given, or on a new figure with a text that describes it to
those who cannot see it (``fig.get_label()``). The colours are those of Okabe and Ito, *Color
universal design*, 2008, that read on light and dark ground and for the colour-blind.

Values that do not belong together, by their shapes, are a ValueError, and what is no tensor where
one is wanted is a TypeError, both before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

from mcbn.checks import check_has_values, check_tensors, check_type

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#808080"
_SERIES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_SQUARE, _WIDE = (4.0, 4.0), (6.0, 3.6)  # inches
_BLUES = LinearSegmentedColormap.from_list("white to blue", ["white", BLUE])


def plot_images(
    images: Tensor, titles: Sequence[object] | Tensor, axes: np.ndarray | None = None
) -> np.ndarray:
    """Images in a row, each with its title.

    Args:
        images: ``(n, 1, height, width)`` or ``(n, height, width)``, pixels from 0 to 1.
        titles: What stands above them, ``(n,)``.
        axes: Where to draw, ``(n,)``.

    Example:
        >>> axes = plot_images(torch.zeros(2, 28, 28), titles=["seven", "two"])
        >>> axes[1].get_title()
        'two'
        >>> axes[0].figure.get_label()
        'A row of images: seven, two.'
    """
    _check(images=_grey(images), titles=_listed("titles", titles, "n"), axes=_of(axes, "n"))
    titles = [str(title.item() if isinstance(title, Tensor) else title) for title in titles]
    if axes is None:
        label, size = f"A row of images: {', '.join(titles)}.", (0.3 + 1.1 * len(images), 1.5)
        axes = _grid(label, 1, len(images), figsize=size, layout="tight").ravel()
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

    Example:
        >>> probs = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]])
        >>> axes = plot_estimators(torch.zeros(1, 28, 28), probs, labels=[1])
        >>> [text.get_text() for text in axes[1, 0].texts]
        ['0', '1']
        >>> axes[0, 0].figure.get_label()
        'Images, and the class that 2 estimators read in each. true: 1 read: 0 1.'
    """
    _check(
        images=_grey(images),
        probs=(probs, "num_estimators n classes"),
        labels=None if labels is None else _listed("labels", labels, "n"),
        axes=_of(axes, "2 n"),
    )
    n = len(images)
    size, _, classes = probs.shape
    true = [] if labels is None else list(map(int, labels))
    if not all(0 <= label < classes for label in true):
        raise ValueError(f"Given labels {true}, wanted 0 to {classes - 1}.")
    titles = [f"true: {label}" for label in true] or [""] * n
    readings = probs.argmax(-1).T.tolist()
    if axes is None:
        told = "; ".join(
            f"{title} read: {' '.join(map(str, read))}"
            for title, read in zip(titles, readings, strict=True)
        )
        label = f"Images, and the class that {size} estimators read in each. {told}."
        axes = _grid(label, 2, n, figsize=(0.6 + 2 * n, 4.2), height_ratios=[3, 4])
    plot_images(images, titles, axes[0])
    for i, ax in enumerate(axes[1]):
        ax.imshow(_array(probs[:, i]), cmap=_BLUES, vmin=0, vmax=1, aspect="auto")
        for estimator, reading in enumerate(readings[i]):
            color = "white" if probs[estimator, i, reading] > 0.8 else "black"
            ax.text(reading, estimator, reading, color=color, ha="center", va="center", fontsize=9)
        if true:
            corner = true[i] - 0.5, -0.5
            ax.add_patch(Rectangle(corner, 1, size, fill=False, ec=ORANGE, lw=2.5, clip_on=False))
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
        >>> bins = torch.tensor([10, 90]), torch.tensor([0.5, 1.0]), torch.tensor([0.6, 0.9])
        >>> plot_reliability(bins).get_ylabel()
        'accuracy'
    """
    _check(**_parts("bins", bins, ("count", "accuracy", "confidence"), "bins"))
    if not bins[0].sum():
        raise ValueError("Given bins that hold no image, wanted at least one that does.")
    ax = _axes(ax, "Reliability diagram: accuracy against confidence, a dot a bin.", _SQUARE)
    count, accuracy, confidence = map(_array, bins)
    ax.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, zorder=0)
    area = 15 + 150 * count / count.max()
    ax.scatter(confidence, accuracy, s=area, color=BLUE, alpha=0.8, lw=0, clip_on=False)
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
        >>> ax = plot_risk_coverage(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.1]))
        >>> ax.lines[0].get_ydata().tolist()
        [0.0, 0.10000000149011612]
    """
    _check(coverage=(coverage, "n"), risk=(risk, "n"))
    ax = _axes(ax, "Selective risk against coverage.", _SQUARE)
    ax.plot(_array(coverage), _array(risk), label=label)
    ax.set(xlabel="coverage", ylabel="risk", xlim=(0, 1), ylim=(0, None))
    return ax


def plot_curves(
    x: Tensor, curves: Tensor, points: tuple[Tensor, Tensor] | None = None, ax: Axes | None = None
) -> Axes:
    """The curves of several estimators, one over the other, and the data as dots.

    Args:
        x: ``(n,)``.
        curves: ``(num_estimators, n)``; the more there are, the fainter each is.
        points: The data, x and y, each ``(examples,)``.
        ax: Where to draw.

    Example:
        >>> ax = plot_curves(torch.arange(3.0), torch.rand(20, 3))
        >>> len(ax.lines)
        20
    """
    _check(x=(x, "n"), curves=(curves, "num_estimators n"), **_of_points(points))
    ax = _axes(ax, f"Curves of {len(curves)} estimators.")
    _plot_points(points, ax)
    alpha = min(max(2 / len(curves) ** 0.5, 0.1), 1)
    ax.plot(_array(x), _array(curves.T), color=BLUE, lw=1.5, alpha=alpha)
    ax.set(xlabel="x", ylabel="y")
    return ax


def plot_bands(
    x: Tensor,
    mean: Tensor,
    bands: Mapping[str, Tensor],
    points: tuple[Tensor, Tensor] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A curve inside bands, and the data as dots.

    Args:
        x: ``(n,)``.
        mean: The curve, ``(n,)``.
        bands: Half-widths by name, each ``(n,)``, the narrowest first.
        points: The data, x and y, each ``(examples,)``.
        ax: Where to draw.

    Example:
        >>> x = torch.arange(3.0)
        >>> ax = plot_bands(x, x, {"two standard deviations": torch.ones(3)})
        >>> ax.figure.get_label()
        'A curve and around it the bands: two standard deviations.'
    """
    of_bands = _named("bands", bands, "n", "half-widths by name")
    _check(bands=((len(bands),), "bands"), x=(x, "n"), mean=(mean, "n"), **of_bands)
    _check(**_of_points(points))
    ax = _axes(ax, f"A curve and around it the bands: {', '.join(bands)}.")
    _plot_points(points, ax)
    xs, middle, inner = _array(x), _array(mean), np.zeros(len(x))
    for name, half_width, color in _coloured(bands):
        outer = _array(half_width)
        for sign, label in ((-1, None), (1, name)):
            edges = middle + sign * inner, middle + sign * outer
            ax.fill_between(xs, *edges, label=label, color=color, alpha=0.4, lw=0)
        inner = outer
    ax.plot(xs, middle, color=BLUE, lw=1.5)
    ax.set(xlabel="x", ylabel="y")
    ax.legend(frameon=False)
    return ax


def plot_series(
    x: Sequence[float] | Tensor,
    series: Mapping[str, Sequence[float] | Tensor],
    labels: tuple[str, str],
    ax: Axes | None = None,
    *,
    marker: str = "o",
    dashed: Mapping[str, float] | None = None,
    log: Literal["", "x", "xy"] = "",
) -> Axes:
    """Lines over a common axis, with a legend if there are several.

    Args:
        x: ``(n,)``.
        series: Values by name, each ``(n,)``.
        labels: What the two axes show.
        ax: Where to draw.
        marker: Matplotlib's marker of each value; ``""`` for none.
        dashed: Values by name, drawn as level dashed lines to compare with.
        log: Which axes are logarithmic; such an x axis has its ticks at the values.

    Example:
        >>> ax = plot_series([1, 2], {"MCBN": [0.3, 0.2]}, ("S", "NLL"), dashed={"plain": 0.25})
        >>> ax.figure.get_label()
        'NLL against S: MCBN, plain.'
    """
    dashed = {} if dashed is None else dashed
    check_type("dashed", dashed, Mapping, "values by name")
    of_series = {
        name: _listed(name, *pair)
        for name, pair in _named("series", series, "n", "values by name").items()
    }
    _check(x=_listed("x", x, "n"), labels=_listed("labels", labels, "2"), **of_series)
    if log not in ("", "x", "xy"):
        raise ValueError(f"Given log={log!r}, wanted '', 'x' or 'xy'.")
    drawn = {"x": x, **(series if "y" in log else {})} if log else {}
    for name, values in drawn.items():
        if not min(map(float, values)) > 0:
            raise ValueError(
                f"Given {name} with values of 0 or below, wanted others on a log axis."
            )
    ax = _axes(ax, f"{labels[1]} against {labels[0]}: {', '.join([*series, *dashed])}.")
    for name, values, color in _coloured(series):
        ax.plot(x, values, color=color, marker=marker, ms=4, label=name)
    for style, (name, value) in zip(cycle(["--", ":"]), dashed.items()):
        ax.axhline(value, color=GREY, ls=style, lw=1.2, label=name, zorder=0)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    if "x" in log:
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [f"{float(value):g}" for value in x])
    if "y" in log:
        ax.set_yscale("log")
    if len(series) + len(dashed) > 1:
        ax.legend(frameon=False)
    return ax


def plot_intervals(
    mean: Tensor, outer: Tensor, inner: Tensor, target: Tensor, ax: Axes | None = None
) -> Axes:
    """Forecasts side by side, each with two intervals, and the outcomes as dots.

    Args:
        mean: The forecasts, ``(n,)``, drawn in this order.
        outer: Half-widths of the thin bars, ``(n,)``.
        inner: Half-widths of the thick bars, ``(n,)``.
        target: The outcomes, ``(n,)``; those outside the thin bar stand out.
        ax: Where to draw.

    Example:
        >>> ax = plot_intervals(torch.zeros(2), torch.ones(2), torch.ones(2) / 2, torch.ones(2))
        >>> ax.figure.get_label()
        '2 forecasts with their intervals, and the outcomes, of which 0 are outside.'
    """
    given = {"mean": mean, "outer": outer, "inner": inner, "target": target}
    _check(**{name: (values, "n") for name, values in given.items()})
    values, places = _array(mean), np.arange(len(mean))
    outside = np.abs(_array(target) - values) > _array(outer)
    told = f"and the outcomes, of which {outside.sum()} are outside."
    ax = _axes(ax, f"{len(mean)} forecasts with their intervals, {told}")
    for half_width, width, alpha in ((outer, 1.2, 0.5), (inner, 3.5, 0.7)):
        low, high = values - _array(half_width), values + _array(half_width)
        ax.vlines(places, low, high, color=BLUE, lw=width, alpha=alpha)
    for chosen, color, name in ((~outside, GREY, "outcome"), (outside, ORANGE, "outcome outside")):
        ax.scatter(places[chosen], _array(target)[chosen], s=14, color=color, label=name, zorder=3)
    ax.set(xlabel="forecast", ylabel="target")
    ax.legend(frameon=False, loc="upper left")
    return ax


def plot_scores(
    scores: Mapping[str, Tensor], names: Sequence[str], axes: np.ndarray | None = None
) -> np.ndarray:
    """Several methods' scores side by side: a dot for each run, and a bar for their mean.

    Args:
        scores: By the name of the score, ``(methods, runs)``; each gets its own axes.
        names: The methods', from top to bottom.
        axes: Where to draw, one for each score.

    Example:
        >>> axes = plot_scores({"NLL": torch.tensor([[0.3, 0.4], [0.1, 0.2]])}, ["one", "five"])
        >>> [label.get_text() for label in axes[0].get_yticklabels()]
        ['one', 'five']
    """
    of_scores = _named("scores", scores, "methods runs", "scores by name")
    of_names = _listed("names", names, "methods")
    _check(scores=((len(scores),), "n"), names=of_names, axes=_of(axes, "n"), **of_scores)
    if axes is None:
        size = (2.2 + 1.8 * len(scores), 0.9 + 0.3 * len(names))
        means = "; ".join(
            f"{score} {', '.join(f'{float(row.mean()):.3f}' for row in rows)}"
            for score, rows in scores.items()
        )
        label = f"Scores of {', '.join(names)}, with their means: {means}."
        axes = _grid(label, 1, len(scores), figsize=size, sharey=True).ravel()
    for (score, rows), ax in zip(scores.items(), axes, strict=True):
        for height, runs in enumerate(rows):
            ax.plot(_array(runs), [height] * len(runs), "o", ms=6, alpha=0.9, mew=0, color=BLUE)
            ax.plot(float(runs.mean()), height, "|", ms=14, mew=2.5, color=ORANGE)
        ax.set(xlabel=score, ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="y", color=GREY, alpha=0.3, lw=0.8)
        ax.locator_params(axis="x", nbins=3)
    return axes


def plot_maps(
    images: Tensor, maps: Mapping[str, Tensor], axes: np.ndarray | None = None
) -> np.ndarray:
    """Images in the first row, and under them what a network says of each pixel, a row a map.

    Args:
        images: ``(n, height, width)``, pixels from 0 to 1.
        maps: By the name of the row, ``(n, height, width)``: integers are classes, of which 0, the
            background, stays empty; booleans are marked where true; other numbers are shades from
            0 to the row's highest, with a scale.
        axes: Where to draw, ``(1 + number of maps, n)``.

    Example:
        >>> axes = plot_maps(torch.zeros(2, 8, 8), {"entropy": torch.rand(2, 8, 8)})
        >>> axes[1, 0].get_ylabel(), axes[1, 1].images[0].get_clim()[0]
        ('entropy', 0.0)
    """
    of_maps = _named("maps", maps, "n height width", "maps by name")
    rows = {"image": images, **maps}
    if "image" in maps:
        raise ValueError("Given a map by the name 'image', wanted another; it is the first row's.")
    _check(images=(images, "n height width"), **of_maps, axes=_of(axes, f"{len(rows)} n"))
    if axes is None:
        size = (0.9 + 1.35 * len(images), 1.35 * len(rows))
        label = f"{len(images)} images in columns; their rows: {', '.join(rows)}."
        axes = _grid(label, len(rows), len(images), figsize=size, layout="compressed")
    for (name, row), row_axes in zip(rows.items(), axes, strict=True):
        is_shade = row is not images and row.dtype.is_floating_point
        if row is images:
            style = {"cmap": "gray", "vmin": 0, "vmax": 1}
        elif is_shade:
            style = {"cmap": "magma", "vmin": 0, "vmax": float(row.max())}
        elif row.dtype == torch.bool:
            style = {"cmap": ListedColormap([ORANGE])}
        else:
            style = {"cmap": "tab10", "vmin": 0.5, "vmax": 10.5}
        for values, ax in zip(row, row_axes, strict=True):
            drawn = _array(values)
            if row is not images and not is_shade:
                drawn = np.ma.masked_equal(drawn, 0)
            ax.imshow(drawn, interpolation="nearest", **style)
            ax.set(xticks=[], yticks=[])
        if is_shade:
            shown = row_axes[0].images[0]
            shown.figure.colorbar(shown, ax=list(row_axes), pad=0.01, aspect=12)
        row_axes[0].set_ylabel(name)
    return axes


def plot_histograms(values: Mapping[str, Tensor], label: str, ax: Axes | None = None) -> Axes:
    """How often each value occurs, one histogram over the other, all in the same 40 bins.

    Args:
        values: By the name of the group, ``(examples,)``; each is scaled to an area of 1.
        label: What the values are.
        ax: Where to draw.

    Example:
        >>> ax = plot_histograms({"digits": torch.rand(9), "clothes": torch.rand(5)}, "entropy")
        >>> ax.figure.get_label()
        'Histograms of entropy: digits, clothes.'
    """
    of_groups = _named("values", values, "examples", "values by the name of the group")
    _check(groups=((len(values),), "groups"))
    for name, pair in of_groups.items():
        _check(**{name: pair})
        if not pair[0].isfinite().all():
            raise ValueError(f"Given {name} with NaN or infinity, wanted finite numbers.")
    ax = _axes(ax, f"Histograms of {label}: {', '.join(values)}.")
    everything = np.concatenate([*map(_array, values.values())])
    span = float(everything.min()), float(everything.max())
    for name, group, color in _coloured(values):
        style: dict[str, Any] = {"color": color, "alpha": 0.6, "lw": 0}
        ax.hist(_array(group), bins=40, range=span, density=True, label=name, **style)
    ax.set(xlabel=label, ylabel="density")
    ax.locator_params(axis="x", nbins=6)  # room for labels with a sign and a decimal
    ax.legend(frameon=False)
    return ax


def plot_roc(curves: Mapping[str, tuple[Tensor, Tensor]], ax: Axes | None = None) -> Axes:
    """Receiver operating characteristics: what is found against what is flagged by mistake.

    Args:
        curves: By the name of the score, false and true positive rates, each ``(thresholds,)``.
        ax: Where to draw.

    Example:
        >>> false, true = torch.tensor([0.0, 0.1, 1.0]), torch.tensor([0.0, 0.9, 1.0])
        >>> ax = plot_roc({"entropy": (false, true)})
        >>> ax.lines[1].get_label()
        'entropy'
    """
    names = "false positive rate", "true positive rate"
    of_curves = _named("curves", curves, "thresholds", "false and true positive rates by name")
    for name, (rates, axis) in of_curves.items():
        _check(**_parts(name, rates, names, axis))
    ax = _axes(ax, f"ROC curves of {', '.join(curves)}.", _SQUARE)
    ax.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, zorder=0)
    for name, rates, color in _coloured(curves):
        ax.plot(*map(_array, rates), color=color, label=name)
    ax.set(xlabel=names[0], ylabel=names[1], xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    ax.legend(frameon=False, loc="lower right")
    return ax


def plot_heatmap(
    values: Tensor,
    rows: Sequence[object],
    columns: Sequence[object],
    labels: tuple[str, str, str],
    ax: Axes | None = None,
) -> Axes:
    """A table as shades, with a scale from 0 to its highest value.

    Args:
        values: ``(rows, columns)``.
        rows: Their names, from top to bottom.
        columns: Their names.
        labels: What the columns, the rows and the values are.
        ax: Where to draw.

    Example:
        >>> ax = plot_heatmap(torch.rand(2, 3), "ab", "xyz", ("letter", "name", "entropy"))
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['x', 'y', 'z']
    """
    _check(
        values=(values, "rows columns"),
        rows=_listed("rows", rows, "rows"),
        columns=_listed("columns", columns, "columns"),
        labels=_listed("labels", labels, "3"),
    )
    ax = _axes(ax, f"{labels[2]} in shades, by {labels[1]} and {labels[0]}.")
    shown = ax.imshow(_array(values), cmap="magma", vmin=0, aspect="auto")
    ax.set_xticks(range(len(columns)), [str(column) for column in columns])
    ax.set_yticks(range(len(rows)), [str(row) for row in rows])
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.figure.colorbar(shown, ax=ax, label=labels[2], pad=0.02)
    return ax


def plot_published(
    names: Sequence[str],
    measured: tuple[Tensor, Tensor],
    published: Tensor,
    label: str,
    ax: Axes | None = None,
) -> Axes:
    """Measured values with their standard errors beside the published ones, a row each.

    Args:
        names: The rows', from top to bottom.
        measured: Means and standard errors, each ``(rows,)``.
        published: ``(rows,)``.
        label: What the values are.
        ax: Where to draw.

    Example:
        >>> ours = torch.tensor([7.5]), torch.tensor([1.0])
        >>> ax = plot_published(["boston"], ours, torch.tensor([8.5]), "CRPS")
        >>> ax.figure.get_label()
        'CRPS, measured and published: boston 7.5 ± 1.0, 8.5.'
    """
    of_measured = _parts("measured", measured, ("means", "standard errors"), "rows")
    of_names = _listed("names", names, "rows")
    _check(names=of_names, **of_measured, published=(published, "rows"))
    means, errors = map(_array, measured)
    rows = zip(names, means, errors, _array(published), strict=True)
    told = "; ".join(f"{name} {m:.1f} ± {e:.1f}, {p:.1f}" for name, m, e, p in rows)
    size = (6, 1 + 0.32 * len(names))
    ax = _axes(ax, f"{label}, measured and published: {told}.", size)
    heights = np.arange(len(names))
    ax.axvline(0, color=GREY, ls="--", lw=1, zorder=0)
    ax.errorbar(means, heights, xerr=errors, fmt="o", ms=5, color=BLUE, capsize=3, label="measured")
    ax.scatter(_array(published), heights, marker="x", s=40, color=ORANGE, label="published")
    ax.set_yticks(heights, names)
    ax.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    ax.legend(frameon=False)
    return ax


def plot_sorted_errors(
    error: Tensor, widths: Mapping[str, Tensor], label: str, ax: Axes | None = None
) -> Axes:
    """Errors from the surest forecast to the least sure one, as dots, and lines through them.

    Args:
        error: Absolute errors in that order, ``(n,)``.
        widths: By name, ``(n,)``: what was predicted, or what the errors are on average.
        label: What was predicted, with its unit.
        ax: Where to draw.

    Example:
        >>> ax = plot_sorted_errors(torch.rand(9), {"predicted": torch.arange(9.0)}, "price")
        >>> ax.figure.get_label()
        'Errors of price of 9 forecasts, from the surest to the least sure, and lines: predicted.'
    """
    _check(error=(error, "n"), **_named("widths", widths, "n", "widths by name"))
    told = f"from the surest to the least sure, and lines: {', '.join(widths)}"
    ax = _axes(ax, f"Errors of {label} of {len(error)} forecasts, {told}.")
    places = np.arange(1, len(error) + 1)
    ax.scatter(places, _array(error), s=5, color=GREY, alpha=0.5, linewidths=0, label="error")
    for name, values, color in _coloured(widths):
        ax.plot(places, _array(values), color=color, lw=1.8, label=name)
    ax.set(xlabel="forecasts, the surest first", ylabel=label, ylim=(0, None))
    ax.legend(frameon=False)
    return ax


def _check(**given: tuple[Any, str] | None) -> None:
    """Raise unless each value has the axes that are named beside it, and none is empty.

    A value is a tensor, or a shape. An axis has the same size wherever its name comes; a number
    instead of a name is its size.
    """
    sizes: dict[str, int] = {}
    for name, (values, axes) in ((name, pair) for name, pair in given.items() if pair):
        if not isinstance(values, tuple):
            check_tensors(**{name: values})
            check_has_values(**{name: values})
            values = tuple(values.shape)
        wanted = axes.split()
        for axis in wanted:
            if axis.isdigit():
                sizes[axis] = int(axis)
        known = [str(sizes.get(axis, axis)) for axis in wanted]
        fits = len(values) == len(wanted) and all(
            size and sizes.setdefault(axis, size) == size
            for axis, size in zip(wanted, values, strict=True)
        )
        if not fits:
            raise ValueError(
                f"Given {name} of shape {values}, wanted ({', '.join(known)}), no axis empty."
            )


def _of(axes: Any, names: str) -> tuple[Any, str] | None:
    """For given Matplotlib axes the shape of their array, beside the names that it should have."""
    return None if axes is None else (np.shape(axes), names)


def _listed(name: str, values: Any, axes: str) -> tuple[Any, str]:
    """The shape of a sequence or a tensor."""
    check_type(name, values, (Sequence, Tensor, np.ndarray), "a sequence or a tensor")
    return tuple(getattr(values, "shape", (len(values),))), axes


def _grey(images: Any) -> tuple[Any, str]:
    """The shape of images, without the axis of their one channel."""
    check_tensors(images=images)
    check_has_values(images=images)
    shape = tuple(images.shape)
    grey = (shape[0], *shape[2:]) if len(shape) == 4 and shape[1] == 1 else shape
    return grey, "n height width"


def _named(name: str, values: Any, axes: str, wanted: str) -> dict[str, tuple[Any, str]]:
    """The values of a mapping, each beside the axes that it should have, by where they are."""
    check_type(name, values, Mapping, wanted)
    return {f"{name}[{key!r}]": (value, axes) for key, value in values.items()}


def _parts(name: str, values: Any, parts: Sequence[str], axes: str) -> dict[str, tuple[Any, str]]:
    """The tensors of a tuple, each beside the axes that it should have, by what they are."""
    check_type(name, values, (Sequence, Tensor, np.ndarray), f"the tensors {', '.join(parts)}")
    if len(values) != len(parts):
        raise ValueError(f"Given {len(values)} tensors as {name}, wanted {', '.join(parts)}.")
    named = zip(parts, values, strict=True)
    return {f"{name} ({part})": (value, axes) for part, value in named}


def _of_points(points: Any) -> dict[str, tuple[Any, str]]:
    return {} if points is None else _parts("points", points, ("x", "y"), "examples")


def _plot_points(points: tuple[Tensor, Tensor] | None, ax: Axes) -> None:
    if points is not None:
        ax.scatter(*map(_array, points), s=6, color=GREY, alpha=0.6, linewidths=0, zorder=0)


def _coloured(values: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Names, values and the colours that tell them apart."""
    for color, (name, value) in zip(cycle(_SERIES), values.items()):
        yield name, value, color


def _axes(ax: Any, label: str, size: tuple[float, float] = _WIDE) -> Axes:
    """The given axes, or those of a new figure with a text that describes it."""
    if not isinstance(ax, Axes | None):
        raise TypeError(
            f"ax is a {type(ax).__name__}, wanted one Matplotlib Axes; pass ax=axes[0]."
        )
    return ax or _grid(label, 1, 1, figsize=size)[0, 0]


def _grid(label: str, rows: int, columns: int, **options: Any) -> np.ndarray:
    """Axes ``(rows, columns)`` of a new figure with a text that describes it."""
    options = {"layout": "constrained", **options}
    figure, axes = plt.subplots(rows, columns, squeeze=False, **options)
    figure.set_label(label)
    return axes


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
