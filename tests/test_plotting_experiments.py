import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mcbn.plotting import plot_published, plot_sorted_errors


@pytest.fixture(autouse=True)
def _no_windows():
    mpl.use("agg")
    yield
    plt.close("all")


def test_measured_and_published_values_stand_in_the_same_row():
    means, errors, published = torch.tensor([[7.5, -34.3], [1.0, 11.8], [8.5, -56.4]])
    ax = plot_published(["boston", "yacht"], (means, errors), published, "CRPS")
    [bars] = ax.containers
    points, _, [spans] = bars.lines
    np.testing.assert_allclose(points.get_xydata(), [[7.5, 0], [-34.3, 1]], rtol=1e-6)
    ends = [segment[:, 0] for segment in spans.get_segments()]
    np.testing.assert_allclose(ends, [[6.5, 8.5], [-46.1, -22.5]], rtol=1e-5)
    crosses = ax.collections[-1] if ax.collections[-1] is not spans else ax.collections[0]
    np.testing.assert_allclose(crosses.get_offsets(), [[8.5, 0], [-56.4, 1]], rtol=1e-6)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["boston", "yacht"]
    assert ax.yaxis_inverted()
    assert ax.get_xlabel() == "CRPS"
    assert "yacht -34.3 ± 11.8, -56.4" in ax.figure.get_label()


def test_errors_and_widths_are_drawn_in_the_order_given():
    error, predicted, mean = torch.rand(3, 20)
    ax = plot_sorted_errors(error, {"predicted": predicted, "mean error": mean}, "price")
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 1], error)
    for line, values in zip(ax.lines, (predicted, mean), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 21))
        np.testing.assert_allclose(line.get_ydata(), values)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["error", "predicted", "mean error"]
    assert ax.get_ylim()[0] == 0
    assert "20 forecasts" in ax.figure.get_label()


def test_given_axes_are_used_and_their_figure_keeps_its_text():
    figure, axes = plt.subplots(1, 2)
    figure.set_label("mine")
    values = torch.ones(3)
    names = ["a", "b", "c"]
    assert plot_published(names, (values, values), values, "CRPS", axes[0]) is axes[0]
    assert plot_sorted_errors(values, {"line": values}, "price", axes[1]) is axes[1]
    assert figure.get_label() == "mine"
    assert plt.get_fignums() == [figure.number]


def test_values_that_do_not_belong_together_are_refused_before_anything_is_drawn():
    two, three = torch.ones(2), torch.ones(3)
    with pytest.raises(ValueError, match=r"Given published of shape \(3,\), wanted \(2\)"):
        plot_published(["a", "b"], (two, two), three, "CRPS")
    with pytest.raises(ValueError, match="Given 3 tensors as measured"):
        plot_published(["a", "b"], (two, two, two), two, "CRPS")
    with pytest.raises(ValueError, match=r"Given widths\['x'\] of shape \(3,\), wanted \(2\)"):
        plot_sorted_errors(two, {"x": three}, "price")
    with pytest.raises(TypeError, match="wanted one Matplotlib Axes"):
        plot_sorted_errors(two, {"x": two}, "price", [None])
    assert not plt.get_fignums()
