"""How fast the grid of the paper's table trains, next to the same networks one by one.

For each M of MCBN and each rate of MC dropout on Yacht: epochs of the 75 networks of a
cross-validation (15 weight decays, five folds) as one, and epochs of one such network as anybody
would write it. The ratio is the time of 75 single ones over that of the stack::

    MCBN_DATA=data python tests/benchmarks/experiments.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich import print
from rich.table import Table
from torch import nn

from mcbn.experiments.batched import MCBN, Training
from mcbn.experiments.data import load
from mcbn.experiments.protocol import Validation, fold_rows, split_rows, standardized
from mcbn.experiments.uci import Configuration

Epoch = Callable[[], None]


def seconds(run: Epoch) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def stacked(unit: Validation, x: torch.Tensor, y: torch.Tensor) -> Epoch:
    """An epoch of all networks of the unit."""
    generator = unit.generator("start")
    initial = unit.network.initial(len(x), x.shape[2], 50, generator)
    return Training(unit.network, initial, x, y, unit.decays, generator).epoch


def alone(unit: Validation, x: torch.Tensor, y: torch.Tensor) -> Epoch:
    """An epoch of one of them."""
    network, width, layers = unit.network, 50, []
    for inputs in (x.shape[1], width):
        if isinstance(network, MCBN):
            layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        else:
            layers += [nn.Dropout(network.rate), nn.Linear(inputs, width, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": weights, "weight_decay": 1e-3}, {"params": others}]
    optimizer, loss = torch.optim.Adam(groups, lr=1e-3), nn.MSELoss()

    def epoch() -> None:
        for rows in torch.randperm(len(x)).split(network.batch_size):
            if len(rows) == network.batch_size:
                optimizer.zero_grad()
                (0.5 * loss(model(x[rows]), y[rows])).backward()
                optimizer.step()

    return epoch


def main() -> None:
    configuration = Configuration(num_splits=1)
    _, features, target = load("yacht")
    groups = configuration.validations("yacht", "", len(target))
    rows = fold_rows(split_rows(len(target), split=1)[0], configuration.settings.num_folds)
    part = standardized(features, target, *rows)
    table = Table("M or rate", "as one, µs a step of a network", "one by one", "ratio")
    totals = [0.0, 0.0]
    for unit in (unit for group in groups for unit in group):
        both = stacked(unit, part.x, part.y), alone(unit, part.x[0], part.y[0])
        networks = len(unit.decays) * len(part.x)
        times = [[seconds(epoch) for epoch in both] for _ in range(args.repeats + 1)][1:]
        together, single = map(statistics.median, zip(*times, strict=True))
        steps = part.x.shape[1] // unit.network.batch_size
        seen = 1e6 * together / networks / steps, 1e6 * single / steps
        ratio = f"{seen[1] / seen[0]:.1f}"
        table.add_row(f"{unit.strength:g}", *(f"{value:.0f}" for value in seen), ratio)
        totals = [totals[0] + together, totals[1] + single * networks]
    table.add_row("an epoch of all, s", *(f"{t:.2f}" for t in totals), "")
    print(table, f"ratio {totals[1] / totals[0]:.1f}, asked ≥ 10")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    main()
