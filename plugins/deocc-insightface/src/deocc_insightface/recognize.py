"""insightface's recognition network."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deocc.errors import InputError, MissingDependencyError, UsageError, WeightsError
from deocc.images import to_uint8
from deocc.method import Recognizer
from deocc_insightface.config import Config

LICENCE = (
    "insightface's code is under the MIT licence; the model packs its authors publish, and what is computed with them, "
    "are for non-commercial research alone unless they license them to you"
)
"""What is said, once a process, when a pack is loaded."""

MANIFEST = "manifest.json"
"""What a newer pack names its networks in, wherever they lie below it."""

_said: set[str] = set()


class InsightFace(Recognizer):
    """Embeddings by the recognition network of a pack, which the user has downloaded; nothing is downloaded here.

    The crop is insightface's own ``norm_crop`` for inputs of 112 pixels and multiples of them: the ArcFace template.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not _is_pack(config.folder):
            raise WeightsError(
                f"the model pack {config.pack!r} is missing: {config.folder} should hold its .onnx files, those of "
                f"{Path(config.pack).name}.zip from the model-zoo release of "
                "https://github.com/deepinsight/insightface (or say where it is: insightface:FOLDER)"
            )
        self._model, file = _recognition_model(config.folder)
        manifest = config.folder / MANIFEST
        self.files = (file, manifest) if manifest.exists() else (file,)
        width, height = self._model.input_size
        if width != height or not isinstance(width, int) or width % 112:
            raise InputError(f"{file}: faces of 112x112 pixels, or a multiple, are wanted, got {width}x{height}")
        self.crop_size = width
        batch, dimensions = self._model.session.get_inputs()[0].shape[0], self._model.output_shape[-1]
        self._one_by_one = batch == 1
        self._dimensions = int(dimensions)
        if LICENCE not in _said:
            _said.add(LICENCE)
            warnings.warn(LICENCE, UserWarning, stacklevel=3)

    @classmethod
    def lacks(cls) -> str:
        """The package, or the pack of the default configuration."""
        if find_spec("insightface") is None:
            return "insightface"
        folder = Config().folder
        return "" if _is_pack(folder) else f"a model pack: insightface:FOLDER (there is none in {folder})"

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, D) float32 on the CPU."""
        if len(image) == 0:
            return torch.empty(0, self._dimensions)
        faces = [np.ascontiguousarray(face[..., ::-1]) for face in to_uint8(image)]  # BGR is what it takes
        batches = [[face] for face in faces] if self._one_by_one else [faces]
        found = [np.asarray(self._model.get_feat(batch), np.float32) for batch in batches]
        return torch.from_numpy(np.concatenate(found).reshape(len(faces), -1))


def _is_pack(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or any(folder.glob("*.onnx"))


def _recognition_model(folder: Path) -> tuple[Any, Path]:
    """The pack's recognition network as ``insightface.app.FaceAnalysis`` would choose it, and its file."""
    try:
        from insightface.model_zoo import get_model
        from insightface.model_zoo.package_manifest import has_model_package_manifest
    except ImportError as error:
        raise MissingDependencyError(
            f"the recognizer 'insightface' needs insightface ({error}): pip install insightface"
        ) from error
    options = {"providers": ["CPUExecutionProvider"], "download": False}
    try:
        if has_model_package_manifest(folder):
            model = get_model(str(folder), model_task="recognition", **options)
            return model, Path(model.model_file)
        for file in sorted(folder.glob("*.onnx")):
            model = get_model(str(file), **options)
            if model is not None and model.taskname == "recognition":
                return model, file
    except Exception as error:  # onnxruntime's errors have no common class
        text = " ".join(str(error).split())[:200]
        raise WeightsError(f"the model pack in {folder} cannot be loaded: {type(error).__name__}: {text}") from error
    names = ", ".join(sorted(file.name for file in folder.glob("*.onnx")))
    raise UsageError(f"the model pack in {folder} has no recognition network among {names}")
