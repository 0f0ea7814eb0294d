"""Reference of :func:`deocc.ops.composite` and :func:`deocc.ops.composite_uint8`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


def composite(image: Tensor, fill: Tensor, occlusion: Tensor) -> Tensor:
    """``(1 - occlusion) * image + occlusion * fill``; at 0 and 1 exactly one of the two, bit for bit.

    Args:
        image: (N, C, H, W), what shows where occlusion is 0.
        fill: (N, C, H, W), what shows where occlusion is 1.
        occlusion: (N, 1, H, W), applies to every channel.

    Returns:
        (N, C, H, W). Its derivatives are those of the formula at every occlusion, 0 and 1 included.
    """
    wide = torch.promote_types(image.dtype, torch.float32)  # half precision is computed in float32 and rounded once
    blend: Tensor = _Composite.apply(image.to(wide), fill.to(wide), occlusion.to(wide))  # type: ignore[no-untyped-call]
    return blend.to(image.dtype)


def composite_backward(
    gradient: Tensor, image: Tensor, fill: Tensor, occlusion: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of :func:`composite` by image, fill and occlusion, times ``gradient`` (N, C, H, W).

    Made of differentiable operations, so that second and higher derivatives follow from it.
    """
    dtype, wide = image.dtype, torch.promote_types(image.dtype, torch.float32)
    gradient, image, fill, occlusion = gradient.to(wide), image.to(wide), fill.to(wide), occlusion.to(wide)
    by_occlusion = (gradient * (fill - image)).sum(dim=1, keepdim=True)
    return ((1 - occlusion) * gradient).to(dtype), (occlusion * gradient).to(dtype), by_occlusion.to(dtype)


class _Composite(torch.autograd.Function):
    """Selecting with ``where`` would lose the derivative by an occlusion of 0 or 1, so it is stated."""

    @staticmethod
    def forward(image: Tensor, fill: Tensor, occlusion: Tensor) -> Tensor:
        blend = (1 - occlusion) * image + occlusion * fill
        return torch.where(occlusion == 0, image, torch.where(occlusion == 1, fill, blend))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return composite_backward(gradients[0], *ctx.saved_tensors)


def composite_uint8(
    image: NDArray[np.uint8], fill: NDArray[np.uint8], occlusion: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """``(o * fill + (255 - o) * image) / 255`` rounded to nearest; no tie can occur, since 255 is odd.

    Args:
        image, fill: (H, W, 3) uint8.
        occlusion: (H, W) uint8; 0 gives the image and 255 the fill exactly.
    """
    weight = occlusion[:, :, None].astype(np.uint32)
    return ((weight * fill + (255 - weight) * image + 127) // 255).astype(np.uint8)
