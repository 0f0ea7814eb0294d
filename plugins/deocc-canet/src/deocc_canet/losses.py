"""The losses of section 3.4, each on images of one decoder layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deocc.errors import UsageError
from deocc.method import Engine, Recognizer
from deocc.ops import area_downsample


def field_loss(predicted: Tensor, field: Tensor) -> Tensor:
    """Mean over the pixels of the distance between (u, v) and the true one (eq. 9): (N, 2, h, w) twice -> scalar."""
    # The square root has no derivative at 0.
    return ((predicted - field).square().sum(1) + 1e-8).sqrt().mean()


def gate_loss(logits: Tensor, hole: Tensor) -> Tensor:
    """Cross-entropy between the fusion's alpha and the share of each pixel that is occluded: (N, C, h, w) logits and
    (N, 1, h, w) -> scalar."""
    return F.binary_cross_entropy_with_logits(logits, hole.expand_as(logits))


def edges_loss(error: Tensor, hole: Tensor) -> Tensor:
    """Mean absolute difference between neighbours' errors: (N, 3, H, W) and (N, 1, H, W) -> scalar."""
    across, down = error.diff(dim=3).abs() * hole[..., 1:], error.diff(dim=2).abs() * hole[..., 1:, :]
    return (across.sum() + down.sum()) / (3 * hole.sum()).clamp(min=1)


def patch_mean(verdict: Tensor, completed: Tensor) -> Tensor:
    """Mean of a discriminator's verdicts, each by how much of its patch was completed; 0 where nothing was.

    Patches that show the photo itself are no fakes, and would drown those that are.

    Args:
        verdict: (N, 1, h, w).
        completed: (N, 1, H, W) of 0 and 1.
    """
    share = area_downsample(completed, tuple(verdict.shape[2:]))
    return (verdict * share).sum() / share.sum().clamp(min=1e-6)


def finder_loss(logits: Tensor, occlusion: Tensor) -> Tensor:
    """Cross-entropy and soft Dice: the one calibrates, the other keeps small occlusions from being ignored."""
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * occlusion).sum((1, 2, 3)) + 1
    dice = overlap / (probability.sum((1, 2, 3)) + occlusion.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, occlusion) + 0.2 * (1 - dice).mean()


def identity_losses(
    recognizer: Recognizer,
    image: Tensor,
    true: Tensor,
    zoom: float,
    engine: Engine,
    *,
    views: bool,
    layers: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """How far a recognizer tells a completed face from the true one: at its end, and on the way there.

    The first is the mean squared distance of unit embeddings (eq. 12), which is 2 - 2 cosine. The second is the same at
    every position of the maps that some of its layers give, averaged over these and summed over the layers (0 without
    any). Patterns that are on no face can please the embedding; in the maps they are errors.

    Args:
        recognizer: a differentiable one, on the images' device.
        image, true: (N, 3, h, w), the face completed and the true one.
        zoom: of these crops, see :class:`deocc.faces.Crop`.
        engine: whose precision is used.
        views: whether to look through a slight blur, from another place, angle and side for every face.
        layers: submodules of the recognizer's network, by name, each of which gives one tensor (N, C, ...).
    """
    count, device = len(image), image.device

    def spread_evenly(most: float, *shape: int) -> Tensor:
        return (
            most * (2 * torch.rand(count, *shape, device=device) - 1)
            if views
            else torch.zeros(count, *shape).to(device)
        )

    scale, angle = zoom / recognizer.crop_zoom * (1 + spread_evenly(0.09)), spread_evenly(0.15)
    side = torch.randint(2, (count,), device=device) * 2.0 - 1 if views else torch.ones(count, device=device)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    turn = torch.stack((side * cosine, -sine, side * sine, cosine), 1).view(count, 2, 2)
    theta = torch.cat((turn, spread_evenly(0.075, 2, 1)), 2)
    grid = F.affine_grid(theta, [count, 3, recognizer.crop_size, recognizer.crop_size], align_corners=False)

    def embed(faces: Tensor) -> tuple[Tensor, list[Tensor]]:
        if views:
            faces = F.avg_pool2d(faces, 3, 1, 1, count_include_pad=False)
        crops = F.grid_sample(faces, grid, mode="bilinear", padding_mode="border", align_corners=False)
        crops = crops.contiguous(memory_format=torch.channels_last)
        with engine.autocast(), _outputs(recognizer.network, layers) as outputs:
            embedding = recognizer(crops.clamp(0, 1))
        for name in layers:
            if not isinstance(outputs.get(name), Tensor):
                raise UsageError(f"the recognizer's layer {name} must give a tensor, got {outputs.get(name)!r:.60}")
        # A position where a map is zero has no direction, and with a smaller eps a gradient beyond all others.
        return F.normalize(embedding.float(), dim=1), [F.normalize(outputs[name].float(), eps=1e-3) for name in layers]

    with torch.no_grad():
        wanted, wanted_maps = embed(true)
    drawn, drawn_maps = embed(image)
    maps = [_distance(*pair) for pair in zip(drawn_maps, wanted_maps, strict=True)]
    return _distance(drawn, wanted), torch.stack(maps).sum() if maps else image.new_zeros(())


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().sum(1).mean()


@contextmanager
def _outputs(network: nn.Module | None, layers: Sequence[str]) -> Iterator[dict[str, object]]:
    """What submodules gave when the network was last run, by name; filled while the context lasts."""
    outputs: dict[str, object] = {}

    def keep(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            outputs[name] = output

        return module.register_forward_hook(hook)

    modules = {} if network is None else dict(network.named_modules())
    with ExitStack() as handles:
        for name in layers:
            handles.enter_context(keep(name, modules[name]))
        yield outputs
