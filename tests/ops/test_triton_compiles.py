"""Every Triton kernel, compiled for a GPU that need not be there: what the interpreter does not see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from deocc.ops.triton import (  # noqa: E402
    contextual_attention,
    domain_constrained_ranking,
    info_nce,
    relational_distillation,
)

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") == "1", reason="Triton interprets here")

SHARED = 101_376
"""Bytes that a block may have on any GPU since, those of desktops too."""


def attention(dtype: str) -> Iterator[tuple[str, dict[str, Any]]]:
    size = {"h": "i32", "w": "i32", "BLOCK": contextual_attention._BLOCK}
    matrix = f"*{dtype}"
    yield "_sum_nine", {"source": matrix, "factor": matrix, "target": matrix, **size}
    yield "_sum_flat", {"source": matrix, "target": matrix, **size}
    yield "_sum_columns", {"source": matrix, "target": matrix, **size}
    for fuse in (True, False):
        given = {"source": matrix, "valid": matrix, "target": matrix, "scale": matrix}
        yield "_attend", {**given, **size, "FUSE": fuse}
    yield "_through_softmax", {"attention": matrix, "gradient": matrix, "scale": matrix, **size}
    for add in (True, False):
        yield "_mix", {"source": matrix, "target": matrix, "sy": "i32", "sx": "i32", **size, "ADD": add}


def stream(dtype: str, stored: str) -> Iterator[tuple[str, dict[str, Any]]]:
    wide = dtype == "fp64"
    given = {"query": f"*{stored}", "queue": f"*{stored}"}
    given |= dict.fromkeys(("right", "offsets", "totals", "added"), f"*{dtype}")
    given |= dict.fromkeys(("count", "dim", "keys", "share"), "i32") | {"scale": "fp32"}
    given |= dict.fromkeys(("query_row", "query_column", "queue_row", "queue_column"), "i32")
    sizes = (16, 16, 16) if wide else (info_nce._QUERIES, info_nce._KEYS, info_nce._COLUMNS)
    tile = dict(zip(("queries", "block", "columns"), sizes, strict=True))
    for derivative in (True, False):
        yield "_stream", {**given, **tile, "wide": wide, "derivative": derivative}


def relations() -> Iterator[tuple[str, dict[str, Any]]]:
    given = dict.fromkeys(("x", "gram", "length", "inverse", "free"), "*fp64") | {"n": "i32", "depth": "i32"}
    given |= dict.fromkeys(("NEAR", "CLOSE", "LEAST"), "fp32")
    yield "_relate", {**given, "ROWS": 16, "DEPTH": 64}
    names = ("gram_s", "inverse_s", "gram_t", "inverse_t", "loss", "ends", "along", "both")
    given = dict.fromkeys(names, "*fp64") | {"n": "i32", "start": "i32"}
    for gradient in (True, False):
        tile = {"ENDS": relational_distillation._ENDS, "VERTICES": relational_distillation._VERTICES}
        yield "_triplets", {**given, **tile, "GRADIENT": gradient}


def search(dtype: str) -> Iterator[tuple[str, dict[str, Any]]]:
    given = {"rows": f"*{dtype}", "others": f"*{dtype}", "keys": f"*{dtype}"}
    given |= dict.fromkeys(("row_labels", "order", "labels", "places"), "*i64")
    given |= dict.fromkeys(("row_domains", "domains", "known"), "*i32")
    given |= dict.fromkeys(("n", "m", "dim", "part"), "i32")
    sizes = (domain_constrained_ranking._ROWS, domain_constrained_ranking._OTHERS, domain_constrained_ranking._DEPTH)
    tile = dict(zip(("ROWS", "OTHERS", "DEPTH"), sizes, strict=True))
    for pairs in (True, False):
        yield "_search", {**given, **tile, "PAIRS": pairs}


KERNELS: dict[str, tuple[ModuleType, list[tuple[str, dict[str, Any]]]]] = {
    "contextual_attention-float32": (contextual_attention, [*attention("fp32")]),
    "contextual_attention-float64": (contextual_attention, [*attention("fp64")]),
    "info_nce-float32": (info_nce, [*stream("fp32", "fp32")]),
    "info_nce-bfloat16": (info_nce, [*stream("fp32", "bf16")]),
    "info_nce-float16": (info_nce, [*stream("fp32", "fp16")]),
    "info_nce-float64": (info_nce, [*stream("fp64", "fp64")]),
    "relational_distillation": (relational_distillation, [*relations()]),
    "domain_constrained_ranking-float32": (domain_constrained_ranking, [*search("fp32")]),
    "domain_constrained_ranking-float64": (domain_constrained_ranking, [*search("fp64")]),
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])  # 90 multiplies by other instructions
@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles_and_fits(name: str, capability: int) -> None:
    target = GPUTarget("cuda", capability, 32)
    module, kernels = KERNELS[name]
    for kernel, given in kernels:
        function = getattr(module, kernel)
        constants = {key: value for key, value in given.items() if not isinstance(value, str)}
        signature = {key: "constexpr" if key in constants else given[key] for key in function.arg_names}
        compiled = triton.compile(ASTSource(function, signature, constants), target=target)
        assert "ptx" in compiled.asm
        assert compiled.metadata.shared <= SHARED


def test_every_kernel_is_here() -> None:
    for module in {id(module): module for module, _ in KERNELS.values()}.values():
        launched = {kernel for one, kernels in KERNELS.values() if one is module for kernel, _ in kernels}
        helpers = {"_near", "_down_column", "_column_sum", "_logits", "_product", "_angles"}
        found = {name for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
        assert found - helpers == launched
