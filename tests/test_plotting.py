import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from mcbn.metrics import reliability_bins, risk_coverage_curve
from mcbn.plotting import plot_estimators, plot_images, plot_reliability, plot_risk_coverage


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


def test_given_axes_are_used_and_their_figure_keeps_its_text(digits):
    images, probs, _ = digits
    figure, axes = plt.subplots(2, 3)
    figure.set_label("mine")
    assert plot_estimators(images, probs, axes=axes) is axes
    assert len(axes[1, 2].texts) == 8
    assert not axes[1, 2].patches
    assert figure.get_label() == "mine"
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("wrong", ["images", "labels", "axes"])
def test_what_does_not_belong_together_is_refused(digits, wrong):
    images, probs, labels = digits
    given = {"images": images, "probs": probs, "labels": labels, "axes": None}
    given[wrong] = plt.subplots(2, 2)[1] if wrong == "axes" else given[wrong][:2]
    with pytest.raises(ValueError, match=r"of shape .* wanted \("):
        plot_estimators(**given)


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
