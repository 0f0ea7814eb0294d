"""Triton and not CUDA: the matrix products are cuBLAS's, and what remains is one pass over the triplets, which is
arithmetic in registers. Not yet timed on a GPU.

Everything is float64, as ``csrc/relational_distillation.h`` says and for its reasons; its names are used here. Unlike
on the CPU, each program of the pass over the triplets has an i of its own and a block of k, so i, k and k, i are
computed both: no two programs add to one place, and the same call gives the same bits. One block is added up before the
next one starts, so that memory is N x N however many there are.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEAST, _NEAR, _CLOSE = 1e-12, 3e-8, 1e-3
"""kLeast, kNear and kClose."""

_ENDS = 128
"""k in a block of the pass over the triplets."""

_VERTICES = 8
"""j that it takes at a time."""


@triton.jit
def _relate(x, gram, length, inverse, free, n, depth, NEAR, CLOSE, LEAST, ROWS: tl.constexpr, DEPTH: tl.constexpr):  # noqa: N803
    """A row of d and u, from the points (float64, centred) and G; and 1 where the maximum in u is d, else 0."""
    i = tl.program_id(0)
    j = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = j < n
    norms = tl.load(gram + i * n + i) + tl.load(gram + j * n + j, mask=inside, other=0.0)
    square = norms - 2 * tl.load(gram + i * n + j, mask=inside, other=0.0)
    close = inside & (square <= CLOSE * CLOSE * norms)
    if tl.max(close.to(tl.int32), axis=0) > 0:
        taken = tl.zeros((ROWS,), tl.float64)
        for first in range(0, depth, DEPTH):
            c = first + tl.arange(0, DEPTH)
            mine = tl.load(x + i * depth + c, mask=c < depth, other=0.0)
            mask = close[:, None] & (c < depth)[None, :]
            others = tl.load(x + j[:, None] * depth + c[None, :], mask=mask, other=0.0)
            difference = tl.where(mask, mine[None, :] - others, 0.0)
            taken += tl.sum(difference * difference, axis=1)
        square = tl.where(close, taken, square)
    square = tl.where(j == i, 0.0, square)
    least = tl.maximum(NEAR * NEAR * norms, tl.zeros((ROWS,), tl.float64) + LEAST * LEAST)
    is_free = square > least
    u = tl.where(square == 0, 0.0, 1 / tl.sqrt(tl.where(square < least, least, square)))
    tl.store(length + i * n + j, tl.sqrt(square), mask=inside)
    tl.store(inverse + i * n + j, u, mask=inside)
    tl.store(free + i * n + j, tl.where(is_free, u * u, 0.0), mask=inside)


@triton.jit
def _angles(gram, inverse, i, k, j, n):
    """a[i,j,k] for the block of k (rows) and of j (columns), and u[i,j] u[k,j]. Both are 0 beyond N."""
    inside = (k < n)[:, None] & (j < n)[None, :]
    ik = tl.load(gram + i * n + k, mask=k < n, other=0.0)
    ij = tl.load(gram + i * n + j, mask=j < n, other=0.0)
    jj = tl.load(gram + j * n + j, mask=j < n, other=0.0)
    kj = tl.load(gram + k[:, None] * n + j[None, :], mask=inside, other=0.0)
    u = tl.load(inverse + i * n + j, mask=j < n, other=0.0)[None, :] * tl.load(
        inverse + k[:, None] * n + j[None, :], mask=inside, other=0.0
    )
    return ((ik[:, None] - ij[None, :]) + (jj[None, :] - kj)) * u, u


@triton.jit
def _triplets(
    gram_s, inverse_s, gram_t, inverse_t, loss, ends, along, both, n, start,
    GRADIENT: tl.constexpr, ENDS: tl.constexpr, VERTICES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """For one i and k from start on: sums of h (loss), of W (ends) and of h' a (along) over k, of W over j (both)."""
    i = tl.program_id(0)
    k = start + tl.arange(0, ENDS)
    total = tl.zeros((ENDS,), tl.float64)
    weights = tl.zeros((ENDS,), tl.float64)
    place = i.to(tl.int64) * n
    for first in range(0, n, VERTICES):
        j = first + tl.arange(0, VERTICES)
        angle, u = _angles(gram_s, inverse_s, i, k, j, n)
        wanted, _ = _angles(gram_t, inverse_t, i, k, j, n)
        difference = angle - wanted
        slope = tl.where(difference > 1, 1.0, tl.where(difference < -1, -1.0, difference))
        total += tl.sum(slope * (difference - 0.5 * slope), axis=1)
        if GRADIENT:
            weight = slope * u
            weights += tl.sum(weight, axis=1)
            tl.store(ends + place + j, tl.sum(weight, axis=0), mask=j < n)
            tl.store(along + place + j, tl.sum(slope * angle, axis=0), mask=j < n)
    tl.store(loss + i, tl.sum(total, axis=0))
    if GRADIENT:
        tl.store(both + place + k, weights, mask=k < n)


