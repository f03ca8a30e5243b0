"""What is built to be installed: the wheel and the sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from mcbn.data.files import SHIPPED_FASHION, SHIPPED_MNIST

pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")

ROOT = Path(__file__).resolve().parent.parent


def build(source: Path, target: Path, *kinds: str) -> None:
    options = [option for kind in kinds for option in ("-t", kind)]
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *options]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Python 3.11 has filters since its fourth release.
FILTER: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and, unpacked, the sdist."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "wheel", "sdist")
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", **FILTER)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    [archive] = built.glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    [folder] = (built / "unpacked").iterdir()
    return folder


def package_files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in (root / "mcbn").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_with_its_sample_and_licences(wheel):
    files = package_files(ROOT)
    assert {name: wheel[name] for name in wheel if name.startswith("mcbn/")} == files
    sample = {f"mcbn/data/sample/{name}" for name in SHIPPED_MNIST + SHIPPED_FASHION}
    assert sample | {"mcbn/py.typed"} <= set(files)
    others = {name.split("/", 1)[1]: name for name in wheel if not name.startswith("mcbn/")}
    licences = {"licenses/LICENSE", "licenses/mcbn/data/sample/LICENSES.md"}
    assert set(others) == {"METADATA", "RECORD", "WHEEL", *licences}
    for licence in licences:
        assert wheel[others[licence]] == (ROOT / licence.removeprefix("licenses/")).read_bytes()


def test_the_wheel_says_what_it_needs(wheel):
    [name] = [name for name in wheel if name.endswith("/METADATA")]
    metadata: Message = Parser().parsestr(wheel[name].decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(needed) == sorted(project["dependencies"])
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_sdist_holds_what_is_needed_to_test_it_and_to_build_the_site(sdist):
    assert package_files(sdist) == package_files(ROOT)
    for pattern in ("tests/**/*.py", "auto_tutorials/**/*.py", "docs/guide/*", "docs/_ext/*.py"):
        ours = {path.relative_to(ROOT) for path in ROOT.glob(pattern)}
        assert ours == {path.relative_to(sdist) for path in sdist.glob(pattern)}
    for name in ("LICENSE", "README.md", "CITATION.cff", "pyproject.toml", "docs/conf.py"):
        assert (sdist / name).read_bytes() == (ROOT / name).read_bytes()
    parts = {part for path in sdist.rglob("*") for part in path.relative_to(sdist).parts}
    assert not parts & {"__pycache__", "_build", ".venv", "lightning_logs", ".git"}


def test_the_wheel_made_from_the_sdist_is_the_same(sdist, wheel, tmp_path):
    build(sdist, tmp_path, "wheel")
    [archive] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        assert {name: file.read(name) for name in file.namelist()} == wheel
