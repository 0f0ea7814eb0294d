"""The operators' cases and contract: what every operator is tested, measured and compared with.

:data:`SPECS` says for each operator what it is called with, and how near it must come to its reference in float64.
:func:`operator_checks` turns that into checks that anybody can run on a build of deocc::

    import pytest
    from deocc.testing.operators import operator_checks

    @pytest.mark.parametrize("check", operator_checks(), ids=str)
    def test_operators(check):
        check()

They run on every backend that is available here, with ``DEOCC_STRICT=1``, so that no kernel is compared with itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from deocc import ops
from deocc.errors import UsageError
from deocc.testing.cases import (
    composite,
    contextual_attention,
    domain_constrained_ranking,
    dual_attention_fusion,
    info_nce,
    relational_distillation,
)
from deocc.testing.spec import DTYPES, Case, Spec

__all__ = ["DTYPES", "SPECS", "Case", "OperatorCheck", "OperatorError", "Spec", "operator_checks", "use_backend"]


class OperatorError(AssertionError):
    """An operator does not keep a promise; the message says which."""


@dataclass(frozen=True)
class OperatorCheck:
    """One promise of one operator on one backend; calling it returns None or raises."""

    name: str
    backend: str
    _run: Callable[[str], None] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}-{self.backend}"

    def __call__(self) -> None:
        """Run the check.

        Raises:
            AssertionError: the promise is not kept.
        """
        with use_backend(self.backend) as device:
            self._run(device)


@contextmanager
def use_backend(name: str) -> Iterator[str]:
    """Compute with one backend and no other until the block ends; gives the device it computes on."""
    wanted = {"DEOCC_BACKEND": "reference"} if name == "reference" else {"DEOCC_STRICT": "1"}
    before = {key: os.environ.pop(key, None) for key in ("DEOCC_BACKEND", "DEOCC_STRICT")}
    os.environ.update(wanted)
    torch.compiler.reset()  # compiled graphs keep the backend they were traced with
    try:
        yield "cpu" if name in ("reference", "cpu") else "cuda"
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        torch.compiler.reset()


def operator_checks(name: str | None = None) -> list[OperatorCheck]:
    """Every check of one operator, or of all, on every backend that is available on this machine.

    Raises:
        UsageError: there is no such operator.
    """
    if name is not None and name not in SPECS:
        raise UsageError(f"there is no operator {name!r} with cases; there are {', '.join(SPECS)}")
    found = []
    for spec in SPECS.values() if name is None else [SPECS[name]]:
        for backend, state in ops.backends(spec.name).items():
            if state.available:
                found += [OperatorCheck(label, backend, run) for label, run in _promises(spec, backend)]
    return found


def _promises(spec: Spec, backend: str) -> Iterator[tuple[str, Callable[[str], None]]]:
    for case in spec.cases:
        label = f"{spec.name}-{case.name}"
        for dtype in DTYPES if case.kind != "large" else (torch.float32,):
            yield (
                f"{label}-values-{str(dtype).removeprefix('torch.')}",
                partial(_values, spec, case, dtype, backend != "reference"),
            )
        if case.kind != "large":
            yield f"{label}-layouts", partial(_layouts, spec, case)
            yield f"{label}-repeats", partial(_repeats, spec, case)
        if case.kind in ("smoke", "edge"):
            yield f"{label}-gradcheck", partial(_gradcheck, spec, case)
            yield f"{label}-compile", partial(_compiles, spec, case)
            if backend != "reference":  # whose backward pass autocast rounds, as it does plain PyTorch's
                yield f"{label}-autocast", partial(_autocast, spec, case)
                yield f"{label}-opcheck", partial(_opcheck, spec, case)
    if spec.twice or backend != "reference":  # plain PyTorch has them always
        yield f"{spec.name}-second-derivative", partial(_second_derivative, spec)


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise OperatorError(message)


def _leaves(spec: Spec, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(
        value.detach().requires_grad_() if index in spec.differentiable else value for index, value in enumerate(inputs)
    )


def _run(
    function: Callable[..., Tensor],
    spec: Spec,
    case: Case,
    inputs: Sequence[Tensor],
    upstream: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Result, and gradients for an uneven upstream gradient (one of ones hides mistakes) rounded to ``upstream``."""
    leaves = _leaves(spec, inputs)
    result = function(*leaves, **case.options)
    weight = torch.linspace(-1, 2, max(result.numel(), 1), dtype=torch.float64)[: result.numel()]
    weight = weight.reshape(result.shape).to(upstream).to(result)
    gradients = torch.autograd.grad(result, [leaves[index] for index in spec.differentiable], weight)
    return [result.detach(), *gradients]


def _explain(operator: str, what: str, name: str, text: str) -> str:
    return f"{operator}, {what}, {name}: {text}"


def _close(spec: Spec, dtype: torch.dtype, got: Sequence[Tensor], wanted: Sequence[Tensor], what: str) -> None:
    relative, absolute = spec.tolerances[dtype]
    names = ["result", *(f"gradient of input {index}" for index in spec.differentiable)]
    for name, one, other in zip(names, got, wanted, strict=True):
        torch.testing.assert_close(
            one.to("cpu", torch.float64),
            other.to("cpu", torch.float64),
            rtol=relative,
            atol=absolute,
            equal_nan=True,
            msg=partial(_explain, spec.name, what, name),
        )


def _near(spec: Spec, got: Sequence[Tensor], wanted: Sequence[Tensor], what: str) -> None:
    """In float32 the result is within 2e-5 of its norm, gradients within 1e-4; rounding beside 1 is no error."""
    for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
        most = 1e-4 if number else 2e-5
        error, norm = ((one.cpu().double() - other).norm().item(), other.norm().item())
        fits = error <= most * norm + 1e-7 * other.numel() ** 0.5 or not math.isfinite(norm)
        _require(fits, f"{spec.name}, {what}: number {number} is off by {error:.3g}, its norm being {norm:.3g}")


