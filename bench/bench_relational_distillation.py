"""``deocc.ops.relational_distillation`` against eager code: ``pytest bench/bench_relational_distillation.py``.

The limit counts the multiply-adds of the two Gram matrices (half of each, since they are symmetric) and of the
gradient, and 13 operations of the N^3 / 2 triplets, with the gradient 19, as if each were one; in float64, which tight
clusters need. ``DEOCC_VECTOR=avx2`` measures narrower vectors.
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

SHAPES = {"small": (64, 512), "batch": (128, 512), "wide": (128, 2048), "long": (256, 512), "long-wide": (256, 2048)}
CASES = {case.name: case for case in SPECS["relational_distillation"].cases}


def inputs_of(rows: int, depth: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Embeddings of 32 people, as a student and a teacher of one size see them."""
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(32, depth, generator=generator)[torch.arange(rows) % 32]
    own, other = torch.randn(2, rows, depth, generator=generator) * 0.5
    return [F.normalize(people + noise).to(device, dtype) for noise in (own, other)]


def eager_distance(student: Tensor, teacher: Tensor) -> Tensor:
    def potential(x: Tensor) -> Tensor:
        square = x.square().sum(dim=1)
        length = (square[:, None] + square[None] - 2 * x @ x.T).clamp(min=1e-12).sqrt()
        length = length * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
        return length / length[length > 0].mean()

    with torch.no_grad():
        wanted = potential(teacher)
    return F.smooth_l1_loss(potential(student), wanted)


def eager_angle(student: Tensor, teacher: Tensor) -> Tensor:
    def potential(x: Tensor) -> Tensor:
        direction = F.normalize(x[None] - x[:, None], dim=2)
        return torch.bmm(direction, direction.transpose(1, 2))

    with torch.no_grad():
        wanted = potential(teacher)
    return F.smooth_l1_loss(potential(student), wanted)


def eager(student: Tensor, teacher: Tensor) -> Tensor:
    """As it is usually written: all differences, normalised, multiplied in batches."""
    return eager_distance(student, teacher) + 2 * eager_angle(student, teacher)


EAGER = {
    "relational_distance": (ops.relational_distance, eager_distance),
    "relational_angle": (ops.relational_angle, eager_angle),
}


def step(function: Callable[..., Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    s = student.detach().requires_grad_()
    return torch.autograd.grad(function(s, teacher), s)[0]


def test_eager_is_right() -> None:
    inputs = inputs_of(40, 64, "cpu", torch.float32)
    torch.testing.assert_close(ops.relational_distillation(*inputs), eager(*inputs), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(step(ops.relational_distillation, *inputs), step(eager, *inputs), rtol=1e-3, atol=1e-7)


def compare_with(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    shape: str,
    dtype: torch.dtype,
    measure: str,
    device: str,
    compare: Any,
    floor: float,
    their_dtype: torch.dtype | None = None,
) -> None:
    rows, depth = SHAPES[shape]
    inputs, others = (inputs_of(rows, depth, device, kind) for kind in (dtype, their_dtype or dtype))
    if measure == "forward":
        products = rows**2 * depth + rows**3 / 2 * 13
        with torch.no_grad():
            compare(lambda: ours(*inputs), lambda: theirs(*others), floor, multiply_adds=products, dtype=torch.float64)
    else:
        products = 2 * rows**2 * depth + rows**3 / 2 * 19
        compare(
            lambda: step(ours, *inputs), lambda: step(theirs, *others), floor,
            multiply_adds=products, dtype=torch.float64,
        )  # fmt: skip


def shape_mark(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.gate) if name == "batch" else name


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", [shape_mark(name) for name in SHAPES])
def test_float32(
    shape: str, measure: str, device: str, compare: Any, floor_of: Callable[[Any, str], float], benchmark: Any
) -> None:
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    floor = floor_of(CASES[shape], measure) if shape in CASES else 0.0
    compare_with(ops.relational_distillation, eager, shape, torch.float32, measure, device, compare, floor)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("half", EAGER)
def test_halves(half: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    benchmark.extra_info["shape"] = list(SHAPES["batch"])
    ours, theirs = EAGER[half]
    rows, depth = SHAPES["batch"]
    inputs = inputs_of(rows, depth, device, torch.float32)
    if measure == "forward":
        with torch.no_grad():
            compare(lambda: ours(*inputs), lambda: theirs(*inputs))
    else:
        compare(lambda: step(ours, *inputs), lambda: step(theirs, *inputs))


@pytest.mark.parametrize("measure", ["forward", "training"])
def test_bfloat16(measure: str, device: str, compare: Any, benchmark: Any) -> None:
    benchmark.extra_info["shape"] = list(SHAPES["batch"])
    compare_with(ops.relational_distillation, eager, "batch", torch.bfloat16, measure, device, compare, 0.0)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["batch", "wide"])
def test_bfloat16_against_our_own_in_float32(
    shape: str, measure: str, device: str, compare: Any, benchmark: Any
) -> None:
    """The same time: either is computed in float64, since rows minus their mean are no longer of bfloat16, and products
    with sums in float32 have no correct digit for near duplicates. Reading takes a few percent."""
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    ours = ops.relational_distillation
    compare_with(ours, ours, shape, torch.bfloat16, measure, device, compare, 0.0, torch.float32)


@pytest.mark.parametrize("measure", ["forward", "training"])
def test_against_torch_compile(measure: str, device: str, compare: Any, benchmark: Any) -> None:
    """One shape: compiling takes long."""
    benchmark.extra_info["shape"] = list(SHAPES["batch"])
    compiled = torch.compile(eager)  # not fullgraph: the mean of the positive distances breaks it
    compare_with(ops.relational_distillation, compiled, "batch", torch.float32, measure, device, compare, 0.0)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["batch", "wide", "long-wide"])
def test_two_threads_help(shape: str, measure: str, thread_speedup: Callable[..., None]) -> None:
    inputs = inputs_of(*SHAPES[shape], "cpu", torch.float32)
    floor = 1.2 if shape == "long-wide" else 0.8
    if measure == "forward":
        thread_speedup(lambda: ops.relational_distillation(*inputs), floor)
    else:
        thread_speedup(lambda: step(ops.relational_distillation, *inputs), floor)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", ["batch", "wide"])
def test_memory(shape: str, measure: str, compare_memory: Callable[..., None]) -> None:
    compare_memory(
        "ops.relational_distillation",
        "eager",
        measure,
        4.0,
        small="inputs_of(8, 16, 'cpu', torch.float32)",
        big=f"inputs_of(*SHAPES[{shape!r}], 'cpu', torch.float32)",
    )


def test_scaling(scaling: Callable[..., None], device: str) -> None:
    def pair(rows: int) -> tuple[Callable[[], object], Callable[[], object]]:
        inputs = inputs_of(rows, 512, device, torch.float32)
        return lambda: step(ops.relational_distillation, *inputs), lambda: step(eager, *inputs)

    scaling(
        "N",
        {rows: f"inputs_of({rows}, 512, 'cpu', torch.float32)" for rows in (32, 64, 128, 256)},
        pair,
        small="inputs_of(8, 16, 'cpu', torch.float32)",
        ours="step(ops.relational_distillation, *big)",
        eager="step(eager, *big)",
    )
