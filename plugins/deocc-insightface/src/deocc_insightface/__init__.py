"""The recognition network of an insightface model pack as a recognizer."""

from __future__ import annotations

from deocc.method import Method

METHOD = Method(
    api=1,
    name="insightface",
    summary="the recognition network of an insightface model pack, your own download: insightface:PACK",
    paper="J. Deng, J. Guo, N. Xue, S. Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, "
    "CVPR 2019",
    licence="Apache-2.0",
    config="deocc_insightface.config:Config",
    recognizer="deocc_insightface.recognize:InsightFace",
)
