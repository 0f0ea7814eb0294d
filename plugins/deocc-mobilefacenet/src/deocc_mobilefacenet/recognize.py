"""MobileFaceNet as a recognizer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deocc.method import Recognizer
from deocc_mobilefacenet.config import Config
from deocc_mobilefacenet.network import Network


class MobileFaceNet(Recognizer):
    """128-d embeddings of faces aligned to the 112x112 ArcFace template."""

    needs_weights: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    crop_size = 112
    crop_zoom = 1.0
    network: Network

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.network = Network()

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [0, 1] -> (N, 128)."""
        # The weights are float32; other floating dtypes come in by way of callers' pipelines.
        embedding: Tensor = self.network(image.to(self.network.conv3.weight.dtype))
        return embedding
