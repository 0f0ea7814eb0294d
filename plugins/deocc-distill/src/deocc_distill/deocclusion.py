"""Training of the de-occlusion module (section 3.2), and of the segmentation head beside it, which the paper lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deocc import metrics
from deocc.errors import UsageError
from deocc.method import Engine, Task, Training
from deocc_distill import losses
from deocc_distill.config import Config
from deocc_distill.faces import OccludedFaces, check_crop, to_float, warp
from deocc_distill.network import Deocclusion, critics, settle


class DeocclusionTraining(Task):
    """Generator against a global and a local discriminator; the segmentation head learns from the true occlusions."""

    best: ClassVar[str] = ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        step = 16 if config.deocclusion.adversarial == "none" else 32
        if config.size % step:
            raise UsageError(f"size must be a multiple of {step} for the networks that are trained, got {config.size}")
        network = Deocclusion(config.generator).to(memory_format=torch.channels_last)
        self.generator: nn.Module = network.generator
        self.finder: nn.Module = network.finder
        self.global_critic, self.local_critic = (
            critic.to(memory_format=torch.channels_last) for critic in critics(config)
        )
        rate = config.deocclusion.learning_rate
        self.generator_optimizer = torch.optim.Adam(
            [*self.generator.parameters(), *self.finder.parameters()], lr=rate, betas=(0.5, 0.9)
        )
        self.critic_optimizer = torch.optim.Adam(
            [*self.global_critic.parameters(), *self.local_critic.parameters()], lr=rate, betas=(0.5, 0.9)
        )

    @property
    def training(self) -> Training:
        """As configured."""
        return self.config.deocclusion.training

    def networks(self) -> Mapping[str, nn.Module]:
        """Generator, segmentation head and both discriminators."""
        names = ("generator", "finder", "global_critic", "local_critic")
        return {name: getattr(self, name) for name in names}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One for generator and segmentation head, one for the discriminators."""
        return {"generator_optimizer": self.generator_optimizer, "critic_optimizer": self.critic_optimizer}

    def dataset(self, faces: Any, *, train: bool) -> Dataset[Any]:
        """See :class:`OccludedFaces`; held-out faces are not augmented and all are occluded.

        Raises:
            UsageError: the faces are not of the configured crop.
        """
        check_crop(faces, self.config)
        return OccludedFaces(faces, self.config.augmentation if train else None, self.training.seed)

    def step(self, batch: Mapping[str, Tensor], engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        """See :meth:`deocc.method.Task.step`."""
        settings = self.config.deocclusion
        image, occluded, occlusion = (to_float(batch, name, engine.device) for name in _NAMES)
        distance = batch["distance"].to(engine.device, torch.float32)
        hole = (distance > 0).float()
        logs: dict[str, Tensor | float] = {"learning_rate": self._set_learning_rate(index)}

        with engine.autocast():
            logits = self.finder(occluded)
            drawn = self.generator(occluded, hole)
        terms = {"find": losses.finder_loss(logits.float(), occlusion)}
        for name, one in drawn._asdict().items():
            terms[name] = settings.reconstruction * losses.discounted_l1(
                one.float(), image, distance, settings.discount
            ) + settings.visible * losses.visible_l1(one.float(), image, distance)
        # What a user sees: visible pixels as they are.
        composed = image + hole * (drawn.refined.float() - image)

        if settings.adversarial != "none":
            logs |= self._train_critics(image, composed.detach(), hole, engine)
            for critic in (self.global_critic, self.local_critic):
                critic.requires_grad_(False)
            with engine.autocast():
                verdicts = self.global_critic(composed), self.local_critic(around(composed, hole))
            for critic in (self.global_critic, self.local_critic):
                critic.requires_grad_(True)
            lose = losses.generator_wgan if settings.adversarial == "wgan-gp" else losses.generator_log
            terms["adversarial"] = settings.adversarial_weight * sum(lose(verdict.float()) for verdict in verdicts)
        self.generator_optimizer.zero_grad(set_to_none=True)
        engine.backward(torch.stack(list(terms.values())).sum())
        self.generator_optimizer.step()
        return logs | {name: term.detach() for name, term in terms.items()}

    def evaluate(self, batch: Mapping[str, Tensor]) -> Mapping[str, float]:
        """PSNR inside the true occlusion, given and found, and how well it is found (IoU)."""
        image, occluded, occlusion = (to_float(batch, name, self._device) for name in _NAMES)
        hole = (occlusion > 0).float()
        logits = self.finder(occluded)
        found = settle(logits, self.config.margin)
        blind = occluded + found * (self.generator(occluded, found).refined - occluded)
        return {
            "hole_psnr": float(metrics.psnr(self.generator(occluded, hole).refined, image, where=hole).mean()),
            "hole_psnr_found": float(metrics.psnr(blind, image, where=hole).mean()),
            "occlusion_iou": float(metrics.occlusion_iou(torch.sigmoid(logits), occlusion).mean()),
        }

    def preview(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The faces, occluded, what is found, and what both networks draw there without being told."""
        image, occluded, _ = (to_float(batch, name, self._device) for name in _NAMES)
        found = settle(self.finder(occluded), self.config.margin)
        drawn = self.generator(occluded, found)
        return {
            "original": image,
            "occluded": occluded,
            "found": found.expand(-1, 3, -1, -1),
            "coarse": occluded + found * (drawn.coarse - occluded),
            "restored": occluded + found * (drawn.refined - occluded),
        }

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Generator and segmentation head."""
        return {"restorer": joined(self.generator, self.finder)}

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on with a generator and a segmentation head of an earlier run."""
        if "restorer" in exports:
            load(self.generator, self.finder, exports["restorer"])

    @property
    def _device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def _set_learning_rate(self, index: int) -> float:
        settings = self.config.deocclusion
        share = 0.5 * (1 + math.cos(math.pi * index / settings.training.steps)) if settings.decay else 1.0
        for optimizer in (self.generator_optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * share
        return settings.learning_rate * share

    def _train_critics(self, real: Tensor, fake: Tensor, hole: Tensor, engine: Engine) -> dict[str, Tensor]:
        """``critic_steps`` steps of both discriminators on one batch; what is logged is of the last one."""
        settings = self.config.deocclusion
        views = (
            (self.global_critic, real, fake, hole),
            (self.local_critic, around(real, hole), around(fake, hole), around(hole, hole)),
        )
        logs: dict[str, Tensor] = {}
        for _ in range(settings.critic_steps):
            total, penalty = real.new_zeros(()), real.new_zeros(())
            for critic, true, false, where in views:
                with engine.autocast():
                    verdict = critic(torch.cat((true, false))).float()
                pair = verdict[: len(true)], verdict[len(true) :]
                if settings.adversarial == "wgan-gp":
                    total = total + losses.critic_wgan(*pair)
                    # In float32: what half precision leaves of a derivative of a derivative is little.
                    # So not through an engine's wrapper, which has its own precision, and its own backward.
                    penalty = penalty + losses.gradient_penalty(getattr(critic, "module", critic), true, false, where)
                else:
                    total = total + losses.critic_log(*pair)
            self.critic_optimizer.zero_grad(set_to_none=True)
            engine.backward(total + settings.penalty * penalty)
            self.critic_optimizer.step()
            logs = {"critic": total.detach()}
            if settings.adversarial == "wgan-gp":
                logs["penalty"] = penalty.detach()
        return logs


_NAMES = ("image", "occluded", "occlusion")


def around(faces: Tensor, hole: Tensor) -> Tensor:
    """What the local discriminator sees: the smallest square about the hole, at half the side of the image.

    The square is at least half as wide as the image, and lies inside it; without a hole it is in the middle.

    Args:
        faces: (N, C, S, S).
        hole: (N, 1, S, S) of 0 and 1.

    Returns:
        (N, C, S / 2, S / 2).
    """
    count, _, size, _ = hole.shape
    bounds = []
    for axis in (2, 3):  # across, then down
        inside = hole.amax(axis)[:, 0] > 0
        place = torch.arange(size, device=hole.device).expand(count, size)
        first = torch.where(inside, place, size).amin(1)
        last = torch.where(inside, place, -1).amax(1)
        some = inside.any(1)
        bounds.append((torch.where(some, first, 0).float(), torch.where(some, last + 1, size).float(), some))
    (left, right, some), (top, bottom, _) = bounds
    side = torch.maximum(right - left, bottom - top).clamp(min=size / 2)
    side = torch.where(some, side, size / 2)
    centres = [((low + high) / 2).clamp(side / 2, size - side / 2) for low, high in ((left, right), (top, bottom))]
    scale, zero = side / size, torch.zeros_like(side)
    across, down = (2 * centre / size - 1 for centre in centres)
    theta = torch.stack((scale, zero, across, zero, scale, down), 1).view(count, 2, 3)
    return warp(faces, theta, size // 2)


def joined(generator: nn.Module, finder: nn.Module) -> dict[str, Tensor]:
    """The state dict of the restorer's network, in float16: half the file."""
    parts = {"generator": generator, "finder": finder}
    return {f"{name}.{key}": value.half() for name, part in parts.items() for key, value in part.state_dict().items()}


def load(generator: nn.Module, finder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill both from the state dict of the restorer's network."""
    for name, part in (("generator", generator), ("finder", finder)):
        prefix = f"{name}."
        part.load_state_dict(
            {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        )
