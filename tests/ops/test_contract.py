"""Every operator, every case, every backend that is here; and every operator has all its rooms."""

from __future__ import annotations

from pathlib import Path

import pytest

from deocc import ops
from deocc.testing import operators

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("check", operators.operator_checks(), ids=str)
def test_contract(check: operators.OperatorCheck) -> None:
    check()


STEMS = sorted(path.stem for path in (REPOSITORY / "deocc" / "ops").glob("[!_]*.py"))


ARRAYS = {"rasterise"}  # operators on NumPy arrays alone: they have neither cases, which are tensors, nor a GPU kernel


@pytest.mark.parametrize("stem", STEMS)
def test_an_operator_has_all_its_rooms(stem: str) -> None:
    rooms = [
        f"deocc/ops/reference/{stem}.py",
        *([] if stem in ARRAYS else [f"deocc/testing/cases/{stem}.py"]),
        f"csrc/{stem}.h",
        f"csrc/cpu/{stem}.cpp",
        f"tests/ops/test_{stem}.py",
        f"bench/bench_{stem}.py",
    ]
    assert [room for room in rooms if not (REPOSITORY / room).exists()] == []
    gpu = [room for room in (f"csrc/cuda/{stem}.cu", f"deocc/ops/triton/{stem}.py") if (REPOSITORY / room).exists()]
    if stem in ARRAYS:
        assert not gpu
        assert stem in ops.__all__
        return
    assert len(gpu) == 1, f"one GPU kernel is wanted, CUDA or Triton, found {gpu}"
    names = [name for name, spec in operators.SPECS.items() if spec.stem == stem]
    assert names
    assert set(names) <= set(ops.__all__)


def test_no_kernel_is_without_an_operator() -> None:
    rooms = ["deocc/ops/triton/[!_]*.py", "csrc/cpu/*.cpp", "csrc/cuda/*.cu"]
    strays = [path for room in rooms for path in REPOSITORY.glob(room) if path.stem not in STEMS]
    assert strays == []


@pytest.mark.parametrize("spec", operators.SPECS.values(), ids=lambda spec: spec.name)
def test_an_operator_has_cases_of_every_kind(spec: operators.Spec) -> None:
    assert {case.kind for case in spec.cases} == {"smoke", "edge", "paper", "large"}
    assert len({case.name for case in spec.cases}) == len(spec.cases)
    assert set(spec.tolerances) == set(operators.DTYPES)
    assert set(ops.backends(spec.name)) == {"reference", "cpu", "cuda", "triton"}
