from __future__ import annotations

import contextlib
import gc
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deocc.errors import InputError
from deocc.ops import InfoNCE, KeyQueue, backends, info_nce
from deocc.ops.reference import info_nce as reference
from deocc.testing.operators import DTYPES, use_backend

BACKENDS = [name for name, state in backends("info_nce").items() if state.available]
KERNELS = [name for name in BACKENDS if name != "reference"]


def vectors(count: int, dim: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(rows, dim, generator=generator, dtype=torch.float64) for rows in (count, count, keys)]
    query, positive, queue = (F.normalize(value, dim=1).to(dtype) for value in rows)
    return query, positive, queue


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).norm() / wanted.norm()).item()


def both(query: Tensor, positive: Tensor, queue: Tensor, temperature: float = 0.07) -> list[Tensor]:
    q, p = query.detach().requires_grad_(), positive.detach().requires_grad_()
    loss = info_nce(q, p, queue, temperature=temperature)
    return [value.detach().cpu() for value in (loss, *torch.autograd.grad(loss, (q, p)))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_cross_entropy_of_finding_the_positive(backend: str) -> None:
    query, positive, queue = vectors(20, 16, 90, torch.float64)
    scores = torch.cat([(query * positive).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.07
    wanted = F.cross_entropy(scores, torch.zeros(20, dtype=torch.long))
    with use_backend(backend) as device:
        torch.testing.assert_close(info_nce(*(v.to(device) for v in (query, positive, queue))).cpu(), wanted)
        again = InfoNCE(0.5)(*(v.to(device) for v in (query, positive, queue))).cpu()
    torch.testing.assert_close(again, F.cross_entropy(scores * 0.14, torch.zeros(20, dtype=torch.long)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.001, 0.07, 1.0, 100.0])
def test_near_the_reference_in_double_precision(backend: str, temperature: float) -> None:
    inputs = vectors(70, 48, 3000)
    q, p, k = (value.double() for value in inputs)
    q, p = q.requires_grad_(), p.requires_grad_()
    loss = reference.info_nce(q, p, k, temperature)
    wanted = [loss.detach(), *torch.autograd.grad(loss, (q, p))]
    with use_backend(backend) as device:
        got = both(*(value.to(device) for value in inputs), temperature)
    bounds = (2e-5, 1e-4, 1e-4) if temperature >= 0.07 else (2e-5, 1e-3, 1e-3)  # scores of 1000 have 4 digits behind
    for one, other, bound in zip(got, wanted, bounds, strict=True):
        assert relative_error(one, other) <= bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_queue_is_read_as_it_is_stored(backend: str, dtype: torch.dtype, stored: torch.dtype) -> None:
    query, positive, queue = vectors(33, 31, 517)
    inputs = query.to(dtype), positive.to(dtype), queue.to(stored)
    q, p, k = (value.double() for value in inputs)
    q, p = q.requires_grad_(), p.requires_grad_()
    loss = reference.info_nce(q, p, k, 0.07)
    wanted = [loss.detach(), *torch.autograd.grad(loss, (q, p))]
    with use_backend(backend) as device:
        got = both(*(value.to(device) for value in inputs))
    assert got[0].dtype == torch.promote_types(dtype, stored)
    assert got[1].dtype == got[2].dtype == dtype
    rounded = stored == torch.bfloat16 and dtype != torch.float64
    bounds = (4e-3, 1e-2, 1e-2) if rounded or dtype == torch.bfloat16 else (2e-5, 1e-4, 1e-4)
    if stored == torch.float16 and dtype == torch.float32 and backend not in ("cpu", "reference"):
        bounds = (1e-4, 1e-3, 1e-3)  # GPUs round the query to the queue's type too
    for one, other, bound in zip(got, wanted, bounds, strict=True):
        assert relative_error(one, other) <= bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1), ()])
