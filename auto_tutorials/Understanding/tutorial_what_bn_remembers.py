r"""
What a batch norm layer remembers
=================================

A batch norm layer normalizes *activations*: the numbers that one layer of a network passes to the
next, not the images or tables that go into the network. It turns each channel
:math:`h` of the activations, one feature of the layer, into

.. math::

    y = \gamma \, \frac{h - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta .

The scale :math:`\gamma` and the offset :math:`\beta` are learned like weights; :math:`\epsilon` is
a small constant that keeps the layer from dividing by zero. In training, the *statistics*
:math:`\mu` and :math:`\sigma^2` are the channel's mean and variance over a *mini-batch* of
:math:`M` examples drawn at random:

.. math::

    \mu = \frac{1}{M} \sum_{i=1}^{M} h_i, \quad
    \sigma^2 = \frac{1}{M} \sum_{i=1}^{M} (h_i - \mu)^2 .

So the output for one example depends on the others in its mini-batch. At inference, the layer
usually takes its *running statistics* instead, which are averages over the training steps.

Monte Carlo Batch Normalization (MCBN) returns to mini-batches at inference. It draws :math:`S` of
them from the training data, and each gives one *estimator*: the trained network with the statistics
of that mini-batch.

What do the statistics hold, and what do they do to a prediction? With one number in and one number
out, we can see all of it. We make a noisy sine of 400 points, whose noise has a standard deviation
of 0.1. There are no points around its peak, a place that we call *the gap*, and none below −3 or
above 3. The seed is 0; a CPU is enough.
"""

# sphinx_gallery_tags = ["regression", "batch size"]

import torch

from mcbn.plotting import plot_curves

torch.manual_seed(0)
noise = 0.1


def draw(left, right):
    x = torch.cat([torch.empty(left).uniform_(-3, 0.8), torch.empty(right).uniform_(2.2, 3)])
    return x, x.sin() + noise * torch.randn(len(x))


x, y = draw(left=320, right=80)
grid = torch.linspace(-7, 7, 281)
ax = plot_curves(grid, grid.sin()[None], points=(x, y))
ax.figure.set_label("A sine from -7 to 7; the points lie on it, but for its peak, from -3 to 3.")

# %%
# Train a small network
# ---------------------
#
# We take the network of the paper's regressions (`Teye et al., 2018
# <https://arxiv.org/abs/1802.06455>`_): two dense layers without bias, each followed by batch
# normalization and a ReLU, and a dense output layer. ``train`` builds it, trains it on mini-batches
# of :math:`M = 64` points with a learning rate that falls to a hundredth of its initial value, and
# returns it with its loader.

from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(x, y, epochs):
    loader = DataLoader(TensorDataset(x[:, None], y), batch_size=64, shuffle=True, drop_last=True)
    model = nn.Sequential(
        nn.Linear(1, 50, bias=False),
        nn.BatchNorm1d(50),
        nn.ReLU(),
        nn.Linear(50, 50, bias=False),
        nn.BatchNorm1d(50),
        nn.ReLU(),
        nn.Linear(50, 1),
        nn.Flatten(0),  # one number for each point
    )
    steps = epochs * len(loader)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=steps)
    for _ in range(epochs):
        for inputs, target in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), target).backward()
            optimizer.step()
            schedule.step()
    return model.eval(), loader


model, loader = train(x, y, epochs=100)

# %%
# Draw mini-batches again
# -----------------------
#
# ``fit`` draws 200 mini-batches of 64 training points, runs each through a copy of the network, and
# stores the mean and the variance of every channel in every batch norm layer. The weights do not
# change.

from mcbn import MCBatchNorm

mc = MCBatchNorm(model, num_estimators=200, mc_batch_size=64).fit(loader)
weight = mc.model[0].weight[:, 0]
layer = mc.model[1]
print("means held by the first layer:", tuple(layer.mc_mean.shape))

# %%
# These are 200 estimators, one call of the layer per forward pass, and 50 channels.
#
# What the statistics hold
# ------------------------
#
# A channel of the first layer is :math:`h = w x`, the input times one weight. Its mean over a
# mini-batch is :math:`w` times the mean of :math:`x`, and its standard deviation is :math:`|w|`
# times that of :math:`x`. Divided by the weights, all 50 channels must therefore agree on where the
# points of the mini-batch lie, and how far they spread.

