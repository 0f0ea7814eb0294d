"""dlib's face recognition ResNet as a recognizer."""

from __future__ import annotations

from deocc.method import Method

METHOD = Method(
    api=1,
    name="dlib",
    summary="dlib's ResNet-29, 128-d, of 2017",
    paper="D. E. King: High Quality Face Recognition with Deep Metric Learning, dlib 19.3, 2017",
    licence="Apache-2.0",
    config="deocc_dlib.config:Config",
    recognizer="deocc_dlib.recognize:Dlib",
)
