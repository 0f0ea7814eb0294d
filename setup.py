"""Builds the extension deocc._C with CMake and ninja; everything else about the package is in pyproject.toml.

Environment variables:

- ``DEOCC_BUILD``: ``auto`` (default: CPU kernels where a compiler is found, and CUDA kernels where nvcc is found and
  torch is built with CUDA), ``cpu``, ``cuda`` (both, even for a torch without CUDA), or ``none``.
- ``DEOCC_CUDA_ARCH``: compute capabilities, ``"80;90"`` by default.
- ``DEOCC_WERROR=1``: warnings of the compilers are errors, as where deocc is tested.
- ``DEOCC_SANITIZE``: for example ``address,undefined``; see ``.ci/sanitize``.
- ``CXX``, ``CXXFLAGS``, ``CUDACXX``, ``MAX_JOBS`` as usual.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def find(name: str, *candidates: str | None) -> str | None:
    """A program: the first candidate that exists, else beside this Python, else on the PATH."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for candidate in (*candidates, name):
        if candidate and (found := shutil.which(candidate, path=places)):
            return found
    return None


@dataclass
class Plan:
    """What is built, decided before anything is compiled.

    Attributes:
        mode: DEOCC_BUILD.
        reason: why there is no extension at all; empty when there is one.
        no_cuda: why there are no CUDA kernels; empty when there are.
        programs: where the tools are.
    """

    mode: str
    reason: str = ""
    no_cuda: str = ""
    programs: dict[str, str] = field(default_factory=dict)


def plan() -> Plan:
    """Read DEOCC_BUILD and look at the machine."""
    mode = os.environ.get("DEOCC_BUILD", "") or "auto"
    if mode not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"DEOCC_BUILD must be auto, cpu, cuda or none, got {mode!r}")
    if mode == "none":
        return Plan(mode, reason="built with DEOCC_BUILD=none")

    decided = Plan(mode)
    for variable in ("CXX", "CUDACXX"):
        if (program := os.environ.get(variable)) and find(program) is None:
            sys.exit(f"{variable} must be a compiler that is there (without arguments), got {program!r}")
    wanted = {
        "c++": find("c++", os.environ.get("CXX"), "g++", "clang++"),
        "cmake": find("cmake"),
        "ninja": find("ninja"),
    }
    for name, path in wanted.items():
        if path is None:
            hint = "install a C++20 compiler, or set CXX" if name == "c++" else f"pip install {name}"
            decided.reason = f"{name} was not found when deocc was built ({hint}, then install deocc again)"
            if mode != "auto":
                sys.exit(f"DEOCC_BUILD={mode}: {decided.reason}")
            return decided
        decided.programs[name] = path

    import torch

    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = find("nvcc", os.environ.get("CUDACXX"), f"{home}/bin/nvcc")
    if mode == "cpu":
        decided.no_cuda = "built with DEOCC_BUILD=cpu"
    elif mode == "auto" and torch.version.cuda is None:
        decided.no_cuda = "torch was built without CUDA when deocc was built"
    elif nvcc is None:
        decided.no_cuda = "nvcc was not found when deocc was built"
        if mode == "cuda":
            sys.exit(f"DEOCC_BUILD=cuda: {decided.no_cuda} (looked in CUDACXX, CUDA_HOME and the PATH)")
    elif torch.version.cuda is not None and (other := other_cuda(nvcc, torch.version.cuda)):
        decided.no_cuda = other
        if mode == "cuda":
            sys.exit(f"DEOCC_BUILD=cuda: {other}")
    else:
        decided.programs["nvcc"] = nvcc
    return decided


