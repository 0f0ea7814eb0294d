"""A task small enough to train in a second, for the tests of the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deocc.method import Engine, Method, Task, Training


@dataclass(frozen=True)
class TinyConfig:
    width: int = 4
    rate: float = 0.01
    poison: int = -1
    plain: bool = False
    training: Training = field(
        default_factory=lambda: Training(
            steps=12, batch=4, log_every=2, evaluate_every=4, evaluate_images=6, checkpoint_every=3
        )
    )


class Pixels(Dataset[Any]):
    """Noise that depends on the index alone; of the faces only the number counts."""

    def __init__(self, faces: Sized, seed: int) -> None:
        self.length, self.seed = len(faces), seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        return {"image": torch.rand(3, 8, 8, generator=generator), "index": index}


class TinyTask(Task):
    """Learns to darken an image; draws noise from the global generator, as tasks do."""

    best: ClassVar[str] = "-error"

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.network = nn.Sequential(
            nn.Conv2d(3, config.width, 3, padding=1),
            nn.Identity() if config.plain else nn.BatchNorm2d(config.width),
            nn.Dropout(0.0 if config.plain else 0.2),
            nn.Conv2d(config.width, 3, 1),
        ).to(memory_format=torch.channels_last)
        self.average = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.rate)
        self.seen: list[int] = []

    @property
    def training(self) -> Training:
        return self.config.training

    def networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network, "average": self.average}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer}

    def dataset(self, faces: Any, *, train: bool) -> Dataset[Any]:
        return Pixels(faces, self.training.seed if train else 999)

    def step(self, batch: Any, engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        image = batch["image"]
        self.seen += batch["index"].tolist()
        with engine.autocast():
            made = self.network(image + (0 if self.config.plain else 0.1) * torch.randn_like(image))
            loss = (made.float() - 0.5 * image).square().mean()
        if index == self.config.poison:
            loss = loss * float("nan")
        self.optimizer.zero_grad()
        engine.backward(loss)
        self.optimizer.step()
        with torch.no_grad():
            self.average.weight.lerp_(made.float().mean().expand_as(self.average.weight), 0.1)
        return {"loss": loss.detach()}

    def evaluate(self, batch: Any) -> Mapping[str, float]:
        made = self.network(batch["image"])
        return {"error": float((made - 0.5 * batch["image"]).abs().mean())}

    def preview(self, batch: Any) -> Mapping[str, Tensor]:
        return {"given": batch["image"], "made": self.network(batch["image"]).clamp(0, 1)}

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {"restorer": self.network.state_dict()}


class SecondTask(TinyTask):
    """A second stage: starts from the first one's network."""

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.network.load_state_dict(dict(exports["restorer"]))


def settings(**training: Any) -> TinyConfig:
    """The configuration with fields of its Training changed."""
    return TinyConfig(training=replace(TinyConfig().training, **training))


def build(config: TinyConfig | None = None) -> TinyTask:
    """A task whose weights follow from a fixed seed."""
    torch.manual_seed(1)
    return TinyTask(config or TinyConfig())


METHOD = Method(
    api=1,
    name="tiny",
    config=f"{__name__}:TinyConfig",
    tasks={"first": f"{__name__}:TinyTask", "second": f"{__name__}:SecondTask"},
)