def test_only_the_gradients_that_are_asked_for(backend: str, asked: tuple[int, ...]) -> None:
    with use_backend(backend) as device:
        inputs = [value.to(device) for value in vectors(9, 8, 30)]
        for index in asked:
            inputs[index].requires_grad_()
        loss = info_nce(*inputs)
        assert loss.requires_grad == bool(asked)
        if asked:
            loss.backward()
        assert [value.grad is not None for value in inputs] == [index in asked for index in range(3)]
        with torch.no_grad():
            assert not info_nce(*inputs).requires_grad
            torch.testing.assert_close(info_nce(*inputs), loss.detach())


@pytest.mark.parametrize("backend", KERNELS)
def test_without_a_gradient_nothing_is_made_for_it(backend: str) -> None:
    with use_backend(backend) as device:
        inputs = [value.to(device) for value in vectors(9, 8, 30)]
        results = torch.ops.deocc.info_nce(*inputs, 0.07, False, False)
    assert [tuple(value.shape) for value in results] == [(), (0, 8), (0, 8)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_enqueueing_before_backward_changes_nothing(backend: str, compiled: bool) -> None:
    query, positive, _ = vectors(6, 5, 1)

    def loss_of(query: Tensor, queue: Tensor) -> Tensor:
        return info_nce(query, positive.to(query), queue)

    with use_backend(backend) as device:
        function = torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiled else loss_of
        gradients = []
        for early in (False, True):
            keys, q = KeyQueue(20, 5, device=device), query.to(device).requires_grad_()
            loss = function(q, keys.queue)
            if early:
                keys.enqueue(positive.to(device))
                keys.queue.fill_(torch.nan)
            gradients += torch.autograd.grad(loss, q)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_loss_keeps_no_queue_alive(backend: str) -> None:
    with use_backend(backend) as device:
        query, positive, queue = (value.to(device) for value in vectors(6, 5, 40))
        loss = info_nce(query.requires_grad_(), positive, queue)
        gc.collect()
        assert all(referrer is not loss.grad_fn for referrer in gc.get_referrers(queue))
        assert all(saved is None or saved.data_ptr() != queue.data_ptr() for saved in loss.grad_fn.saved_tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_do_not_see_each_other(backend: str) -> None:
    """NaN and infinity stay in their own query's gradient, and the loss shows them."""
    with use_backend(backend) as device:
        query, positive, queue = (value.to(device) for value in vectors(40, 8, 300))
        clean = both(query, positive, queue)
        for value in (torch.nan, torch.inf, -torch.inf):
            spoiled = query.clone()
            spoiled[3, 2] = value
            got = both(spoiled, positive, queue)
            assert not got[0].isfinite()
            assert not got[1][3].isfinite().all()
            others = [index for index in range(40) if index != 3]
            torch.testing.assert_close(got[1][others], clean[1][others])
            dirty = queue.clone()
            dirty[150, 2] = value
            assert not both(query, positive, dirty)[0].isfinite()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, -1, 0x7FFFFFFF])
def test_every_nan_is_one(backend: str, bits: int) -> None:
    with use_backend(backend) as device:
        query, positive, queue = vectors(3, 4, 50)
        queue[7, 1] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        for dtype in (torch.float32, torch.bfloat16):
            loss, gradient, _ = both(query.to(device), positive.to(device), queue.to(device, dtype))
            assert loss.isnan()
            assert gradient.isnan().any(dim=1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_find_or_nothing_to_confuse_it_with(backend: str, dtype: torch.dtype) -> None:
    with use_backend(backend) as device:
        query, positive, queue = (value.to(device, dtype) for value in vectors(5, 4, 9))
        for inputs in (
            (query[:0], positive[:0], queue),
            (query, positive, queue[:0]),
            (query[:0], positive[:0], queue[:0]),
        ):
            loss, by_query, by_positive = both(*inputs)
            assert loss == 0
            assert not by_query.any()
            assert not by_positive.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_far_apart(backend: str) -> None:
    """exp of a score of 1000 is beyond any float; a hopeless positive costs the distance, a perfect one nothing."""
    right, wrong = torch.eye(2, dtype=torch.float32).chunk(2)
    with use_backend(backend) as device:
        query = right.to(device)
        hopeless = both(query, -query, query.repeat(3, 1), 0.001)
        perfect = both(query, query, torch.cat([-query, wrong.to(device)]), 0.001)
    assert hopeless[0].item() == pytest.approx(2000 + math.log(3))
    torch.testing.assert_close(hopeless[1], right * 2000, rtol=1e-4, atol=0)
    assert perfect[0] == 0
    assert not perfect[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-6, 1e-10, 1e-12])
