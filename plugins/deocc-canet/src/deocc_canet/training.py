"""The training stages: a finder, a completer and, when asked for, a discriminator, trained side by side."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from deocc import metrics, plugins
from deocc.data import PackedFaces
from deocc.losses import LPIPS
from deocc.method import Engine, Task, Training
from deocc.occlude import occlude
from deocc_canet.config import Augmentation, Config, Stage
from deocc_canet.network import Discriminator, Network, settle, spread


class OccludedFaces(Dataset[dict[str, Tensor]]):
    """Packed faces, occluded on the fly.

    Items: ``image`` and ``occluded`` (3, S, S), ``occlusion`` (1, S, S), all uint8. Item ``index`` depends on ``index``
    and ``seed`` alone; face ``index % len`` is used, occluded anew for every index.
    """

    def __init__(self, faces: PackedFaces, augmentation: Augmentation | None, seed: int) -> None:
        self.faces = faces
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        position = index % len(self.faces)
        image = np.array(self.faces.images[position])
        landmarks = self.faces.landmarks[position]
        generator = np.random.default_rng([self.seed, index])
        occluded_share = 1.0
        if self.augmentation is not None:
            image, landmarks = _augment(image, landmarks, self.augmentation, generator)
            occluded_share -= self.augmentation.unoccluded
        if generator.random() < occluded_share:
            made = occlude(image, landmarks, seed=int(generator.integers(2**62)))
            occluded, occlusion = made.image, made.occlusion
        else:
            occluded, occlusion = image, np.zeros(image.shape[:2], np.uint8)
        return {
            "image": torch.from_numpy(image).permute(2, 0, 1),
            "occluded": torch.from_numpy(occluded).permute(2, 0, 1),
            "occlusion": torch.from_numpy(occlusion)[None],
        }


class Completion(Task):
    """Train the finder with the true occlusions, and the completer with true and found ones in turn.

    The found occlusions teach the completer to live with what the finder misses; the true ones keep it honest.
    """

    name = "complete"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        network = Network(config.architecture).to(memory_format=torch.channels_last)
        self.finder: nn.Module = network.finder
        self.completer: nn.Module = network.completer
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.discriminator: nn.Module = Discriminator().to(memory_format=torch.channels_last)
        losses = self.stage.losses
        self.perceptual = LPIPS(losses.perceptual_weights) if losses.perceptual else None
        self.recognizer = plugins.load(losses.identity_method, "recognizer") if losses.identity else None
        self.generator_optimizer = torch.optim.AdamW(
            [*self.finder.parameters(), *self.completer.parameters()],
            lr=self.stage.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
        )
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=self.stage.learning_rate, betas=(0.0, 0.99), weight_decay=0.0
        )

    @property
    def stage(self) -> Stage:
        """The part of the configuration that is this stage's."""
        return getattr(self.config, self.name)

    @property
    def training(self) -> Training:
        """As configured."""
        return self.stage.training

    def networks(self) -> Mapping[str, nn.Module]:
        """The finder, the completer, their running average and the discriminator."""
        return {
            "finder": self.finder,
            "completer": self.completer,
            "average": self.average,
            "discriminator": self.discriminator,
        }

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One for finder and completer, one for the discriminator."""
        return {
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def dataset(self, faces: Any, *, train: bool) -> Dataset[Any]:
        """See :class:`OccludedFaces`; held-out faces are not augmented and all are occluded."""
        return OccludedFaces(faces, self.config.augmentation if train else None, self.training.seed)

    def step(self, batch: Mapping[str, Tensor], engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        """See :meth:`deocc.method.Task.step`."""
        losses = self.stage.losses
        image, occluded, occlusion = _to_float(batch, engine.device)
        rate = self._set_learning_rate(index)
        logs: dict[str, Tensor | float] = {"learning_rate": rate}

        with engine.autocast():
            logits = self.finder(occluded).float()
        terms = {"find": _finder_loss(logits, occlusion)}

        hole = self._hole(occlusion, logits.detach(), index)
        with engine.autocast():
            drawn = self.completer(occluded, hole).float()
        composed = image + hole * (drawn - image)
        difference = (drawn - image).abs()
        terms["hole"] = losses.hole * (difference * hole).sum() / (3 * hole.sum()).clamp(min=1)
        terms["whole"] = losses.whole * difference.mean()
        if losses.edges:
            terms["edges"] = losses.edges * _edges_loss(composed - image, hole)
        with engine.autocast():
            if self.perceptual is not None:
                terms["perceptual"] = losses.perceptual * self.perceptual.to(engine.device)(composed, image).mean()
        if self.recognizer is not None:
            terms["identity"] = losses.identity * self._identity_loss(composed, image, engine)
        adversarial = losses.adversarial > 0 and index >= losses.adversarial_from
        if adversarial:
            self.discriminator.requires_grad_(False)
            with engine.autocast():
                verdict = self.discriminator(composed, hole).float()
            self.discriminator.requires_grad_(True)
            terms["adversarial"] = -losses.adversarial * verdict.mean()
        self.generator_optimizer.zero_grad(set_to_none=True)
        engine.backward(torch.stack(list(terms.values())).sum())
        parameters = self.generator_optimizer.param_groups[0]["params"]
        logs["gradient"] = nn.utils.clip_grad_norm_(parameters, 1.0)
        self.generator_optimizer.step()
        self._update_average(index)
        logs |= {name: term.detach() for name, term in terms.items()}

        if adversarial:
            with engine.autocast():
                real = self.discriminator(image, hole).float()
                fake = self.discriminator(composed.detach(), hole).float()
            loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            engine.backward(loss)
            self.discriminator_optimizer.step()
            logs["discriminator"] = loss.detach()
        return logs

    @torch.no_grad()
    def evaluate(self, batch: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Of the averaged network: PSNR inside the true occlusion, given and found, and how well it is found (IoU)."""
        image, occluded, occlusion = _to_float(batch, self._average_device)
        hole = (occlusion > 0).float()
        logits = self.average.finder(occluded)
        found = settle(logits, self.config.closing, self.config.margin)
        given = self.average.completer(occluded, hole).clamp(0, 1)
        blind = occluded + found * (self.average.completer(occluded, found).clamp(0, 1) - occluded)
        return {
            "hole_psnr": float(metrics.psnr(given, image, where=hole).mean()),
            "hole_psnr_found": float(metrics.psnr(blind, image, where=hole).mean()),
            "occlusion_iou": float(metrics.occlusion_iou(torch.sigmoid(logits), occlusion).mean()),
        }

    @torch.no_grad()
    def preview(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The faces, occluded, what is found and what is restored by the averaged network, without being told."""
        image, occluded, _ = _to_float(batch, self._average_device)
        found = settle(self.average.finder(occluded), self.config.closing, self.config.margin)
        drawn = self.average.completer(occluded, found).clamp(0, 1)
        return {
            "original": image,
            "occluded": occluded,
            "found": found.expand(-1, 3, -1, -1),
            "restored": occluded + found * (drawn - occluded),
        }

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The averaged network, in float16: half the file, and no restored byte differs by more than one."""
        return {"restorer": {name: value.half() for name, value in self.average.state_dict().items()}}

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over the averaged network of the stage before."""
        weights = exports["restorer"]
        self.average.load_state_dict(weights)
        for name in ("finder", "completer"):
            prefix = f"{name}."
            part = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            getattr(self, name).load_state_dict(part)

    @property
    def _average_device(self) -> torch.device:
        return next(self.average.parameters()).device

    def _set_learning_rate(self, index: int) -> float:
        stage = self.stage
        progress = index / max(1, stage.training.steps)
        share = min(1.0, (index + 1) / max(1, stage.warmup)) * 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * share
        return stage.learning_rate * share

    def _hole(self, occlusion: Tensor, logits: Tensor, index: int) -> Tensor:
        """True occlusions, grown by 0 to 3 pixels, for one half of the batch; found ones for the other."""
        true = spread((occlusion > 0).float(), index % 4)
        found = settle(logits, self.config.closing, self.config.margin)
        odd = (torch.arange(len(true), device=true.device) % 2).view(-1, 1, 1, 1)
        return torch.where(odd == 1, found, true)

    def _identity_loss(self, composed: Tensor, image: Tensor, engine: Engine) -> Tensor:
        """1 - cosine, looked at through a slight blur and from another place, angle and side for every face.

        Seen sharp and always from the same place, the recognizer teaches the completer a pattern that pleases it and
        nobody else.
        """
        recognizer = self.recognizer.to(engine.device)
        count, device = len(image), image.device

        def spread_evenly(most: float, *shape: int) -> Tensor:
            return most * (2 * torch.rand(count, *shape, device=device) - 1)

        scale, angle = 0.75 / recognizer.crop_zoom * (1 + spread_evenly(0.09)), spread_evenly(0.15)
        side = torch.randint(2, (count,), device=device) * 2.0 - 1
        cosine, sine = scale * angle.cos(), scale * angle.sin()
        turn = torch.stack((side * cosine, -sine, side * sine, cosine), 1).view(count, 2, 2)
        theta = torch.cat((turn, spread_evenly(0.075, 2, 1)), 2)
        grid = F.affine_grid(theta, [count, 3, recognizer.crop_size, recognizer.crop_size], align_corners=False)

        def embed(faces: Tensor) -> Tensor:
            faces = F.avg_pool2d(faces, 3, 1, 1, count_include_pad=False)
            crops = F.grid_sample(faces, grid, mode="bilinear", padding_mode="border", align_corners=False)
            crops = crops.contiguous(memory_format=torch.channels_last)
            with engine.autocast():
                return F.normalize(recognizer(crops.clamp(0, 1)).float(), dim=1)

        with torch.no_grad():
            wanted = embed(image)
        return 1 - (embed(composed) * wanted).sum(1).mean()

    @torch.no_grad()
    def _update_average(self, index: int) -> None:
        # A fixed decay would keep the random start for thousands of steps.
        decay = min(self.config.average, (1 + index) / (10 + index))
        for name in ("finder", "completer"):
            current = getattr(self, name)
            current = getattr(current, "module", current)
            for mean, value in zip(getattr(self.average, name).parameters(), current.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)


class Beginning(Completion):
    """The first stage: the same step, with losses and a schedule of its own."""

    name = "begin"


class Refinement(Completion):
    """The third stage, likewise: where the identity term comes in."""

    name = "refine"


class Polishing(Completion):
    """The last stage, likewise: where patterns that the identity term has drawn go."""

    name = "polish"


def _to_float(batch: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    image, occluded, occlusion = (
        batch[name].to(device, torch.float32, memory_format=torch.channels_last) / 255
        for name in ("image", "occluded", "occlusion")
    )
    return image, occluded, occlusion


def _edges_loss(error: Tensor, hole: Tensor) -> Tensor:
    """Mean absolute difference between neighbours' errors: (N, 3, H, W) and (N, 1, H, W) -> scalar."""
    across, down = error.diff(dim=3).abs() * hole[..., 1:], error.diff(dim=2).abs() * hole[..., 1:, :]
    return (across.sum() + down.sum()) / (3 * hole.sum()).clamp(min=1)


def _finder_loss(logits: Tensor, occlusion: Tensor) -> Tensor:
    """Cross-entropy and soft Dice: the one calibrates, the other keeps small occlusions from being ignored."""
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * occlusion).sum((1, 2, 3)) + 1
    dice = overlap / (probability.sum((1, 2, 3)) + occlusion.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, occlusion) + 0.2 * (1 - dice).mean()


