"""The figures of the applied tutorials: what is drawn is what was given."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from mcbn.plotting import ORANGE, plot_maps, plot_scores


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


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


def test_given_axes_are_used() -> None:
    figure, axes = plt.subplots(2, 2)
    assert plot_maps(torch.zeros(2, 4, 4), {"wrong": torch.ones(2, 4, 4) > 0}, axes) is axes
    row = axes[0]
    assert plot_scores({"a": torch.ones(1, 2), "b": torch.ones(1, 2)}, ["x"], row) is row
    assert plt.get_fignums() == [figure.number]
