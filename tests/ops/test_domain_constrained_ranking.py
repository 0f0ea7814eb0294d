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
from torch.nn.functional import pad

from deocc.errors import InputError
from deocc.ops import DomainCenters, backends, domain_constrained_ranking
from deocc.ops.reference import domain_constrained_ranking as reference
from deocc.testing.operators import DTYPES, SPECS, use_backend

SPEC = SPECS["domain_constrained_ranking"]
BACKENDS = [name for name, state in backends("domain_constrained_ranking").items() if state.available]


def on(device: str, *tensors: Tensor) -> list[Tensor]:
    return [value.to(device) for value in tensors]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double().cpu() - wanted).norm() / wanted.norm()).item()


def loss_and_gradient(function: Callable[..., Tensor], features: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    leaf = features.detach().requires_grad_()
    loss = function(leaf, *others)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("negatives", ["batch", "all"])
def test_the_equations_one_by_one(backend: str, negatives: str) -> None:
    """In plain loops over images: equations 8 to 11."""
    features, labels, domains, centers, known = SPEC.case("unknown").draw()
    count, total = len(features), 0.0

    def d(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm())

    for i in range(count):
        x, label = int(domains[i]), int(labels[i])
        others = [j for j in range(count) if domains[j] == x and labels[j] != label]
        if known[x, label] and others:
            own = centers[x, label]
            total += max(d(own, features[i]) + 0.7 - min(d(own, features[j]) for j in others), 0)
        partners = [j for j in range(count) if domains[j] != x and labels[j] == label]
        rivals = [int(labels[j]) for j in others] if negatives == "batch" else range(centers.shape[1])
        rivals = [rival for rival in rivals if known[x, rival] and rival != label]
        if partners and rivals:
            nearest = min(d(features[i], centers[x, rival]) for rival in rivals)
            total += 0.75 * max(max(d(features[i], features[j]) for j in partners) + 0.5 - nearest, 0)
    with use_backend(backend) as device:
        inputs = on(device, features, labels, domains, centers, known)
        got = domain_constrained_ranking(*inputs, negatives=negatives)  # type: ignore[arg-type]
    assert got.item() == pytest.approx(total / count)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["minibatch", "minibatch-all", "unknown-all"])
def test_near_the_reference_in_double_precision(backend: str, case: str) -> None:
    options = SPEC.case(case).options
    inputs = SPEC.case(case).draw(dtype=torch.float32)
    wanted = loss_and_gradient(
        lambda *x: SPEC.reference(*x, **options), *(x.double() if x.is_floating_point() else x for x in inputs)
    )
    with use_backend(backend) as device:
        got = loss_and_gradient(lambda *x: domain_constrained_ranking(*x, **options), *on(device, *inputs))
    assert relative_error(got[0], wanted[0]) <= 2e-5
    assert relative_error(got[1], wanted[1]) <= 1e-4


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize(("spread", "shift"), [(1e-4, 0.0), (1e-6, 1.0), (0.8, 100.0), (1e-20, 0.0), (1e18, 0.0)])
def test_close_centres_are_told_apart(backend: str, spread: float, shift: float) -> None:
    """In clusters and far from the origin, where a float32 product has no correct digit of a distance left."""
    features, labels, domains, centers, known = SPEC.case("unknown-all").draw()
    features, centers = ((value * spread + shift).float() for value in (features, centers))

    def weighted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *x: function(*x, margin_single=spread, margin_cross=spread, negatives="all")

    wanted = loss_and_gradient(weighted(SPEC.reference), features.double(), labels, domains, centers.double(), known)
    with use_backend(backend) as device:
        inputs = on(device, features, labels, domains, centers, known)
        got = loss_and_gradient(weighted(domain_constrained_ranking), *inputs)
    assert relative_error(got[0], wanted[0]) <= 2e-5
    assert relative_error(got[1], wanted[1]) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("negatives", ["batch", "all"])
