"""What a method is: the whole contract between deocc and a plugin.

A *method* is one :class:`Method` object, found through the entry-point group ``deocc.methods``, that offers one or
more *parts*: a :class:`Restorer`, an :class:`Occluder`, a :class:`Recognizer`, and the :class:`Task` objects that train
them. Parts are named as strings (``"package.module:Class"``) and imported when first used.

Conventions that hold everywhere: images are RGB float tensors in [0, 1] of shape (N, 3, H, W); an *occlusion* is a
float tensor (N, 1, H, W) in [0, 1] where **1 means occluded, to be restored**; embeddings have unit length.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from deocc.errors import InputError, PluginError, UsageError
from deocc.ops import composite

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch.utils.data import Dataset

API = 1
"""The version of this contract. A method states the one it was written for as ``Method(api=...)``."""

PARTS = ("restorer", "occluder", "recognizer")
"""The kinds of part a method may offer, beside its training tasks."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method: its name, its source, and where its parts are.

    ``deocc check`` wants at least one part, a licence and a summary, and no task that is named like a part.

    Args:
        api: the contract's version this method was written for (:data:`API`).
        name: lower-case letters, digits and hyphens; the name of its entry point too.
        summary: one line, shown by ``deocc methods``.
        paper: the publication it implements (authors, title, venue, year); empty for a baseline.
        licence: SPDX name of the licence of the code; weights state their own in their card.
        config: ``"package.module:Class"`` of a frozen dataclass with a default for every field.
        restorer, occluder, recognizer: ``"package.module:Class"`` of the part, or None when it is not offered.
        tasks: training stages in the order in which they run, stage name -> ``"package.module:Class"``.
        weights: part -> packaged safetensors file, ``"package:path/inside/the/package"``.
    """

    api: int
    name: str
    config: str
    summary: str = ""
    paper: str = ""
    licence: str = ""
    restorer: str | None = None
    occluder: str | None = None
    recognizer: str | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    def parts(self) -> tuple[str, ...]:
        """The kinds of part this method offers, without importing any of them."""
        return tuple(part for part in PARTS if getattr(self, part) is not None)

    def resolve(self, part: str) -> type:
        """Import and return the class of ``part``: one of :data:`PARTS`, ``"config"`` or the name of a task.

        Raises:
            UsageError: this method has no such part.
            PluginError: the string does not lead to a class, or importing it failed.
        """
        target = getattr(self, part) if part in (*PARTS, "config") else self.tasks.get(part)
        if target is None:
            offered = ", ".join((*self.parts(), *self.tasks)) or "nothing"
            raise UsageError(f"method {self.name!r} has no {part!r}; it offers {offered}")
        module_name, _, attribute = target.partition(":")
        try:
            value = getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:  # one that ends the process when it is imported is broken too
            raise PluginError(
                f"method {self.name!r}: its {part} {target!r} cannot be imported ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(value, type):
            raise PluginError(f"method {self.name!r}: its {part} {target!r} is a {type(value).__name__}, not a class")
        return value


class Restored(NamedTuple):
    """What a :class:`Restorer` returns.

    Attributes:
        image: (N, 3, H, W) in [0, 1], the faces with the occluded pixels restored. Restored pixels are invented.
        occlusion: (N, 1, H, W) in [0, 1], the occlusion that was restored: the one given, or as much of it as is
            completed; or the one found.
        extras: anything else worth showing or keeping (coarse outputs, attention, fields), name -> (N, C, h, w), shown
            in their order. Of values in [0, 1], one channel is shown as grey, three as RGB, and two as the maps of a
            dense field, U and V, in colours.
    """

    image: Tensor
    occlusion: Tensor
    extras: Mapping[str, Tensor] = {}


class Occluded(NamedTuple):
    """What an :class:`Occluder` returns.

    Attributes:
        image: (N, 3, H, W) in [0, 1].
        occlusion: (N, 1, H, W) in [0, 1], 1 = occluded.
        parameters: one JSON-able mapping for each image, enough to tell how it was made.
    """

    image: Tensor
    occlusion: Tensor
    parameters: tuple[Mapping[str, Any], ...]


class Part(abc.ABC):  # noqa: B024 (each kind of part has its own abstract method)
    """What restorers, occluders and recognizers share.

    A part is built from its method's configuration alone. One that learns puts its ``torch.nn.Module`` in
    :attr:`network` inside ``__init__``; deocc then loads weights into it and moves it between devices.

    Attributes:
        network: the module whose state dict is the weights file; None for a part without weights.
        needs_weights: True when the part is meaningless without trained weights, as any network is that starts with
            random ones: it is then not loaded without a file.
        crop_size, crop_zoom: the aligned square crop the part was made for: its side in pixels, and the scale of the
            five-point ArcFace template inside it (1.0 is the template itself, 0.75 leaves room for hair and chin);
            see :class:`deocc.faces.Crop`.
        files: whatever it read besides its weights and that decides its results, the model first; a report names their
            SHA-256, and what is kept of results is kept by it.
    """

    needs_weights: ClassVar[bool] = False
    crop_size: int = 128
    crop_zoom: float = 0.75
    network: nn.Module | None = None
    files: tuple[Path, ...] = ()

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def lacks(cls) -> str:
        """What has to be supplied, besides weights, before the part works in its default configuration.

        ``deocc methods`` shows it behind the word "needs"; empty when there is nothing.
        """
        return ""

    @property
    def device(self) -> torch.device:
        """Where the part computes."""
        tensors = self._tensors()
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """What images are handed to the part as: its network's floating point type, float32 without one."""
        return next((tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()), torch.float32)

    def _tensors(self) -> tuple[Tensor, ...]:
        return () if self.network is None else (*self.network.parameters(), *self.network.buffers())

    def to(self, device: str | torch.device) -> Part:
        """Move the part's network, if it has one, and return the part."""
        if self.network is not None:
            self.network.to(device)
        return self


