"""``deocc.ops.domain_constrained_ranking`` against eager code: ``pytest bench/bench_domain_constrained_ranking.py``.

The minibatch is the paper's: 32 identities with 6 images each, full and masked. ``DEOCC_VECTOR=avx2`` measures narrower
vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from deocc import ops
from deocc.testing.operators import SPECS

IDENTITIES = {"casia": 10_575, "vggface2": 9_131, "ms1m": 85_742}
CASES = {case.name: case for case in SPECS["domain_constrained_ranking"].cases if case.kind == "paper"}


def inputs_of(
    identities: int, device: str, dtype: torch.dtype, count: int = 192, present: int = 32, dim: int = 512
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(2, identities, dim, generator=generator)
    centers /= centers.norm(dim=2, keepdim=True)  # in place: what is measured must not hide under a former peak
    labels = torch.randperm(identities, generator=generator)[:present].repeat_interleave(count // present)
    domains = torch.randint(2, labels.shape, generator=generator)
    noise = torch.randn(len(labels), dim, generator=generator) * dim**-0.5
    features = normalize(centers[domains, labels] + noise, dim=1)
    return [features.to(device, dtype), labels.to(device), domains.to(device), centers.to(device, dtype)]


def eager(features: Tensor, labels: Tensor, domains: Tensor, centers: Tensor) -> Tensor:
    """As one writes the paper's equations 8 to 11 down, from matrices of distances inside the minibatch."""
    own = centers[domains, labels].to(features.dtype)
    same = labels[:, None] == labels
    here = domains[:, None] == domains
    to_images = torch.cdist(own, features)
    others = to_images.masked_fill(same | ~here, torch.inf)
    farthest = torch.cdist(features, features).masked_fill(~same | here, -torch.inf).amax(1)
    single = torch.relu(to_images.diagonal() + 0.7 - others.amin(1))
    crossed = torch.relu(farthest + 0.5 - others.amin(0))
    return (single + 0.75 * crossed).mean()


def eager_all(features: Tensor, labels: Tensor, domains: Tensor, centers: Tensor) -> Tensor:
    """The same with the nearest of all centres, from the matrix of images by identities."""
    own = centers[domains, labels].to(features.dtype)
    same = labels[:, None] == labels
    here = domains[:, None] == domains
    to_images = torch.cdist(own, features)
    farthest = torch.cdist(features, features).masked_fill(~same | here, -torch.inf).amax(1)
    nearest = torch.empty_like(farthest)
    for domain in (0, 1):
        chosen = domains == domain
        to_centers = torch.cdist(features[chosen], centers[domain].to(features.dtype))
        nearest[chosen] = to_centers.scatter(1, labels[chosen, None], torch.inf).amin(1)
    single = torch.relu(to_images.diagonal() + 0.7 - to_images.masked_fill(same | ~here, torch.inf).amin(1))
    return (single + 0.75 * torch.relu(farthest + 0.5 - nearest)).mean()


def ours(features: Tensor, labels: Tensor, domains: Tensor, centers: Tensor) -> Tensor:
    return ops.domain_constrained_ranking(features, labels, domains, centers)


def ours_all(features: Tensor, labels: Tensor, domains: Tensor, centers: Tensor) -> Tensor:
    return ops.domain_constrained_ranking(features, labels, domains, centers, negatives="all")


WAYS = {"batch": (ours, eager), "all": (ours_all, eager_all)}
FLOORS = {"batch": CASES["minibatch"], "all": CASES["minibatch-all"]}


def step(function: Callable[..., Tensor], features: Tensor, *others: Tensor) -> object:
    leaf = features.detach().requires_grad_()
    return torch.autograd.grad(function(leaf, *others), leaf)


def needs(inputs: list[Tensor], negatives: str) -> dict[str, Any]:
    """The products of every image with the centres of its domain, and what is read at least."""
    features, labels, domains, centers = inputs
    products, rows = 0, len(features)
    for domain in (0, 1):
        chosen = labels[domains == domain]
        compared = centers.shape[1] if negatives == "all" else len(chosen.unique())
        products += len(chosen) * compared * centers.shape[2]
        rows += compared
    return {"multiply_adds": products, "bytes_moved": rows * centers.shape[2] * centers.element_size()}


@pytest.mark.parametrize("negatives", WAYS)
def test_eager_is_right(negatives: str) -> None:
    inputs = inputs_of(500, "cpu", torch.float64)
    mine, theirs = WAYS[negatives]
    torch.testing.assert_close(mine(*inputs), theirs(*inputs))
    torch.testing.assert_close(step(mine, *inputs), step(theirs, *inputs))


def compare_with(
    theirs: Callable[..., Tensor],
    inputs: list[Tensor],
    negatives: str,
    measure: str,
    compare: Any,
    floor: float,
    others: list[Tensor] | None = None,
) -> None:
    """``others`` are the rival's inputs, where they are not the same."""
    mine, others = WAYS[negatives][0], others or inputs
    limits = needs(inputs, negatives) | {"dtype": inputs[0].dtype}
    if measure == "forward":
        with torch.no_grad():
            compare(lambda: mine(*inputs), lambda: theirs(*others), floor, **limits)
    else:
        compare(lambda: step(mine, *inputs), lambda: step(theirs, *others), floor, **limits)