center = layer.mc_mean[:, 0] / weight
width = (layer.mc_var[:, 0] / weight**2).sqrt()
for estimator in range(3):
    print(f"mini-batch {estimator}: mean {center[estimator].mean():+.2f}", end=", ")
    print(f"standard deviation {width[estimator].mean():.2f}")

assert center.std(dim=1).max() < 1e-4
assert width.std(dim=1).max() < 1e-3

# %%
# So all 50 channels hold the same two numbers: this is what the first layer remembers of 64 points.
# Let :math:`\mu_s` and :math:`\sigma_s` be the mean and the standard deviation of :math:`x` in
# mini-batch :math:`s`. Up to the sign of :math:`w`, the layers that follow see
#
# .. math::
#
#     \frac{x - \mu_s}{\sigma_s}, \qquad s = 1, \dots, S,
#
# the input shifted and stretched by the mini-batch. The second batch norm layer remembers more: 50
# means and variances of what the layers before it made of the same mini-batch.
#
# Two hundred curves
# ------------------
#
# Each estimator predicts a curve of its own. The figure shows 40 of the 200.

with torch.no_grad():
    curves = mc(grid[:, None])

ax = plot_curves(grid, curves[:40], points=(x, y))
ax.figure.set_label(
    "40 curves: close together along the points, shifted to the left or to the right where the "
    "sine is steep, and straight lines that fan out beyond the points on both sides."
)

# %%
# Each shifts the sine a little, to the left or to the right.
#
# Two kinds of variance
# ---------------------
#
# The mean of the curves is the prediction. Their variance is the *epistemic* part of the
# uncertainty: the network is not sure of the curve. The noise of the points is the *aleatoric*
# part, which no curve can predict. Its variance is written :math:`1 / \tau`; here we know that it
# is :math:`0.1^2`. With :math:`f_s` the curve of estimator :math:`s`, and :math:`\bar f` the mean
# of the curves, the two variances add up to
#
# .. math::
#
#     \mathrm{Var}[y] \approx \frac{1}{S} \sum_s (f_s(x) - \bar f(x))^2 + \frac{1}{\tau} .
#
# The bands in the figure are two standard deviations wide on each side: first of the curves, then
# of curves and noise.

from mcbn.plotting import plot_bands
from mcbn.predictive import summarise_regression

mean, epistemic, total = summarise_regression(curves, noise_variance=noise**2)
bands = {"curves": 2 * epistemic.sqrt(), "curves and noise": 2 * total.sqrt()}
ax = plot_bands(grid, mean, bands, points=(x, y))
ax.figure.set_label(
    "The mean curve with two bands of two standard deviations: of the curves, which is widest in "
    "the steep middle and far outside, and of curves and noise, wider by a rim."
)

# %%
# We draw 4,000 new points in the same places, and count how many lie inside each band.

new_x, new_y = draw(left=3200, right=800)
with torch.no_grad():
    new = summarise_regression(mc(new_x[:, None]), noise_variance=noise**2)
error = (new_y - new.mean).abs()
inside = {
    "curves only": (error <= 2 * new.epistemic_variance.sqrt()).float().mean(),
    "curves and noise": (error <= 2 * new.total_variance.sqrt()).float().mean(),
}
for name, share in inside.items():
    print(f"{name:17}{share:.0%} inside")

assert inside["curves only"] < inside["curves and noise"]
assert inside["curves and noise"] > 0.9

# %%
# The spread of the curves alone is too narrow for the points, because it does not include their
# noise. With the noise added, more than nine in ten are inside; for a normal distribution it would
# be 95 %. But that is the average over two places:

within = error <= 2 * new.total_variance.sqrt()
left, right = (within[chosen].float().mean() for chosen in (new_x < 1, new_x > 2))
print(f"left of the gap {left:.0%} inside, right of it {right:.0%}")

# %%
# The points on the right are few. In this run, the curve misses some of them by more than its band
# allows; other seeds are luckier.
#
# Where the band is wide
# ----------------------
#
# A mini-batch whose mean is a little off shifts the curve by the same amount, so the prediction
# changes by the slope times the shift. The mean of :math:`M` of the :math:`n` points has a standard
# deviation of :math:`\sigma_x / \sqrt{M}`, where :math:`\sigma_x` is the standard deviation of the
# inputs, or a little less, because no point is drawn twice. That gives a rule for the standard
# deviation of the curves:
#
# .. math::
#
#     | f'(x) | \, \frac{\sigma_x}{\sqrt{M}} \sqrt{\frac{n - M}{n - 1}} .


