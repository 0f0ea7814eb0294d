"""Cases of ``contextual_attention``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from deocc import ops
from deocc.ops.reference import contextual_attention as reference
from deocc.testing.spec import Case, Spec


def _inputs(
    *shape: int,
    occlusion: Literal["some", "none", "all", "hole", "dots", "all but one"] = "some",
    spread: float = 0.3,
) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        foreground, background = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * spread
        count, _, height, width = shape
        occluded = torch.zeros(count, 1, height, width, dtype=torch.float64)
        if occlusion == "dots":
            return foreground, background, torch.rand(occluded.shape, generator=generator).lt(0.03).double()
        if occlusion == "hole":
            occluded[..., height // 4 : -height // 4, width // 4 : -width // 4] = 1
        elif occlusion.startswith("all"):
            occluded[:] = 1
        if occlusion == "all but one":  # at rate 2 one 3 x 3 neighbourhood is free
            top, left = height // 4 * 2 - 2, width // 4 * 2 - 2
            occluded[..., top : top + 6, left : left + 6] = 0
        if occlusion != "some":
            return foreground, background, occluded
        # A rectangle for each sample, of a size and at a place of its own.
        edges = torch.rand(shape[0], 4, 1, 1, generator=generator, dtype=torch.float64)
        y, x = (torch.linspace(0, 1, size, dtype=torch.float64) for size in shape[2:])
        above, below, before, after = edges.mul(0.5).unbind(1)
        inside = (y[:, None] > above) & (y[:, None] < 1 - below) & (x > before) & (x < 1 - after)
        return foreground, background, inside[:, None].double()

    return draw


def _plain(
    foreground: Tensor,
    background: Tensor,
    occlusion: Tensor,
    *,
    rate: int = 2,
    scale: float = 10.0,
    fuse: bool = True,
) -> Tensor:
    return reference.contextual_attention(foreground, background, occlusion, rate, scale, fuse)


SPECS = (
    Spec(
        name="contextual_attention",
        stem="contextual_attention",
        function=ops.contextual_attention,
        reference=_plain,
        kernels={
            "contextual_attention": lambda x: (x[0], x[1], x[2] != 0, 1, 10.0, True),
            "contextual_attention_backward": lambda x: (x[0] - 0.5, x[0], x[1], x[2] != 0, 1, 10.0, True),
            "contextual_attention_offsets": lambda x: (x[0], x[1], x[2] != 0, 1, True),
        },
        cases=(
            Case("smoke", "smoke", _inputs(2, 3, 12, 16)),
            Case("everything", "edge", _inputs(2, 2, 4, 6, occlusion="all")),
            Case("nothing", "edge", _inputs(1, 2, 6, 4, occlusion="none")),
            Case("one-position", "edge", _inputs(1, 1, 2, 2, occlusion="none")),
            Case("one-row", "edge", _inputs(1, 2, 2, 14, occlusion="none")),
            Case("one-column", "edge", _inputs(1, 2, 14, 2, occlusion="none")),
            Case("no-sample", "edge", _inputs(0, 2, 4, 6)),
            Case("odd", "edge", _inputs(3, 5, 18, 14)),
            Case("wider-than-a-vector", "edge", _inputs(1, 3, 6, 42)),
            Case("rate-1", "edge", _inputs(2, 3, 5, 7), {"rate": 1}),
            Case("rate-3", "edge", _inputs(1, 2, 12, 15), {"rate": 3}),
            Case("rate-4", "edge", _inputs(1, 2, 16, 28), {"rate": 4}),
            Case("no-fuse", "edge", _inputs(2, 3, 12, 10), {"fuse": False}),
            Case("soft", "edge", _inputs(1, 4, 10, 12), {"scale": 0.5}),
            Case("hole", "edge", _inputs(1, 2, 28, 24, occlusion="hole")),
            Case("hole-no-fuse", "edge", _inputs(1, 2, 20, 24, occlusion="hole"), {"fuse": False}),
            Case("hole-rate-1", "edge", _inputs(1, 2, 12, 13, occlusion="hole"), {"rate": 1}),
            Case("hole-rate-3", "edge", _inputs(1, 2, 36, 30, occlusion="hole"), {"rate": 3}),
            Case("dots", "edge", _inputs(3, 2, 22, 26, occlusion="dots")),
            Case("all-but-one", "edge", _inputs(1, 2, 20, 28, occlusion="all but one")),
            Case("faint", "edge", _inputs(1, 4, 10, 12, spread=1e-6)),
            Case(
                "features",
                "paper",
                _inputs(1, 128, 64, 64),
                floors={
                    "cpu forward": 9.0,
                    "cpu training": 8.0,
                    "cpu forward tuned": 7.0,
                    "cpu training tuned": 7.0,
                    "cpu bfloat16 forward": 1.2,
                    "cpu bfloat16 training": 1.1,
                },
            ),
            Case(
                "large",
                "large",
                _inputs(1, 8, 96, 96),
                floors={
                    "cpu forward": 11.5,
                    "cpu training": 11.0,
                    "cpu bfloat16 forward": 1.2,
                    "cpu bfloat16 training": 1.1,
                },
            ),
        ),
        tolerances={
            torch.float64: (1e-9, 1e-11),
            # The softmax at scale 10 magnifies rounding: single gradients of size 1 are off by 1e-4 here and there.
            torch.float32: (1e-4, 5e-4),
            torch.bfloat16: (1e-2, 1e-2),
            torch.float16: (2e-3, 2e-3),
        },
        differentiable=(0, 1),
        twice=False,
    ),
)
