"""Teaching a network how a batch's embeddings lie to each other, in pairs and in triplets (Park et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deocc.errors import InputError
from deocc.ops._registry import Operator, is_finite
from deocc.ops.reference import relational_distillation as reference

_OPERATOR = Operator("relational_distillation", gpu="triton")
_DISTANCE = Operator("relational_distance", gpu="triton", kernel="relational_distillation")
_ANGLE = Operator("relational_angle", gpu="triton", kernel="relational_distillation")


def relational_distillation(student: Tensor, teacher: Tensor, *, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """``distance * relational_distance(...) + angle * relational_angle(...)``, from one Gram matrix.

    The pair-wise and the triplet-wise loss of the paper that the plugin distill follows (equations 13 to 15) and of
    Park et al. 2019 (equations 5 to 10), as means instead of sums. What is said here holds for the two alone as well.

    - The gradient flows to the student, through the mean distance too, and never to the teacher: that one may require a
      gradient and gets none. There is no second derivative: asking for one is an error.
    - Rows that are equal (a row and itself among them) have distance 0, every angle with them is 0, and they give no
      gradient. An empty batch and a single row have loss 0. Where all rows of one side are equal, its distances and
      angles are all 0; where all of the student's are, so is the gradient.
    - It takes O(N^2 D + N^3) time and O(N^2) memory. Everything is computed in float64 and rounded once: an offset that
      all rows have does no harm, however near they are to each other. Where a batch has several clusters, the gradient
      of angles inside a cluster loses digits: its error is about 1e-8 of it where clusters are 1e-4 of the batch's
      extent wide, 1e-4 at 1e-6 and 1e-2 at 1e-7. Below, float64 has none: rows count as at least 3e-8 of their distance
      from the batch's mean apart, and nearer ones have a shorter direction.
    - NaN and infinities anywhere make the loss NaN; of the gradient nothing is promised then.

    The embeddings promote to one dtype, inside ``torch.autocast`` too; none is faster than another, since rows minus
    their mean are no longer of half precision. Any strides are accepted. The same call gives the same bits for the
    same number of threads.

    Args:
        student: (N, Ds) floating point (float64, float32, bfloat16 or float16). Not normalised here.
        teacher: (N, Dt), likewise; Dt may differ from Ds. Row for row of the same things as the student's.
        distance: weight of the distances; any finite number. With 0 they are left out, and cost nothing.
        angle: weight of the angles, likewise.

    Returns:
        (), in the embeddings' dtype.

    Raises:
        InputError: a type, shape, dtype, device or weight that does not fit.
    """
    return _compute(_OPERATOR, student, teacher, distance, angle)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the relative distances of student and teacher, over all N x N pairs of a batch.

    ``mean(h(ds / mean(ds) - dt / mean(dt)))`` with ``h(x) = x**2 / 2`` for ``|x| <= 1``, else ``|x| - 1/2``. The means
    of the distances are over those that are not 0 (Park et al. 2019, equations 5 to 7; distill, equation 13).

    Args:
        student, teacher: as in :func:`relational_distillation`, where everything else is said too.

    Returns:
        (), in the embeddings' dtype.

    Raises:
        InputError: as there.
    """
    return _compute(_DISTANCE, student, teacher, 1.0, 0.0)


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the angles of student and teacher, over all N x N x N triplets of a batch.

    The angle in a triplet is ``<e_ij, e_kj>``, the cosine at j between i and k, with ``e_ij`` the difference
    ``x_i - x_j`` over its length, of at least 1e-12. Triplets with equal members count in the mean (Park et al. 2019,
    equations 8 to 10; distill, equations 14 and 15).

    Args:
        student, teacher: as in :func:`relational_distillation`, where everything else is said too.

    Returns:
        (), in the embeddings' dtype.

    Raises:
        InputError: as there.
    """
    return _compute(_ANGLE, student, teacher, 0.0, 1.0)


class RelationalDistillation(nn.Module):
    """:func:`relational_distillation` with its weights, as a module.

    Args:
        distance, angle: as there; Park et al. take 1 and 2.
    """

    def __init__(self, distance: float = 1.0, angle: float = 2.0) -> None:
        super().__init__()
        _check_weights("RelationalDistillation", distance, angle)
        self.distance = distance
        self.angle = angle

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, ()."""
        return relational_distillation(student, teacher, distance=self.distance, angle=self.angle)

    def extra_repr(self) -> str:
        """The weights."""
        return f"distance={self.distance}, angle={self.angle}"


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _compute(operator: Operator, student: Tensor, teacher: Tensor, distance: float, angle: float) -> Tensor:
    _check(operator.name, student, teacher)
    _check_weights(operator.name, distance, angle)
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    distance, angle = float(distance), float(angle)
    if operator.uses_reference(student.device.type):
        return reference.relational_distillation(student, teacher, distance, angle)
    gradient = student.requires_grad and torch.is_grad_enabled()
    loss, _ = torch.ops.deocc.relational_distillation(student, teacher, distance, angle, gradient)
    return loss  # type: ignore[no-any-return]


def _check(name: str, student: Tensor, teacher: Tensor) -> None:
    for what, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name}: {what} must be a torch.Tensor, got {type(value).__name__}")
        if value.dtype not in _DTYPES:
            raise InputError(f"{name}: {what} must be float32, float64, bfloat16 or float16, got {value.dtype}")
        if value.layout != torch.strided:
            raise InputError(f"{name}: {what} must be a dense tensor, got {value.layout}")
        if value.device != student.device:
            raise InputError(f"{name}: {what} must be on the student's device {student.device}, got {value.device}")
        if value.dim() != 2:
            raise InputError(f"{name}: {what} must have shape (N, D), got {tuple(value.shape)}")
    rows, got = student.shape[0], teacher.shape[0]
    if got != rows:
        raise InputError(f"{name}: teacher must have as many rows as the student, {rows}, got {got}")


def _check_weights(name: str, distance: float, angle: float) -> None:
    for what, value in (("distance", distance), ("angle", angle)):
        if not is_finite(value):
            raise InputError(f"{name}: {what} must be a finite number, got {value!r}")


def _fake(student: Tensor, teacher: Tensor, distance: float, angle: float, gradient: bool) -> tuple[Tensor, Tensor]:
    side = student.shape[0] if gradient else 0
    return student.new_empty(()), student.new_empty((side, side), dtype=torch.float64)


def _fake_backward(gradient: Tensor, matrix: Tensor, student: Tensor) -> Tensor:
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, float, bool], output: tuple[Tensor, Tensor]) -> None:
    student = inputs[0]
    _, matrix = output
    ctx.mark_non_differentiable(matrix)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(matrix, student)


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None or not ctx.needs_input_grad[0]:
        return None, None, None, None, None
    return torch.ops.deocc.relational_distillation_backward(gradient, *ctx.saved_tensors), None, None, None, None


_OPERATOR.define(
    "relational_distillation(Tensor student, Tensor teacher, float distance, float angle, bool gradient)"
    " -> (Tensor, Tensor)",
    _fake,
)
_OPERATOR.define(
    "relational_distillation_backward(Tensor gradient, Tensor matrix, Tensor student) -> Tensor",
    _fake_backward,
)
_OPERATOR.differentiate(_backward, _setup_context)
_OPERATOR.refuse_derivative("relational_distillation_backward")
_OPERATOR.implement_in_triton("relational_distillation", "relational_distillation_backward")
