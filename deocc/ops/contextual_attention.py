"""Attention over patches of the visible part of an image, as used in inpainting (Yu et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deocc.errors import InputError
from deocc.ops._registry import Operator, is_finite
from deocc.ops.reference import contextual_attention as reference

_OPERATOR = Operator("contextual_attention", gpu="triton")
_OFFSETS = Operator("contextual_attention_offsets", gpu="triton")


def contextual_attention(
    foreground: Tensor,
    background: Tensor,
    occlusion: Tensor | None = None,
    *,
    rate: int = 2,
    scale: float = 10.0,
    fuse: bool = True,
) -> Tensor:
    """Rebuild the foreground from patches of the background that resemble it (Yu et al. 2018, section 4.1).

    Both are looked at in steps of ``rate`` pixels. Each position of the foreground compares its 3 x 3 patch with those
    of the background, divided by their norms (of at least 1e-4); softmax over the background gives weights; and the
    position receives that mix of the background's patches of 2 * rate x 2 * rate pixels, which overlap and are
    averaged. As in the authors' code, and unlike some ports of it:

    - The average divides by 4 everywhere, so the outermost rate / 2 pixels come out at 1/2 of it and corners at 1/4
      (with an odd rate one pixel more at the bottom and the right). Some ports divide by the true overlap.
    - The norm of a patch p is max(||p||, 1e-4); one popular port takes sqrt(||p||^2 + 9 C 1e-4).
    - An occluded patch keeps its place in the softmax, with a score of 0, and loses its weight afterwards: weights need
      not add up to 1. Where every patch is occluded, the result is 0. (Some ports give occluded patches a score of
      -inf: up to 41 % different at small features, and NaN where everything is occluded.)
    - ``fuse`` comes before the occlusion, so occluded neighbours have a part in it; and the last position of an image
      row (then column) is the neighbour of the first of the next one.

    Each sample has its own occlusion. Gradients flow to foreground and background, once: a second derivative is an
    error. They are recomputed and not stored, so training keeps the inputs alone; nothing of size L x L, where
    L = H * W / rate ** 2, is in memory on the CPU, but the scores of some rows of positions for each thread: about
    14 L W / rate floats (9 without ``fuse``), with the backward pass 47.

    The features promote to one dtype, inside ``torch.autocast`` too. Half precision is computed in float32 and rounded
    once. A processor that multiplies bfloat16 (AVX512-BF16) is up to 1.8 times as fast with it: products of bfloat16
    are added up in float32, and the weights that patches are mixed with are rounded to it before. Any strides are
    accepted; a channels_last foreground gives a channels_last result. The same call gives the same bits for the same
    number of threads.

    Args:
        foreground: (N, C, H, W) floating point (float64, float32, bfloat16 or float16), what is to be rebuilt.
        background: (N, C, H, W), likewise, where the patches come from; often the same tensor. Values are not checked:
            NaN and infinities spread to a part of the sample's result that is not specified.
        occlusion: (N, 1, H, W) floating point or bool, 1 = occluded; of the background. Anything but 0 counts, at the
            pixels that are looked at. A patch is occluded when one of its 3 x 3 positions is. None: nothing is.
        rate: H and W must be multiples of it.
        scale: factor on the scores before the softmax; the higher, the nearer to copying the best patch.
        fuse: whether neighbouring positions are drawn towards neighbouring patches.

    Returns:
        (N, C, H, W).

    Raises:
        InputError: a type, shape, dtype or device that does not fit, or a size that ``rate`` does not divide.
    """
    foreground, background, occluded = _prepare(
        "contextual_attention", foreground, background, occlusion, rate, scale, fuse
    )
    if _OPERATOR.uses_reference(foreground.device.type):
        return reference.contextual_attention(foreground, background, occluded, rate, float(scale), fuse)
    return torch.ops.deocc.contextual_attention(  # type: ignore[no-any-return]
        foreground, background, occluded, rate, float(scale), fuse
    )


def contextual_attention_offsets(
    foreground: Tensor, background: Tensor, occlusion: Tensor | None = None, *, rate: int = 2, fuse: bool = True
) -> Tensor:
    """Where :func:`contextual_attention` looks, for pictures: from each position to its best patch.

    Args:
        foreground, background, occlusion, rate, fuse: as there.

    Returns:
        (N, 2, H / rate, W / rate) int32: how many rows down and columns to the right of the position the patch with the
        highest score lies, in steps of ``rate`` pixels. Of equals the first, by rows; 0 where every patch is occluded.
        With a NaN among the sample's features it is the way to some patch.

    Raises:
        InputError: as there.
    """
    foreground, background, occluded = _prepare(
        "contextual_attention_offsets", foreground, background, occlusion, rate, 1.0, fuse
    )
    foreground, background = foreground.detach(), background.detach()
    if _OFFSETS.uses_reference(foreground.device.type):
        return reference.contextual_attention_offsets(foreground, background, occluded, rate, fuse)
    return torch.ops.deocc.contextual_attention_offsets(  # type: ignore[no-any-return]
        foreground, background, occluded, rate, fuse
    )


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _prepare(
    name: str, foreground: Tensor, background: Tensor, occlusion: Tensor | None, rate: int, scale: float, fuse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Check everything; features in one dtype, and what is occluded as bool."""
    for what, value in (("foreground", foreground), ("background", background), ("occlusion", occlusion)):
        if value is None and what == "occlusion":
            continue
        if not isinstance(value, Tensor):
            raise InputError(f"{name}: {what} must be a torch.Tensor, got {type(value).__name__}")
        if value.dtype not in _DTYPES and not (what == "occlusion" and value.dtype == torch.bool):
            raise InputError(f"{name}: {what} must be float32, float64, bfloat16 or float16, got {value.dtype}")
        if value.layout != torch.strided:
            raise InputError(f"{name}: {what} must be a dense tensor, got {value.layout}")
        if value.device != foreground.device:
            wanted = f"on the foreground's device {foreground.device}"
            raise InputError(f"{name}: {what} must be {wanted}, got {value.device}")
    if foreground.dim() != 4 or 0 in foreground.shape[1:]:
        raise InputError(
            f"{name}: foreground must have shape (N, C, H, W) with at least one channel and pixel, "
            f"got {tuple(foreground.shape)}"
        )
    if background.shape != foreground.shape:
        raise InputError(
            f"{name}: background must have the foreground's shape {tuple(foreground.shape)}, "
            f"got {tuple(background.shape)}"
        )
    batch, _, height, width = foreground.shape
    if not isinstance(rate, int) or isinstance(rate, bool) or rate < 1:
        raise InputError(f"{name}: rate must be an integer of at least 1, got {rate!r}")
    if height % rate or width % rate:
        raise InputError(f"{name}: rate must divide height and width, got {rate} for {height} x {width}")
    if not is_finite(scale):
        raise InputError(f"{name}: scale must be a finite number, got {scale!r}")
    if not isinstance(fuse, bool):
        raise InputError(f"{name}: fuse must be True or False, got {fuse!r}")
    if occlusion is not None and occlusion.shape != (batch, 1, height, width):
        raise InputError(
            f"{name}: occlusion must have shape {(batch, 1, height, width)} for features of shape "
            f"{tuple(foreground.shape)}, got {tuple(occlusion.shape)}"
        )
    if occlusion is None:
        occluded = torch.zeros((batch, 1, height, width), dtype=torch.bool, device=foreground.device)
    else:
        occluded = occlusion != 0
    dtype = torch.promote_types(foreground.dtype, background.dtype)
    return foreground.to(dtype), background.to(dtype), occluded


