"""``deocc.ops.composite`` against the line that people write: ``pytest bench/bench_composite.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deocc import ops
from deocc.testing.operators import SPECS

SPEC = SPECS["composite"]
CASES = [
    pytest.param(case, id=case.name, marks=[pytest.mark.gate] if case.name == "batch" else [])
    for case in SPEC.cases
    if case.kind in ("smoke", "paper", "large")
]
ORDERS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def eager(image: Tensor, fill: Tensor, occlusion: Tensor) -> Tensor:
    return image * (1 - occlusion) + fill * occlusion


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_composite(
    case: Any,
    order: str,
    dtype: torch.dtype,
    measure: str,
    device: str,
    compare: Callable[..., float],
    floor_of: Callable[[Any, str], float],
    benchmark: Any,
) -> None:
    inputs = [value.contiguous(memory_format=ORDERS[order]) for value in case.draw(device, dtype)]
    benchmark.extra_info["shape"] = list(inputs[0].shape)
    floor = floor_of(case, measure)
    pictures, occlusions = inputs[0].nbytes, inputs[2].nbytes
    if measure == "forward":
        with torch.no_grad():
            moved = 3 * pictures + occlusions
            compare(lambda: ops.composite(*inputs), lambda: eager(*inputs), floor, bytes_moved=moved)
        return

    image, fill, occlusion = inputs[0], inputs[1].requires_grad_(), inputs[2].requires_grad_()
    upstream = torch.ones_like(image)

    def step(function: Callable[..., Tensor]) -> object:
        return torch.autograd.grad(function(image, fill, occlusion), (fill, occlusion), upstream)

    moved = 7 * pictures + 3 * occlusions  # both ways read everything, and the way back writes two gradients
    compare(lambda: step(ops.composite), lambda: step(eager), floor, bytes_moved=moved)


def test_against_torch_compile(device: str, compare: Callable[..., float], benchmark: Any) -> None:
    inputs = SPEC.case("batch").draw(device, torch.float32)
    benchmark.extra_info["shape"] = list(inputs[0].shape)
    compiled = torch.compile(eager, fullgraph=True)
    with torch.no_grad():
        moved = 3 * inputs[0].nbytes + inputs[2].nbytes
        compare(lambda: ops.composite(*inputs), lambda: compiled(*inputs), bytes_moved=moved)


@pytest.mark.parametrize("size", [128, 250, 1024])
def test_composite_uint8(size: int, compare: Callable[..., float]) -> None:
    rng = np.random.default_rng(0)
    image, fill = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    occlusion = rng.integers(0, 256, (size, size), dtype=np.uint8)

    def floating() -> object:
        weight = occlusion[:, :, None].astype(np.float32) / 255
        return (image * (1 - weight) + fill * weight).round().astype(np.uint8)

    compare(lambda: ops.composite_uint8(image, fill, occlusion), floating, 4.0)