def _augment(
    image: np.ndarray, landmarks: np.ndarray, augmentation: Augmentation, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    size = image.shape[0]
    angle = math.radians(augmentation.rotate * generator.uniform(-1, 1))
    scale = 1 + augmentation.scale * generator.uniform(-1, 1)
    shift = augmentation.shift * size * generator.uniform(-1, 1, 2)
    flip = -1.0 if generator.random() < 0.5 else 1.0
    centre = np.array([(size - 1) / 2] * 2)
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear[:, 0] *= flip
    offset = centre + shift - linear @ centre
    image = cv2.warpAffine(image, np.c_[linear, offset], (size, size), borderMode=cv2.BORDER_REFLECT_101)
    landmarks = (landmarks @ linear.T + offset).astype(np.float32)
    if flip < 0:
        landmarks = landmarks[[1, 0, 2, 4, 3]]
    brightness, contrast, saturation = 1 + augmentation.light * generator.uniform(-1, 1, 3)
    light = image.astype(np.float32)
    grey = light @ np.array([0.299, 0.587, 0.114], np.float32)
    light = grey[..., None] + saturation * (light - grey[..., None])
    light = brightness * (contrast * (light - 128) + 128)
    return np.clip(light + 0.5, 0, 255).astype(np.uint8), landmarks
