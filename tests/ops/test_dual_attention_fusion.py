from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deocc.errors import InputError
from deocc.ops import (
    DualAttentionFusion,
    area_downsample,
    attention_blend,
    backends,
    channel_attention_projection,
    gated_projection,
)
from deocc.ops.dual_attention_fusion import _spread
from deocc.ops.reference import dual_attention_fusion as reference
from deocc.testing.operators import DTYPES, SPECS, use_backend

BACKENDS = [name for name, state in backends("gated_projection").items() if state.available]
KERNELS = [name for name in BACKENDS if name != "reference"]
NAMES = ["gated_projection", "channel_attention_projection", "area_downsample", "attention_blend"]
ORDERS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gate_parameters(channels: int, hidden: int, outputs: int = 3) -> tuple[Tensor, ...]:
    shapes = [(hidden, channels), (hidden,), (channels, hidden), (channels,), (outputs, channels), (outputs,)]
    return tuple(draw(*shape, seed=seed) / shape[-1] ** 0.5 for seed, shape in enumerate(shapes))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).norm() / wanted.norm()).item()


def paper(module: DualAttentionFusion, features: Tensor, image: Tensor) -> Tensor:
    """Equations 3 to 8 in their order, the 1 x 1 convolution of the image before it is made smaller."""
    z = features.mean((2, 3))
    omega = torch.sigmoid(module.up(F.relu(module.down(z))))
    rescaled = omega[:, :, None, None] * features
    known = F.interpolate(module.embed(image), size=features.shape[2:], mode="area")
    restored = module.project(rescaled)
    alpha = torch.sigmoid(module.attend(torch.cat((restored, known), 1)))
    return alpha * restored + (1 - alpha) * known


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(6, 10), (24, 40), (13, 15)])
def test_the_module_is_what_the_paper_says(backend: str, order: str, size: tuple[int, int]) -> None:
    features = draw(2, 16, 6, 10).double().contiguous(memory_format=ORDERS[order])
    image = draw(2, 3, *size, seed=1).double()
    module = DualAttentionFusion(16, reduction=4, hidden=8).double()
    features.requires_grad_()
    image.requires_grad_()
    leaves = (features, image, *module.parameters())
    wanted = paper(module, features, image)
    gradients = torch.autograd.grad(wanted.square().sum(), leaves)
    with use_backend(backend) as device:
        module.to(device)
        moved = features.detach().to(device).requires_grad_(), image.detach().to(device).requires_grad_()
        got = module(*moved)
        found = torch.autograd.grad(got.square().sum(), (*moved, *module.parameters()))
    assert backend == "reference" or got.is_contiguous(memory_format=ORDERS[order])
    torch.testing.assert_close(got.cpu(), wanted)
    torch.testing.assert_close([value.cpu() for value in found], list(gradients))


def test_parts_of_the_module() -> None:
    module = DualAttentionFusion(8, hidden=4)
    features, image = draw(2, 8, 4, 6), draw(2, 3, 16, 24)
    parts = module.parts(features, image)
    torch.testing.assert_close(parts.result, module(features, image))
    torch.testing.assert_close(parts.result, reference.attention_blend(parts.logits, parts.restored, parts.known))
    assert {tuple(part.shape) for part in parts} == {(2, 3, 4, 6)}


def test_one_module_for_each_scale_of_a_decoder_can_be_exported() -> None:
    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = torch.nn.ModuleList(DualAttentionFusion(channels, hidden=4) for channels in (16, 8))

        def forward(self, coarse: Tensor, fine: Tensor, image: Tensor) -> list[Tensor]:
            return [scale(f, image) for scale, f in zip(self.scales, (coarse, fine), strict=True)]

    decoder = Decoder()
    inputs = draw(2, 16, 4, 4), draw(2, 8, 8, 8), draw(2, 3, 32, 32)
    exported = torch.export.export(decoder, inputs).module()
    torch.testing.assert_close(exported(*inputs), decoder(*inputs))


