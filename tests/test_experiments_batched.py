"""The stacked networks against single ones with the same draws."""

import pytest
import torch
from torch import nn

from mcbn import MCBatchNorm
from mcbn.experiments.batched import MCBN, MCDropout, Training

JOBS, FEATURES, WIDTH, BATCH = 3, 4, 7, 8
ROWS = 2 * BATCH + 3  # an incomplete batch is left over
DECAYS = [0.3, 1e-2, 1e-6]
METHODS = [MCBN(BATCH), MCDropout(rate=0.3, batch_size=BATCH)]


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(JOBS, ROWS, FEATURES, generator=generator)
    return x, x.sum(-1, keepdim=True).sin(), torch.randn(JOBS, 5, FEATURES, generator=generator)


def seeded():
    return torch.Generator().manual_seed(1)


def single(params, network):
    """One of the stacked networks as a module."""
    first, second, last, bias, *norms = (param[network].detach() for param in params)
    layers = []
    for i, weight in enumerate((first, second)):
        layers.append(nn.Linear(*weight.shape, bias=False))
        layers[-1].weight.data = weight.T.clone()
        if norms:
            layers.append(nn.BatchNorm1d(WIDTH, eps=1e-10))
            layers[-1].weight.data, layers[-1].bias.data = (
                p[0].clone() for p in norms[2 * i :][:2]
            )
        layers.append(nn.ReLU())
    layers.append(nn.Linear(WIDTH, 1))
    layers[-1].weight.data, layers[-1].bias.data = last.T.clone(), bias[0].clone()
    return nn.Sequential(*layers)


def with_dropped(model, x, uniform, rate):
    """The forward pass of MC dropout, a layer after the other, with the given uniform numbers."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            mask, uniform = uniform.split(
                [layer.in_features, uniform.shape[1] - layer.in_features], 1
            )
            x = torch.where(mask > rate, x / (1 - rate), 0)
        x = layer(x)
    return x


def assert_same(params, network, model):
    for stacked, alone in zip(
        single(params, network).parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(stacked, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_each_network_trains_as_it_would_alone(method):
    x, y, _ = data()
    initial = method.initial(JOBS, FEATURES, WIDTH, seeded())
    generator, replay = seeded(), seeded()
    training = Training(method, initial, x, y, DECAYS, generator)
    models = [single(initial, job) for _ in DECAYS for job in range(JOBS)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in models]
    running = list(range(len(models)))
    for epoch in range(12):
        training.epoch()
        order = torch.stack([torch.randperm(ROWS, generator=replay) for _ in range(JOBS)])
        for start in range(0, ROWS - BATCH + 1, BATCH):
            if isinstance(method, MCDropout):
                units = FEATURES + 2 * WIDTH
                uniform = torch.rand(JOBS, BATCH, units, generator=replay)
            for network in running:
                model, job = models[network], network % JOBS
                rows = order[job, start : start + BATCH]
                if isinstance(method, MCDropout):
                    output = with_dropped(model, x[job, rows], uniform[job], method.rate)
                else:
                    output = model(x[job, rows])
                squares = sum(w.square().sum() for w in model.parameters() if w.ndim == 2)
                decay = DECAYS[network // JOBS]
                loss = 0.5 * nn.functional.mse_loss(output, y[job, rows]) + 0.5 * decay * squares
                optimizers[network].zero_grad()
                loss.backward()
                optimizers[network].step()
        for place, network in enumerate(running):
            assert_same(training.params, place, models[network])
        if epoch == 5:  # the configuration in the middle has finished
            kept = [n for n in running if n // JOBS != 1]
            training.keep(torch.tensor(kept))
            running = kept


@torch.no_grad()
def test_samples_are_those_of_mc_batch_norm_on_the_same_draws():
    method, samples = MCBN(BATCH), 40
    x, y, others = data()
    training = Training(
        method, method.initial(JOBS, FEATURES, WIDTH, seeded()), x, y, DECAYS, seeded()
    )
    with torch.enable_grad():
        for _ in range(5):
            training.epoch()
    found = method.sample(training.params, x, others, samples, seeded())
    replay = seeded()
    draws = [
        [torch.randperm(ROWS, generator=replay)[:BATCH] for _ in range(JOBS)]
        for _ in range(samples)
    ]
    assert found.shape == (JOBS * len(DECAYS), samples, 5)
    assert found.var(1).min() > 0
    for network, predictions in enumerate(found):
        job = network % JOBS
        model = single(training.params, network)
        mc = MCBatchNorm(model, num_estimators=samples, mc_batch_size=BATCH)
        mc.fit([x[job, rows[job]] for rows in draws])
        torch.testing.assert_close(
            predictions, mc.eval()(others[job])[..., 0], atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_dropout_samples_are_those_of_single_networks_on_the_same_draws():
    method, samples = METHODS[1], 20
    x, y, others = data()
    initial = method.initial(JOBS, FEATURES, WIDTH, seeded())
    params = Training(method, initial, x, y, DECAYS[:2], seeded()).params
    found = method.sample(params, x, others, samples, seeded())
    replay = seeded()
    for sample in range(samples):
        uniform = torch.rand(JOBS, 5, FEATURES + 2 * WIDTH, generator=replay)
        for network in range(2 * JOBS):
            job = network % JOBS
            alone = with_dropped(single(params, network), others[job], uniform[job], method.rate)
            torch.testing.assert_close(found[network, sample], alone[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_how_many_samples_run_at_once_changes_nothing(method, monkeypatch):
    x, y, others = data()
    initial = method.initial(JOBS, FEATURES, WIDTH, seeded())
    params = Training(method, initial, x, y, DECAYS, seeded()).params
    at_once = method.sample(params, x, others, 7, seeded())
    monkeypatch.setattr("mcbn.experiments.batched._ROWS", 300)
    torch.testing.assert_close(method.sample(params, x, others, 7, seeded()), at_once)


@pytest.mark.parametrize("method", METHODS)
def test_initial_weights_are_truncated_normal_and_the_seeds_differ(method):
    first, second, last, bias, *norms = method.initial(20, 10, 50, seeded())
    for weight in (first, second, last, bias):
        assert weight.abs().max() <= 0.2
        assert not torch.equal(weight[0], weight[1])
    # A standard normal variable cut at ±2 has a standard deviation of 0.8796.
    assert second.std().item() == pytest.approx(0.08796, rel=0.02)
    assert [param.unique().tolist() for param in norms] == [[1], [0], [1], [0]][: len(norms)]


def test_a_batch_larger_than_the_rows_is_refused():
    x, y, _ = data()
    method = MCBN(ROWS + 1)
    with pytest.raises(ValueError, match="for 19 training rows, wanted at most as many"):
        Training(method, method.initial(JOBS, FEATURES, WIDTH, seeded()), x, y, [0.1], seeded())