def test_huge_scores(backend: str, stored: torch.dtype, temperature: float) -> None:
    """Scores whose rounding alone is beyond any exponential: the loss is a difference of two, or 0."""
    query, positive, queue = vectors(40, 16, 300)
    positive[:5] = query[:5]  # nothing is as near, and nothing but that counts
    query, positive, queue = (value.bfloat16().float() for value in (query, positive, queue))
    with use_backend(backend) as device:
        inputs = [query.to(device), positive.to(device), queue.to(device, stored)]
        loss, by_query, _ = both(*inputs, temperature)
        right = both(*(value[:5] for value in inputs[:2]), inputs[2], temperature)
    scores = query.double() @ queue.double().T
    differences = scores.amax(1) - (query.double() * positive.double()).sum(1)
    assert loss.item() == pytest.approx((differences.clamp(min=0) / temperature).mean().item(), rel=1e-4)
    best = queue[scores.argmax(1)] - positive
    best[:5] = 0
    assert relative_error(by_query, best.double() / (40 * temperature)) < 1e-3
    assert right[0] == 0
    assert not right[1].any()


def test_a_temperature_that_changes_compiles() -> None:
    inputs = vectors(4, 3, 9)
    compiled = torch.compile(info_nce, fullgraph=True, backend="aot_eager")
    for temperature in (0.07, 0.1, 0.2):
        assert torch.equal(compiled(*inputs, temperature=temperature), info_nce(*inputs, temperature=temperature))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rising_scores_keep_what_was_added_up(backend: str) -> None:
    """Keys from the worst to the best: the highest score so far changes again and again."""
    query, positive, queue = vectors(40, 8, 2000, torch.float64)
    queue = queue[(query[0] @ queue.T).argsort()]
    q, p = query.clone().requires_grad_(), positive.clone().requires_grad_()
    loss = reference.info_nce(q, p, queue, 0.002)
    wanted = [loss.detach(), *torch.autograd.grad(loss, (q, p))]
    with use_backend(backend) as device:
        got = both(query.to(device), positive.to(device), queue.to(device), 0.002)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_the_vectors_dtype(backend: str) -> None:
    with use_backend(backend) as device, torch.autocast(device, dtype=torch.bfloat16):
        q, p, k = (value.to(device) for value in vectors(3, 4, 9))
        assert info_nce(q, p, k).dtype == torch.float32
        assert info_nce(q.bfloat16(), p.bfloat16(), k).dtype == torch.float32
        assert info_nce(q, p, k.bfloat16()).dtype == torch.float32
        assert info_nce(q.bfloat16(), p.bfloat16(), k.bfloat16()).dtype == torch.bfloat16
        inside = info_nce(q, p, k)
    with use_backend(backend):
        assert torch.equal(inside, info_nce(q, p, k))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("by", [0, 1])
def test_a_second_derivative_is_an_error_that_says_so(backend: str, by: int) -> None:
    """Also where the first one does not depend on the loss's own gradient, and 0 would come back unnoticed."""
    with use_backend(backend) as device:
        inputs = [value.to(device) for value in vectors(4, 3, 9)]
        inputs[by].requires_grad_()
        (first,) = torch.autograd.grad(info_nce(*inputs), inputs[by], create_graph=True)
        with pytest.raises(NotImplementedError, match="info_nce has no second derivative"):
            first.square().sum().backward()


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("count", [5, 300, 700])
def test_threads_agree(threads: int, count: int) -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for number in (1, threads):
            torch.set_num_threads(number)
            results.append(both(*vectors(count, 20, 1500, torch.float64)))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("width", ["avx512", "avx2", "narrow"])
