"""Operators that the methods share: ``import deocc.ops`` brings torch and nothing else.

Every operator is a plain function on tensors (:func:`composite` is the smallest to learn from) that differentiates,
works under ``torch.compile(fullgraph=True)``, and computes with a compiled kernel. Exceptions: :func:`composite_uint8`
and :func:`rasterise` take NumPy arrays, and :func:`contextual_attention_offsets` gives integers.

Where there is no kernel for a device, the PyTorch reference computes instead and one warning says why;
:func:`backends` lists what is there. What the docstrings say of memory, of inner float64 and of second derivatives that
are refused is of the kernels: the reference writes out every matrix that an equation names, as plain PyTorch does.

Environment variables:

- ``DEOCC_STRICT=1``: computing with the reference for want of a kernel is an error. Read at every call.
- ``DEOCC_BACKEND=reference``: always compute with the reference, to compare or to look for a fault. Read at every call.
- ``DEOCC_VECTOR=avx2`` or ``narrow``: the CPU kernels compute as on a processor without wider vectors, to measure and
  to test (``avx512``: without products of bfloat16). Checked at every call, and followed as it was at the first one;
  :func:`composite`, :func:`composite_uint8` and :func:`rasterise` compute the same with any.

A graph made by ``torch.compile`` keeps what was decided while it was traced.

Derivatives are those of reverse mode. Forward mode (``torch.autograd.forward_ad``) is not there: PyTorch hands such
operators no tangents, and the result has none, without an error, or, where an input requires a gradient, with
``NotImplementedError``. The references have it.
"""

from deocc.ops._registry import Backend, backends, build_info
from deocc.ops.composite import composite, composite_uint8
from deocc.ops.contextual_attention import contextual_attention, contextual_attention_offsets
from deocc.ops.domain_constrained_ranking import DomainCenters, domain_constrained_ranking
from deocc.ops.dual_attention_fusion import (
    DualAttentionFusion,
    Fusion,
    area_downsample,
    attention_blend,
    channel_attention_projection,
    gated_projection,
)
from deocc.ops.info_nce import InfoNCE, KeyQueue, info_nce
from deocc.ops.rasterise import rasterise
from deocc.ops.relational_distillation import (
    RelationalDistillation,
    relational_angle,
    relational_distance,
    relational_distillation,
)

__all__ = [
    "Backend",
    "DomainCenters",
    "DualAttentionFusion",
    "Fusion",
    "InfoNCE",
    "KeyQueue",
    "RelationalDistillation",
    "area_downsample",
    "attention_blend",
    "backends",
    "build_info",
    "channel_attention_projection",
    "composite",
    "composite_uint8",
    "contextual_attention",
    "contextual_attention_offsets",
    "domain_constrained_ranking",
    "gated_projection",
    "info_nce",
    "rasterise",
    "relational_angle",
    "relational_distance",
    "relational_distillation",
]
