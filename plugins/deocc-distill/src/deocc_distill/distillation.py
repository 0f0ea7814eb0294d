"""Distillation of the teacher into the student (section 3.3), and joint fine-tuning of both modules (eq. 6)."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from deocc import plugins
from deocc.errors import UsageError
from deocc.faces import Crop
from deocc.method import Engine, Task, Training
from deocc.ops import relational_angle, relational_distance, relational_distillation
from deocc_distill import losses
from deocc_distill.centroids import Centroids
from deocc_distill.config import Config
from deocc_distill.deocclusion import joined, load
from deocc_distill.faces import OccludedFaces, check_crop, recrop, to_float
from deocc_distill.network import Deocclusion, settle
from deocc_distill.student import Student, weights_of


class _Distilling(Task):
    """What both stages share: the frozen teacher, the student, the losses of eq. 16."""

    best: ClassVar[str] = ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        settings = config.distillation
        self.crop = Crop(config.size, config.zoom)
        self.teacher = plugins.load(settings.teacher, "recognizer")
        size = self.teacher.crop_size
        dim = self.teacher(torch.zeros(0, 3, size, size)).shape[1]
        if dim != config.student.dim:
            raise UsageError(
                f"the student embeds into its teacher's space: student.dim must be {dim}, that of {settings.teacher}, "
                f"got {config.student.dim}"
            )
        student = Student(config)
        # Typed as what it becomes: an engine may wrap it.
        self.student: nn.Module = student
        self.student_crop = student.crop
        self.faces = 1
        self.centroids = None
        if settings.cross_entropy or settings.instance == "soft":
            if not settings.centroids:
                raise UsageError(
                    "cross-entropy and the soft instance loss need the identities' centroids: compute them with "
                    "python -m deocc_distill.centroids and name the file in distillation.centroids, got none"
                )
            self.centroids = Centroids.load(settings.centroids, self.teacher)

    def dataset(self, faces: Any, *, train: bool) -> Dataset[Any]:
        """See :class:`OccludedFaces`; held-out faces are not augmented and all are occluded.

        Raises:
            UsageError: the faces are not of the configured crop.
            InputError: a training face whose identity has no centroid.
        """
        check_crop(faces, self.config)
        if train:
            self.faces = len(faces)
        rows: Sequence[int] | None = None
        if train and self.centroids is not None:
            rows = self.centroids.rows(faces).tolist()
        return OccludedFaces(faces, self.config.augmentation if train else None, self.training.seed, rows)

    def evaluate(self, batch: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Of faces completed where they are occluded: mean cosine with the teacher's embedding of the true face, how
        often that is the nearest in the batch, and the losses that need no centroids."""
        image, completed = self._completed(batch)
        student, teacher = self._embed(completed), self._teach(image)
        right = (student @ teacher.T).argmax(1) == torch.arange(len(student), device=student.device)
        return {
            "cosine": float((student * teacher).sum(1).mean()),
            "found_again": float(right.float().mean()),
            "hard": float(losses.hard_instance_loss(student, teacher)),
            "pair": float(relational_distance(student, teacher)),
            "triplet": float(relational_angle(student, teacher)),
        }

    def preview(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The faces, occluded, and as the student sees them."""
        image, completed = self._completed(batch)
        seen = recrop(completed, self.crop, self.student_crop).clamp(0, 1)
        return {"original": image, "occluded": to_float(batch, "occluded", image.device), "seen": seen}

    @abc.abstractmethod
    def _complete(self, occluded: Tensor, hole: Tensor) -> Tensor:
        """Complete (N, 3, S, S) in the hole (N, 1, S, S) of 0 and 1."""

    def _completed(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        device = next(self.student.parameters()).device
        image, occluded = (to_float(batch, name, device) for name in ("image", "occluded"))
        return image, self._complete(occluded, (batch["distance"].to(device) > 0).float())

    def _embed(self, completed: Tensor) -> Tensor:
        """The student's unit embeddings of faces in the restorer's crop."""
        return F.normalize(self.student(recrop(completed, self.crop, self.student_crop)).float(), dim=1)

    @torch.no_grad()
    def _teach(self, image: Tensor) -> Tensor:
        """The teacher's unit embeddings of faces in the restorer's crop."""
        teacher = self.teacher.to(image.device)
        faces = recrop(image, self.crop, Crop(teacher.crop_size, teacher.crop_zoom))
        # Of a teacher without a torch network it comes from the CPU.
        return F.normalize(teacher(faces.clamp(0, 1)).to(image.device).float(), dim=1)

    def _terms(self, student: Tensor, teacher: Tensor, row: Tensor) -> dict[str, Tensor]:
        """The terms of eq. 16, weighed."""
        settings = self.config.distillation
        terms = {}
        if self.centroids is not None:
            centroids = self.centroids.values.to(student.device)
            if settings.cross_entropy:
                value = losses.cross_entropy(student, teacher, centroids, settings.scale)
                terms["cross_entropy"] = settings.cross_entropy * value
            if settings.instance == "soft":
                value = losses.soft_instance_loss(student, teacher, centroids[row.to(student.device)])
                terms["instance"] = settings.instance_weight * value
        if settings.instance == "hard":
            terms["instance"] = settings.instance_weight * losses.hard_instance_loss(student, teacher)
        if settings.pair or settings.triplet:
            terms["relations"] = relational_distillation(
                student, teacher, distance=settings.pair, angle=settings.triplet
            )
        if not terms:
            raise UsageError("distillation needs a loss, and the weights of all of them are 0")
        return terms


class DistillationTraining(_Distilling):
    """The student learns from completed faces what the frozen teacher knows of the true ones (eq. 16).

    One half of a batch is completed where the occlusion is, the other where it is found to be: the one keeps the
    student honest, the other teaches it to live with what is missed.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        completion = config.distillation.completion
        self.generator = self.finder = self.restorer = None
        self._has_started = completion != "own"
        if completion == "own":
            network = Deocclusion(config.generator).to(memory_format=torch.channels_last).requires_grad_(False)
            self.generator, self.finder = network.generator, network.finder
        elif completion != "none":
            self.restorer = plugins.load(completion, "restorer")
            made_for = Crop(self.restorer.crop_size, self.restorer.crop_zoom)
            if self.restorer.network is not None and made_for != self.crop:
                raise UsageError(
                    f"{completion} completes crops of {made_for.size} pixels and zoom {made_for.zoom:g}: set size and "
                    f"zoom to these and pack the faces so, got {self.crop.size} and {self.crop.zoom:g}"
                )
        self.optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=config.distillation.learning_rate,
            momentum=0.9,
            weight_decay=config.distillation.weight_decay,
        )

    @property
    def training(self) -> Training:
        """As configured."""
        return self.config.distillation.training

    def networks(self) -> Mapping[str, nn.Module]:
        """The student and, where it is this method's own, the frozen de-occlusion module."""
        networks = {"student": self.student, "generator": self.generator, "finder": self.finder}
        return {name: network for name, network in networks.items() if network is not None}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """That of the student."""
        return {"optimizer": self.optimizer}

    def step(self, batch: Mapping[str, Tensor], engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        """See :meth:`deocc.method.Task.step`.

        Raises:
            UsageError: the de-occlusion module is this method's own and was never trained.
        """
        if not self._has_started:
            raise UsageError(
                "the student learns from faces that the de-occlusion module completes: run its stage (deocclusion) "
                "before, or start from its weights, or set distillation.completion"
            )
        rate = self._set_learning_rate(index, index * self.training.batch // self.faces)
        image, occluded = (to_float(batch, name, engine.device) for name in ("image", "occluded"))
        hole = (batch["distance"].to(engine.device) > 0).float()
        with engine.autocast():
            teacher = self._teach(image)
            with torch.no_grad():
                completed = self._complete(occluded, self._half_found(occluded, hole))
            student = self._embed(completed)
        terms = self._terms(student, teacher, batch["row"])
        self.optimizer.zero_grad(set_to_none=True)
        engine.backward(torch.stack(list(terms.values())).sum())
        self.optimizer.step()
        logs: dict[str, Tensor | float] = {name: term.detach() for name, term in terms.items()}
        return logs | {"learning_rate": rate, "cosine": (student.detach() * teacher).sum(1).mean()}

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The student, and the de-occlusion module whose faces it knows where that is this method's own."""
        exports = {"recognizer": weights_of(self.student)}
        if self.generator is not None and self.finder is not None:
            exports["restorer"] = joined(self.generator, self.finder)
        return exports

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over the de-occlusion module of the stage before, and a student of an earlier run."""
        if self.generator is not None and self.finder is not None and "restorer" in exports:
            load(self.generator, self.finder, exports["restorer"])
            self._has_started = True
        if "recognizer" in exports:
            self.student.load_state_dict(exports["recognizer"])

    def _complete(self, occluded: Tensor, hole: Tensor) -> Tensor:
        if self.generator is not None:
            return occluded + hole * (self.generator(occluded, hole).refined.float() - occluded)
        if self.restorer is not None:
            return self.restorer.to(occluded.device)(occluded, hole).image.to(occluded.device)
        return occluded

    def _half_found(self, occluded: Tensor, hole: Tensor) -> Tensor:
        """The true hole for every other face, and what this method's own segmentation head finds for the rest."""
        if self.finder is None:
            return hole
        found = settle(self.finder(occluded), self.config.margin)
        odd = (torch.arange(len(hole), device=hole.device) % 2).view(-1, 1, 1, 1)
        return torch.where(odd == 1, found, hole)

    def _set_learning_rate(self, index: int, epoch: int) -> float:
        settings = self.config.distillation
        if settings.schedule == "epochs":
            share = 0.1 ** (epoch // settings.decay_epochs)
        else:
            share = 0.5 * (1 + math.cos(math.pi * index / settings.training.steps))
            share *= min(1.0, (index + 1) / max(1, settings.warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        return settings.learning_rate * share


class JointTraining(_Distilling):
    """De-occlusion module and student are trained together, the gradient going from the embedding into the pixels.

    The generator keeps its L1 losses, so that faces stay faces; the segmentation head stays as it is.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        network = Deocclusion(config.generator).to(memory_format=torch.channels_last)
        self.generator: nn.Module = network.generator
        self.finder: nn.Module = network.finder.requires_grad_(False)
        self._has_started = False
        self.student_optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=config.joint.learning_rate,
            momentum=0.9,
            weight_decay=config.distillation.weight_decay,
        )
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=config.joint.generator_learning_rate, betas=(0.5, 0.9)
        )

    @property
    def training(self) -> Training:
        """As configured."""
        return self.config.joint.training

    def networks(self) -> Mapping[str, nn.Module]:
        """Generator, segmentation head (frozen) and student."""
        return {"generator": self.generator, "finder": self.finder, "student": self.student}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One for the student, one for the generator."""
        return {"student_optimizer": self.student_optimizer, "generator_optimizer": self.generator_optimizer}

    def step(self, batch: Mapping[str, Tensor], engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        """See :meth:`deocc.method.Task.step`.

        Raises:
            UsageError: there is no trained module or student to start from.
        """
        if not self._has_started:
            raise UsageError("joint training goes on with a trained restorer and a trained recognizer; start from both")
        settings = self.config.deocclusion
        image, occluded = (to_float(batch, name, engine.device) for name in ("image", "occluded"))
        distance = batch["distance"].to(engine.device, torch.float32)
        hole = (distance > 0).float()
        with engine.autocast():
            teacher = self._teach(image)
            drawn = self.generator(occluded, hole)
            completed = occluded + hole * (drawn.refined.float() - occluded)
            student = self._embed(completed)
        terms = self._terms(student, teacher, batch["row"])
        for name, one in drawn._asdict().items():
            terms[name] = self.config.joint.reconstruction * losses.discounted_l1(
                one.float(), image, distance, settings.discount
            ) + settings.visible * losses.visible_l1(one.float(), image, distance)
        for optimizer in (self.student_optimizer, self.generator_optimizer):
            optimizer.zero_grad(set_to_none=True)
        engine.backward(torch.stack(list(terms.values())).sum())
        for optimizer in (self.student_optimizer, self.generator_optimizer):
            optimizer.step()
        logs: dict[str, Tensor | float] = {name: term.detach() for name, term in terms.items()}
        return logs | {"cosine": (student.detach() * teacher).sum(1).mean()}

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Both parts."""
        return {"restorer": joined(self.generator, self.finder), "recognizer": weights_of(self.student)}

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over both modules."""
        if {"restorer", "recognizer"} <= set(exports):
            load(self.generator, self.finder, exports["restorer"])
            self.student.load_state_dict(exports["recognizer"])
            self._has_started = True

    def _complete(self, occluded: Tensor, hole: Tensor) -> Tensor:
        return occluded + hole * (self.generator(occluded, hole).refined.float() - occluded)
