import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from mcbn.metrics import reliability_bins, risk_coverage_curve
from mcbn.plotting import (
    ORANGE,
    plot_bands,
    plot_curves,
    plot_estimators,
    plot_heatmap,
    plot_histograms,
    plot_images,
    plot_intervals,
    plot_maps,
    plot_published,
    plot_reliability,
    plot_risk_coverage,
    plot_roc,
    plot_scores,
    plot_series,
    plot_sorted_errors,
)


@pytest.fixture(autouse=True)
def _no_windows():
    mpl.use("agg")
    yield
    plt.close("all")


@pytest.fixture
def digits():
    torch.manual_seed(0)
    images = torch.rand(3, 1, 28, 28)
    probs = torch.randn(8, 3, 10).mul(3).softmax(-1)
    return images, probs, torch.tensor([7, 0, 4])


def test_images_are_drawn_as_they_are_with_their_titles(digits):
    images, _, labels = digits
    axes = plot_images(images, labels)
    for image, label, ax in zip(images, labels, axes, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), image[0].numpy())
        assert ax.images[0].get_clim() == (0, 1)
        assert ax.get_title() == str(int(label))


def test_estimators_are_drawn_with_their_readings_and_the_true_class(digits):
    images, probs, labels = digits
    axes = plot_estimators(images, probs, labels)
    assert axes.shape == (2, 3)
    for i, (above, below) in enumerate(axes.T):
        np.testing.assert_array_equal(above.images[0].get_array(), images[i, 0].numpy())
        np.testing.assert_array_equal(below.images[0].get_array(), probs[:, i].numpy())
        written = [(text.get_text(), text.get_position()) for text in below.texts]
        assert written == [
            (str(digit), (digit, row)) for row, digit in enumerate(probs[:, i].argmax(-1).tolist())
        ]
        [frame] = [patch for patch in below.patches if isinstance(patch, Rectangle)]
        assert frame.get_x() + frame.get_width() / 2 == int(labels[i])


def test_a_new_figure_says_what_it_shows(digits):
    images, probs, labels = digits
    label = plot_estimators(images, probs, labels)[0, 0].figure.get_label()
    for i in range(3):
        read = " ".join(map(str, probs[:, i].argmax(-1).tolist()))
        assert f"true: {labels[i]} read: {read}" in label
    assert plot_images(images, "abc")[0].figure.get_label() == "A row of images: a, b, c."
    assert plot_risk_coverage(torch.ones(2), torch.ones(2)).figure.get_label()
    assert plot_roc({"energy": (X, X)}).figure.get_label() == "ROC curves of energy."


X = torch.arange(3.0)
ON_AXES = {
    "curves": lambda ax: plot_curves(X, X[None], ax=ax),
    "bands": lambda ax: plot_bands(X, X, {"band": X}, ax=ax),
    "series": lambda ax: plot_series(X, {"line": X}, ("x", "y"), ax),
    "intervals": lambda ax: plot_intervals(X, X, X, X, ax),
    "published": lambda ax: plot_published("abc", (X, X), X, "CRPS", ax),
    "sorted errors": lambda ax: plot_sorted_errors(X, {"line": X}, "price", ax),
    "ROC": lambda ax: plot_roc({"energy": (X, X)}, ax),
    "histograms": lambda ax: plot_histograms({"a": X}, "entropy", ax),
    "heatmap": lambda ax: plot_heatmap(X[None] + 1, "a", "bcd", ("x", "y", "z"), ax),
    "scores": lambda ax: plot_scores({"a": X[None]}, ["x"], np.array([ax]))[0],
}


@pytest.mark.parametrize("name", ON_AXES)
def test_a_given_ax_is_drawn_on_and_its_figure_keeps_its_text(name):
    figure, ax = plt.subplots()
    figure.set_label("mine")
    assert ON_AXES[name](ax) is ax
    assert figure.get_label() == "mine"
    assert plt.get_fignums() == [figure.number]


def test_given_axes_are_used_and_their_figure_keeps_its_text(digits):
    images, probs, _ = digits
    figure, axes = plt.subplots(2, 3)
    figure.set_label("mine")
    assert plot_estimators(images, probs, axes=axes) is axes
    assert len(axes[1, 2].texts) == 8
    assert not axes[1, 2].patches
    assert plot_maps(images[:, 0], {"wrong": images[:, 0] > 0.5}, axes) is axes
    assert figure.get_label() == "mine"
    assert len(plt.get_fignums()) == 1