def test_of_equals_the_first_counts(backend: str, negatives: str) -> None:
    """Two centres and two images that are equally near or far: one of each has the gradient."""
    labels = torch.tensor([0, 2, 1, 0, 0])
    domains = torch.tensor([0, 0, 0, 1, 1])
    features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    centers = torch.zeros(2, 3, 2, dtype=torch.float64)
    centers[:, 1], centers[:, 2] = torch.tensor([0.0, -1.0]), torch.tensor([0.0, 1.0])
    with use_backend(backend) as device:
        _, gradient = loss_and_gradient(
            lambda *x: domain_constrained_ranking(*x, margin_single=1.5, negatives=negatives),  # type: ignore[arg-type]
            *on(device, features, labels, domains, centers),
        )
    first = features[1] if negatives == "batch" else features[2]
    gradient = gradient.cpu() * 5
    # Image 0, eq. 8: pushes image 1, the first; eq. 10: pulled to image 3, the first; eq. 9: from the first centre.
    # Images 1 and 2 push image 0 from their centres, in opposite directions.
    torch.testing.assert_close(gradient[0], 0.75 * (first - features[3]))
    torch.testing.assert_close(gradient[1], -features[1])
    assert not gradient[2].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_images_and_centres(backend: str, dtype: torch.dtype) -> None:
    """Distances of 0 have no direction: the loss is the margins, the gradient 0 and never NaN."""
    labels, domains = torch.arange(24) % 3, torch.arange(24) // 3 % 2
    with use_backend(backend) as device:
        inputs = on(device, torch.ones(24, 7, dtype=dtype), labels, domains, torch.ones(2, 3, 7, dtype=dtype))
        loss, gradient = loss_and_gradient(domain_constrained_ranking, *inputs)
    torch.testing.assert_close(loss.cpu(), torch.tensor(0.7 + 0.75 * 0.5, dtype=dtype))
    assert not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("negatives", ["batch", "all"])
@pytest.mark.parametrize("what", ["feature", "centre"])
def test_nan_among_what_is_compared_is_seen(backend: str, negatives: str, what: str) -> None:
    features, labels, domains, centers, known = SPEC.case("smoke").draw(dtype=torch.float32)
    if what == "feature":
        features[5, 3] = torch.nan
    else:
        centers[domains[5], labels[5], 3] = torch.nan
    with use_backend(backend) as device:
        inputs = on(device, features, labels, domains, centers, known)
        assert domain_constrained_ranking(*inputs, negatives=negatives).isnan()  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["unknown", "unknown-all", "nothing-known"])
