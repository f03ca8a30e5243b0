import csv
import re
import textwrap
from pathlib import Path
from statistics import median

import pytest

GUIDE = Path(__file__).resolve().parent.parent / "docs/guide"


def code_of(page):
    text = (GUIDE / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?: .*\n|\n)+)", text, flags=re.MULTILINE)
    return "\n".join(map(textwrap.dedent, blocks))


def test_the_code_on_the_page_of_the_datamodules_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code_of("datamodules.rst"), found)
    assert found["images"].shape == (100, 1, 28, 28)
    assert found["features"].shape == (32, 10)
    assert found["results"]["test/cls/Acc"] > 0.9
    assert len(found["datamodule"].dataset("val")) == 400


def test_the_figures_of_which_method_are_those_of_its_table():
    """The changes of the NLL in the text, all with three places, stand in the table."""
    text = (GUIDE / "which_method.rst").read_text(encoding="utf-8")
    table = (GUIDE / "which_method.csv").read_text(encoding="utf-8")
    figures = set(re.findall(r"\b0\.\d{3}\b", text))
    assert len(figures) >= 6
    assert not {figure for figure in figures if not re.search(rf"[−+]{figure} ±", table)}


def test_the_code_on_the_page_of_other_libraries_runs():
    pytest.importorskip("transformers")
    found = {}
    exec(code_of("other_libraries.rst"), found)
    assert type(found["output"]).__name__ == "ImageClassifierOutputWithNoAttention"
    assert found["output"].logits.shape == (4, 2, 2)
    with found["mc"].deterministic(), found["torch"].no_grad():
        assert found["mc"](**found["batches"][0]).logits.shape == (16, 2)


def test_what_a_prediction_costs_is_what_the_census_measured():
    with (GUIDE / "census.csv").open(encoding="utf-8", newline="") as file:
        timed = [row for row in csv.DictReader(file) if row["ratio"]]
    ratios, kept = (
        [float(row[column]) for row in timed] for column in ("ratio", "ratio, memory kept")
    )
    slower, kept_slower = (sum(each < 0.95 for each in column) for column in (ratios, kept))
    text = " ".join((GUIDE.parent / "index.rst").read_text(encoding="utf-8").split())
    assert f"the median of :doc:`{len(ratios)} networks" in text
    assert f"took {median(ratios):.2f} times as long as eight estimators" in text
    assert f"but with {slower} of them the estimators were more than 5 % slower" in text
    assert f"make these {median(kept):.2f} and {kept_slower}" in text

    lost = [row for row in timed if row["path"] == "vmap" and float(row["ratio"]) < 0.95]
    won = sum(float(row["ratio, memory kept"]) > 1 for row in lost)
    text = " ".join((GUIDE / "performance.rst").read_text(encoding="utf-8").split())
    assert f"Without, {len(lost)} networks under vmap took over 5 % longer" in text
    assert f"with these settings, {won} of them are faster than the loop" in text