def test_narrower_vectors_give_the_same(width: str, tmp_path: Path) -> None:
    """In another process: the width is chosen once."""
    script = (
        "import torch; from deocc.ops import info_nce; g = torch.Generator().manual_seed(0);"
        "q, p = torch.randn(2, 45, 70, generator=g).mul(0.1).requires_grad_().unbind(0);"
        "k = torch.randn(700, 70, generator=g).mul(0.1); out = [];"
        "[out.extend([l.detach(), *torch.autograd.grad(l, (q, p))]) for t in (torch.float32, torch.float64,"
        " torch.bfloat16, torch.float16) for l in [info_nce(q, p, k.to(t))]]; torch.save(out, {!r})"
    )
    results = []
    for variable in (None, width):
        path = tmp_path / f"{variable}.pt"
        environment = os.environ | ({"DEOCC_VECTOR": variable} if variable else {})
        subprocess.run([sys.executable, "-c", script.format(str(path))], env=environment, check=True)
        results.append(torch.load(path))
    for index, (one, other) in enumerate(zip(*results, strict=True)):
        assert relative_error(one, other.double()) <= (
            1e-2 if index // 3 == 2 else 1e-5
        )  # the third rounds to bfloat16


@pytest.mark.slow
def test_triton_interpreted() -> None:
    """The GPU's kernels, on the CPU, in another process: Triton decides when it is imported.

    Not in bfloat16, which the interpreter multiplies as if it were integers.
    """
    pytest.importorskip("triton", reason="triton is not installed")
    script = """
import torch
from deocc.ops.reference import info_nce as reference
from deocc.ops.triton import info_nce as kernel
kernel._QUERIES, kernel._KEYS, kernel._COLUMNS, kernel._PROGRAMS = 16, 16, 16, 6
for (n, d, k), dtype, stored, bound in (
    ((5, 8, 40), torch.float64, torch.float64, 1e-9), ((20, 37, 70), torch.float32, torch.float32, 1e-5),
    ((3, 4, 9), torch.float64, torch.float32, 1e-9), ((20, 20, 50), torch.float32, torch.float16, 1e-2),
    ((4, 20, 50), torch.float16, torch.float16, 1e-2), ((4, 6, 0), torch.float32, torch.float32, 1e-9),
    ((0, 6, 9), torch.float32, torch.float32, 1e-9),
):
    g = torch.Generator().manual_seed(0)
    q, p, keys = (torch.randn(m, d, generator=g, dtype=torch.float64) / d**0.5 for m in (n, n, k))
    q, p, keys = q.to(dtype), p.to(dtype), keys.T.contiguous().T.to(stored)
    wide = [v.double() for v in (q, p, keys)]
    leaves = [v.clone().requires_grad_() for v in wide[:2]]
    loss = reference.info_nce(*leaves, wide[2], 0.07)
    wanted = [loss, *torch.autograd.grad(loss, leaves)]
    got = kernel.info_nce(q, p, keys, 0.07, True, True)
    for one, other in zip(got, wanted):
        torch.testing.assert_close(one.double(), other.detach(), rtol=bound, atol=bound)
    only, *nothing = kernel.info_nce(q, p, keys, 0.07, False, False)
    assert only.dtype == dtype and [v.numel() for v in nothing] == [0, 0]
    torch.testing.assert_close(only.double(), wanted[0].detach(), rtol=bound, atol=bound)
    up = torch.tensor(-2.0, dtype=dtype)
    by_query, by_positive = kernel.info_nce_backward(up, got[1], got[2], q, p)
    assert by_query.dtype == dtype
    torch.testing.assert_close(by_query.double(), -2 * wanted[1], rtol=bound, atol=2 * bound)
"""
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@given(batches=st.lists(st.integers(0, 17), max_size=6))
@settings(max_examples=25, deadline=None)
def test_enqueueing_is_one_by_one(stored: torch.dtype, batches: list[int]) -> None:
    """Wrapping around in the middle of a batch, and with batches of more than the queue holds."""
    queue = KeyQueue(7, 3, dtype=stored)
    rows, pointer = queue.queue.clone(), 0
    generator = torch.Generator().manual_seed(len(batches))
    for count in batches:
        keys = torch.randn(count, 3, generator=generator)
        queue.enqueue(keys)
        for key in keys:
            rows[pointer] = F.normalize(key, dim=0).to(stored)
            pointer = (pointer + 1) % 7
        torch.testing.assert_close(queue.queue, rows)
        assert queue.pointer == pointer


