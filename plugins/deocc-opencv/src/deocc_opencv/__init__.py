"""OpenCV's two classical inpainting algorithms as restorers. They know nothing of faces: the floor to beat."""

from __future__ import annotations

from deocc.method import Method

TELEA = Method(
    api=1,
    name="opencv-telea",
    summary="OpenCV inpainting by fast marching (baseline; needs the occlusion)",
    paper="A. Telea: An Image Inpainting Technique Based on the Fast Marching Method, Journal of Graphics Tools 2004",
    licence="Apache-2.0",
    config="deocc_opencv.config:Config",
    restorer="deocc_opencv.restore:Telea",
)

NAVIER_STOKES = Method(
    api=1,
    name="opencv-ns",
    summary="OpenCV inpainting by fluid dynamics (baseline; needs the occlusion)",
    paper="M. Bertalmio, A. L. Bertozzi, G. Sapiro: Navier-Stokes, Fluid Dynamics, and Image and Video Inpainting, "
    "CVPR 2001",
    licence="Apache-2.0",
    config="deocc_opencv.config:Config",
    restorer="deocc_opencv.restore:NavierStokes",
)
