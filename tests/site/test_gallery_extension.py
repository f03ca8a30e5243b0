"""The gallery's own extension, on a project of two small tutorials built in a temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

EXTENSIONS = Path(__file__).resolve().parents[2] / "docs/_ext"

CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
extensions = ["sphinx_gallery.gen_gallery", "mcbn_gallery"]
sphinx_gallery_conf = {{
    "examples_dirs": "../auto_tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": "tutorial_",
    "abort_on_example_error": True,
    "image_scrapers": ("mcbn_gallery.scrape_output", "mcbn_gallery.scrape_figures"),
    "reset_modules": ("matplotlib", "mcbn_gallery.reset"),
    "reset_modules_order": "both",
    "capture_repr": (),
    "write_computation_times": False,
}}
"""

TUTORIAL = '''"""
Title of {name}
===============

An introduction.
"""

with open("{log}", "a") as log:
    log.write("{name} ")

# %%
# A cell.

{code}
'''

TABLE = """
import rich

class Table:
    def _repr_html_(self):
        return "<table><caption>Shown</caption></table>"

print("first")
rich.get_console().print(Table())
rich.get_console().print("second")
"""


class Project:
    """A folder with a gallery; `build` tells which tutorials ran."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root / "ran"
        for folder in ("docs", "mcbn", "auto_tutorials"):
            (root / folder).mkdir()
        (root / "docs/conf.py").write_text(CONF)
        (root / "docs/index.rst").write_text(
            "Site\n====\n\n.. toctree::\n\n   auto_tutorials/index"
        )
        (root / "mcbn/__init__.py").write_text("answer = 41")
        (root / "auto_tutorials/README.rst").write_text("Tutorials\n=========\n")

    def write(self, name: str, code: str) -> None:
        text = TUTORIAL.format(name=name, log=self.log, code=code)
        (self.root / f"auto_tutorials/tutorial_{name}.py").write_text(text)

    def build(
        self, *options: str, ci: str = "false"
    ) -> tuple[list[str], subprocess.CompletedProcess[str]]:
        self.log.write_text("")
        done = subprocess.run(
            [sys.executable, "-m", "sphinx", "-W", "--keep-going", *options, "docs", "html"],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root), "CI": ci},
            capture_output=True,
            text=True,
        )
        return self.log.read_text().split(), done

    def page(self, name: str) -> BeautifulSoup:
        text = (self.root / f"html/auto_tutorials/tutorial_{name}.html").read_text()
        return BeautifulSoup(text, "html.parser")


MISSING = """
import a_package_that_is_not_there

# %%
# The next cell.

print(a_package_that_is_not_there)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_only_what_changed_runs_again(project: Project) -> None:
    project.write("a", "print(1)")
    project.write("b", "print(2)")
    ran, done = project.build()
    assert (ran, done.returncode) == (["a", "b"], 0), done.stderr
    assert project.build()[0] == []
    project.write("b", "print(3)")
    assert project.build()[0] == ["b"]
    (project.root / "mcbn/__init__.py").write_text("answer = 42")
    assert project.build()[0] == ["a", "b"]
    project.write("b", "assert 1 == 2")
    assert project.build()[0] == ["b"]
    assert project.build()[0] == ["b"], "a tutorial that failed has to run again"


def test_a_fast_build_runs_nothing_and_counts_for_nothing(project: Project) -> None:
    for name in ("a", "b"):
        project.write(name, "print('output')")
    project.build()
    project.write("b", "print('changed')")
    ran, done = project.build("-D", "plot_gallery=0")
    assert (ran, done.returncode) == ([], 0), done.stderr
    outputs = [project.page(name).select(".sphx-glr-script-out, .mcbn-run") for name in ("a", "b")]
    assert [len(found) for found in outputs] == [2, 0]
    project.write("b", "print('output')")
    assert project.build()[0] == ["b"], "its page had no output, though its script ran before"


def test_html_stands_where_it_was_printed(project: Project) -> None:
    project.write("a", TABLE)
    _, done = project.build()
    assert done.returncode == 0, done.stderr
    outputs = project.page("a").select("div.sphx-glr-script-out, div.mcbn-output")
    assert [output.get_text().strip() for output in outputs] == ["first", "Shown", "second"]
    assert outputs[1].table is not None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import matplotlib.pyplot as plt\nplt.subplots()", "has no alt text"),
        ("import warnings\nwarnings.warn('an odd thing')", "UserWarning: an odd thing"),
        ("assert 1 + 1 == 3, 'an error of the program'", "AssertionError: an error of the program"),
        ("import torch\nassert torch.ones(2) < 2", "RuntimeError: Boolean value"),
        ("assert float('nan') < 1", "AssertionError: float('nan') < 1: a number is NaN"),
    ],
)
def test_build_fails_with_the_tutorials_own_error(project: Project, code: str, reason: str) -> None:
    project.write("a", code)
    _, done = project.build()
    assert done.returncode != 0
    assert reason in done.stderr
    assert "tutorial_a.py" in done.stderr


