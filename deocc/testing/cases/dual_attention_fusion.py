"""Cases of the operators behind ``DualAttentionFusion``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deocc import ops
from deocc.ops.reference import dual_attention_fusion as reference
from deocc.testing.spec import Case, Spec

_Draw = Callable[[torch.Generator], tuple[Tensor, ...]]


def _projection(*shape: int, outputs: int = 3) -> _Draw:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        channels = shape[1]
        features = torch.randn(shape, generator=generator, dtype=torch.float64)
        gate = torch.rand(shape[:2], generator=generator, dtype=torch.float64)
        weight = torch.randn(outputs, channels, generator=generator, dtype=torch.float64) / channels**0.5
        return features, gate, weight, torch.randn(outputs, generator=generator, dtype=torch.float64)

    return draw


def _attention(*shape: int, outputs: int = 3, hidden: int = 4) -> _Draw:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        channels = shape[1]
        features, _, weight, bias = _projection(*shape, outputs=outputs)(generator)
        down = torch.randn(hidden, channels, generator=generator, dtype=torch.float64) / channels**0.5
        up = torch.randn(channels, hidden, generator=generator, dtype=torch.float64) / hidden**0.5
        # Biases that keep hidden units away from the corner of ReLU, where no two ways of rounding agree.
        down_bias = 2 * (torch.rand(hidden, generator=generator, dtype=torch.float64).round() - 0.25)
        up_bias = torch.randn(channels, generator=generator, dtype=torch.float64)
        # Averages that are not all near 0.
        return features + up_bias[:, None, None] / 4, down, down_bias, up, up_bias, weight, bias

    return draw


def _image(*shape: int) -> _Draw:
    return lambda generator: (torch.rand(shape, generator=generator, dtype=torch.float64),)


def _blend(*shape: int, spread: float = 2.0) -> _Draw:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        logits = torch.randn(shape, generator=generator, dtype=torch.float64) * spread
        restored, known = torch.rand((2, *shape), generator=generator, dtype=torch.float64).unbind()
        return logits, restored, known

    return draw


def _as_gradient(inputs: tuple[Tensor, ...], outputs: int = 3) -> Tensor:
    """Something that has the shape of a projection's gradient."""
    return inputs[0][:, :1].expand(-1, outputs, -1, -1) - 0.5


_TOLERANCES = {
    torch.float64: (1e-11, 1e-12),
    torch.float32: (2e-5, 2e-5),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float16: (2e-3, 2e-3),
}

# Gradients of weights are sums over all pixels: what is absolute here is small against them.
_SUMS = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-4, 1e-3),
    torch.bfloat16: (1e-2, 1e-1),
    torch.float16: (2e-3, 2e-2),
}


def _area(image: Tensor, *, size: tuple[int, int]) -> Tensor:
    return reference.area_downsample(image, size)


