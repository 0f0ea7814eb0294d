"""MobileFaceNet: a small face recognizer, with weights under a permissive licence."""

from __future__ import annotations

from deocc.method import Method

METHOD = Method(
    api=1,
    name="mobilefacenet",
    summary="MobileFaceNet, 128-d, differentiable, 1 million parameters, trained on refined MS-Celeb-1M",
    paper="S. Chen, Y. Liu, X. Gao, Z. Han: MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification "
    "on Mobile Devices, CCBR 2018",
    licence="Apache-2.0",
    config="deocc_mobilefacenet.config:Config",
    recognizer="deocc_mobilefacenet.recognize:MobileFaceNet",
    weights={"recognizer": "deocc_mobilefacenet:weights/mobilefacenet_ms1m.safetensors"},
)
