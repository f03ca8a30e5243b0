"""The order of the tutorials in the gallery's sections; what is not listed comes last, by name."""

from __future__ import annotations

from pathlib import Path

from sphinx_gallery.sorting import FileNameSortKey

ORDER = (
    "what_bn_remembers",
    "batch_size_and_estimators",
    "mc_batch_norm",
    "comparison",
    "paper_table",
    "calibration",
    "selective_classification",
    "ood_detection",
    "rotation_and_noise",
    "own_network",
    "segmentation",
    "regression_tables",
    "deployment",
    "pretrained",
    "signals",
    "conformal",
    "active_learning",
    "other_libraries",
)


def reading_order(path: str) -> tuple[int, str]:
    name = Path(path).stem.removeprefix("tutorial_")
    return ORDER.index(name) if name in ORDER else len(ORDER), name


class ReadingOrder(FileNameSortKey):
    def __call__(self, filename: str) -> tuple[int, str]:
        return reading_order(filename)
