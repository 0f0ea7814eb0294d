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
from deocc.ops import (
    RelationalDistillation,
    backends,
    relational_angle,
    relational_distance,
    relational_distillation,
)
from deocc.ops.reference import relational_distillation as reference
from deocc.testing.operators import DTYPES, use_backend

BACKENDS = [name for name, state in backends("relational_distillation").items() if state.available]
KERNELS = [name for name in BACKENDS if name != "reference"]


def points(rows: int, depth: int, seed: int = 0, *, clusters: int = 0, spread: float = 1.0) -> Tensor:
    """Float64 that float32 holds, so that every dtype is given the same."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, depth, generator=generator, dtype=torch.float64) * spread
    if clusters:
        x += torch.randn(clusters, depth, generator=generator, dtype=torch.float64)[torch.arange(rows) % clusters]
    return x.float().double()


def loss_and_gradient(
    function: Callable[..., Tensor], student: Tensor, teacher: Tensor, *weights: float
) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    loss = function(student, teacher, *weights)
    return loss.detach().cpu(), torch.autograd.grad(loss, student)[0].cpu()


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).norm() / wanted.norm()).item()


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_and_triplets_one_by_one(backend: str) -> None:
    rows = 5
    student, teacher = points(rows, 4) * 0.3, points(rows, 6, 1) ** 3

    def potentials(x: Tensor) -> tuple[list[float], list[float]]:
        lengths = [(x[i] - x[j]).norm().item() for i in range(rows) for j in range(rows)]
        mean = sum(lengths) / (rows * (rows - 1))
        units = [[(x[i] - x[j]) / max((x[i] - x[j]).norm().item(), 1e-12) for j in range(rows)] for i in range(rows)]
        triplets = [(i, j, k) for i in range(rows) for j in range(rows) for k in range(rows)]
        return [length / mean for length in lengths], [(units[i][j] @ units[k][j]).item() for i, j, k in triplets]

    wanted = []
    for mine, other in zip(potentials(student), potentials(teacher), strict=True):
        wanted.append(sum(huber(a - b) for a, b in zip(mine, other, strict=True)) / len(mine))
    with use_backend(backend) as device:
        s, t = student.to(device), teacher.to(device)
        assert relational_distance(s, t).item() == pytest.approx(wanted[0])
        assert relational_angle(s, t).item() == pytest.approx(wanted[1])
        assert relational_distillation(s, t).item() == pytest.approx(wanted[0] + 2 * wanted[1])
        assert relational_distillation(s, t, distance=3, angle=0.5).item() == pytest.approx(
            3 * wanted[0] + 0.5 * wanted[1]
        )


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("clusters", "spread"), [(0, 1.0), (8, 0.1), (8, 1e-4), (1, 1e-4), (16, 1e-5)])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 2.0)])
def test_float32_is_as_near_as_double_precision(
    backend: str, weights: tuple[float, float], clusters: int, spread: float, offset: float
) -> None:
    student = (points(48, 96, clusters=clusters, spread=spread) + offset).float()
    teacher = (points(48, 64, 1, clusters=clusters, spread=spread) + offset).float()
    student[20] += 1  # of its own, beside the clusters: its gradient is smaller by far
    wanted, slope = loss_and_gradient(reference.relational_distillation, student.double(), teacher.double(), *weights)
    with use_backend(backend) as device:
        got, gradient = loss_and_gradient(
            lambda s, t: relational_distillation(s, t, distance=weights[0], angle=weights[1]),
            student.to(device),
            teacher.to(device),
        )
    assert relative_error(got, wanted) <= 1e-6
    assert relative_error(gradient, slope) <= 1e-6
    for row in (0, 20):
        assert relative_error(gradient[row], slope[row]) <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_rows_give_no_gradient_to_each_other(backend: str) -> None:
    student, teacher = points(9, 6), points(9, 7, 1)
    student[3] = student[7] = student[1]
    teacher[2] = teacher[4]
    weights = 1.0, 2.0
    wanted, slope = loss_and_gradient(reference.relational_distillation, student, teacher, *weights)
    for dtype in DTYPES:
        with use_backend(backend) as device:
            s, t = student.to(device, dtype), teacher.to(device, dtype)
            got, gradient = loss_and_gradient(relational_distillation, s, t)
        assert bool(gradient.isfinite().all())
        assert gradient.abs().max() < 1
        if dtype in (torch.float64, torch.float32):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0)
            torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_rows_equal(backend: str, dtype: torch.dtype) -> None:
    some, same = points(6, 5).to(dtype), points(1, 5, 1).to(dtype).repeat(6, 1)
    with use_backend(backend) as device:
        some, same = some.to(device), same.to(device)
        by_student = loss_and_gradient(relational_distillation, same, some)
        by_teacher = loss_and_gradient(relational_distillation, some, same)
        by_both = loss_and_gradient(relational_distillation, same, same)
    assert 0 < by_student[0] < 3
    assert not by_student[1].any()
    assert 0 < by_teacher[0] < 3
    assert 0 < by_teacher[1].abs().max() < 1
    assert not by_both[0].any()
    assert not by_both[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_have_no_loss(backend: str, rows: int) -> None:
    with use_backend(backend) as device:
        for function in (relational_distillation, relational_distance, relational_angle):
            loss, gradient = loss_and_gradient(function, points(rows, 3).float().to(device), points(rows, 4).to(device))
            assert loss == 0
            assert gradient.shape == (rows, 3)
            assert not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", [1e-7, 1e-9, 1e-13, 1e-200])
def test_nearly_equal_rows_stay_finite(backend: str, spread: float) -> None:
    """Nearer than float64 tells from their inner products, or even from their squared difference."""
    student = points(12, 6, clusters=4, spread=0.0)
    student[5] += 1
    student += spread * torch.randn(12, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with use_backend(backend) as device:
        loss, gradient = loss_and_gradient(relational_distillation, student.to(device), points(12, 6, 1).to(device))
    assert 0 < loss < 3
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_turning_nor_moving_nor_scaling_matters(backend: str) -> None:
    student, teacher = points(20, 8), points(20, 8, 1)
    turn, _ = torch.linalg.qr(points(8, 8, 2))
    with use_backend(backend) as device:
        for function in (relational_distance, relational_angle):
            loss = function(student.to(device), teacher.to(device)).item()
            moved = function((3 * student @ turn + 5).to(device), (0.1 * teacher - 2).to(device)).item()
            assert moved == pytest.approx(loss, rel=1e-9)
            assert function(student.to(device), (7 * student @ turn).to(device)).item() < 1e-20


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_teacher_gets_no_gradient(backend: str) -> None:
    with use_backend(backend) as device:
        student, teacher = points(5, 4).to(device).requires_grad_(), points(5, 4, 1).to(device).requires_grad_()
        relational_distillation(student, teacher).backward()
        assert student.grad is not None
        assert teacher.grad is None
        assert not relational_distillation(student.detach(), teacher).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_nan_and_infinity_make_the_loss_nan(backend: str, value: float, where: str) -> None:
    inputs = {"student": points(11, 5).float(), "teacher": points(11, 5, 1).float()}
    inputs[where][4, 2] = value
    with use_backend(backend) as device:
        for function in (relational_distillation, relational_distance, relational_angle):
            loss, gradient = loss_and_gradient(function, inputs["student"].to(device), inputs["teacher"].to(device))
            assert bool(loss.isnan())
            assert gradient.shape == (11, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_promote_inside_and_outside_autocast(backend: str) -> None:
    with use_backend(backend) as device:
        student = points(8, 6).to(device, torch.bfloat16).requires_grad_()
        teacher = points(8, 5, 1).to(device, torch.float32)
        outside = relational_distillation(student, teacher)
        with torch.autocast(device, dtype=torch.bfloat16):
            inside = relational_distillation(student, teacher)
            assert relational_distillation(student, teacher.bfloat16()).dtype == torch.bfloat16
        inside.backward()
    assert inside.dtype == outside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16


def test_a_large_loss_scale_keeps_half_precision_gradients() -> None:
    student, teacher = points(32, 16).half().requires_grad_(), points(32, 16, 1).half()
    (gradient,) = torch.autograd.grad(relational_distillation(student, teacher), student, torch.tensor(2.0**14).half())
    wanted = loss_and_gradient(reference.relational_distillation, student.double(), teacher.double(), 1.0, 2.0)[1]
    assert relative_error(gradient.double() / 2**14, wanted) <= 1e-3


def test_module() -> None:
    student, teacher = points(7, 6), points(7, 5, 1)
    module = RelationalDistillation(distance=0.5)
    assert torch.equal(module(student, teacher), relational_distillation(student, teacher, distance=0.5, angle=2.0))
    assert repr(module) == "RelationalDistillation(distance=0.5, angle=2.0)"
    assert not module.state_dict()
    with pytest.raises(InputError, match="RelationalDistillation: angle must be a finite number, got 'x'"):
        RelationalDistillation(angle="x")  # type: ignore[arg-type]


def test_weights_that_change_compile() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 3)
    module = RelationalDistillation()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for distance in (1.0, 2.0, 3.0):
        module.distance = distance
        assert torch.equal(compiled(student, teacher), relational_distillation(student, teacher, distance=distance))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_any_size_is_exported(backend: str) -> None:
    batch = torch.export.Dim("batch", min=2)
    with use_backend(backend) as device:
        student, teacher = torch.randn(6, 5, device=device), torch.randn(6, 3, device=device)
        program = torch.export.export(
            RelationalDistillation(), (student, teacher), dynamic_shapes=({0: batch}, {0: batch})
        )
        student, teacher = torch.randn(9, 5, device=device), torch.randn(9, 3, device=device)
        torch.testing.assert_close(program.module()(student, teacher), relational_distillation(student, teacher))


def test_a_second_derivative_is_an_error_that_says_so() -> None:
    student = points(5, 4).requires_grad_()
    with use_backend("cpu"):
        loss = relational_angle(student, points(5, 4, 1))
        (first,) = torch.autograd.grad(loss, student, create_graph=True)
        with pytest.raises(NotImplementedError, match="relational_distillation has no second derivative"):
            first.sum().backward()


def test_the_kernel_says_when_it_was_not_asked_for_a_gradient() -> None:
    student, teacher = points(5, 4).requires_grad_(), points(5, 4, 1)
    loss, matrix = torch.ops.deocc.relational_distillation(student, teacher, 1.0, 2.0, False)
    assert matrix.shape == (0, 0)
    with pytest.raises(RuntimeError, match="it is empty when the loss was computed without its gradient"):
        loss.backward()


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("rows", [3, 37, 150])
def test_threads_agree(threads: int, rows: int) -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(loss_and_gradient(relational_distillation, points(rows, 300), points(rows, 70, 1)))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("width", ["avx2", "narrow"])
def test_narrower_vectors_give_the_same(width: str, tmp_path: Path) -> None:
    """In another process: the width is chosen once."""
    script = (
        "import torch; from deocc.ops import relational_distillation as rd; g = torch.Generator().manual_seed(0);"
        "s, t = torch.randn(2, 45, 67, generator=g); s[7] = s[3]; s.requires_grad_();"
        "r = rd(s, t); torch.save([r.detach(), *torch.autograd.grad(r, s)], {!r})"
    )
    results = []
    for variable in (None, width):
        path = tmp_path / f"{variable}.pt"
        environment = os.environ | ({"DEOCC_VECTOR": variable} if variable else {})
        subprocess.run([sys.executable, "-c", script.format(str(path))], env=environment, check=True)
        results.append(torch.load(path))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_triton_interpreted() -> None:
    """The GPU's kernels, on the CPU, in another process: Triton decides when it is imported."""
    pytest.importorskip("triton", reason="triton is not installed")
    script = """
import torch
from deocc.ops.reference import relational_distillation as reference
from deocc.ops.triton import relational_distillation as kernel
kernel._ENDS, kernel._VERTICES = 4, 2  # several blocks of both
both = (1.0, 2.0)
for rows, depth, weights in (6, 5, both), (6, 70, (1.0, 0.0)), (3, 5, (0.0, 3.0)), (1, 3, both), (0, 3, both):
    g = torch.Generator().manual_seed(0)
    s = torch.randn(rows, depth, generator=g, dtype=torch.float64) + 100
    t = torch.randn(rows, 4, generator=g, dtype=torch.float64)
    if rows > 5:
        s[1] = s[4]
        s[2] = s[5] + 1e-4 * s[0]
        t[3] = t[4]
        t = t.T.contiguous().T
    s.requires_grad_()
    wanted = reference.relational_distillation(s, t, *weights)
    (slope,) = torch.autograd.grad(wanted, s)
    got, matrix = kernel.relational_distillation(s.detach(), t, *weights, True)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-15)
    gradient = kernel.relational_distillation_backward(torch.tensor(2.0).double(), matrix, s.detach())
    torch.testing.assert_close(gradient, 2 * slope, rtol=1e-7, atol=1e-12)
    alone, empty = kernel.relational_distillation(s.detach(), t, *weights, False)
    assert torch.equal(alone, got) and empty.shape == (0, 0)
    half, matrix = kernel.relational_distillation(s.detach().bfloat16(), t.bfloat16(), *weights, True)
    assert half.dtype == torch.bfloat16 and matrix.dtype == torch.float64
"""
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)


