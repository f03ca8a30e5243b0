import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mcbn

# What each room takes from others, from the ground up; all may take from checks and terminal.
ROOMS = {
    "data": set(),
    "predictive": set(),
    "results": set(),
    "plotting": set(),
    "metrics": {"predictive"},
    "training": {"data", "metrics", "predictive", "results"},
    "method": {"data"},
    "diagnostics": {"method", "predictive"},
    "experiments": {"data", "metrics", "predictive", "results"},
}
GROUND = {"checks", "terminal"}
FIGURE = Path(__file__).resolve().parent.parent / "docs/_static/rooms.svg"


# Lightning's own import does draw from Python's generator.
IMPORTS = """
import json, random, sys
import lightning.pytorch, numpy, torch

def states():
    return torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate()

torch.manual_seed(1), numpy.random.seed(1), random.seed(1)
before = states()
import {modules}
print(json.dumps([states() == before, [getattr(mcbn, n).__name__ for n in mcbn.__all__]]))
"""


def run(code: str) -> Any:
    command = [sys.executable, "-W", "error", "-c", code]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def test_import_mcbn_imports_nothing_heavy_but_torch() -> None:
    names = "[*{name.split('.')[0] for name in sys.modules}]"
    code = f"import json, sys, torch; a = {names}; import mcbn; print(json.dumps([a, {names}]))"
    before, after = map(set, run(code))
    heavy = {"lightning", "torchvision", "matplotlib", "torchmetrics", "rich", "pooch"}
    assert "mcbn" in after
    assert not heavy & (after - before)


def test_imports_warn_of_nothing_leave_the_random_states_and_give_the_public_names() -> None:
    package = Path(mcbn.__file__).parent
    paths = [path.relative_to(package.parent) for path in package.rglob("*.py")]
    modules = [".".join(path.with_suffix("").parts) for path in paths if path.stem != "__init__"]
    assert len(modules) > 20
    assert run(IMPORTS.format(modules=", ".join(["mcbn", *modules]))) == [
        True,
        [
            "ClassificationRoutine",
            "MCBatchNorm",
            "MNISTDataModule",
            "RegressionRoutine",
            "TableDataModule",
            "Trainer",
            "lenet",
            "optim_lenet",
        ],
    ]


def imports() -> dict[str, set[str]]:
    """The modules of the package that each of them imports, wherever in it."""
    package = Path(mcbn.__file__).parent
    paths = {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in package.rglob("*.py")
        if path.stem != "__init__"
    }
    found: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{each.name}" for each in node.names)]
                found[name] |= {n.removeprefix("mcbn.") for n in names} & set(paths)
    return found


def test_the_rooms_take_from_each_other_what_is_drawn_and_in_no_circle() -> None:
    found = imports()
    assert list(TopologicalSorter(found).static_order())  # raises CycleError
    taken: dict[str, set[str]] = {name.split(".")[0]: set() for name in found}
    for name, others in found.items():
        room = name.split(".")[0]
        taken[room] |= {other.split(".")[0] for other in others} - {room}
    assert {room: taken[room] - GROUND for room in taken if room not in GROUND} == ROOMS
    assert not any(taken[room] for room in GROUND)
    assert list(TopologicalSorter(ROOMS).static_order())


def test_the_figure_on_the_page_how_it_works_shows_the_same_arrows() -> None:
    root = ElementTree.parse(FIGURE).getroot()
    drawn: dict[str, set[str]] = {
        text.text or "": set() for text in root.iter("{http://www.w3.org/2000/svg}text")
    }
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        for room in path.get("data-from", "").split():
            drawn[room].add(path.get("data-to", ""))
    assert drawn == ROOMS
    page = (FIGURE.parent.parent / "how_it_works.rst").read_text(encoding="utf-8")
    assert set(re.findall(r"^``(\w+)``$", page, flags=re.MULTILINE)) == set(ROOMS)
