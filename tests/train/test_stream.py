from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from deocc.train.stream import BatchStream, seed_everything


@pytest.mark.parametrize(("length", "batch", "start"), [(10, 4, 0), (10, 4, 3), (3, 8, 2), (1, 1, 5), (7, 7, 1)])
def test_a_stream_from_a_step_on_is_the_tail_of_the_whole(length: int, batch: int, start: int) -> None:
    whole = list(BatchStream(length, batch, 0, 0, 12))
    tail = BatchStream(length, batch, 0, start, 12)
    assert list(tail) == whole[start:]
    assert len(tail) == 12 - start
    flat = [index for indices in whole for index in indices]
    assert len(set(flat)) == len(flat)
    for epoch in range(len(flat) // length):
        these = flat[epoch * length : (epoch + 1) * length]
        assert sorted(these) == list(range(epoch * length, (epoch + 1) * length))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_what_one_would_see(world: int) -> None:
    whole = list(BatchStream(10, 8, 0, 0, 5))
    shares = [list(BatchStream(10, 8, 0, 0, 5, rank=rank, world=world)) for rank in range(world)]
    for step, indices in enumerate(whole):
        assert sorted(index for share in shares for index in share[step]) == sorted(indices)
        assert {len(share[step]) for share in shares} == {8 // world}


def test_the_order_depends_on_the_seed_and_is_the_same_everywhere() -> None:
    assert next(iter(BatchStream(10, 10, 0, 0, 1))) != next(iter(BatchStream(10, 10, 1, 0, 1)))
    # Written down once: a change of this order would make old checkpoints resume to other weights.
    assert next(iter(BatchStream(10, 10, 0, 0, 1))) == [9, 1, 7, 2, 6, 4, 8, 0, 5, 3]


def test_seeding_reaches_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(0, 7, 0)
    first = draw()
    seed_everything(0, 7, 0)
    assert draw() == first
    for other in ((0, 7, 1), (0, 8, 0), (1, 7, 0), ("x", 7)):
        seed_everything(*other)
        assert all(one != two for one, two in zip(draw(), first, strict=True))
