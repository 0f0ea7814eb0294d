"""Triton and not CUDA: one kernel that looks for the nearest or farthest row, tile by tile, and needs no tuned matrix
product, since distances are summed up from differences. Not yet timed on a GPU.

The search serves equations 8, 9 and 10 alike; what remains is work on N rows, in PyTorch. See
``csrc/domain_constrained_ranking.h`` for what is computed.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _OTHERS, _DEPTH = 16, 16, 32
"""Sizes of a tile: rows, rows they are compared with, and dimensions at a time."""

_PART = 1024
"""Of the rows that are compared with, how many one program looks at."""

_NONE = tl.constexpr(1 << 62)


@triton.jit
def _search(
    rows,
    row_labels,
    row_domains,
    order,
    others,
    labels,
    domains,
    known,
    keys,
    places,
    n,
    m,
    dim,
    part,
    PAIRS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    OTHERS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
):
    """For ROWS rows, the best of a part of the others: of another label in the same domain the nearest or, with PAIRS,
    of the same label in the other domain the farthest. keys: (parts, N), the squared distance, negative with PAIRS, and
    -inf for NaN; places: (parts, N), the lowest index that has it, or _NONE."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(order + i, mask=i < n, other=0)
    label, domain = tl.load(row_labels + row), tl.load(row_domains + row)
    best = tl.full((ROWS,), float("inf"), keys.dtype.element_ty)
    place = tl.full((ROWS,), _NONE, tl.int64)
    begin = tl.program_id(1).to(tl.int64) * part
    for first in range(0, part, OTHERS):
        j = begin + first + tl.arange(0, OTHERS)
        there = j < m
        same = label[:, None] == tl.load(labels + j, mask=there, other=-1)[None, :]
        here = domain[:, None] == tl.load(domains + j, mask=there, other=-1)[None, :]
        usable = tl.load(known + j, mask=there, other=0) != 0
        allowed = (same & ~here if PAIRS else here & ~same) & (usable & there)[None, :] & (i < n)[:, None]
        if tl.max(tl.max(allowed.to(tl.int32), axis=1), axis=0) > 0:
            square = tl.zeros((ROWS, OTHERS), keys.dtype.element_ty)
            for start in range(0, dim, DEPTH):
                k = start + tl.arange(0, DEPTH)
                a = tl.load(rows + row[:, None] * dim + k[None, :], mask=(k < dim)[None, :], other=0.0)
                b = tl.load(others + j[:, None] * dim + k[None, :], mask=there[:, None] & (k < dim)[None, :], other=0.0)
                difference = a[:, None, :].to(square.dtype) - b[None, :, :].to(square.dtype)
                square += tl.sum(difference * difference, axis=2)
            key = -square if PAIRS else square
            key = tl.where(square != square, float("-inf"), key)
            key = tl.where(allowed, key, float("inf"))
            least = tl.min(key, axis=1)
            at = tl.min(tl.where(allowed & (key == least[:, None]), j[None, :], _NONE), axis=1)
            better = (least < best) | ((least == best) & (at < place))
            place = tl.where(better, at, place)
            best = tl.where(better, least, best)
    to = tl.program_id(1).to(tl.int64) * n + row
    tl.store(keys + to, best, mask=i < n)
    tl.store(places + to, place, mask=i < n)


class _Labelled(NamedTuple):
    """Rows with their labels and domains, and which of them count."""

    rows: Tensor
    labels: Tensor
    domains: Tensor
    known: Tensor


def _best(one: _Labelled, other: _Labelled, pairs: bool) -> tuple[Tensor, Tensor]:
    """The place of the best among the others for each row, 0 where there is none, and whether there is one."""
    n, dim = one.rows.shape
    m = len(other.rows)
    wide = torch.promote_types(one.rows.dtype, torch.float32)
    parts = triton.cdiv(m, _PART)
    keys = one.rows.new_empty((parts, n), dtype=wide)
    places = one.labels.new_empty((parts, n))
    # Neighbours compare with the same others, so that a tile without any is skipped.
    order = torch.argsort(one.domains.long() * (1 << 40) + one.labels, stable=True)
    _search[(triton.cdiv(n, _ROWS), parts)](
        one.rows.contiguous(),
        one.labels.contiguous(),
        one.domains.to(torch.int32),
        order,
        other.rows.contiguous(),
        other.labels.contiguous(),
        other.domains.to(torch.int32),
        other.known.to(torch.int32),
        keys,
        places,
        n,
        m,
        dim,
        min(_PART, triton.cdiv(m, _OTHERS) * _OTHERS),
        PAIRS=pairs,
        ROWS=_ROWS,
        OTHERS=_OTHERS,
        DEPTH=_DEPTH,
    )
    best = torch.where(keys == keys.amin(dim=0), places, _NONE.value).amin(dim=0)
    found = best != _NONE.value
    return torch.where(found, best, 0), found


