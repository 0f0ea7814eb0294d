"""The restorer part."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc import method
from deocc_canet.config import Config
from deocc_canet.network import Network, settle, soften

_AT_ONCE = 2**18
"""Pixels that a CPU restores at once. The maps of more are larger than what malloc keeps (32 MiB with glibc), and every
one of them would be written to fresh pages: up to four times slower."""


class Restorer(method.Restorer):
    """Completes aligned faces; finds the occlusion itself when none is given.

    Made for crops of ``config.size`` and ``config.zoom``; other sizes work, with less to see at the edges of what was
    learnt.

    A pixel whose occlusion is above ``config.threshold`` is completed as a whole; the completer sees less of it the
    more it is occluded (:func:`deocc_canet.network.soften`). Below it, as in a faint shadow, it stays as it is.
    ``Restored.occlusion`` says which are completed: 0 or 1. Small gaps in a found occlusion are closed.

    Extras, k being a selected decoder layer, whose maps have H / 2^(k-1) rows (rounded up) and so many columns:

    - ``layer-k`` (N, 3, h, w): the whole face as that layer draws it; ``layer-1`` is what is restored with;
    - ``dense-field-k`` (N, 2, h, w): u and v in [0, 1] of the face that it sees, 0 beside it (section 3.3);
    - ``attention`` (N, 3, H, W): alpha of layer 1, 1 where what is drawn shows (eq. 7);
    - ``probability`` (N, 1, H, W): of being occluded, when the occlusion was found.
    """

    finds_occlusion = True
    needs_weights = True
    network: Network

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.crop_size, self.crop_zoom = config.size, config.zoom
        self.network = Network(config.architecture)
        depth = max(len(config.architecture.widths), len(config.architecture.finder_widths))
        self._multiple = 2**depth

    @torch.no_grad()
    def restore(self, image: Tensor, occlusion: Tensor | None) -> method.Restored:
        """See :meth:`deocc.method.Restorer.restore`."""
        if image.shape[0] == 0:
            # Shuffling pixels knows no empty batch: one face is restored, and none kept.
            some = (None if value is None else value.new_zeros((1, *value.shape[1:])) for value in (image, occlusion))
            one = self.restore(*some)
            extras = {name: value[:0] for name, value in one.extras.items()}
            return method.Restored(one.image[:0], one.occlusion[:0], extras)
        height, width = image.shape[2:]
        at_once = max(1, _AT_ONCE // (height * width)) if image.device.type == "cpu" else len(image)
        images = image.float().split(at_once)
        occlusions = itertools.repeat(None) if occlusion is None else occlusion.split(at_once)
        parts = [self._restore(*part) for part in zip(images, occlusions, strict=False)]
        if len(parts) == 1:
            return parts[0]
        return method.Restored(
            torch.cat([part.image for part in parts]),
            torch.cat([part.occlusion for part in parts]),
            {name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
        )

    def _restore(self, image: Tensor, occlusion: Tensor | None) -> method.Restored:
        height, width = image.shape[2:]
        padding = (0, -width % self._multiple, 0, -height % self._multiple)
        padded = F.pad(image, padding, mode="replicate").contiguous(memory_format=torch.channels_last)
        extras = {}
        if occlusion is None:
            probability = torch.sigmoid(self.network.finder(padded))
            hidden = settle(probability, self.config)
            extras["probability"] = probability[..., :height, :width]
        else:
            hidden = soften(F.pad(occlusion, padding, mode="replicate"), self.config)
        outputs = self.network.completer(padded, hidden)
        for layer, output in zip(self.network.completer.layers, outputs, strict=True):
            rows, columns = -(-height // 2 ** (layer - 1)), -(-width // 2 ** (layer - 1))
            extras[f"layer-{layer}"] = output.image[..., :rows, :columns].clamp(0, 1)
            if output.field is not None:
                extras[f"dense-field-{layer}"] = output.field[..., :rows, :columns].clamp(0, 1)
        if outputs[0].attention is not None:
            extras["attention"] = torch.sigmoid(outputs[0].attention)[..., :height, :width]
        return method.Restored(extras["layer-1"], (hidden[..., :height, :width] > 0).float(), extras)
