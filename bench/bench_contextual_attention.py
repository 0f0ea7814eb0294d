"""``deocc.ops.contextual_attention`` against eager code: ``pytest bench/bench_contextual_attention.py``.

``DEOCC_VECTOR=avx2`` measures narrower vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deocc import ops
from deocc.testing.operators import SPECS

SHAPES = {
    "features": (1, 128, 64, 64),
    "batch": (4, 128, 64, 64),
    "channels": (1, 192, 64, 64),
    "large": (1, 128, 128, 128),
}
CASES = {case.name: case for case in SPECS["contextual_attention"].cases if case.name in SHAPES}


def inputs_of(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> list[Tensor]:
    """A hole of a quarter of the area in the middle."""
    generator = torch.Generator().manual_seed(0)
    foreground, background = torch.randn(2, *shape, generator=generator) * 0.1
    occlusion = torch.zeros(shape[0], 1, *shape[2:])
    occlusion[:, :, shape[2] // 4 : -shape[2] // 4, shape[3] // 4 : -shape[3] // 4] = 1
    return [value.to(device, dtype) for value in (foreground, background, occlusion)]


def eager(foreground: Tensor, background: Tensor, occlusion: Tensor) -> Tensor:
    """As it is usually written: sample by sample, patches as the filters of convolutions, rate 2, scale 10, fuse."""
    count, channels = background.shape[:2]
    patches = F.unfold(background, 4, stride=2, padding=1).view(count, channels, 4, 4, -1).permute(0, 4, 1, 2, 3)
    small, other = foreground[:, :, ::2, ::2], background[:, :, ::2, ::2]
    height, width = small.shape[2:]
    keys = F.unfold(other, 3, padding=1).view(count, channels, 3, 3, -1).permute(0, 4, 1, 2, 3)
    valid = (F.unfold(occlusion[:, :, ::2, ::2], 3, padding=1).mean(1) == 0).to(small.dtype)
    diagonal = torch.eye(3, dtype=small.dtype, device=small.device).view(1, 1, 3, 3)
    results = []
    for sample in range(count):
        filters = keys[sample] / keys[sample].square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-4)
        scores = F.conv2d(small[sample : sample + 1], filters, padding=1).view(1, 1, height * width, height * width)
        scores = F.conv2d(scores, diagonal, padding=1).view(1, height, width, height, width)
        scores = scores.permute(0, 2, 1, 4, 3).reshape(1, 1, height * width, height * width)
        scores = F.conv2d(scores, diagonal, padding=1).view(1, width, height, width, height)
        scores = scores.permute(0, 2, 1, 4, 3).reshape(1, height * width, height, width)
        weight = valid[sample].view(1, -1, 1, 1)
        attention = F.softmax(scores * weight * 10, dim=1) * weight
        results.append(F.conv_transpose2d(attention, patches[sample], stride=2, padding=1) / 4)
    return torch.cat(results)


def step(function: Callable[..., Tensor], foreground: Tensor, background: Tensor, occlusion: Tensor) -> object:
    f, b = foreground.detach().requires_grad_(), background.detach().requires_grad_()
    return torch.autograd.grad(function(f, b, occlusion), (f, b), torch.ones_like(f))


def test_eager_is_right() -> None:
    inputs = inputs_of((2, 8, 24, 20), "cpu", torch.float32)
    torch.testing.assert_close(ops.contextual_attention(*inputs), eager(*inputs), rtol=1e-4, atol=1e-5)


def shape_mark(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.gate) if name == "features" else name


def compare_with(
    theirs: Callable[..., Tensor],
    shape: str,
    dtype: torch.dtype,
    measure: str,
    device: str,
    compare: Any,
    floor: float,
    their_dtype: torch.dtype | None = None,
) -> None:
    inputs, others = (inputs_of(SHAPES[shape], device, kind) for kind in (dtype, their_dtype or dtype))
    count, channels, height, width = SHAPES[shape]
    products = 5 * count * channels * (height * width // 4) ** 2 * (1 if measure == "forward" else 3)
    if measure == "forward":
        with torch.no_grad():
            ours, rival = (lambda: ops.contextual_attention(*inputs)), (lambda: theirs(*others))
            compare(ours, rival, floor, multiply_adds=products, dtype=dtype)
    else:
        ours, rival = (lambda: step(ops.contextual_attention, *inputs)), (lambda: step(theirs, *others))
        compare(ours, rival, floor, multiply_adds=products, dtype=dtype)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", [shape_mark(name) for name in SHAPES])
def test_float32(
    shape: str, measure: str, device: str, compare: Any, floor_of: Callable[[Any, str], float], benchmark: Any
) -> None:
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    floor = floor_of(CASES[shape], measure) if shape in CASES else 0.0
    compare_with(eager, shape, torch.float32, measure, device, compare, floor)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16(shape: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    compare_with(eager, shape, torch.bfloat16, measure, device, compare, 0.0)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["features", "large"])
def test_bfloat16_against_our_own_in_float32(
    shape: str, measure: str, device: str, compare: Any, floor_of: Callable[[Any, str], float], benchmark: Any
) -> None:
    """Most products are of bfloat16, at twice the rate; the sums along diagonals and the softmax stay as they are."""
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    floor = floor_of(CASES[shape], f"bfloat16 {measure}")
    ours = ops.contextual_attention
    compare_with(ours, shape, torch.bfloat16, measure, device, compare, floor, torch.float32)


@pytest.mark.parametrize("measure", ["forward", "training"])
def test_against_torch_compile(measure: str, device: str, compare: Any, benchmark: Any) -> None:
    """One shape: compiling takes minutes."""
    benchmark.extra_info["shape"] = list(SHAPES["features"])
    compiled = torch.compile(eager, fullgraph=True)
    compare_with(compiled, "features", torch.float32, measure, device, compare, 0.0)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["features", "large"])
def test_two_threads_help(shape: str, measure: str, thread_speedup: Callable[..., None]) -> None:
    inputs = inputs_of(SHAPES[shape], "cpu", torch.float32)
    floor = 1.2 if shape == "large" else 0.8
    if measure == "forward":
        thread_speedup(lambda: ops.contextual_attention(*inputs), floor)
    else:
        thread_speedup(lambda: step(ops.contextual_attention, *inputs), floor)


MOST_MB = {
    ("features", "forward"): 6.0,
    ("features", "training"): 20.0,
    ("large", "forward"): 32.0,
    ("large", "training"): 343.0,
}


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["features", "large"])
def test_memory(shape: str, measure: str, compare_memory: Callable[..., None]) -> None:
    compare_memory(
        "ops.contextual_attention",
        "eager",
        measure,
        MOST_MB[shape, measure],
        small="inputs_of((1, 8, 8, 8), 'cpu', torch.float32)",
        big=f"inputs_of(SHAPES[{shape!r}], 'cpu', torch.float32)",
    )


def test_scaling(scaling: Callable[..., None], device: str) -> None:
    """Forward and backward, 64 channels, from 16 x 16 to 64 x 64 positions."""

    def pair(keys: int) -> tuple[Callable[[], object], Callable[[], object]]:
        side = 2 * int(keys**0.5)
        inputs = inputs_of((1, 64, side, side), device, torch.float32)
        return lambda: step(ops.contextual_attention, *inputs), lambda: step(eager, *inputs)

    scaling(
        "L",
        {side**2: f"inputs_of((1, 64, {2 * side}, {2 * side}), 'cpu', torch.float32)" for side in (16, 24, 32, 48, 64)},
        pair,
        small="inputs_of((1, 8, 8, 8), 'cpu', torch.float32)",
        ours="step(ops.contextual_attention, *big)",
        eager="step(eager, *big)",
    )
