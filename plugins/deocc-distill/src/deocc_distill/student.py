"""The student: what it is, what it looks at, and its weights file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deocc import plugins
from deocc.errors import UsageError
from deocc.faces import Crop
from deocc_distill.config import Config
from deocc_distill.network import ResNet18


class Student(nn.Module):
    """(N, 3, S, S) in [0, 1] -> (N, dim) of any length; S is the side of :attr:`crop`.

    Args:
        config: whose ``student`` says what it is. One that is a copy of the teacher begins with its weights.

    Raises:
        UsageError: the student is to be a copy of a teacher that gradients do not go through.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.crop = Crop(112, 1.0)
        self._embed = None
        if config.student.network == "resnet18":
            self.network: nn.Module = ResNet18(config.student.widths, config.student.dim)
        else:
            name = config.distillation.teacher
            copied = plugins.load(name, "recognizer")
            if copied.network is None or not copied.differentiable:
                raise UsageError(
                    f"a student that is a copy of its teacher needs one that gradients go through, got {name!r}"
                )
            self.network, self._embed = copied.network.requires_grad_(True), copied.embed
            self.crop = Crop(copied.crop_size, copied.crop_zoom)
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Student:
        """Batch statistics of a copy stay those that the teacher was trained with."""
        super().train(mode)
        if self._embed is not None:
            self.network.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Embed; see the class."""
        return self.network(image) if self._embed is None else self._embed(image)


def weights_of(student: nn.Module) -> dict[str, Tensor]:
    """The student's state dict, its numbers in float16: half the file."""
    return {name: value.half() if value.is_floating_point() else value for name, value in student.state_dict().items()}
