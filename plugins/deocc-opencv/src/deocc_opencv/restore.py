"""``cv2.inpaint`` as a restorer."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

from deocc.method import Restored, Restorer


class Inpaint(Restorer):
    """An algorithm of ``cv2.inpaint``, image by image, in 8 bits.

    Every pixel that is occluded at all (occlusion > 0) is hidden from the algorithm; a partly occluded one is then
    mixed with what was made up for it, in proportion, as for every restorer.
    """

    flag: ClassVar[int]

    def restore(self, image: Tensor, occlusion: Tensor | None) -> Restored:
        """(N, 3, H, W) and (N, 1, H, W), any size -> the same sizes."""
        assert occlusion is not None  # Restorer.__call__ refuses it for one that cannot find the occlusion
        pixels = (image.detach().permute(0, 2, 3, 1) * 255).round().to("cpu", torch.uint8).numpy()
        hidden = (occlusion.detach()[:, 0] > 0).to("cpu", torch.uint8).numpy()
        filled = np.empty_like(pixels)
        for index, (face, mask) in enumerate(zip(pixels, hidden, strict=True)):
            filled[index] = cv2.inpaint(np.ascontiguousarray(face), mask, self.config.radius, self.flag)
        result = torch.from_numpy(filled).permute(0, 3, 1, 2).to(image.device, image.dtype) / 255
        return Restored(result, occlusion)


class Telea(Inpaint):
    """Fast marching inwards from the border (Telea 2004)."""

    flag = cv2.INPAINT_TELEA


class NavierStokes(Inpaint):
    """Continuing lines of equal brightness inwards (Bertalmio et al. 2001)."""

    flag = cv2.INPAINT_NS