SPECS = (
    Spec(
        name="gated_projection",
        stem="dual_attention_fusion",
        function=ops.gated_projection,
        reference=reference.gated_projection,
        kernels={
            "gated_projection": lambda x: x,
            "gated_projection_products": lambda x: (_as_gradient(x), x[0]),
            "gated_projection_features": lambda x: (_as_gradient(x, x[2].shape[0]), x[1][:, None] * x[2], x[1], False),
        },
        cases=(
            Case("smoke", "smoke", _projection(2, 8, 6, 7)),
            Case("one-of-everything", "edge", _projection(1, 1, 1, 1, outputs=1)),
            Case("one-channel", "edge", _projection(2, 1, 5, 7, outputs=2)),
            Case("no-sample", "edge", _projection(0, 5, 4, 6)),
            Case("odd", "edge", _projection(3, 13, 9, 11, outputs=5)),
            Case("wide-result", "edge", _projection(1, 6, 3, 5, outputs=9)),
            Case("more-than-a-chunk", "edge", _projection(1, 1030, 1, 3)),
            Case("more-pixels-than-a-chunk", "edge", _projection(1, 3, 67, 65)),
            Case("odd-features", "paper", _projection(2, 65, 63, 61)),
            Case("large", "large", _projection(1, 64, 128, 128)),
        ),
        tolerances=_SUMS,
        differentiable=(0, 1, 2, 3),
        twice=True,
    ),
    Spec(
        name="channel_attention_projection",
        stem="dual_attention_fusion",
        function=ops.channel_attention_projection,
        reference=reference.channel_attention_projection,
        kernels={"channel_attention_projection": lambda x: x},
        cases=(
            Case("smoke", "smoke", _attention(2, 8, 6, 7)),
            Case("one-of-everything", "edge", _attention(1, 1, 1, 1, outputs=1, hidden=1)),
            Case("no-sample", "edge", _attention(0, 5, 4, 6)),
            Case("odd", "edge", _attention(3, 13, 9, 11, outputs=5)),
            Case("one-hidden", "edge", _attention(2, 6, 5, 4, hidden=1)),
            Case(
                "features",
                "paper",
                _attention(1, 128, 64, 64, hidden=8),
                floors={
                    "cpu forward": 1.8,
                    "cpu training": 1.8,
                    "cpu forward tuned": 0.75,
                    "cpu training tuned": 2.7,
                    "cpu module forward": 1.0,
                    "cpu module training": 1.1,
                    "cpu module forward tuned": 1.1,
                    "cpu module training tuned": 1.15,
                    "cpu image by 8 forward": 4.5,
                    "cpu image by 8 training": 8.0,
                    "cpu image by 8 forward tuned": 4.6,
                    "cpu image by 8 training tuned": 7.0,
                },
            ),
            Case(
                "finest",
                "large",
                _attention(1, 64, 256, 256),
                floors={
                    "cpu forward": 3.5,
                    "cpu training": 3.0,
                    "cpu forward tuned": 1.0,
                    "cpu training tuned": 2.7,
                    "cpu module forward": 1.7,
                    "cpu module training": 1.6,
                    "cpu module forward tuned": 1.15,
                    "cpu module training tuned": 1.1,
                    "cpu image by 4 forward": 5.3,
                    "cpu image by 4 training": 9.6,
                    "cpu image by 4 forward tuned": 5.6,
                    "cpu image by 4 training tuned": 8.0,
                    "cpu bfloat16 front-nchw forward": 1.1,
                    "cpu bfloat16 front-nchw training": 1.2,
                    "cpu bfloat16 front-nhwc forward": 1.1,
                    "cpu bfloat16 front-nhwc training": 1.2,
                    "cpu bfloat16 downsample forward": 1.2,
                    "cpu bfloat16 module forward": 1.2,
                    "cpu bfloat16 module training": 1.2,
                },
            ),
        ),
        tolerances=_SUMS,
        differentiable=(0, 1, 2, 3, 4, 5, 6),
        twice=True,
    ),
    Spec(
        name="area_downsample",
        stem="dual_attention_fusion",
        function=ops.area_downsample,
        reference=_area,
        kernels={"area_downsample": lambda x: (x[0], max(x[0].shape[2] // 2, 1), max(x[0].shape[3] // 2, 1))},
        cases=(
            Case("smoke", "smoke", _image(2, 3, 8, 12), {"size": (4, 6)}),
            Case("same", "edge", _image(2, 3, 5, 7), {"size": (5, 7)}),
            Case("one-pixel", "edge", _image(1, 3, 5, 7), {"size": (1, 1)}),
            Case("uneven", "edge", _image(2, 3, 9, 11), {"size": (4, 3)}),
            Case("shared", "edge", _image(1, 2, 6, 8), {"size": (5, 7)}),
            Case("by-four", "edge", _image(1, 3, 8, 20), {"size": (2, 5)}),
            Case("by-eight", "edge", _image(1, 1, 16, 24), {"size": (2, 3)}),
            Case("no-sample", "edge", _image(0, 3, 4, 6), {"size": (2, 3)}),
            Case("quarter", "paper", _image(1, 3, 512, 512), {"size": (128, 128)}),
            Case("photos", "large", _image(1, 3, 1024, 1024), {"size": (256, 256)}),
        ),
        tolerances=_TOLERANCES,
        differentiable=(0,),
        twice=True,
    ),
    Spec(
        name="attention_blend",
        stem="dual_attention_fusion",
        function=ops.attention_blend,
        reference=reference.attention_blend,
        kernels={"attention_blend": lambda x: x, "attention_blend_backward": lambda x: (x[0] - 0.5, *x)},
        cases=(
            Case("smoke", "smoke", _blend(2, 3, 6, 7)),
            Case("one-pixel", "edge", _blend(1, 1, 1, 1)),
            Case("no-sample", "edge", _blend(0, 3, 4, 5)),
            Case("extreme", "edge", _blend(2, 3, 5, 9, spread=40.0)),
            Case("odd", "edge", _blend(1, 5, 13, 17)),
            Case("batch", "paper", _blend(1, 3, 128, 128)),
            Case("finest", "large", _blend(1, 3, 256, 256)),
        ),
        tolerances=_TOLERANCES,
        differentiable=(0, 1, 2),
        twice=True,
    ),
)
