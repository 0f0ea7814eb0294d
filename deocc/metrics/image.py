"""PSNR, SSIM and intersection over union, one figure an image."""

from __future__ import annotations

import torch
from torch import Tensor

from deocc.errors import InputError, MissingDependencyError, UsageError
from deocc.method import check_images, check_occlusion

SSIM_WINDOW = 11
"""Side in pixels of the Gaussian window (standard deviation 1.5) that SSIM compares through."""


@torch.no_grad()
def psnr(image: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, data range 1.0, mean squared error over the three channels.

    Args:
        image, target: (N, 3, H, W) float in [0, 1].
        where: (N, 1, H, W) float in [0, 1], or None for the whole image. The hole is every pixel above 0; each counts
            with its weight, so a soft edge counts in part.

    Returns:
        (N,) float64; infinite where the two are equal, NaN where the hole is empty.

    Raises:
        InputError: a shape, dtype or value that does not fit.
    """
    _check_pair(image, target, where)
    error = (image.double() - target.double()).square().mean(dim=1, keepdim=True)
    return -10.0 * torch.log10(_mean(error, where))


@torch.no_grad()
def ssim(image: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al., IEEE TIP 2004), data range 1.0, k1 = 0.01, k2 = 0.03.

    The local map comes from torchmetrics: an 11x11 Gaussian window of standard deviation 1.5, each channel by itself,
    the border reflected. The figure is the map's mean over channels and pixels; with ``where``, over the pixels of the
    hole alone, each with its weight. A window centred in the hole reaches up to five pixels out of it.

    Args:
        image, target: (N, 3, H, W) float in [0, 1], at least 11 pixels a side.
        where: (N, 1, H, W) float in [0, 1], or None for the whole image.

    Returns:
        (N,) float64 in [-1, 1], 1 where the two are equal; NaN where the hole is empty.

    Raises:
        InputError: a shape, dtype or value that does not fit.
        MissingDependencyError: torchmetrics is not installed.
    """
    _check_pair(image, target, where)
    if min(image.shape[2:]) < SSIM_WINDOW:
        raise InputError(
            f"SSIM wants images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {image.shape[2]}x{image.shape[3]}"
        )
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise MissingDependencyError(
            "SSIM needs torchmetrics, which is not installed: pip install 'deocc[eval]'"
        ) from error
    if image.shape[0] == 0:
        return image.new_zeros(0, dtype=torch.float64)
    # float64: the variances are differences of nearly equal numbers.
    _, local = structural_similarity_index_measure(
        image.double(), target.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    return _mean(local.mean(dim=1, keepdim=True), where)


@torch.no_grad()
def occlusion_iou(found: Tensor, true: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of two occlusions, each cut at ``threshold`` (a pixel above it is occluded).

    Args:
        found, true: (N, 1, H, W) float in [0, 1], 1 = occluded.
        threshold: between 0 and 1.

    Returns:
        (N,) float64 in [0, 1]; NaN where both are empty.

    Raises:
        InputError: a shape, dtype or value that does not fit.
        UsageError: a threshold outside [0, 1].
    """
    if not 0.0 <= threshold <= 1.0:
        raise UsageError(f"the threshold must be between 0 and 1, got {threshold:g}")
    for name, occlusion in (("found", found), ("true", true)):
        if not isinstance(occlusion, Tensor):
            raise InputError(f"the {name} occlusion must be a torch.Tensor, got {type(occlusion).__name__}")
        if occlusion.ndim != 4 or occlusion.shape[1] != 1 or 0 in occlusion.shape[2:]:
            raise InputError(f"the {name} occlusion must have shape (N, 1, H, W), got {tuple(occlusion.shape)}")
    check_occlusion(true, found)
    check_occlusion(found, true)
    a, b = (occlusion.flatten(1) > threshold for occlusion in (found, true))
    return (a & b).sum(1).double() / (a | b).sum(1).double()


def _mean(values: Tensor, where: Tensor | None) -> Tensor:
    """(N, 1, H, W) -> (N,): the mean over pixels, weighted by ``where``; NaN where the weights are all zero."""
    if where is None:
        return values.flatten(1).mean(1)
    weights = where.to(values)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def _check_pair(image: Tensor, target: Tensor, where: Tensor | None) -> None:
    check_images(image)
    check_images(target)
    if image.shape != target.shape:
        raise InputError(
            f"the image and its target must have one shape, got {tuple(image.shape)} and {tuple(target.shape)}"
        )
    if where is not None:
        check_occlusion(where, image)
