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

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from deocc import ops
from deocc.errors import UsageError
from deocc.ops.reference import composite as composite_reference
from deocc.ops.reference import contextual_attention as contextual_attention_reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What every operator computes in."""


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        name: unique among the operator's cases.
        kind: ``smoke`` (small, usual), ``edge`` (empty, odd, all or nothing occluded), ``paper`` (the size that the
            method's paper works at) or ``large``. gradcheck and compile see the first two; benches the last two.
        inputs: draws the float64 tensors of a call.
        options: keyword arguments of the call.
        floors: bench ``"<device> <measure>"`` -> the least ratio to eager PyTorch that is accepted.
    """

    name: str
    kind: Literal["smoke", "edge", "paper", "large"]
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)

    def draw(self, device: str = "cpu", dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """The case's tensors, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return tuple(value.to(device=device, dtype=dtype) for value in self.inputs(generator))


@dataclass(frozen=True)
class Spec:
    """What an operator promises.

    Attributes:
        name: of the operator.
        function: the public function.
        reference: the same in plain PyTorch.
        kernels: the names in ``torch.ops.deocc`` and what to call each with, made from a case's tensors.
        cases: at least one of every kind.
        tolerances: dtype -> (relative, absolute) error of results and gradients against the float64 reference.
        differentiable: which of the inputs receive gradients.
        twice: whether second derivatives exist; where they do not, asking for one must raise.
    """

    name: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    kernels: Mapping[str, Callable[[tuple[Tensor, ...]], tuple[Any, ...]]]
    cases: Sequence[Case]
    tolerances: Mapping[torch.dtype, tuple[float, float]]
    differentiable: Sequence[int]
    twice: bool

    def case(self, name: str) -> Case:
        """The case of that name."""
        return next(case for case in self.cases if case.name == name)


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
            yield f"{label}-values-{str(dtype).removeprefix('torch.')}", partial(_values, spec, case, dtype)
        if case.kind != "large":
            yield f"{label}-layouts", partial(_layouts, spec, case)
            yield f"{label}-repeats", partial(_repeats, spec, case)
        if case.kind in ("smoke", "edge"):
            yield f"{label}-gradcheck", partial(_gradcheck, spec, case)
            yield f"{label}-compile", partial(_compiles, spec, case)
            if backend != "reference":
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


def _values(spec: Spec, case: Case, dtype: torch.dtype, device: str) -> None:
    inputs = case.draw(device, dtype)
    copies = [value.clone() for value in inputs]
    got = _run(spec.function, spec, case, inputs, dtype)
    wanted = _run(spec.reference, spec, case, [value.to("cpu", torch.float64) for value in inputs], dtype)
    _close(spec, dtype, got, wanted, f"{case.name} in {dtype}")
    for index, value in zip((None, *spec.differentiable), got, strict=True):
        _require(value.dtype == dtype, f"{spec.name}: {dtype} inputs gave {value.dtype} for input {index}")
    for value, copy in zip(inputs, copies, strict=True):
        _require(torch.equal(value, copy), f"{spec.name} changed its inputs")


def _layouts(spec: Spec, case: Case, device: str) -> None:
    """Strided, shifted and channels_last inputs give what contiguous ones give."""
    inputs = case.draw(device, torch.float32)
    wanted = _run(spec.function, spec, case, inputs)
    padded = [torch.nn.functional.pad(value, [1, 2]) for value in inputs]
    layouts = {
        "sliced": [value[..., 1:-2] for value in padded],
        "transposed": [value.transpose(-1, -2).contiguous().transpose(-1, -2) for value in inputs],
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
    leaves = _leaves(spec, case.draw(device))
    wanted = [leaves[index] for index in spec.differentiable]
    result = spec.function(*leaves, **case.options).square().sum()
    try:
        first = torch.autograd.grad(result, wanted, create_graph=True)
        penalty = torch.stack([value.square().sum() for value in first]).sum()
        second = torch.autograd.grad(penalty, wanted)
    except (NotImplementedError, RuntimeError):
        _require(not spec.twice, f"{spec.name} promises second derivatives and raises")
        return
    _require(spec.twice, f"{spec.name} does not promise second derivatives and returns some instead of raising")
    _require(any(bool(value.any()) for value in second), f"{spec.name}: all second derivatives are zero")


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


def _composite_inputs(
    *shape: int, occlusion: Literal["soft", "hard", "none", "all"] = "soft"
) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        image, fill = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        weight = torch.rand((shape[0], 1, *shape[2:]), generator=generator, dtype=torch.float64)
        if occlusion != "soft":
            weight = {"hard": weight.round(), "none": weight * 0, "all": weight * 0 + 1}[occlusion]
        return image, fill, weight

    return draw


def _attention_inputs(
    *shape: int, occlusion: Literal["some", "none", "all"] = "some", spread: float = 0.3
) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        foreground, background = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * spread
        if occlusion != "some":
            return foreground, background, torch.full((shape[0], 1, *shape[2:]), float(occlusion == "all")).double()
        # A rectangle for each sample, of a size and at a place of its own.
        edges = torch.rand(shape[0], 4, 1, 1, generator=generator, dtype=torch.float64)
        y, x = (torch.linspace(0, 1, size, dtype=torch.float64) for size in shape[2:])
        top, bottom, left, right = edges.mul(0.5).unbind(1)
        inside = (y[:, None] > top) & (y[:, None] < 1 - bottom) & (x > left) & (x < 1 - right)
        return foreground, background, inside[:, None].double()

    return draw


def _plain_attention(
    foreground: Tensor,
    background: Tensor,
    occlusion: Tensor,
    *,
    rate: int = 2,
    scale: float = 10.0,
    fuse: bool = True,
) -> Tensor:
    return contextual_attention_reference.contextual_attention(foreground, background, occlusion, rate, scale, fuse)


SPECS: Mapping[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(
            name="composite",
            function=ops.composite,
            reference=composite_reference.composite,
            kernels={"composite": lambda x: x, "composite_backward": lambda x: (x[0] - 0.5, *x)},
            cases=(
                Case("smoke", "smoke", _composite_inputs(2, 3, 8, 9)),
                Case("hard", "edge", _composite_inputs(2, 3, 6, 5, occlusion="hard")),
                Case("nothing", "edge", _composite_inputs(1, 3, 5, 4, occlusion="none")),
                Case("everything", "edge", _composite_inputs(1, 3, 4, 5, occlusion="all")),
                Case("one-pixel", "edge", _composite_inputs(1, 1, 1, 1)),
                Case("many-channels", "edge", _composite_inputs(2, 67, 3, 5)),
                Case("no-image", "edge", _composite_inputs(0, 3, 5, 7)),
                Case("no-channel", "edge", _composite_inputs(2, 0, 5, 7)),
                Case(
                    "odd",
                    "paper",
                    _composite_inputs(3, 3, 127, 129, occlusion="hard"),
                    floors={"cpu forward": 1.0, "cpu training": 0.8},
                ),
                Case(
                    "batch",
                    "paper",
                    _composite_inputs(16, 3, 128, 128),
                    floors={"cpu forward": 1.3, "cpu training": 1.0},
                ),
                Case(
                    "features",
                    "paper",
                    _composite_inputs(4, 64, 64, 64),
                    floors={"cpu forward": 0.8, "cpu training": 0.8},
                ),
                Case(
                    "photos",
                    "large",
                    _composite_inputs(4, 3, 512, 512),
                    floors={"cpu forward": 1.3, "cpu training": 1.2},
                ),
            ),
            tolerances={
                torch.float64: (1e-12, 1e-14),
                torch.float32: (1e-5, 1e-5),
                torch.bfloat16: (5e-3, 1e-3),
                torch.float16: (1e-3, 1e-4),
            },
            differentiable=(0, 1, 2),
            twice=True,
        ),
        Spec(
            name="contextual_attention",
            function=ops.contextual_attention,
            reference=_plain_attention,
            kernels={
                "contextual_attention": lambda x: (x[0], x[1], x[2] != 0, 1, 10.0, True),
                "contextual_attention_backward": lambda x: (x[0] - 0.5, x[0], x[1], x[2] != 0, 1, 10.0, True),
                "contextual_attention_offsets": lambda x: (x[0], x[1], x[2] != 0, 1, True),
            },
            cases=(
                Case("smoke", "smoke", _attention_inputs(2, 3, 12, 16)),
                Case("everything", "edge", _attention_inputs(2, 2, 4, 6, occlusion="all")),
                Case("nothing", "edge", _attention_inputs(1, 2, 6, 4, occlusion="none")),
                Case("one-position", "edge", _attention_inputs(1, 1, 2, 2, occlusion="none")),
                Case("one-row", "edge", _attention_inputs(1, 2, 2, 14, occlusion="none")),
                Case("one-column", "edge", _attention_inputs(1, 2, 14, 2, occlusion="none")),
                Case("no-sample", "edge", _attention_inputs(0, 2, 4, 6)),
                Case("odd", "edge", _attention_inputs(3, 5, 18, 14)),
                Case("wider-than-a-vector", "edge", _attention_inputs(1, 3, 6, 42)),
                Case("rate-1", "edge", _attention_inputs(2, 3, 5, 7), {"rate": 1}),
                Case("rate-3", "edge", _attention_inputs(1, 2, 12, 15), {"rate": 3}),
                Case("rate-4", "edge", _attention_inputs(1, 2, 16, 28), {"rate": 4}),
                Case("no-fuse", "edge", _attention_inputs(2, 3, 12, 10), {"fuse": False}),
                Case("soft", "edge", _attention_inputs(1, 4, 10, 12), {"scale": 0.5}),
                Case("faint", "edge", _attention_inputs(1, 4, 10, 12, spread=1e-6)),
                Case(
                    "features",
                    "paper",
                    _attention_inputs(1, 128, 64, 64),
                    floors={"cpu forward": 4.0, "cpu training": 4.0},
                ),
                Case("large", "large", _attention_inputs(1, 8, 96, 96)),
            ),
            tolerances={
                torch.float64: (1e-9, 1e-11),
                # The softmax at scale 10 magnifies rounding: single gradients of size 1 are off by 1e-4 here and there.
                torch.float32: (1e-4, 5e-4),
                torch.bfloat16: (1e-2, 1e-2),
                torch.float16: (2e-3, 2e-3),
            },
            differentiable=(0, 1),
            twice=False,
        ),
    )
}
"""Every operator's cases and tolerances."""
