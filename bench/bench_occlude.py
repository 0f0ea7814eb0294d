"""Masked faces a second on one core: ``pytest bench/bench_occlude.py``.

One round occludes 100 aligned crops of 128x128 pixels, so images a second are 100 / median. The goal is 400 for the
default mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from deocc.occlude import kinds, occlude

COUNT = 100
MASKS = ["surgical", "n95", "kn95", "cloth", "template"]
LANDMARKS = np.array([(43.7, 60.1), (83.9, 59.9), (64.0, 83.0), (47.5, 105.6), (80.8, 105.4)]) * 0.75 + 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


@pytest.mark.parametrize(
    "names", [None, MASKS, *([name] for name in kinds())], ids=lambda n: "+".join(n) if n else "mix"
)
def test_occlude(benchmark: Any, names: list[str] | None) -> None:
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8), (0, 0), 3)
    jitter = rng.uniform(-2, 2, (COUNT, 5, 2))

    def run() -> None:
        for seed in range(COUNT):
            occlude(smooth, LANDMARKS + jitter[seed], seed, kinds=names)

    run()
    benchmark.pedantic(run, rounds=5, iterations=1)
    benchmark.extra_info["images a second"] = COUNT / benchmark.stats["median"]
