"""Vectors that were computed before: embeddings and figures, by what they were computed from.

A folder holds one file for each *stage* (a matcher after a restorer, say), named by the digest of everything that
decides its output. A record of it is a key (the digest of the input), a checksum and the vector. Records are only ever
appended; what a killed run has left half-written at the end is cut off.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError
from deocc.files import make_folder

__all__ = ["KEY", "Cache", "Stage"]

KEY = 16
"""Bytes of a key."""

_MAGIC = b"deocc judge cache 1\n"


class Cache:
    """A folder of stages; None keeps them in memory alone."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._stages: dict[str, Stage] = {}
        if folder is not None:
            make_folder(folder)

    def stage(self, what: Mapping[str, Any]) -> Stage:
        """The stage identified by ``what``, which must be JSON-able."""
        text = json.dumps(what, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        if name not in self._stages:
            self._stages[name] = Stage(None if self._folder is None else self._folder / f"{name}.vectors")
        return self._stages[name]

    def close(self) -> None:
        """Close the files."""
        for stage in self._stages.values():
            stage.close()


class Stage:
    """Vectors of one length, by key; used by many threads."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._vectors: dict[bytes, NDArray[np.float32]] = {}
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        if path is not None and path.exists():
            self._read(path)

    def get(self, keys: Sequence[bytes]) -> list[NDArray[np.float32]] | None:
        """The vectors of all keys, or None if one of them is not there.

        All or none: then a batch is computed as it was before, and an interrupted run ends in the same bits as another.
        """
        found = [self._vectors.get(key) for key in keys]
        return None if any(vector is None for vector in found) else found  # type: ignore[return-value]

    def put(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Keep vectors (N, D), and return them as they were kept."""
        rows = list(np.ascontiguousarray(vectors, np.float32))
        with self._lock:
            for key, row in zip(keys, rows, strict=True):
                self._vectors[key] = row
            if self._path is not None and rows:
                if self._file is None:
                    self._file = self._open(self._path, rows[0].size)
                self._file.write(b"".join(map(_record, keys, rows)))
                self._file.flush()
        return rows

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _open(self, path: Path, size: int) -> BinaryIO:
        try:
            file = path.open("ab")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})") from error
        if file.tell() == 0:
            file.write(_MAGIC + struct.pack("<I", size))
        return file

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            head = len(_MAGIC) + 4
            good = 0
            if data.startswith(_MAGIC) and len(data) >= head:
                size = struct.unpack("<I", data[len(_MAGIC) : head])[0]
                length = KEY + 4 + 4 * size
                good = head
                for start in range(head, len(data) - length + 1, length):
                    record = data[start : start + length]
                    key, vector = record[:KEY], np.frombuffer(record[KEY + 4 :], np.float32)
                    if record != _record(key, vector):
                        break
                    self._vectors[key] = vector
                    good = start + length
            if good < len(data):
                with path.open("r+b") as file:
                    file.truncate(good)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); delete it to compute it anew") from error


def _record(key: bytes, vector: NDArray[np.float32]) -> bytes:
    data = vector.tobytes()
    return key + struct.pack("<I", zlib.crc32(key + data)) + data
