"""Runs the tests with the oldest and with the newest libraries that ``pyproject.toml`` allows.

    python tests/versions.py FOLDER

FOLDER gets two environments, about 6 GB each; one that is there already is used again. The wheel is
installed into each, and the tests of the sdist are run on it, away from this checkout. What was run
is written to ``docs/guide/versions.csv``.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = [re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]]
PINS = {
    # Matplotlib 3.9 calls what a newer pyparsing warns of.
    "oldest": [line.replace(">=", "==") for line in PROJECT["dependencies"]] + ["pyparsing<3.3"],
    "newest": NAMES,
}


def run_tests(folder: Path, pins: list[str]) -> dict[str, str]:
    """Versions of the libraries and counts of the tests, by name."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    dist = folder / "dist"
    shutil.rmtree(dist, ignore_errors=True)

    def call(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=dist, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    dist.mkdir()
    subprocess.run([python, "-m", "pip", "install", "-q", "hatchling"], check=True)
    subprocess.run([python, "-m", "hatchling", "build", "-d", dist], cwd=ROOT, check=True)
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    call(python, "-m", "pip", "uninstall", "-qy", "mcbn")
    call(python, "-m", "pip", "install", "-q", "-U", f"{wheel}[test]", *pins)
    shutil.unpack_archive(sdist, dist, filter="data")
    tree = sdist.with_name(sdist.name.removesuffix(".tar.gz"))
    shutil.rmtree(tree / "mcbn")
    report = dist / "report.xml"
    tests = subprocess.run(
        [
            *(python.with_name("pytest"), "tests", "--pyargs", "mcbn"),
            *("-q", "-rfE", "--tb=short", f"--junit-xml={report}"),
        ],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    (folder / "tests.log").write_text(tests.stdout, encoding="utf-8")
    counts = dict(re.findall(r' (errors|failures|skipped|tests)="(\d+)"', report.read_text()))
    failed = int(counts["failures"]) + int(counts["errors"])
    passed = int(counts["tests"]) - failed - int(counts["skipped"])
    installed = json.loads(call(python, "-m", "pip", "list", "--format=json"))
    versions = {package["name"].lower(): package["version"] for package in installed}
    return {
        "Python": call(python, "-c", "import platform; print(platform.python_version())").strip(),
        **{name: versions[name] for name in NAMES},
        "Tests passed": str(passed),
        "Tests skipped": counts["skipped"],
        "Tests failed": str(failed),
        "Date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def main() -> None:
    [folder] = map(Path, sys.argv[1:])
    runs = {name: run_tests(folder.resolve() / name, pins) for name, pins in PINS.items()}
    with (ROOT / "docs/guide/versions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["Run", *(name.capitalize() for name in runs)])
        writer.writerows([key, *(run[key] for run in runs.values())] for key in runs["oldest"])
    sys.exit(any(run["Tests failed"] != "0" for run in runs.values()))


if __name__ == "__main__":
    main()
