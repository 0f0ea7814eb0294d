"""The two algorithms: they are cv2.inpaint, and they stand what the contract's checks do not try."""

import cv2
import numpy as np
import pytest
import torch

import deocc
from deocc.errors import UsageError

METHODS = {"opencv-telea": cv2.INPAINT_TELEA, "opencv-ns": cv2.INPAINT_NS}


def face(size=48, seed=0):
    picture = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(picture, size=(size, size), mode="bilinear")


@pytest.mark.parametrize(("name", "flag"), METHODS.items())
def test_equals_cv2(name, flag):
    image, occlusion = face(), torch.zeros(1, 1, 48, 48)
    occlusion[..., 20:36, 10:40] = 1
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    wanted = cv2.inpaint(pixels, occlusion[0, 0].numpy().astype(np.uint8), 5.0, flag)
    got = deocc.restorer(name, radius=5)(image, occlusion).image
    hole = occlusion[0, 0] == 1
    assert np.array_equal((got[0].permute(1, 2, 0)[hole] * 255).round().numpy(), wanted[hole.numpy()])


@pytest.mark.parametrize("name", METHODS)
def test_smooth_picture_is_continued(name):
    ramp = torch.linspace(0.2, 0.8, 48).expand(1, 3, 48, 48)
    occlusion = torch.zeros(1, 1, 48, 48)
    occlusion[..., 16:32, 16:32] = 1
    occluded = torch.where(occlusion == 1, torch.ones(()), ramp)
    restored = deocc.restorer(name)(occluded, occlusion).image
    assert float((restored - ramp).abs().max()) < 0.12


@pytest.mark.parametrize("name", METHODS)
def test_hidden_pixels_do_not_matter(name):
    occlusion = torch.zeros(1, 1, 48, 48)
    occlusion[..., 10:30, 10:30] = 1
    restorer = deocc.restorer(name)
    one = restorer(face(), occlusion).image
    two = restorer(torch.where(occlusion == 1, torch.zeros(()), face()), occlusion).image
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (17, 1), (33, 17)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_any_size_and_any_occlusion(name, shape, value):
    image = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    restored = deocc.restorer(name)(image, torch.full((2, 1, *shape), value)).image
    assert restored.shape == image.shape
    assert torch.equal(restored, restored.clamp(0, 1))
    if value == 0:
        assert torch.equal(restored, image)


@pytest.mark.parametrize("radius", [0, -1, 101, float("nan")])
def test_senseless_radius_is_refused(radius):
    with pytest.raises(UsageError, match="radius must be above 0 and at most 100"):
        deocc.restorer("opencv-ns", radius=radius)


def test_needs_the_occlusion():
    with pytest.raises(UsageError, match="cannot find the occlusion itself"):
        deocc.restorer("opencv-telea")(face())
