"""What an operator promises, as data: see :mod:`deocc.testing.operators`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What every operator computes in."""


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        name: unique among the operator's cases.
        kind: ``smoke`` (small, usual), ``edge`` (empty, odd, all or nothing occluded), ``paper`` (the size that the
            method's paper works at) or ``large``. gradcheck, compile and autocast see the first two. Benches measure
            mostly the last two, some at shapes of their own where the float64 reference would take minutes.
        inputs: draws the tensors of a call, float64 or of integers.
        options: keyword arguments of the call.
        floors: bench ``"<device> <measure>"``, with `` tuned`` behind it when malloc keeps freed memory -> the least
            ratio to eager PyTorch that is accepted; with ``bfloat16`` before the measure, to our own float32.
    """

    name: str
    kind: Literal["smoke", "edge", "paper", "large"]
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)

    def draw(self, device: str = "cpu", dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """The case's tensors, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return tuple(
            value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)
            for value in self.inputs(generator)
        )


@dataclass(frozen=True)
class Spec:
    """What an operator promises.

    Attributes:
        name: of the operator.
        stem: of its files; operators that share a kernel file share one.
        function: the public function.
        reference: the same in plain PyTorch.
        kernels: the names in ``torch.ops.deocc`` and what to call each with, made from a case's tensors.
        cases: at least one of every kind.
        tolerances: dtype -> (relative, absolute) error of results and gradients against the float64 reference.
        differentiable: which of the inputs receive gradients.
        twice: whether second derivatives exist; where they do not, asking for one must raise.
    """

    name: str
    stem: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    kernels: Mapping[str, Callable[[tuple[Tensor, ...]], tuple[Any, ...]]]
    cases: Sequence[Case]
    tolerances: Mapping[torch.dtype, tuple[float, float]]
    differentiable: Sequence[int]
    twice: bool

    def case(self, name: str) -> Case:
        """The case of that name."""
        return next(case for case in self.cases if case.name == name)
