"""Plain PyTorch and NumPy, written to be read: the specification of every operator, and what runs without a kernel."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def in_full(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which the caller's autocast rounds no matrix product on the tensor's device."""
    device = tensor.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
