"""The networks: one finds the occlusion, one completes the face at several scales, one tells real from completed."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.errors import UsageError
from deocc.ops import DualAttentionFusion
from deocc_canet.config import HEADS, Architecture, Config


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions. No normalisation: the second one starts at zero, so that a deep stack starts as
    the identity and needs none (normalising costs more than the convolutions do on a CPU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same shape."""
        hidden = self.first(F.silu(x))
        if torch.is_grad_enabled():
            return x + self.second(F.silu(hidden))
        # Two maps fewer to write and read: up to a tenth of the time for larger batches.
        result: Tensor = self.second(F.silu(hidden, inplace=True))
        return result.add_(x)


class SelfAttention(nn.Module):
    """x + multi-head attention over all positions of the coarsest map, so that one side of a face informs the other."""

    def __init__(self, width: int, heads: int = HEADS) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.heads = heads
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same shape."""
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h, w)
        return x + self.out(attended)


class Encoder(nn.Module):
    """From pixels to maps at 1/2, 1/4, 1/8 ... of the resolution.

    Args:
        inputs: channels at full resolution.
        widths: channels at 1/2, 1/4, 1/8 ...
        blocks: residual blocks at the coarsest scale; the others have one fewer (at least one).
        attention: whether to attend over the coarsest map.

    Shapes: (N, inputs, H, W) -> one map for each width, the finest first; H and W divisible by ``2 ** len(widths)``.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], blocks: int, attention: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * inputs, widths[0], 3, padding=1)
        self.scales = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(max(1, blocks - 1)))) for width in widths[:-1]
        )
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        middle: list[nn.Module] = [ResidualBlock(widths[-1]) for _ in range(blocks)]
        if attention:
            middle.insert(1, SelfAttention(widths[-1]))
        self.middle = nn.Sequential(*middle)
        self.width = widths[-1]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, inputs, H, W) -> [(N, widths[0], H/2, W/2), (N, widths[1], H/4, W/4), ...]."""
        x = self.stem(F.pixel_unshuffle(x, 2))
        maps = []
        for scale, down in zip(self.scales, self.down, strict=True):
            x = scale(x)
            maps.append(x)
            x = down(x)
        return [*maps, self.middle(x)]


class Decoder(nn.Module):
    """Back from an encoder's maps to the full resolution.

    Args:
        widths: the encoder's.
        outputs: channels at full resolution.
        blocks: residual blocks at each scale.

    Shapes: the encoder's maps -> one map for each decoder layer, layer 1 (full resolution) first.
    """

    def __init__(self, widths: tuple[int, ...], outputs: int, blocks: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths[:-1])
        self.scales = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(blocks))) for width in widths[:-1]
        )
        self.last = nn.Conv2d(widths[0], 4 * outputs, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[(N, widths[0], H/2, W/2), ...] -> [(N, outputs, H, W), (N, widths[0], H/2, W/2), ...]."""
        *skips, x = maps
        layers = [x]
        for up, merge, scale, skip in reversed(list(zip(self.up, self.merge, self.scales, skips, strict=True))):
            x = scale(merge(torch.cat((F.pixel_shuffle(up(x), 2), skip), 1)))
            layers.append(x)
        layers.append(F.pixel_shuffle(self.last(F.silu(x)), 2))
        return layers[::-1]


class Finder(nn.Module):
    """Finds what is occluded: (N, 3, H, W) in [0, 1] -> logits (N, 1, H, W) of being occluded."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.encoder = Encoder(3, config.finder_widths, blocks=1, attention=False)
        self.decoder = Decoder(config.finder_widths, 1, blocks=1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1, H, W)."""
        return self.decoder(self.encoder(image * 2 - 1))[0]


class Output(NamedTuple):
    """What the decoder gives at one of the selected layers."""

    image: Tensor
    """(N, 3, h, w), the completed face (eq. 8), not clamped."""
    field: Tensor | None
    """(N, 2, h, w), the dense correspondence field: u and v of every pixel in [0, 1], 0 beside the face, not clamped;
    None for an architecture without."""
    attention: Tensor | None
    """(N, 3, h, w), logits of the fusion's alpha (eq. 7); None for an architecture without."""


