"""The command itself, on two small tables and a tiny grid: what it writes, and that it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mcbn.data.files import write_whole
from mcbn.experiments.data import load
from mcbn.experiments.protocol import METHODS, Evaluation, Settings, Validation
from mcbn.experiments.store import Journal
from mcbn.experiments.table import PUBLISHED, normalized
from mcbn.experiments.uci import Configuration, main, read_results, stored_tests

TINY = [
    *("--splits=2", "--seeds=2", "--max-epochs=40", "--samples=20", "--cv-samples=3"),
    *("--decays", "1e-2", "1e-5", "--batch-sizes", "8", "16", "512", "--rates", "0.1", "0.01"),
]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    for name, rows in {"wave": 60, "plane": 72}.items():
        x = rng.uniform(size=(rows, 3))
        y = np.sin(6 * x.sum(1, keepdims=True)) if name == "wave" else x @ [[1], [2], [3]]
        np.savetxt(folder / f"{name}.txt", np.hstack([x, y + 0.1 * rng.normal(size=y.shape)]))
    return [str(folder / "wave.txt"), str(folder / "plane.txt")]


@pytest.fixture(scope="module")
def finished(tables, tmp_path_factory):
    """The result file of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("finished") / "result.json"
    main([*tables, *TINY, "--processes", "1", "--out", str(out)])
    return out


