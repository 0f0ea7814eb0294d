"""``deocc.ops.DualAttentionFusion`` and its parts against eager code: ``pytest bench/bench_dual_attention_fusion.py``.

The front is everything that reads the features: average, gate, projection. ``DEOCC_VECTOR=avx2`` measures narrower
vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc import ops
from deocc.testing.operators import SPECS

SHAPES = {"finest": (4, 64, 256, 256), "features": (4, 128, 128, 128)}
CASES = {case.name: case for case in SPECS["channel_attention_projection"].cases if case.name in SHAPES}
ORDERS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
HIDDEN = 32


class Eager(nn.Module):
    """As it is usually written: every equation of the paper is a layer, and the image is embedded at its full size."""

    def __init__(self, channels: int, reduction: int = 16, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // reduction, 1)
        self.up = nn.Conv2d(channels // reduction, channels, 1)
        self.project = nn.Conv2d(channels, 3, 1)
        self.embed = nn.Conv2d(3, 3, 1)
        self.attend = nn.Sequential(
            nn.Conv2d(6, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, 3, 3, padding=1),
        )

    def front(self, features: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(features, 1)))))
        return self.project(features * gate)

    def image(self, image: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(self.embed(image), size=tuple(size), mode="area")

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        restored, known = self.front(features), self.image(image, features.shape[2:])
        alpha = torch.sigmoid(self.attend(torch.cat((restored, known), 1)))
        return alpha * restored + (1 - alpha) * known


def networks(channels: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[ops.DualAttentionFusion, Eager]:
    """Both with the same weights."""
    torch.manual_seed(0)
    ours, theirs = ops.DualAttentionFusion(channels, hidden=HIDDEN), Eager(channels)
    state = theirs.state_dict()
    ours.load_state_dict({name: value.reshape(ours.state_dict()[name].shape) for name, value in state.items()})
    return ours.to(device, dtype), theirs.to(device, dtype)


def drawn(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32, order: str = "nchw") -> Tensor:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return value.to(device, dtype, memory_format=ORDERS[order])


def image_of(shape: Sequence[int], factor: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    return drawn(shape[0], 3, factor * shape[2], factor * shape[3], device=device, dtype=dtype)


def front_parameters(module: ops.DualAttentionFusion) -> list[Tensor]:
    layers = (module.down, module.up, module.project)
    return [value for layer in layers for value in (layer.weight, layer.bias)]


def front(module: ops.DualAttentionFusion, features: Tensor) -> Tensor:
    return ops.channel_attention_projection(features, *front_parameters(module))


def gated(features: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(features * gate[:, :, None, None], weight[:, :, None, None], bias)


def blended(logits: Tensor, restored: Tensor, known: Tensor) -> Tensor:
    alpha = torch.sigmoid(logits)
    return alpha * restored + (1 - alpha) * known


def image_branch(module: ops.DualAttentionFusion, image: Tensor, size: Sequence[int]) -> Tensor:
    small = ops.area_downsample(image, size)
    return ops.gated_projection(small, small.new_ones(small.shape[:2]), module.embed.weight, module.embed.bias)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Any], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    result = function(*inputs)
    return torch.autograd.grad(result, leaves, torch.ones_like(result))


def module_step(module: nn.Module, features: Tensor, image: Tensor) -> object:
    return gradients(module, (features, image), (features, *module.parameters()))


def race(
    compare: Any,
    measure: str,
    ours: tuple[Callable[..., Tensor], Sequence[Any], Sequence[Tensor]],
    theirs: tuple[Callable[..., Tensor], Sequence[Any], Sequence[Tensor]],
    floor: float = 0.0,
    **limits: Any,
) -> None:
    """Each side is a function, its arguments, and what gradients are asked for."""
    if measure == "forward":
        with torch.no_grad():
            compare(lambda: ours[0](*ours[1]), lambda: theirs[0](*theirs[1]), floor, **limits)
    else:
        compare(lambda: gradients(*ours), lambda: gradients(*theirs), floor, **limits)


def test_eager_is_right() -> None:
    ours, theirs = networks(32, "cpu")
    features, image = drawn(2, 32, 12, 10), drawn(2, 3, 48, 40)
    torch.testing.assert_close(ours(features, image), theirs(features, image), rtol=1e-4, atol=1e-5)


TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS = [
    pytest.param(
        name,
        dtype,
        id=f"{name}-{label}",
        marks=[pytest.mark.gate] if (name, label) == ("features", "float32") else [],
    )
    for name in SHAPES
    for label, dtype in TYPES.items()
]
"""Shapes and types; the rows that have a floor and take seconds are gates."""


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("shape", "dtype"), ROWS)
def test_front(
    shape: str, dtype: torch.dtype, order: str, measure: str, device: str, compare: Any, floor_of: Any, benchmark: Any
) -> None:
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    features = drawn(*SHAPES[shape], device=device, dtype=dtype, order=order).requires_grad_()
    ours, theirs = networks(SHAPES[shape][1], device, dtype)
    layers = (theirs.down, theirs.up, theirs.project)
    race(
        compare,
        measure,
        (front, (ours, features), (features, *front_parameters(ours))),
        (theirs.front, (features,), (features, *(value for layer in layers for value in layer.parameters()))),
        floor_of(CASES[shape], measure) if dtype == torch.float32 else 0.0,
        bytes_moved=features.nbytes * (1 if measure == "forward" else 3),
    )


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_projection(shape: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    batch, channels = SHAPES[shape][:2]
    inputs = [drawn(*size, device=device) for size in (SHAPES[shape], (batch, channels), (3, channels), (3,))]
    leaves = [value.requires_grad_() for value in inputs]
    race(
        compare,
        measure,
        (ops.gated_projection, leaves, leaves),
        (gated, leaves, leaves),
        bytes_moved=inputs[0].nbytes * (1 if measure == "forward" else 3),
    )


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_image_branch(
    shape: str, factor: int, measure: str, device: str, compare: Any, floor_of: Any, benchmark: Any
) -> None:
    """Images of ``factor`` times the features' height and width."""
    if factor * SHAPES[shape][2] > 1024:
        pytest.skip("the image would be larger than 1024 x 1024")
    image, size = image_of(SHAPES[shape], factor, device), SHAPES[shape][2:]
    benchmark.extra_info["shape"] = list(image.shape)
    ours, theirs = networks(SHAPES[shape][1], device)
    race(
        compare,
        measure,
        (image_branch, (ours, image, size), list(ours.embed.parameters())),
        (theirs.image, (image, size), list(theirs.embed.parameters())),
        floor_of(CASES[shape], f"image by {factor} {measure}"),
        bytes_moved=image.nbytes,
    )


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_blend(shape: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    size = (SHAPES[shape][0], 3, *SHAPES[shape][2:])
    benchmark.extra_info["shape"] = list(size)
    inputs = [drawn(*size, device=device).requires_grad_() for _ in range(3)]
    race(
        compare,
        measure,
        (ops.attention_blend, inputs, inputs),
        (blended, inputs, inputs),
        bytes_moved=inputs[0].nbytes * (4 if measure == "forward" else 11),
    )


def module_limits(shape: Sequence[int], features: Tensor, measure: str) -> dict[str, Any]:
    pixels = shape[0] * shape[2] * shape[3]
    times = 1 if measure == "forward" else 3
    return {
        "multiply_adds": times * pixels * 9 * HIDDEN * (6 + HIDDEN + 3),
        "bytes_moved": times * features.nbytes,
        "dtype": features.dtype,
    }


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize(("shape", "dtype"), ROWS)
def test_module(
    shape: str, dtype: torch.dtype, measure: str, device: str, compare: Any, floor_of: Any, benchmark: Any
) -> None:
    """All of it; the image is as large as the finest features of a decoder of four times the size."""
    benchmark.extra_info["shape"] = list(SHAPES[shape])
    features = drawn(*SHAPES[shape], device=device, dtype=dtype).requires_grad_()
    image = image_of(SHAPES[shape], 4, device, dtype)
    ours, theirs = networks(SHAPES[shape][1], device, dtype)
    race(
        compare,
        measure,
        (ours, (features, image), (features, *ours.parameters())),
        (theirs, (features, image), (features, *theirs.parameters())),
        floor_of(CASES[shape], f"module {measure}") if dtype == torch.float32 else 0.0,
        **module_limits(SHAPES[shape], features, measure),
    )


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("what", ["front-nchw", "front-nhwc", "module", "blend", "downsample"])
def test_bfloat16_against_our_own_in_float32(
    what: str, measure: str, device: str, compare: Any, floor_of: Any, benchmark: Any
) -> None:
    """Half the bytes, computed in float32 all the same: what is bound by memory gains, and so do the convolutions.

    Blending does not: the exponential and the division take longer than its bytes, and rounding comes on top.
    """
    if (what, measure) == ("downsample", "training"):
        pytest.skip("its derivative is PyTorch's own")
    shape = SHAPES["finest"]
    benchmark.extra_info["shape"] = list(shape)
    sides = []
    for dtype in (torch.bfloat16, torch.float32):
        features = drawn(*shape, device=device, dtype=dtype, order=what.partition("-")[2] or "nchw").requires_grad_()
        image = image_of(shape, 4, device, dtype).requires_grad_()
        module, _ = networks(shape[1], device, dtype)
        if what == "module":
            sides.append((module, (features, image), (features, *module.parameters())))
        elif what == "blend":
            inputs = [drawn(shape[0], 3, *shape[2:], device=device, dtype=dtype).requires_grad_() for _ in range(3)]
            sides.append((ops.attention_blend, inputs, inputs))
        elif what == "downsample":
            sides.append((ops.area_downsample, (image, shape[2:]), (image,)))
        else:
            sides.append((front, (module, features), (features, *front_parameters(module))))
    race(compare, measure, *sides, floor_of(CASES["finest"], f"bfloat16 {what} {measure}"))


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("what", ["front", "module"])
def test_against_torch_compile(what: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    shape = SHAPES["features"]
    benchmark.extra_info["shape"] = list(shape)
    features, image = drawn(*shape, device=device).requires_grad_(), image_of(shape, 4, device)
    ours, theirs = networks(shape[1], device)
    if what == "module":
        leaves = (features, *ours.parameters()), (features, *theirs.parameters())
        sides = (ours, (features, image), leaves[0]), (torch.compile(theirs), (features, image), leaves[1])
    else:
        layers = (theirs.down, theirs.up, theirs.project)
        parameters = [value for layer in layers for value in layer.parameters()]
        sides = (
            (front, (ours, features), (features, *front_parameters(ours))),
            (torch.compile(theirs.front), (features,), (features, *parameters)),
        )
    race(compare, measure, *sides)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("what", ["front", "module"])
@pytest.mark.parametrize("shape", SHAPES)
def test_two_threads_help(shape: str, what: str, measure: str, thread_speedup: Callable[..., None]) -> None:
    features, image = drawn(*SHAPES[shape]).requires_grad_(), image_of(SHAPES[shape], 4)
    module, _ = networks(SHAPES[shape][1], "cpu")
    function, inputs = (front, (module, features)) if what == "front" else (module, (features, image))
    leaves = (features, *(front_parameters(module) if what == "front" else module.parameters()))
    if measure == "forward":
        with torch.no_grad():
            thread_speedup(lambda: function(*inputs), 0.8)
    else:
        thread_speedup(lambda: gradients(function, inputs, leaves), 0.8)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("shape", SHAPES)
def test_memory(shape: str, measure: str, compare_memory: Callable[..., None]) -> None:
    """Of the whole module, and of the gradients by the features, which are a result."""
    training = measure == "training"

    def module(which: int) -> str:
        made = f"networks({SHAPES[shape][1]}, 'cpu')[{which}]"
        return made if training else f"torch.no_grad()(lambda *inputs: {made}(*inputs))"

    inputs = "(drawn(*{0}).requires_grad_({1}), image_of({0}, 4))"
    compare_memory(
        module(0),
        module(1),
        measure,
        math.inf,  # the convolutions' own
        step="module_step",
        small=inputs.format((1, SHAPES[shape][1], 16, 16), training),
        big=inputs.format(SHAPES[shape], training),
    )
