"""MoCo pre-training of a small encoder: ``python examples/moco.py [--steps 200]``.

Two views of an image are a pair; all other keys are in a queue, made by an encoder that follows slowly (He et al.
2020). ``KeyQueue`` holds the keys, ``info_nce`` compares with all of them without ever writing the scores down. No
direction is told in training; printed is how far an image's is from its nearest neighbour's, before and after.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.ops import KeyQueue, info_nce


def encoder(dim: int = 64) -> nn.Module:
    """(N, 1, 32, 32) -> (N, dim)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, dim), nn.BatchNorm1d(dim, affine=False)
    )


def stripes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Grey images (count, 1, 40, 40) of stripes, and their directions (count) in degrees."""
    angle, period, phase = torch.rand(3, count, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    across = (angle * torch.pi).cos() * x + (angle * torch.pi).sin() * y
    return torch.sin((across / (5 + 3 * period) + phase) * 2 * torch.pi)[:, None], angle.flatten() * 180


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop in random light, with noise: (N, 1, 40, 40) -> (N, 1, 32, 32)."""
    top, left = torch.randint(9, (2,), generator=generator).tolist()
    gain, shift = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    crops = images[:, :, top : top + 32, left : left + 32] * (0.5 + gain) + (shift - 0.5)
    return crops + 0.3 * torch.randn(crops.shape, generator=generator)


@torch.no_grad()
def error(network: nn.Module) -> float:
    """Median difference in direction, in degrees, of 512 new images from their nearest neighbours among 512 others."""
    generator = torch.Generator().manual_seed(2)
    known, known_angle = stripes(512, generator)
    asked, asked_angle = stripes(512, generator)
    known, asked = (F.normalize(network(view(images, generator)), dim=1) for images in (known, asked))
    difference = (known_angle[(asked @ known.T).argmax(1)] - asked_angle).abs()
    return float(torch.minimum(difference, 180 - difference).median())


def main() -> None:
    """Train, and print the loss and both errors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    query_encoder = encoder()
    key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
    keys = KeyQueue(4096, 64)
    optimizer = torch.optim.AdamW(query_encoder.parameters(), 3e-3)
    print(f"before: {error(query_encoder):.1f} degrees")
    for step in range(steps):
        images, _ = stripes(64, generator)
        query = F.normalize(query_encoder(view(images, generator)), dim=1)
        with torch.no_grad():
            for slow, fast in zip(key_encoder.parameters(), query_encoder.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
            key = F.normalize(key_encoder(view(images, generator)), dim=1)
        loss = info_nce(query, key, keys.queue, temperature=0.1)
        keys.enqueue(key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(loss.detach()):.3f}", flush=True)
    print(f"after: {error(query_encoder):.1f} degrees")


if __name__ == "__main__":
    main()
