"""The build, as far as it can be looked at without compiling; ``DEOCC_BUILD=none`` is built for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from deocc import ops

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (REPOSITORY / "setup.py").exists(), reason="needs the repository")


def alone(library: Path) -> dict[str, str]:
    """Find deocc there and nowhere else: without ``site`` (-S), an editable installation is not seen."""
    return {"PYTHONPATH": os.pathsep.join([str(library), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])}


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DEOCC_")}
    return subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The files that a build reads."""
    folder = tmp_path / "sources"
    shutil.copytree(
        REPOSITORY / "deocc" / "ops", folder / "deocc" / "ops", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("deocc/__init__.py", "deocc/errors.py", "setup.py", "CMakeLists.txt"):
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "csrc", folder / "csrc")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "deocc"\nversion = "0"\n[tool.setuptools.packages.find]\ninclude = ["deocc", "deocc.*"]\n'
    )
    return folder


def test_this_build_has_a_kernel_for_the_cpu() -> None:
    if os.environ.get("DEOCC_STRICT", "0") in ("", "0") and not ops.build_info()["compiled"]:
        pytest.skip(f"no compiled kernels: {ops.build_info()['reason']}")
    assert ops.backends("composite")["cpu"].available
    assert ops.backends("composite_uint8")["cpu"].available


def test_none_builds_a_package_that_says_so(sources: Path, tmp_path: Path) -> None:
    stale = sources / "deocc" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    built = run(
        sys.executable, "setup.py", "-q", "build", "--build-lib", tmp_path / "lib", cwd=sources, DEOCC_BUILD="none"
    )
    assert built.returncode == 0, built.stderr
    assert "WITHOUT its compiled kernels: built with DEOCC_BUILD=none" in built.stderr
    assert not stale.exists()
    program = (
        "import torch, deocc.ops as ops; print(ops.__file__, ops.backends('composite')['cpu'].reason); "
        "x = torch.ones(1, 3, 2, 2, requires_grad=True); ops.composite(x, x, x[:, :1].detach()).sum().backward(); "
        "ops.composite(x, x, x[:, :1]); print(x.grad.sum().item())"
    )
    path = alone(tmp_path / "lib")
    used = run(sys.executable, "-S", "-P", "-c", program, cwd=tmp_path, **path)
    assert used.returncode == 0, used.stderr
    assert used.stdout == f"{tmp_path}/lib/deocc/ops/__init__.py built with DEOCC_BUILD=none\n12.0\n"
    assert used.stderr.count("RuntimeWarning") == 1
    strict = run(sys.executable, "-S", "-P", "-c", program, cwd=tmp_path, DEOCC_STRICT="1", **path)
    assert "MissingDependencyError: deocc.ops.composite has no kernel for cpu here (built with" in strict.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DEOCC_BUILD": "gpu"}, "DEOCC_BUILD must be auto, cpu, cuda or none, got 'gpu'"),
        (
            {"DEOCC_BUILD": "cpu", "PATH": ""},
            r"DEOCC_BUILD=cpu: c\+\+ was not found when deocc was built \(install a C",
        ),
    ],
)
def test_what_cannot_be_built_is_one_sentence(sources: Path, environment: dict[str, str], message: str) -> None:
    built = run(sys.executable, "setup.py", "-q", "build", cwd=sources, **environment)
    assert built.returncode != 0
    assert re.match(message, built.stderr.splitlines()[-1])


def test_an_nvcc_of_another_cuda_is_refused(sources: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    torch = tmp_path / "stub" / "torch.py"
    torch.parent.mkdir()
    torch.write_text("class version:\n    cuda = '13.0'\n")
    found = {"PYTHONPATH": str(torch.parent), "CUDACXX": str(nvcc)}
    built = run(sys.executable, "setup.py", "-q", "build", cwd=sources, DEOCC_BUILD="cuda", **found)
    sentence = f"DEOCC_BUILD=cuda: {nvcc} is of CUDA 12, and torch was built for CUDA 13.0"
    assert built.returncode != 0
    assert built.stderr.splitlines()[-1].startswith(sentence)


def test_auto_goes_on_without_a_compiler_and_says_so(sources: Path, tmp_path: Path) -> None:
    built = run(sys.executable, "setup.py", "-q", "build", "--build-lib", tmp_path / "lib", cwd=sources, PATH="")
    assert built.returncode == 0, built.stderr
    assert "WARNING: deocc is installed WITHOUT its compiled kernels: c++ was not found" in built.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_cuda_files_compile_for_a_torch_without_cuda(sources: Path, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    for path in (sources / "csrc" / "cpu").glob("*.cpp"):
        if path.stem not in ("composite", "rasterise"):  # the module needs these two to load
            path.unlink()
    built = run(
        sys.executable, "setup.py", "-q", "build", "--build-lib", tmp_path / "lib",
        cwd=sources, DEOCC_BUILD="cuda", DEOCC_CUDA_ARCH="90", DEOCC_WERROR="1",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    program = "import deocc.ops as ops; info = ops.build_info(); print(info['mode'], info['cuda_arch'])"
    used = run(sys.executable, "-S", "-P", "-c", program, cwd=tmp_path, **alone(tmp_path / "lib"))
    assert used.stdout == "cuda 90\n", used.stderr


def test_pybind11_is_included_in_one_file_only() -> None:
    found = [
        path.name for path in (REPOSITORY / "csrc").rglob("*") if path.is_file() and "pybind11/" in path.read_text()
    ]
    assert found == ["module.cpp"]


@pytest.mark.slow
def test_operators_pass_under_sanitizers() -> None:
    """No kernel reads or writes out of bounds: the operators' tests on a build with the sanitizers."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on the PATH")
    found = run("g++", "-print-file-name=libasan.so", cwd=REPOSITORY)
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip("g++ has no AddressSanitizer")
    done = run(REPOSITORY / ".ci" / "sanitize", cwd=REPOSITORY, PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "sanitizer: address,undefined" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on the PATH")
def test_gpu_kernels_pass_under_compute_sanitizer() -> None:
    """The same on a GPU, of every case that is small."""
    done = run(
        "compute-sanitizer", "--error-exitcode", "1", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "tests/ops/test_contract.py", "-k", "(cuda or triton) and (layouts or repeats)", cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_the_wheel_passes_its_tests_without_a_plugin() -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    done = run(REPOSITORY / ".ci" / "wheel", cwd=REPOSITORY, PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "with no plugin" in done.stdout
