"""Reference of the operators behind :class:`deocc.ops.DualAttentionFusion`: canet section 3.2, equations 3 to 8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.ops.reference import in_full


def gated_projection(features: Tensor, channel_gate: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Equation 5 and the 1 x 1 convolution of equation 7: ``weight (channel_gate * features) + bias``.

    Args:
        features: (N, C, H, W).
        channel_gate: (N, C), one factor for each channel of each sample.
        weight: (O, C).
        bias: (O) or None.

    Returns:
        (N, O, H, W) of the features' dtype; half precision is computed in float32 and rounded once.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    rescaled = features.to(wide) * channel_gate.to(wide)[:, :, None, None]
    with in_full(features):
        projected = torch.einsum("oc,nchw->nohw", weight.to(wide), rescaled)
    if bias is not None:
        projected = projected + bias.to(wide)[:, None, None]
    return projected.to(features.dtype)


def channel_gate(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """Equations 3 and 4: ``sigmoid(up relu(down z + down_bias) + up_bias)``, z being each channel's average.

    Args:
        features: (N, C, H, W).
        down, down_bias: (R, C) and (R).
        up, up_bias: (C, R) and (C).

    Returns:
        (N, C) in (0, 1); float32 for half precision.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    average = features.to(wide).mean(dim=(2, 3))
    with in_full(features):
        hidden = F.linear(average, down.to(wide), down_bias.to(wide)).relu()
        return F.linear(hidden, up.to(wide), up_bias.to(wide)).sigmoid()


def channel_attention_projection(
    features: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Equations 3 to 5 and the projection: :func:`gated_projection` with the :func:`channel_gate` of the features.

    Args:
        features: (N, C, H, W).
        down, down_bias, up, up_bias: of the gate.
        weight, bias: (O, C) and (O), of the projection.

    Returns:
        (N, O, H, W).
    """
    return gated_projection(features, channel_gate(features, down, down_bias, up, up_bias), weight, bias)


def area_downsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The arrow of equation 6: the average of the pixels that each pixel of the smaller image covers, even in part.

    Args:
        image: (N, C, H, W).
        size: (h, w) of the result.

    Returns:
        (N, C, h, w). Row i is the average of rows floor(i H / h) up to and without ceil((i + 1) H / h), columns alike.
    """
    wide = torch.promote_types(image.dtype, torch.float32)
    return F.adaptive_avg_pool2d(image.to(wide), size).to(image.dtype)


def attention_blend(logits: Tensor, restored: Tensor, known: Tensor) -> Tensor:
    """Equation 8, with the sigmoid of equation 7: ``alpha * restored + (1 - alpha) * known``, alpha = sigmoid(logits).

    1 - alpha is sigmoid(-logits): a difference would lose its digits where alpha is close to 1.

    Args:
        logits, restored, known: (N, C, H, W); alpha has as many channels as the image.

    Returns:
        (N, C, H, W).
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    alpha, rest = logits.to(wide).sigmoid(), (-logits.to(wide)).sigmoid()
    return (alpha * restored.to(wide) + rest * known.to(wide)).to(logits.dtype)


def attention_blend_backward(
    gradient: Tensor, logits: Tensor, restored: Tensor, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of :func:`attention_blend` by its three inputs, times ``gradient`` (N, C, H, W).

    Made of differentiable operations, so that second and higher derivatives follow from it.
    """
    dtype, wide = logits.dtype, torch.promote_types(logits.dtype, torch.float32)
    gradient, restored, known = gradient.to(wide), restored.to(wide), known.to(wide)
    alpha, rest = logits.to(wide).sigmoid(), (-logits.to(wide)).sigmoid()
    by_logits = gradient * (restored - known) * alpha * rest
    return by_logits.to(dtype), (alpha * gradient).to(dtype), (rest * gradient).to(dtype)
