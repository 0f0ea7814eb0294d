from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deocc.errors import InputError
from deocc.ops import backends, composite, composite_uint8
from deocc.ops.reference import composite as reference
from deocc.testing.operators import DTYPES, use_backend

BACKENDS = [name for name, state in backends("composite").items() if state.available]
BYTE_BACKENDS = [name for name, state in backends("composite_uint8").items() if state.available]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_visible_pixels_are_bit_identical(backend: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    with use_backend(backend) as device:
        image = torch.rand(2, 3, 33, 31).to(device, dtype, memory_format=memory_format)
        image[0, 0, :8, :8] = -0.0
        fill = torch.full_like(image, torch.nan)
        occlusion = torch.zeros(2, 1, 33, 31).to(image)
        occlusion[:, :, 10:20, 10:20] = 1
        fill[:, :, 10:20, 10:20] = 0.1
        image[:, :, 10:20, 10:20] = torch.inf
        result = composite(image, fill, occlusion)
    wanted = torch.where(occlusion == 1, fill, image)
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(result.contiguous().view(integer), wanted.contiguous().view(integer))
    assert result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_by_a_hard_occlusion_is_that_of_the_formula(backend: str) -> None:
    with use_backend(backend) as device:
        image, fill = torch.rand(2, 2, 3, 4, 5, device=device)
        occlusion = torch.rand(2, 1, 4, 5, device=device).round().requires_grad_()
        composite(image, fill, occlusion).sum().backward()
    torch.testing.assert_close(occlusion.grad, (fill - image).sum(1, keepdim=True))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_the_gradients_that_are_asked_for(wanted: tuple[int, ...]) -> None:
    inputs = [torch.rand(1, 3, 4, 5), torch.rand(1, 3, 4, 5), torch.rand(1, 1, 4, 5)]
    for index in wanted:
        inputs[index].requires_grad_()
    composite(*inputs).square().sum().backward()
    assert [value.grad is not None for value in inputs] == [index in wanted for index in range(3)]
    got = [inputs[index].grad for index in wanted]
    again = torch.autograd.grad(reference.composite(*inputs).square().sum(), [inputs[index] for index in wanted])
    torch.testing.assert_close(got, list(again))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_are_rounded_once(dtype: torch.dtype) -> None:
    """By the picture alone too, which is the usual case and needs no kernel."""
    image, fill = torch.rand(2, 1, 3, 16, 16).to(dtype).requires_grad_().unbind(0)
    occlusion, up = (torch.rand(1, 1, 16, 16) / 100).to(dtype), torch.randn(1, 3, 16, 16).to(dtype)
    by_image, by_fill = torch.autograd.grad(composite(image, fill, occlusion), (image, fill), up)
    assert torch.equal(by_image, ((1 - occlusion.float()) * up.float()).to(dtype))
    assert torch.equal(by_fill, (occlusion.float() * up.float()).to(dtype))


def test_gradient_penalty() -> None:
    image, fill = torch.rand(2, 2, 3, 4, 5)
    occlusion = torch.rand(2, 1, 4, 5).requires_grad_()
    penalties = []
    for function in (composite, reference.composite):
        (first,) = torch.autograd.grad(function(image, fill, occlusion).square().sum(), occlusion, create_graph=True)
        penalties.append(torch.autograd.grad(first.square().sum(), occlusion)[0])
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_promote_inside_and_outside_autocast(backend: str) -> None:
    with use_backend(backend) as device:
        image, occlusion = torch.rand(1, 3, 8, 8, device=device), torch.rand(1, 1, 8, 8, device=device)
        fill = torch.rand(1, 3, 8, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
        outside = composite(image, fill, occlusion)
        with torch.autocast(device, dtype=torch.bfloat16):
            inside = composite(image, fill, occlusion)
        inside.sum().backward()
    assert inside.dtype == outside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert fill.grad is not None
    assert fill.grad.dtype == torch.bfloat16


@pytest.mark.slow
def test_inductor() -> None:
    image, fill, occlusion = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.rand(2, 1, 16, 16)
    compiled = torch.compile(lambda *inputs: composite(*inputs) * 2, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(image, fill, occlusion), composite(image, fill, occlusion) * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "image must be a torch.Tensor, got NoneType"),
        ({"image": torch.zeros(3, 4, 5)}, r"image must have shape \(N, C, H, W\), got \(3, 4, 5\)"),
        ({"fill": torch.zeros(1, 3, 4, 6)}, r"fill must have the image's shape \(1, 3, 4, 5\), got \(1, 3, 4, 6\)"),
        ({"occlusion": torch.zeros(1, 3, 4, 5)}, r"occlusion must have shape \(1, 1, 4, 5\)"),
        ({"occlusion": torch.zeros(1, 1, 4, 5, dtype=torch.bool)}, "occlusion must be float32, .* got torch.bool"),
        ({"fill": torch.zeros(1, 3, 4, 5, device="meta")}, "fill must be on the image's device cpu, got meta"),
        ({"fill": torch.zeros(1, 3, 4, 5).to_sparse()}, "fill must be a dense tensor, got torch.sparse_coo"),
    ],
)
def test_bad_input_is_one_sentence(change: dict[str, object], message: str) -> None:
    inputs = {"image": torch.zeros(1, 3, 4, 5), "fill": torch.zeros(1, 3, 4, 5), "occlusion": torch.zeros(1, 1, 4, 5)}
    with pytest.raises(InputError, match=message):
        composite(**(inputs | change))  # type: ignore[arg-type]


