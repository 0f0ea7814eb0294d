from __future__ import annotations

import subprocess
import sys
import types
import warnings

import pytest
import torch

import deocc.ops._registry as registry
from deocc.errors import MissingDependencyError, UsageError
from deocc.ops import backends, composite, contextual_attention, info_nce, relational_distillation

INPUTS = (torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2))


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEOCC_STRICT", "DEOCC_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(registry.Operator, "_without_kernel", lambda self, device: "it is a test")
    monkeypatch.setattr(registry, "_WARNED", set())


@pytest.mark.usefixtures("no_kernels")
def test_without_a_kernel_the_reference_computes_and_one_warning_says_why() -> None:
    with pytest.warns(RuntimeWarning, match=r"composite computes on cpu .* reference: it is a test"):
        assert torch.equal(composite(*INPUTS), INPUTS[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        composite(*INPUTS)


@pytest.mark.usefixtures("no_kernels")
def test_strict_forbids_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEOCC_STRICT", "1")
    with pytest.raises(MissingDependencyError, match=r"composite has no kernel for cpu here \(it is a test\)"):
        composite(*INPUTS)


@pytest.mark.usefixtures("no_kernels")
def test_without_a_kernel_compile_still_gives_one_graph() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        result = torch.compile(composite, fullgraph=True, backend="aot_eager")(*INPUTS)
        torch.compiler.reset()
    assert torch.equal(result, INPUTS[1])


def test_environment_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEOCC_BACKEND", "cpu")
    with pytest.raises(UsageError, match="must be 'reference' or unset, got 'cpu'"):
        composite(*INPUTS)
    monkeypatch.setenv("DEOCC_BACKEND", "reference")
    monkeypatch.setenv("DEOCC_STRICT", "1")
    with pytest.raises(UsageError, match="contradict each other"):
        composite(*INPUTS)
    monkeypatch.setenv("DEOCC_VECTOR", "AVX2")
    with pytest.raises(UsageError, match="'narrow', 'avx2', 'avx512' or unset, got 'AVX2'"):
        composite(*INPUTS)


def test_backends() -> None:
    assert {"composite", "composite_uint8"} <= set(backends())
    for states in backends().values():
        assert states["reference"].available
        assert all(state.available != bool(state.reason) for state in states.values())
    with pytest.raises(UsageError, match="there is no operator 'composit'; there are composite,"):
        backends("composit")


def test_backends_print_as_a_table() -> None:
    head, *rows = str(backends()).splitlines()
    assert head.split() == ["reference", "cpu", "cuda", "triton"]
    operators, reasons = rows[: len(backends())], rows[len(backends()) :]
    assert [row.split()[0] for row in operators] == list(backends())
    wanted = {state.reason for states in backends().values() for state in states.values() if not state.available}
    assert {reason.split(") ", 1)[1] for reason in reasons} == wanted


def test_importing_brings_torch_and_nothing_else() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import deocc.ops; "
        "print(*sorted({name.split('.')[0] if not name.startswith('deocc') else '.'.join(name.split('.')[:2]) "
        "for name in set(sys.modules) - before}))"
    )
    new = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert set(new) <= {"deocc", "deocc.ops", "deocc.errors", "deocc._C"}


def test_the_references_tell_shapes_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEOCC_STRICT", raising=False)
    monkeypatch.setenv("DEOCC_BACKEND", "reference")
    features, occlusion = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, 1, 8, 8, device="meta")
    assert contextual_attention(features, features, occlusion).shape == features.shape
    query, queue = torch.empty(4, 8, device="meta"), torch.empty(9, 8, device="meta")
    assert info_nce(query, query, queue).shape == relational_distillation(query, query).shape == ()


def test_triton_computes_without_the_callers_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = types.ModuleType("probe")
    probe.look = lambda *_: (torch.ones(2, 2) @ torch.ones(2, 2)).dtype  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deocc.ops.triton.probe", probe)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert probe.look() == torch.bfloat16
        assert registry._in_triton("probe", "look", None, torch.ones(1)) == torch.float32


def test_a_gpu_that_is_older_than_the_kernels_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Built:
        @staticmethod
        def build_info() -> dict[str, str]:
            return {"cuda_arch": "80;90", "no_cuda": ""}

    monkeypatch.setattr(registry, "compiled", Built)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    one = object.__new__(registry.Operator)
    for key, value in {"name": "composite", "gpu": "cuda", "arrays": False, "kernel": ""}.items():
        object.__setattr__(one, key, value)
    without = registry.Operator._without_kernel.__wrapped__  # without its cache
    for capability, reason in (((8, 0), ""), ((7, 5), "compute capability 8.0 and later, and this GPU has 7.5")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert reason in without(one, "cuda")
        assert bool(reason) == bool(without(one, "cuda"))
        assert not without(one, "cpu")
