"""Checkpoints that survive a kill at any moment.

A checkpoint is one safetensors file, written beside its name and renamed into place. Its tensors are the state's
tensors; its header carries the rest of the state as JSON (no pickle) and a SHA-256 over both, so damage is found when
reading. The last two are kept: when the newest is damaged, the one before it takes over, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deocc.errors import InputError, UsageError
from deocc.files import atomic_write

__all__ = ["Checkpoints", "read", "write"]

FORMAT = "deocc-checkpoint-1"
NAME = re.compile(r"step-(\d+)\.safetensors")


class _DamagedError(InputError):
    """What the file holds is not what was written to it."""


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises:
        UsageError: the state holds something else.
        InputError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_encode(dict(state), "", tensors))
    header = {"format": FORMAT, "state": tree, "sha256": _digest(tree, tensors)}
    data = safetensors.torch.save(tensors, metadata=header)
    with atomic_write(path) as file:
        file.write(data)


def read(path: Path) -> dict[str, Any]:
    """Read a state that :func:`write` wrote; its tensors are on the CPU.

    Raises:
        InputError: the file is missing, truncated, altered, or not a checkpoint.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise _DamagedError(f"{path} is damaged ({error})") from error
    if header.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint: its format is {header.get('format')!r}, not {FORMAT!r}")
    tree = header.get("state", "")
    if header.get("sha256") != _digest(tree, tensors):
        raise _DamagedError(f"{path} is damaged: its content does not have the SHA-256 that it states")
    state = _decode(json.loads(tree), tensors)
    assert isinstance(state, dict)
    return state


class Checkpoints:
    """The checkpoints of one training run, ``step-<number>.safetensors`` in a folder.

    Args:
        folder: where they are; made by the first :meth:`save`.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints, newest first."""
        found = [(int(match[1]), path) for path in self.folder.glob("*") if (match := NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove those too old to keep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.safetensors"
        write(path, state)
        for old in self.paths()[self.keep :]:
            old.unlink()
        return path

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read, or None where there is no checkpoint.

        A damaged checkpoint is warned about, and the one before it is read; then it gets the suffix ``.damaged``.

        Raises:
            InputError: there are checkpoints, and all of them are damaged; or one cannot be opened, or was not written
                by this version, which is no reason to set it aside.
        """
        damaged: list[Path] = []
        for path in self.paths():
            try:
                state = read(path)
            except _DamagedError as error:
                damaged.append(path)
                warnings.warn(f"{error}; trying the checkpoint before it", RuntimeWarning, stacklevel=2)
                continue
            for other in damaged:
                other.rename(other.with_name(other.name + ".damaged"))
            return state
        if damaged:  # they keep their names, so that the next call does not take the folder for a new one
            names = ", ".join(path.name for path in damaged)
            raise InputError(f"every checkpoint in {self.folder} is damaged ({names}): start anew elsewhere")
        return None


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON value for ``value``; its tensors go to ``tensors`` under their place in the tree."""
    if isinstance(value, Tensor):
        name = where or "tensor"
        # Optimizer state follows its parameter's memory format; giving the strides back keeps a resumed run bit-equal.
        strides = torch.empty_like(value, device="meta", memory_format=torch.preserve_format).stride()
        # A copy of its own for each, since tied weights share memory and safetensors refuses that.
        tensors[name] = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        contiguous = tensors[name].stride() == strides
        return {"tensor": name} if contiguous else {"tensor": name, "strides": list(strides)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise UsageError(f"a checkpoint cannot hold the key {key!r} at {where}: keys are strings or integers")
        return {"dict": [[key, _encode(item, f"{where}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{where}/{index}", tensors) for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    raise UsageError(f"a checkpoint cannot hold the {type(value).__name__} at {where}: only tensors and plain values")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        if "strides" not in value:
            return tensor
        return torch.empty_strided(tensor.shape, value["strides"], dtype=tensor.dtype).copy_(tensor)
    if "dict" in value:
        return {key: _decode(item, tensors) for key, item in value["dict"]}
    if "list" in value:
        return [_decode(item, tensors) for item in value["list"]]
    return tuple(_decode(item, tensors) for item in value["tuple"])


def _digest(tree: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
