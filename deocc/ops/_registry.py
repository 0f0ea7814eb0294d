"""What every operator needs beside its own mathematics: a schema, its derivative, and a choice of backend.

An operator ``<op>`` lives in files of that one stem: ``deocc/ops/<op>.py`` (public function and
:class:`Operator`), ``deocc/ops/reference/<op>.py``, ``csrc/<op>.h``, ``csrc/cpu/<op>.cpp``, and ``csrc/cuda/<op>.cu``
or ``deocc/ops/triton/<op>.py``. Compiled kernels register themselves with torch when ``deocc._C`` is imported, below.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, overload

import torch

from deocc.errors import MissingDependencyError, UsageError

_LIBRARY: Final = torch.library.Library("deocc", "DEF")  # type: ignore[no-untyped-call]
_OPERATORS: Final[dict[str, Operator]] = {}
_WARNED: Final[set[str]] = set()
_MOST: Final = sys.float_info.max


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module, whose import registers its kernels, or None and the reason when it cannot be loaded."""
    try:
        return importlib.import_module("deocc._C"), ""
    except ModuleNotFoundError as error:
        if error.name != "deocc._C":
            raise
        return None, ""
    except ImportError as error:
        return None, f"deocc._C cannot be loaded ({error})"


compiled, _broken = _load()
"""``deocc._C``, or None when this installation has none."""


@functools.cache
def _missing() -> str:
    """Why there is no ``deocc._C``, as the build left it written."""
    record = Path(__file__).parents[1] / "_build.json"
    written = json.loads(record.read_text())["reason"] if record.exists() else ""
    return _broken or written or "deocc._C was not built for this Python"


class Backend(NamedTuple):
    """One way to compute an operator: whether it is available here, and if not, why."""

    available: bool
    reason: str = ""


class Backends(dict[str, dict[str, Backend]]):
    """Operator -> backend -> :class:`Backend`; printed, a table with the reasons below it."""

    def __str__(self) -> str:
        columns = [name for states in list(self.values())[:1] for name in states]
        reasons: dict[str, int] = {}
        rows = [["", *columns]]
        for name, states in self.items():
            cells = [
                "yes" if state.available else f"no ({reasons.setdefault(state.reason, len(reasons) + 1)})"
                for state in states.values()
            ]
            rows.append([name, *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"({number}) {reason}" for reason, number in reasons.items())])