def test_enqueueing_compiles() -> None:
    one, other = KeyQueue(10, 4), KeyQueue(10, 4)
    compiled = torch.compile(one.enqueue, fullgraph=True, backend="aot_eager")
    for keys in torch.randn(4, 7, 4, generator=torch.Generator().manual_seed(0)):
        compiled(keys)
        other.enqueue(keys)
    assert torch.equal(one.queue, other.queue)
    assert torch.equal(one.pointer, other.pointer)


def test_a_queue_resumes_in_the_middle() -> None:
    straight, before = KeyQueue(10, 4), KeyQueue(10, 4)
    batches = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(0))
    for keys in batches:
        straight.enqueue(keys)
    for keys in batches[:3]:
        before.enqueue(keys)
    stored = io.BytesIO()
    torch.save(before.state_dict(), stored)
    stored.seek(0)
    resumed = KeyQueue(10, 4, seed=5)
    resumed.load_state_dict(torch.load(stored))
    for keys in batches[3:]:
        resumed.enqueue(keys)
    assert set(straight.state_dict()) == {"queue", "pointer"}
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_a_new_queue_is_the_same_everywhere() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = KeyQueue(50, 8)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(one.queue, KeyQueue(50, 8).queue)
    assert not torch.equal(one.queue, KeyQueue(50, 8, seed=1).queue)
    torch.testing.assert_close(one.queue.norm(dim=1), torch.ones(50))
    assert not one.queue.requires_grad
    assert repr(one) == "KeyQueue(50, 8, dtype=torch.float32)"
    assert repr(InfoNCE()) == "InfoNCE(temperature=0.07)"


def test_keys_are_detached_and_normalised() -> None:
    queue = KeyQueue(4, 3, dtype=torch.bfloat16)
    keys = torch.tensor([[3.0, 0, 4], [0, 0, 0]], requires_grad=True)
    queue.enqueue(keys)
    assert not queue.queue.requires_grad
    torch.testing.assert_close(queue.queue[:2].float(), torch.tensor([[0.6, 0, 0.8], [0, 0, 0]]), rtol=4e-3, atol=0)
    queue.enqueue(torch.full((1, 3), torch.nan, dtype=torch.float64))
    assert queue.queue[2].isnan().all()


@pytest.mark.parametrize("size", [1e-30, 1e20, 3e38])
def test_keys_of_any_length_are_normalised(size: float) -> None:
    queue = KeyQueue(1, 4)
    queue.enqueue(torch.full((1, 4), size))
    torch.testing.assert_close(queue.queue, torch.full((1, 4), 0.5))


def test_training_is_what_the_usual_code_makes_of_it() -> None:
    """Some steps of momentum contrast, with the queue changed before every backward, and the usual clone of it."""
    trained = []
    for usual in (False, True):
        generator = torch.Generator().manual_seed(0)
        encoder = torch.nn.Parameter(torch.randn(16, 8, generator=generator, dtype=torch.float64))
        keys = KeyQueue(50, 8, dtype=torch.float64)
        for _ in range(8):
            views = torch.randn(2, 12, 16, generator=generator, dtype=torch.float64)
            query, key = (F.normalize(view @ encoder, dim=1) for view in views)
            if usual:
                scores = torch.cat([(query * key).sum(1, keepdim=True), query @ keys.queue.clone().T], dim=1) / 0.2
                loss = F.cross_entropy(scores, torch.zeros(12, dtype=torch.long))
            else:
                loss = InfoNCE(0.2)(query, key, keys.queue)
            keys.enqueue(key)
            (gradient,) = torch.autograd.grad(loss, encoder)
            with torch.no_grad():
                encoder -= gradient
        trained.append(encoder.detach())
    torch.testing.assert_close(*trained)


@pytest.mark.slow
def test_two_processes_hold_one_queue(tmp_path: Path) -> None:
    script = Path(__file__).with_name("info_nce_ddp.py")
    path = os.pathsep.join(filter(None, [str(script.parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "meeting", tmp_path / f"{rank}.pt"],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said[-3000:]
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    alone = KeyQueue(7, 3)
    counts = [*((2, 2), (1, 3), (0, 2), (5, 6)), None]
    for one, other, sizes in zip(*states, counts, strict=True):
        if sizes is None:
            alone.enqueue(torch.eye(3).repeat(2, 1))
        else:
            rows = [rank + torch.arange(3.0 * count).view(count, 3) for rank, count in enumerate(sizes)]
            alone.enqueue(torch.cat(rows))
        for name, value in alone.state_dict().items():
            assert torch.equal(one[name], other[name])
            assert torch.equal(one[name], value)


def test_gathering_alone_gathers_nothing_else() -> None:
    one, other = KeyQueue(7, 3), KeyQueue(7, 3)
    one.enqueue(torch.eye(3), gather=True)
    other.enqueue(torch.eye(3))
    assert torch.equal(one.queue, other.queue)


def _some(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, _some(), _some()), {}, "query must be a torch.Tensor, got NoneType"),
        ((_some(), None, _some()), {}, "positive must be a torch.Tensor, got NoneType"),
        (
            (_some(), _some().int(), _some()),
            {},
            "positive must be float32, float64, bfloat16 or float16, got torch.int",
        ),
        ((_some(), _some(), _some().bool()), {}, "queue must be float32"),
        ((_some(2, 4, 1), _some(), _some()), {}, r"query must have shape \(N, D\) with D at least 1, got \(2, 4, 1\)"),
        (
            (_some(2, 0), _some(2, 0), _some(2, 0)),
            {},
            r"query must have shape \(N, D\) with D at least 1, got \(2, 0\)",
        ),
        ((_some(), _some(), _some(4)), {}, r"queue must have shape \(K, D\) with D at least 1, got \(4,\)"),
        ((_some(), _some(1, 4), _some()), {}, r"positive must have the query's shape \(2, 4\), got \(1, 4\)"),
        ((_some(), _some(), _some(4, 2)), {}, r"queue must have shape \(K, 4\) for queries of that dimension, got"),
        ((_some(), _some(), _some().requires_grad_()), {}, "the queue gets no gradient, and this one requires one"),
        ((_some(), _some(), _some()), {"temperature": 0}, "temperature must be a positive, finite number, got 0"),
        ((_some(), _some(), _some()), {"temperature": -1.0}, "temperature must be a positive, finite number, got -1.0"),
        (
            (_some(), _some(), _some()),
            {"temperature": math.nan},
            "temperature must be a positive, finite number, got nan",
        ),
        (
            (_some(), _some(), _some()),
            {"temperature": math.inf},
            "temperature must be a positive, finite number, got inf",
        ),
        ((_some(), _some(), _some()), {"temperature": True}, "temperature must be a positive, finite number, got True"),
        ((_some(), _some(), _some()), {"temperature": None}, "temperature must be a positive, finite number, got None"),
        ((_some(), _some(), _some().to("meta")), {}, "queue must be on the query's device cpu, got meta"),
        ((_some(), _some().to_sparse(), _some()), {}, "positive must be a dense tensor, got torch.sparse_coo"),
    ],
)
def test_what_cannot_be_used(arguments: tuple[object, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        info_nce(*arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((_some(2, 4), _some(3, 4), _some(5, 4), 0.07), "positive must have the query's shape"),
        ((_some(2, 4), _some(2, 4), _some(5, 3), 0.07), "queue must have as many columns as the query"),
        ((_some(2, 4), _some(2, 4), _some(5, 4).double(), 0.07), "must convert to the query's without loss"),
        ((_some(2, 4), _some(2, 4).double(), _some(5, 4), 0.07), "query and positive must have one dtype"),
        ((_some(2, 4), _some(2, 4), _some(5, 4), 0.0), "temperature must be positive"),
    ],
)
def test_the_kernel_checks_for_itself(arguments: tuple[object, ...], message: str) -> None:
    if "cpu" not in BACKENDS:
        pytest.skip("there are no compiled kernels")
    with pytest.raises(RuntimeError, match=message):
        torch.ops.deocc.info_nce(*arguments, True, True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (None, "keys must be a torch.Tensor, got NoneType"),
        (_some(2, 5), r"keys must have shape \(B, 4\), got \(2, 5\)"),
        (_some(4), r"keys must have shape \(B, D\) with D at least 1, got \(4,\)"),
        (_some(2, 4).long(), "keys must be float32, float64, bfloat16 or float16, got torch.int64"),
        (_some(2, 4).to("meta"), "keys must be on the queue's device cpu, got meta"),
    ],
)
def test_keys_that_cannot_be_enqueued(keys: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        KeyQueue(3, 4).enqueue(keys)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 4), {}, "length must be an integer of at least 1, got 0"),
        ((4, 1.5), {}, "dim must be an integer of at least 1, got 1.5"),
        ((4, True), {}, "dim must be an integer of at least 1, got True"),
        ((4, 4), {"seed": "a"}, "seed must be an integer from .*, got 'a'"),
        ((4, 4), {"seed": 2**64}, "seed must be an integer from .*, got 18446744073709551616"),
        ((4, 4), {"dtype": torch.int8}, "dtype must be float32, float64, bfloat16 or float16, got torch.int8"),
    ],
)
def test_queues_that_cannot_be(arguments: tuple[object, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KeyQueue(*arguments, **options)  # type: ignore[arg-type]


def test_a_temperature_that_cannot_be() -> None:
    with pytest.raises(InputError, match="InfoNCE: temperature must be a positive, finite number, got -1"):
        InfoNCE(-1)


def test_the_first_keys_depend_on_no_default() -> None:
    wanted = KeyQueue(8, 4, seed=3).queue
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(KeyQueue(8, 4, seed=3).queue, wanted)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(KeyQueue(8, 4, seed=3, device="cpu").queue, wanted)
        other = KeyQueue(8, 4)
    assert other.queue.is_meta
    assert other.pointer.is_meta


SHAPES = st.lists(st.integers(0, 3), min_size=0, max_size=3).map(tuple)
ANY_DTYPE = st.sampled_from([*DTYPES, torch.uint8, torch.int64, torch.bool, torch.complex64])


@given(st.lists(st.tuples(SHAPES, ANY_DTYPE), min_size=5, max_size=5), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_nothing_crashes_the_interpreter(
    drawn: list[tuple[tuple[int, ...], torch.dtype]], by_query: bool, by_positive: bool
) -> None:
    one, two, three, four, five = (torch.ones(shape).to(dtype) for shape, dtype in drawn)
    with contextlib.suppress(RuntimeError):  # the kernels check for themselves
        torch.ops.deocc.info_nce(one, two, three, 0.07, by_query, by_positive)
    with contextlib.suppress(RuntimeError):
        torch.ops.deocc.info_nce_backward(one, two, three, four, five)
