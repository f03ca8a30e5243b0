"""The network behind the page "Draw a digit", trained when the site is built, unless it was before.

The page works from a disk too, where a browser fetches no data, so the network travels in a script:
one assignment of a JSON object. It holds the ``state_dict`` of the fitted wrapper, some digits of
the test set, and the facts that the page's text states.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from matplotlib.image import imread
from mcbn_gallery import darken, rerun_key
from torch import Tensor, nn

from mcbn import ClassificationRoutine, MCBatchNorm, MNISTDataModule, Trainer, lenet, optim_lenet
from mcbn.data import files
from mcbn.plotting import plot_estimators
from mcbn.predictive import mutual_information, probabilities

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "draw_a_digit"
NETWORK = "draw_a_digit_network.js"
FIGURES = ("draw_a_digit_light.png", "draw_a_digit_dark.png")
SEED = 0
SIZE = 16  # of the mini-batches that the page begins with, and that its text and figure are about
SIZES = (8, SIZE, 128)


def train() -> tuple[dict[int, MCBatchNorm], MNISTDataModule]:
    """The network of the first tutorial, trained as there, with 32 mini-batches of each size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        datamodule = MNISTDataModule(batch_size=128)
        model = lenet(datamodule.num_channels, datamodule.num_classes, norm=nn.BatchNorm2d)
        routine = ClassificationRoutine(10, model, nn.CrossEntropyLoss(), optim_lenet)
        trainer = Trainer(max_steps=938, accelerator="cpu", enable_model_summary=False)
        trainer.fit(routine, datamodule=datamodule)
        fitted = {}
        for size in SIZES:
            mc = MCBatchNorm(model, num_estimators=32, mc_batch_size=size)
            fitted[size] = mc.fit(datamodule.train_dataloader()).eval()
    return fitted, datamodule


def predict(mc: MCBatchNorm, datamodule: MNISTDataModule) -> Tensor:
    """The logits for the test set."""
    with torch.no_grad():
        return torch.cat([mc(images) for images, _ in datamodule.test_dataloader()], dim=-2)


def choose(information: Tensor) -> Tensor:
    """The 50 images with the most mutual information, then 50 at even ranks among the others."""
    ranked = information.argsort(descending=True)
    return torch.cat([ranked[:50], ranked[50 :: (len(ranked) - 50) // 50][:50]])


def encoded(tensor: Tensor) -> str:
    """A tensor's values as base64, float32 or uint8; its shape follows from its name."""
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def make(folder: Path, root: Path) -> None:
    """Train, and write the network and the page's still figures."""
    fitted, datamodule = train()
    mc = fitted[SIZE]
    test_set = datamodule.dataset("test")
    labels, count = test_set.labels, len(test_set)
    probs = probabilities(predict(mc, datamodule))
    with mc.deterministic():
        plain = predict(mc, datamodule)
    chosen = choose(mutual_information(probs))
    spread = [
        mutual_information(probabilities(predict(each, datamodule))).mean()
        for each in fitted.values()
    ]
    assert spread == sorted(spread, reverse=True), "the page says so"
    alike = (probs.argmax(-1) == probs[0].argmax(-1)).all(0)
    right = probs.mean(0).argmax(-1) == labels
    assert right[alike].float().mean() > right[~alike].float().mean(), "the page says so"

    shown = torch.stack([chosen[-1], *chosen[:3]])
    names = ", ".join(f"a {label}" for label in labels[shown].tolist())
    plot_estimators(test_set.images[shown] / 255, probs[:16, shown], labels[shown])
    figure = plt.gcf()
    light, dark = (folder / name for name in FIGURES)
    style = {"dpi": 2 * 96, "transparent": True, "bbox_inches": "tight"}
    figure.savefig(light, **style)
    darken(figure)
    figure.savefig(dark, **style)
    plt.close(figure)
    height, width = imread(light).shape[:2]

    facts = {
        "names": names,
        "width": width // 2,
        "height": height // 2,
        "train_count": f"{len(datamodule.dataset('train')):,}",
        "test_count": f"{count:,}",
        "source": "the package's sample of MNIST" if datamodule.uses_sample else "MNIST",
        "plain_right": f"{(plain.argmax(-1) == labels).float().mean():.2%}".replace("%", " %"),
        "mean_right": f"{right.float().mean():.2%}".replace("%", " %"),
        "disputed": f"{(~alike).sum():,}",
        "disputed_wrong": f"{(~right[~alike]).sum():,}",
        "alike_wrong": f"{(~right[alike]).sum():,}",
        "seed": SEED,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    content = {
        "key": current_key(root),  # by now the training has downloaded what it could
        "facts": facts,
        "mean": test_set.mean,
        "std": test_set.std,
        "eps": nn.BatchNorm2d(1).eps,
        "state": {
            k: encoded(v)
            for k, v in mc.state_dict().items()
            if v.is_floating_point() and ".mc_" not in k
        },
        "size": SIZE,
        "statistics": {
            size: {k: encoded(v) for k, v in each.state_dict().items() if ".mc_" in k}
            for size, each in fitted.items()
        },
        "labels": labels[chosen].tolist(),
        "digits": encoded(test_set.images[chosen]),
    }
    text = f"globalThis.mcbnNetwork = {json.dumps(content)};\n"
    (folder / NETWORK).write_text(text, encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """What :func:`make` wrote; empty before it did."""
    path = folder / NETWORK
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def current_key(root: Path) -> str:
    """A digest of all that the network depends on: the package, this file, versions, the data."""
    missing = files.missing(MNISTDataModule().root, files.MNIST)
    parts = (rerun_key(root), Path(__file__).read_text(encoding="utf-8"), str(missing))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def make_if_needed(folder: Path, root: Path) -> None:
    there = all((folder / name).exists() for name in FIGURES)
    if not there or read(folder).get("key") != current_key(root):
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, root)


def static_folder(app: Sphinx) -> Path:
    return Path(app.outdir, "_static")


def prepare(app: Sphinx) -> None:
    make_if_needed(static_folder(app), Path(app.srcdir).parent)


def state_facts(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill the numbers into the page's text."""
    if docname == PAGE:
        app.env.note_dependency(static_folder(app) / NETWORK)
        source[0] = Template(source[0]).substitute(read(static_folder(app))["facts"])


def add_files(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if page == PAGE:
        app.add_css_file("draw_a_digit.css")
        for script in (NETWORK, "draw_a_digit.js"):
            app.add_js_file(script, defer="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    # After the gallery, so that the memory its pages report is their own.
    app.connect("builder-inited", prepare, priority=900)
    app.connect("source-read", state_facts)
    app.connect("html-page-context", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
