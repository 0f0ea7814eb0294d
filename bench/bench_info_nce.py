"""``deocc.ops.info_nce`` against eager code: ``pytest bench/bench_info_nce.py``.

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
    "few": (32, 128, 65536),
    "half": (128, 128, 65536),
    "canet": (256, 128, 65536),
    "wide": (256, 256, 65536),
    "short": (256, 128, 4096),
    "long": (64, 128, 1 << 18),
    "many": (1024, 128, 16384),
}
CASES = {case.name: case for case in SPECS["info_nce"].cases if case.name in SHAPES}


def inputs_of(
    shape: tuple[int, int, int], device: str, dtype: torch.dtype = torch.float32, queue: torch.dtype | None = None
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    count, dim, keys = shape
    vectors = [torch.randn(rows, dim, generator=generator) for rows in (count, count, keys)]
    for value in vectors:
        value /= value.norm(dim=1, keepdim=True)  # in place: what is made on the way would hide the peak of a call
    return [value.to(device, kind) for value, kind in zip(vectors, (dtype, dtype, queue or dtype), strict=True)]


def eager(query: Tensor, positive: Tensor, queue: Tensor) -> Tensor:
    """As it is usually written; the queue is cloned, since it changes before ``backward``."""
    right = torch.einsum("nc,nc->n", query, positive).unsqueeze(1)
    wrong = torch.einsum("nc,kc->nk", query, queue.clone().detach())
    scores = torch.cat([right, wrong], dim=1) / 0.07
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def eager_with_a_queue_in_half_precision(query: Tensor, positive: Tensor, queue: Tensor) -> Tensor:
    return eager(query, positive, queue.to(query.dtype))


def step(function: Callable[..., Tensor], query: Tensor, positive: Tensor, queue: Tensor) -> Any:
    query = query.detach().requires_grad_()
    return torch.autograd.grad(function(query, positive, queue), query)


def test_eager_is_right() -> None:
    inputs = inputs_of((40, 24, 300), "cpu")
    torch.testing.assert_close(ops.info_nce(*inputs), eager(*inputs))


def measure_both(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor], measure: str, compare: Any, *,
    floor: float = 0.0, others: list[Tensor] | None = None,
) -> None:  # fmt: skip
    query, _, queue = inputs
    others = others or inputs
    needs = {"multiply_adds": query.numel() * len(queue) * (1 if measure == "forward" else 2)}
    needs["bytes_moved"] = queue.nbytes
    if measure == "forward":
        with torch.no_grad():
            compare(lambda: ours(*inputs), lambda: theirs(*others), floor, **needs, dtype=queue.dtype)
    else:
        compare(lambda: step(ours, *inputs), lambda: step(theirs, *others), floor, **needs, dtype=queue.dtype)


def shape_mark(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.gate) if name == "canet" else name


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", [shape_mark(name) for name in SHAPES])
def test_float32(
    shape: str, measure: str, device: str, compare: Any, floor_of: Callable[[Any, str], float], benchmark: Any
) -> None:
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    floor = floor_of(CASES[shape], measure) if shape in CASES else 0.0
    measure_both(ops.info_nce, eager, inputs_of(SHAPES[shape], device), measure, compare, floor=floor)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["few", "half", "canet", "wide"])
def test_queue_in_bfloat16(shape: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    """Queries in float32, against eager code that keeps everything in float32."""
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    inputs = inputs_of(SHAPES[shape], device, queue=torch.bfloat16)
    measure_both(ops.info_nce, eager, inputs, measure, compare, others=inputs_of(SHAPES[shape], device))


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["canet"])
def test_bfloat16(shape: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    measure_both(ops.info_nce, eager, inputs_of(SHAPES[shape], device, torch.bfloat16), measure, compare)


@pytest.mark.parametrize("measure", ["forward", "training"])
def test_bfloat16_against_our_own_in_float32(
    measure: str, device: str, compare: Any, floor_of: Callable[[Any, str], float], benchmark: Any
) -> None:
    """What a queue in bfloat16 gains over one in float32."""
    benchmark.extra_info["shape"] = list(SHAPES["canet"])
    inputs, others = (inputs_of(SHAPES["canet"], device, queue=dtype) for dtype in (torch.bfloat16, torch.float32))
    floor = floor_of(CASES["canet"], f"bfloat16 {measure}")
    measure_both(ops.info_nce, ops.info_nce, inputs, measure, compare, floor=floor, others=others)


@pytest.mark.parametrize("measure", ["forward", "training"])
def test_against_torch_compile(measure: str, device: str, compare: Any, benchmark: Any) -> None:
    benchmark.extra_info["shape"] = list(SHAPES["canet"])
    compiled = torch.compile(eager, fullgraph=True)
    measure_both(ops.info_nce, compiled, inputs_of(SHAPES["canet"], device), measure, compare)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_enqueue(dtype: torch.dtype, device: str, compare: Any) -> None:
    """Against the usual lines, for a batch that divides the queue."""
    keys = inputs_of((256, 128, 1), device)[0]
    queue = ops.KeyQueue(65536, 128, dtype=dtype, device=device)
    other = torch.zeros(128, 65536, device=device)
    pointer = torch.zeros(1, dtype=torch.long, device=device)

    def usual() -> None:
        first = int(pointer)
        other[:, first : first + len(keys)] = F.normalize(keys, dim=1).T
        pointer[0] = (first + len(keys)) % other.shape[1]

    compare(lambda: queue.enqueue(keys), usual)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["few", "canet"])
def test_two_threads_help(shape: str, measure: str, thread_speedup: Callable[..., None]) -> None:
    inputs = inputs_of(SHAPES[shape], "cpu")
    floor = 1.2 if shape == "canet" else 0.8
    if measure == "forward":
        thread_speedup(lambda: ops.info_nce(*inputs), floor)
    else:
        thread_speedup(lambda: step(ops.info_nce, *inputs), floor)


@pytest.mark.parametrize("measure", ["forward", "training"])
def test_memory(measure: str, compare_memory: Callable[..., None]) -> None:
    compare_memory(
        "ops.info_nce",
        "eager",
        measure,
        1.0,
        small="inputs_of((8, 8, 64), 'cpu')",
        big="inputs_of(SHAPES['canet'], 'cpu')",
    )


def test_scaling(scaling: Callable[..., None], device: str) -> None:
    """Forward and backward, 64 queries of 128 dimensions."""

    def pair(keys: int) -> tuple[Callable[[], object], Callable[[], object]]:
        inputs = inputs_of((64, 128, keys), device)
        return lambda: step(ops.info_nce, *inputs), lambda: step(eager, *inputs)

    scaling(
        "K",
        {keys: f"inputs_of((64, 128, {keys}), 'cpu')" for keys in (4096, 8192, 16384, 32768, 65536, 131072)},
        pair,
        small="inputs_of((8, 8, 64), 'cpu')",
        ours="step(ops.info_nce, *big)",
        eager="step(eager, *big)",
    )
