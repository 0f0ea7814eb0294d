"""How good a restoration is: PSNR and SSIM, over the whole image or inside the hole alone, and the occlusion's overlap.

Everything takes tensors in deocc's conventions (images RGB float in [0, 1], (N, 3, H, W); occlusions (N, 1, H, W), 1 =
occluded) and returns one float64 figure an image, shape (N,), so that a report can show each and average as it likes.
A figure that is not defined for an image (a hole without a pixel) is NaN: average with ``nanmean``.
"""

from deocc.metrics.image import occlusion_iou, psnr, ssim

__all__ = ["occlusion_iou", "psnr", "ssim"]
