"""Any ONNX face embedding network as a recognizer, by path."""

from __future__ import annotations

from deocc.method import Method

METHOD = Method(
    api=1,
    name="onnx",
    summary="any ONNX face embedding network, by path: onnx:MODEL.onnx",
    licence="Apache-2.0",
    config="deocc_onnx.config:Config",
    recognizer="deocc_onnx.recognize:OnnxRecognizer",
)
