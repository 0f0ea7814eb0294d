"""The configuration of distill. Every field has a default; a recipe holds what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deocc.method import Training


@dataclass(frozen=True)
class Generator:
    """The shape of the de-occlusion module's networks (Yu et al. 2018).

    Attributes:
        width: channels at full resolution; four times as many at a quarter of it.
        attention: whether the refinement network has its contextual-attention branch (table 2).
        critic_width: channels of the discriminators' first layer.
        finder_width: of the segmentation head that finds the occlusion where none is given.
    """

    width: int = 32
    attention: bool = True
    critic_width: int = 64
    finder_width: int = 16


@dataclass(frozen=True)
class Student:
    """What the student is.

    Attributes:
        network: ``"resnet18"``, with one embedding layer, from its beginning, as in the paper; or ``"teacher"``, a copy
            of the teacher, weights and all, whose batch statistics stay as they are: where there are too few faces to
            teach a network from nothing.
        widths: channels of the ResNet's four groups of two blocks.
        dim: of the embedding, which must be the teacher's.
    """

    network: Literal["resnet18", "teacher"] = "resnet18"
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    dim: int = 128


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training face and its occluder (section 4.1: flipping and shift).

    Attributes:
        flip: whether every other face is mirrored, with its occluder.
        shift: largest shift of the face, in fractions of the crop's side.
        paste_shift: largest shift of the occluder from its place on the face, likewise.
        grow: largest number of pixels by which the hole is wider than the occluder, since one is never found exactly.
        unoccluded: share of the faces that stay as they are, so that the segmentation head learns to find nothing.
    """

    flip: bool = True
    shift: float = 0.03
    paste_shift: float = 0.02
    grow: int = 3
    unoccluded: float = 0.05


@dataclass(frozen=True)
class Deocclusion:
    """Training of the de-occlusion module (section 3.2).

    Attributes:
        adversarial: ``"log"`` is eq. 8 as it is written; ``"wgan-gp"`` is what Yu et al. train with; or none.
        adversarial_weight: of the generator's adversarial loss; 0.001 in Yu et al.
        penalty: weight of WGAN-GP's gradient penalty.
        critic_steps: steps of the discriminators for each one of the generator.
        reconstruction: weight of the L1 distance inside the hole (eq. 7), of the coarse and the refined image each.
        discount: gamma; gamma^distance weighs a pixel of the hole, by its distance from a known one; 1 is plain L1.
        visible: weight of the L1 distance at known pixels.
        learning_rate: of Adam, with betas 0.5 and 0.9.
        decay: whether it falls to zero as a cosine; otherwise it stays.
    """

    adversarial: Literal["log", "wgan-gp", "none"] = "wgan-gp"
    adversarial_weight: float = 0.001
    penalty: float = 10.0
    critic_steps: int = 5
    reconstruction: float = 1.2
    discount: float = 0.99
    visible: float = 1.2
    learning_rate: float = 1e-4
    decay: bool = False
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Distillation:
    """Training of the student on completed faces (section 3.3), and the losses of eq. 16.

    Attributes:
        teacher: an installed method whose recognizer is the frozen teacher.
        completion: what completes the faces that the student sees: ``"own"``, the de-occlusion module of the stage
            before; ``"none"``, they stay masked; or the name of an installed restorer.
        centroids: the file of ``python -m deocc_distill.centroids``; cross-entropy and the soft instance loss need it.
        cross_entropy: its weight (eq. 10).
        scale: factor on the cosines with the identities' centroids, before the softmax.
        instance: ``"hard"`` is eq. 12; ``"soft"`` is centred at the identity (eq. 17 and 18); or none.
        instance_weight: lambda_i of eq. 16.
        pair, triplet: lambda_p and lambda_t.
        learning_rate: of SGD, with momentum 0.9.
        weight_decay: of SGD.
        schedule: ``"epochs"`` divides the learning rate by 10 every ``decay_epochs``; ``"cosine"`` lets it fall to zero
            after ``warmup`` steps in which it rises.
        training: how long.
    """

    teacher: str = "mobilefacenet"
    completion: str = "own"
    centroids: str = ""
    cross_entropy: float = 1.0
    scale: float = 16.0
    instance: Literal["hard", "soft", "none"] = "soft"
    instance_weight: float = 1.0
    pair: float = 1.0
    triplet: float = 2.0
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: Literal["epochs", "cosine"] = "epochs"
    decay_epochs: int = 24
    warmup: int = 0
    training: Training = field(default_factory=lambda: Training(batch=128))


@dataclass(frozen=True)
class Joint:
    """Fine-tuning of the de-occlusion module and the student together (eq. 6), with the losses of the stages before but
    for the adversarial one.

    Attributes:
        learning_rate: of SGD for the student, momentum 0.9.
        generator_learning_rate: of Adam for the de-occlusion module.
        reconstruction: weight of the module's L1 losses inside the hole; that of the visible pixels is
            ``deocclusion.visible``.
    """

    learning_rate: float = 1e-3
    generator_learning_rate: float = 1e-5
    reconstruction: float = 1.0
    training: Training = field(default_factory=lambda: Training(batch=128))


@dataclass(frozen=True)
class Config:
    """Everything that can be set.

    Attributes:
        size, zoom: of the crops that the de-occlusion module completes, see :class:`deocc.faces.Crop`.
        generator, student: the networks.
        augmentation: of all stages.
        deocclusion, distillation, joint: the training stages.
        margin: pixels by which a found occlusion is grown.
        end_to_end: whether the recognizer takes masked faces and completes them first (eq. 6), or takes completed ones.
        restorer_weights: of the de-occlusion module inside the end-to-end recognizer; by default the packaged ones,
            also where the student's are of another run, which has its own beside them (``restorer.safetensors``).
    """

    size: int = 128
    zoom: float = 0.75
    generator: Generator = field(default_factory=Generator)
    student: Student = field(default_factory=Student)
    augmentation: Augmentation = field(default_factory=Augmentation)
    deocclusion: Deocclusion = field(default_factory=Deocclusion)
    distillation: Distillation = field(default_factory=Distillation)
    joint: Joint = field(default_factory=Joint)
    margin: int = 2
    end_to_end: bool = False
    restorer_weights: str = ""