SHAPES = st.lists(st.integers(0, 3), min_size=0, max_size=5).map(tuple)
ANY_DTYPE = st.sampled_from([*DTYPES, torch.uint8, torch.int64, torch.bool, torch.complex64])


@given(st.lists(st.tuples(SHAPES, ANY_DTYPE), min_size=3, max_size=3))
@settings(max_examples=200, deadline=None)
def test_nothing_crashes_the_interpreter(drawn: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    tensors = [torch.ones(shape).to(dtype) for shape, dtype in drawn]
    for function in (composite, torch.ops.deocc.composite):  # the kernels check for themselves
        with contextlib.suppress(InputError, RuntimeError):
            function(*tensors)
    with contextlib.suppress(RuntimeError):
        torch.ops.deocc.composite_backward(tensors[0], *tensors)


@pytest.mark.parametrize("backend", BYTE_BACKENDS)
def test_bytes_are_the_rounded_quotient_everywhere(backend: str) -> None:
    one, other = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image, fill = np.stack([one, other, one], 2), np.stack([other, one, other], 2)
    with use_backend(backend):
        for weight in range(256):
            occlusion = np.full(one.shape, weight, np.uint8)
            wanted = (weight * fill.astype(np.int64) + (255 - weight) * image.astype(np.int64) + 127) // 255
            np.testing.assert_array_equal(composite_uint8(image, fill, occlusion), wanted)


@pytest.mark.parametrize("backend", BYTE_BACKENDS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (1, 1), (37, 113), (300, 250)])
def test_bytes_of_any_size_and_stride(backend: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, fill = rng.integers(0, 256, (2, shape[1], shape[0], 3), dtype=np.uint8).transpose(0, 2, 1, 3)
    occlusion = rng.integers(0, 256, shape[::-1], dtype=np.uint8).T
    before = image.copy()
    with use_backend(backend):
        result = composite_uint8(image, fill, occlusion)
    np.testing.assert_array_equal(result, reference.composite_uint8(image, fill, occlusion))
    np.testing.assert_array_equal(image, before)
    assert result.dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": [1, 2]}, "image must be a uint8 numpy.ndarray, got list"),
        ({"fill": np.zeros((4, 5, 3))}, "fill must be a uint8 numpy.ndarray, got float64"),
        ({"image": np.zeros((4, 5), np.uint8)}, r"image must have shape \(H, W, 3\), got \(4, 5\)"),
        ({"image": np.zeros((4, 5, 4), np.uint8)}, r"image must have shape \(H, W, 3\), got \(4, 5, 4\)"),
        ({"fill": np.zeros((4, 6, 3), np.uint8)}, r"fill must have shape \(4, 5, 3\), got \(4, 6, 3\)"),
        ({"occlusion": np.zeros((4, 5, 3), np.uint8)}, r"occlusion must have shape \(4, 5\), got \(4, 5, 3\)"),
    ],
)
def test_bad_bytes_are_one_sentence(change: dict[str, object], message: str) -> None:
    inputs = {
        "image": np.zeros((4, 5, 3), np.uint8),
        "fill": np.zeros((4, 5, 3), np.uint8),
        "occlusion": np.zeros((4, 5), np.uint8),
    }
    with pytest.raises(InputError, match=message):
        composite_uint8(**(inputs | change))  # type: ignore[arg-type]
