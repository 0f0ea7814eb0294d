"""What is installed and how it was built: ``python -m deocc.info`` and ``deocc info``. Paste it into a bug report."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

__all__ = ["main", "text"]


def text() -> str:
    """Versions, the build, every operator's backends and every method's state; each thing missing with its reason."""
    sections = {
        "versions": _versions(),
        "build": _build(),
        "operators": _operators(),
        "methods": _methods(),
    }
    return "\n\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections.items())


def main() -> None:
    """Print :func:`text`."""
    print(text())


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return (f"{name:<{width}}  {value}".rstrip() for name, value in listed)


def _installed(*distributions: str) -> str:
    """The version of the first of these that is installed."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def _versions() -> Iterator[str]:
    import torch

    gpu = "no CUDA device"
    if torch.cuda.is_available():
        gpu = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return _table(
        [
            ("deocc", _installed("deocc")),
            ("python", f"{platform.python_version()} on {platform.platform()}"),
            ("torch", f"{torch.__version__}, {gpu}, {torch.get_num_threads()} threads"),
            ("numpy", _installed("numpy")),
            ("opencv", _installed("opencv-python", "opencv-python-headless", "opencv-contrib-python")),
            ("safetensors", _installed("safetensors")),
            ("triton", _installed("triton")),
        ]
    )


def _build() -> Iterator[str]:
    from deocc import ops

    info = ops.build_info()
    if not info["compiled"]:
        return iter([f"no compiled kernels: {info['reason']}"])
    cuda = f"nvcc {info['cuda']} for {info['cuda_arch']}" if info["cuda"] else f"none: {info['no_cuda']}"
    return _table(
        [
            ("mode", f"DEOCC_BUILD={info['mode']}"),
            ("compiler", f"{info['compiler']}, {info['flags']}"),
            ("cuda", cuda),
            ("sanitizer", info["sanitizer"] or "none"),
            ("against", f"torch {info['torch']} (stable ABI of 2.11)"),
            ("file", info["file"]),
        ]
    )


def _operators() -> Iterator[str]:
    from deocc import ops

    return iter(str(ops.backends()).splitlines())


def _methods() -> Iterator[str]:
    from deocc import plugins

    broken = {problem.entry_point: str(problem) for problem in plugins.problems()}
    rows = []
    for name in plugins.names():
        if name in broken:
            rows.append((name, f"broken: {broken[name]}"))
            continue
        method = plugins.get(name)
        parts = [*method.parts(), *(f"trains {task}" for task in method.tasks)]
        rows.append((name, ", ".join(parts)))
    return _table(rows) if rows else iter(["none installed"])


if __name__ == "__main__":
    main()