def test_what_unknown_centres_hold_does_not_matter(backend: str, case: str) -> None:
    features, labels, domains, centers, known = SPEC.case(case).draw(dtype=torch.float32)
    changed = centers.masked_fill(~known[:, :, None], torch.nan)
    with use_backend(backend) as device:
        results = [
            loss_and_gradient(
                lambda *x: domain_constrained_ranking(*x, **SPEC.case(case).options),
                *on(device, features, labels, domains, value, known),
            )
            for value in (centers, changed)
        ]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinities_do_not_crash(backend: str, value: float) -> None:
    features, labels, domains, centers, known = SPEC.case("smoke").draw(dtype=torch.float32)
    features[2, 1] = value
    centers[1, 3, 0] = value
    with use_backend(backend) as device:
        inputs = on(device, features, labels, domains, centers, known)
        got = loss_and_gradient(lambda *x: domain_constrained_ranking(*x, negatives="all"), *inputs)
    wanted = loss_and_gradient(
        lambda *x: SPEC.reference(*x, negatives="all"), features.double(), labels, domains, centers.double(), known
    )
    torch.testing.assert_close(got[0].cpu(), wanted[0].float(), equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_promote_inside_and_outside_autocast(backend: str) -> None:
    features, labels, domains, centers, known = SPEC.case("smoke").draw(dtype=torch.float32)
    with use_backend(backend) as device:
        features, labels, domains, centers, known = on(device, features, labels, domains, centers, known)
        half = features.bfloat16().requires_grad_()
        outside = domain_constrained_ranking(half, labels, domains, centers, known)
        with torch.autocast(device, dtype=torch.bfloat16):
            inside = domain_constrained_ranking(half, labels, domains, centers, known)
        inside.backward()
        stored = domain_constrained_ranking(features, labels, domains, centers.half(), known)
        same = domain_constrained_ranking(features, labels, domains, centers.half().float(), known)
        both = domain_constrained_ranking(half, labels, domains, centers.bfloat16(), known)
    assert outside.dtype == inside.dtype == stored.dtype == torch.float32
    assert both.dtype == torch.bfloat16
    assert torch.equal(outside, inside)
    assert torch.equal(stored, same)
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_domains_may_be_bool_and_known_may_be_left_out(backend: str) -> None:
    with use_backend(backend) as device:
        features, labels, domains, centers, known = on(device, *SPEC.case("smoke").draw())
        wanted = domain_constrained_ranking(features, labels, domains, centers, known)
        assert torch.equal(wanted, domain_constrained_ranking(features, labels, domains != 0, centers))


def test_centres_may_change_before_the_backward_pass_and_have_no_gradient() -> None:
    features, labels, domains, centers, _ = SPEC.case("smoke").draw(dtype=torch.float32)
    features.requires_grad_()
    centers.requires_grad_()
    wanted = torch.autograd.grad(domain_constrained_ranking(features, labels, domains, centers), features)
    loss = domain_constrained_ranking(features, labels, domains, centers)
    with torch.no_grad():
        centers.zero_()
    loss.backward()
    assert torch.equal(features.grad, wanted[0])  # type: ignore[arg-type]
    assert centers.grad is None


def test_a_second_derivative_is_an_error_that_says_so() -> None:
    features, labels, domains, centers, _ = SPEC.case("smoke").draw()
    features.requires_grad_()
    with use_backend(next(name for name in BACKENDS if name != "reference")) as device:
        features, labels, domains, centers = on(device, features, labels, domains, centers)
        loss = domain_constrained_ranking(features, labels, domains, centers)
        (first,) = torch.autograd.grad(loss, features, create_graph=True)
        with pytest.raises(NotImplementedError, match="domain_constrained_ranking has no second derivative"):
            first.sum().backward()


@pytest.mark.parametrize("case", ["minibatch", "minibatch-all"])
def test_threads_give_the_same_bits(case: str) -> None:
    inputs, options = SPEC.case(case).draw(dtype=torch.float32), SPEC.case(case).options
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(loss_and_gradient(lambda *x: domain_constrained_ranking(*x, **options), *inputs))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


@pytest.mark.parametrize("margin", [(0, 0), (1, 2), (1, 3), (2, 2)], ids=str)
def test_bfloat16_may_lie_anywhere(margin: tuple[int, int]) -> None:
    """Two elements are read as one where they can be: rows at odd places cannot."""
    features, labels, domains, centers, known = SPEC.case("every-one-another").draw(dtype=torch.bfloat16)
    wanted = loss_and_gradient(domain_constrained_ranking, features, labels, domains, centers, known)
    one, other = (pad(value, margin)[..., margin[0] : value.shape[-1] + margin[0]] for value in (features, centers))
    got = loss_and_gradient(domain_constrained_ranking, one, labels, domains, other, known)
    across = other.transpose(1, 2).contiguous().transpose(1, 2)
    for found in (got, loss_and_gradient(domain_constrained_ranking, one, labels, domains, across, known)):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
    given = one, labels, domains != 0
    mixed = [
        torch.ops.deocc.domain_constrained_ranking(*given, value, known, 0.7, 0.5, 0.75, False, True)
        for value in (other, other.float())
    ]
    torch.testing.assert_close(*mixed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", ["avx512", "avx2", "narrow"])
def test_narrower_vectors_give_the_same(width: str, dtype: str, tmp_path: Path) -> None:
    """In another process: the width is chosen once. Products of bfloat16 choose, and do not compute, distances."""
    script = (
        "import torch; from deocc.testing.operators import SPECS; s = SPECS['domain_constrained_ranking'];"
        f"f, *x = s.case('minibatch-all').draw(dtype=torch.{dtype}); f.requires_grad_();"
        "r = s.function(f, *x, negatives='all'); torch.save([r.detach(), *torch.autograd.grad(r, f)], {!r})"
    )
    results = []
    for variable in (None, width):
        path = tmp_path / f"{variable}.pt"
        environment = os.environ | ({"DEOCC_VECTOR": variable} if variable else {})
        subprocess.run([sys.executable, "-c", script.format(str(path))], env=environment, check=True)
        results.append(torch.load(path))
    for one, other in zip(*results, strict=True):
        assert relative_error(one, other.double()) <= 1e-6


@pytest.mark.slow
def test_inductor() -> None:
    features, labels, domains, centers, known = SPEC.case("smoke").draw(dtype=torch.float32)
    compiled = torch.compile(lambda *inputs: domain_constrained_ranking(*inputs) * 2, fullgraph=True, dynamic=True)
    inputs = features, labels, domains, centers, known
    torch.testing.assert_close(compiled(*inputs), domain_constrained_ranking(*inputs) * 2)
    with pytest.raises(RuntimeError, match="labels must be from 0 to 6, got 7"):
        compiled(features, labels + 7 - labels.max(), domains, centers, known)


@pytest.mark.slow
def test_triton_interpreted() -> None:
    """The GPU's kernels, on the CPU, in another process: Triton decides when it is imported."""
    pytest.importorskip("triton", reason="triton is not installed")
    script = """
import torch
from deocc.ops.triton import domain_constrained_ranking as kernel
from deocc.testing.operators import SPECS
spec = SPECS["domain_constrained_ranking"]
kernel._PART = 32  # several parts to choose from
for name in ("smoke", "unknown", "unknown-all", "nothing-known", "one-image", "no-image", "every-one-another"):
    features, labels, domains, *centers = spec.case(name).draw()
    everywhere = spec.case(name).options.get("negatives") == "all"
    features.requires_grad_()
    wanted = spec.reference(features, labels, domains, *centers, **spec.case(name).options)
    given = features.detach(), labels, domains != 0, *centers, 0.7, 0.5, 0.75, everywhere, True
    got, gradient = kernel.domain_constrained_ranking(*given)
    torch.testing.assert_close(got, wanted.detach())
    torch.testing.assert_close(gradient, *torch.autograd.grad(wanted, features))
    twice = kernel.domain_constrained_ranking_backward(gradient.new_tensor(2.0), gradient, gradient)
    torch.testing.assert_close(twice, 2 * gradient)
features, labels, domains, centers, known = spec.case("smoke").draw(dtype=torch.bfloat16)
options = 0.7, 0.5, 0.75, True, True
got, gradient = kernel.domain_constrained_ranking(features, labels, domains != 0, centers, known, *options)
assert got.dtype == torch.bfloat16 and gradient.dtype == torch.float32
across = torch.randn(9, 12).T  # what is compiled expects contiguous results
_, gradient = kernel.domain_constrained_ranking(across, labels, domains != 0, centers, known, *options)
assert gradient.is_contiguous()
features[5, 3] = torch.nan
got, gradient = kernel.domain_constrained_ranking(features, labels, domains != 0, centers, known, *options[:4], False)
assert gradient.shape == (0, 9)
assert got.isnan()
images = torch.ones(24, 7), torch.arange(24) % 3, torch.arange(24) // 3 % 2 == 1
centers = torch.ones(2, 3, 7), torch.ones(2, 3, dtype=torch.bool)
got, gradient = kernel.domain_constrained_ranking(*images, *centers, 0.7, 0.5, 0.75, False, True)
torch.testing.assert_close(got, torch.tensor(0.7 + 0.75 * 0.5))
assert not gradient.any()
"""
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)


SHAPES = st.sampled_from([(), (0,), (4,), (0, 5), (4, 5), (4, 0), (2, 3), (2, 3, 5), (2, 0, 5), (2, 3, 0), (3, 3, 5)])
ANY_DTYPE = st.sampled_from([*DTYPES, torch.uint8, torch.int64, torch.bool, torch.complex64])
WANTED = [
    ((4, 5), torch.float32),
    ((4,), torch.int64),
    ((4,), torch.bool),
    ((2, 3, 5), torch.float32),
    ((2, 3), torch.bool),
]


@given(st.lists(st.none() | st.tuples(SHAPES, ANY_DTYPE), min_size=5, max_size=5), st.integers(-1, 4))
@settings(max_examples=300, deadline=None)
def test_nothing_crashes_the_interpreter(drawn: list[tuple[tuple[int, ...], torch.dtype] | None], value: int) -> None:
    """The kernels check for themselves: each input as it should be or anything else."""
    chosen = [one or other for one, other in zip(drawn, WANTED, strict=True)]
    tensors = [torch.full(shape, value, dtype=torch.int64).to(dtype) for shape, dtype in chosen]
    for everywhere in (False, True):
        with contextlib.suppress(RuntimeError):
            torch.ops.deocc.domain_constrained_ranking(*tensors, 0.7, 0.5, 0.75, everywhere, True)
    with contextlib.suppress(RuntimeError):
        torch.ops.deocc.domain_constrained_ranking_backward(tensors[1], tensors[0], tensors[0])


def test_export() -> None:
    class Loss(torch.nn.Module):
        def forward(self, features: Tensor, labels: Tensor, domains: Tensor, centers: Tensor) -> Tensor:
            return domain_constrained_ranking(features, labels, domains, centers)

    inputs = SPEC.case("smoke").draw(dtype=torch.float32)[:4]
    program = torch.export.export(Loss(), inputs)
    assert torch.equal(program.module()(*inputs), domain_constrained_ranking(*inputs))


def batch(count: int = 4) -> dict[str, object]:
    return {
        "features": torch.zeros(count, 5),
        "labels": torch.zeros(count, dtype=torch.int64),
        "domains": torch.zeros(count, dtype=torch.int64),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, "features must be a torch.Tensor, got NoneType"),
        ({"features": torch.zeros(4, 5).int()}, "features must be float32, .* got torch.int32"),
        ({"features": torch.zeros(4, 6)}, r"features must have shape \(N, 5\) for centers of shape \(2, 3, 5\)"),
        ({"features": torch.zeros(4, 5).to_sparse()}, "features must be a dense tensor, got torch.sparse_coo"),
        ({"features": torch.zeros(4, 5, device="meta")}, "features must be on the centers' device cpu, got meta"),
        ({"labels": torch.zeros(4)}, "labels must be int64, got torch.float32"),
        ({"labels": torch.zeros(3).long()}, r"labels must have shape \(4,\) for 4 features, got \(3,\)"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "labels must be from 0 to 2, got 3"),
        ({"labels": torch.tensor([0, -1, 2, 3])}, "labels must be from 0 to 2, got -1"),
        ({"domains": torch.zeros(4)}, "domains must be int64 or bool, got torch.float32"),
        ({"domains": torch.zeros(4, 1).bool()}, r"domains must have shape \(4,\) for 4 features, got \(4, 1\)"),
        ({"domains": torch.tensor([0, 1, 2, 0])}, "domains must be from 0 to 1, got 2"),
    ],
)
def test_images_that_cannot_be_used(change: dict[str, object], message: str) -> None:
    centers = DomainCenters(3, 5)
    with pytest.raises(InputError, match=f"domain_constrained_ranking: {message}"):
        domain_constrained_ranking(centers=centers.centers, **(batch() | change))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"DomainCenters.update: {message}"):
        centers.update(**(batch() | change))  # type: ignore[arg-type]
    assert not centers.known.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centers": [1.0]}, "centers must be a torch.Tensor, got list"),
        ({"centers": torch.zeros(2, 3, 5).long()}, "centers must be float32, .* got torch.int64"),
        ({"centers": torch.zeros(3, 5)}, r"centers must have shape \(2, identities, D\)"),
        ({"centers": torch.zeros(2, 0, 5)}, "centers must have shape .* with at least one identity and dimension, got"),
        ({"known": torch.ones(2, 3)}, "known must be a dense bool tensor or None, got torch.float32"),
        ({"known": torch.ones(2, 4).bool()}, r"known must have shape \(2, 3\) on cpu, got \(2, 4\) on cpu"),
        ({"known": torch.ones(2, 3).bool().to("meta")}, r"known must have shape \(2, 3\) on cpu, got .* on meta"),
        ({"margin_single": -1}, "margin_single must be a finite number of at least 0, got -1"),
        ({"margin_cross": float("nan")}, "margin_cross must be a finite number of at least 0, got nan"),
        ({"cross": "1"}, "cross must be a finite number of at least 0, got '1'"),
        ({"negatives": "some"}, "negatives must be 'batch' or 'all', got 'some'"),
        ({"negatives": None}, "negatives must be 'batch' or 'all', got None"),
    ],
)
def test_centres_and_options_that_cannot_be_used(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"domain_constrained_ranking: {message}"):
        domain_constrained_ranking(**(batch() | {"centers": torch.zeros(2, 3, 5)} | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 5), {}, "identities must be an integer of at least 1, got 0"),
        ((3, 5.0), {}, "dim must be an integer of at least 1, got 5.0"),
        ((3, 5), {"momentum": 1.5}, "momentum must be a number from 0 to 1, got 1.5"),
        ((3, 5), {"dtype": torch.int64}, "dtype must be float32, float64, bfloat16 or float16, got torch.int64"),
    ],
)
def test_centres_that_cannot_be_made(arguments: tuple[int, int], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DomainCenters(*arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_update_is_equation_12(dtype: torch.dtype) -> None:
    features, labels, domains, _, _ = SPEC.case("unknown").draw()
    centers = DomainCenters(40, 17, momentum=0.7, dtype=dtype)
    for part in (slice(0, 14), slice(0, 0), slice(8, 24)):
        given = features[part].to(dtype), labels[part], domains[part]
        wanted, known = reference.update(centers.centers, centers.known, *given, 0.7)
        centers.update(*given)
        torch.testing.assert_close(centers.centers, wanted)
        assert torch.equal(centers.known, known)
    assert int(centers.known.sum()) == len({(int(d), int(x)) for d, x in zip(domains, labels, strict=True)})


def test_update_repeats_its_bits_and_adds_up_in_the_order_of_the_minibatch() -> None:
    labels, domains = torch.randint(7, (999,), generator=torch.Generator().manual_seed(0)), torch.arange(999) % 2
    features = torch.randn(999, 33, generator=torch.Generator().manual_seed(1))
    once, again = DomainCenters(7, 33), DomainCenters(7, 33)
    for centers in (once, again):
        centers.update(features, labels, domains != 0)
        centers.update(features.flip(0), labels.flip(0), domains.flip(0))
    assert torch.equal(once.centers, again.centers)


def test_checkpoint() -> None:
    features, labels, domains, _, _ = SPEC.case("smoke").draw(dtype=torch.float32)
    before, after = DomainCenters(7, 9), DomainCenters(7, 9)
    before.update(features[:6], labels[:6], domains[:6])
    after.load_state_dict(before.state_dict())
    for centers in (before, after):
        centers.update(features, labels, domains)
    assert torch.equal(before.centers, after.centers)
    assert torch.equal(before.known, after.known)
    assert list(before.state_dict()) == ["centers", "known"]
    assert "identities=7, dim=9, momentum=0.5" in str(before)


def test_training_draws_domains_together() -> None:
    """A few steps on free features: an identity's full and masked faces end up nearer than other identities."""
    generator = torch.Generator().manual_seed(0)
    labels, domains = torch.arange(24) % 4, torch.arange(24) // 4 % 2
    features = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1).requires_grad_()
    optimizer, centers, losses = torch.optim.SGD([features], lr=2.0), DomainCenters(4, 16), []
    for _ in range(60):
        unit = torch.nn.functional.normalize(features, dim=1)
        loss = domain_constrained_ranking(unit, labels, domains, centers.centers, centers.known)
        centers.update(unit, labels, domains)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * max(losses)
