"""Which examples a training step sees: a function of the seed and the step, whatever the workers and the restarts."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["BatchStream", "loader", "seed_everything"]


PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2): the signal that this process gets when its parent dies."""


class BatchStream:
    """The lists of indices of the training batches, from a step on.

    Position p of the endless stream (step * batch + place in the batch) belongs to epoch p // length; it yields the
    index ``epoch * length + shuffled``, where the order of the epoch follows from (seed, epoch) alone. A batch may
    reach across two epochs. With many processes, each takes every ``world``-th place of a batch, so the stream does
    not depend on their number.
    """

    def __init__(
        self, length: int, batch: int, seed: int, start: int, stop: int, *, rank: int = 0, world: int = 1
    ) -> None:
        self.length = length
        self.batch = batch
        self.seed = seed
        self.start = start
        self.stop = stop
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        orders: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}
        for step in range(self.start, self.stop):
            indices = []
            for position in range(step * self.batch + self.rank, (step + 1) * self.batch, self.world):
                epoch, place = divmod(position, self.length)
                if epoch not in orders:
                    orders = {kept: order for kept, order in orders.items() if kept == epoch - 1}
                    orders[epoch] = np.random.default_rng(_words("order", self.seed, epoch)).permutation(self.length)
                indices.append(epoch * self.length + int(orders[epoch][place]))
            yield indices


def loader(dataset: Dataset[Any], batches: Any, *, workers: int, device: torch.device) -> DataLoader[Any]:
    """A data loader over lists of indices that leaves the process's random generators alone.

    It is meant to be iterated once: its workers live as long as that.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # Without one of its own, every iterator would draw a number from torch's global generator.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=partial(_start_worker, parent=os.getpid()) if workers else None,
    )


def seed_everything(*what: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch from any number of names and numbers."""
    words = _words(*what)
    random.seed(words[0])
    np.random.seed(words[1:5])
    torch.manual_seed(words[5] << 31 | words[6] >> 1)


def _words(*what: int | str) -> list[int]:
    digest = hashlib.sha256(repr(what).encode()).digest()
    return [int.from_bytes(digest[at : at + 4], "little") for at in range(0, len(digest), 4)]


def _start_worker(worker: int, *, parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # torch's workers watch their parent, but one whose parent was killed before the watch began would wait for ever.
    # (The server of the start method "forkserver" stands in between, and goes with its own parent.)
    if os.getppid() != parent and multiprocessing.get_start_method() != "forkserver":
        os._exit(1)
    # A forked child has inherited OpenCV's thread pool without its threads. 0 means "no threads, leave the pool alone"
    # (1 would join the pool's threads, which do not exist here, and hang).
    cv2 = sys.modules.get("cv2")
    if cv2 is not None:
        cv2.setNumThreads(0)
