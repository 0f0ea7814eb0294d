"""The MobileFaceNet network (Chen et al., CCBR 2018, table 1).

Module names are those of the packaged state dict. Where the paper and those weights differ, the weights rule: the
activations are ReLU6 and ReLU instead of PReLU, and the global depthwise convolution has a batch norm of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Rows of the paper's table: expansion, output channels, repetitions, stride of the first repetition."""


class Network(nn.Module):
    """(N, 3, 112, 112) images in [0, 1] -> (N, 128) embeddings of any length.

    The ImageNet mean and standard deviation with which the weights were trained are applied inside.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Constants, not weights: they are not in the state dict.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.conv1 = _conv(3, 64, kernel=3, stride=2)
        self.dw_conv = DepthwiseSeparable(64, 64)
        blocks, channels = [], 64
        for expansion, out, repetitions, stride in BLOCKS:
            for repetition in range(repetitions):
                blocks.append(Bottleneck(channels, out, expansion, stride if repetition == 0 else 1))
                channels = out
        self.features = nn.Sequential(*blocks)
        self.conv2 = _conv(channels, 512, kernel=1)
        self.gdconv = GlobalDepthwise(512, 7)
        self.conv3 = nn.Conv2d(512, 128, 1)
        self.bn = nn.BatchNorm2d(128)

    def forward(self, image: Tensor) -> Tensor:
        """Embed images; see the class for shapes."""
        x = (image - self.mean) / self.std
        x = self.features(self.dw_conv(self.conv1(x)))
        x = self.bn(self.conv3(self.gdconv(self.conv2(x))))
        return x.flatten(1)


class DepthwiseSeparable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, each with batch norm and ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H, W)."""
        x = torch.relu(self.bn1(self.depthwise(x)))
        return torch.relu(self.bn2(self.pointwise(x)))


class Bottleneck(nn.Module):
    """An inverted residual (MobileNetV2): expand, depthwise 3x3, project; added to its input where the shapes agree."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.residual = stride == 1 and channels == out
        self.conv = nn.Sequential(
            _conv(channels, hidden, kernel=1),
            _conv(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H / stride, W / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class GlobalDepthwise(nn.Module):
    """The global depthwise convolution: one kernel a channel, as large as the map; its output is 1x1."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, size, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) -> (N, C, 1, 1)."""
        y: Tensor = self.bn(self.depthwise(x))
        return y


def _conv(channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )
