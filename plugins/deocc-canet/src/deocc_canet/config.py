"""The configuration of canet. Every field has a default; a recipe holds what differs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from deocc.errors import UsageError
from deocc.method import Training


def _check(section: Any, where: str, names: Iterable[str], least: float, most: float = math.inf) -> None:
    """Raise unless these fields, or all that one holds, are numbers from ``least`` to ``most``."""
    for name in names:
        value = getattr(section, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not least <= number <= most:
                wanted = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise UsageError(f"{where}{name} must be {wanted}, got {value}")


HEADS = 4
"""Of the attention over the coarsest map."""


@dataclass(frozen=True)
class Architecture:
    """The shape of the networks.

    Attributes:
        widths: channels of the completer at 1/2, 1/4, 1/8 ... of the resolution.
        full_width: channels of its decoder's layer 1, at full resolution.
        blocks: its residual blocks at each scale of the decoder.
        layers: decoder layers that give an image and a field, P of eq. 15: 1 is the full resolution, 2 a half of it.
        fusion: whether the image at these layers comes from a dual attention fusion module (section 3.2), or from a 1x1
            convolution.
        dense_field: whether they give a dense correspondence field too (section 3.3).
        finder_widths: channels of the occlusion finder, as ``widths``.
    """

    widths: tuple[int, ...] = (48, 96, 192, 256)
    full_width: int = 16
    blocks: int = 2
    layers: tuple[int, ...] = (1, 2, 3, 4, 5)
    fusion: bool = True
    dense_field: bool = True
    finder_widths: tuple[int, ...] = (16, 32, 64, 96)

    def __post_init__(self) -> None:
        _check(self, "architecture.", ("widths", "full_width", "blocks", "finder_widths"), 1)
        for name in ("widths", "finder_widths"):
            if not getattr(self, name):
                raise UsageError(f"architecture.{name} must hold one number at least, got none")
        if self.widths[-1] % HEADS:
            raise UsageError(
                f"the last of architecture.widths must be divisible by the {HEADS} heads of the attention, "
                f"got {self.widths}"
            )


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

    def __post_init__(self) -> None:
        _check(self, "augmentation.", ("shift", "scale", "light", "unoccluded"), 0, 1)
        _check(self, "augmentation.", ("rotate",), 0, 180)


@dataclass(frozen=True)
class Losses:
    """The weight of each term (eq. 10 to 15), and the files and parts that some terms need.

    Structure terms are averaged over the decoder's selected layers (P), texture terms over ``texture_layers`` (Q).

    Attributes:
        reconstruction: mean absolute difference (eq. 10).
        dense_field: mean over the pixels of the distance of (u, v) (eq. 9); needs packs with a dense field.
        gate: cross-entropy between alpha of the fusion modules (eq. 7) and the occlusion. The paper does not have it.
            Without it a new network's alpha first goes to 0 everywhere, the hole too, where it passes no gradient on to
            what is drawn.
        style: mean absolute difference of the Gram matrices of VGG-16's features (eq. 11); needs ``style_weights``.
        style_weights: safetensors file of :class:`deocc.losses.StyleLoss`.
        style_maps: how many of VGG-16's five tapped maps, the first one first.
        identity: squared distance of the unit embeddings (eq. 12), by ``identity_method``.
        identity_maps: the same at every position of the maps that ``identity_layers`` give, summed over these. The
            paper does not have it. The distance of embeddings alone draws smears about the mouth.
        identity_layers: submodules of the network of ``identity_method``'s recognizer, by name; the default ones are
            mobilefacenet's.
        identity_method: an installed method whose recognizer is differentiable; the paper's is LightCNN.
        identity_views: look through a slight blur, from another place, angle and side for every face, so that the
            recognizer does not teach a pattern that pleases it and nobody else. The paper does not.
        perceptual: LPIPS; needs ``perceptual_weights``. Named in section 3.4 and given no weight there.
        perceptual_weights: safetensors file of :class:`deocc.losses.LPIPS`.
        adversarial: hinge loss of a patch discriminator at layer 1, of each patch by how much of it is completed. Named
            in section 3.4 and given no weight there.
        edges: mean absolute difference, inside the occlusion, between what separates neighbouring pixels, at layer 1.
            It keeps the identity term from drawing patterns.
        texture_layers: Q of eq. 15.
    """

    reconstruction: float = 6.0
    dense_field: float = 0.1
    gate: float = 0.0
    style: float = 0.0
    style_weights: str = ""
    style_maps: int = 5
    identity: float = 0.1
    identity_maps: float = 0.0
    identity_layers: tuple[str, ...] = ("features.4", "features.12", "conv2")
    identity_method: str = "mobilefacenet"
    identity_views: bool = True
    perceptual: float = 0.0
    perceptual_weights: str = ""
    adversarial: float = 0.0
    edges: float = 0.0
    texture_layers: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        texture = ("style", "identity", "identity_maps", "perceptual")
        _check(self, "joint.losses.", ("reconstruction", "dense_field", "gate", "adversarial", "edges", *texture), 0)
        _check(self, "joint.losses.", ("style_maps",), 1, 5)
        if not self.texture_layers and any(getattr(self, name) for name in texture):
            raise UsageError(
                "joint.losses.texture_layers must hold one layer at least, or the weights of all texture terms be 0 "
                f"({', '.join(texture)}), got none"
            )


@dataclass(frozen=True)
class Siamese:
    """The first stage: the encoder learns to tell faces apart whatever hides them (section 3.1).

    Attributes:
        dim: of the representations.
        queue: number of keys.
        temperature: tau of eq. 1.
        momentum: m of eq. 2, by which the key encoder follows.
        learning_rate: of SGD (momentum 0.9, weight decay 1e-4).
        clip: largest norm of the gradient; the encoder has no normalisation that would bound it.
    """

    dim: int = 128
    queue: int = 65536
    temperature: float = 0.07
    momentum: float = 0.9
    learning_rate: float = 0.015
    clip: float = 1.0
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check(self, "siamese.", ("dim", "queue"), 1)
        _check(self, "siamese.", ("momentum",), 0, 1)
        _check(self, "siamese.", ("learning_rate",), 0)
        _check(self, "siamese.", ("temperature", "clip"), 1e-6)


@dataclass(frozen=True)
class Joint:
    """The second stage: encoder and decoder, with the fusion modules.

    Attributes:
        learning_rate: of Adam, after ``warmup`` steps in which it rises.
        decay: whether it falls to zero as a cosine from there.
        average: decay of the running average of the weights, which is what is exported.
    """

    learning_rate: float = 4e-4
    warmup: int = 200
    decay: bool = True
    average: float = 0.999
    losses: Losses = field(default_factory=Losses)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check(self, "joint.", ("learning_rate", "warmup"), 0)
        _check(self, "joint.", ("average",), 0, 1)


@dataclass(frozen=True)
class Finder:
    """The third stage: the finder alone, on :class:`deocc_canet.photographs.Photographs`.

    Attributes:
        learning_rate: of Adam; it rises over ``warmup`` steps and falls to zero as a cosine from there.
        average: decay of the running average of the weights, which is what is exported.
        plain: share of the faces that are as the other stages see them.
        unoccluded: share of the faces that nothing hides.
    """

    learning_rate: float = 1e-3
    warmup: int = 50
    average: float = 0.998
    plain: float = 0.25
    unoccluded: float = 0.15
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check(self, "finder.", ("learning_rate", "warmup"), 0)
        _check(self, "finder.", ("average", "plain", "unoccluded"), 0, 1)


@dataclass(frozen=True)
class Config:
    """Everything that can be set.

    Attributes:
        size, zoom: the crop that is trained on and restored, see :class:`deocc.faces.Crop`. Faces are packed with the
            same (``deocc data pack --size --zoom``).
        contrastive: whether the second stage starts from the first one's encoder.
        siamese, joint, finder: the training stages.
        threshold: occlusion, given or found, above which a pixel is completed. Below it, as in a faint shadow that a
            mask casts on the skin, the pixel shows more of the face than anything that is drawn.
        closing: gaps of up to twice as many pixels in a found occlusion are closed.
    """

    size: int = 128
    zoom: float = 0.75
    architecture: Architecture = field(default_factory=Architecture)
    augmentation: Augmentation = field(default_factory=Augmentation)
    contrastive: bool = True
    siamese: Siamese = field(default_factory=Siamese)
    joint: Joint = field(default_factory=Joint)
    finder: Finder = field(default_factory=Finder)
    threshold: float = 0.05
    closing: int = 1

    def __post_init__(self) -> None:
        _check(self, "", ("size",), 1)
        _check(self, "", ("closing",), 0)
        _check(self, "", ("threshold",), 0, 1)
