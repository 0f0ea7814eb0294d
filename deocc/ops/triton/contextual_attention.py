"""Triton and not CUDA: the matrix products are cuBLAS's, and what remains are sums along diagonals and a softmax, which
only move memory. Not yet timed on a GPU.

Unlike on the CPU, scores are in memory as L x L matrices, in float32 (float64 for float64), for as many samples at a
time as fit ``_ELEMENTS``. What each step computes is written down in ``csrc/contextual_attention.h``; its names are
used here. A grid has one program for each row of queries' scores or block of keys: every access is along the keys.
Queries are counted in int64: a score matrix may have more than 2**31 elements.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deocc.ops.reference import contextual_attention as reference

_ELEMENTS = 1 << 26
"""Of all score matrices of one kind that are in memory at a time, unless one sample alone has more."""

_BLOCK = 512


@triton.jit
def _near(p, dy, dx, h, w):
    """The position dy rows down and dx columns to the right of p, and whether it is one."""
    y, x = p // w + dy, p % w + dx
    return p + dy * w + dx, (y >= 0) & (y < h) & (x >= 0) & (x < w)


@triton.jit
def _down_column(p, d, h, w):
    """The position d further down the column of p, continued in the next column, and whether it is one."""
    c = (p % w) * h + p // w + d
    return (c % h) * w + c // h, (c >= 0) & (c < h * w)


@triton.jit
def _column_sum(scores, q, k, h, w):
    """A2 of the query q and the keys k of a sample, from its A1."""
    keys = h * w
    total = tl.load(scores + q * keys + k, mask=k < keys, other=0.0)
    for d in tl.static_range(-1, 2, 2):
        other, inside = _down_column(q, d, h, w)
        key, there = _down_column(k, d, h, w)
        total += tl.load(scores + other * keys + key, mask=inside & there & (k < keys), other=0.0)
    return total


@triton.jit
def _sum_nine(source, factor, target, h, w, BLOCK: tl.constexpr):  # noqa: N803
    """S from G, with factor 1 / norm."""
    keys = h * w
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    q, sample = tl.program_id(0).to(tl.int64) + tl.zeros_like(k), tl.program_id(2).to(tl.int64)
    scores = source + sample * keys * keys
    total = tl.load(scores + q * keys + k, mask=k < keys, other=0.0)
    for dy in tl.static_range(-1, 2):
        for dx in tl.static_range(-1, 2):
            if dy != 0 or dx != 0:
                other, inside = _near(q, dy, dx, h, w)
                key, there = _near(k, dy, dx, h, w)
                total += tl.load(scores + other * keys + key, mask=inside & there & (k < keys), other=0.0)
    total *= tl.load(factor + sample * keys + k, mask=k < keys, other=0.0)
    tl.store(target + sample * keys * keys + q * keys + k, total, mask=k < keys)


@triton.jit
def _sum_flat(source, target, h, w, BLOCK: tl.constexpr):  # noqa: N803
    """A1 from S."""
    keys = h * w
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    q, sample = tl.program_id(0).to(tl.int64) + tl.zeros_like(k), tl.program_id(2).to(tl.int64)
    scores = source + sample * keys * keys
    total = tl.load(scores + q * keys + k, mask=k < keys, other=0.0)
    total += tl.load(scores + (q - 1) * keys + k - 1, mask=(q > 0) & (k > 0) & (k < keys), other=0.0)
    total += tl.load(scores + (q + 1) * keys + k + 1, mask=(q + 1 < keys) & (k + 1 < keys), other=0.0)
    tl.store(target + sample * keys * keys + q * keys + k, total, mask=k < keys)


@triton.jit
def _sum_columns(source, target, h, w, BLOCK: tl.constexpr):  # noqa: N803
    """A2 from A1."""
    keys = h * w
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    q, sample = tl.program_id(0).to(tl.int64) + tl.zeros_like(k), tl.program_id(2).to(tl.int64)
    total = _column_sum(source + sample * keys * keys, q, k, h, w)
    tl.store(target + sample * keys * keys + q * keys + k, total, mask=k < keys)


@triton.jit
def _logits(scores, valid, q, k, h, w, scale, FUSE: tl.constexpr):  # noqa: N803
    keys = h * w
    if FUSE:
        score = _column_sum(scores, q + tl.zeros_like(k), k, h, w)
    else:
        score = tl.load(scores + q * keys + k, mask=k < keys, other=0.0)
    weight = tl.load(valid + k, mask=k < keys, other=0.0)
    return tl.where(k < keys, score * weight * tl.load(scale), float("-inf")), weight


@triton.jit
def _attend(source, valid, target, h, w, scale, FUSE: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """E from A1, or from S without fuse."""
    keys = h * w
    q, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    scores, weights = source + sample * keys * keys, valid + sample * keys
    most = tl.full((BLOCK,), float("-inf"), target.dtype.element_ty)
    for first in range(0, keys, BLOCK):
        logit, _ = _logits(scores, weights, q, first + tl.arange(0, BLOCK), h, w, scale, FUSE)
        most = tl.maximum(most, logit)
    highest = tl.max(most, axis=0)
    total = tl.zeros((BLOCK,), target.dtype.element_ty)
    for first in range(0, keys, BLOCK):
        logit, _ = _logits(scores, weights, q, first + tl.arange(0, BLOCK), h, w, scale, FUSE)
        total += tl.exp(logit - highest)
    factor = 1 / tl.sum(total, axis=0)
    for first in range(0, keys, BLOCK):
        k = first + tl.arange(0, BLOCK)
        logit, weight = _logits(scores, weights, q, k, h, w, scale, FUSE)
        attention = tl.exp(logit - highest) * factor * weight
        tl.store(target + sample * keys * keys + q * keys + k, attention, mask=k < keys)


@triton.jit
def _through_softmax(attention, gradient, h, w, scale, BLOCK: tl.constexpr):  # noqa: N803
    """From the gradient by E to that by A2, in place."""
    keys = h * w
    q, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = sample * keys * keys + q * keys
    total = tl.zeros((BLOCK,), gradient.dtype.element_ty)
    for first in range(0, keys, BLOCK):
        k = first + tl.arange(0, BLOCK)
        e = tl.load(attention + row + k, mask=k < keys, other=0.0)
        total += e * tl.load(gradient + row + k, mask=k < keys, other=0.0)
    mean = tl.sum(total, axis=0)
    for first in range(0, keys, BLOCK):
        k = first + tl.arange(0, BLOCK)
        e = tl.load(attention + row + k, mask=k < keys, other=0.0)
        g = tl.load(gradient + row + k, mask=k < keys, other=0.0)
        tl.store(gradient + row + k, tl.load(scale) * e * (g - mean), mask=k < keys)


@triton.jit
def _mix(source, target, h, w, sy, sx, ADD: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """T of one side from E; with the side's opposite, the gradient by E from that by T, added to what is there."""
    keys = h * w
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    q, sample = tl.program_id(0).to(tl.int64) + tl.zeros_like(k), tl.program_id(2).to(tl.int64)
    scores = source + sample * keys * keys
    total = tl.load(scores + q * keys + k, mask=k < keys, other=0.0)
    for step in tl.static_range(1, 4):
        dy, dx = sy * (step // 2), sx * (step % 2)
        other, inside = _near(q, dy, dx, h, w)
        key, there = _near(k, dy, dx, h, w)
        total += tl.load(scores + other * keys + key, mask=inside & there & (k < keys), other=0.0)
    to = target + sample * keys * keys + q * keys + k
    if ADD:
        total += tl.load(to, mask=k < keys, other=0.0)
    tl.store(to, total, mask=k < keys)


class _Problem:
    """A group of samples: their features as matrices, and the steps from one score matrix to the next."""

    def __init__(
        self, foreground: Tensor, background: Tensor, occluded: Tensor, rate: int, scale: float, fuse: bool
    ) -> None:
        self.dtype = torch.promote_types(foreground.dtype, torch.float32)
        self.rate, self.fuse = rate, fuse
        # A number that is passed to a kernel is float32 there.
        self.scale = foreground.new_full((1,), scale, dtype=self.dtype)
        self.height, self.width = (size // rate for size in foreground.shape[2:])
        self.keys = self.height * self.width
        self.queries = foreground[:, :, ::rate, ::rate].to(self.dtype).flatten(2)
        self.cells = self.to_cells(background)
        self.pixels = self.cells[:, 0]
        square = self.pixels.square().sum(dim=1).reshape(-1, self.height, self.width)
        norm = (torch.nn.functional.avg_pool2d(square, 3, 1, 1, divisor_override=1)).flatten(1).sqrt()
        self.clamped = norm < 1e-4
        self.inverse = 1 / norm.clamp(min=1e-4)
        self.valid = reference.valid_keys(occluded.to(self.dtype), rate)[:, 0].contiguous()

    def to_cells(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, rate * rate, C, L): the pixels of every cell."""
        count, channels = image.shape[:2]
        cells = image.to(self.dtype).reshape(count, channels, self.height, self.rate, self.width, self.rate)
        return cells.permute(0, 3, 5, 1, 2, 4).reshape(count, self.rate**2, channels, self.keys)

    def to_image(self, cells: Tensor) -> Tensor:
        """The inverse of :meth:`to_cells`."""
        count, _, channels, _ = cells.shape
        image = cells.reshape(count, self.rate, self.rate, channels, self.height, self.width)
        return image.permute(0, 3, 4, 1, 5, 2).reshape(count, channels, self.height * self.rate, self.width * self.rate)

    def sides(self) -> Iterator[tuple[int, int, Tensor]]:
        """(sy, sx, the pixels of a cell for which the second patch that covers them lies there)."""
        offsets = torch.arange(self.rate, device="cpu")
        after = offsets >= self.rate - self.rate // 2
        for sy in (-1, 1):
            for sx in (-1, 1):
                chosen = (after == (sy > 0))[:, None] & (after == (sx > 0))
                if chosen.any():
                    yield sy, sx, chosen.flatten().nonzero()[:, 0]

    def empty(self) -> Tensor:
        return self.queries.new_empty((len(self.queries), self.keys, self.keys))

    def grid(self) -> tuple[int, int, int]:
        """A query, a block of keys and a sample for each program; only the first may be more than 65,535."""
        return self.keys, triton.cdiv(self.keys, _BLOCK), len(self.queries)

    def similarity(self) -> Tensor:
        """S."""
        product = torch.bmm(self.queries.transpose(1, 2), self.pixels)
        return self.launch(_sum_nine, product, self.inverse)

    def launch(self, kernel: Any, *sources: Tensor) -> Tensor:
        """Make a score matrix from others, a block of keys in each program."""
        target = self.empty()
        kernel[self.grid()](*sources, target, self.height, self.width, BLOCK=_BLOCK)
        return target

    def attention(self, similarity: Tensor) -> Tensor:
        """E."""
        scores = self.launch(_sum_flat, similarity) if self.fuse else similarity
        target = self.empty()
        _attend[(self.keys, len(target))](
            scores, self.valid, target, self.height, self.width, self.scale, FUSE=self.fuse, BLOCK=_BLOCK
        )
        return target

    def mix(self, source: Tensor, sy: int, sx: int, target: Tensor | None = None) -> Tensor:
        """T of one side; added to ``target`` when there is one."""
        out = self.empty() if target is None else target
        _mix[self.grid()](source, out, self.height, self.width, sy, sx, ADD=target is not None, BLOCK=_BLOCK)
        return out


def _groups(foreground: Tensor, rate: int) -> Iterator[slice]:
    keys = foreground.shape[2] * foreground.shape[3] // rate**2
    step = min(max(_ELEMENTS // keys**2, 1), 65_535)  # samples are on an axis of the grid
    return (slice(first, first + step) for first in range(0, len(foreground), step))


def contextual_attention(
    foreground: Tensor, background: Tensor, occluded: Tensor, rate: int, scale: float, fuse: bool
) -> Tensor:
    """See :func:`deocc.ops.contextual_attention`."""
    out = _like(foreground)
    for part in _groups(foreground, rate):
        problem = _Problem(foreground[part], background[part], occluded[part], rate, scale, fuse)
        attention = problem.attention(problem.similarity())
        cells = torch.empty_like(problem.cells)
        for sy, sx, pixels in problem.sides():
            mixed = problem.mix(attention, sy, sx).transpose(1, 2)
            for pixel in pixels.tolist():
                cells[:, pixel] = torch.bmm(problem.cells[:, pixel], mixed)
        out[part] = problem.to_image(cells / 4).to(out.dtype)
    return out


def contextual_attention_backward(
    gradient: Tensor,
    foreground: Tensor,
    background: Tensor,
    occluded: Tensor,
    rate: int,
    scale: float,
    fuse: bool,
) -> tuple[Tensor, Tensor]:
    """Derivatives by foreground and background."""
    by_foreground, by_background = _like(foreground).zero_(), _like(background)
    for part in _groups(foreground, rate):
        problem = _Problem(foreground[part], background[part], occluded[part], rate, scale, fuse)
        similarity = problem.similarity()
        attention = problem.attention(similarity)
        upstream = problem.to_cells(gradient[part]) / 4
        by_cells = torch.empty_like(problem.cells)
        by_attention = torch.zeros_like(attention)
        for sy, sx, pixels in problem.sides():
            mixed = problem.mix(attention, sy, sx)
            by_mixed = torch.zeros_like(mixed)
            for pixel in pixels.tolist():
                by_mixed.baddbmm_(upstream[:, pixel].transpose(1, 2), problem.cells[:, pixel])
                by_cells[:, pixel] = torch.bmm(upstream[:, pixel], mixed)
            problem.mix(by_mixed, -sy, -sx, by_attention)
        _through_softmax[(problem.keys, len(attention))](
            attention, by_attention, problem.height, problem.width, problem.scale, BLOCK=_BLOCK
        )
        by_similarity = by_attention
        if fuse:  # sums along diagonals are their own adjoints
            by_similarity = problem.launch(_sum_flat, problem.launch(_sum_columns, by_attention))
        product = (by_similarity * similarity).sum(dim=1)
        by_product = problem.launch(_sum_nine, by_similarity * problem.inverse[:, None], torch.ones_like(product))
        by_foreground[part, :, ::rate, ::rate] = (
            torch.bmm(problem.pixels, by_product.transpose(1, 2))
            .reshape(*foreground[part].shape[:2], problem.height, problem.width)
            .to(by_foreground.dtype)
        )
        # d/db' of 1 / norm: minus product / norm^2 * b', at each of the nine pixels of the patch.
        by_square = (product * problem.inverse.square()).masked_fill(problem.clamped, 0)
        by_square = torch.nn.functional.avg_pool2d(
            by_square.reshape(-1, problem.height, problem.width), 3, 1, 1, divisor_override=1
        )
        by_cells[:, 0] += torch.bmm(problem.queries, by_product) - problem.pixels * by_square.flatten(1)[:, None]
        by_background[part] = problem.to_image(by_cells).to(by_background.dtype)
    return by_foreground, by_background


def contextual_attention_offsets(
    foreground: Tensor, background: Tensor, occluded: Tensor, rate: int, fuse: bool
) -> Tensor:
    """See :func:`deocc.ops.contextual_attention_offsets`."""
    height, width = (size // rate for size in foreground.shape[2:])
    out = foreground.new_empty((len(foreground), 2, height, width), dtype=torch.int32)
    query = torch.arange(height * width, device=foreground.device)
    for part in _groups(foreground, rate):
        problem = _Problem(foreground[part], background[part], occluded[part], rate, 1.0, fuse)
        score = problem.similarity()
        if fuse:
            score = problem.launch(_sum_columns, problem.launch(_sum_flat, score))
        valid = problem.valid[:, None].bool()
        best = score.masked_fill(~valid, float("-inf")).argmax(dim=2)
        found = torch.stack([best // width - query // width, best % width - query % width], dim=1)
        found = found * valid.any(dim=2)[:, :, None]
        out[part] = found.reshape(-1, 2, height, width).to(torch.int32)
    return out


def _like(value: Tensor) -> Tensor:
    channels_last = value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
    return torch.empty_like(value, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
