"""Cases of ``info_nce``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc import ops
from deocc.ops.reference import info_nce as reference
from deocc.testing.spec import Case, Spec


def _inputs(count: int, dim: int, keys: int, noise: float = 1.0) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    """Unit vectors; the smaller the noise, the nearer is the positive to the query."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        query = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        positive = query + noise * torch.randn(count, dim, generator=generator, dtype=torch.float64)
        queue = torch.randn(keys, dim, generator=generator, dtype=torch.float64)
        return F.normalize(query, dim=1), F.normalize(positive, dim=1), F.normalize(queue, dim=1)

    return draw


def _plain(query: Tensor, positive: Tensor, queue: Tensor, *, temperature: float = 0.07) -> Tensor:
    return reference.info_nce(query, positive, queue, temperature)


def _backward(inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    query, positive, _ = inputs
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_ones(()), query.to(wide), positive.to(wide), query, positive


SPECS = (
    Spec(
        name="info_nce",
        stem="info_nce",
        function=ops.info_nce,
        reference=_plain,
        kernels={"info_nce": lambda x: (*x, 0.07, True, True), "info_nce_backward": _backward},
        cases=(
            Case("smoke", "smoke", _inputs(6, 8, 40)),
            Case("odd", "edge", _inputs(35, 37, 301)),
            Case("one-query", "edge", _inputs(1, 16, 129)),
            Case("one-dimension", "edge", _inputs(5, 1, 20)),
            Case("many-dimensions", "edge", _inputs(3, 600, 70)),
            Case("many-queries", "edge", _inputs(300, 6, 33)),
            Case("no-query", "edge", _inputs(0, 8, 40)),
            Case("no-key", "edge", _inputs(4, 8, 0)),
            Case("one-key", "edge", _inputs(4, 8, 1)),
            Case("found", "edge", _inputs(4, 32, 50, noise=0.01), {"temperature": 0.01}),
            Case("warm", "edge", _inputs(4, 32, 50), {"temperature": 5.0}),
            Case("momentum-contrast", "paper", _inputs(256, 128, 8192), {"temperature": 0.2}),
            Case(
                "canet",
                "large",
                _inputs(256, 128, 65536),
                floors={
                    "cpu forward": 3.0,
                    "cpu training": 3.0,
                    "cpu forward tuned": 2.0,
                    "cpu training tuned": 2.0,
                    "cpu bfloat16 forward": 1.2,
                    "cpu bfloat16 training": 1.3,
                },
            ),
        ),
        tolerances={
            torch.float64: (1e-9, 1e-11),
            torch.float32: (1e-4, 1e-6),
            # A product with keys in bfloat16 rounds the softmax to it, too.
            torch.bfloat16: (1e-2, 1e-2),
            torch.float16: (2e-3, 1e-4),
        },
        differentiable=(0, 1),
        twice=False,
    ),
)
