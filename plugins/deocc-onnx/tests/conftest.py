"""A network small enough to be made for a test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """``make(name, layout="size = 16", batch="b", outputs=1)`` writes NAME.onnx and, with a layout, NAME.toml.

    The network takes (batch, 3, 16, 16) and returns a fixed linear map of means over squares of 4x4 pixels: (batch, 8).
    """
    onnx = pytest.importorskip("onnx", reason="the network for this test is written with onnx, which is not installed")
    helper, kinds = onnx.helper, onnx.TensorProto

    def make(name: str = "tiny", layout: str | None = "size = 16", batch: str | int = "b", outputs: int = 1) -> Path:
        weight = np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32)
        nodes = [
            helper.make_node("AveragePool", ["x"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["y"]),
            helper.make_node("Relu", ["y"], ["z"]),
        ]
        graph = helper.make_graph(
            nodes[: 2 + outputs],
            "tiny",
            [helper.make_tensor_value_info("x", kinds.FLOAT, [batch, 3, 16, 16])],
            [helper.make_tensor_value_info(out, kinds.FLOAT, [batch, 8]) for out in ("y", "z")[:outputs]],
            [onnx.numpy_helper.from_array(weight, "weight")],
        )
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        if layout is not None:
            path.with_suffix(".toml").write_text(layout)
        return path

    return make


@pytest.fixture
def expected() -> Callable[[np.ndarray], np.ndarray]:
    """What that network returns for (N, 3, 16, 16), of unit length."""
    weight = np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32)

    def expected(blob: np.ndarray) -> np.ndarray:
        pooled = blob.reshape(len(blob), 3, 4, 4, 4, 4).mean(axis=(3, 5)).reshape(len(blob), 48)
        out = pooled @ weight
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    return expected