def shift(n, size):
    return x.std() / size**0.5 * ((n - size) / (n - 1)) ** 0.5


# %%
# Here is the standard deviation of the curves beside the rule, with the slope of the mean curve as
# :math:`f'`:

from mcbn.plotting import plot_series

spread = epistemic.sqrt()
slope = torch.gradient(mean, spacing=(grid,))[0].abs()
lines = {"curves": spread, "rule": slope * shift(n=400, size=64)}
near = (grid > -3) & (grid < 3)
ax = plot_series(
    grid[near],
    {name: line[near] for name, line in lines.items()},
    labels=("x", "standard deviation"),
    marker="",
)
ax.figure.set_label(
    "Standard deviation of the curves against x, and what the rule says: the same hill in the "
    "steep middle; near the ends and in the gap the two differ."
)

# %%
# In the steep middle, we take the ratio of the two:

steep = grid.abs() < 0.4
ratio = (spread / lines["rule"])[steep].mean()
print(f"standard deviation in the middle: {ratio:.1f} times the rule's")
assert 0.7 < ratio < 1.4

# %%
# In the middle of the data, where the sine is steep, the rule comes close. Elsewhere, the stretch
# and the second layer matter as well: where the curve is flat, the rule falls to zero and the
# curves still differ.
#
# Places without data
# -------------------
#
# Does the network know where it has no data? We compare four places: the steep middle with points
# all around, the gap, and two places outside. *Spread* is the standard deviation of the curves,
# *Error* the error of their mean.

import rich

from mcbn.results import Table, Tables

off = (mean - grid.sin()).abs()
places = {
    "steep, full of points": steep,
    "the gap": (grid - 1.5).abs() < 0.4,
    "just outside, |x| ≈ 4": (grid.abs() - 4).abs() < 0.4,
    "far outside, |x| ≈ 6.5": (grid.abs() - 6.5).abs() < 0.4,
}
rows = [
    (name, f"{spread[place].mean():.2f}", f"{off[place].mean():.2f}")
    for name, place in places.items()
]
rich.print(Tables([Table("Curves and truth", ("Where", "Spread", "Error"), rows)]))

# %%
# It does not know. In the gap, the error is at least twice that in the middle of the points, yet
# the spread is smaller: the curve is flat there, so a shift changes little. Outside, the band does
# widen, but for a simple reason: a ReLU network continues in straight lines, and when these are
# shifted and stretched they fan out. In all three places without points, the error is larger than
# the spread.

middle, gap, outside, far = (spread[place].mean() for place in places.values())
assert gap < 0.8 * middle
assert off[places["the gap"]].mean() > 2 * off[steep].mean()
assert 1.5 * outside < far
assert all(off[place].mean() > spread[place].mean() for place in list(places.values())[1:])

# %%
# More data, or larger mini-batches
# ---------------------------------
#
# If the band expressed doubt about the curve, more data should narrow it. We train on ten times as
# many points, for about as many steps, and draw with the same :math:`M`. Then we go back to the
# first network and draw larger mini-batches.


def spread_of(model, loader, size):
    mc = MCBatchNorm(model, num_estimators=200, mc_batch_size=size).fit(loader)
    with torch.no_grad():
        return summarise_regression(mc(grid[near, None])).epistemic_variance.sqrt().mean()


base = spread_of(model, loader, 64)
more_points = spread_of(*train(new_x, new_y, epochs=10), 64)
larger = spread_of(model, loader, 256)
print(f"400 points,   M = 64:  {base:.2f}")
print(f"4,000 points, M = 64:  {more_points:.2f}")
print(f"400 points,   M = 256: {larger:.2f}")

assert more_points > 0.7 * base
assert larger < 0.6 * base

# %%
# Ten times as many points leave the spread about where it was; the larger :math:`M` makes it less
# than 0.6 times as wide. The width of the band is set by the size of the mini-batches that are
# drawn, not by the amount of data. To get a suitable width, the paper chooses :math:`M`, for the
# training and for the draws alike, on validation data.
#
# Conclusion
# ----------
#
# A batch norm layer remembers where its mini-batches lay and how far they spread. MCBN shows how
# much a prediction depends on that, and so how sensitive the trained network is, at little cost. It
# does not detect missing data.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Understanding_tutorial_batch_size_and_estimators.py` chooses
# :math:`M` and :math:`S` for a network that reads digits.
# :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_regression_tables.py` fits a regression to a
# real table, where the noise is not known.
