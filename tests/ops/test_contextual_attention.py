from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deocc.errors import InputError
from deocc.ops import backends, contextual_attention, contextual_attention_offsets
from deocc.ops.reference import contextual_attention as reference
from deocc.testing.operators import DTYPES, SPECS, use_backend

BACKENDS = [name for name, state in backends("contextual_attention").items() if state.available]


def features(*shape: int, spread: float = 0.3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    foreground, background = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * spread
    occlusion = torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.02
    return foreground.to(dtype), background.to(dtype), occlusion.to(dtype)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_paste_adds_up_patches_one_by_one(backend: str) -> None:
    rate, rows, columns = 2, 3, 4
    foreground, background, occlusion = features(1, 2, rate * rows, rate * columns, dtype=torch.float64)
    valid = reference.valid_keys(occlusion, rate)
    logits = reference.scores(foreground, background, rate, True) * valid * 10
    attention = (logits.softmax(2) * valid)[0]
    wanted = torch.zeros_like(foreground)
    for q in range(rows * columns):
        for k in range(rows * columns):
            for dy in range(-1, 3):
                for dx in range(-1, 3):
                    to = (q // columns * rate + dy, q % columns * rate + dx)
                    of = (k // columns * rate + dy, k % columns * rate + dx)
                    if all(0 <= y < rate * rows and 0 <= x < rate * columns for y, x in (to, of)):
                        wanted[:, :, to[0], to[1]] += attention[q, k] * background[:, :, of[0], of[1]] / 4
    with use_backend(backend) as device:
        got = contextual_attention(foreground.to(device), background.to(device), occlusion.to(device))
    torch.testing.assert_close(got.cpu(), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("hole", [True, False])
def test_near_the_reference_in_double_precision(backend: str, fuse: bool, hole: bool) -> None:
    inputs = features(2, 48, 40, 44)
    if hole:  # of another size in each sample
        inputs[2].zero_()
        inputs[2][0, :, 10:30, 11:33] = 1
        inputs[2][1, :, 4:36, 0:44] = 1
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))

    def run(function: Callable[..., Tensor], device: str, dtype: torch.dtype, *options: object) -> list[Tensor]:
        f, b, o = (value.to(device, dtype) for value in inputs)
        f, b = f.requires_grad_(), b.requires_grad_()
        result = function(f, b, o, *options)
        return [result.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(result, (f, b), upstream.to(result)))]

    wanted = run(reference.contextual_attention, "cpu", torch.float64, 2, 10.0, fuse)
    with use_backend(backend) as device:
        got = run(lambda f, b, o: contextual_attention(f, b, o, fuse=fuse), device, torch.float32)
    assert relative_error(got[0], wanted[0]) <= 2e-5
    assert relative_error(got[1], wanted[1]) <= 1e-4
    assert relative_error(got[2], wanted[2]) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_do_not_see_each_other(backend: str) -> None:
    inputs = features(3, 5, 12, 18)
    inputs[2][1] = 1
    with use_backend(backend) as device:
        f, b, o = (value.to(device) for value in inputs)
        together = contextual_attention(f, b, o)
        alone = [contextual_attention(f[i : i + 1], b[i : i + 1], o[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not together[1].any()  # everything occluded


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_nothing_is_pasted_from_does_not_matter(backend: str) -> None:
    """All but the background's compared pixels may change where they and all around is occluded."""
    foreground, background, _ = features(1, 4, 24, 24)
    occlusion = torch.zeros(1, 1, 24, 24)
    occlusion[:, :, 4:20, 4:20] = 1
    changed = background.clone()
    changed[:, :, 9:15:2, 9:15:2] += 100
    with use_backend(backend) as device:
        got, again = (
            contextual_attention(foreground.to(device), value.to(device), occlusion.to(device))
            for value in (background, changed)
        )
    assert torch.equal(got, again)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_occlusion_is_the_default_and_bool_will_do(backend: str) -> None:
    with use_backend(backend) as device:
        f, b, o = (value.to(device) for value in features(1, 3, 8, 8))
        nothing = contextual_attention(f, b)
        assert torch.equal(nothing, contextual_attention(f, b, torch.zeros_like(o)))
        assert torch.equal(contextual_attention(f, b, o), contextual_attention(f, b, o.bool()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_the_features_dtype(backend: str) -> None:
    with use_backend(backend) as device, torch.autocast(device, dtype=torch.bfloat16):
        f, b, o = (value.to(device) for value in features(1, 3, 8, 8))
        assert contextual_attention(f, b, o).dtype == torch.float32
        assert contextual_attention(f.bfloat16(), b.bfloat16(), o).dtype == torch.bfloat16
        assert contextual_attention(f.bfloat16(), b, o).dtype == torch.float32
        inside = contextual_attention(f, b, o)
    with use_backend(backend):
        assert torch.equal(inside, contextual_attention(f, b, o))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("rate", [1, 2, 4])
def test_offsets(backend: str, fuse: bool, rate: int) -> None:
    foreground, background, occlusion = features(2, 16, 20, 28)
    occlusion[1] = 1
    wanted = reference.contextual_attention_offsets(foreground, background, occlusion, rate, fuse)
    with use_backend(backend) as device:
        inputs = [value.to(device) for value in (foreground, background, occlusion)]
        got = contextual_attention_offsets(*inputs, rate=rate, fuse=fuse)
        last = [value.contiguous(memory_format=torch.channels_last) for value in inputs]
        compiled = torch.compile(contextual_attention_offsets, fullgraph=True, backend="aot_eager")
        same = [
            contextual_attention_offsets(*last, rate=rate, fuse=fuse),
            contextual_attention_offsets(*inputs, rate=rate, fuse=fuse),
            compiled(*inputs, rate=rate, fuse=fuse),
        ]
        empty = contextual_attention_offsets(inputs[0][:0], inputs[1][:0], rate=rate, fuse=fuse)
    assert got.dtype == torch.int32
    assert torch.equal(got.cpu(), wanted)
    assert not got[1].any()
    assert all(torch.equal(other, got) for other in same)
    assert empty.shape == (0, 2, 20 // rate, 28 // rate)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_offsets_of_other_types(backend: str, dtype: torch.dtype) -> None:
    """Of patches that are found without doubt, whatever rounding does."""
    background = torch.randn(1, 32, 24, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    with use_backend(backend) as device:
        got = contextual_attention_offsets(background.roll(2, dims=2).to(device), background.to(device))
    assert bool((got[0, 0, 3:-3, 3:-3] == -1).all())
    assert not got[0, 1, 3:-3, 3:-3].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_a_number_stays_in_its_sample(backend: str) -> None:
    foreground, background, occlusion = features(3, 4, 12, 16)
    spoilt = foreground.clone()
    spoilt[1, 2, 5, 6], spoilt[1, 0, 0, 0] = torch.nan, torch.inf
    with use_backend(backend) as device:
        inputs = [value.to(device) for value in (background, occlusion)]
        wanted = contextual_attention(foreground.to(device), *inputs)
        got = contextual_attention(spoilt.to(device), *inputs)
        offsets = contextual_attention_offsets(spoilt.to(device), *inputs)
    assert torch.equal(got[::2], wanted[::2])
    assert not got[1].isfinite().all()
    rows, columns = offsets[1]
    assert rows.abs().max() < 6  # within the sample's patches, if nothing else
    assert columns.abs().max() < 8


def test_a_scale_that_changes_compiles() -> None:
    inputs = features(1, 2, 8, 8)
    compiled = torch.compile(contextual_attention, fullgraph=True, backend="aot_eager")
    for scale in (10.0, 5.0, 2.5):
        assert torch.equal(compiled(*inputs, scale=scale), contextual_attention(*inputs, scale=scale))


def test_offsets_find_what_was_moved() -> None:
    background = torch.randn(1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    foreground = background.roll((4, -6), dims=(2, 3))
    rows, columns = contextual_attention_offsets(foreground, background)[0, :, 5:-5, 5:-5]
    assert bool((rows == -2).all())
    assert bool((columns == 3).all())


def test_a_second_derivative_is_an_error_that_says_so() -> None:
    foreground, background, occlusion = features(1, 2, 4, 4)
    foreground.requires_grad_()
    with use_backend(next(name for name in BACKENDS if name != "reference")):
        result = contextual_attention(foreground, background, occlusion).square().sum()
        (first,) = torch.autograd.grad(result, foreground, create_graph=True)
        with pytest.raises(NotImplementedError, match="contextual_attention has no second derivative"):
            first.sum().backward()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_agree(threads: int) -> None:
    spec = SPECS["contextual_attention"]
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, threads):
            torch.set_num_threads(count)
            f, b, o = features(1, 8, 36, 20, dtype=torch.float64)
            f, b = f.requires_grad_(), b.requires_grad_()
            result = spec.function(f, b, o)
            results.append([result, *torch.autograd.grad(result.square().sum(), (f, b))])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("width", ["avx512", "avx2", "narrow"])
def test_narrower_vectors_give_the_same(width: str, tmp_path: Path) -> None:
    """In another process: the width is chosen once."""
    script = (
        "import torch; from deocc.ops import contextual_attention as ca; g = torch.Generator().manual_seed(0);"
        "f, b = torch.randn(2, 1, 20, 20, 44, generator=g).mul(0.3).requires_grad_().unbind(0);"
        "out = [[r.detach(), *torch.autograd.grad(r.square().sum(), (f, b))] for t in (torch.float32, torch.bfloat16)"
        " for r in [ca(f.to(t), b.to(t))]]; torch.save(out[0] + out[1], {!r})"
    )
    results = []
    for variable in (None, width):
        path = tmp_path / f"{variable}.pt"
        environment = os.environ | ({"DEOCC_VECTOR": variable} if variable else {})
        subprocess.run([sys.executable, "-c", script.format(str(path))], env=environment, check=True)
        results.append(torch.load(path))
    for index, (one, other) in enumerate(zip(*results, strict=True)):
        assert relative_error(one, other.double()) <= (1e-5 if index < 3 else 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("fuse", [True, False])
def test_triton_interpreted(fuse: bool) -> None:
    """The GPU's kernels, on the CPU, in another process: Triton decides when it is imported."""
    pytest.importorskip("triton", reason="triton is not installed")
    script = f"""
import torch
from deocc.ops.reference import contextual_attention as reference
from deocc.ops.triton import contextual_attention as kernel
kernel._BLOCK, kernel._ELEMENTS = 4, 1  # several blocks of keys, and one sample at a time
for shape, rate in ((2, 2, 4, 6), 2), ((1, 2, 3, 2), 1):
    g = torch.Generator().manual_seed(0)
    f, b, up = torch.randn(3, *shape, generator=g, dtype=torch.float64) * 0.3
    f, b = f.requires_grad_(), b.requires_grad_()
    o = torch.rand(shape[0], 1, *shape[2:], generator=g) < 0.05
    wanted = reference.contextual_attention(f, b, o, rate, 4.0, {fuse})
    torch.testing.assert_close(kernel.contextual_attention(f.detach(), b.detach(), o, rate, 4.0, {fuse}), wanted)
    got = kernel.contextual_attention_backward(up, f.detach(), b.detach(), o, rate, 4.0, {fuse})
    torch.testing.assert_close(got, torch.autograd.grad(wanted, (f, b), up))
    found = kernel.contextual_attention_offsets(f.detach(), b.detach(), o, rate, {fuse})
    assert torch.equal(found, reference.contextual_attention_offsets(f, b, o, rate, {fuse}))
    half = [x.detach().to(torch.bfloat16) for x in (f, b)]
    assert kernel.contextual_attention(*half, o, rate, 4.0, {fuse}).dtype == torch.bfloat16
"""
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)


def _some() -> Tensor:
    return torch.zeros(1, 2, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, _some()), {}, "foreground must be a torch.Tensor, got NoneType"),
        ((_some(), _some().int()), {}, "background must be float32, float64, bfloat16 or float16, got torch.int32"),
        ((_some(), _some(), torch.zeros(1, 1, 4, 6).int()), {}, "occlusion must be float32"),
        ((_some()[0], _some()[0]), {}, r"foreground must have shape \(N, C, H, W\)"),
        ((_some()[:, :0], _some()[:, :0]), {}, "at least one channel and pixel, got"),
        ((_some(), _some()[..., :4]), {}, r"background must have the foreground's shape \(1, 2, 4, 6\), got"),
        ((_some(), _some(), _some()), {}, r"occlusion must have shape \(1, 1, 4, 6\)"),
        ((_some(), _some()), {"rate": 4}, "rate must divide height and width, got 4 for 4 x 6"),
        ((_some(), _some()), {"rate": 0}, "rate must be an integer of at least 1, got 0"),
        ((_some(), _some()), {"rate": 2.0}, "rate must be an integer of at least 1, got 2.0"),
        ((_some(), _some()), {"scale": float("nan")}, "scale must be a finite number, got nan"),
        ((_some(), _some()), {"scale": 10**400}, "scale must be a finite number, got 1000"),
        ((_some(), _some()), {"scale": True}, "scale must be a finite number, got True"),
        ((_some(), _some()), {"fuse": 1}, "fuse must be True or False, got 1"),
        ((_some(), _some().to("meta")), {}, "background must be on the foreground's device cpu, got meta"),
        ((_some().to_sparse(), _some()), {}, "foreground must be a dense tensor, got torch.sparse_coo"),
    ],
)
def test_what_cannot_be_used(arguments: tuple[object, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        contextual_attention(*arguments, **options)  # type: ignore[arg-type]


SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=5).map(tuple)
ANY_DTYPE = st.sampled_from([*DTYPES, torch.uint8, torch.int64, torch.bool, torch.complex64])


@given(st.lists(st.tuples(SHAPES, ANY_DTYPE), min_size=4, max_size=4), st.integers(-1, 3), st.booleans())
@settings(max_examples=200, deadline=None)
def test_nothing_crashes_the_interpreter(
    drawn: list[tuple[tuple[int, ...], torch.dtype]], rate: int, fuse: bool
) -> None:
    one, two, three, four = (torch.ones(shape).to(dtype) for shape, dtype in drawn)
    with contextlib.suppress(RuntimeError):  # the kernels check for themselves
        torch.ops.deocc.contextual_attention(one, two, three, rate, 10.0, fuse)
    with contextlib.suppress(RuntimeError):
        torch.ops.deocc.contextual_attention_backward(one, two, three, four, rate, 10.0, fuse)
    with contextlib.suppress(RuntimeError):
        torch.ops.deocc.contextual_attention_offsets(one, two, three, rate, fuse)
