"""The machine a task trains on: one device here, many through a Lightning Fabric object with the same methods."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from deocc.errors import UsageError
from deocc.method import Engine

__all__ = ["PRECISIONS", "FitEngine", "SingleDevice"]

PRECISIONS = ("32", "bf16-mixed")
"""The precisions :class:`SingleDevice` knows, under the names Lightning Fabric gives them."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)
AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


class FitEngine(Engine, Protocol):
    """What :func:`deocc.train.fit` asks of an engine, beside what a task may ask (:class:`deocc.method.Engine`)."""

    @property
    def global_rank(self) -> int:
        """The number of this process; 0 evaluates and writes."""

    @property
    def is_global_zero(self) -> bool:
        """True in the process that evaluates and writes."""

    def setup_module(self, module: Any, /) -> Any:
        """Move a network to the device, and wrap it where gradients have to be averaged."""

    def setup_optimizers(self, *optimizers: Any) -> Any:
        """Wrap an optimizer where that is needed."""

    def barrier(self) -> None:
        """Wait for the other processes."""

    def to_device(self, obj: Any, /) -> Any:
        """Move every tensor of a batch to the device."""


class SingleDevice:
    """One device, no wrapping: the engine that comes with the core.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        precision: ``"32"``, or ``"bf16-mixed"``: float32 weights and bfloat16 autocast inside :meth:`autocast`.

    Raises:
        UsageError: no such device here, or no such precision.
    """

    world_size = 1
    global_rank = 0
    is_global_zero = True

    def __init__(self, device: str | torch.device = "cpu", precision: str = "32") -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"device {str(device)!r} cannot be used here ({reason})") from error
        self.precision = precision

    def setup_module(self, module: AnyModule) -> AnyModule:
        """Move a module to the device and return the same module."""
        return module.to(self.device)

    def setup_optimizers(self, *optimizers: AnyOptimizer) -> AnyOptimizer | tuple[AnyOptimizer, ...]:
        """Return the optimizer (or the tuple of several) as it is."""
        return optimizers[0] if len(optimizers) == 1 else optimizers

    def setup(self, module: AnyModule, *optimizers: torch.optim.Optimizer) -> Any:
        """Move a module to the device; return it, followed by its optimizers where some were given."""
        module = self.setup_module(module)
        return (module, *optimizers) if optimizers else module

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``."""
        torch.autograd.backward(loss)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a task runs its networks and losses."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def all_gather(self, data: Tensor) -> Tensor:
        """``data`` of every process: with one process, ``data``."""
        return data

    def barrier(self) -> None:
        """Wait for the other processes: there are none."""

    def to_device(self, obj: Any) -> Any:
        """Move every tensor inside a batch (mapping, sequence, named tuple or tensor) to the device."""
        if isinstance(obj, Tensor):
            return obj.to(self.device, non_blocking=True)
        if isinstance(obj, dict):
            return {key: self.to_device(value) for key, value in obj.items()}
        if isinstance(obj, tuple) and hasattr(obj, "_fields"):
            return type(obj)(*(self.to_device(value) for value in obj))
        if isinstance(obj, list | tuple):
            return type(obj)(self.to_device(value) for value in obj)
        return obj
