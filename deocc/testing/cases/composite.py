"""Cases of ``composite``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from deocc import ops
from deocc.ops.reference import composite as reference
from deocc.testing.spec import Case, Spec


def _inputs(
    *shape: int, occlusion: Literal["soft", "hard", "none", "all"] = "soft"
) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        image, fill = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        weight = torch.rand((shape[0], 1, *shape[2:]), generator=generator, dtype=torch.float64)
        if occlusion != "soft":
            weight = {"hard": weight.round(), "none": weight * 0, "all": weight * 0 + 1}[occlusion]
        return image, fill, weight

    return draw


SPECS = (
    Spec(
        name="composite",
        stem="composite",
        function=ops.composite,
        reference=reference.composite,
        kernels={"composite": lambda x: x, "composite_backward": lambda x: (x[0] - 0.5, *x)},
        cases=(
            Case("smoke", "smoke", _inputs(2, 3, 8, 9)),
            Case("hard", "edge", _inputs(2, 3, 6, 5, occlusion="hard")),
            Case("nothing", "edge", _inputs(1, 3, 5, 4, occlusion="none")),
            Case("everything", "edge", _inputs(1, 3, 4, 5, occlusion="all")),
            Case("one-pixel", "edge", _inputs(1, 1, 1, 1)),
            Case("many-channels", "edge", _inputs(2, 67, 3, 5)),
            Case("no-image", "edge", _inputs(0, 3, 5, 7)),
            Case("no-channel", "edge", _inputs(2, 0, 5, 7)),
            Case(
                "odd",
                "paper",
                _inputs(3, 3, 127, 129, occlusion="hard"),
                floors={"cpu forward": 1.0, "cpu training": 0.8},
            ),
            Case(
                "batch",
                "paper",
                _inputs(16, 3, 128, 128),
                floors={"cpu forward": 1.1, "cpu training": 0.7},
            ),
            Case(
                "features",
                "paper",
                _inputs(4, 64, 64, 64),
                floors={"cpu forward": 0.8, "cpu training": 0.8},
            ),
            Case(
                "photos",
                "large",
                _inputs(4, 3, 512, 512),
                floors={"cpu forward": 1.3, "cpu training": 1.2},
            ),
        ),
        tolerances={
            torch.float64: (1e-12, 1e-14),
            torch.float32: (1e-5, 1e-5),
            torch.bfloat16: (5e-3, 1e-3),
            torch.float16: (1e-3, 1e-4),
        },
        differentiable=(0, 1, 2),
        twice=True,
    ),
)