def domain_constrained_ranking(
    features: Tensor,
    labels: Tensor,
    domains: Tensor,
    centers: Tensor,
    known: Tensor,
    margin_single: float,
    margin_cross: float,
    cross: float,
    everywhere: bool,
    derivative: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of :func:`deocc.ops.domain_constrained_ranking`, and its derivative by the features when asked for."""
    count, identities = len(features), centers.shape[1]
    wide = torch.promote_types(features.dtype, torch.float32)
    if not count:
        return features.new_zeros(()), features.new_empty(features.shape, dtype=wide)
    torch._assert_async(
        ((labels >= 0) & (labels < identities)).all(), "domain_constrained_ranking: labels out of range"
    )
    domain = domains.long()
    own_known = known[domain, labels]
    own = centers[domain, labels].to(wide).masked_fill(~own_known[:, None], 0)
    images = _Labelled(features.to(wide), labels, domains, torch.ones_like(domains))
    own_centers = _Labelled(own, labels, domains, own_known)
    image, has_image = _best(own_centers, images, pairs=False)  # eq. 8
    partner, has_partner = _best(images, images, pairs=True)  # eq. 10
    if everywhere:  # eq. 9
        every = torch.arange(2 * identities, device=labels.device)
        table = _Labelled(centers.flatten(0, 1), every % identities, every >= identities, known.flatten())
        center, has_center = _best(images, table, pairs=False)
        negative = centers.flatten(0, 1)[center]
    else:
        center, has_center = _best(images, own_centers, pairs=False)
        negative = own[center]

    # From here on N rows, in double precision: nothing is lost where features are close, and sums have an order.
    rows, own, negative = (value.double() for value in (features, own, negative))
    weight = 1 / count

    def rank(positive: Tensor, negated: Tensor, margin: float, exists: Tensor, factor: float) -> list[Tensor]:
        """The part of each image's loss, and its derivatives by the two distances, divided by these."""
        near, far = positive.norm(dim=1), negated.norm(dim=1)
        value = near + margin - far
        active = exists & ~(value <= 0)
        slopes = [
            torch.where(active & (distance != 0), factor / distance.masked_fill(distance == 0, 1), 0)
            for distance in (near, far)
        ]
        return [torch.where(active, value * factor, 0), *slopes]

    single, near, far = rank(rows - own, rows[image] - own, margin_single, own_known & has_image, weight)
    crossed, paired, apart = rank(
        rows - rows[partner], rows - negative, margin_cross, has_partner & has_center, weight * cross
    )
    loss = (single.sum() + crossed.sum()).to(features.dtype)
    if not derivative:
        return loss, features.new_empty((0, features.shape[1]), dtype=wide)
    by_features = near[:, None] * (rows - own)
    by_features -= (apart[:, None] * (rows - negative)).masked_fill(~has_center[:, None], 0)
    # What is not finite has its part in the slopes; in a product it would spread to images that have none in it.
    rows, own = (torch.where(value.isfinite(), value, 0) for value in (rows, own))
    every = torch.arange(count, device=labels.device)
    to_partner = torch.where(partner[:, None] == every, paired[:, None], 0)
    to_partner = to_partner + to_partner.T
    from_image = torch.where(image == every[:, None], far, 0)
    by_features += to_partner.sum(dim=1, keepdim=True) * rows - to_partner @ rows
    by_features -= from_image.sum(dim=1, keepdim=True) * rows - from_image @ own
    return loss, by_features.to(wide).contiguous()


def domain_constrained_ranking_backward(gradient: Tensor, by_features: Tensor, features: Tensor) -> Tensor:
    """gradient () of the loss times the derivative."""
    return (by_features * gradient.to(by_features.dtype)).to(gradient.dtype).contiguous()
