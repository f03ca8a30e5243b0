"""A tutorial's page, its script run alone, and its notebook print the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

BOXES = re.compile(r"[\u2500-\u257f]")  # the lines that rich draws around a table
# Times and memory differ from run to run.
MEASURED = re.compile(r"[\d,.]+\s*(?:ms|s|seconds|MB|MiB|GB|GiB|images/s|\u00d7)(?!\w)")


def words(text: str) -> list[str]:
    return MEASURED.sub("…", BOXES.sub(" ", text)).split()


def markup_text(markup: str) -> str:
    return BeautifulSoup(markup, "html.parser").get_text(" ")


def page_output(soup: BeautifulSoup) -> str:
    outputs = soup.select("div.sphx-glr-script-out, div.mcbn-output")
    # A <pre> is split into spans by the highlighter, the cells of a table are words of their own.
    return "\n".join(o.get_text(" " if o.table else "") for o in outputs)


def cell_output(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    data = output.get("data", {}) if output.output_type == "display_data" else {}
    if "image/png" in data:
        return ""
    return markup_text(data["text/html"]) if "text/html" in data else data.get("text/plain", "")


@pytest.fixture(autouse=True)
def as_in_the_build(monkeypatch: pytest.MonkeyPatch, parse, tutorial: str) -> None:
    """The digits are read from where the build of the site did, with its number of threads."""
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("MCBN_DATA", os.environ.get("MCBN_DATA", str(root / "data")))
    if threads := re.search(r"CPU, (\d+) threads", parse(tutorial).select_one(".mcbn-run").text):
        monkeypatch.setenv("OMP_NUM_THREADS", threads[1])
    # A thread that waits leaves its core to what the other worker runs.
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def on_page(parse, tutorial: str) -> list[str]:
    return words(page_output(parse(tutorial)))


@pytest.fixture
def download(site: Path, parse, tutorial: str):
    def download(suffix: str) -> Path:
        (link,) = parse(tutorial).select(f'.sphx-glr-footer-example a[href$="{suffix}"]')
        return (site / tutorial).parent.joinpath(link["href"]).resolve()

    return download


def test_script_prints_what_the_page_shows(on_page, download, tmp_path: Path) -> None:
    assert on_page
    done = subprocess.run(
        [sys.executable, download(".py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert words(done.stdout) == on_page
    assert done.stderr == ""


def test_notebook_prints_what_the_page_shows(on_page, download, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(download(".ipynb"), as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert words("\n".join(map(cell_output, outputs))) == on_page
