"""Reference of :func:`deocc.ops.contextual_attention` and :func:`deocc.ops.contextual_attention_offsets`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.ops.reference import in_full


def contextual_attention(
    foreground: Tensor, background: Tensor, occlusion: Tensor, rate: int, scale: float, fuse: bool
) -> Tensor:
    """Rebuild the foreground from patches of the background (Yu et al. 2018, section 4.1).

    Args:
        foreground, background: (N, C, H, W); H and W are multiples of ``rate``.
        occlusion: (N, 1, H, W); everything but 0 counts as occluded.
        rate: comparing takes every rate-th pixel, pasting takes patches of 2*rate x 2*rate pixels.
        scale: factor on the scores before the softmax.
        fuse: whether neighbouring queries are drawn towards neighbouring keys.

    Returns:
        (N, C, H, W), in the inputs' dtype; half precision is computed in float32.
    """
    dtype = foreground.dtype
    foreground, background = (_widen(x) for x in (foreground, background))
    height, width = foreground.shape[2:]
    valid = valid_keys(occlusion, rate)
    logits = scores(foreground, background, rate, fuse) * valid * scale
    # An occluded key keeps its logit of 0 in the softmax and loses its weight afterwards.
    attention = logits.softmax(dim=2) * valid

    # Each query receives its mix of patches around the keys. Patches overlap, two in either direction, and add up.
    before, after = rate // 2, rate - rate // 2
    padded = F.pad(background, (before, after, before, after))
    patches = F.unfold(padded, 2 * rate, stride=rate)
    with in_full(patches):
        mixed = patches @ attention.transpose(1, 2)
    pasted = F.fold(mixed, (height + rate, width + rate), 2 * rate, stride=rate)
    return (pasted[:, :, before : before + height, before : before + width] / 4).to(dtype)


def contextual_attention_offsets(
    foreground: Tensor, background: Tensor, occlusion: Tensor, rate: int, fuse: bool
) -> Tensor:
    """Where each query's best valid key lies, seen from the query.

    Returns:
        (N, 2, H/rate, W/rate) int32: rows down and columns to the right, in steps of ``rate`` pixels. The first key in
        row-major order wins a tie; 0 where no key is valid.
    """
    valid = valid_keys(occlusion, rate).bool()
    score = scores(_widen(foreground), _widen(background), rate, fuse)
    best = score.masked_fill(~valid, float("-inf")).argmax(dim=2)
    height, width = (size // rate for size in foreground.shape[2:])
    query = torch.arange(height * width, device=best.device)
    rows, columns = best // width - query // width, best % width - query % width
    found = torch.stack([rows, columns], dim=1) * valid.any(dim=2)[:, :, None]
    return found.reshape(-1, 2, height, width).to(torch.int32)


def scores(foreground: Tensor, background: Tensor, rate: int, fuse: bool) -> Tensor:
    """How well the 3 x 3 patch around each query matches the one around each key.

    Returns:
        (N, L, L): query, key; positions in row-major order.
    """
    foreground, background = foreground[:, :, ::rate, ::rate], background[:, :, ::rate, ::rate]
    height, width = foreground.shape[2:]
    queries = F.unfold(foreground, 3, padding=1)
    keys = F.unfold(background, 3, padding=1)
    # sqrt(max(x, 1e-8)) is max(sqrt(x), 1e-4) with a finite derivative at 0.
    norm = (keys * keys).sum(dim=1, keepdim=True).clamp(min=1e-8).sqrt()
    with in_full(keys):
        score = queries.transpose(1, 2) @ (keys / norm)
    if not fuse:
        return score
    score = _add_diagonal_neighbours(score)
    score = _by_columns(score, height, width)
    score = _add_diagonal_neighbours(score)
    return _by_columns(score, width, height)


def valid_keys(occlusion: Tensor, rate: int) -> Tensor:
    """(N, 1, L), in float: 1 where nothing is occluded in the 3 x 3 neighbourhood of the key."""
    occluded = (occlusion[:, :, ::rate, ::rate] != 0).to(_widen(occlusion).dtype)
    return 1 - F.max_pool2d(occluded, 3, stride=1, padding=1).flatten(2)


def _add_diagonal_neighbours(score: Tensor) -> Tensor:
    """score[q - 1, k - 1] + score[q, k] + score[q + 1, k + 1], zero outside: the ends of image rows are no borders."""
    padded = F.pad(score, (1, 1, 1, 1))
    return padded[:, :-2, :-2] + score + padded[:, 2:, 2:]


def _by_columns(score: Tensor, height: int, width: int) -> Tensor:
    """Count the positions of a height x width image, queries and keys, in column-major order."""
    score = score.reshape(-1, height, width, height, width)
    return score.transpose(1, 2).transpose(3, 4).reshape(-1, height * width, height * width)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
