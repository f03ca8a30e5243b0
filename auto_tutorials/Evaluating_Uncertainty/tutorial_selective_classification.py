"""
Selective classification: knowing when not to answer
====================================================

A network that may pass difficult images on to a person makes fewer errors on the rest. This is
*selective classification*: answer the images one is surest of, decline the others. This page shows
how to measure what that is worth, whether Monte Carlo Batch Normalization (MCBN) makes it better,
and how to set a threshold that keeps a promise on new images.

The data are MNIST digits that come with the package: 300 for training, 3,700 held out for
validation, 1,000 for testing. The seed is 0. No GPU is needed.
"""

# sphinx_gallery_tags = ["classification", "selective classification"]

import torch
from torch import nn

from mcbn import (
    ClassificationRoutine,
    MCBatchNorm,
    MNISTDataModule,
    Trainer,
    lenet,
    optim_lenet,
)

torch.manual_seed(0)

# %%
# The network
# -----------
#
# A LeNet is trained for 400 steps on 300 digits, so few that there are errors to avoid. MCBN makes
# 16 estimators from it, each with the batch statistics of 128 training digits, as many as in a
# training batch.

datamodule = MNISTDataModule(source="sample", val_split=0.925, random_crop=False)
model = lenet(datamodule.num_channels, datamodule.num_classes)
routine = ClassificationRoutine(
    num_classes=datamodule.num_classes,
    model=model,
    loss=nn.CrossEntropyLoss(),
    optim_recipe=lambda model: optim_lenet(model, num_steps=400),
)
trainer = Trainer(max_steps=400, enable_model_summary=False)
trainer.fit(routine, datamodule.train_dataloader())
mc = MCBatchNorm(model, num_estimators=16, mc_batch_size=128).fit(datamodule.train_dataloader())

# %%
# Ranking the images
# ------------------
#
# We answer the images with the highest *confidence*. That can be any number that is high where a
# prediction can be trusted. We try three: the highest probability of the plain network, the highest
# of MCBN's mean probabilities, and the negative mutual information, which is high where the
# estimators agree.

from mcbn.predictive import summarise_classification


def judge(network, loader, labels):
    routine.model = network
    logits = torch.cat(trainer.predict(routine, loader), dim=-2)
    summary = summarise_classification(logits)
    return summary, summary.label == labels


test_labels = datamodule.dataset("test").labels
plain, plain_right = judge(model, datamodule.test_dataloader(), test_labels)
mcbn, mcbn_right = judge(mc, datamodule.test_dataloader(), test_labels)
print(
    f"right: plain network {plain_right.float().mean():.1%}, MCBN {mcbn_right.float().mean():.1%}"
)

# %%
# These are the six test images of which MCBN is least sure. Above each is the digit that it reads,
# with its probability.

from mcbn.plotting import plot_images

unsure = mcbn.confidence.topk(6, largest=False).indices
titles = [f"{mcbn.label[i]}? {mcbn.confidence[i]:.0%}" for i in unsure]
plot_images(datamodule.dataset("test").images[unsure] / 255, titles)

# %%
# Risk and coverage
# -----------------
#
# The *risk* is the share of errors among the answers, the *coverage* the share of images that are
# answered. A risk–coverage curve shows one against the other for all thresholds. The best possible
# confidence would put all errors last; a useless one would not change the risk at all.

from mcbn.metrics import risk_coverage_curve
from mcbn.plotting import plot_risk_coverage

rankings = {
    "plain, probability": (plain.confidence, plain_right),
    "MCBN, probability": (mcbn.confidence, mcbn_right),
    "MCBN, mutual information": (-mcbn.mutual_information, mcbn_right),
    "best possible": (mcbn_right.float(), mcbn_right),
    "useless": (torch.ones(1000), mcbn_right),
}
curves = {name: risk_coverage_curve(*ranking) for name, ranking in rankings.items()}

# %%
# All five curves in one figure. Where a curve seems to be missing, another one covers it.

ax = None
for name, (coverage, risk) in curves.items():
    ax = plot_risk_coverage(coverage, risk, ax, label=name)
ax.legend(frameon=False, loc="center left")
ax.figure.set_label(
    "Risk against coverage: the curves of three confidences lie close together, far below the "
    "level line of a useless one and above that of the best possible."
)

# %%
# What share of the images must be declined to avoid nine errors in ten?

for name, (coverage, risk) in curves.items():
    errors = coverage * risk
    print(f"{name:26}{1 - coverage[errors <= errors[-1] / 10].max():.0%}")

# %%
# A single number: AURC
# ---------------------
#
# *AURC*, the area under the curve, is the mean risk over all coverages. A wrong answer with the
# highest confidence counts at every coverage, with a weight that grows as fewer images are
# answered: among the first ten answers, one error is a risk of 10 %. *AUGRC* (`Traub et al., 2024
# <https://arxiv.org/abs/2407.01032>`_) instead averages coverage times risk, the share of *all*
# images that are answered wrongly, so that each error weighs only as much as it should. Lower is
# better for both.

import rich

from mcbn.results import Table, Tables


def areas(confidence, right):
    coverage, risk = risk_coverage_curve(confidence, right)
    return risk.mean().item(), (coverage * risk).mean().item()


measured = {name: areas(*ranking) for name, ranking in rankings.items()}
rows = [(name, f"{100 * a:.2f} %", f"{100 * b:.2f} %") for name, (a, b) in measured.items()]
rich.print(Tables([Table("Areas under the curves", ("Confidence", "AURC", "AUGRC"), rows)]))

# %%
# We compare them with the best possible confidence and a useless one:

best, useless = measured["best possible"][0], measured["useless"][0]
for name in list(rankings)[:3]:
    assert measured[name][0] < best + 0.25 * (useless - best)

# %%
# All three are much nearer to the best possible confidence than to a useless one: the network knows
# quite well where it errs, even if its confidence is too high. Selective classification needs only
# the order of the images.
#
# In practice, the classes :class:`mcbn.metrics.AURC` and :class:`mcbn.metrics.AUGRC` compute these
# areas during a test; ``trainer.test`` shows them in its tables.

from mcbn.metrics import AURC

aurc = AURC()
aurc.update(plain.probs, test_labels)
assert abs(aurc.compute().item() - measured["plain, probability"][0]) < 1e-6

# %%
# MCBN's ranking against the plain network's
# ------------------------------------------
#
# The two AURCs differ. Is the difference more than chance? We draw 200 new test sets from the test
# images, with replacement, and compute the difference on each of them.

differences = []
for _ in range(200):
    chosen = torch.randint(1000, (1000,))
    of_mcbn, _ = areas(mcbn.confidence[chosen], mcbn_right[chosen])
    of_plain, _ = areas(plain.confidence[chosen], plain_right[chosen])
    differences.append(of_mcbn - of_plain)
differences = 100 * torch.tensor(differences)
print(f"MCBN minus plain: {differences.mean():+.2f} +/- {differences.std():.2f} points of AURC")

assert differences.mean().abs() / (100 * measured["plain, probability"][0]) < 0.1

# %%
# Whatever its sign, the difference is less than a tenth of the AURC: MCBN puts the images into
# nearly the same order. The plain network's probability is enough to choose the images here, and it
# needs no MCBN.
#
# Choosing a threshold
# --------------------
#
# Suppose at most 2 % of the answers may be wrong. The threshold must not be chosen on the test
# images. On the validation images, we take the lowest one that keeps the risk within 2 %. ``check``
# then returns the coverage and the risk on other images.

risk_wanted = 0.02


def choose_threshold(confidence, right, bound=lambda risk, answered: risk):
    _, risk = risk_coverage_curve(confidence, right)
    answered = torch.arange(1, len(risk) + 1)
    kept = answered[bound(risk, answered) <= risk_wanted]
    return confidence.sort(descending=True).values[kept.max() - 1] if len(kept) else torch.inf


def check(threshold, confidence, right):
    answers = confidence >= threshold
    wrong = answers & ~right
    return answers.float().mean().item(), (wrong.sum() / answers.sum().clamp(min=1)).item()


# %%
# We choose a threshold for MCBN's probabilities and check it on the test images.

val_labels = datamodule.dataset("val").labels
val, val_right = judge(mc, datamodule.val_dataloader(), val_labels)
threshold = choose_threshold(val.confidence, val_right)
coverage, risk = check(threshold, mcbn.confidence, mcbn_right)
print(f"threshold {threshold:.3f}: {coverage:.1%} of the test images answered, {risk:.1%} wrong")
assert coverage > 0.5
assert risk < 0.05

# %%
# A threshold chosen many times
# -----------------------------
#
# Does the threshold keep its promise? That was a single try, with 3,700 validation images; usually
# there are fewer. So we pool all 4,700 images that the network was not trained on, draw 500 of them
# for validation, and test on the others, 300 times.

confidence = torch.cat([val.confidence, mcbn.confidence])
right = torch.cat([val_right, mcbn_right])


def keep_promises(bound):
    outcomes = []
    for _ in range(300):
        order = torch.randperm(len(right))
        chosen, others = order[:500], order[500:]
        threshold = choose_threshold(confidence[chosen], right[chosen], bound)
        outcomes.append(check(threshold, confidence[others], right[others]))
    coverage, risk = torch.tensor(outcomes).T
    print(f"coverage {coverage.mean():.0%}, risk {risk.mean():.1%}, ", end="")
    print(f"promise broken in {(risk > risk_wanted).float().mean():.0%} of the draws")
    return (risk > risk_wanted).float().mean()


broken = keep_promises(lambda risk, answered: risk)

# %%
# It breaks the promise about every other time: the lowest threshold that was good enough on the
# validation images was often good by luck. A margin helps. Instead of the observed risk, the upper
# end of its one-sided 95 % interval must be at most 2 %. For a risk :math:`r` among :math:`n`
# answers, with :math:`z = 1.645`, Wilson's interval ends at
#
# .. math:: \frac{r + z^2/2n + z \sqrt{r(1-r)/n + z^2/4n^2}}{1 + z^2/n}.


def wilson(risk, answered, z=1.645):
    root = (risk * (1 - risk) / answered + z**2 / (4 * answered**2)).sqrt()
    return (risk + z**2 / (2 * answered) + z * root) / (1 + z**2 / answered)


broken_with_margin = keep_promises(wilson)

assert broken > 0.25
assert broken_with_margin < 0.15

# %%
# Now the promise is nearly always kept. The price is that fewer images are answered, because the
# upper end of the interval lies above the observed risk. (This is no guarantee: the interval is
# meant for one threshold, and we look at many. `Geifman and El-Yaniv, 2017
# <https://arxiv.org/abs/1705.08500>`_, show how to get one.)
#
# What the threshold overlooks
# ----------------------------
#
# The threshold holds for images like those it was chosen on. Images that are not digits, or digits
# that are upside down, may also get a high confidence, and are then answered.
#
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_ood_detection.py` and
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_rotation_and_noise.py` measure how
# sure a network is of such images.
# :ref:`sphx_glr_auto_tutorials_Evaluating_Uncertainty_tutorial_calibration.py` asks whether the
# confidence is right as a probability.