def command(out, tables):
    arguments = [*tables, *TINY, "--out", str(out), "--processes", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "mcbn.experiments.uci", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of(out):
    journal = out.with_suffix(".jsonl")
    return journal.read_text().splitlines() if journal.exists() else []


def test_the_result_file_holds_every_run_and_how_it_was_made(finished):
    results = read_results(finished)
    assert set(results) == {"wave", "plane"}
    assert results["wave"]["rows"] == 60
    for entry in results.values():
        assert entry["configuration"]["decays"] == [1e-2, 1e-5]
        assert entry["configuration"]["settings"]["num_samples"] == 20
        assert set(entry["versions"]) == {"python", "torch"}
        for method in METHODS:
            found = entry[method]
            # 512 rows are more than a fold has.
            assert found["strengths"] == ([8, 16] if method == "mcbn" else [0.1, 0.01])
            assert np.shape(found["grid"]) == (2, 2, 2)
            assert np.shape(found["std"]) == np.shape(found["error"]) == (10,)
            assert all(np.shape(values) == (2, 2) for values in found["runs"].values())
            assert all(len(values) == 2 for values in found["selected"].values())
            for score in ("crps", "pll"):
                assert normalized(found["runs"], score).isfinite().all()
                assert normalized(found["runs"], score).max() < 100


def test_a_stored_test_runs_again_and_finds_what_is_stored(finished, tables):
    results = read_results(finished)
    for method in METHODS:
        stored = results["wave"][method]["runs"]
        for index, unit in enumerate(stored_tests("wave", method, results)):
            again = unit.run(*load(tables[0]))
            for name, values in stored.items():
                assert again[name] == pytest.approx(values[index], rel=1e-4)


def test_the_results_that_come_with_the_package_are_complete():
    results = read_results()
    assert set(results) == set(PUBLISHED)
    for name, entry in results.items():
        assert entry["configuration"]["settings"]["num_samples"] == 500
        for method in METHODS:
            runs = entry[method]["runs"]
            assert all(np.shape(values) == (5, 5) for values in runs.values())
            for score, sign in (("crps", 1), ("pll", -1)):
                own, optimum = (sign * np.array(runs[score + end]) for end in ("", "_optimum"))
                assert (own > optimum).all()
            tests = stored_tests(name, method)
            assert [test.split for test in tests] == [1, 2, 3, 4, 5]
            assert {test.strength for test in tests} <= set(entry[method]["strengths"])
            for test, grid in zip(tests, entry[method]["grid"], strict=True):
                strength = entry[method]["strengths"].index(test.strength)
                decay = entry["configuration"]["decays"].index(test.decay)
                assert grid[strength][decay] == np.min(grid)
    papers_grid = json.loads(json.dumps(asdict(Configuration())))
    for name in ("boston", "concrete", "energy", "wine", "yacht"):
        assert results[name]["configuration"] == papers_grid


def test_the_journal_has_each_unit_once_and_the_selection_follows_from_it(finished):
    entries = [json.loads(line) for line in lines_of(finished)]
    units = [json.dumps(entry["unit"], sort_keys=True) for entry in entries]
    # 2 tables × 2 methods × 2 splits × (2 strengths and a test)
    assert len(units) == len(set(units)) == 24
    [wave] = [
        entry["unit"]
        for entry in entries
        if entry["unit"]["kind"] == "Evaluation"
        and (entry["unit"]["data"], entry["unit"]["method"], entry["unit"]["split"])
        == ("wave", "mcbn", 2)
    ]
    tried = {
        (rmse, entry["unit"]["strength"], decay)
        for entry in entries
        if entry["unit"]["kind"] == "Validation"
        and (entry["unit"]["data"], entry["unit"]["method"], entry["unit"]["split"])
        == ("wave", "mcbn", 2)
        for rmse, decay in zip(entry["result"]["rmse"], entry["unit"]["decays"], strict=True)
    }
    assert min(tried)[1:] == (wave["strength"], wave["decay"])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not_killed(
    finished, tables, tmp_path, capsys
):
    out = tmp_path / "result.json"
    killed = command(out, tables)
    deadline = time.monotonic() + 120
    while len(lines_of(out)) < 9 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = children(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    before = lines_of(out)
    assert 9 <= len(before) < 24
    wait_for_the_end_of(workers)
    with out.with_suffix(".jsonl").open("a") as journal:
        journal.write(before[0][:50])  # as if it had been killed while it wrote

    main([*tables, *TINY, "--processes", "1", "--out", str(out)])
    printed, errors = capsys.readouterr()
    assert errors == ""  # no bar, as there is no terminal
    assert "wave, MCBN" in printed
    after = lines_of(out)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 24
    assert out.read_bytes() == finished.read_bytes()  # though it had two processes at first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.jsonl"]


def children(process):
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def wait_for_the_end_of(processes):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(map(is_running, processes)):
        time.sleep(0.05)
    assert not any(map(is_running, processes))


def is_running(process):
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_second_run_computes_nothing_and_other_settings_are_not_mixed_up(
    finished, tables, tmp_path, monkeypatch
):
    out = tmp_path / "result.json"
    out.with_suffix(".jsonl").write_text("\n".join(lines_of(finished)) + "\n")
    monkeypatch.setattr(Validation, "run", None)
    monkeypatch.setattr(Evaluation, "run", None)
    arguments = [*TINY, "--processes", "1", "--out", str(out)]
    main([*tables, *arguments])
    assert out.read_bytes() == finished.read_bytes()
    with pytest.raises(TypeError):  # it has to compute, and cannot
        main([*tables, *arguments, "--seed", "1"])


def test_a_run_keeps_the_other_data_sets_of_the_result_file(finished, tables, tmp_path):
    out = tmp_path / "result.json"
    out.with_suffix(".jsonl").write_text("\n".join(lines_of(finished)) + "\n")
    for table in reversed(tables):
        main([table, *TINY, "--processes", "1", "--out", str(out)])
    assert out.read_bytes() == finished.read_bytes()


def unit(**changes):
    given = {"data": "wave", "table": "", "method": "mcbn", "strength": 8, "split": 1, **changes}
    return Validation(**given, settings=Settings(), decays=(0.1,))


def test_a_tilde_is_the_home_folder(tables, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    few = ["--splits=1", "--seeds=1", "--decays", "1e-2", "--batch-sizes", "8", "--rates", "0.1"]
    (tmp_path / "own.txt").write_text(Path(tables[0]).read_text())
    main(["~/own.txt", *TINY, *few, "--processes", "1", "--out", "~/results/r.json"])
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json*"))
    assert files == ["results/r.json", "results/r.jsonl"]
    assert list(read_results("~/results/r.json")) == ["own"]
    assert len(Journal("~/results/r.jsonl")._records) == len(
        (tmp_path / "results/r.jsonl").read_text().splitlines()
    )


def test_a_journal_finds_what_was_written_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    Journal(path).add(unit(), {"rmse": [0.1 + 0.2]})
    journal = Journal(path)
    assert journal.get(unit()) == {"rmse": [0.1 + 0.2]}
    assert journal.get(unit(split=2)) is journal.get(unit(strength=16)) is None
    journal.add(unit(), {"rmse": [7.0]})  # by a second program at the same time
    assert Journal(path).get(unit()) == journal.get(unit()) == {"rmse": [0.1 + 0.2]}


def test_a_line_that_was_cut_short_is_dropped_and_one_in_the_middle_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).add(unit(), {"rmse": []})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    assert Journal(path).get(unit()) == {"rmse": []}
    assert path.read_bytes() == whole
    path.write_bytes(whole + whole[:30] + b"\n" + whole)
    with pytest.raises(ValueError, match=r"journal.jsonl, line 2 is no entry of a journal"):
        Journal(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_whole(path, b"old")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, b"new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_the_papers_grid_is_the_default():
    configuration = Configuration()
    assert configuration.decays == pytest.approx([10.0**-power for power in range(1, 16)])
    groups = list(configuration.validations("yacht", "", 308))
    assert len(groups) == 10
    assert [unit.strength for unit in groups[0]] == [32, 64, 128]
    assert [unit.strength for unit in groups[9]] == [0.2, 0.1, 0.05, 0.01, 0.005, 0.001]
    assert [group[0].split for group in groups] == [1, 2, 3, 4, 5] * 2
    with pytest.raises(ValueError, match="num_splits=0; it must be at least 1"):
        Configuration(num_splits=0)
    with pytest.raises(ValueError, match="toy leaves 32 training rows in a fold, but the batch"):
        list(configuration.validations("toy", "", 50))