def _some() -> Tensor:
    return torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, _some()), {}, "student must be a torch.Tensor, got NoneType"),
        ((_some(), _some().int()), {}, "teacher must be float32, float64, bfloat16 or float16, got torch.int32"),
        ((_some(), _some()[0]), {}, r"teacher must have shape \(N, D\), got \(3,\)"),
        ((_some(), _some()[:3]), {}, "teacher must have as many rows as the student, 4, got 3"),
        ((_some(), _some().to("meta")), {}, "teacher must be on the student's device cpu, got meta"),
        ((_some().to_sparse(), _some()), {}, "student must be a dense tensor, got torch.sparse_coo"),
        ((_some(), _some()), {"distance": float("inf")}, "distance must be a finite number, got inf"),
        ((_some(), _some()), {"angle": None}, "angle must be a finite number, got None"),
        ((_some(), _some()), {"angle": True}, "angle must be a finite number, got True"),
    ],
)
def test_what_cannot_be_used(arguments: tuple[object, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"relational_distillation: {message}"):
        relational_distillation(*arguments, **options)  # type: ignore[arg-type]


def test_errors_name_the_function_that_was_called() -> None:
    with pytest.raises(InputError, match="relational_distance: student must have shape"):
        relational_distance(_some()[0], _some())
    with pytest.raises(InputError, match="relational_angle: student must have shape"):
        relational_angle(_some()[0], _some())


SHAPES = st.lists(st.integers(0, 3), min_size=0, max_size=3).map(tuple)
ANY_DTYPE = st.sampled_from([*DTYPES, torch.uint8, torch.int64, torch.bool, torch.complex64])


@given(st.lists(st.tuples(SHAPES, ANY_DTYPE), min_size=3, max_size=3))
@settings(max_examples=200, deadline=None)
def test_nothing_crashes_the_interpreter(drawn: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    one, two, three = (torch.ones(shape).to(dtype) for shape, dtype in drawn)
    with contextlib.suppress(InputError, RuntimeError):
        relational_distillation(one, two)
    with contextlib.suppress(RuntimeError):  # the kernels check for themselves
        torch.ops.deocc.relational_distillation(one, two, 1.0, 2.0, True)
    with contextlib.suppress(RuntimeError):
        torch.ops.deocc.relational_distillation_backward(one, two, three)
