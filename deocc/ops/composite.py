"""Putting restored pixels into an image: the smallest operator, and the pattern for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deocc.errors import InputError
from deocc.ops._registry import Operator, compiled
from deocc.ops.reference import composite as reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OPERATOR = Operator("composite")
_UINT8 = Operator("composite_uint8", gpu=None, arrays=True)


def composite(image: Tensor, fill: Tensor, occlusion: Tensor) -> Tensor:
    """Keep the visible pixels of ``image`` and take the occluded ones from ``fill``.

    ``(1 - occlusion) * image + occlusion * fill``. Where the occlusion is exactly 0 the image comes back, and where it
    is exactly 1 the fill, bit for bit, whatever the other one holds (NaN included). Gradients flow to all three and
    are those of the formula everywhere; they can be differentiated again.

    The three promote to one dtype as in ordinary arithmetic, inside ``torch.autocast`` too: a bfloat16 fill for a
    float32 image gives float32. Half precision is computed in float32 and rounded once. Any strides are accepted; a
    channels_last image gives a channels_last result.

    Args:
        image: (N, C, H, W) floating point (float64, float32, bfloat16 or float16).
        fill: (N, C, H, W), likewise.
        occlusion: (N, 1, H, W), likewise, in [0, 1], 1 = occluded; applies to every channel. Values are not checked.

    Returns:
        (N, C, H, W).

    Raises:
        InputError: a type, shape, dtype or device that does not fit.
    """
    _check(image, fill, occlusion)
    if not image.dtype == fill.dtype == occlusion.dtype:
        dtype = torch.promote_types(torch.promote_types(image.dtype, fill.dtype), occlusion.dtype)
        image, fill, occlusion = image.to(dtype), fill.to(dtype), occlusion.to(dtype)
    if _OPERATOR.uses_reference(image.device.type):
        return reference.composite(image, fill, occlusion)
    return torch.ops.deocc.composite(image, fill, occlusion)  # type: ignore[no-any-return]


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check(image: Tensor, fill: Tensor, occlusion: Tensor) -> None:
    for name, value in (("image", image), ("fill", fill), ("occlusion", occlusion)):
        if not isinstance(value, Tensor):
            raise InputError(f"composite: {name} must be a torch.Tensor, got {type(value).__name__}")
        if value.dtype not in _DTYPES:
            raise InputError(f"composite: {name} must be float32, float64, bfloat16 or float16, got {value.dtype}")
        if value.layout != torch.strided:
            raise InputError(f"composite: {name} must be a dense tensor, got {value.layout}")
        if value.device != image.device:
            raise InputError(f"composite: {name} must be on the image's device {image.device}, got {value.device}")
    if image.dim() != 4:
        raise InputError(f"composite: image must have shape (N, C, H, W), got {tuple(image.shape)}")
    if fill.shape != image.shape:
        raise InputError(f"composite: fill must have the image's shape {tuple(image.shape)}, got {tuple(fill.shape)}")
    wanted = (image.shape[0], 1, image.shape[2], image.shape[3])
    if occlusion.shape != wanted:
        raise InputError(
            f"composite: occlusion must have shape {wanted} for images of shape {tuple(image.shape)}, "
            f"got {tuple(occlusion.shape)}"
        )


def _empty(image: Tensor) -> Tensor:
    channels_last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    return torch.empty_like(image, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _fake(image: Tensor, fill: Tensor, occlusion: Tensor) -> Tensor:
    return _empty(image)


def _fake_backward(gradient: Tensor, image: Tensor, fill: Tensor, occlusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(image), _empty(image), torch.empty_like(occlusion, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    image, fill, occlusion = inputs
    # Image and fill are in the derivative by the occlusion only: do not keep them alive for nothing.
    ctx.save_for_backward(occlusion, *((image, fill) if occlusion.requires_grad else ()))


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    occlusion, *pictures = ctx.saved_tensors
    if not pictures:
        by_image, by_fill, _ = ctx.needs_input_grad
        dtype, wide = gradient.dtype, torch.promote_types(gradient.dtype, torch.float32)
        gradient, occlusion = gradient.to(wide), occlusion.to(wide)
        return (
            ((1 - occlusion) * gradient).to(dtype) if by_image else None,
            (occlusion * gradient).to(dtype) if by_fill else None,
            None,
        )
    image, fill = pictures
    if torch.is_grad_enabled():  # create_graph=True: what is returned will be differentiated again
        return reference.composite_backward(gradient, image, fill, occlusion)
    return torch.ops.deocc.composite_backward(gradient, image, fill, occlusion)  # type: ignore[no-any-return]


_OPERATOR.define("composite(Tensor image, Tensor fill, Tensor occlusion) -> Tensor", _fake)
_OPERATOR.define(
    "composite_backward(Tensor gradient, Tensor image, Tensor fill, Tensor occlusion) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)
_OPERATOR.differentiate(_backward, _setup_context)


def composite_uint8(
    image: NDArray[np.uint8], fill: NDArray[np.uint8], occlusion: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """:func:`composite` for photographs: ``(o * fill + (255 - o) * image) / 255``, rounded to nearest.

    The same bytes on every machine and from every backend. Occlusion 0 gives the image and 255 the fill exactly.

    Args:
        image, fill: (H, W, 3) uint8.
        occlusion: (H, W) uint8, 255 = occluded.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        InputError: a type, shape or dtype that does not fit.
    """
    for name, value, axes in (("image", image, 3), ("fill", fill, 3), ("occlusion", occlusion, 2)):
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
            got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise InputError(f"composite_uint8: {name} must be a uint8 numpy.ndarray, got {got}")
        if value.ndim != axes or value.shape[:2] != image.shape[:2] or value.shape[2:] not in ((), (3,)):
            wanted = "(H, W, 3)" if value is image else str((*image.shape[:2], 3)[:axes])
            raise InputError(f"composite_uint8: {name} must have shape {wanted}, got {value.shape}")
    if _UINT8.uses_reference("cpu") or compiled is None:
        return reference.composite_uint8(image, fill, occlusion)
    return compiled.composite_uint8(  # type: ignore[no-any-return]
        np.ascontiguousarray(image), np.ascontiguousarray(fill), np.ascontiguousarray(occlusion)
    )