def other_cuda(nvcc: str, wanted: str) -> str:
    """What is wrong with an nvcc whose CUDA may need a newer driver than torch's does; empty if nothing is."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", said)
    if release is not None and release[1] == wanted.partition(".")[0]:
        return ""
    found = f"is of CUDA {release[1]}" if release else "does not say its release"
    return f"{nvcc} {found}, and torch was built for CUDA {wanted} (CUDA_HOME says which is taken)"


PLAN = plan()


class BuildExtension(build_ext):
    """Compiles with CMake in build/, kept between builds: a second one compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, compile, and leave the module where setuptools wants it."""
        import pybind11
        import torch

        sanitize = os.environ.get("DEOCC_SANITIZE", "")
        include = [Path(torch.__file__).parent / "include", pybind11.get_include(), sysconfig.get_path("include")]
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        kind = "-".join(["sanitize" if sanitize else "release", sys.implementation.cache_tag, sysconfig.get_platform()])
        build = ROOT / "build" / kind
        cache = build / "CMakeCache.txt"
        # The repository was moved or copied, or another compiler is wanted, for which CMake would forget all options.
        same = (
            rf"^CMAKE_HOME_DIRECTORY:INTERNAL={re.escape(str(ROOT))}$",
            rf"^CMAKE_CXX_COMPILER:\w+={re.escape(PLAN.programs['c++'])}$",
        )
        kept = cache.read_text() if cache.exists() else ""
        nvcc = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", kept, re.MULTILINE)
        other_nvcc = nvcc is not None and "nvcc" in PLAN.programs and nvcc[1] != PLAN.programs["nvcc"]
        if kept and (other_nvcc or not all(re.search(line, kept, re.MULTILINE) for line in same)):
            shutil.rmtree(build)
        definitions = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": PLAN.programs["ninja"],
            "CMAKE_CXX_COMPILER": PLAN.programs["c++"],
            "CMAKE_CXX_FLAGS": os.environ.get("CXXFLAGS", ""),
            "DEOCC_MODE": PLAN.mode,
            "DEOCC_CUDA": "ON" if "nvcc" in PLAN.programs else "OFF",
            "DEOCC_CUDA_ARCH": os.environ.get("DEOCC_CUDA_ARCH", "80;90") if "nvcc" in PLAN.programs else "",
            "DEOCC_NO_CUDA": PLAN.no_cuda,
            "DEOCC_SANITIZE": sanitize,
            "DEOCC_WERROR": "ON" if os.environ.get("DEOCC_WERROR", "0") not in ("", "0") else "OFF",
            "DEOCC_INCLUDE_DIRS": ";".join(map(str, include)),
            "DEOCC_LIBRARY_DIRS": str(Path(torch.__file__).parent / "lib"),
            "DEOCC_TORCH": torch.__version__,
            "DEOCC_OUTPUT": str(output.parent),
            "DEOCC_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
        }
        if "nvcc" in PLAN.programs:
            definitions |= {"CMAKE_CUDA_COMPILER": PLAN.programs["nvcc"]}
        cmake, jobs = PLAN.programs["cmake"], os.environ.get("MAX_JOBS")
        options = [f"-D{key}={value}" for key, value in definitions.items()]
        try:
            subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *options], check=True)
            subprocess.run([cmake, "--build", build, *(["--parallel", jobs] if jobs else [])], check=True)
        except subprocess.CalledProcessError as error:
            less = "DEOCC_BUILD=cpu leaves the CUDA kernels out, " if "nvcc" in PLAN.programs else ""
            sys.exit(f"building deocc._C failed ({error}); {less}DEOCC_BUILD=none installs deocc without it, slower")


class BuildPython(build_py):
    """Leaves written why there is no extension, for deocc.ops.backends() to tell."""

    def run(self) -> None:
        """Copy the package, then write or remove deocc/_build.json; nothing of an earlier build stays."""
        super().run()
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / "deocc"
        (package / "_build.json").unlink(missing_ok=True)
        if PLAN.reason:
            print(f"WARNING: deocc is installed WITHOUT its compiled kernels: {PLAN.reason}", file=sys.stderr)
            (package / "_build.json").write_text(json.dumps({"mode": PLAN.mode, "reason": PLAN.reason}) + "\n")
            (package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)


setup(
    ext_modules=[] if PLAN.reason else [Extension("deocc._C", sources=[])],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
)
