"""Mini-batches drawn from the training data, and the part of a batch that a network takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset


def draw_batches(
    data: Iterable[Any], num_batches: int, batch_size: int, generator: torch.Generator
) -> Iterator[Any]:
    """Yield ``num_batches`` batches.

    From a DataLoader over a dataset with indices, each batch is ``batch_size`` examples drawn
    independently, and without replacement within the batch, through the loader's workers,
    transforms and ``collate_fn``, regardless of its sampler's order. From anything else, its own
    batches are taken in order.

    Raises:
        TypeError: ``data`` is not iterable, or is a DataLoader whose dataset has no length.
        ValueError: ``data`` has fewer examples than a batch, or fewer batches than needed.
    """
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        yield from _random_batches(data, num_batches, batch_size, generator)
        return
    if not isinstance(data, Iterable):
        raise TypeError(
            f"fit got a {type(data).__name__}, which cannot be iterated over; pass a DataLoader "
            "over the training set, or an iterable of batches."
        )
    found = 0
    for batch in data:
        yield batch
        found += 1
        if found == num_batches:
            return
    raise ValueError(
        f"fit needs one batch for each of the {num_batches} estimators, but the data ended after "
        f"{found}; pass more batches, or a DataLoader over a dataset with a length."
    )


def _random_batches(
    loader: DataLoader[Any], num_batches: int, batch_size: int, generator: torch.Generator
) -> Iterator[Any]:
    if not isinstance(loader.dataset, Sized):
        raise TypeError(
            f"the loader's dataset is a {type(loader.dataset).__name__} without a length, so there "
            "is nothing to draw from; give it a __len__, or make it an IterableDataset."
        )
    size = len(loader.dataset)
    if size < batch_size:
        remedy = "build the wrapper with a smaller mc_batch_size" if size else "give it some"
        raise ValueError(
            f"mc_batch_size={batch_size}, but the loader's dataset has {size} examples; {remedy}."
        )
    draws = [
        torch.randperm(size, generator=generator, device="cpu")[:batch_size].tolist()
        for _ in range(num_batches)
    ]
    if loader.batch_sampler is None and loader.sampler is not None and _yields_batches(loader):
        # Automatic batching is off: the dataset itself makes a batch from a list of indices.
        options: dict[str, Any] = {"sampler": draws, "batch_size": None}
    else:
        options = {"batch_sampler": draws}
    workers = loader.num_workers
    yield from DataLoader(
        loader.dataset,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor if workers else None,
        generator=generator,
        **options,
    )


def _yields_batches(loader: DataLoader[Any]) -> bool:
    first = next(iter(loader.sampler), None)
    return isinstance(first, list | tuple)


def default_inputs(batch: Any) -> Any:
    """The part of a batch that a network takes: the first, unless the batch is a single tensor.

    An empty batch is returned unchanged.

    Example:
        >>> default_inputs(("images", "labels"))
        'images'
        >>> default_inputs({"image": "images", "label": "labels"})
        'images'
    """
    if isinstance(batch, Mapping):
        return next(iter(batch.values()), batch)
    if isinstance(batch, list | tuple):
        return batch[0] if batch else batch
    if is_dataclass(batch) and not isinstance(batch, type) and fields(batch):
        return getattr(batch, fields(batch)[0].name)
    return batch


def with_progress(what: str, batches: Iterator[Any], count: int) -> Iterator[Any]:
    """Show a progress bar on a terminal if the work takes more than two seconds."""
    start = time.monotonic()
    for done, batch in enumerate(batches, start=1):
        yield batch
        if time.monotonic() - start > 2 and done < count and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            bar: Any = {"total": count, "completed": done, "transient": True}
            yield from track(batches, what, console=Console(stderr=True), **bar)
