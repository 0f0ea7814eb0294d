"""PSNR, SSIM and intersection over union against computations written out by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from deocc.errors import InputError, MissingDependencyError, UsageError
from deocc.metrics import occlusion_iou, psnr, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 24, 20, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


@pytest.fixture
def hole() -> torch.Tensor:
    where = torch.zeros(3, 1, 24, 20)
    where[0, :, 10:20, 4:15] = 1
    where[1, :, :, :] = 1
    return where


def _ssim_by_hand(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The local map of one channel: every window a plain weighted sum over the reflected picture."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    a, b = (np.pad(x.astype(np.float64), 5, mode="reflect") for x in (a, b))
    result = np.empty((a.shape[0] - 10, a.shape[1] - 10))
    for y in range(result.shape[0]):
        for x in range(result.shape[1]):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            result[y, x] = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
            result[y, x] /= (mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)
    return result


def test_psnr_whole_and_hole(pair: tuple[torch.Tensor, torch.Tensor], hole: torch.Tensor) -> None:
    a, b = (x.double().numpy() for x in pair)
    whole = [10 * math.log10(1 / ((a[i] - b[i]) ** 2).mean()) for i in range(3)]
    assert psnr(*pair).tolist() == pytest.approx(whole, rel=1e-9)
    inside = psnr(*pair, where=hole)
    assert inside.dtype == torch.float64
    cut = ((a - b) ** 2)[0, :, 10:20, 4:15].mean()
    assert inside[0].item() == pytest.approx(10 * math.log10(1 / cut), rel=1e-9)
    assert inside[1].item() == pytest.approx(whole[1], rel=1e-9)
    assert math.isnan(inside[2]), "an empty hole has no figure"
    assert psnr(pair[0], pair[0])[0] == math.inf


def test_psnr_equals_torchmetrics(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    theirs = functional.peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(*pair).float(), theirs)


def test_ssim_whole_and_hole(pair: tuple[torch.Tensor, torch.Tensor], hole: torch.Tensor) -> None:
    pytest.importorskip("torchmetrics")
    a, b = (x.numpy() for x in pair)
    local = np.stack([np.mean([_ssim_by_hand(a[i, c], b[i, c]) for c in range(3)], axis=0) for i in range(3)])
    assert ssim(*pair).tolist() == pytest.approx(local.mean(axis=(1, 2)).tolist(), abs=1e-7)
    inside = ssim(*pair, where=hole)
    assert inside[0].item() == pytest.approx(local[0, 10:20, 4:15].mean(), abs=1e-7)
    assert inside[1].item() == pytest.approx(local[1].mean(), abs=1e-7)
    assert math.isnan(inside[2])
    assert ssim(pair[0], pair[0]).tolist() == pytest.approx([1.0] * 3)


def test_soft_hole_counts_in_part(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    where = torch.zeros(3, 1, 24, 20)
    where[..., 0, 0], where[..., 0, 1] = 1.0, 0.5
    error = ((pair[0].double() - pair[1].double()) ** 2).mean(1)
    expected = (error[:, 0, 0] + 0.5 * error[:, 0, 1]) / 1.5
    torch.testing.assert_close(psnr(*pair, where=where), -10 * expected.log10())


def test_iou() -> None:
    found = torch.zeros(3, 1, 4, 4)
    true = torch.zeros(3, 1, 4, 4)
    found[0, :, :2], true[0, :, 1:3] = 0.9, 1.0
    true[1] = 1.0
    values = occlusion_iou(found, true)
    assert values[:2].tolist() == pytest.approx([1 / 3, 0.0])
    assert math.isnan(values[2]), "nothing there and nothing found"
    assert occlusion_iou(found, true, threshold=0.95)[0] == 0.0


def test_empty_batch() -> None:
    nothing = torch.zeros(0, 3, 16, 16)
    assert psnr(nothing, nothing).shape == (0,)
    assert occlusion_iou(nothing[:, :1], nothing[:, :1]).shape == (0,)
    pytest.importorskip("torchmetrics")
    assert ssim(nothing, nothing).shape == (0,)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_refuses(measure, pair: tuple[torch.Tensor, torch.Tensor], hole: torch.Tensor) -> None:
    a, b = pair
    for wrong in (
        (a, b[:2]),
        (a, b[:, :, :5]),
        (a * 255, b),
        (a, b.mul(255).byte()),
        (a * float("nan"), b),
        (a.numpy(), b),
        (a, b, hole[:2]),
        (a, b, hole * 2),
    ):
        with pytest.raises(InputError):
            measure(*wrong)


def test_refuses_small_images_and_thresholds() -> None:
    small = torch.zeros(1, 3, 10, 10)
    with pytest.raises(InputError, match="at least 11x11"):
        ssim(small, small)
    with pytest.raises(UsageError, match="between 0 and 1"):
        occlusion_iou(small[:, :1], small[:, :1], threshold=1.5)
    with pytest.raises(InputError):
        occlusion_iou(small, small)


def test_missing_torchmetrics_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    image = torch.zeros(1, 3, 16, 16)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deocc\[eval\]'"):
        ssim(image, image)