@pytest.mark.gate
@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("negatives", WAYS)
def test_float32(
    negatives: str, measure: str, device: str, compare: Any, floor_of: Callable[[Any, str], float], benchmark: Any
) -> None:
    inputs = inputs_of(IDENTITIES["casia"], device, torch.float32)
    benchmark.extra_info["shape"] = [*inputs[0].shape, IDENTITIES["casia"]]
    compare_with(WAYS[negatives][1], inputs, negatives, measure, compare, floor_of(FLOORS[negatives], measure))


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("negatives", WAYS)
def test_many_identities(negatives: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    inputs = inputs_of(IDENTITIES["ms1m"], device, torch.float32)
    benchmark.extra_info["shape"] = [*inputs[0].shape, IDENTITIES["ms1m"]]
    compare_with(WAYS[negatives][1], inputs, negatives, measure, compare, 0.0)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("negatives", WAYS)
def test_large_minibatch(negatives: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    inputs = inputs_of(IDENTITIES["casia"], device, torch.float32, count=1024, present=512)
    benchmark.extra_info["shape"] = [*inputs[0].shape, IDENTITIES["casia"]]
    compare_with(WAYS[negatives][1], inputs, negatives, measure, compare, 0.0)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("negatives", WAYS)
def test_bfloat16(negatives: str, measure: str, device: str, compare: Any, benchmark: Any) -> None:
    """Eager code has no distances of bfloat16 on the CPU, and converts what it compares."""
    inputs = inputs_of(IDENTITIES["casia"], device, torch.bfloat16)
    benchmark.extra_info["shape"] = [*inputs[0].shape, IDENTITIES["casia"]]

    def theirs(features: Tensor, labels: Tensor, domains: Tensor, centers: Tensor) -> Tensor:
        return WAYS[negatives][1](features.float(), labels, domains, centers).to(features.dtype)

    compare_with(theirs, inputs, negatives, measure, compare, 0.0)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("negatives", WAYS)
def test_bfloat16_against_our_own_in_float32(
    negatives: str, measure: str, device: str, compare: Any, floor_of: Callable[[Any, str], float], benchmark: Any
) -> None:
    """Products and reading take half the time; the few exact distances, all there is in a minibatch, do not."""
    inputs, others = (inputs_of(IDENTITIES["casia"], device, dtype) for dtype in (torch.bfloat16, torch.float32))
    benchmark.extra_info["shape"] = [*inputs[0].shape, IDENTITIES["casia"]]
    floor = floor_of(FLOORS[negatives], f"bfloat16 {measure}")
    compare_with(WAYS[negatives][0], inputs, negatives, measure, compare, floor, others)


@pytest.mark.parametrize("measure", ["forward", "training"])
def test_against_torch_compile(measure: str, device: str, compare: Any, benchmark: Any) -> None:
    """The rival whose shapes are fixed: compiling takes a minute."""
    inputs = inputs_of(IDENTITIES["casia"], device, torch.float32)
    benchmark.extra_info["shape"] = [*inputs[0].shape, IDENTITIES["casia"]]
    compare_with(torch.compile(eager, fullgraph=True), inputs, "batch", measure, compare, 0.0)


def test_update(device: str, compare: Any) -> None:
    """Against a loop over the identities of the minibatch, which is how eq. 12 is usually written."""
    features, labels, domains, _ = inputs_of(IDENTITIES["casia"], device, torch.float32)
    centers = ops.DomainCenters(IDENTITIES["casia"], 512).to(device)
    table = torch.zeros_like(centers.centers)

    def loop() -> None:
        for domain in (0, 1):
            for label in labels[domains == domain].unique():
                mean = features[(domains == domain) & (labels == label)].mean(0)
                table[domain, label] = 0.5 * table[domain, label] + 0.5 * mean

    compare(lambda: centers.update(features, labels, domains), loop)


@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("negatives", WAYS)
def test_two_threads_help(negatives: str, measure: str, thread_speedup: Callable[..., None]) -> None:
    inputs = inputs_of(IDENTITIES["casia"], "cpu", torch.float32, count=1024, present=512)
    mine = WAYS[negatives][0]
    thread_speedup((lambda: mine(*inputs)) if measure == "forward" else (lambda: step(mine, *inputs)), 1.2)


@pytest.mark.parametrize("identities", ["casia", "ms1m"])
@pytest.mark.parametrize("measure", ["forward", "training"])
@pytest.mark.parametrize("negatives", WAYS)
def test_memory(negatives: str, measure: str, identities: str, compare_memory: Callable[..., None]) -> None:
    compare_memory(
        *(function.__name__ for function in WAYS[negatives]),
        measure,
        4.0,
        small="inputs_of(40, 'cpu', torch.float32, 32, 16, 16)",
        big=f"inputs_of({IDENTITIES[identities]}, 'cpu', torch.float32)",
    )
