"""Contextual attention inside an inpainting U-Net: ``python examples/inpainting_unet.py [--steps 200]``.

The network is a plain one, and the line that counts is the call of ``contextual_attention`` at its bottleneck: features
of the hole are rebuilt from patches of what is visible. It is trained twice on stripes with a hole, with that line and
without it; stripes go on behind a hole, so that copying pays.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.ops import composite, contextual_attention


class UNet(nn.Module):
    """(N, 3, H, W) image and (N, 1, H, W) occlusion, 1 = hole -> (N, 3, H, W); H and W divisible by 4."""

    def __init__(self, attention: bool, width: int = 32) -> None:
        super().__init__()
        self.attention = attention
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.mix = nn.Conv2d(4 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.leave = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, image: Tensor, occlusion: Tensor) -> Tensor:
        """Draw the whole image and keep what was visible."""
        fine = F.elu(self.enter(torch.cat((image * (1 - occlusion), occlusion), 1)))
        coarse = F.elu(self.middle(F.elu(self.down(fine))))
        hole = F.max_pool2d(occlusion, 2)
        found = contextual_attention(coarse, coarse, hole) if self.attention else coarse
        coarse = F.elu(self.mix(torch.cat((coarse, found), 1)))
        drawn = self.leave(torch.cat((F.elu(self.up(coarse)), fine), 1)).sigmoid()
        return composite(image, drawn, occlusion)


def stripes(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 3, size, size) of stripes, and occlusions with a square hole."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    angle, phase = torch.rand(2, count, 1, 1, generator=generator) * torch.pi
    period = 6 + 6 * torch.rand(count, 1, 1, generator=generator)
    wave = torch.sin((angle.cos() * x + angle.sin() * y) * 2 * torch.pi / period + phase)
    one, other = torch.rand(2, count, 3, 1, 1, generator=generator)
    image = torch.lerp(one, other, wave[:, None] * 0.5 + 0.5)
    occlusion = torch.zeros(count, 1, size, size)
    third = size // 3
    for sample, (top, left) in enumerate(torch.randint(third, (count, 2), generator=generator).tolist()):
        occlusion[sample, :, top + third // 2 : top + 3 * third // 2, left + third // 2 : left + 3 * third // 2] = 1
    return image, occlusion


def train(attention: bool, steps: int, size: int = 48, batch: int = 8) -> float:
    """Mean absolute difference inside the holes of images that training has not seen."""
    torch.manual_seed(0)
    network = UNet(attention)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        image, occlusion = stripes(batch, size, generator)
        loss = ((network(image, occlusion) - image).abs() * occlusion).sum() / (3 * occlusion.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, occlusion = stripes(64, size, torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float(((network(image, occlusion) - image).abs() * occlusion).sum() / (3 * occlusion.sum()))


def main() -> None:
    """Train both and print both errors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    for attention in (False, True):
        name = "with" if attention else "without"
        print(f"{name} contextual attention: error {train(attention, steps):.4f} after {steps} steps", flush=True)


if __name__ == "__main__":
    main()
