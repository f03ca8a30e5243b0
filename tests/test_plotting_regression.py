import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from mcbn.plotting import plot_bands, plot_curves, plot_intervals, plot_series


@pytest.fixture(autouse=True)
def _no_windows():
    mpl.use("agg")
    yield
    plt.close("all")


def dots(ax):
    return [
        np.asarray(drawn.get_offsets())
        for drawn in ax.collections
        if isinstance(drawn, PathCollection)
    ]


def test_curves_are_lines_and_the_data_are_dots():
    torch.manual_seed(0)
    x, curves, points = torch.arange(5.0), torch.randn(7, 5), (torch.randn(9), torch.randn(9))
    ax = plot_curves(x, curves, points=points)
    for line, curve in zip(ax.lines, curves, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), torch.stack([x, curve], 1).numpy())
    [drawn] = dots(ax)
    np.testing.assert_array_equal(drawn, torch.stack(points, 1).numpy())


def test_bands_have_their_width_and_do_not_lie_over_each_other():
    x, mean = torch.arange(3.0), torch.tensor([1.0, 2.0, 5.0])
    narrow, wide = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])
    ax = plot_bands(x, mean, {"narrow": narrow, "wide": wide})
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), mean.numpy())
    edges = [
        {tuple(map(float, vertex)) for vertex in band.get_paths()[0].vertices}
        for band in ax.collections
    ]

    def line(values):
        return {(float(i), float(value)) for i, value in enumerate(values)}

    assert edges == [
        line(mean - narrow) | line(mean),
        line(mean + narrow) | line(mean),
        line(mean - narrow) | line(mean - wide),
        line(mean + narrow) | line(mean + wide),
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["narrow", "wide"]


def test_series_are_drawn_as_given_with_levels_to_compare():
    series = {"a": [3.0, 2.0, 1.0], "b": torch.tensor([1.0, 1.0, 2.0])}
    ax = plot_series([1, 2, 8], series, ("S", "NLL"), dashed={"plain": 1.5}, log="xy")
    for line, values in zip(ax.lines, [*series.values(), [1.5, 1.5]], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "plain"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "8"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("S", "NLL")
    assert plot_series([1, 2], {"a": [1, 2]}, ("x", "y")).get_legend() is None


def test_outcomes_outside_their_interval_stand_out():
    mean, target = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 4.0, -1.0])
    outer, inner = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])
    ax = plot_intervals(mean, outer, inner, target)
    inside, outside = dots(ax)
    np.testing.assert_array_equal(inside, [[0, 0.5], [2, -1]])  # the end of an interval is inside
    np.testing.assert_array_equal(outside, [[1, 4]])
    for bars, half_width in zip(ax.collections[:2], (outer, inner), strict=True):
        drawn = np.array([segment[:, 1] for segment in bars.get_segments()])
        expected = torch.stack([mean - half_width, mean + half_width], 1).numpy()
        np.testing.assert_allclose(drawn, expected)
    assert "of which 1 are outside" in ax.figure.get_label()


def test_given_axes_are_used_and_their_figure_keeps_its_text():
    figure, axes = plt.subplots(1, 4)
    figure.set_label("mine")
    x = torch.arange(3.0)
    assert plot_curves(x, x[None], ax=axes[0]) is axes[0]
    assert plot_bands(x, x, {"band": x}, ax=axes[1]) is axes[1]
    assert plot_series(x, {"line": x}, ("x", "y"), axes[2]) is axes[2]
    assert plot_intervals(x, x, x, x, axes[3]) is axes[3]
    assert figure.get_label() == "mine"
    assert plt.get_fignums() == [figure.number]
