"""`.ci/release` on a copy of the project, whose build is a stand-in: that takes minutes."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NAMES = ".ci", "pyproject.toml", "CITATION.cff", "CHANGELOG.md", "mcbn/__init__.py"

pytestmark = pytest.mark.skipif(
    not (shutil.which("git") and (ROOT / ".ci/release").exists()), reason="needs git and a checkout"
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "a")
        monkeypatch.setenv(f"{name}_EMAIL", "a@example.org")
    (tmp_path / "mcbn").mkdir()
    for name in NAMES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    text = re.sub(
        r"^## \[.*", "## [0.0.1] - unreleased", changelog.read_text(), count=1, flags=re.MULTILINE
    )
    changelog.write_text(text)
    (tmp_path / ".ci/dist").write_text("#!/bin/sh\nexit 0\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "commit", "-qm", "All"], cwd=tmp_path, check=True)
    return tmp_path


def release(project, *arguments):
    return subprocess.run(
        [".ci/release", *arguments], cwd=project, check=False, capture_output=True, text=True
    )


def output(project, *command):
    return subprocess.check_output(command, cwd=project, text=True)


def test_a_release_writes_one_version_everywhere_and_tags_it(project):
    assert release(project, "3.2.1").returncode == 0
    pyproject = tomllib.loads((project / "pyproject.toml").read_text())
    citation = yaml.safe_load((project / "CITATION.cff").read_text())
    source, news = ((project / name).read_text() for name in ("mcbn/__init__.py", "CHANGELOG.md"))
    heading = re.search(r"^## \[(.*)\] - (.*)$", news, re.MULTILINE)
    assert '\n__version__ = "3.2.1"\n' in source
    assert pyproject["project"]["version"] == citation["version"] == heading[1] == "3.2.1"
    assert citation["date-released"] == heading[2]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", heading[2])
    assert output(project, "git", "describe", "--exact-match").strip() == "v3.2.1"
    assert output(project, "git", "status", "--porcelain") == ""
    # What is new in the next one has not been written down.
    assert "unreleased" in release(project, "3.2.2").stderr


@pytest.mark.parametrize(
    ("arguments", "before", "said"),
    [
        ([], None, "got the version ''"),
        (["1.2"], None, "got the version '1.2'"),
        (["v1.2.3"], None, "got the version 'v1.2.3'"),
        (["1.2.3"], "echo >> CHANGELOG.md", "not committed"),
        (["1.2.3"], "git tag v1.2.3", "exists already"),
    ],
)
def test_a_release_is_refused_in_words(project, arguments, before, said):
    if before:
        subprocess.run(before, shell=True, cwd=project, check=True)
    status = output(project, "git", "status", "--porcelain")
    run = release(project, *arguments)
    assert run.returncode != 0
    assert said in run.stderr
    assert output(project, "git", "status", "--porcelain") == status


def test_a_release_that_cannot_be_built_leaves_no_trace(project):
    (project / ".ci/dist").write_text("#!/bin/sh\nexit 7\n")
    subprocess.run(["git", "commit", "-qam", "It fails"], cwd=project, check=True)
    commit = output(project, "git", "rev-parse", "HEAD")
    assert release(project, "3.2.1").returncode == 7
    assert output(project, "git", "rev-parse", "HEAD") == commit
    assert output(project, "git", "tag") == output(project, "git", "status", "--porcelain") == ""
