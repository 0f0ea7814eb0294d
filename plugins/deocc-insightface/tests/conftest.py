"""Model packs made for a test: real ones are their users' own downloads."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def _network(path: Path, size: int, batch: str | int, names: tuple[str, str]) -> None:
    """(x - 1) * 2 by nodes of those names, then a fixed linear map of means over squares: (batch, 8)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "one": np.float32(1),
        "two": np.float32(2),
        "weight": random.normal(size=(147, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["x", "one"], ["less"], name=names[0]),
        helper.make_node("Mul", ["less", "two"], ["more"], name=names[1]),
        helper.make_node("AveragePool", ["more"], ["pooled"], kernel_shape=[size // 7] * 2, strides=[size // 7] * 2),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "made for a test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """``make("pack", size=112, batch="b", embedded=True, manifest=False)``: ROOT/models/PACK; returns ROOT.

    ``embedded``: the names of the first nodes tell insightface that the network normalises its input itself.
    ``manifest``: the pack says by ``manifest.json`` what is in it.
    """
    pytest.importorskip("insightface", reason="needs insightface, which is not installed")

    def make(
        pack: str = "pack", size: int = 112, batch: str | int = "b", embedded: bool = True, manifest: bool = False
    ) -> Path:
        folder = tmp_path / "models" / pack
        folder.mkdir(parents=True)
        _network(folder / "recognition.onnx", size, batch, ("Sub_0", "Mul_0") if embedded else ("A", "B"))
        if manifest:
            (folder / "MODEL.LICENSE").write_text("made for a test")
            tasks = {"recognition": {"file": "recognition.onnx", "preprocessing": {"mean": 3.0, "std": 4.0}}}
            content = {"manifest_version": 2, "model_id": pack, "license": "MODEL.LICENSE", "tasks": tasks}
            (folder / "manifest.json").write_text(json.dumps(content))
        return tmp_path

    return make