class Restorer(Part):
    """Image and occlusion in, restored image out. Subclasses write :meth:`restore`; callers call the object.

    Attributes:
        finds_occlusion: True when the restorer can work without being told what is occluded.
        redraws_face: True when it changes visible pixels too; its card says so. Otherwise visible pixels come back
            bit-identical, which calling the object ensures.
    """

    finds_occlusion: ClassVar[bool] = False
    redraws_face: ClassVar[bool] = False

    @abc.abstractmethod
    def restore(self, image: Tensor, occlusion: Tensor | None) -> Restored:
        """Restore checked inputs of :attr:`device` and :attr:`dtype`; see :class:`Restored` for what to return.

        ``deocc check`` wants this to leave its inputs as they are, to give the same for the same input, to restore a
        face in a batch as it does alone (to 1e-3), to take an empty batch, and other sizes than ``crop_size``, odd ones
        too, or to refuse them with ``InputError``.
        """

    def __call__(self, image: Tensor, occlusion: Tensor | None = None) -> Restored:
        """Restore faces.

        Args:
            image: (N, 3, H, W) float in [0, 1], RGB; aligned as ``crop_size`` and ``crop_zoom`` say.
            occlusion: (N, 1, H, W) float in [0, 1], 1 = occluded, or None to have it found.

        Returns:
            what was restored, the image and the occlusion in the dtype of ``image``.

        Raises:
            InputError: a shape, dtype or value that does not fit.
            UsageError: no occlusion was given and this restorer cannot find it.
        """
        check_images(image)
        if occlusion is not None:
            check_occlusion(occlusion, image)
        elif not self.finds_occlusion:
            raise UsageError(
                f"{type(self).__name__} cannot find the occlusion itself; give it one (1 = occluded), got none"
            )
        device, dtype = self.device, self.dtype
        restored = self.restore(image.to(device, dtype), None if occlusion is None else occlusion.to(device, dtype))
        if image.dtype != dtype:
            made, where = (value.to(image.dtype) for value in (restored.image, restored.occlusion))
            restored = restored._replace(image=made, occlusion=where)
        if self.redraws_face:
            return restored
        return restored._replace(image=composite(image.to(device), restored.image.clamp(0, 1), restored.occlusion))


