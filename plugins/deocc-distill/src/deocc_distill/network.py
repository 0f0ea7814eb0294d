"""The networks: generator, discriminators and segmentation head of the de-occlusion module, and the student."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.ops import contextual_attention
from deocc_distill.config import Config
from deocc_distill.config import Generator as Architecture


class Conv(nn.Sequential):
    """A convolution that keeps the size (but for its stride), and ELU, as everywhere in Yu et al. 2018."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation), nn.ELU(inplace=True))


def _encoder(width: int, first: int) -> list[nn.Module]:
    """Six layers from an image and its hole to a quarter of the resolution; ``first`` channels after the second one."""
    return [
        Conv(5, width, 5),
        Conv(width, first, 3, 2),
        Conv(first, 2 * width),
        Conv(2 * width, 4 * width, 3, 2),
        Conv(4 * width, 4 * width),
        Conv(4 * width, 4 * width),
    ]


def _dilated(width: int) -> list[nn.Module]:
    return [Conv(width, width, dilation=dilation) for dilation in (2, 4, 8, 16)]


def _decoder(inputs: int, width: int) -> list[nn.Module]:
    """Seven layers back to the full resolution."""
    return [
        Conv(inputs, 4 * width),
        Conv(4 * width, 4 * width),
        nn.Upsample(scale_factor=2),
        Conv(4 * width, 2 * width),
        Conv(2 * width, 2 * width),
        nn.Upsample(scale_factor=2),
        Conv(2 * width, width),
        Conv(width, max(1, width // 2)),
        nn.Conv2d(max(1, width // 2), 3, 3, padding=1),
    ]


class Completed(NamedTuple):
    """What the generator draws: (N, 3, H, W) in [0, 1] each, the whole face, of which the hole is used."""

    coarse: Tensor
    refined: Tensor


class Generator(nn.Module):
    """Coarse network, then refinement with a dilated and a contextual-attention branch (Yu et al. 2018).

    It never sees what is inside the hole.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        width = config.width
        self.coarse = nn.Sequential(*_encoder(width, 2 * width), *_dilated(4 * width), *_decoder(4 * width, width))
        # In the refinement network the third layer, not the second, doubles the channels.
        self.dilated = nn.Sequential(*_encoder(width, width), *_dilated(4 * width))
        self.before = self.after = None
        if config.attention:
            before = _encoder(width, width)
            before[-1][1] = nn.ReLU(inplace=True)  # patches are compared by cosine: only what is there counts
            self.before = nn.Sequential(*before)
            self.after = nn.Sequential(Conv(4 * width, 4 * width), Conv(4 * width, 4 * width))
        self.decoder = nn.Sequential(*_decoder((8 if config.attention else 4) * width, width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor, hole: Tensor) -> Completed:
        """(N, 3, H, W) in [0, 1], (N, 1, H, W) of 0 and 1, H and W multiples of 8."""
        known = torch.lerp(image * 2 - 1, torch.zeros_like(image[:1, :1, :1, :1]), hole)
        whole = torch.cat((torch.ones_like(hole), hole), 1)
        coarse = self.coarse(torch.cat((known, whole), 1)).clamp(-1, 1)
        pasted = torch.cat((known + hole * coarse, whole), 1)
        features = self.dilated(pasted)
        if self.before is not None and self.after is not None:
            attended = self.before(pasted)
            # A feature is occluded when anything of the 4 x 4 pixels under it is.
            occlusion = F.max_pool2d(hole, 4)
            attended = contextual_attention(attended, attended, occlusion, rate=2, scale=10.0, fuse=True)
            features = torch.cat((features, self.after(attended)), 1)
        refined = self.decoder(features).clamp(-1, 1)
        return Completed((coarse + 1) / 2, (refined + 1) / 2)


class Critic(nn.Module):
    """A discriminator: four 5x5 convolutions of stride 2 and one linear layer (Yu et al. 2018).

    No contextual attention and no normalisation: the gradient penalty differentiates it twice, and for each face alone.

    Args:
        width: channels of the first layer.
        widest: channels of the last one; the others double.
        size: side of the images, a multiple of 16.
    """

    def __init__(self, width: int, widest: int, size: int) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, widest]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 5, 2, 2), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(widest * (size // 16) ** 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, size, size) in [0, 1] -> (N,), the higher the more real."""
        return self.last(self.layers(image * 2 - 1).flatten(1))[:, 0]


def critics(config: Config) -> tuple[Critic, Critic]:
    """The global discriminator, and the local one, for squares of half the side."""
    width = config.generator.critic_width
    return Critic(width, 4 * width, config.size), Critic(width, 8 * width, config.size // 2)


class Finder(nn.Module):
    """The segmentation head: (N, 3, H, W) in [0, 1] -> logits (N, 1, H, W) of being occluded.

    A U-net over half the resolution and less; H and W are multiples of 16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width, 4 * width)
        self.stem = Conv(12, width)
        self.down = nn.ModuleList(nn.Sequential(Conv(a, b, 4, 2), Conv(b, b)) for a, b in itertools.pairwise(widths))
        self.middle = nn.Sequential(*(Conv(widths[-1], widths[-1], dilation=dilation) for dilation in (1, 2, 4)))
        self.up = nn.ModuleList(nn.Sequential(Conv(b + a, a), Conv(a, a)) for a, b in itertools.pairwise(widths))
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1, H, W)."""
        x = self.stem(F.pixel_unshuffle(image * 2 - 1, 2))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = up(torch.cat((F.interpolate(x, scale_factor=2), skip), 1))
        return F.pixel_shuffle(self.last(x), 2)


class Deocclusion(nn.Module):
    """What the restorer's weights file holds: the generator and the segmentation head."""

    multiple = 16
    """Height and width must be multiples of it."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.generator = Generator(config)
        self.finder = Finder(config.finder_width)


def settle(logits: Tensor, margin: int) -> Tensor:
    """What is completed of what the segmentation head says: (N, 1, H, W) logits -> 0 or 1, ``margin`` pixels wider."""
    found = (logits > 0).float()
    return F.max_pool2d(found, 2 * margin + 1, 1, margin) if margin else found


class Block(nn.Module):
    """The basic block of He et al. 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = None
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        skip = x if self.skip is None else self.skip(x)
        return F.relu(self.second(F.relu(self.first(x))) + skip)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with a single embedding layer on top.

    Args:
        widths: channels of its four groups.
        dim: of the embedding.
    """

    def __init__(self, widths: tuple[int, int, int, int], dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, 2, 3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks = []
        for number, (inputs, outputs) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True)):
            blocks += [Block(inputs, outputs, 2 if number else 1), Block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.embedding = nn.Linear(widths[-1], dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [0, 1] -> (N, dim), of any length."""
        return self.embedding(self.blocks(self.stem(image * 2 - 1)).mean((2, 3)))
