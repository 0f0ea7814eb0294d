"""Feature networks that users bring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deocc import judge
from deocc.errors import UsageError, WeightsError
from deocc.judge.networks import Perceptual, Wrapped, load_networks
from deocc.losses import LPIPS


class Means(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float().mean(dim=(2, 3))


def test_lpips_measures_and_has_features(shared: Any) -> None:
    path = shared("perceptual/lpips_alexnet.safetensors")
    network = load_networks([path])[0]
    assert isinstance(network, Perceptual)
    assert (network.key, network.result.dimensions) == ("lpips_alexnet", 256)
    assert len(network.result.sha256) == 64
    one, other = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps, others = network.maps(one), network.maps(other)
        assert network.pooled(maps).shape == (2, 256)
        torch.testing.assert_close(network.distance(maps, others), LPIPS(path)(one, other))


def test_an_onnx_network_takes_the_side_it_is_told(shared: Any) -> None:
    path = shared("matchers/mobilefacenet_insightface.onnx")
    network = load_networks([f"{path}:112"])[0]
    assert not isinstance(network, Perceptual)
    assert (network.key, network.result.dimensions) == ("mobilefacenet_insightface", 128)
    assert network.pooled(network.maps(torch.rand(2, 3, 40, 50))).shape == (2, 128)
    with pytest.raises(WeightsError, match="299x299"):
        load_networks([path])


def test_a_network_is_known_by_its_side_and_its_code(shared: Any) -> None:
    path = shared("matchers/mobilefacenet_insightface.onnx")
    network = load_networks([f"{path}:112"])[0]
    before = network.identity
    network.result = dataclasses.replace(network.result, features="resized to 299x299")
    assert network.identity != before
    one = load_networks([Means()])[0].identity
    assert one == load_networks([Means()])[0].identity
    assert len(one) == 5
    path = shared("perceptual/lpips_alexnet.safetensors")
    assert load_networks([path], "meta")[0].identity != load_networks([path])[0].identity


def test_a_module_is_asked_where_it_lies() -> None:
    class Elsewhere(Means):
        """On the meta device, where what comes from the CPU is refused."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3, device="meta"))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) * self.weight

    network = Wrapped(Elsewhere(), "")
    assert network.pooled(network.maps(torch.rand(2, 3, 8, 8))).shape == (2, 3)


def test_quality_with_lpips(shared: Any, packed: Any, oracle: Any, nothing: Any) -> None:
    path = shared("perceptual/lpips_alexnet.safetensors")
    report = judge.quality(
        packed, restorers=[oracle, nothing], recognizers=[], kinds=["n95"], resamples=0, features=[path], limit=8
    )
    assert report.quality is not None
    rows = {row.restorer: row.lpips["lpips_alexnet"].value for row in report.quality.rows}
    assert rows["Oracle"] == pytest.approx(0, abs=1e-5)
    assert rows["Nothing"] == rows[""] > 0.01  # type: ignore[operator]
    assert {one.network for one in report.quality.distributions} == {"lpips_alexnet"}
    assert report.networks[0].sha256


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("none.safetensors", WeightsError, "is missing"),
        ("none.pt", UsageError, "must be a .safetensors or an .onnx file"),
        ("bad.onnx", WeightsError, "is not an ONNX network"),
        ("bad.safetensors", WeightsError, "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, error: type[Exception], sentence: str) -> None:
    for bad in ("bad.onnx", "bad.safetensors"):
        (tmp_path / bad).write_bytes(b"bad")
    with pytest.raises(error, match=sentence):
        load_networks([tmp_path / name])


def test_bad_modules() -> None:
    with pytest.raises(UsageError, match=r"into \(1, D\), Identity does not"):
        load_networks([nn.Identity()])
    with pytest.raises(UsageError, match="two feature networks are called 'Means'"):
        load_networks([Means(), Means()])
