"""The recognizer part: the distilled student, for completed faces or, end to end, for masked ones."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from deocc import method, plugins
from deocc.faces import Crop
from deocc_distill.config import Config
from deocc_distill.faces import recrop
from deocc_distill.student import Student


class Recognizer(method.Recognizer):
    """The student: embeddings in the teacher's space, of faces that were completed before.

    With ``config.end_to_end`` it is the whole of eq. 6 instead: it takes masked faces in the restorer's crop, completes
    them with the restorer (weights: ``config.restorer_weights``), which finds the occlusion itself,
    and embeds them; gradients go all the way.
    """

    needs_weights: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    network: Student

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.network = Student(config)
        self.restorer: method.Restorer | None = None
        if config.end_to_end:
            given = Path(config.restorer_weights) if config.restorer_weights else None
            path = given or plugins.packaged_weights(plugins.get("distill"), "restorer")
            self.restorer = plugins.load("distill", "restorer", weights=path)
            self.files = () if path is None else (path,)
            self.crop_size, self.crop_zoom = self.restorer.crop_size, self.restorer.crop_zoom
        else:
            self.crop_size, self.crop_zoom = self.network.crop.size, self.network.crop.zoom

    def to(self, device: str | torch.device) -> method.Part:
        """Move both networks."""
        if self.restorer is not None:
            self.restorer.to(device)
        return super().to(device)

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1], S = ``crop_size`` -> (N, D)."""
        faces = image.float()
        if self.restorer is not None:
            faces = recrop(self.restorer(faces).image, Crop(self.crop_size, self.crop_zoom), self.network.crop)
        return self.network(faces.contiguous(memory_format=torch.channels_last))
