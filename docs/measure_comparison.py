"""Run the methods of the comparison with many seeds, and store the scores that its page shows.

The methods are those of the page: its script is executed as far as its last function, and gets
other data where they are asked for. A seed that is stored is not run again::

    python docs/measure_comparison.py digits --seeds 10
    MCBN_DATA=FOLDER python docs/measure_comparison.py MNIST --seeds 10 --jobs 10
    python docs/measure_comparison.py vowels --seeds 10 --folder FOLDER

Another file than the package's is written with ``--out``.

``vowels`` are Japanese vowels of nine speakers, ``JapaneseVowels_eq_TRAIN.ts`` and ``_TEST.ts`` as
they come with the package ``aeon``.
"""

from __future__ import annotations

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcbn import MNISTDataModule

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "auto_tutorials/Bayesian_Methods/tutorial_comparison.py"
STORED = ROOT / "mcbn/experiments/results/comparison.csv"
HEADER = "data", "seed", "method", "trainings", "passes", "Acc", "NLL", "ECE", "AURC", "AUROC"
GUIDE = ROOT / "docs/guide/which_method.csv"


def page() -> dict[str, Any]:
    methods, _ = PAGE.read_text(encoding="utf-8").split("# %%\n# Results of ten seeds")
    namespace: dict[str, Any] = {}
    exec(compile(methods, PAGE, "exec"), namespace)
    return namespace


def mnist() -> dict[str, Any]:
    """58,000 digits to train on, 2,000 to choose with, 10,000 to test: two epochs, as usual."""
    datamodule = MNISTDataModule(source="full", batch_size=10_000, random_crop=False)
    images, labels = datamodule.dataset("train").__getitems__(range(60_000))
    [test] = datamodule.test_dataloader()
    [(garments, _)] = datamodule.ood_dataloader()
    parts = parts_of((images[:58_000], labels[:58_000]), (images[58_000:], labels[58_000:]), test)
    return parts | {"garments": garments[:2000], "epochs": 2, "batch_size": 128}


def parts_of(*parts: tuple[Tensor, Tensor]) -> dict[str, Any]:
    return {
        f"{part}_{what}": values
        for part, both in zip(("train", "val", "test"), parts, strict=True)
        for what, values in zip(("images", "labels"), both, strict=True)
    }


def vowels(folder: Path) -> dict[str, Any]:
    """10 utterances a speaker to train on, 20 to choose with; foreign ones are run backwards."""
    (images, labels), (test, test_labels) = (
        read_series(folder / f"JapaneseVowels_eq_{part}.ts") for part in ("TRAIN", "TEST")
    )
    kept = torch.arange(len(images)) % 3 == 0  # the file goes speaker by speaker
    mean, std = images[kept].mean((0, 2), keepdim=True), images[kept].std((0, 2), keepdim=True)
    images, test = (images - mean) / std, (test - mean) / std
    parts = (images[kept], labels[kept]), (images[~kept], labels[~kept]), (test, test_labels)
    return parts_of(*parts) | {
        "garments": test.flip(-1),
        "epochs": 90,
        "batch_size": 16,
        "network": series_network,
        "shift": lambda series, most: series.roll(int(torch.randint(-most, most + 1, ())), -1),
    }


def read_series(path: Path) -> tuple[Tensor, Tensor]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split(":") for line in lines if line[0] not in "@#"]
    series = [[list(map(float, channel.split(","))) for channel in row[:-1]] for row in rows]
    return torch.tensor(series), torch.tensor([int(row[-1]) - 1 for row in rows])


def series_network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv1d(12, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(32, 64, 3, padding=1), nn.BatchNorm1d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 9)),
    )


def run(data: str, seed: int, folder: Path) -> list[list[Any]]:
    torch.set_num_threads(1)
    namespace = page()
    if data != "digits":
        namespace |= mnist() if data == "MNIST" else vowels(folder)
    return [
        [data, seed, name, trainings, passes, *(f"{score:.5f}" for score in scores)]
        for (name, passes), (trainings, scores) in namespace["run"](seed).items()
    ]


def write_guide(rows: list[list[Any]]) -> None:
    """The table of the guide: by how much a method changes the NLL, at its own cost."""
    nll: dict[tuple[str, str], list[float]] = {}
    costs: dict[str, tuple[str, str]] = {}
    for data, _, method, trainings, passes, _, value, *_ in rows:
        if str(passes) != "5" or "ensemble" in method:
            nll.setdefault((method, data), []).append(float(value))
            costs[method] = str(trainings), str(passes)
    kinds = list(dict.fromkeys(data for _, data in nll))
    lines = [["Method", "Trainings", "Passes", *kinds]]
    interval = page()["interval"]
    for method in costs:
        if method == "plain":
            of_data = [f"{torch.tensor(nll[method, data]).mean():.3f}" for data in kinds]
        else:
            plain = {data: torch.tensor(nll["plain", data]) for data in kinds}
            paired = (interval(torch.tensor(nll[method, data]) - plain[data]) for data in kinds)
            of_data = [f"{mean:+.3f} ± {half:.3f}".replace("-", "−") for mean, half in paired]
        lines.append([method, *costs[method], *of_data])
    with GUIDE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Store the scores of the comparison.")
    parser.add_argument("data", choices=["digits", "MNIST", "vowels"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="how many seeds at once")
    parser.add_argument("--out", type=Path, default=STORED, help="the file of the scores")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the vowels are")
    options = parser.parse_args()
    rows: list[list[Any]] = []
    if options.out.exists():
        with options.out.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
    stored = {(data, int(seed)) for data, seed, *_ in rows}
    missing = [seed for seed in range(options.seeds) if (options.data, seed) not in stored]
    with ProcessPoolExecutor(options.jobs) as pool:
        running = [pool.submit(run, options.data, seed, options.folder) for seed in missing]
        for done in as_completed(running):
            rows += done.result()
            rows.sort(key=lambda row: (row[0], int(row[1])))
            with options.out.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
            print(f"{options.data}, seed {done.result()[0][1]}", flush=True)
    if options.out == STORED:
        write_guide(rows)


if __name__ == "__main__":
    main()
