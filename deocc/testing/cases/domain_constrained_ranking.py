"""Cases of ``domain_constrained_ranking``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deocc import ops
from deocc.ops.reference import domain_constrained_ranking as reference
from deocc.testing.spec import Case, Spec


def _inputs(
    count: int,
    dim: int,
    identities: int,
    present: int,
    *,
    domains: Literal["both", "full", "masked"] = "both",
    unknown: float = 0.0,
    spread: float = 0.8,
) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    """Images of ``present`` identities around their centres; a part of the centres is unknown, and far off."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        centers = normalize(torch.randn(2, identities, dim, generator=generator, dtype=torch.float64), dim=2)
        centers = normalize(centers + centers.flip(0), dim=2)  # an identity's two centres resemble each other
        chosen = torch.randperm(identities, generator=generator)[:present]
        labels = chosen[torch.randint(present, (count,), generator=generator)]
        masked = torch.randint(2, (count,), generator=generator)
        if domains != "both":
            masked = torch.full_like(masked, int(domains == "masked"))
        noise = torch.randn(count, dim, generator=generator, dtype=torch.float64) * dim**-0.5
        features = centers[masked, labels] + spread * noise
        if dim > 1:
            features = normalize(features, dim=1)
        known = torch.rand(2, identities, generator=generator, dtype=torch.float64) >= unknown
        return features, labels, masked, centers.masked_fill(~known[:, :, None], 100), known

    return draw


def _plain(
    features: Tensor,
    labels: Tensor,
    domains: Tensor,
    centers: Tensor,
    known: Tensor,
    *,
    margin_single: float = 0.7,
    margin_cross: float = 0.5,
    cross: float = 0.75,
    negatives: str = "batch",
) -> Tensor:
    return reference.domain_constrained_ranking(
        features, labels, domains != 0, centers, known, margin_single, margin_cross, cross, negatives == "all"
    )


_ALL = {"negatives": "all"}

SPECS = (
    Spec(
        name="domain_constrained_ranking",
        stem="domain_constrained_ranking",
        function=ops.domain_constrained_ranking,
        reference=_plain,
        kernels={
            "domain_constrained_ranking": lambda x: (x[0], x[1], x[2] != 0, x[3], x[4], 0.7, 0.5, 0.75, True, True),
            "domain_constrained_ranking_backward": lambda x: (
                x[0].new_ones(()),
                x[0].to(torch.promote_types(x[0].dtype, torch.float32)),
                x[0],
            ),
        },
        cases=(
            Case("smoke", "smoke", _inputs(12, 9, 7, 4)),
            Case("all", "edge", _inputs(12, 9, 50, 4), _ALL),
            Case("unknown", "edge", _inputs(24, 17, 40, 6, unknown=0.4)),
            Case("unknown-all", "edge", _inputs(24, 17, 200, 6, unknown=0.4), _ALL),
            Case("nothing-known", "edge", _inputs(8, 5, 6, 3, unknown=1.0), _ALL),
            Case("one-identity", "edge", _inputs(6, 8, 1, 1), _ALL),
            Case("one-identity-of-many", "edge", _inputs(6, 8, 9, 1), _ALL),
            Case("one-image", "edge", _inputs(1, 8, 9, 3), _ALL),
            Case("one-dimension", "edge", _inputs(9, 1, 8, 4, spread=3.0)),
            Case("full-faces", "edge", _inputs(10, 12, 8, 4, domains="full")),
            Case("masked-faces", "edge", _inputs(10, 12, 8, 4, domains="masked"), _ALL),
            Case("no-image", "edge", _inputs(0, 8, 5, 3), _ALL),
            Case("every-one-another", "edge", _inputs(33, 40, 300, 300)),
            Case("wide-margins", "edge", _inputs(40, 24, 30, 10), {"margin_single": 3, "margin_cross": 2, "cross": 2}),
            Case("no-cross", "edge", _inputs(20, 24, 30, 5), {"cross": 0.0}),
            Case(
                "minibatch",
                "paper",
                _inputs(192, 512, 10_575, 32),
                floors={"cpu forward": 2.0, "cpu training": 2.5, "cpu forward tuned": 3.0, "cpu training tuned": 3.5},
            ),
            Case(
                "minibatch-all",
                "paper",
                _inputs(192, 512, 10_575, 32),
                _ALL,
                floors={
                    "cpu forward": 1.2,
                    "cpu training": 3.0,
                    "cpu forward tuned": 1.4,
                    "cpu training tuned": 4.5,
                    "cpu bfloat16 forward": 1.4,
                    "cpu bfloat16 training": 1.4,
                },
            ),
            Case("large", "large", _inputs(64, 128, 85_742, 32), _ALL),
        ),
        tolerances={
            torch.float64: (1e-9, 1e-12),
            torch.float32: (2e-5, 1e-6),
            torch.bfloat16: (1e-2, 1e-3),
            torch.float16: (2e-3, 1e-4),
        },
        differentiable=(0,),
        twice=False,
    ),
)
