"""The methods of the comparison's page, and the scores that are stored for it."""

from __future__ import annotations

import csv
import importlib.util
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def measuring():
    where = ROOT / "docs/measure_comparison.py"
    spec = importlib.util.spec_from_file_location("measure_comparison", where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_laplace_approximation_is_that_of_the_loss_hessian(measuring):
    """Second derivatives by autograd, and each image's logit variance from its own Jacobian."""
    page = measuring.page()
    torch.manual_seed(0)
    images, labels = page["train_images"][:30], page["train_labels"][:30] % 4
    page |= {"train_images": images, "train_labels": labels}
    page |= {"val_images": images, "val_labels": labels}
    body = nn.Sequential(nn.Flatten(), nn.Linear(784, 3), nn.ReLU()).requires_grad_(False)
    model = nn.Sequential(*body, nn.Linear(3, 4)).eval()
    features, weight = body(images), torch.cat([model[-1].weight, model[-1].bias[:, None]], dim=1)

    def logits_of(weight, features):
        return features @ weight[:, :3].T + weight[:, 3]

    def loss(weight):
        return cross_entropy(logits_of(weight, features), labels, reduction="sum")

    hessian = torch.autograd.functional.hessian(loss, weight.detach()).reshape(16, 16)
    answers = []
    for precision in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100):
        covariance = torch.linalg.inv(hessian + precision * torch.eye(16))
        answer = []
        for phi in features:
            jacobian = torch.autograd.functional.jacobian(
                lambda weight, phi=phi: logits_of(weight, phi), weight.detach()
            ).reshape(4, 16)
            variance = (jacobian @ covariance @ jacobian.T).diagonal()
            answer.append(logits_of(weight.detach(), phi) / (1 + torch.pi / 8 * variance).sqrt())
        answers.append(torch.stack(answer))
    best = min(answers, key=lambda logits: cross_entropy(logits, labels).item())
    predict = page["last_layer_laplace"](model)
    torch.testing.assert_close(predict(images).detach(), best, rtol=1e-3, atol=1e-4)


def test_swag_draws_from_the_normal_distribution_of_the_snapshots(measuring):
    page = measuring.page()
    torch.manual_seed(0)
    snapshots = [torch.randn(2) for _ in range(10)]
    drawn = []
    page["swag"].__globals__["with_weights"] = lambda model, weights: drawn.append(weights)
    for _ in range(1000):
        page["swag"](None, snapshots)
    points = torch.stack(snapshots)
    mean, draws = drawn[-1], torch.stack([w for i, w in enumerate(drawn) if i % 17 != 16])
    torch.testing.assert_close(mean, points.mean(0))
    torch.testing.assert_close(draws.mean(0), points.mean(0), rtol=0, atol=0.03)
    wanted = (points.T.cov() + torch.diag(points.var(0, correction=0))) / 2
    torch.testing.assert_close(draws.T.cov(), wanted, rtol=0.05, atol=0.03)


def test_the_guide_has_the_changes_of_the_stored_scores(measuring):
    """Means and half widths over paired seeds, with Student's quantile for ten from a table."""
    nll = defaultdict(list)
    with measuring.STORED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            nll[row["data"], row["method"], row["trainings"], row["passes"]].append(
                (int(row["seed"]), float(row["NLL"]))
            )
    with measuring.GUIDE.open(encoding="utf-8", newline="") as file:
        plain, *others = csv.DictReader(file)
    for data in ("digits", "MNIST", "vowels"):
        of_plain = [value for _, value in sorted(nll[data, "plain", "1", "1"])]
        assert plain[data] == f"{fmean(of_plain):.3f}"
        for row in others:
            values = sorted(nll[data, row["Method"], *row["Cost"].split(", ")])
            changes = [value - before for (_, value), before in zip(values, of_plain, strict=True)]
            shown = [float(part) for part in row[data].replace("−", "-").split("±")]
            half = 2.26216 * stdev(changes) / 10**0.5
            assert shown == pytest.approx([fmean(changes), half], abs=5.1e-4), row["Method"]


def test_the_stored_scores_are_ten_seeds_of_every_method(measuring):
    seeds = defaultdict(set)
    with measuring.STORED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            seeds[row["data"], row["method"], row["passes"]].add(int(row["seed"]))
    assert set(map(frozenset, seeds.values())) == {frozenset(range(10))}
    by_data = defaultdict(set)
    for data, *method in seeds:
        by_data[data].add(tuple(method))
    assert len(set(map(frozenset, by_data.values()))) == 1