def test_reliability_diagram_shows_the_bins():
    confidence = torch.tensor([0.3, 0.7, 0.8, 0.9, 0.95])
    correct = torch.tensor([False, True, False, True, True])
    count, accuracy, mean = bins = reliability_bins(confidence, correct, num_bins=5)
    ax = plot_reliability(bins)
    dots = ax.collections[0]
    full = count > 0
    drawn = np.ma.compressed(np.ma.masked_invalid(dots.get_offsets())).reshape(-1, 2)
    np.testing.assert_allclose(drawn, torch.stack([mean, accuracy], 1)[full].numpy())
    # The diagonal is where accuracy equals confidence.
    np.testing.assert_array_equal(*ax.lines[0].get_data())


def test_risk_coverage_curve_is_drawn_as_given():
    coverage, risk = risk_coverage_curve(
        torch.tensor([0.9, 0.5, 0.7]), torch.tensor([True, False, False])
    )
    ax = plot_risk_coverage(coverage, risk, label="plain")
    plot_risk_coverage(coverage, risk / 2, ax, label="MCBN")
    assert [line.get_label() for line in ax.lines] == ["plain", "MCBN"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), coverage.numpy())
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), risk.numpy() / 2)


# --- Figures of the applied tutorials ---


def test_scores_are_dots_in_the_row_of_their_method_with_a_bar_at_the_mean() -> None:
    nll = torch.tensor([[0.5, 0.3, 0.4], [0.2, 0.1, 0.3]])
    axes = plot_scores({"NLL": nll, "ECE": nll / 10}, names=["plain", "ensemble"])
    for ax, values in zip(axes, (nll, nll / 10), strict=True):
        for height, runs in enumerate(values):
            dots, bar = ax.lines[2 * height : 2 * height + 2]
            np.testing.assert_array_equal(dots.get_xdata(), runs.numpy())
            assert set(dots.get_ydata()) == set(bar.get_ydata()) == {height}
            np.testing.assert_allclose(bar.get_xdata(), [sum(runs.tolist()) / 3], rtol=1e-6)
    assert [ax.get_xlabel() for ax in axes] == ["NLL", "ECE"]
    # The first method is at the top.
    bottom, top = axes[0].get_ylim()
    assert bottom > top
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["plain", "ensemble"]
    assert "NLL 0.400, 0.200; ECE 0.040, 0.020" in axes[0].figure.get_label()


def test_a_mark_of_a_map_is_where_it_was_given() -> None:
    torch.manual_seed(0)
    images, entropy = torch.rand(3, 6, 7), torch.rand(3, 6, 7)
    classes, wrong = torch.randint(0, 11, (3, 6, 7)), torch.rand(3, 6, 7) > 0.5
    axes = plot_maps(images, {"truth": classes, "errors": wrong, "entropy": entropy})
    assert axes.shape == (4, 3)
    assert [row[0].get_ylabel() for row in axes] == ["image", "truth", "errors", "entropy"]
    for i in range(3):
        image, truth, errors, shades = (ax.images[0] for ax in axes[:, i])
        np.testing.assert_array_equal(image.get_array(), images[i].numpy())
        assert image.get_clim() == (0, 1)
        np.testing.assert_array_equal(truth.get_array().mask, (classes[i] == 0).numpy())
        np.testing.assert_array_equal(truth.get_array().filled(0), classes[i].numpy())
        colors = {to_hex(truth.cmap(truth.norm(k))) for k in range(1, 11)}
        assert len(colors) == 10  # no two classes look the same
        np.testing.assert_array_equal(errors.get_array().mask, ~wrong[i].numpy())
        assert to_hex(errors.cmap(errors.norm(True))) == ORANGE.lower()
        np.testing.assert_array_equal(shades.get_array(), entropy[i].numpy())
        # One scale for the row, so that its images can be compared.
        assert shades.get_clim() == (0, float(entropy.max()))
    assert len(axes[0, 0].figure.axes) == 12 + 1
    assert axes[0, 0].figure.get_label()


# --- Figures of the evaluation ---


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


# --- Figures of the paper's table ---


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


# --- Figures of regression ---


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