def _like(value: Tensor) -> Tensor:
    channels_last = value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
    return torch.empty_like(value, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _fake(foreground: Tensor, background: Tensor, occluded: Tensor, rate: int, scale: float, fuse: bool) -> Tensor:
    return _like(foreground)


def _fake_backward(
    gradient: Tensor, foreground: Tensor, background: Tensor, occluded: Tensor, rate: int, scale: float, fuse: bool
) -> tuple[Tensor, Tensor]:
    return _like(foreground), _like(background)


def _fake_offsets(foreground: Tensor, background: Tensor, occluded: Tensor, rate: int, fuse: bool) -> Tensor:
    batch, _, height, width = foreground.shape
    return foreground.new_empty((batch, 2, height // rate, width // rate), dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, float, bool], output: Tensor) -> None:
    foreground, background, occluded, *ctx.options = inputs
    ctx.save_for_backward(foreground, background, occluded)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    by_foreground, by_background = torch.ops.deocc.contextual_attention_backward(
        gradient, *ctx.saved_tensors, *ctx.options
    )
    return by_foreground, by_background, None, None, None, None


_OPERATOR.define(
    "contextual_attention(Tensor foreground, Tensor background, Tensor occluded, int rate, float scale, bool fuse)"
    " -> Tensor",
    _fake,
)
_OPERATOR.define(
    "contextual_attention_backward(Tensor gradient, Tensor foreground, Tensor background, Tensor occluded, int rate,"
    " float scale, bool fuse) -> (Tensor, Tensor)",
    _fake_backward,
)
_OPERATOR.differentiate(_backward, _setup_context)
_OPERATOR.refuse_derivative("contextual_attention_backward")
_OFFSETS.define(
    "contextual_attention_offsets(Tensor foreground, Tensor background, Tensor occluded, int rate, bool fuse)"
    " -> Tensor",
    _fake_offsets,
)
_OPERATOR.implement_in_triton("contextual_attention", "contextual_attention_backward", "contextual_attention_offsets")
