import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from mcbn.plotting import plot_heatmap, plot_histograms, plot_roc


@pytest.fixture(autouse=True)
def _no_windows():
    mpl.use("agg")
    yield
    plt.close("all")


def test_histograms_share_their_bins_and_each_has_an_area_of_one():
    torch.manual_seed(0)
    values = {"digits": torch.rand(500), "clothes": 3 * torch.rand(200) + 1}
    ax = plot_histograms(values, "entropy")
    width = ax.patches[0].get_width()
    edges = np.linspace(values["digits"].min().item(), values["clothes"].max().item(), 41)
    for group, bars in zip(values.values(), (ax.patches[:40], ax.patches[40:]), strict=True):
        expected, _ = np.histogram(group.numpy(), edges)
        heights = np.array([bar.get_height() for bar in bars])
        np.testing.assert_allclose(heights * width * len(group), expected, atol=1e-4)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["digits", "clothes"]
    assert ax.get_xlabel() == "entropy"


def test_roc_curves_are_drawn_over_the_diagonal_in_colours_of_their_own():
    curves = {
        "entropy": (torch.tensor([0.0, 0.2, 1.0]), torch.tensor([0.0, 0.7, 1.0])),
        "energy": (torch.tensor([0.0, 0.1, 1.0]), torch.tensor([0.0, 0.9, 1.0])),
    }
    diagonal, *lines = plot_roc(curves).lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    for line, (name, (false, true)) in zip(lines, curves.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xdata(), false.numpy())
        np.testing.assert_array_equal(line.get_ydata(), true.numpy())
    assert len({to_rgb(line.get_color()) for line in (diagonal, *lines)}) == 3


def test_a_heatmap_shows_the_table_as_it_is_with_a_scale_from_zero():
    values = torch.tensor([[0.5, 1.0, 2.0], [0.25, 0.75, 1.5]])
    ax = plot_heatmap(values, [7, 8], [0, 45, 90], ("angle", "digit", "entropy"))
    np.testing.assert_array_equal(ax.images[0].get_array(), values.numpy())
    assert ax.images[0].get_clim() == (0, 2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["7", "8"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("angle", "digit")
    [scale] = [other for other in ax.figure.axes if other is not ax]
    assert scale.get_ylabel() == "entropy"


def test_a_new_figure_says_what_it_shows_and_given_axes_are_drawn_on():
    zero = torch.zeros(2)
    curves = {"energy": (zero, zero)}
    assert plot_roc(curves).figure.get_label() == "ROC curves of energy."
    figure, axes = plt.subplots(1, 3)
    assert plot_roc(curves, axes[0]) is axes[0]
    assert plot_histograms({"a": torch.arange(3.0)}, "entropy", axes[1]) is axes[1]
    assert plot_heatmap(zero[None] + 1, "a", "bc", ("x", "y", "z"), axes[2]) is axes[2]
    assert not figure.get_label()
