"""Cases of ``relational_distillation`` and of its two halves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deocc import ops
from deocc.ops.reference import relational_distillation as reference
from deocc.testing.spec import Case, Spec


def _inputs(
    rows: int, student: int, teacher: int, *, clusters: int = 0, spread: float = 0.05, offset: float = 0.0
) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    """A student that knows half of what the teacher does. ``clusters``: of the rows, ``spread`` wide; 0 for none."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        size = max(student, teacher)
        points = torch.randn(rows, size, generator=generator, dtype=torch.float64)
        if clusters:
            points = points[torch.arange(rows) % clusters] + spread * points.flip(0)
        own = torch.randn(rows, size, generator=generator, dtype=torch.float64) * (spread if clusters else 1)
        return (points + own)[:, :student].contiguous() + offset, points[:, :teacher].contiguous() + offset

    return draw


def _same_teacher(rows: int, depth: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        student = torch.randn(rows, depth, generator=generator, dtype=torch.float64)
        return student, student[:1].repeat(rows, 1)

    return draw


def _plain(student: Tensor, teacher: Tensor, *, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    return reference.relational_distillation(student, teacher, distance, angle)


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    return reference.relational_distillation(student, teacher, 1.0, 0.0)


def _angle(student: Tensor, teacher: Tensor) -> Tensor:
    return reference.relational_distillation(student, teacher, 0.0, 1.0)


def _matrix(student: Tensor) -> Tensor:
    matrix = torch.linspace(-1, 1, len(student) ** 2, dtype=torch.float64, device=student.device)
    return matrix.view(len(student), len(student))


_TOLERANCES = {
    torch.float64: (1e-9, 1e-12),
    torch.float32: (2e-5, 1e-8),
    torch.bfloat16: (1e-2, 1e-5),
    torch.float16: (2e-3, 1e-6),
}

_SHARED = (
    Case("smoke", "smoke", _inputs(6, 5, 7)),
    Case("odd", "edge", _inputs(19, 33, 12)),
    Case("clusters", "edge", _inputs(12, 40, 24, clusters=3, spread=0.01)),
    Case("large", "large", _inputs(250, 100, 100)),
)


def _half(name: str, function: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Spec:
    """The kernel is that of relational_distillation, and tested there."""
    return Spec(
        name=name,
        stem="relational_distillation",
        function=function,
        reference=plain,
        kernels={},
        cases=(*_SHARED, Case("batch", "paper", _inputs(64, 128, 128, clusters=16, spread=0.5))),
        tolerances=_TOLERANCES,
        differentiable=(0,),
        twice=False,
    )


SPECS = (
    Spec(
        name="relational_distillation",
        stem="relational_distillation",
        function=ops.relational_distillation,
        reference=_plain,
        kernels={
            "relational_distillation": lambda x: (x[0], x[1], 1.0, 2.0, True),
            "relational_distillation_backward": lambda x: (x[0].new_ones(()), _matrix(x[0]), x[0]),
        },
        cases=(
            *_SHARED,
            Case("no-row", "edge", _inputs(0, 5, 7)),
            Case("one-row", "edge", _inputs(1, 5, 7)),
            Case("two-rows", "edge", _inputs(2, 5, 7)),
            Case("one-column", "edge", _inputs(5, 1, 1)),
            Case("no-column", "edge", _inputs(3, 0, 2)),
            Case("same-teacher", "edge", _same_teacher(7, 9)),
            Case("distance-alone", "edge", _inputs(9, 6, 4), {"angle": 0.0}),
            Case("angle-alone", "edge", _inputs(9, 6, 4), {"distance": 0}),
            Case("nothing", "edge", _inputs(9, 6, 4), {"distance": 0.0, "angle": 0.0}),
            Case("other-weights", "edge", _inputs(9, 6, 4), {"distance": 25.0, "angle": 50}),
            Case(
                "batch",
                "paper",
                _inputs(128, 512, 512, clusters=32, spread=0.5),
                floors={
                    "cpu forward": 40.0,
                    "cpu training": 60.0,
                    "cpu forward tuned": 45.0,
                    "cpu training tuned": 55.0,
                },
            ),
        ),
        tolerances=_TOLERANCES,
        differentiable=(0,),
        twice=False,
    ),
    _half("relational_distance", ops.relational_distance, _distance),
    _half("relational_angle", ops.relational_angle, _angle),
)
