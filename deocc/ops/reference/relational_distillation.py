"""Reference of :func:`deocc.ops.relational_distillation` and its two halves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.ops.reference import in_full


def relational_distillation(student: Tensor, teacher: Tensor, distance: float, angle: float) -> Tensor:
    """``distance`` times :func:`relational_distance` plus ``angle`` times :func:`relational_angle`.

    A half with the weight 0 is left out.

    Args:
        student: (N, Ds).
        teacher: (N, Dt); it receives no gradient.
        distance, angle: weights.

    Returns:
        (), in the student's dtype; half precision is computed in float32.
    """
    dtype = student.dtype
    wide = torch.promote_types(dtype, torch.float32)
    student, teacher = student.to(wide), teacher.detach().to(wide)
    loss = student.sum() * 0  # so that there is a gradient, of 0, whatever is left out
    if student.shape[0] == 0:
        return loss.to(dtype)
    with in_full(student):  # the matrix product would be computed in half precision
        if distance != 0:
            loss = loss + distance * relational_distance(student, teacher)
        if angle != 0:
            loss = loss + angle * relational_angle(student, teacher)
    return loss.to(dtype)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss (delta 1) between the relative distances of all N x N pairs (distill eq. 13, Park et al. eq. 5-7)."""
    return F.huber_loss(relative_distances(student), relative_distances(teacher))


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss (delta 1) between the angles in all N x N x N triplets (distill eq. 14-15, Park et al. eq. 8-10)."""
    return F.huber_loss(cosines(student), cosines(teacher))


def relative_distances(x: Tensor) -> Tensor:
    """Distances of all pairs, over the mean of those that are not 0: (N, D) -> (N, N). All 0 when there are none."""
    _, length, apart = _differences(x)
    return length / (length.sum() / apart.sum().clamp(min=1)).where(apart.any(), 1)


def cosines(x: Tensor) -> Tensor:
    """Cosine of the angle at j between i and k: (N, D) -> (j, i, k). It is 0 where i or k is equal to j."""
    difference, length, apart = _differences(x)
    direction = difference / length.clamp(min=1e-12).where(apart, 1)[:, :, None]
    direction = direction.transpose(0, 1)  # [j, i] points from j to i
    return direction @ direction.transpose(1, 2)


def _differences(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x[i] - x[j]`` (N, N, D), its length (N, N), and whether the two differ. Equal ones have gradient 0."""
    difference = x[:, None] - x[None]
    square = difference.square().sum(dim=2)
    apart = square != 0
    difference = difference.where(apart[:, :, None], 0)
    return difference, square.where(apart, 1).sqrt().where(apart, 0), apart
