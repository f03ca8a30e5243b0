"""Two processes that compute together. They are forked, as a fresh one imports for seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def in_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``work(rank)`` gives in each, in the order of their ranks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of OpenMP do not outlive a fork, and some builds wait
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            torch.multiprocessing.start_processes(
                _work, (work, str(folder)), nprocs=2, start_method="fork"
            )
    finally:
        torch.set_num_threads(threads)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _work(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.save(work(rank), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
