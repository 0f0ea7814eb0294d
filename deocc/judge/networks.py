"""Networks whose features say how alike two sets of faces are, or two faces. Their files are the user's."""

from __future__ import annotations

import abc
import itertools
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from deocc.errors import UsageError, WeightsError
from deocc.files import sha256
from deocc.judge.parts import state_digest
from deocc.judge.result import Network
from deocc.losses import LPIPS
from deocc.plugins import source_digest

__all__ = ["FeatureNetwork", "Perceptual", "load_networks"]


class FeatureNetwork(abc.ABC):
    """A network that turns images (N, 3, H, W) in [0, 1] into features (N, D).

    Attributes:
        result: how a report names it.
    """

    def __init__(self, result: Network) -> None:
        self.result = result
        self.lock = threading.Lock()

    @property
    def key(self) -> str:
        """What rows call it."""
        return self.result.key

    @property
    def identity(self) -> list[str]:
        """All that decides its features, JSON-able."""
        return [self.key, self.result.sha256, self.result.features]

    @abc.abstractmethod
    def maps(self, image: Tensor) -> Any:
        """What :meth:`pooled` is computed from."""

    @abc.abstractmethod
    def pooled(self, maps: Any) -> Tensor:
        """(N, D) float32."""


class Perceptual(FeatureNetwork):
    """AlexNet or VGG16 with the heads of LPIPS: distances, and the last tap's mean over the image as features."""

    def __init__(self, path: Path, device: str) -> None:
        self._network = LPIPS(path).to(device).eval()
        name = {5: "AlexNet", 13: "VGG16"}[len(self._network.layout)]
        dimensions = self._network.get_buffer("head4").numel()
        words = f"{name}: LPIPS v0.1; as features, the mean over the image of its last convolution after ReLU"
        super().__init__(Network(path.stem, path.name, sha256(path), words, dimensions))
        self._device = device

    @property
    def identity(self) -> list[str]:
        """With the device: another one's last bits are others."""
        return [*super().identity, self._device]

    def maps(self, image: Tensor) -> list[Tensor]:
        """The five taps."""
        return self._network.features(image.to(self._device).float())

    def pooled(self, maps: Any) -> Tensor:
        """The mean of the last tap."""
        features: Tensor = maps[-1].mean(dim=(2, 3))
        return features

    def distance(self, maps: Any, others: Any) -> Tensor:
        """LPIPS of each pair, (N,)."""
        return self._network.distance(maps, others)


class Onnx(FeatureNetwork):
    """Any ONNX network, by OpenCV: it is given (1, 3, S, S) RGB 0..255."""

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        try:
            self._network = cv2.dnn.readNetFromONNX(str(path))
            probe = self.maps(torch.full((1, 3, size, size), 0.5))
        except cv2.error as error:
            raise WeightsError(
                f"{path} is not an ONNX network that OpenCV can run on RGB of {size}x{size} pixels (another side is "
                "said as FILE:SIDE)"
            ) from error
        words = f"first output for RGB 0..255, resized to {size}x{size} pixels bilinearly, with antialiasing"
        super().__init__(Network(path.stem, path.name, sha256(path), words, probe.shape[1]))

    def maps(self, image: Tensor) -> Tensor:
        """The features."""
        size = (self._size, self._size)
        resized = nn.functional.interpolate(image.cpu().float(), size, mode="bilinear", antialias=True)
        found = []
        for one in resized.clamp(0, 1).mul(255).numpy():
            self._network.setInput(one[None])
            found.append(np.array(self._network.forward(), np.float32).reshape(1, -1))
        return torch.from_numpy(np.concatenate(found))

    def pooled(self, maps: Any) -> Tensor:
        """They are the features."""
        features: Tensor = maps
        return features


class Wrapped(FeatureNetwork):
    """A module as torchmetrics takes it for FID: uint8 (N, 3, H, W) -> (N, D)."""

    def __init__(self, module: nn.Module, digest: str) -> None:
        self._module = module.eval()
        some = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))
        self._device = some.device
        with torch.inference_mode():
            probe = module(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=self._device))
        if not isinstance(probe, Tensor) or probe.ndim != 2 or len(probe) != 1:
            raise UsageError(
                f"a feature module must turn uint8 (1, 3, H, W) into (1, D), {type(module).__name__} does not"
            )
        words = f"{type(module).__name__}, a module that was handed in, for uint8 RGB"
        self._source = source_digest(type(module))
        super().__init__(Network(type(module).__name__, "", digest, words, probe.shape[1]))

    @property
    def identity(self) -> list[str]:
        """With the module's code and device."""
        return [*super().identity, self._source, str(self._device)]

    def maps(self, image: Tensor) -> Tensor:
        """The features."""
        pixels = (image * 255).round().to(self._device, torch.uint8)
        features: Tensor = self._module(pixels).float()
        return features

    def pooled(self, maps: Any) -> Tensor:
        """They are the features."""
        features: Tensor = maps
        return features


def load_networks(given: Sequence[str | Path | nn.Module], device: str = "cpu") -> list[FeatureNetwork]:
    """Load feature networks.

    Args:
        given: files: ``.safetensors`` as :class:`deocc.losses.LPIPS` takes them; ``.onnx``, or ``FILE.onnx:SIDE``, any
            network that takes RGB 0..255 of that many pixels a side (299 where it is not said, as for Inception); or
            modules that turn uint8 (N, 3, H, W) into (N, D), as torchmetrics takes them for FID.
        device: where the first kind computes.

    Raises:
        UsageError: another kind of file, or two with one name.
        WeightsError: a file that is missing or does not hold such a network.
    """
    found: list[FeatureNetwork] = []
    for one in given:
        if isinstance(one, nn.Module):
            network: FeatureNetwork = Wrapped(one, state_digest(one))
        else:
            text, _, side = str(one).rpartition(":") if re.search(r"\.onnx:\d+$", str(one)) else (str(one), "", "299")
            path = Path(text)
            if path.suffix not in (".safetensors", ".onnx"):
                raise UsageError(f"{path}: a feature network must be a .safetensors or an .onnx file")
            if not path.is_file():
                raise WeightsError(f"{path} is missing: the file of a feature network was wanted")
            network = Perceptual(path, device) if path.suffix == ".safetensors" else Onnx(path, int(side))
        if network.key in {other.key for other in found}:
            raise UsageError(f"two feature networks are called {network.key!r}; rename a file")
        found.append(network)
    return found
