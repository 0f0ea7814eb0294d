"""The restorer part: the de-occlusion module G."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc import method
from deocc_distill.config import Config
from deocc_distill.network import Deocclusion, settle


class Restorer(method.Restorer):
    """Completes aligned faces with contextual attention; finds the occlusion itself when none is given.

    A pixel of a given occlusion that is above 0 is completed as a whole, since a partly covered pixel still carries
    the occluder's colour; a found occlusion is grown by ``config.margin`` pixels. Gradients flow to the image.

    Extras: ``coarse`` and ``refined`` (N, 3, H, W), the whole face as the two networks draw it; ``probability``
    (N, 1, H, W) of being occluded, when the occlusion was found.
    """

    finds_occlusion = True
    needs_weights = True
    network: Deocclusion

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.crop_size, self.crop_zoom = config.size, config.zoom
        self.network = Deocclusion(config.generator).to(memory_format=torch.channels_last)

    def restore(self, image: Tensor, occlusion: Tensor | None) -> method.Restored:
        """See :meth:`deocc.method.Restorer.restore`."""
        if image.shape[0] == 0:
            return method.Restored(image, image[:, :1] if occlusion is None else occlusion)
        height, width = image.shape[2:]
        multiple = self.network.multiple
        padding = (0, -width % multiple, 0, -height % multiple)
        padded = F.pad(image.float(), padding, mode="replicate").contiguous(memory_format=torch.channels_last)
        extras = {}
        if occlusion is None:
            logits = self.network.finder(padded)
            hole = settle(logits, self.config.margin)
            extras["probability"] = torch.sigmoid(logits)[..., :height, :width]
        else:
            hole = F.pad((occlusion > 0).float(), padding, mode="replicate")
        drawn = self.network.generator(padded, hole)
        extras |= {"coarse": drawn.coarse[..., :height, :width], "refined": drawn.refined[..., :height, :width]}
        return method.Restored(extras["refined"], hole[..., :height, :width], extras)