class Occluder(Part):
    """Image and seed in, occluded image out. Subclasses write :meth:`occlude`; callers call the object."""

    @abc.abstractmethod
    def occlude(self, image: Tensor, seed: int) -> Occluded:
        """Occlude checked inputs that lie on :attr:`device`; the same seed gives the same result."""

    def __call__(self, image: Tensor, seed: int) -> Occluded:
        """Occlude faces: (N, 3, H, W) float in [0, 1], RGB, aligned as ``crop_size`` and ``crop_zoom`` say.

        Raises:
            InputError: a shape, dtype or value that does not fit.
        """
        check_images(image)
        return self.occlude(image.to(self.device), seed)


class Recognizer(Part):
    """Aligned face in, unit embedding out. Subclasses write :meth:`embed`; callers call the object.

    Attributes:
        differentiable: True when gradients flow from the embedding to the image (identity losses need that).
    """

    crop_size: int = 112
    crop_zoom: float = 1.0
    differentiable: ClassVar[bool] = False

    @abc.abstractmethod
    def embed(self, image: Tensor) -> Tensor:
        """Embed checked inputs of :attr:`device` and :attr:`dtype`: (N, 3, H, W) -> (N, D), any length.

        ``deocc check`` wants this to leave its input as it is, to give the same for the same faces, a face in a batch
        as alone (unit embeddings, to 1e-3), and (0, D) for an empty batch.
        """

    def __call__(self, image: Tensor) -> Tensor:
        """Embed faces.

        Args:
            image: (N, 3, H, W) float in [0, 1], RGB, H = W = ``crop_size``, aligned as ``crop_zoom`` says.

        Returns:
            (N, D) embeddings of unit length, float32 or finer; the score of two faces is their inner product.

        Raises:
            InputError: a shape, dtype or value that does not fit, or an embedding that is zero or not finite.
        """
        check_images(image)
        if tuple(image.shape[2:]) != (self.crop_size, self.crop_size):
            raise InputError(
                f"{type(self).__name__} wants faces of {self.crop_size}x{self.crop_size} pixels, "
                f"got {image.shape[2]}x{image.shape[3]}"
            )
        embedding = self.embed(image.to(self.device, self.dtype))
        # A length in half precision is off by up to four thousandths.
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        norm = embedding.norm(dim=1, keepdim=True)
        if not bool((torch.isfinite(norm) & (norm > 0)).all()):
            raise InputError(f"{type(self).__name__} returned an embedding that is zero or not finite")
        unit: Tensor = embedding / norm
        return unit


class Engine(Protocol):
    """What a task may ask of the machine it trains on. A Lightning Fabric object is one; so is deocc's own."""

    @property
    def device(self) -> torch.device:
        """Where this process computes; batches and networks are there already."""

    @property
    def world_size(self) -> int:
        """Processes that train together, each on its share of a batch."""

    def backward(self, loss: Tensor, /) -> None:
        """Accumulate gradients: what a step calls in place of ``loss.backward()``."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the precision trained in; networks and losses run inside it, ``backward`` outside."""

    def all_gather(self, data: Tensor, /) -> Any:
        """``data`` of every process: (world_size, *shape), or ``data`` itself where there is one process."""


@dataclass(frozen=True)
class Training:
    """How long and how a task is trained: the part of a recipe that ``deocc.train.fit`` reads.

    Attributes:
        steps: optimisation steps in all.
        batch: images a step.
        seed: of everything random.
        precision: ``"32"`` or ``"bf16-mixed"``.
        workers: processes that load data; 0 loads in the training process.
        log_every, evaluate_every, checkpoint_every: steps between two log lines, evaluations, checkpoints.
        evaluate_images: held-out examples of an evaluation, evenly spaced over the data set.
    """

    steps: int = 10_000
    batch: int = 16
    seed: int = 0
    precision: str = "32"
    workers: int = 0
    log_every: int = 50
    evaluate_every: int = 1_000
    evaluate_images: int = 256
    checkpoint_every: int = 500


