"""The perceptual distance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deocc.errors import InputError, WeightsError
from deocc.losses import LPIPS, StyleLoss

SIZES = (3, 8, 8, 8, 8, 8)


def small_alexnet(path: Path) -> Path:
    torch.manual_seed(0)
    kernels = (11, 5, 3, 3, 3)
    tensors = {}
    for i, kernel in enumerate(kernels):
        tensors[f"conv{i}.weight"] = torch.randn(SIZES[i + 1], SIZES[i], kernel, kernel) / kernel
        tensors[f"conv{i}.bias"] = torch.zeros(SIZES[i + 1])
        tensors[f"lin{i}"] = torch.rand(SIZES[i + 1])
    save_file(tensors, path)
    return path


def test_zero_for_equal_images_and_gradients_for_others(tmp_path: Path) -> None:
    lpips = LPIPS(small_alexnet(tmp_path / "alex.safetensors"))
    image = torch.rand(2, 3, 64, 64)
    other = torch.rand(2, 3, 64, 64, requires_grad=True)
    assert torch.equal(lpips(image, image), torch.zeros(2))
    distance = lpips(image, other)
    assert distance.shape == (2,)
    assert (distance > 0).all()
    distance.sum().backward()
    assert other.grad is not None
    assert other.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


@pytest.mark.parametrize("network", ["alexnet", "vgg16"])
def test_grows_with_noise(shared, network: str) -> None:
    lpips = LPIPS(shared(f"perceptual/lpips_{network}.safetensors"))
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=64, mode="bicubic").clamp(0, 1)
    noise = torch.randn_like(image)
    distances = [float(lpips(image, (image + level * noise).clamp(0, 1))) for level in (0.02, 0.1, 0.4)]
    assert distances == sorted(distances)
    assert 0 < distances[0] < distances[2] < 2


def test_refuses_what_is_not_lpips(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        LPIPS(tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="AlexNet"):
        LPIPS(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "other"), [("conv2.bias", None), ("conv4.weight", "conv9.weight"), ("lin3", "linear")]
)
def test_refuses_names_that_are_not_lpips(tmp_path: Path, name: str, other: str | None) -> None:
    path = small_alexnet(tmp_path / "alex.safetensors")
    tensors = load_file(path)
    tensor = tensors.pop(name)
    save_file(tensors if other is None else {**tensors, other: tensor}, path)
    with pytest.raises(WeightsError, match=r"wanted conv0\.\.conv4 \(AlexNet\).*\.bias of each.*, got conv0\.bias, "):
        LPIPS(path)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("conv0.weight", (8, 1, 11, 11), r"conv0.weight of shape \(any, 3, 11, 11\), got \(8, 1, 11, 11\)"),
        ("conv2.weight", (8,), r"conv2.weight of shape \(any, [0-9]+, any, any\), got \(8,\)"),
        ("conv3.weight", (8, 5, 3, 2), r"conv3.weight of shape \(any, [0-9]+, 3, 3\)"),
        ("conv1.bias", (3,), r"conv1.bias of shape \([0-9]+\), got \(3,\)"),
        ("lin4", (1, 3, 1, 1), r"lin4 of shape \(1, [0-9]+, 1, 1\), got \(1, 3, 1, 1\)"),
    ],
)
def test_refuses_shapes_that_do_not_fit(tmp_path: Path, name: str, shape: tuple[int, ...], wanted: str) -> None:
    path = small_alexnet(tmp_path / "alex.safetensors")
    save_file({**load_file(path), name: torch.zeros(shape)}, path)
    with pytest.raises(WeightsError, match=wanted):
        LPIPS(path)


def test_style_is_the_difference_of_gram_matrices(tmp_path: Path) -> None:
    """Canet eq. 11, term by term over two maps."""
    path = small_alexnet(tmp_path / "alex.safetensors")
    style = StyleLoss(path, maps=2)
    generator = torch.Generator().manual_seed(0)
    image, other = torch.rand(2, 3, 3, 64, 64, generator=generator)
    wanted = 0.0
    for a, b in zip(LPIPS(path).features(image, 2), LPIPS(path).features(other, 2), strict=True):
        n, c, h, w = a.shape
        for i in range(n):
            grams = [x[i].reshape(c, h * w) @ x[i].reshape(c, h * w).T / (c * h * w) for x in (a, b)]
            wanted += float((grams[0] - grams[1]).abs().sum()) / c**2 / n / 2
    assert float(style(image, other)) == pytest.approx(wanted, rel=1e-4)
    assert float(style(image, image)) == 0
    image.requires_grad_()
    style(image, other).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    with pytest.raises(InputError, match="1 to 5, got 6"):
        StyleLoss(path, maps=6)


def test_style_in_half_precision_does_not_overflow(tmp_path: Path) -> None:
    style = StyleLoss(small_alexnet(tmp_path / "alex.safetensors"), maps=1)
    image, other = torch.rand(2, 2, 3, 128, 128)
    with torch.no_grad():
        style.network.convolutions[0].weight.mul_(6)
        whole = style(image, other)
        with torch.autocast("cpu", torch.float16):
            half = style(image, other)
    assert float(half) == pytest.approx(float(whole), rel=0.02)
