import subprocess
import sys


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
