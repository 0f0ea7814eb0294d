"""The networks: one finds the occlusion, one completes the face, one tells real faces from completed ones."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc_canet.config import Architecture


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
        return x + self.second(F.silu(self.first(F.silu(x))))


class SelfAttention(nn.Module):
    """x + multi-head attention over all positions of the coarsest map, so that one side of a face informs the other."""

    def __init__(self, width: int, heads: int = 4) -> None:
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


class EncoderDecoder(nn.Module):
    """A U-shaped encoder-decoder that works at half the resolution of its input and below.

    Args:
        inputs, outputs: channels at full resolution.
        widths: channels at 1/2, 1/4, 1/8 ... of the resolution.
        blocks: residual blocks at each scale of the decoder; the encoder has one fewer (at least one).
        attention: whether to attend over the coarsest map.

    Shapes: (N, inputs, H, W) -> (N, outputs, H, W); H and W divisible by ``2 ** len(widths)``.
    """

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...], blocks: int, attention: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * inputs, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(max(1, blocks - 1)))) for width in widths[:-1]
        )
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        middle: list[nn.Module] = [ResidualBlock(widths[-1]) for _ in range(blocks)]
        if attention:
            middle.insert(1, SelfAttention(widths[-1]))
        self.middle = nn.Sequential(*middle)
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths[:-1])
        self.decoder = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(blocks))) for width in widths[:-1]
        )
        self.head = nn.Conv2d(widths[0], 4 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        x = self.stem(F.pixel_unshuffle(x, 2))
        skips = []
        for encode, down in zip(self.encoder, self.down, strict=True):
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, merge, decode, skip in reversed(list(zip(self.up, self.merge, self.decoder, skips, strict=True))):
            x = decode(merge(torch.cat((F.pixel_shuffle(up(x), 2), skip), 1)))
        return F.pixel_shuffle(self.head(F.silu(x)), 2)


class Finder(nn.Module):
    """Finds what is occluded: (N, 3, H, W) in [0, 1] -> logits (N, 1, H, W) of being occluded."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.body = EncoderDecoder(3, 1, config.finder_widths, blocks=1, attention=False)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1, H, W)."""
        return self.body(image * 2 - 1)


class Completer(nn.Module):
    """Draws a whole face from what is visible of it: (N, 3, H, W), (N, 1, H, W) in [0, 1] -> (N, 3, H, W), not clamped.

    It never sees an occluded pixel: where the occlusion is 1 its input is grey.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.body = EncoderDecoder(4, 3, config.widths, config.blocks, attention=True)

    def forward(self, image: Tensor, occlusion: Tensor) -> Tensor:
        """(N, 3, H, W), (N, 1, H, W) -> (N, 3, H, W)."""
        return self.body(torch.cat(((image * 2 - 1) * (1 - occlusion), occlusion), 1)) * 0.5 + 0.5


class Network(nn.Module):
    """What the weights file holds: a finder and a completer."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.finder = Finder(config)
        self.completer = Completer(config)


def spread(occlusion: Tensor, radius: int) -> Tensor:
    """Grow what is occluded by ``radius`` pixels: (N, 1, H, W) -> (N, 1, H, W)."""
    return F.max_pool2d(occlusion, 2 * radius + 1, 1, radius) if radius else occlusion


def settle(logits: Tensor, closing: int, margin: int) -> Tensor:
    """What is restored of what the finder says: (N, 1, H, W) logits -> 0 or 1.

    Gaps of less than ``2 * closing`` pixels are closed (a logo printed on a mask looks like no mask), and the whole is
    grown by ``margin`` pixels (its edge is never found exactly).
    """
    return spread(-spread(-spread((logits > 0).float(), closing), closing), margin)


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
