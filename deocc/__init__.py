"""Restore occluded faces, and measure whether that helped.

>>> import deocc
>>> restorer = deocc.restorer("canet")            # doctest: +SKIP
>>> image, occlusion, extras = restorer(images)   # doctest: +SKIP

Importing this package imports nothing else: the functions below import what they need when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from deocc.method import Occluder, Recognizer, Restorer
    from deocc.unmasking import UnmaskResult

    __version__: str

__all__ = ["__version__", "occluder", "recognizer", "restorer", "unmask"]


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module 'deocc' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("deocc")
    except PackageNotFoundError:
        return "0+not.installed"


def restorer(name: str = "canet", *, weights: str | Path | None = None, device: str = "cpu", **config: Any) -> Restorer:
    """Load a method's restorer, ready to use; see :class:`deocc.method.Restorer` for how to call it.

    Args:
        name: a method, as listed by ``deocc methods``.
        weights: a safetensors file with its card beside it; by default the weights packaged with the method.
        device: where to compute, such as ``"cpu"`` or ``"cuda:0"``.
        **config: fields of the method's configuration to change.

    Raises:
        UsageError, PluginError, WeightsError: as :func:`deocc.plugins.load` does.
    """
    from deocc.plugins import load

    return load(name, "restorer", weights=weights, device=device, **config)


def occluder(name: str, *, weights: str | Path | None = None, device: str = "cpu", **config: Any) -> Occluder:
    """Load a method's occluder, ready to use; the arguments and errors are those of :func:`restorer`."""
    from deocc.plugins import load

    return load(name, "occluder", weights=weights, device=device, **config)


def recognizer(
    name: str = "mobilefacenet", *, weights: str | Path | None = None, device: str = "cpu", **config: Any
) -> Recognizer:
    """Load a method's recognizer, ready to use; the arguments and errors are those of :func:`restorer`."""
    from deocc.plugins import load

    return load(name, "recognizer", weights=weights, device=device, **config)


def unmask(photo: Any, **options: Any) -> UnmaskResult:
    """Find the faces in a whole photo, restore them and paste them back: see :func:`deocc.unmasking.unmask`."""
    from deocc.unmasking import unmask as run

    return run(photo, **options)
