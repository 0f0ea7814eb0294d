"""The configuration of canet. Every field has a default; a recipe holds what differs."""

from __future__ import annotations

from dataclasses import dataclass, field

from deocc.method import Training


@dataclass(frozen=True)
class Architecture:
    """The shape of the networks.

    Attributes:
        widths: channels of the completer at 1/2, 1/4, 1/8 ... of the resolution.
        blocks: its residual blocks at each scale of the decoder.
        finder_widths: channels of the occlusion finder, as ``widths``.
    """

    widths: tuple[int, ...] = (48, 96, 192, 256)
    blocks: int = 2
    finder_widths: tuple[int, ...] = (16, 32, 64, 96)


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training face before it is occluded.

    Attributes:
        shift: largest shift, in fractions of the crop's side.
        scale: largest relative change of scale.
        rotate: largest rotation, in degrees. (Landmarks found under a mask are off by about as much.)
        light: largest relative change of brightness, contrast and saturation.
        unoccluded: share of the faces that stay as they are, so that the finder learns to find nothing.
    """

    shift: float = 0.03
    scale: float = 0.06
    rotate: float = 5.0
    light: float = 0.2
    unoccluded: float = 0.05


@dataclass(frozen=True)
class Losses:
    """The weight of each term of the completer's loss, and the files and parts that some terms need.

    Attributes:
        hole, whole: mean absolute difference inside the occlusion, and over the whole face.
        edges: mean absolute difference, inside the occlusion, between what separates neighbouring pixels. It keeps the
            identity term from drawing patterns.
        perceptual: LPIPS between the composed and the true face; needs ``perceptual_weights``.
        perceptual_weights: safetensors file of :class:`deocc.losses.LPIPS`.
        identity: 1 - cosine of the embeddings of the composed and the true face, by ``identity_method``.
        identity_method: an installed method whose recognizer is differentiable.
        adversarial: hinge loss of a patch discriminator, from step ``adversarial_from`` on.
    """

    hole: float = 1.0
    whole: float = 0.25
    edges: float = 0.0
    perceptual: float = 0.0
    perceptual_weights: str = ""
    identity: float = 0.0
    identity_method: str = "mobilefacenet"
    adversarial: float = 0.0
    adversarial_from: int = 0


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        learning_rate: of Adam at its highest; it rises over ``warmup`` steps and falls to zero as a cosine.
    """

    learning_rate: float = 4e-4
    warmup: int = 200
    losses: Losses = field(default_factory=Losses)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Config:
    """Everything that can be set.

    Attributes:
        begin, complete, refine, polish: the training stages; each starts from the weights of the one before.
        closing, margin: pixels by which gaps in a found occlusion are closed, and by which it is grown; see
            :func:`deocc_canet.network.settle`.
        average: decay of the running average of the weights, which is what is exported.
    """

    architecture: Architecture = field(default_factory=Architecture)
    augmentation: Augmentation = field(default_factory=Augmentation)
    begin: Stage = field(default_factory=Stage)
    complete: Stage = field(default_factory=Stage)
    refine: Stage = field(default_factory=Stage)
    polish: Stage = field(default_factory=Stage)
    closing: int = 3
    margin: int = 2
    average: float = 0.999
