"""``deocc.ops.contextual_attention`` against eager code: ``pytest bench/bench_contextual_attention.py``.

Beside the ratio, each result carries the floor (multiply-adds over the rate of ``torch.mm`` at the same moment) and
what the process had in memory above inputs and results. Set ``MALLOC_MMAP_THRESHOLD_=4294967296`` and
``MALLOC_TRIM_THRESHOLD_=4294967296`` to keep memory between calls ("tuned"): the eager code spends much of its time
on fresh pages. ``DEOCC_VECTOR=avx2`` measures narrower vectors.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
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
FLOORS = SPECS["contextual_attention"].case("features").floors


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


def multiply_rate(device: str) -> float:
    """Multiply-adds a second of torch.mm, one thread or one GPU."""
    a = torch.ones(1024, 1024, device=device)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1024**3 / statistics.median(times)


def test_eager_is_right() -> None:
    inputs = inputs_of((2, 8, 24, 20), "cpu", torch.float32)
    torch.testing.assert_close(ops.contextual_attention(*inputs), eager(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("rival", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_contextual_attention(
    shape: str, dtype: torch.dtype, rival: str, measure: str, device: str, compare: Callable[..., None], benchmark: Any
) -> None:
    if rival == "compiled" and shape != "features":
        pytest.skip("compiling takes minutes: one shape is enough")
    inputs = inputs_of(SHAPES[shape], device, dtype)
    count, channels, height, width = SHAPES[shape]
    products = 5 * count * channels * (height * width // 4) ** 2 * (1 if measure == "forward" else 3)
    benchmark.extra_info.update(shape=list(SHAPES[shape]), floor_ms=products / multiply_rate(device) * 1e3)
    theirs = torch.compile(eager, fullgraph=True) if rival == "compiled" else eager
    floor = FLOORS.get(f"{device} {measure}", 0.0) if dtype == torch.float32 else 0.0
    if measure == "forward":
        with torch.no_grad():
            compare(lambda: ops.contextual_attention(*inputs), lambda: theirs(*inputs), floor)
    else:
        compare(lambda: step(ops.contextual_attention, *inputs), lambda: step(theirs, *inputs), floor)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["features", "large"])
def test_two_threads_help(shape: str, measure: str, device: str, benchmark: Any) -> None:
    if device != "cpu" or (os.cpu_count() or 1) < 2:
        pytest.skip("threads are the CPU's, and there must be two")
    inputs = inputs_of(SHAPES[shape], device, torch.float32)
    times: dict[int, list[float]] = {1: [], 2: []}
    before = torch.get_num_threads()
    try:
        for _ in range(7):
            for count, taken in times.items():
                torch.set_num_threads(count)
                start = time.perf_counter()
                if measure == "forward":
                    ops.contextual_attention(*inputs)
                else:
                    step(ops.contextual_attention, *inputs)
                taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    benchmark.extra_info["speedup"] = statistics.median(times[1]) / statistics.median(times[2])
    benchmark.pedantic(lambda: None)


def peak_mb(function: str, shape: str, measure: str) -> float:
    """Peak of resident memory above what the inputs and a first tiny call took, in a process of its own."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, bench_contextual_attention as bench
from deocc import ops
torch.set_num_threads(1)
function = {{"ours": ops.contextual_attention, "eager": bench.eager}}[{function!r}]
call = function if {measure!r} == "forward" else lambda *inputs: bench.step(function, *inputs)
call(*bench.inputs_of((1, 8, 8, 8), "cpu", torch.float32))
inputs = bench.inputs_of(bench.SHAPES[{shape!r}], "cpu", torch.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = call(*inputs)
results = [result] if isinstance(result, torch.Tensor) else result
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 - sum(r.nbytes for r in results) / 2**20)
"""
    return float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["features", "large"])
def test_memory(shape: str, measure: str, device: str, benchmark: Any) -> None:
    if device != "cpu":
        pytest.skip("the process's memory is the CPU's")
    ours, theirs = (peak_mb(name, shape, measure) for name in ("ours", "eager"))
    benchmark.extra_info.update(ours_mb=ours, eager_mb=theirs)
    benchmark.pedantic(lambda: None)
    assert ours < theirs