class Task(abc.ABC):
    """One training stage: it owns its networks, its optimizers and the step; ``deocc.train.fit`` owns the loop.

    The keys of :meth:`networks` and :meth:`optimizers` are names of attributes of the task: an engine that wraps
    networks (for many GPUs) puts the wrapped ones back under those names. So a step runs a network by calling
    ``self.<name>(...)``: not through its methods or submodules, and not through another reference to it.

    Networks and optimizers are the only state that outlives a step. What a step draws from the global random generators
    follows from the seed and the step's number, so a checkpoint needs nothing else.

    Attributes:
        best: the figure of :meth:`evaluate` that decides which weights are exported as the best, with ``-`` in front
            where lower is better; empty to export the last ones only.
    """

    best: ClassVar[str] = ""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    @abc.abstractmethod
    def training(self) -> Training:
        """How long and how this stage is trained."""

    @abc.abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Every module with state, frozen and averaged ones too: they are in the checkpoint."""

    @abc.abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Every optimizer: their state is in the checkpoint."""

    @abc.abstractmethod
    def dataset(self, faces: Any, *, train: bool) -> Dataset[Any]:
        """Turn packed faces (:class:`deocc.data.PackedFaces`) into examples, which the default collate batches.

        The dataset is map-style: it has ``__len__``, and ``__getitem__`` gives an example that depends on the index and
        the training seed alone, so that a resumed run sees what an uninterrupted one would have seen. When ``train``
        is True the indices never repeat and go beyond the length: index ``epoch * len + place``, in a shuffled order
        within each epoch, wants the face ``index % len``, augmented as (seed, index) says. Otherwise 0 <= index < len.

        A later stage's is also called before :meth:`start_from`, on a task that is thrown away, so that faces which it
        cannot use are refused before the first stage is trained.
        """

    @abc.abstractmethod
    def step(self, batch: Any, engine: Engine, index: int) -> Mapping[str, Tensor | float]:
        """Do training step number ``index`` (from 0) on a batch and return what is worth logging (no graph attached).

        Learning rates and other schedules follow from ``index``. The values are scalars and must be finite: a step that
        returns another one ends the training with its number.
        """

    def evaluate(self, batch: Any) -> Mapping[str, float]:
        """Figures of merit on a batch of held-out examples; higher or lower is better as the name says.

        Called, like :meth:`preview` and :meth:`exports`, without gradients and with every network in eval mode.
        """
        return {}

    def preview(self, batch: Any) -> Mapping[str, Tensor]:
        """Pictures of a fixed batch, label -> (N, 3, H, W) in [0, 1]: one row of a contact sheet for each label."""
        return {}

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What training has made: part -> state dict of that part's ``network``."""
        return {}

    def start_from(self, exports: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what the stage before this one exported; the first stage is asked only when training starts from
        weights of an earlier run."""
        return None


def check_images(image: Tensor) -> None:
    """Raise InputError unless ``image`` is (N, 3, H, W), floating point, finite and within [0, 1]."""
    if not isinstance(image, Tensor):
        raise InputError(f"images must be a torch.Tensor (N, 3, H, W), got {type(image).__name__}")
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise InputError(f"images must have shape (N, 3, H, W), got {tuple(image.shape)}")
    _check_values("images", image)


def check_occlusion(occlusion: Tensor, image: Tensor) -> None:
    """Raise InputError unless ``occlusion`` fits ``image``: (N, 1, H, W), floating point, finite, within [0, 1]."""
    if not isinstance(occlusion, Tensor):
        raise InputError(f"the occlusion must be a torch.Tensor (N, 1, H, W), got {type(occlusion).__name__}")
    wanted = (image.shape[0], 1, image.shape[2], image.shape[3])
    if tuple(occlusion.shape) != wanted:
        raise InputError(
            f"the occlusion must have shape {wanted} to fit images of shape {tuple(image.shape)}, "
            f"got {tuple(occlusion.shape)}"
        )
    _check_values("the occlusion", occlusion)


def _check_values(what: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise InputError(f"{what} must be floating point in [0, 1], got {tensor.dtype} (divide uint8 by 255)")
    if tensor.numel() == 0:
        return
    low, high = (float(bound) for bound in tensor.detach().aminmax())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(f"{what} must be finite and within [0, 1], got values from {low:g} to {high:g}")
