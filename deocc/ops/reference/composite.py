"""Reference of :func:`deocc.ops.composite` and :func:`deocc.ops.composite_uint8`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def composite(image: Tensor, fill: Tensor, occlusion: Tensor) -> Tensor:
    """``(1 - occlusion) * image + occlusion * fill``; at 0 and 1 exactly one of the two, bit for bit.

    Args:
        image: (N, C, H, W), what shows where occlusion is 0.
        fill: (N, C, H, W), what shows where occlusion is 1.
        occlusion: (N, 1, H, W), applies to every channel.

    Returns:
        (N, C, H, W). Its derivatives are those of the formula at every occlusion, 0 and 1 included.
    """
    return _Composite.apply(image, fill, occlusion)  # type: ignore[no-any-return, no-untyped-call]


def composite_backward(
    gradient: Tensor, image: Tensor, fill: Tensor, occlusion: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of :func:`composite` by image, fill and occlusion, times ``gradient`` (N, C, H, W).

    Made of differentiable operations, so that second and higher derivatives follow from it.
    """
    return (
        (1 - occlusion) * gradient,
        occlusion * gradient,
        (gradient * (fill - image)).sum(dim=1, keepdim=True),
    )


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
