"""The tool that runs the tutorials with other seeds, on a folder with two small scripts."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("claims.py")

COIN = '''
"""A title."""
import torch

generator = torch.Generator().manual_seed(3)
seed = torch.initial_seed()
torch.manual_seed(5)
assert torch.initial_seed() == generator.initial_seed() + 2
assert torch.initial_seed() < 2000, "this falls with the third seed"
for limit in (0, torch.initial_seed() - 7):
    assert limit > -10
assert (torch.ones(3) <= torch.tensor([1, 2, 3])).all()
'''


@pytest.fixture
def measure(tmp_path: Path):
    (tmp_path / "scripts").mkdir()

    def measure(*options: str, code: str = COIN) -> tuple[str, list[dict[str, str]]]:
        script = tmp_path / "scripts/tutorial_coin.py"
        script.write_text(code)
        files = {"--scripts": "scripts", "--journal": "runs.jsonl", "--report": "claims.csv"}
        places = [part for name, file in files.items() for part in (name, str(tmp_path / file))]
        done = subprocess.run(
            [sys.executable, TOOL, *places, *options], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        with (tmp_path / "claims.csv").open() as file:
            return done.stdout, list(csv.DictReader(file))

    return measure


def test_each_claim_is_measured_over_the_seeds(measure, tmp_path: Path) -> None:
    printed, rows = measure("--seeds", "3")
    assert printed.count("coin, seed") == 3
    assert "torch.initial_seed() < 2000" in printed.split("seed 2")[1]
    by_claim = {row["claim"]: row for row in rows}
    assert len(by_claim) == 3, "the assert of equality is no claim"
    falling = by_claim["torch.initial_seed() < 2000"]
    assert (falling["runs"], falling["held"]) == ("3", "2")
    margins = [1995.0, 995.0, -5.0]
    assert float(falling["least margin"]) == margins[2]
    assert float(falling["mean"]) == margins[1]
    assert float(falling["sd"]) == 1000
    assert by_claim["limit > -10"]["sds"] == "1.01", "of the turn that is closest in sds"
    summary = (tmp_path / "claims_summary.csv").read_text().splitlines()
    assert summary[1].startswith("coin,its own,3,3,3,2,")


def test_it_goes_on_where_it_was(measure) -> None:
    assert measure("--seeds", "1")[0].count("seed") == 1
    printed, rows = measure("--seeds", "2")
    assert "seed 1" in printed
    assert "seed 0" not in printed
    assert {row["runs"] for row in rows} == {"2"}
    printed, rows = measure("--seeds", "1", code="'''Other text.'''" + COIN.split('"""', 2)[2])
    assert printed == "", "another text is no other code"
    printed, rows = measure("--seeds", "1", code=COIN.replace("-10", "-20"))
    assert printed.count("seed") == 1
    assert {row["runs"] for row in rows} == {"1"}


def test_runs_side_by_side_are_the_runs_one_by_one(measure, tmp_path: Path) -> None:
    _, alone = measure("--seeds", "4")
    (tmp_path / "runs.jsonl").rename(tmp_path / "alone.jsonl")
    printed, rows = measure("--seeds", "4", "--jobs", "3")
    assert printed.count("coin, seed") == 4
    assert rows == alone
    beside, journal = ((tmp_path / f"{name}.jsonl").read_text() for name in ("alone", "runs"))
    (tmp_path / "runs.jsonl").write_text(beside + journal)
    assert measure("--seeds", "0")[1] == alone, "a run that is there twice counts once"
    (tmp_path / "runs.jsonl").write_text(beside + journal.replace('"cpu": "', '"cpu": "other '))
    assert {row["runs"] for row in measure("--seeds", "0")[1]} == {"8"}
    assert "coin,its own,3,4,8,2," in (tmp_path / "claims_summary.csv").read_text()


def test_no_run_is_started_after_the_time(measure) -> None:
    printed, rows = measure("--seeds", "4", "--minutes", "0")
    assert (printed, rows) == ("", [])


def test_an_error_is_told(measure) -> None:
    printed, rows = measure("--seeds", "1", code=COIN + "\nraise ValueError('a bug')")
    assert "ValueError: a bug" in printed
    assert rows == []
