"""MNIST, its sample and FashionMNIST as a Lightning datamodule."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, Never

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from mcbn.checks import check_count, check_number, check_type
from mcbn.data import files
from mcbn.data.images import InMemoryImages, ready_batch
from mcbn.terminal import showable, stdout_encoding


class MNISTDataModule(LightningDataModule):
    """The handwritten digits of MNIST for training, validation, test and prediction.

    Loaders give images ``(batch, 1, 28, 28)`` float32, normalized, and labels ``(batch,)`` int64.
    Validation images are split off the training images, stratified by digit; the test images serve
    for nothing but tests and predictions. A Trainer calls ``prepare_data`` and ``setup``; without a
    Trainer the first loader does. The order is drawn from torch's global generator, and the crops
    follow from it: a seed repeats both, with any number of workers.

    Args:
        root: Folder with ``MNIST/raw`` and ``FashionMNIST/raw`` as torchvision leaves them.
            Default: the environment variable ``MCBN_DATA``, else ``data``. In both ``~`` is the
            home folder.
        batch_size: Images in a batch.
        source: ``"full"``: 60,000 training and 10,000 test digits under ``root``, downloaded if
            they are not there. ``"sample"``: 4,000 and 1,000 that come with the package.
            ``"auto"``: the full set if it is there or can be downloaded in 20 seconds, otherwise
            the sample, and a line printed that says so.
        val_split: Share of the training images held out for validation. With 0 there is no
            validation set, and ``val_dataloader`` returns an empty list.
        random_crop: Whether training images are padded by 4 pixels and cropped at random.
        num_workers: Processes that load; with 0 it is done in this process, which is fast here.
        seed: Decides which images are held out.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range; or, when the images are read, a file is damaged.
        OSError: ``source="full"``, and files are missing and cannot be downloaded or written.

    Example:
        >>> datamodule = MNISTDataModule(source="sample", val_split=0.1)
        >>> images, labels = next(iter(datamodule.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([128, 1, 28, 28]), torch.Size([128]))
        >>> [len(datamodule.dataset(name)) for name in ("train", "val", "test", "ood")]
        [3600, 400, 1000, 1000]
    """

    num_channels = 1
    num_classes = 10
    mean = 0.1307
    std = 0.3081

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        *,
        source: Literal["auto", "full", "sample"] = "auto",
        val_split: float = 0.0,
        random_crop: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if source not in ("auto", "full", "sample"):
            raise ValueError(f"source={source!r}, wanted 'auto', 'full' or 'sample'.")
        if root is not None:
            check_type("root", root, (str, os.PathLike), "the path of a folder")
        check_count("batch_size", batch_size)
        check_number("val_split", val_split, "a share, 0 or more and below 1", lambda p: 0 <= p < 1)
        check_type("random_crop", random_crop, bool, "True or False")
        check_count("num_workers", num_workers, least=0)
        check_type("seed", seed, int, "an integer")
        self.root = files.root_folder(root)
        self.batch_size = batch_size
        self.source = source
        self.val_split = val_split
        self.random_crop = random_crop
        self.num_workers = num_workers
        self.seed = seed
        self._datasets: dict[str, InMemoryImages] = {}
        self.uses_sample = source == "sample"
        self._obstacle = "call prepare_data() to download MNIST"

    def prepare_data(self) -> None:
        """Downloads the full set if it is wanted and not there."""
        if not (self.uses_sample or self._datasets):
            self._obstacle = self._fetch(files.MNIST) or self._obstacle

    def setup(self, stage: str | None = None) -> None:
        """Reads and splits the images, once for all stages."""
        if self._datasets:
            return
        missing = [] if self.uses_sample else files.missing(self.root, files.MNIST)
        if missing and self.source == "full":
            raise FileNotFoundError(f"{self.root / missing[0]} is missing: {self._obstacle}.")
        if missing:
            for name in set(files.MNIST) - set(missing):
                files.read(self.root, name)  # a damaged file is never passed over
            _say(f"Using the sample of 5,000 digits, MNIST's files are missing: {self._obstacle}.")
            self.uses_sample = True
        if self.uses_sample:
            images, labels = (files.read(files.SHIPPED, name) for name in files.SHIPPED_MNIST)
            train, test = slice(0, 4000), slice(4000, 5000)
            parts = images[train], labels[train], images[test], labels[test]
        else:
            parts = [files.read(self.root, name) for name in files.MNIST]
        images, labels, test_images, test_labels = parts
        held_out = _stratified_share(labels, self.val_split, self.seed)
        if self.val_split and not held_out.any():
            raise ValueError(
                f"val_split={self.val_split} holds out none of {len(labels):,} images, "
                "wanted 0 or a larger share."
            )
        kept = ~held_out if self.val_split else slice(None)  # a slice copies nothing
        self._datasets = {
            "train": self._images(images[kept], labels[kept], padding=4 * self.random_crop),
            "val": self._images(images[held_out], labels[held_out]),
            "test": self._images(test_images, test_labels),
        }

    def dataset(self, name: Literal["train", "val", "test", "ood"]) -> InMemoryImages:
        """The images behind a loader, with their raw pixels in ``images``."""
        if name not in ("train", "val", "test", "ood"):
            raise ValueError(f"name={name!r}, wanted 'train', 'val', 'test' or 'ood'.")
        if not self._datasets:
            self.prepare_data()
            self.setup()
        if name == "ood" and name not in self._datasets:
            self._datasets[name] = self._images(*self._read_ood())
        return self._datasets[name]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Training images in random order, cropped at random."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]] | list[Never]:
        """Validation images; an empty list if ``val_split`` is 0, which a Trainer skips."""
        return self._loader("val") if len(self.dataset("val")) else []

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Test images."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test images again; their labels come along."""
        return self._loader("test")

    def ood_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Images that are no digits: FashionMNIST's test images, normalized as the digits are.

        All 10,000 if they are under ``root`` or can be downloaded, otherwise, and with the sample
        of the digits, the 1,000 that come with the package.
        """
        return self._loader("ood")

    def _read_ood(self) -> tuple[Tensor, Tensor]:
        folder, names = files.SHIPPED, files.SHIPPED_FASHION
        if not self.uses_sample:
            if reason := self._fetch(files.FASHION):
                _say(
                    f"Using the sample of 1,000 images, FashionMNIST's files are missing: {reason}."
                )
            else:
                folder, names = self.root, files.FASHION
        images, labels = (files.read(folder, name) for name in names)
        return images, labels

    def _fetch(self, names: Sequence[str]) -> str:
        """Fetches what is not there; says why it could not, where a sample does instead."""
        try:
            files.fetch_missing(self.root, names, patient=self.source == "full")
        except OSError as error:
            if self.source == "full":
                raise
            return str(error)
        return ""

    def _images(self, images: Tensor, labels: Tensor, padding: int = 0) -> InMemoryImages:
        return InMemoryImages(images, labels.long(), self.mean, self.std, padding)

    def _loader(
        self, name: Literal["train", "val", "test", "ood"], shuffle: bool = False
    ) -> DataLoader[tuple[Tensor, int]]:
        dataset = self.dataset(name)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=RandomSampler(dataset) if shuffle else None,
            num_workers=self.num_workers,
            collate_fn=ready_batch,
            persistent_workers=self.num_workers > 0,
            # For the workers' seeds, which nothing here needs. From the global generator they would
            # be drawn for each epoch without workers, and once with workers that persist.
            generator=torch.Generator(),
        )


@rank_zero_only
def _say(line: str) -> None:
    print(showable(line, stdout_encoding()))


def _stratified_share(labels: Tensor, share: float, seed: int) -> Tensor:
    """A mask ``(n,)``, True for that share of each label's entries."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero().squeeze(1)
        shuffled = places[torch.randperm(len(places), generator=generator)]
        mask[shuffled[: round(share * len(places))]] = True
    return mask