def _related(points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """G, d, u, and u squared where it may change (N, N)."""
    n, depth = points.shape
    x = points.double()
    x = (x - x.mean(dim=0)).contiguous()
    gram = x @ x.T
    length, inverse, free = (torch.empty_like(gram) for _ in range(3))
    rows, columns = 16, 64
    _relate[(n, triton.cdiv(n, rows))](
        x, gram, length, inverse, free, n, depth, _NEAR, _CLOSE, _LEAST, ROWS=rows, DEPTH=columns
    )
    return gram, length, inverse, free


def _inverse_mean(length: Tensor) -> tuple[Tensor, Tensor]:
    """1 / mean(d) over those that are not 0, else 0; and how many they are, at least 1."""
    count = length.count_nonzero()
    return torch.where(count > 0, count / length.sum(), 0.0), count.clamp(min=1)


def relational_distillation(
    student: Tensor, teacher: Tensor, distance: float, angle: float, gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and M or an empty matrix."""
    n = len(student)
    side = n if gradient else 0
    loss = torch.zeros((), dtype=torch.float64, device=student.device)
    matrix = torch.zeros((side, side), dtype=torch.float64, device=student.device)
    if n == 0:
        return loss.to(student.dtype), matrix
    gram_s, length_s, inverse_s, free = _related(student)
    gram_t, length_t, inverse_t, _ = _related(teacher)
    if distance != 0:
        (factor_s, count), (factor_t, _) = _inverse_mean(length_s), _inverse_mean(length_t)
        difference = length_s * factor_s - length_t * factor_t
        slope = difference.clamp(-1, 1)
        loss = loss + distance / n**2 * (slope * (difference - 0.5 * slope)).sum()
        if gradient:
            shared = (slope * length_s).sum() * factor_s**2 / count
            apart = length_s != 0
            pull = (slope * factor_s - shared) / length_s.where(apart, 1)
            matrix -= 2 * distance / n**2 * pull.where(apart, 0)
    if angle != 0:
        losses, both = gram_s.new_empty(n), gram_s.new_empty(side, side)
        ends, along = gram_s.new_zeros((2, side, side))
        some_ends, some_along = gram_s.new_empty((2, side, side))
        for start in range(0, n, _ENDS):
            _triplets[(n,)](
                gram_s, inverse_s, gram_t, inverse_t, losses, some_ends, some_along, both, n, start,
                GRADIENT=gradient, ENDS=min(_ENDS, triton.next_power_of_2(n)), VERTICES=_VERTICES,
            )  # fmt: skip
            loss = loss + angle / n**3 * losses.sum()
            if gradient:
                ends += some_ends
                along += some_along
        if gradient:
            changes = free * along - ends
            matrix += 2 * angle / n**3 * (both + changes + changes.T)
    if gradient:
        matrix.fill_diagonal_(0)
        matrix -= matrix.sum(dim=1).diag()
    return loss.to(student.dtype), matrix


def relational_distillation_backward(gradient: Tensor, matrix: Tensor, student: Tensor) -> Tensor:
    """gradient times M x."""
    x = student.double()
    return (gradient * (matrix @ (x - x.mean(dim=0)))).to(student.dtype)
