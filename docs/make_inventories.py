"""Write docs/inventories: where other projects document the names that this site links to.

They are kept with the docs, so a build needs no network. Run as ``python docs/make_inventories.py``
after adding a name; a private module's name is the one that the signatures of the API pages hold.
"""

from __future__ import annotations

import zlib
from pathlib import Path

# project -> name -> page, relative to the address in conf.py's intersphinx_mapping
PAGES = {
    "torch": {
        "torch.Tensor": "tensors.html#torch.Tensor",
        "torch._tensor.Tensor": "tensors.html#torch.Tensor",
        "torch.Generator": "generated/torch.Generator.html",
        "torch._C.Generator": "generated/torch.Generator.html",
        "torch.nn.Module": "generated/torch.nn.Module.html",
        "torch.nn.modules.module.Module": "generated/torch.nn.Module.html",
        "torch.utils.data.DataLoader": "data.html#torch.utils.data.DataLoader",
        "torch.utils.data.dataloader.DataLoader": "data.html#torch.utils.data.DataLoader",
    },
    "lightning": {
        "lightning.pytorch.core.module.LightningModule": "common/lightning_module.html",
        "lightning.pytorch.core.datamodule.LightningDataModule": "data/datamodule.html",
        "lightning.pytorch.trainer.trainer.Trainer": "common/trainer.html",
    },
    "torchmetrics": {
        "torchmetrics.Metric": "references/metric.html",
        "torchmetrics.metric.Metric": "references/metric.html",
    },
    "matplotlib": {
        "matplotlib.axes.Axes": "api/_as_gen/matplotlib.axes.Axes.html",
        "matplotlib.axes._axes.Axes": "api/_as_gen/matplotlib.axes.Axes.html",
        "matplotlib.figure.Figure": "api/_as_gen/matplotlib.figure.Figure.html",
    },
}


def inventory(project: str, pages: dict[str, str]) -> bytes:
    """The file in version 2 of Sphinx's format."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = "".join(f"{name} py:class 1 {page} -\n" for name, page in sorted(pages.items()))
    return head.encode() + zlib.compress(lines.encode(), 9)


folder = Path(__file__).parent / "inventories"
folder.mkdir(exist_ok=True)
for project, pages in PAGES.items():
    (folder / f"{project}.inv").write_bytes(inventory(project, pages))