@pytest.mark.slow
def test_the_module_compiles_with_its_gradients() -> None:
    module, features, image = DualAttentionFusion(8, hidden=4), draw(2, 8, 4, 6), draw(2, 3, 8, 12)
    compiled = torch.compile(module, fullgraph=True)
    results = [
        torch.autograd.grad(f(features, image).square().sum(), list(module.parameters())) for f in (module, compiled)
    ]
    torch.testing.assert_close(results[1], results[0])


def test_autocast() -> None:
    """Features that come in bfloat16 are read in bfloat16, whatever the parameters have."""
    module, image = DualAttentionFusion(16, hidden=4), draw(2, 3, 8, 8)
    features = draw(2, 16, 8, 8)
    wanted = module(features, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module.parts(features.bfloat16(), image)
        got.result.sum().backward()
    assert got.restored.dtype == got.logits.dtype == torch.bfloat16
    assert got.known.dtype == got.result.dtype == torch.float32
    assert relative_error(got.result, wanted.double()) < 2e-2
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_rounds_nothing_of_float32(backend: str) -> None:
    features, parameters = draw(2, 8, 5, 6), gate_parameters(8, 2)
    with use_backend(backend) as device:
        moved = [value.to(device) for value in (features, *parameters)]
        with torch.autocast(device, dtype=torch.bfloat16):
            inside = channel_attention_projection(*moved)
        assert torch.equal(inside, channel_attention_projection(*moved))


@pytest.mark.parametrize(("size", "whole"), [((2, 3), (8, 9)), ((3, 2), (7, 5)), ((4, 4), (4, 4))])
def test_the_adjoint_of_the_average_for_other_devices(size: tuple[int, int], whole: tuple[int, int]) -> None:
    image, gradient = draw(2, 3, *whole).requires_grad_(), draw(2, 3, *size)
    (wanted,) = torch.autograd.grad(reference.area_downsample(image, size), image, gradient)
    torch.testing.assert_close(_spread(gradient, whole), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(_spread(gradient, whole), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_features_dtype_rules(backend: str, dtype: torch.dtype) -> None:
    features, parameters = draw(2, 8, 5, 6).to(dtype), gate_parameters(8, 2)
    with use_backend(backend) as device:
        moved = [value.to(device) for value in (features, *parameters)]
        assert channel_attention_projection(*moved).dtype == dtype
        weight = moved[5].requires_grad_()
        result = gated_projection(moved[0], torch.ones(2, 8, device=device), weight)
        result.sum().backward()
    assert result.dtype == dtype
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(2, 64, 33, 47), (1, 128, 40, 40), (3, 5, 64, 64)])
def test_near_the_reference_in_double_precision(backend: str, order: str, shape: tuple[int, ...]) -> None:
    inputs = (draw(*shape).contiguous(memory_format=ORDERS[order]), *gate_parameters(shape[1], 4))
    upstream = draw(shape[0], 3, *shape[2:], seed=9)

    def run(function: Callable[..., Tensor], device: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [value.to(device, dtype).requires_grad_() for value in inputs]
        result = function(*leaves)
        return [result, *torch.autograd.grad(result, leaves, upstream.to(result))]

    wanted = run(reference.channel_attention_projection, "cpu", torch.float64)
    with use_backend(backend) as device:
        result, *gradients = run(channel_attention_projection, device, torch.float32)
    assert relative_error(result.cpu(), wanted[0]) <= 2e-5
    assert max(relative_error(a.cpu(), b) for a, b in zip(gradients, wanted[1:], strict=True)) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_convolution_s_weight_will_do_and_no_bias(backend: str) -> None:
    with use_backend(backend) as device:
        features, gate, weight = (value.to(device) for value in (draw(2, 6, 4, 5), draw(2, 6), draw(3, 6)))
        got = gated_projection(features, gate, weight[:, :, None, None])
        assert torch.equal(got, gated_projection(features, gate, weight, torch.zeros(3, device=device)))
    # On the CPU: a GPU's convolutions may round to TF32.
    wanted = F.conv2d((features * gate[:, :, None, None]).cpu(), weight[:, :, None, None].cpu())
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_that_are_asked_for(backend: str, name: str) -> None:
    spec, case = SPECS[name], SPECS[name].cases[0]
    with use_backend(backend) as device:
        for index in spec.differentiable:
            inputs = list(case.draw(device))
            inputs[index].requires_grad_()
            (alone,) = torch.autograd.grad(spec.function(*inputs, **case.options).square().sum(), inputs[index])
            leaves = [value.detach().requires_grad_() for value in inputs]
            every = torch.autograd.grad(spec.function(*leaves, **case.options).square().sum(), leaves)
            torch.testing.assert_close(alone, every[index])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", KERNELS)
def test_gradient_penalty(backend: str, name: str) -> None:
    spec, case = SPECS[name], SPECS[name].cases[0]
    penalties = []
    for function, chosen in ((spec.function, backend), (spec.reference, "reference")):
        with use_backend(chosen) as device:
            leaves = [value.requires_grad_() for value in case.draw(device)]
            result = function(*leaves, **case.options).square().sum()
            first = torch.autograd.grad(result, leaves, create_graph=True)
            penalty = torch.stack([value.square().sum() for value in first]).sum()
            penalties.append([value.cpu() for value in torch.autograd.grad(penalty, leaves)])
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_where_one_input_is_made_of_another(backend: str) -> None:
    """With create_graph=True too: what flows from one to the other counts once."""
    with use_backend(backend) as device:
        drawn = (torch.rand(shape, dtype=torch.double, device=device) for shape in ((2, 4, 3, 3), (3, 4)))
        features, weight = (value.requires_grad_() for value in drawn)

        def function(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return gated_projection(features, features.mean((2, 3)).sigmoid(), weight)

        once, again = (
            torch.autograd.grad(function(features, weight).sum(), (features, weight), create_graph=create)
            for create in (False, True)
        )
        torch.testing.assert_close(once, again)
        torch.autograd.gradgradcheck(function, (features, weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_that_is_applied_twice(backend: str) -> None:
    with use_backend(backend) as device:
        module = DualAttentionFusion(3, reduction=1, hidden=4).to(device, torch.double)
        image = torch.rand(2, 3, 8, 8, dtype=torch.double, device=device)
        once, again = (
            torch.autograd.grad(
                module(module(image, image), image).square().sum(), list(module.parameters()), create_graph=create
            )
            for create in (False, True)
        )
        torch.testing.assert_close(once, again)


@pytest.mark.parametrize("trains", [True, False], ids=["features", "parameters"])
def test_gradients_inside_autocast_are_computed_in_full(trains: bool) -> None:
    """torch.compile traces the backward pass inside the autocast of the forward pass."""
    torch.manual_seed(0)
    module, features = DualAttentionFusion(8), torch.rand(2, 8, 6, 5, requires_grad=trains)
    layers = (module.down, module.up, module.project)
    leaves = [value for layer in layers for value in (layer.weight, layer.bias)]
    wanted = torch.autograd.grad(
        channel_attention_projection(features, *leaves).square().sum(), [*leaves, *[features] * trains]
    )
    compiled = torch.compile(lambda *inputs: channel_attention_projection(*inputs), backend="aot_eager")
    for function in (channel_attention_projection, compiled):
        for create in (False, True) if function is not compiled else (False,):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result = function(features, *leaves).square().sum()
                found = torch.autograd.grad(result, [*leaves, *[features] * trains], create_graph=create)
            torch.testing.assert_close(found, wanted)


def test_gradients_without_data() -> None:
    module, image = DualAttentionFusion(4).to("meta"), torch.rand(1, 3, 8, 8, device="meta", requires_grad=True)
    module(torch.rand(1, 4, 4, 4, device="meta", requires_grad=True), image).sum().backward()
    assert image.grad is not None
    assert image.grad.shape == image.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_blend_keeps_the_digits_of_what_hardly_shows(backend: str) -> None:
    with use_backend(backend) as device:
        logits, restored, known = torch.tensor([20.0, 0.0, 1e9], device=device).view(3, 1, 1, 1, 1)
        found = attention_blend(logits, restored, known)
        assert found.item() == pytest.approx(1e9 / (1 + math.exp(20)), rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_blend_at_extreme_logits(backend: str, dtype: torch.dtype) -> None:
    values = torch.tensor([-torch.inf, -1e4, -88.0, -20.0, 0.0, 20.0, 88.0, 1e4, torch.inf], dtype=dtype)
    logits = values.repeat(4).reshape(1, 1, 4, 9)
    restored, known = torch.full_like(logits, 3.0), torch.full_like(logits, 5.0)
    with use_backend(backend) as device:
        got = attention_blend(logits.to(device), restored.to(device), known.to(device)).cpu()
        small = attention_blend(logits.to(device), restored.to(device), 0 * known.to(device)).cpu()
    torch.testing.assert_close(
        got, reference.attention_blend(logits.double(), restored.double(), known.double()).to(dtype)
    )
    assert bool((got[..., :2] == 5).all())
    assert bool((got[..., -2:] == 3).all())
    torch.testing.assert_close(small[..., 3], 3 * values[3].double().sigmoid().to(dtype).expand(1, 1, 4))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
def test_nan_spreads_where_it_has_a_part(backend: str, order: str) -> None:
    features, gate, weight, bias = draw(2, 20, 9, 8), draw(2, 20), draw(3, 20), draw(3)
    features[0, 3, 2, 5] = torch.nan
    features[1, 7, 1, 1] = torch.inf
    logits, image = draw(2, 3, 9, 8), draw(2, 3, 9, 8)
    logits[1, 2, 8, 7] = torch.nan
    with use_backend(backend) as device:
        features, gate, weight, bias, logits, image = (
            value.to(device).contiguous(memory_format=ORDERS[order]) if value.dim() == 4 else value.to(device)
            for value in (features, gate, weight, bias, logits, image)
        )
        projected = gated_projection(features, gate, weight, bias)
        blended = attention_blend(logits, image, image)
        averaged = area_downsample(logits, (3, 2))
        attended = channel_attention_projection(features, *(value.to(device) for value in gate_parameters(20, 4)))
    bad = ~projected.isfinite()
    assert bad.sum() == 6
    assert bool(bad[0, :, 2, 5].all())
    assert bool(bad[1, :, 1, 1].all())
    assert blended.isnan().nonzero().tolist() == [[1, 2, 8, 7]]
    assert averaged.isnan().nonzero().tolist() == [[1, 2, 2, 1]]
    assert bool(attended[0].isnan().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ORDERS)
def test_threads_agree(name: str, order: str) -> None:
    spec = SPECS[name]
    options = {"size": (20, 30)} if name == "area_downsample" else {}
    shape = (2, 37, 80, 97)
    inputs = {
        "gated_projection": (draw(*shape), draw(2, 37), draw(5, 37), draw(5)),
        "channel_attention_projection": (draw(*shape), *gate_parameters(37, 4)),
        "area_downsample": (draw(*shape),),
        "attention_blend": tuple(draw(*shape, seed=seed) for seed in range(3)),
    }[name]
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = [
                (value.contiguous(memory_format=ORDERS[order]) if value.dim() == 4 else value).requires_grad_()
                for value in (value.detach().clone() for value in inputs)
            ]
            result = spec.function(*leaves, **options)
            results.append([result, *torch.autograd.grad(result.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_half_precision_is_read_and_written(dtype: torch.dtype) -> None:
    """As PyTorch does; averages of two neighbours lie half way between them, and have to be rounded."""
    every = torch.arange(1 << 16).to(torch.int16).view(dtype).reshape(1, 1, 256, 256)
    torch.testing.assert_close(area_downsample(every, (256, 256)), every, rtol=0, atol=0, equal_nan=True)
    halfway = every.float().unflatten(3, (128, 2)).sum(4).mul(0.5).to(dtype)
    torch.testing.assert_close(area_downsample(every, (256, 128)), halfway, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", ["avx2", "narrow"])
def test_narrower_vectors_give_the_same(width: str, tmp_path: Path) -> None:
    """In another process: the width is chosen once."""
    script = """
import torch
from deocc.testing.operators import SPECS
found = []
for name in {names!r}:
    for case in SPECS[name].cases:
        if case.kind in ("smoke", "edge"):
            leaves = [value.requires_grad_() for value in case.draw(dtype=torch.float32)]
            result = SPECS[name].function(*leaves, **case.options)
            found += [result.detach(), *torch.autograd.grad(result.square().sum(), leaves)]
torch.save(found, {path!r})
"""
    results = []
    for variable in (None, width):
        path = tmp_path / f"{variable}.pt"
        environment = os.environ | ({"DEOCC_VECTOR": variable} if variable else {})
        code = script.format(names=NAMES, path=str(path))
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        results.append(torch.load(path))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def _projection(**change: object) -> Callable[[], Tensor]:
    arguments = {"features": draw(2, 4, 3, 5), "channel_gate": draw(2, 4), "weight": draw(3, 4), "bias": draw(3)}
    return lambda: gated_projection(**(arguments | change))  # type: ignore[arg-type]


def _attention(**change: object) -> Callable[[], Tensor]:
    names = ("down", "down_bias", "up", "up_bias", "weight", "bias")
    arguments = {"features": draw(2, 4, 3, 5), **dict(zip(names, gate_parameters(4, 2), strict=True))}
    return lambda: channel_attention_projection(**(arguments | change))  # type: ignore[arg-type]


def _blend(**change: object) -> Callable[[], Tensor]:
    arguments = {"logits": draw(1, 3, 4, 5), "restored": draw(1, 3, 4, 5), "known": draw(1, 3, 4, 5)}
    return lambda: attention_blend(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_projection(features=None), "gated_projection: features must be a torch.Tensor, got NoneType"),
        (_projection(features=draw(4, 3, 5)), r"features must have shape \(N, C, H, W\) with at least one"),
        (_projection(features=draw(2, 4, 0, 5)), r"at least one channel and pixel, got \(2, 4, 0, 5\)"),
        (_projection(features=draw(2, 4, 3, 5).int()), "features must be float32, .* got torch.int32"),
        (_projection(channel_gate=draw(1, 4)), r"channel_gate must have shape \(2, 4\) for features of shape"),
        (_projection(weight=draw(3, 5)), r"weight must have 4 columns, of shape \(rows, 4\), got \(3, 5\)"),
        (_projection(weight=draw(3, 4, 3, 3)), r"weight must have 4 columns, .* got \(3, 4, 3, 3\)"),
        (_projection(weight=draw(0, 4)), r"weight must have 4 columns, .* got \(0, 4\)"),
        (_projection(bias=draw(4)), r"bias must have shape \(3,\) for features"),
        (_projection(bias=draw(3).to("meta")), "bias must be on the features' device cpu, got meta"),
        (_projection(features=draw(2, 4, 3, 5).to_sparse()), "features must be a dense tensor, got torch.sparse_coo"),
        (_attention(down=draw(2, 5)), r"channel_attention_projection: down must have 4 columns"),
        (_attention(up=draw(4, 3)), r"up must have 2 columns, of shape \(rows, 2\), got \(4, 3\)"),
        (_attention(up=draw(5, 2)), r"up must have shape \(4, 2\), got \(5, 2\)"),
        (_attention(up_bias=draw(5)), r"up_bias must have shape \(4,\)"),
        (_blend(logits=draw(3, 4, 5)), r"attention_blend: logits must have shape \(N, C, H, W\), got \(3, 4, 5\)"),
        (_blend(logits=draw(1, 1, 4, 5)), r"restored must have the logits' shape \(1, 1, 4, 5\), got \(1, 3, 4, 5\)"),
        (_blend(known=draw(1, 3, 4, 5).to("meta")), "known must be on the logits' device cpu, got meta"),
        (lambda: area_downsample(draw(3, 4, 5), (2, 2)), r"image must have shape \(N, C, H, W\) with at least one"),
        (
            lambda: area_downsample(draw(1, 3, 4, 5), (5, 5)),
            "size must be at least 1 x 1 and at most the image's 4 x 5",
        ),
        (lambda: area_downsample(draw(1, 3, 4, 5), (0, 5)), "size must be .* got 0 x 5"),
        (lambda: area_downsample(draw(1, 3, 4, 5), 2), "size must be two integers, got 2"),  # type: ignore[arg-type]
        (lambda: area_downsample(draw(1, 3, 4, 5), (2.0, 2)), r"two integers, got \(2.0, 2\)"),  # type: ignore[arg-type]
        (lambda: DualAttentionFusion(0), "DualAttentionFusion: channels must be a positive integer, got 0"),
        (lambda: DualAttentionFusion(4, hidden=True), "hidden must be a positive integer, got True"),
        (
            lambda: DualAttentionFusion(4)(draw(2, 4, 3, 3), draw(2, 4, 6, 6)),
            r"DualAttentionFusion: image must have shape \(2, 3, H, W\), got \(2, 4, 6, 6\)",
        ),
        (
            lambda: DualAttentionFusion(4)(draw(2, 4, 3, 3).float(), draw(2, 3, 6, 6).double()),
            "the module's dtype torch.float32, but inside torch.autocast, got torch.float32 and torch.float64",
        ),
        (
            lambda: DualAttentionFusion(4)(draw(2, 4, 3, 3).bfloat16(), draw(2, 3, 6, 6).bfloat16()),
            "the module's dtype torch.float32, but inside torch.autocast, got torch.bfloat16 and torch.bfloat16",
        ),
        (lambda: DualAttentionFusion(4)(draw(2, 4, 8, 8), draw(2, 3, 6, 6)), "at most the image's 6 x 6, got 8 x 8"),
    ],
)
def test_what_cannot_be_used(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


SHAPES = st.lists(st.integers(0, 3), min_size=0, max_size=5).map(tuple)
ANY_DTYPE = st.sampled_from([*DTYPES, torch.uint8, torch.int64, torch.bool, torch.complex64])


@given(st.lists(st.tuples(SHAPES, ANY_DTYPE), min_size=7, max_size=7), st.integers(-1, 4), st.booleans())
@settings(max_examples=200, deadline=None)
def test_nothing_crashes_the_interpreter(
    drawn: list[tuple[tuple[int, ...], torch.dtype]], size: int, channels_last: bool
) -> None:
    """The kernels check for themselves."""
    tensors = [torch.ones(shape).to(dtype) for shape, dtype in drawn]
    kernels = torch.ops.deocc
    for function, arguments in (
        (kernels.gated_projection, tensors[:4]),
        (kernels.gated_projection_products, tensors[:2]),
        (kernels.gated_projection_features, [*tensors[:3], channels_last]),
        (kernels.channel_attention_projection, tensors),
        (kernels.area_downsample, [tensors[0], size, 2]),
        (kernels.attention_blend, tensors[:3]),
        (kernels.attention_blend_backward, tensors[:4]),
    ):
        with contextlib.suppress(RuntimeError):
            function(*arguments)