@dataclass(frozen=True)
class Operator:
    """One operator: its name, and how the GPU kernel is written. Making one registers it.

    Args:
        name: of the public function, and the stem of all its files.
        gpu: ``"cuda"`` or ``"triton"``, whichever measured faster; None when it never runs there.
        arrays: it works on NumPy arrays, and so is no torch operator.
        kernel: what computes it, and has the files' stem, when that is not of its own name.
    """

    name: str
    gpu: Literal["cuda", "triton"] | None = "cuda"
    arrays: bool = False
    kernel: str = ""

    def __post_init__(self) -> None:
        _OPERATORS[self.name] = self

    def define(self, schema: str, fake: Callable[..., Any]) -> None:
        """Declare a kernel, ``"name(Tensor x, ...) -> Tensor"``, and what it returns for tensors without data."""
        name = _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"deocc::{name}", fake, lib=_LIBRARY)

    def differentiate(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """State the derivative of the kernel named like the operator; see :func:`torch.library.register_autograd`."""
        torch.library.register_autograd(f"deocc::{self.name}", backward, setup_context=setup_context, lib=_LIBRARY)

    def implement_in_triton(self, *kernels: str) -> None:
        """Let functions of these names in deocc/ops/triton/<op>.py compute on CUDA devices, where triton is installed.

        Neither that file nor triton is imported before one of them is called.
        """
        if importlib.util.find_spec("triton") is None:
            return
        for kernel in kernels:
            function = functools.partial(_in_triton, self.name, kernel)
            _LIBRARY.impl(kernel, function, "CUDA")  # type: ignore[no-untyped-call]

    def refuse_derivative(self, kernel: str) -> None:
        """State that the operator can be differentiated once: asking for a derivative of its backward kernel raises."""

        def refuse(ctx: Any, *gradients: Any) -> Any:
            raise NotImplementedError(f"deocc.ops.{self.name} has no second derivative, and one was asked for")

        torch.library.register_autograd(f"deocc::{kernel}", refuse, lib=_LIBRARY)

    def backends(self) -> dict[str, Backend]:
        """Every backend, in the order of :func:`backends`."""
        return {
            "reference": Backend(True),
            "cpu": _backend(self._without_kernel("cpu")),
            "cuda": _backend(self._without_gpu("cuda")),
            "triton": _backend(self._without_gpu("triton")),
        }

    @functools.cache  # noqa: B019 (operators live as long as the process)
    def _without_kernel(self, device: str) -> str:
        """Why no kernel computes on this kind of device; empty when one does."""
        if self.arrays:
            return "" if compiled else _missing()
        if device == "meta" or torch._C._dispatch_has_kernel_for_dispatch_key(
            f"deocc::{self.kernel or self.name}", device.upper()
        ):
            return self._too_old() if device == "cuda" else ""
        if device not in ("cpu", "cuda"):
            return f"there are no kernels for {device}"
        if device == "cuda" and self.gpu == "triton":
            return "triton is not installed"
        if compiled is None:
            return _missing()
        return str(compiled.build_info()[f"no_{device}"]) or "it was not compiled in"

    def _without_gpu(self, backend: Literal["cuda", "triton"]) -> str:
        if self.gpu is None:
            return "it works on NumPy arrays" if self.arrays else "it has no GPU kernel"
        if self.gpu != backend:
            return f"its GPU kernel is written in {'CUDA' if self.gpu == 'cuda' else 'Triton'}"
        if torch.version.cuda is None:
            return "this torch is built without CUDA"
        return self._without_kernel("cuda") or ("" if torch.cuda.is_available() else "torch finds no CUDA device")

    def _too_old(self) -> str:
        """Why the CUDA kernels, which are there, cannot run on this GPU; empty when they can."""
        if self.gpu != "cuda" or compiled is None or not torch.cuda.is_available():
            return ""
        built = min(int(found) for found in re.findall(r"\d+", compiled.build_info()["cuda_arch"]) or ["0"])
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor >= built:
            return ""
        return (
            f"it was compiled for compute capability {built // 10}.{built % 10} and later, and this GPU has "
            f"{major}.{minor} (DEOCC_CUDA_ARCH)"
        )

    def uses_reference(self, device: str) -> bool:
        """Whether the reference has to compute on this kind of device (``tensor.device.type``).

        Raises:
            UsageError: an environment variable has a value that is not offered.
            MissingDependencyError: it would for want of a kernel, and ``DEOCC_STRICT=1`` forbids that.
        """
        vector = os.environ.get("DEOCC_VECTOR", "")
        if vector not in ("", "narrow", "avx2", "avx512"):
            raise UsageError(f"DEOCC_VECTOR must be 'narrow', 'avx2', 'avx512' or unset, got {vector!r}")
        forced = os.environ.get("DEOCC_BACKEND", "")
        if not forced and not (reason := self._without_kernel(device)):
            return False
        strict = os.environ.get("DEOCC_STRICT", "0") not in ("", "0")
        if forced not in ("", "reference"):
            raise UsageError(f"DEOCC_BACKEND must be 'reference' or unset, got {forced!r}")
        if forced:
            if strict:
                raise UsageError("DEOCC_BACKEND=reference and DEOCC_STRICT=1 contradict each other; unset one of them")
            return True
        if strict:
            raise MissingDependencyError(
                f"deocc.ops.{self.name} has no kernel for {device} here ({reason}), and DEOCC_STRICT=1 forbids the "
                "slower reference"
            )
        if reason not in _WARNED:
            _WARNED.add(reason)
            warnings.warn(
                f"deocc.ops.{self.name} computes on {device} with its slower PyTorch reference: {reason}. "
                "deocc.ops.backends() lists every operator",
                RuntimeWarning,
                stacklevel=3,
            )
        return True


# torch.compile takes the answer as a constant. This is what torch.compiler.assume_constant_result does, which would
# import the whole compiler here and now.
Operator.uses_reference._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_finite(value: object) -> bool:
    """Whether it is a number that float64 holds; unlike math.isfinite torch.compile takes it, for changing ones too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MOST <= value <= _MOST


def _in_triton(name: str, kernel: str, *arguments: Any) -> Any:
    first = next(argument for argument in arguments if isinstance(argument, torch.Tensor))
    # The caller's autocast is still on here and would round matrix products; Triton launches on the current device.
    on_its_device = torch.cuda.device_of(first)  # type: ignore[no-untyped-call]
    with torch.autocast(first.device.type, enabled=False), on_its_device:
        return getattr(importlib.import_module(f"deocc.ops.triton.{name}"), kernel)(*arguments)


def _backend(reason: str) -> Backend:
    return Backend(not reason, reason)


@overload
def backends(name: None = None) -> Backends: ...
@overload
def backends(name: str) -> dict[str, Backend]: ...
def backends(name: str | None = None) -> Backends | dict[str, Backend]:
    """What can compute an operator here: ``"reference"``, ``"cpu"``, ``"cuda"``, ``"triton"`` -> :class:`Backend`.

    Args:
        name: an operator, as in ``backends("composite")["cuda"].reason``; None gives a mapping of all of them,
            which prints as a table.

    Raises:
        UsageError: there is no such operator.
    """
    if name is None:
        return Backends((name, operator.backends()) for name, operator in _OPERATORS.items())
    if name not in _OPERATORS:
        raise UsageError(f"there is no operator {name!r}; there are {', '.join(_OPERATORS)}")
    return _OPERATORS[name].backends()


def build_info() -> dict[str, str]:
    """How the compiled kernels were built: compiler, flags, mode, CUDA, sanitizer, torch, and the file.

    ``"compiled"`` is empty when there are none; ``"reason"`` then says why.
    """
    if compiled is None:
        return {"compiled": "", "reason": _missing()}
    return {"compiled": "yes", "reason": "", "file": str(compiled.__file__), **compiled.build_info()}
