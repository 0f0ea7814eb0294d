"""Perceptual distance over a feature network whose weights the user brings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deocc.errors import InputError, WeightsError

# (stride, padding, kernel of the max-pooling in front, is a tap) for each convolution.
_ALEXNET = ((4, 2, 0, True), (1, 2, 3, True), (1, 1, 3, True), (1, 1, 0, True), (1, 1, 0, True))
_VGG16 = tuple(
    (1, 1, 2 if first and block else 0, last)
    for block, size in enumerate((2, 2, 3, 3, 3))
    for first, last in ((index == 0, index == size - 1) for index in range(size))
)


class LPIPS(nn.Module):
    """Learned perceptual distance of image pairs (Zhang et al., CVPR 2018, eq. 1), version 0.1.

    Args:
        weights: a safetensors file with ``conv{i}.weight``, ``conv{i}.bias`` of ImageNet AlexNet (5 convolutions) or
            VGG16 (13), and the five linear heads ``lin{i}`` of LPIPS: those of torchvision's ``features`` in their
            order, and ``lin{i}.model.1.weight`` of the lpips package's ``weights/v0.1/alex.pth`` or ``vgg.pth``.
            None is packaged. The figures of deocc's own documents are by files of SHA-256 8145d8f53381cb10...
            (AlexNet) and bbfd4534186ecd79... (VGG16), with weights in float16.

    Raises:
        WeightsError: the file is missing or does not hold one of the two networks.

    Shapes: two tensors (N, 3, H, W), RGB in [0, 1] -> (N,) distances, 0 for equal images. The parameters are frozen;
    gradients flow to both images.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        try:
            tensors = load_file(str(weights))
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{weights}: cannot be read as the weights of LPIPS ({error})") from error
        layouts = {5: _ALEXNET, 13: _VGG16}
        count = sum(name.startswith("conv") and name.endswith(".weight") for name in tensors)
        wanted = [f"conv{i}.{kind}" for i in range(count) for kind in ("weight", "bias")]
        wanted += [f"lin{i}" for i in range(5)]
        if count not in layouts or not tensors.keys() >= set(wanted):
            raise WeightsError(
                f"{weights}: wanted conv0..conv4 (AlexNet) or conv0..conv12 (VGG16), .weight and .bias of each, and "
                f"lin0..lin4, got {', '.join(sorted(tensors))}"
            )
        self.layout = layouts[count]
        _check_shapes(weights, tensors, self.layout)
        self.convolutions = nn.ModuleList()
        for index, (stride, padding, _, _) in enumerate(self.layout):
            weight = tensors[f"conv{index}.weight"].float()
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
            convolution.load_state_dict({"weight": weight, "bias": tensors[f"conv{index}.bias"].float()})
            self.convolutions.append(convolution)
        for index in range(5):
            self.register_buffer(f"head{index}", tensors[f"lin{index}"].float().flatten())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, image: Tensor, maps: int = 5) -> list[Tensor]:
        """The first of the five tapped feature maps of (N, 3, H, W) images in [0, 1], after ReLU, not normalised."""
        x = (image * 2 - 1 - self.shift) / self.scale
        taps: list[Tensor] = []
        for convolution, (_, _, pool, tap) in zip(self.convolutions, self.layout, strict=True):
            if pool:
                x = F.max_pool2d(x, pool, 2)
            x = F.relu(convolution(x))
            if tap:
                taps.append(x)
                if len(taps) == maps:
                    break
        return taps

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """The distance of each pair: (N, 3, H, W), (N, 3, H, W) -> (N,)."""
        return self.distance(self.features(image), self.features(other))

    def distance(self, features: list[Tensor], others: list[Tensor]) -> Tensor:
        """The distance of each pair of images whose :meth:`features` are given: (N,)."""
        total = features[0].new_zeros(len(features[0]))
        for index, (a, b) in enumerate(zip(features, others, strict=True)):
            difference = (_unit(a) - _unit(b)).square()
            total = total + torch.einsum("nchw,c->nhw", difference, self.get_buffer(f"head{index}")).mean((1, 2))
        return total


def _check_shapes(
    weights: str | Path, tensors: Mapping[str, Tensor], layout: Sequence[tuple[int, int, int, bool]]
) -> None:
    """Raise WeightsError unless the convolutions fit on each other, and the heads on what is tapped."""

    def check(name: str, *wanted: int | None) -> None:
        got = tuple(tensors[name].shape)
        if len(got) != len(wanted) or any(want not in (None, one) for want, one in zip(wanted, got, strict=True)):
            text = ", ".join("any" if want is None else str(want) for want in wanted)
            raise WeightsError(f"{weights}: wanted {name} of shape ({text}), got {got}")

    channels, taps = 3, 0
    for index, (_, _, _, tap) in enumerate(layout):
        weight = tensors[f"conv{index}.weight"]
        side = weight.shape[2] if weight.dim() == 4 else None
        check(f"conv{index}.weight", None, channels, side, side)
        channels = len(weight)
        check(f"conv{index}.bias", channels)
        if tap:
            if tensors[f"lin{taps}"].numel() != channels:
                check(f"lin{taps}", 1, channels, 1, 1)
            taps += 1


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()


class StyleLoss(nn.Module):
    """Difference in style of image pairs (Gatys et al. 2016): of the Gram matrices of a network's features.

    ``mean over the maps of sum |G(a) - G(b)| / C^2``, with ``G(x) = x x^T / (C h w)`` for a map x of C rows: equation
    11 of canet, with the normalisation of the Gram matrix that the works it follows have (Liu et al. 2018, eq. 4) and
    that the equation leaves out; without it the loss would grow with the number of pixels.

    Args:
        weights: the file of :class:`LPIPS`, whose convolutions are used, VGG16 by custom; the heads are not.
        maps: how many of the five tapped maps, the finest first; the further ones are not computed.

    Raises:
        WeightsError: as :class:`LPIPS` does.
        InputError: a number of maps that is not 1 to 5.

    Shapes: two tensors (N, 3, H, W), RGB in [0, 1] -> scalar, 0 for equal images. The parameters are frozen;
    gradients flow to both images.
    """

    def __init__(self, weights: str | Path, *, maps: int = 5) -> None:
        super().__init__()
        if not 1 <= maps <= 5:
            raise InputError(f"StyleLoss: maps must be 1 to 5, got {maps}")
        self.network = LPIPS(weights)
        self.maps = maps

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """The mean over the pairs: (N, 3, H, W), (N, 3, H, W) -> scalar."""
        pairs = zip(self.network.features(image, self.maps), self.network.features(other, self.maps), strict=True)
        differences = [(_gram(a) - _gram(b)).abs().mean((1, 2)) for a, b in pairs]
        return torch.stack(differences).mean()


def _gram(features: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C, C), divided by C h w."""
    rows = features.flatten(2)
    # Half precision may be used for the products, and would overflow if it were divided afterwards; what is subtracted
    # then is float32.
    rows = rows / math.sqrt(rows.shape[1] * rows.shape[2])
    return (rows @ rows.transpose(1, 2)).float()