def test_a_page_whose_package_is_missing_says_so(project: Project) -> None:
    project.write("a", MISSING)
    project.write("b", "print(2)")
    ran, done = project.build()
    assert (sorted(ran), done.returncode) == (["a", "b"], 0), done.stderr
    (box,) = project.page("a").select("div.mcbn-not-run")
    assert "The package a_package_that_is_not_there is not installed." in box.get_text()
    assert not project.page("a").select(".sphx-glr-script-out")
    assert project.build()[0] == ["a"], "it runs as soon as the package is there"
    _, done = project.build(ci="true")
    assert (done.returncode != 0, "a_package_that_is_not_there" in done.stderr) == (True, True)


@pytest.mark.parametrize("name", ["mcbn.nothing", "os.nothing"])
def test_a_wrong_name_in_a_package_is_an_error(project: Project, name: str) -> None:
    project.write("a", f"import {name}")
    _, done = project.build()
    assert (done.returncode != 0, name in done.stderr) == (True, True)


CLAIMS = """
import torch

print("before")
gains = torch.tensor([0.5, -0.25])
assert (gains > 0).all(), "MCBN is better with every seed"
assert gains.sum() > 0
print("after")
for gain in gains.tolist():
    assert gain < 0.4 < 1
assert all(gain < limit for gain, limit in zip([1, 2], [0, 3]))
"""


def test_a_claim_that_fails_is_shown_where_it_stands(project: Project) -> None:
    project.write("a", CLAIMS)
    project.write("b", "assert 1 < 2")
    ran, done = project.build()
    assert (sorted(ran), done.returncode) == (["a", "b"], 0), done.stderr
    page = project.page("a")
    boxes = page.select("div.mcbn-failed-claim")
    assert [[p.get_text() for p in box.select("p")[1:-1]] for box in boxes] == [
        [
            "MCBN is better with every seed",
            "Expected: (gains > 0).all()",
            "Came out: -0.25 > 0",
        ],
        ["Expected: gain < 0.4 < 1", "Came out: 0.5 < 0.4 < 1"],
        [
            "Expected: all((gain < limit for gain, limit in zip([1, 2], [0, 3])))",
            "Came out: 1 < 0",
        ],
    ]
    outputs = page.select("div.sphx-glr-script-out, div.mcbn-failed-claim")
    order = [output.get_text().strip().split()[0] for output in outputs]
    assert order == ["before", "This", "after", "This", "This"]
    assert not project.page("b").select("div.mcbn-failed-claim")
    last = done.stdout.strip().splitlines()[-5:]
    assert any("3 claims of the tutorials did not hold here" in line for line in last), last
    assert "tutorial_a (3)" in done.stdout
    ran, done = project.build()
    assert (ran, "tutorial_a (3)" in done.stdout) == ([], True), "it is counted until it runs again"


def test_in_ci_a_claim_that_fails_ends_the_build(project: Project) -> None:
    project.write("a", CLAIMS)
    project.write("b", "assert 1 < 2")
    assert project.build()[1].returncode == 0
    ran, done = project.build(ci="true")
    assert (ran, done.returncode != 0) == (["a"], True), "the page with boxes has to run again"
    wanted = "AssertionError: MCBN is better with every seed: (gains > 0).all(): -0.25 > 0"
    assert wanted in done.stderr


KILL = """
import os, signal, sphinx_gallery.gen_rst as gen_rst

plain = {name: getattr(gen_rst, name) for name in ("save_rst_example", "save_notebook")}

def killed_in(name):
    def kill(*args, **options):
        if os.path.exists(name) and "tutorial_b" in str(args):
            os.remove(name)
            os.kill(os.getpid(), signal.SIGKILL)
        return plain[name](*args, **options)
    return kill

for name in plain:
    setattr(gen_rst, name, killed_in(name))
"""


@pytest.mark.parametrize("moment", ["save_rst_example", "save_notebook"])
def test_the_build_after_a_killed_one_makes_the_same_pages(project: Project, moment: str) -> None:
    (project.root / "docs/conf.py").write_text(CONF + KILL)
    project.write("a", "print(1)")
    project.write("b", "print(2)")
    ran, done = project.build()
    assert (ran, done.returncode) == (["a", "b"], 0), done.stderr
    project.write("b", "print(3)")
    (project.root / moment).touch()
    assert project.build()[1].returncode == -9
    ran, done = project.build()
    assert (ran, done.returncode) == (["b"], 0), done.stderr
    assert "3" in project.page("b").select_one("div.sphx-glr-script-out").get_text()
    notebook = project.root / "docs/auto_tutorials/tutorial_b.ipynb"
    assert "print(3)" in notebook.read_text()
    assert project.build()[0] == []
