"""An ONNX network as a recognizer."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deocc.config import did_you_mean, from_toml
from deocc.errors import InputError, MissingDependencyError, UsageError, WeightsError
from deocc.faces import TEMPLATE_112, Crop
from deocc.method import Recognizer
from deocc_onnx.config import Config, Layout

Array = npt.NDArray[np.float32]

_MOST_TURNED = 3.0
"""Degrees by which points may be turned against the template: more than that is not how faces are laid out."""


class OnnxRecognizer(Recognizer):
    """Embeddings by a network of the user's.

    Faces are aligned by deocc so that a square of the crop is what the network wants, pixel for pixel.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.model is None:
            raise UsageError(f"the recognizer 'onnx' needs {self.lacks()}, got none")
        model = config.model.expanduser()
        if not model.is_file():
            raise WeightsError(f"{model} is missing: an ONNX file was wanted")
        try:
            str(model).encode()
        except UnicodeEncodeError as error:  # OpenCV would end the process
            raise InputError(f"{str(model)!r} cannot be read: the name of an ONNX file must be UTF-8") from error
        self.layout, beside = read_layout(config)
        self.crop_size, self.crop_zoom, self._left, self._top = window(self.layout)
        Crop(self.crop_size, self.crop_zoom)
        self._run = (_opencv if self.layout.runtime == "opencv" else _onnxruntime)(model, self.layout)
        self.files = (model, beside)
        # Whatever does not fit shows now, and not in the middle of a long job.
        noise = torch.rand(2, 3, self.crop_size, self.crop_size, generator=torch.Generator().manual_seed(0))
        alone, together = self.embed(noise[1:]), self.embed(noise)
        self.dimensions = alone.shape[1]
        if not bool(torch.isfinite(together).all()):
            raise InputError(f"{model} gives embeddings that are not finite: is its layout right (scale, mean, std)?")
        if together.shape != (2, self.dimensions) or float((together[1] - alone[0]).norm() / alone.norm()) > 0.01:
            raise InputError(f"{model} does not take two faces at once: its layout must say batch = false")

    @classmethod
    def lacks(cls) -> str:
        """A model, always."""
        return "a model: onnx:MODEL.onnx"

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, D) float32 on the CPU."""
        layout, size = self.layout, self.layout.size
        if len(image) == 0:
            return torch.empty(0, self.dimensions)
        cut = image[:, :, self._top : self._top + size, self._left : self._left + size].detach().cpu()
        if layout.channels == "bgr":
            cut = cut.flip(1)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (layout.mean, layout.std))
        blob = ((cut * layout.scale - mean) / std).numpy()
        batches = [blob] if layout.batch else [blob[i : i + 1] for i in range(len(blob))]
        try:
            found = [self._run(np.ascontiguousarray(batch)).reshape(len(batch), -1) for batch in batches]
        except Exception as error:  # either runtime's own, and a result that is not one row a face
            raise InputError(
                f"{self.config.model} does not take faces of shape {batches[0].shape} as its layout says (size, batch, "
                f"output): {_first_line(error)}"
            ) from error
        return torch.from_numpy(np.concatenate(found).astype(np.float32))


def read_layout(config: Config) -> tuple[Layout, Path]:
    """The layout of the model, and its file.

    Raises:
        UsageError: no such packaged layout, or a field that is not right.
        InputError: the file is missing or not TOML.
    """
    assert config.model is not None
    packaged = Path(str(importlib.resources.files("deocc_onnx"))) / "layouts"
    known = sorted(item.stem for item in packaged.iterdir())
    if config.layout is None:
        path = config.model.expanduser().with_suffix(".toml")
        if not path.is_file():
            raise InputError(
                f"{path} is missing: it says how {config.model.name} wants its faces; write it, or give another file "
                f"or the name of a packaged layout ({', '.join(known)}) as layout=..."
            )
        return from_toml(Layout, path), path
    name = str(config.layout)
    if name in known:
        path = packaged / f"{name}.toml"
        return from_toml(Layout, path), path
    if config.layout.suffix != ".toml":
        raise UsageError(f"there is no packaged layout {name!r}; {did_you_mean(name, known)} (a file ends in .toml)")
    path = config.layout.expanduser()
    return from_toml(Layout, path), path


def window(layout: Layout) -> tuple[int, float, int, int]:
    """The crop on the ArcFace template that holds the network's input, and the input's place in it.

    Where the points are not the template's about the middle of the input, the crop is as much larger as its own middle
    needs. Its scale is the input's, so that the input is cut out of it, moved by half a pixel at most.

    Returns:
        the crop's size and zoom, and the input's left and top edge in the crop.

    Raises:
        UsageError: the points do not look like a face's, or lie far outside the input.
    """
    if layout.points is None:
        return layout.size, layout.zoom, 0, 0
    template, points = TEMPLATE_112.astype(np.float64), np.array(layout.points)
    a, b = (values - values.mean(axis=0) for values in (template, points))
    along = (a * b).sum() / (a**2).sum()
    turned = math.degrees(math.atan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum()))
    if not (abs(turned) <= _MOST_TURNED and along > 0.01):
        raise UsageError(
            "the points of a layout must be an upright face: eyes, nose, corners of the mouth, the left of the picture "
            f"first; these are turned by {turned:.0f} degrees against the template"
        )
    x, y = points.mean(axis=0) + along * (56 - template.mean(axis=0))  # the middle of the template, in the input
    half = max(x, layout.size - x, y, layout.size - y)
    if half > 2 * layout.size:
        raise UsageError(f"the points of a layout must lie in its input of {layout.size} pixels, got {layout.points}")
    size = 2 * math.ceil(half - 1e-3)
    left, top = (min(max(round(size / 2 - middle), 0), size - layout.size) for middle in (x, y))
    return size, float(112 * along / size), left, top


def _opencv(model: Path, layout: Layout) -> Callable[[Array], Array]:
    try:
        network = cv2.dnn.readNetFromONNX(str(model))
    except cv2.error as error:
        raise WeightsError(
            f"{model} is not an ONNX network that OpenCV can run ({_first_line(error)}); "
            "runtime = 'onnxruntime' in its layout runs more of them"
        ) from error
    output = _output(model, layout, list(network.getUnconnectedOutLayersNames()))

    def run(blob: Array) -> Array:
        network.setInput(blob)
        return np.array(network.forward(output), np.float32)

    return run


def _onnxruntime(model: Path, layout: Layout) -> Callable[[Array], Array]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"the layout of {model.name} wants onnxruntime, which is not installed: "
            "pip install 'deocc-onnx[onnxruntime]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise WeightsError(f"{model} is not an ONNX network that onnxruntime can run: {_first_line(error)}") from error
    output = _output(model, layout, [value.name for value in session.get_outputs()])
    name = session.get_inputs()[0].name

    def run(blob: Array) -> Array:
        return np.array(session.run([output], {name: blob})[0], np.float32)

    return run


def _output(model: Path, layout: Layout, names: list[str]) -> str:
    if layout.output:
        if layout.output not in names:
            raise UsageError(f"{model} has no output {layout.output!r}; {did_you_mean(layout.output, names)}")
        return layout.output
    if len(names) != 1:
        raise UsageError(f"{model} has {len(names)} outputs ({', '.join(names)}): its layout must name the one, output")
    return names[0]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
