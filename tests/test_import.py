import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

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


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()


def test_import_mcbn_imports_nothing_heavy_but_torch():
    code = "import mcbn, sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(run(code))
    assert {"torch", "mcbn"} <= loaded
    heavy = {"lightning", "torchvision", "matplotlib", "torchmetrics", "rich"}
    assert not heavy & (loaded - set(run(code.replace("import mcbn, sys", "import torch, sys"))))


def test_every_public_name_can_be_had():
    code = "import mcbn; print(*[getattr(mcbn, name).__name__ for name in mcbn.__all__])"
    assert run(code) == [
        "ClassificationRoutine",
        "MCBatchNorm",
        "MNISTDataModule",
        "RegressionRoutine",
        "TableDataModule",
        "Trainer",
        "lenet",
        "optim_lenet",
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
