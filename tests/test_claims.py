"""The tool that runs the tutorials with other seeds, on a folder with one small script."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
import sys
from pathlib import Path

import claims
import pytest

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


Measured = tuple[str, list[dict[str, str]]]


def measure(folder: Path, *options: str, code: str = COIN) -> Measured:
    """What the tool prints, and the rows of its report."""
    (folder / "scripts").mkdir(exist_ok=True)
    (folder / "scripts/tutorial_coin.py").write_text(code)
    files = {"--scripts": "scripts", "--journal": "runs.jsonl", "--report": "claims.csv"}
    places = [part for name, file in files.items() for part in (name, str(folder / file))]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", ["claims.py", *places, *options])
        claims.main()
    with (folder / "claims.csv").open() as file:
        return said.getvalue(), list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("three")


@pytest.fixture(scope="module")
def three(folder: Path) -> Measured:
    """Three runs, one by one."""
    return measure(folder, "--seeds", "3")


def test_each_claim_is_measured_over_the_seeds(three: Measured, folder: Path) -> None:
    printed, rows = three
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
    summary = (folder / "claims_summary.csv").read_text().splitlines()
    assert summary[1].startswith("coin,its own,3,3,3,2,")


def test_it_goes_on_where_it_was(three: Measured, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "runs.jsonl", tmp_path)
    printed, rows = measure(tmp_path, "--seeds", "4")
    assert printed.count("coin, seed") == printed.count("coin, seed 3") == 1
    assert {row["runs"] for row in rows} == {"4"}
    other_text = "'''Other text.'''" + COIN.split('"""', 2)[2]
    assert measure(tmp_path, "--seeds", "1", code=other_text)[0] == ""
    printed, rows = measure(tmp_path, "--seeds", "1", code=COIN.replace("-10", "-20"))
    assert printed.count("seed") == 1
    assert {row["runs"] for row in rows} == {"1"}


def test_runs_side_by_side_are_the_runs_one_by_one(
    three: Measured, folder: Path, tmp_path: Path
) -> None:
    printed, rows = measure(tmp_path, "--seeds", "3", "--jobs", "3")
    assert printed.count("coin, seed") == 3
    assert rows == three[1]
    alone, journal = ((path / "runs.jsonl").read_text() for path in (folder, tmp_path))
    (tmp_path / "runs.jsonl").write_text(alone + journal)
    assert measure(tmp_path, "--seeds", "0")[1] == rows, "a run that is there twice counts once"
    (tmp_path / "runs.jsonl").write_text(alone + journal.replace('"cpu": "', '"cpu": "other '))
    assert {row["runs"] for row in measure(tmp_path, "--seeds", "0")[1]} == {"6"}
    assert "coin,its own,3,3,6,2," in (tmp_path / "claims_summary.csv").read_text()


def test_no_run_is_started_after_the_time(tmp_path: Path) -> None:
    assert measure(tmp_path, "--seeds", "4", "--minutes", "0") == ("", [])


def test_an_error_is_told(tmp_path: Path) -> None:
    code = COIN + "\nraise ValueError('a bug')"
    printed, rows = measure(tmp_path, "--seeds", "1", code=code)
    assert "ValueError: a bug" in printed
    assert rows == []