def _values(spec: Spec, case: Case, dtype: torch.dtype, kernel: bool, device: str) -> None:
    inputs = case.draw(device, dtype)
    copies = [value.clone() for value in inputs]
    got = _run(spec.function, spec, case, inputs, dtype)
    exact = [value.to("cpu", torch.float64 if value.is_floating_point() else value.dtype) for value in inputs]
    wanted = _run(spec.reference, spec, case, exact, dtype)
    _close(spec, dtype, got, wanted, f"{case.name} in {dtype}")
    if dtype == torch.float32 and kernel:
        _near(spec, got, wanted, case.name)
    for index, value in zip((None, *spec.differentiable), got, strict=True):
        _require(value.dtype == dtype, f"{spec.name}: {dtype} inputs gave {value.dtype} for input {index}")
    for value, copy in zip(inputs, copies, strict=True):
        _require(torch.equal(value, copy), f"{spec.name} changed its inputs")


def _layouts(spec: Spec, case: Case, device: str) -> None:
    """Strided, shifted and channels_last inputs give what contiguous ones give."""
    inputs = case.draw(device, torch.float32)
    wanted = _run(spec.function, spec, case, inputs)
    padded = [torch.nn.functional.pad(value, [1, 2]) if value.dim() else value for value in inputs]
    layouts = {
        "sliced": [value[..., 1:-2] if value.dim() else value for value in padded],
        "transposed": [
            value.transpose(-1, -2).contiguous().transpose(-1, -2) if value.dim() > 1 else value for value in inputs
        ],
    }
    if all(value.dim() == 4 for value in inputs):
        layouts["channels_last"] = [value.contiguous(memory_format=torch.channels_last) for value in inputs]
        layouts["mixed"] = [layouts["channels_last"][0], *inputs[1:]]
    for name, values in layouts.items():
        _close(spec, torch.float32, _run(spec.function, spec, case, values), wanted, f"{case.name} {name}")


def _repeats(spec: Spec, case: Case, device: str) -> None:
    inputs = case.draw(device, torch.float32)
    first, second = (_run(spec.function, spec, case, inputs) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        _require(torch.equal(one, other), f"{spec.name}, {case.name}: two calls gave different bits")


def _gradcheck(spec: Spec, case: Case, device: str) -> None:
    leaves = _leaves(spec, case.draw(device))
    function = partial(spec.function, **case.options)
    torch.autograd.gradcheck(function, leaves, fast_mode=True)
    if spec.twice:
        torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def _second_derivative(spec: Spec, device: str) -> None:
    case = spec.cases[0]
    # As it is, and squared: with a gradient that is a constant and with one that has a derivative of its own.
    for outer in (torch.clone, torch.square):
        leaves = _leaves(spec, case.draw(device))
        wanted = [leaves[index] for index in spec.differentiable]
        result = outer(spec.function(*leaves, **case.options)).sum()
        try:
            first = torch.autograd.grad(result, wanted, create_graph=True)
            penalty = torch.stack([value.square().sum() for value in first]).sum()
            # With the leaves' own sum there is something to differentiate where the first derivatives have no graph.
            second = torch.autograd.grad(penalty + torch.stack([leaf.sum() for leaf in wanted]).sum(), wanted)
        except (NotImplementedError, RuntimeError):
            _require(not spec.twice, f"{spec.name} promises second derivatives and raises")
            continue
        _require(spec.twice, f"{spec.name} does not promise second derivatives and returns some instead of raising")
        nothing = outer is torch.square and not any(bool((value != 1).any()) for value in second)
        _require(not nothing, f"{spec.name}: all second derivatives are zero")


def _autocast(spec: Spec, case: Case, device: str) -> None:
    """Inside torch.autocast, where the backward pass runs too, nothing is computed in less than without."""
    inputs = case.draw(device, torch.float32)
    wanted = _run(spec.function, spec, case, inputs)
    with torch.autocast(device, torch.bfloat16):
        got = _run(spec.function, spec, case, inputs)
    _require(
        [value.dtype for value in got] == [value.dtype for value in wanted],
        f"{spec.name}, {case.name}: autocast changed a dtype",
    )
    _close(spec, torch.float32, got, wanted, f"{case.name} inside autocast")


def _compiles(spec: Spec, case: Case, device: str) -> None:
    inputs = case.draw(device, torch.float32)
    compiled = torch.compile(spec.function, fullgraph=True, backend="aot_eager")
    wanted = _run(spec.function, spec, case, inputs)
    _close(spec, torch.float32, _run(compiled, spec, case, inputs), wanted, f"{case.name} compiled")


def _opcheck(spec: Spec, case: Case, device: str) -> None:
    inputs = case.draw(device, torch.float32)
    channels_last = [
        value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value for value in inputs
    ]
    tests = ["test_schema", "test_faketensor"]
    if case.kind == "smoke":
        tests += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
    for kernel, arguments in spec.kernels.items():
        operator = getattr(torch.ops.deocc, kernel).default
        for values in (inputs, channels_last):
            values = _leaves(spec, values) if kernel == spec.name else tuple(values)
            torch.library.opcheck(operator, arguments(values), test_utils=tests)


SPECS: Mapping[str, Spec] = {
    spec.name: spec
    for cases in (
        composite,
        contextual_attention,
        domain_constrained_ranking,
        dual_attention_fusion,
        info_nce,
        relational_distillation,
    )
    for spec in cases.SPECS
}
"""Every operator's promises; those with a file of their own in deocc/testing/cases."""
