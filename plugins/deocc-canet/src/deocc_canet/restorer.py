"""The restorer part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc import method
from deocc_canet.config import Config
from deocc_canet.network import Network, settle


class Restorer(method.Restorer):
    """Completes aligned faces; finds the occlusion itself when none is given.

    Trained on 128x128 crops of zoom 0.75; other sizes work, with less to see at the edges of what was learnt.

    A pixel of a given occlusion that is above 0 is completed as a whole, since a partly covered pixel still carries
    the occluder's colour; gaps in a found occlusion are closed, and it is grown by ``config.margin`` pixels.

    Extras: ``probability`` (N, 1, H, W), of being occluded, when the occlusion was found; ``drawn`` (N, 3, H, W), the
    whole face as the network draws it.
    """

    finds_occlusion = True
    needs_weights = True
    network: Network

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.network = Network(config.architecture)
        depth = max(len(config.architecture.widths), len(config.architecture.finder_widths))
        self._multiple = 2**depth

    @torch.no_grad()
    def restore(self, image: Tensor, occlusion: Tensor | None) -> method.Restored:
        """See :meth:`deocc.method.Restorer.restore`."""
        if image.shape[0] == 0:
            return method.Restored(image, image[:, :1] if occlusion is None else occlusion)
        height, width = image.shape[2:]
        image = image.float()
        padding = (0, -width % self._multiple, 0, -height % self._multiple)
        padded = F.pad(image, padding, mode="replicate")
        extras = {}
        if occlusion is None:
            logits = self.network.finder(padded)
            hole = settle(logits, self.config.closing, self.config.margin)
            extras["probability"] = torch.sigmoid(logits)[..., :height, :width]
        else:
            hole = F.pad((occlusion > 0).float(), padding, mode="replicate")
        drawn = self.network.completer(padded, hole)[..., :height, :width].clamp(0, 1)
        extras["drawn"] = drawn
        return method.Restored(drawn, hole[..., :height, :width], extras)
