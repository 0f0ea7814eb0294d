"""Triton and not CUDA: two matrix products with a running softmax between them, which Triton puts on tensor cores in
half precision; in float32 they are plain multiply-adds. Not yet timed on a GPU.

Each program has a block of queries and a share of the keys, which stream by; their scores are never in memory. With a
derivative wanted, it adds up the keys, weighted by their exponentials, for ``_COLUMNS`` columns: more columns than
that are further programs, which score again. A queue in half precision is multiplied as it is, with queries and
exponentials rounded to it; float32 is multiplied in full float32, and float64 element by element.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES = 64
_KEYS = 32
_COLUMNS = 128
_PROGRAMS = 264
"""How many programs are wanted at least: two for each processor of a large GPU."""


@triton.jit
def _product(a, b, sums, wide: tl.constexpr):
    """Sums + a b."""
    if wide:
        return sums + tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    else:  # what follows a return inside a branch is compiled too, and Triton 3.6 has no such product of float64
        return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def _stream(
    query, queue, right, offsets, totals, added,
    count, dim, keys, share, scale, query_row, query_column, queue_row, queue_column,
    wide: tl.constexpr, derivative: tl.constexpr, queries: tl.constexpr, block: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """The highest score, the sum of exponentials and, with ``derivative``, of weighted keys of one share.

    Scores are in powers of 2. ``right``, the score with the positive, is the least that the highest can be.
    """
    n = tl.program_id(0).to(tl.int64) * queries + tl.arange(0, queries)
    part = tl.program_id(1)
    mine = tl.program_id(2).to(tl.int64) * columns + tl.arange(0, columns)
    there = n < count
    most = tl.load(right + n, mask=there, other=0.0)
    total = tl.zeros_like(most)
    sums = tl.zeros((queries, columns), most.dtype)
    first = part.to(tl.int64) * share
    for start in range(0, share, block):
        k = first + start + tl.arange(0, block)
        valid = (k < keys) & (start + tl.arange(0, block) < share)
        score = tl.zeros((queries, block), most.dtype)
        for c in range(0, dim, columns):
            at = (c + tl.arange(0, columns)).to(tl.int64)
            q = tl.load(
                query + n[:, None] * query_row + at[None, :] * query_column,
                mask=there[:, None] & (at[None, :] < dim), other=0.0,
            )  # fmt: skip
            key = tl.load(
                queue + k[None, :] * queue_row + at[:, None] * queue_column,
                mask=valid[None, :] & (at[:, None] < dim), other=0.0,
            )  # fmt: skip
            score = _product(q, key, score, wide)
        score = tl.where(valid[None, :], score * scale, float("-inf"))
        highest = tl.maximum(most, tl.max(score, axis=1))
        weight = tl.exp2(score - highest[:, None])
        shrink = tl.exp2(most - highest)
        total = total * shrink + tl.sum(weight, axis=1)
        if derivative:
            key = tl.load(
                queue + k[:, None] * queue_row + mine[None, :] * queue_column,
                mask=valid[:, None] & (mine[None, :] < dim), other=0.0,
            )  # fmt: skip
            sums = _product(weight.to(key.dtype), key, sums * shrink[:, None], wide)
        most = highest
    to = part.to(tl.int64) * count + n
    # Every column's programs have the same values.
    tl.store(offsets + to, most, mask=there)
    tl.store(totals + to, total, mask=there)
    if derivative:
        tl.store(added + to[:, None] * dim + mine[None, :], sums, mask=there[:, None] & (mine[None, :] < dim))


def info_nce(
    query: Tensor, positive: Tensor, queue: Tensor, temperature: float, by_query: bool, by_positive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what is asked for of its derivatives; see ``csrc/info_nce.h``."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    (count, dim), keys = query.shape, len(queue)
    to_query, to_positive = (
        query.new_empty((count if wanted else 0, dim), dtype=dtype) for wanted in (by_query, by_positive)
    )
    if not count:
        return query.new_zeros(()), to_query, to_positive
    scale = math.log2(math.e) / temperature
    wide_query, wide_positive = query.to(dtype), positive.to(dtype)
    right = (wide_query * wide_positive).sum(dim=1) * scale
    wide = dtype == torch.float64
    factor = query
    if wide:  # a number that is passed to a kernel is float32 there
        factor, queue, scale = query * scale, queue.to(dtype), 1.0
    factor = factor.to(queue.dtype)
    # Element by element, queries x columns x keys are held at a time.
    queries, block, columns = (16, 16, 16) if wide else (_QUERIES, _KEYS, min(_COLUMNS, max(_power(dim), 16)))
    blocks, chunks = triton.cdiv(count, queries), triton.cdiv(dim, columns) if by_query else 1
    parts = max(min(triton.cdiv(_PROGRAMS, blocks * chunks), triton.cdiv(keys, block)), 1)
    share = triton.cdiv(triton.cdiv(keys, parts), block) * block
    offsets, totals = right.new_empty((2, parts, count))
    added = right.new_empty((parts, count, dim) if by_query else (0,))
    _stream[(blocks, parts, chunks)](
        factor, queue, right, offsets, totals, added,
        count, dim, keys, share, scale, *factor.stride(), *queue.stride(),
        wide=wide, derivative=by_query, queries=queries, block=block, columns=columns,
    )  # fmt: skip

    highest = offsets.amax(dim=0)
    weights = torch.exp2(offsets - highest)
    wrong, own = (totals * weights).sum(dim=0), torch.exp2(right - highest)
    loss = torch.where(wrong > own, (own + wrong).log() + (highest - right) * math.log(2), torch.log1p(wrong / own))
    mean = 1 / (temperature * count)
    missing = (-mean * wrong / (own + wrong))[:, None]
    if by_query:
        mixed = torch.einsum("pn,pnd->nd", weights * (mean / (own + wrong)), added)
        torch.add(missing * wide_positive, mixed, out=to_query)
    if by_positive:
        torch.mul(missing, wide_query, out=to_positive)
    return loss.mean().to(query.dtype), to_query, to_positive


def _power(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def info_nce_backward(
    gradient: Tensor, by_query: Tensor, by_positive: Tensor, query: Tensor | None, positive: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The derivatives times the gradient of the loss, in its dtype."""
    return (gradient * by_query).to(gradient.dtype), (gradient * by_positive).to(gradient.dtype)
