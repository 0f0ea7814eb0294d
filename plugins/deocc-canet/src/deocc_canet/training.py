"""The training stages: the encoder alone by contrast, then encoder and decoder together (canet section 4.2).

The occlusion finder, which the paper does not have, is trained beside the second stage, and alone in a third.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from deocc import metrics, plugins
from deocc.errors import UsageError
from deocc.losses import LPIPS, StyleLoss
from deocc.method import Engine, Task, Training
from deocc.ops import KeyQueue, area_downsample, composite, info_nce
from deocc_canet.config import Config, Finder, Joint
from deocc_canet.faces import OccludedFaces, check_crop
from deocc_canet.losses import edges_loss, field_loss, finder_loss, gate_loss, identity_losses, patch_mean
from deocc_canet.network import Discriminator, Network, Output, Representation, encoder_of, settle, soften, spread
from deocc_canet.photographs import Photographs


class SiameseInference(Task):
    """Contrastive training of the encoder E_q, with E_k following it and a queue of keys (section 3.1, eq. 1 and 2)."""

    best: ClassVar[str] = ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.network = Network(config.architecture).requires_grad_(False)
        encoder = copy.deepcopy(self.network.completer.encoder).requires_grad_(True)
        representation = Representation(encoder, config.siamese.dim).to(memory_format=torch.channels_last)
        self.query: nn.Module = representation
        self.key: nn.Module = copy.deepcopy(representation).requires_grad_(False)
        self.keys = KeyQueue(config.siamese.queue, config.siamese.dim, seed=config.siamese.training.seed)
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), lr=config.siamese.learning_rate, momentum=0.9, weight_decay=1e-4
        )

    @property
    def training(self) -> Training:
        """As configured."""
        return self.config.siamese.training

    def networks(self) -> Mapping[str, nn.Module]:
        """E_q, E_k, the queue, and the whole network that the encoder is exported in."""
        return {"query": self.query, "key": self.key, "keys": self.keys, "network": self.network}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """That of E_q."""
        return {"optimizer": self.optimizer}

    def dataset(self, faces: Any, *, train: bool) -> Dataset[Any]:
        """Every image with two occlusions; see :class:`OccludedFaces`.

        Raises:
            UsageError: the faces are of another crop than is configured.
        """
        check_crop(faces, self.config)
        return OccludedFaces(faces, self.config.augmentation if train else None, self.training.seed, views=2)

    def step(self, batch: Mapping[str, Tensor], engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        """See :meth:`deocc.method.Task.step`."""
        settings = self.config.siamese
        first, second = _views(batch, engine.device)
        with torch.no_grad():
            current = getattr(self.query, "module", self.query)
            for slow, fast in zip(self.key.parameters(), current.parameters(), strict=True):
                slow.lerp_(fast, 1 - settings.momentum)
            with engine.autocast():
                key = self.key(*second)
        with engine.autocast():
            query = self.query(*first)
        loss = info_nce(query, key, self.keys.queue, temperature=settings.temperature)
        self.optimizer.zero_grad(set_to_none=True)
        engine.backward(loss)
        gradient = nn.utils.clip_grad_norm_(self.query.parameters(), settings.clip)
        self.optimizer.step()
        self.keys.enqueue(key, gather=engine.world_size > 1)
        return {"contrast": loss.detach(), "gradient": gradient}

    def evaluate(self, batch: Mapping[str, Tensor]) -> Mapping[str, float]:
        """How often a face's nearest among the batch's other occlusions is itself; chance is 1 / batch."""
        first, second = _views(batch, next(self.query.parameters()).device)
        nearest = (self.query(*first) @ self.query(*second).T).argmax(1)
        right = nearest == torch.arange(len(nearest), device=nearest.device)
        return {"found_again": float(right.float().mean())}

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The whole network, with the encoder E_q in it."""
        weights = dict(self.network.state_dict())
        for name, value in self.query.encoder.state_dict().items():
            weights[f"completer.encoder.{name}"] = value
        return {"restorer": _halved(weights)}

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over a network, and let both encoders start from its encoder."""
        self.network.load_state_dict(exports["restorer"])
        for representation in (self.query, self.key):
            representation.encoder.load_state_dict(encoder_of(exports["restorer"]))


class JointTraining(Task):
    """Joint training of encoder and decoder with the losses of eq. 15, and of the finder beside them.

    The finder learns from the true occlusions, the completer from true and found ones in turn: the found ones teach it
    to live with what the finder misses, the true ones keep it honest.
    """

    best: ClassVar[str] = ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        network = Network(config.architecture).to(memory_format=torch.channels_last)
        self.finder: nn.Module = network.finder
        self.completer: nn.Module = network.completer
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        if network.completer.fields is not None and not self._learns_field:
            network.completer.fields.requires_grad_(False)  # several processes wait for the gradients of all others
        self.discriminator: nn.Module = Discriminator().to(memory_format=torch.channels_last)
        losses, layers = config.joint.losses, config.architecture.layers
        if not set(losses.texture_layers) <= set(layers):
            raise UsageError(
                f"joint.losses.texture_layers must be among architecture.layers {layers}, got {losses.texture_layers}"
            )
        for term, network_of in (("style", "VGG-16"), ("perceptual", "AlexNet or VGG-16, with the heads of LPIPS")):
            if getattr(losses, term) and not getattr(losses, f"{term}_weights"):
                raise UsageError(
                    f"joint.losses.{term} needs joint.losses.{term}_weights, a safetensors file of {network_of} as "
                    "deocc.losses.LPIPS describes it, and there is none; or set it to 0"
                )
        self.style = StyleLoss(losses.style_weights, maps=losses.style_maps) if losses.style else None
        self.perceptual = LPIPS(losses.perceptual_weights) if losses.perceptual else None
        identity = losses.identity or losses.identity_maps
        self.recognizer = plugins.load(losses.identity_method, "recognizer") if identity else None
        if self.recognizer is not None and not self.recognizer.differentiable:
            raise UsageError(
                "joint.losses.identity_method must be a recognizer that gradients go through, got "
                f"{losses.identity_method!r}, which teaches nothing"
            )
        self.identity_layers = losses.identity_layers if losses.identity_maps else ()
        if losses.identity_maps:
            network = self.recognizer.network
            known = set() if network is None else {name for name, _ in network.named_modules()}
            unknown = sorted(set(self.identity_layers) - known)
            if unknown or not self.identity_layers:
                raise UsageError(
                    f"joint.losses.identity_layers must be submodules of the network of {losses.identity_method}'s "
                    f"recognizer, one at least, got {', '.join(unknown) or 'none'}"
                )
        rate = config.joint.learning_rate
        self.generator_optimizer = torch.optim.Adam(
            [*self.finder.parameters(), *self.completer.parameters()], lr=rate, betas=(0.9, 0.99)
        )
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=rate, betas=(0.0, 0.99))

    @property
    def training(self) -> Training:
        """As configured."""
        return self.config.joint.training

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
        """See :class:`OccludedFaces`; held-out faces are not augmented and all are occluded.

        Raises:
            UsageError: the faces are of another crop than is configured, or were packed without the dense field that
                is to be learnt.
        """
        check_crop(faces, self.config)
        if self._learns_field and faces.fields is None:
            raise UsageError(
                f"{faces.title} was packed without dense fields, which canet learns: pack it again with --dense-field, "
                "or set architecture.dense_field=false"
            )
        augmentation = self.config.augmentation if train else None
        return OccludedFaces(faces, augmentation, self.training.seed, dense_field=self._learns_field)

    def step(self, batch: Mapping[str, Tensor], engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        """See :meth:`deocc.method.Task.step`."""
        image, occluded, occlusion = (_to_float(batch[name], engine.device) for name in _NAMES)
        field = _to_float(batch["dense_field"], engine.device) if self._learns_field else None
        optimizers = self.generator_optimizer, self.discriminator_optimizer
        rate = _set_learning_rate(optimizers, self.config.joint, index, decay=self.config.joint.decay)
        logs: dict[str, Tensor | float] = {"learning_rate": rate}

        with engine.autocast():
            logits = self.finder(occluded).float()
        terms = {"find": finder_loss(logits, occlusion)}
        hole = self._hole(occlusion, logits.detach(), index)
        with engine.autocast():
            outputs = self.completer(occluded, hole)
        terms |= self._structure(outputs, image, field, hole)
        terms |= self._texture(outputs, image, engine)
        losses = self.config.joint.losses
        # What a user sees: visible pixels as they are.
        completed = (hole > 0).float()
        composed = image + completed * (outputs[0].image.float() - image)
        if losses.edges:
            terms["edges"] = losses.edges * edges_loss(composed - image, completed)
        if losses.adversarial:
            self.discriminator.requires_grad_(False)
            with engine.autocast():
                verdict = self.discriminator(composed, hole).float()
            self.discriminator.requires_grad_(True)
            terms["adversarial"] = -losses.adversarial * patch_mean(verdict, completed)
        self.generator_optimizer.zero_grad(set_to_none=True)
        engine.backward(torch.stack(list(terms.values())).sum())
        logs["gradient"] = nn.utils.clip_grad_norm_(self.generator_optimizer.param_groups[0]["params"], 1.0)
        self.generator_optimizer.step()
        for name in ("finder", "completer"):
            _follow(getattr(self.average, name), getattr(self, name), self.config.joint.average, index)
        logs |= {name: term.detach() for name, term in terms.items()}

        if losses.adversarial:
            with engine.autocast():
                real = self.discriminator(image, hole).float()
                fake = self.discriminator(composed.detach(), hole).float()
            loss = patch_mean(F.relu(1 - real), completed) + patch_mean(F.relu(1 + fake), completed)
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            engine.backward(loss)
            self.discriminator_optimizer.step()
            logs["discriminator"] = loss.detach()
        return logs

    def evaluate(self, batch: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Of the averaged network: PSNR inside the true occlusion, given and found, how well it is found (IoU), and the
        mean distance of (u, v)."""
        image, occluded, occlusion = (_to_float(batch[name], self._average_device) for name in _NAMES)
        touched = (occlusion > 0).float()
        given = soften(occlusion, self.config)
        output = self.average.completer(occluded, given)[0]
        told = composite(occluded, output.image.clamp(0, 1), (given > 0).float())
        probability, _, _, blind = _restore(self.average, occluded, self.config)
        figures = {
            "hole_psnr": float(metrics.psnr(told, image, where=touched).mean()),
            "hole_psnr_found": float(metrics.psnr(blind, image, where=touched).mean()),
            "occlusion_iou": float(metrics.occlusion_iou(probability, occlusion).mean()),
        }
        if self._learns_field:
            figures["field_distance"] = float(field_loss(output.field, _to_float(batch["dense_field"], image.device)))
        return figures

    def preview(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The faces, occluded, what is found and what is restored by the averaged network, without being told."""
        image, occluded, _ = (_to_float(batch[name], self._average_device) for name in _NAMES)
        found, output, restored = _restore(self.average, occluded, self.config)[1:]
        rows = _pictures(image, occluded, found, restored)
        if output.field is not None:
            rows |= {name: output.field[:, [i] * 3].clamp(0, 1) for i, name in enumerate("UV")}
        return rows

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The averaged network."""
        return {"restorer": _halved(self.average.state_dict())}

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over the network of the stage before: all of it, or, without contrast, all but its encoder."""
        weights = dict(exports["restorer"])
        if not self.config.contrastive:
            own = self.average.state_dict()
            weights |= {name: own[name] for name in weights if name.startswith("completer.encoder.")}
        self.average.load_state_dict(weights)
        for name in ("finder", "completer"):
            getattr(self, name).load_state_dict(getattr(self.average, name).state_dict())

    @property
    def _learns_field(self) -> bool:
        return self.config.architecture.dense_field and self.config.joint.losses.dense_field > 0

    @property
    def _average_device(self) -> torch.device:
        return next(self.average.parameters()).device

    def _structure(self, outputs: list[Output], image: Tensor, field: Tensor | None, hole: Tensor) -> dict[str, Tensor]:
        """Reconstruction, gates and dense field at every selected layer, averaged over these (eq. 13 and 15)."""
        losses = self.config.joint.losses
        size = [tuple(output.image.shape[2:]) for output in outputs]
        wanted = [area_downsample(image, one) for one in size]
        errors = [(output.image.float() - true).abs().mean() for output, true in zip(outputs, wanted, strict=True)]
        terms = {"reconstruction": losses.reconstruction * torch.stack(errors).mean()}
        if losses.gate and outputs[0].attention is not None:
            wanted = [area_downsample(hole, one) for one in size]
            errors = [gate_loss(output.attention.float(), true) for output, true in zip(outputs, wanted, strict=True)]
            terms["gate"] = losses.gate * torch.stack(errors).mean()
        if field is not None:
            fields = [area_downsample(field, one) for one in size]
            errors = [field_loss(output.field.float(), true) for output, true in zip(outputs, fields, strict=True)]
            terms["field"] = losses.dense_field * torch.stack(errors).mean()
        return terms

    def _texture(self, outputs: list[Output], image: Tensor, engine: Engine) -> dict[str, Tensor]:
        """Style, identity and perceptual distance at the texture layers, averaged over these (eq. 14 and 15)."""
        losses = self.config.joint.losses
        place = {layer: i for i, layer in enumerate(sorted(self.config.architecture.layers))}
        terms: dict[str, list[Tensor]] = {}
        for layer in losses.texture_layers:
            drawn = outputs[place[layer]].image.float().clamp(0, 1)
            true = area_downsample(image, tuple(drawn.shape[2:]))
            with engine.autocast():
                if self.style is not None:
                    terms.setdefault("style", []).append(losses.style * self.style.to(engine.device)(drawn, true))
                if self.perceptual is not None:
                    distance = self.perceptual.to(engine.device)(drawn, true).mean()
                    terms.setdefault("perceptual", []).append(losses.perceptual * distance)
            if self.recognizer is not None:
                recognizer = self.recognizer.to(engine.device)
                distance, maps = identity_losses(
                    recognizer,
                    drawn,
                    true,
                    self.config.zoom,
                    engine,
                    views=losses.identity_views,
                    layers=self.identity_layers,
                )
                terms.setdefault("identity", []).append(losses.identity * distance)
                if self.identity_layers:
                    terms.setdefault("identity_maps", []).append(losses.identity_maps * maps)
        return {name: torch.stack(values).mean() for name, values in terms.items()}

    def _hole(self, occlusion: Tensor, logits: Tensor, index: int) -> Tensor:
        """How far each pixel is hidden: by true occlusions in one half of the batch, by found ones in the other. In
        every fourth step they are 0 or 1 and a pixel or two too large, as people draw them."""
        odd = (torch.arange(len(occlusion), device=occlusion.device) % 2).view(-1, 1, 1, 1)
        found = settle(torch.sigmoid(logits), self.config)
        hole = torch.where(odd == 1, found, soften(occlusion, self.config))
        return spread((hole > 0).float(), 1 + index // 4 % 2) if index % 4 == 3 else hole


class FinderTraining(Task):
    """Training of the finder alone, on faces as photographs show them; the completer stays as it is."""

    best: ClassVar[str] = ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        network = Network(config.architecture).to(memory_format=torch.channels_last)
        self.finder: nn.Module = copy.deepcopy(network.finder)
        self.average = network.requires_grad_(False).eval()
        self.optimizer = torch.optim.Adam(self.finder.parameters(), lr=config.finder.learning_rate, betas=(0.9, 0.99))
        self._has_completer = False

    @property
    def training(self) -> Training:
        """As configured."""
        return self.config.finder.training

    def networks(self) -> Mapping[str, nn.Module]:
        """The finder, and the whole network that holds its running average."""
        return {"finder": self.finder, "average": self.average}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """That of the finder."""
        return {"optimizer": self.optimizer}

    def dataset(self, faces: Any, *, train: bool) -> Dataset[Any]:
        """See :class:`Photographs`; held-out faces are those of the stage before, to be compared with it.

        Raises:
            UsageError: the faces are of another crop than is configured.
        """
        check_crop(faces, self.config)
        if not train:
            return OccludedFaces(faces, None, self.training.seed)
        settings = self.config.finder
        augmentation = dataclasses.replace(self.config.augmentation, unoccluded=settings.unoccluded)
        return Photographs(faces, augmentation, self.training.seed, plain=settings.plain)

    def step(self, batch: Mapping[str, Tensor], engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        """See :meth:`deocc.method.Task.step`."""
        if not self._has_completer and index == 0:
            warnings.warn(
                "the finder is trained beside a completer that never was, and both are exported together: run the "
                "stages before, or name weights to start from",
                RuntimeWarning,
                stacklevel=2,
            )
        settings = self.config.finder
        occluded, occlusion = (_to_float(batch[name], engine.device) for name in ("occluded", "occlusion"))
        rate = _set_learning_rate((self.optimizer,), settings, index, decay=True)
        with engine.autocast():
            logits = self.finder(occluded).float()
        loss = finder_loss(logits, occlusion)
        self.optimizer.zero_grad(set_to_none=True)
        engine.backward(loss)
        gradient = nn.utils.clip_grad_norm_(self.finder.parameters(), 1.0)
        self.optimizer.step()
        _follow(self.average.finder, self.finder, settings.average, index)
        return {"find": loss.detach(), "gradient": gradient, "learning_rate": rate}

    def evaluate(self, batch: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Of the averaged finder: how well it finds (IoU), the PSNR inside the true occlusion where it is found so, and
        the share of bare faces that is taken for occluded."""
        device = next(self.average.parameters()).device
        image, occluded, occlusion = (_to_float(batch[name], device) for name in _NAMES)
        probability, _, _, restored = _restore(self.average, occluded, self.config)
        bare = settle(torch.sigmoid(self.average.finder(image)), self.config)
        return {
            "hole_psnr_found": float(metrics.psnr(restored, image, where=(occlusion > 0).float()).mean()),
            "occlusion_iou": float(metrics.occlusion_iou(probability, occlusion).mean()),
            "bare_found": float((bare > 0).float().mean()),
        }

    def preview(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The faces, occluded, what the averaged finder finds and what is restored by that."""
        image, occluded, _ = (_to_float(batch[name], next(self.average.parameters()).device) for name in _NAMES)
        _, found, _, restored = _restore(self.average, occluded, self.config)
        return _pictures(image, occluded, found, restored)

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The network, with the averaged finder in it."""
        return {"restorer": _halved(self.average.state_dict())}

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over the network of the stage before."""
        self._has_completer = True
        self.average.load_state_dict(exports["restorer"])
        self.finder.load_state_dict(self.average.finder.state_dict())


def _restore(network: nn.Module, occluded: Tensor, config: Config) -> tuple[Tensor, Tensor, Output, Tensor]:
    """By what probability each pixel is occluded, what is found so, what layer 1 draws and the completed face."""
    probability = torch.sigmoid(network.finder(occluded))
    found = settle(probability, config)
    output = network.completer(occluded, found)[0]
    return probability, found, output, composite(occluded, output.image.clamp(0, 1), (found > 0).float())


def _pictures(image: Tensor, occluded: Tensor, found: Tensor, restored: Tensor) -> dict[str, Tensor]:
    return {"original": image, "occluded": occluded, "found": found.expand(-1, 3, -1, -1), "restored": restored}


def _set_learning_rate(
    optimizers: Sequence[torch.optim.Optimizer], settings: Joint | Finder, index: int, *, decay: bool
) -> float:
    share = min(1.0, (index + 1) / max(1, settings.warmup))
    if decay:
        share *= 0.5 * (1 + math.cos(math.pi * index / settings.training.steps))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
    return settings.learning_rate * share


@torch.no_grad()
def _follow(average: nn.Module, current: nn.Module, decay: float, index: int) -> None:
    # A fixed decay would keep the start for thousands of steps.
    decay = min(decay, (1 + index) / (10 + index))
    current = getattr(current, "module", current)
    for mean, value in zip(average.parameters(), current.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


_NAMES = ("image", "occluded", "occlusion")


def _to_float(value: Tensor, device: torch.device) -> Tensor:
    return value.to(device, torch.float32, memory_format=torch.channels_last) / 255


def _views(batch: Mapping[str, Tensor], device: torch.device) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Image and occlusion of both views."""
    image, occlusion, other_image, other_occlusion = (
        _to_float(batch[name], device) for name in ("occluded", "occlusion", "other_occluded", "other_occlusion")
    )
    return (image, (occlusion > 0).float()), (other_image, (other_occlusion > 0).float())


def _halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In float16: half the file, and no restored byte differs by more than one."""
    return {name: value.half() for name, value in weights.items()}
