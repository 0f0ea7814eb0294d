"""How good a restoration is, and whether it helps.

``deocc.metrics`` itself has PSNR and SSIM, over the whole image or inside the hole alone, and the occlusion's overlap.
These take tensors in deocc's conventions (images RGB float in [0, 1], (N, 3, H, W); occlusions (N, 1, H, W), 1 =
occluded) and return one float64 figure an image, shape (N,), so that a report can show each and average as it likes.
A figure that is not defined for an image (a hole without a pixel) is NaN: average with ``nanmean``.

:mod:`deocc.metrics.verification`, :mod:`deocc.metrics.retrieval` and :mod:`deocc.metrics.features` take the scores and
features of whole data sets.
"""

from deocc.metrics.image import occlusion_iou, psnr, ssim

__all__ = ["occlusion_iou", "psnr", "ssim"]
