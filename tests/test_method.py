"""The contract's base classes refuse what does not fit, and keep what they promise for any plugin."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deocc.errors import InputError, PluginError, UsageError
from deocc.method import Method, Occluded, Occluder, Recognizer, Restored, Restorer, check_images, check_occlusion


class Constant(Restorer):
    """Paints everything, visible or not, in one value."""

    def __init__(self, value=0.25):
        super().__init__(None)
        self.value = value

    def restore(self, image, occlusion):
        return Restored(torch.full_like(image, self.value), occlusion, {"given": image})


class Finder(Constant):
    """Finds what is white."""

    finds_occlusion = True

    def restore(self, image, occlusion):
        found = (image.amin(1, keepdim=True) == 1).float() if occlusion is None else occlusion
        return Restored(torch.full_like(image, self.value), found)


class Repaint(Constant):
    redraws_face = True


class Pool(Recognizer):
    crop_size = 4

    def __init__(self):
        super().__init__(None)

    def embed(self, image):
        return image.mean((2, 3))


class Nothing(Occluder):
    def __init__(self):
        super().__init__(None)

    def occlude(self, image, seed):
        return Occluded(image, torch.zeros_like(image[:, :1]), ({"seed": seed},) * len(image))


IMAGE = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
HOLE = torch.zeros(2, 1, 4, 4)
HOLE[..., :2] = 1


def test_visible_pixels_stay_whatever_the_restorer_does():
    restored = Constant()(IMAGE, HOLE)
    assert torch.equal(restored.image[..., 2:], IMAGE[..., 2:])
    assert bool((restored.image[..., :2] == 0.25).all())
    assert torch.equal(restored.extras["given"], IMAGE)


def test_redrawn_faces_are_left_as_they_are():
    assert bool((Repaint()(IMAGE, HOLE).image == 0.25).all())


@pytest.mark.parametrize("value", [-1.0, 2.0])
def test_fill_is_clamped(value):
    restored = Constant(value)(IMAGE, HOLE).image
    assert bool((restored[..., :2] == min(max(value, 0), 1)).all())


def test_occlusion_is_found_or_asked_for():
    image = IMAGE.clone()
    image[:, :, 0] = 1
    restored = Finder()(image)
    assert bool((restored.image[:, :, 0] == 0.25).all())
    assert torch.equal(restored.image[:, :, 1:], image[:, :, 1:])
    with pytest.raises(UsageError, match="Constant cannot find the occlusion itself"):
        Constant()(image)


def test_embeddings_have_unit_length():
    assert torch.allclose(Pool()(IMAGE).norm(dim=1), torch.ones(2))
    with pytest.raises(InputError, match="Pool returned an embedding that is zero or not finite"):
        Pool()(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match="wants faces of 4x4 pixels, got 4x5"):
        Pool()(torch.zeros(1, 3, 4, 5))


BAD_IMAGES = {
    "images must be a torch.Tensor (N, 3, H, W), got ndarray": np.zeros((1, 3, 4, 4), np.float32),
    "images must be a torch.Tensor (N, 3, H, W), got NoneType": None,
    "images must have shape (N, 3, H, W), got (3, 4, 4)": torch.zeros(3, 4, 4),
    "images must have shape (N, 3, H, W), got (1, 1, 4, 4)": torch.zeros(1, 1, 4, 4),
    "images must have shape (N, 3, H, W), got (1, 3, 0, 4)": torch.zeros(1, 3, 0, 4),
    "images must be floating point in [0, 1], got torch.uint8": torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
    "images must be floating point in [0, 1], got torch.complex64": torch.zeros(1, 3, 4, 4, dtype=torch.complex64),
    "images must be finite and within [0, 1], got values from nan to nan": torch.full((1, 3, 4, 4), math.nan),
    "images must be finite and within [0, 1], got values from inf to inf": torch.full((1, 3, 4, 4), math.inf),
    "images must be finite and within [0, 1], got values from -1 to -1": torch.full((1, 3, 4, 4), -1.0),
    "images must be finite and within [0, 1], got values from 255 to 255": torch.full((1, 3, 4, 4), 255.0),
}


@pytest.mark.parametrize("sentence", BAD_IMAGES)
@pytest.mark.parametrize("call", [lambda x: Constant()(x, HOLE), Pool(), lambda x: Nothing()(x, 0)])
def test_bad_images_are_one_sentence(call, sentence):
    with pytest.raises(InputError) as error:
        call(BAD_IMAGES[sentence])
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("occlusion", "sentence"),
    [
        (np.zeros((2, 1, 4, 4)), "the occlusion must be a torch.Tensor (N, 1, H, W), got ndarray"),
        (
            torch.zeros(2, 3, 4, 4),
            "the occlusion must have shape (2, 1, 4, 4) to fit images of shape (2, 3, 4, 4), got",
        ),
        (torch.zeros(1, 1, 4, 4), "the occlusion must have shape (2, 1, 4, 4)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.bool), "the occlusion must be floating point in [0, 1], got torch.bool"),
        (torch.full((2, 1, 4, 4), math.nan), "the occlusion must be finite and within [0, 1]"),
        (torch.full((2, 1, 4, 4), 1.5), "the occlusion must be finite and within [0, 1], got values from 1.5 to 1.5"),
    ],
)
def test_bad_occlusions_are_one_sentence(occlusion, sentence):
    with pytest.raises(InputError) as error:
        Constant()(IMAGE, occlusion)
    assert str(error.value).startswith(sentence)


def test_one_nan_among_good_values_is_seen():
    image = IMAGE.clone()
    image[1, 2, 3, 3] = math.nan
    with pytest.raises(InputError, match="finite"):
        check_images(image)


dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool]
)
shapes = st.lists(st.integers(0, 5), max_size=5)
values = st.sampled_from([0.0, 0.5, 1.0, -0.1, 2.0, math.nan, math.inf])


@settings(deadline=None)
@given(shapes, dtypes, values, shapes, dtypes, values)
def test_any_tensors_are_taken_or_refused(shape, dtype, value, other_shape, other_dtype, other_value):
    image = torch.full(shape, value if dtype.is_floating_point else 1).to(dtype)
    hole = torch.full(other_shape, other_value if other_dtype.is_floating_point else 1).to(other_dtype)
    with contextlib.suppress(InputError):
        restored = Constant()(image, hole)
        assert restored.image.shape == image.shape
    with contextlib.suppress(InputError):
        check_images(image)
        check_occlusion(hole, image)
        assert image.is_floating_point()
        assert hole.shape == (image.shape[0], 1, *image.shape[2:])


def test_parts_are_resolved_when_asked_for():
    method = Method(api=1, name="mine", config="nowhere:Config", restorer="nowhere:R", tasks={"fit": "math:sin"})
    assert method.parts() == ("restorer",)
    with pytest.raises(PluginError, match="its restorer 'nowhere:R' cannot be imported \\(ModuleNotFoundError"):
        method.resolve("restorer")
    with pytest.raises(PluginError, match="its fit 'math:sin' is a builtin_function_or_method, not a class"):
        method.resolve("fit")
    with pytest.raises(UsageError, match="method 'mine' has no 'occluder'; it offers restorer, fit"):
        method.resolve("occluder")
    with pytest.raises(UsageError, match="has no 'rest'"):
        method.resolve("rest")
    assert Method(api=1, name="mine", config="collections:OrderedDict").resolve("config").__name__ == "OrderedDict"


def test_parts_without_a_network_compute_on_the_cpu():
    part = Pool()
    assert part.device == torch.device("cpu")
    assert part.to("meta") is part
    part.network = nn.Linear(1, 1)
    assert part.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("image", [torch.float64, torch.float16])
@pytest.mark.parametrize("occlusion", [torch.float32, torch.float64])
def test_a_restorer_is_handed_what_its_network_takes_and_gives_back_what_came(image, occlusion):
    seen = []

    class Learned(Restorer):
        network = torch.nn.Conv2d(4, 3, 1)

        def restore(self, image, occlusion):
            seen.append((image.dtype, occlusion.dtype))
            return Restored(torch.sigmoid(self.network(torch.cat((image, occlusion), 1))), occlusion)

    given, hole = torch.rand(1, 3, 8, 8).to(image), torch.zeros(1, 1, 8, 8, dtype=occlusion)
    hole[..., 4:] = 1
    restored = Learned(None)(given, hole)
    assert seen == [(torch.float32, torch.float32)]
    assert restored.image.dtype == restored.occlusion.dtype == image
    assert torch.equal(restored.image[..., :4], given[..., :4])


def test_embeddings_are_of_unit_length_in_half_precision_too():
    class Learned(Recognizer):
        network = torch.nn.Conv2d(3, 16, 1)

        def embed(self, image):
            return self.network(image).mean((2, 3))

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = Learned(None)(torch.rand(4, 3, 112, 112))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4), rtol=0, atol=1e-5)


def test_a_part_that_ends_the_process_is_broken_alone(tmp_path, monkeypatch):
    (tmp_path / "ends_the_process.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="its restorer 'ends_the_process:R' cannot be imported"):
        Method(api=1, name="mine", config="nowhere:Config", restorer="ends_the_process:R").resolve("restorer")