class Completer(nn.Module):
    """Draws a whole face from what is visible of it, at every selected scale (canet sections 3.2 and 3.3).

    It never sees an occluded pixel: where the occlusion is 1 its input is grey.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.encoder = Encoder(4, config.widths, config.blocks, attention=True)
        self.decoder = Decoder(config.widths, config.full_width, config.blocks)
        self.full = ResidualBlock(config.full_width)
        widths = (config.full_width, *config.widths)
        self.layers = tuple(sorted(config.layers))
        if (
            1 not in self.layers
            or not set(self.layers) <= set(range(1, len(widths) + 1))
            or len(set(self.layers)) < len(self.layers)
        ):
            raise UsageError(
                f"the decoder has layers 1 (the image's own size) to {len(widths)}; architecture.layers must be some "
                f"of them, each once, layer 1 included, got {config.layers}"
            )
        self.images = nn.ModuleList(
            _fusion(widths[layer - 1]) if config.fusion else _projection(widths[layer - 1]) for layer in self.layers
        )
        self.fields = (
            nn.ModuleList(nn.Conv2d(widths[layer - 1], 2, 1) for layer in self.layers) if config.dense_field else None
        )

    def forward(self, image: Tensor, occlusion: Tensor) -> list[Output]:
        """(N, 3, H, W), (N, 1, H, W) in [0, 1] -> one Output for each selected layer, that of full size first."""
        known = torch.lerp(image, torch.full_like(image[:1, :1, :1, :1], 0.5), occlusion)
        maps = self.decoder(self.encoder(torch.cat((known * 2 - 1, occlusion), 1)))
        maps[0] = self.full(maps[0])
        outputs = []
        for place, layer in enumerate(self.layers):
            features, to_image = maps[layer - 1], self.images[place]
            field = None if self.fields is None else self.fields[place](features)
            if isinstance(to_image, DualAttentionFusion):
                fused = to_image.parts(features, known)
                outputs.append(Output(fused.result, field, fused.logits))
            else:
                outputs.append(Output(to_image(features), field, None))
        return outputs


def _fusion(width: int) -> DualAttentionFusion:
    fusion = DualAttentionFusion(width)
    # The known image starts as it is, and the drawing as grey: a start near what both become.
    nn.init.eye_(fusion.embed.weight[:, :, 0, 0].data)
    nn.init.zeros_(fusion.embed.bias)
    nn.init.constant_(fusion.project.bias, 0.5)
    return fusion


def _projection(width: int) -> nn.Conv2d:
    projection = nn.Conv2d(width, 3, 1)
    nn.init.constant_(projection.bias, 0.5)
    return projection


class Network(nn.Module):
    """What the weights file holds: a finder and a completer."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.finder = Finder(config)
        self.completer = Completer(config)


class Representation(nn.Module):
    """E_q or E_k of the Siamese inference network (canet section 3.1): an encoder, and one layer to a unit vector.

    Args:
        encoder: of a :class:`Completer`.
        dim: of the representation.
    """

    def __init__(self, encoder: Encoder, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, dim)

    def forward(self, image: Tensor, occlusion: Tensor) -> Tensor:
        """(N, 3, H, W), (N, 1, H, W) in [0, 1] -> (N, dim)."""
        known = torch.lerp(image, torch.full_like(image[:1, :1, :1, :1], 0.5), occlusion)
        maps = self.encoder(torch.cat((known * 2 - 1, occlusion), 1))
        return F.normalize(self.head(maps[-1].mean((2, 3))).float(), dim=1)


def encoder_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The completer's encoder in a state dict of :class:`Network`."""
    prefix = "completer.encoder."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def spread(occlusion: Tensor, radius: int) -> Tensor:
    """Grow what is occluded by ``radius`` pixels: (N, 1, H, W) -> (N, 1, H, W)."""
    if not radius:
        return occlusion
    # Rows, then columns, by shifted maxima: max pooling takes up to thirty times as long on a CPU.
    for axis, margin in ((2, (0, 0, radius, radius)), (3, (radius, radius))):
        size = occlusion.shape[axis]
        padded = F.pad(occlusion, margin, value=-math.inf)
        occlusion = functools.reduce(
            torch.maximum, (padded.narrow(axis, shift, size) for shift in range(2 * radius + 1))
        )
    return occlusion


def soften(occlusion: Tensor, config: Config) -> Tensor:
    """How far each pixel is hidden from the completer: (N, 1, H, W) in [0, 1] -> the same shape.

    Not at all up to ``config.threshold``, wholly from an occlusion of a third on, since of a pixel that is found to be
    occluded so far nothing is certain; in between, as in a mask's shadow, it stays partly visible.
    """
    return (3 * occlusion).clamp(max=1) * (occlusion > config.threshold)


def settle(probability: Tensor, config: Config) -> Tensor:
    """:func:`soften` of what the finder says: (N, 1, H, W) in [0, 1] -> the same shape.

    Gaps of up to ``2 * config.closing`` pixels are closed (a logo printed on a mask looks like no mask).
    """
    found = (probability > config.threshold).float()
    closed = -spread(-spread(found, config.closing), config.closing)
    return torch.maximum(soften(probability, config), closed - found)


class Discriminator(nn.Module):
    """Judges patches of a face: (N, 3, H, W) in [0, 1] and the occlusion -> logits (N, 1, H/16, W/16)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        spectral = nn.utils.parametrizations.spectral_norm
        layers: list[nn.Module] = [spectral(nn.Conv2d(16, widths[0], 3, padding=1)), nn.LeakyReLU(0.2)]
        for a, b in itertools.pairwise(widths):
            layers += [spectral(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.2)]
        layers.append(spectral(nn.Conv2d(widths[-1], 1, 3, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor, occlusion: Tensor) -> Tensor:
        """(N, 3, H, W), (N, 1, H, W) -> (N, 1, H/16, W/16)."""
        return self.layers(F.pixel_unshuffle(torch.cat((image * 2 - 1, occlusion), 1), 2))
