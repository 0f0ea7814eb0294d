"""Reading arrays of numbers from MATLAB's files, of level 5 (MATLAB's "-v6" and "-v7")."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deocc.errors import InputError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = range(6, 16)  # of matrices that hold plain numbers


def read_matlab(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read the variables of these names; the others are passed over.

    The layout is that of MathWorks' "MAT-File Format". Little-endian files alone, as every MATLAB of today writes them.

    Raises:
        InputError: it is no such file, is damaged, or lacks a variable.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if bytes(data[:10]) == b"MATLAB 7.3":
        raise InputError(f"{path} is a MATLAB 7.3 file; save it again with '-v7'")
    if len(data) < _HEADER or bytes(data[126:128]) != b"IM":
        raise InputError(f"{path} is not a little-endian MATLAB file of level 5")
    found: dict[str, npt.NDArray[Any]] = {}
    place = _HEADER
    try:
        while place < len(data) and len(found) < len(names):
            kind, content, place = _element(data, place)
            if kind == _COMPRESSED:
                # Its name stands in the first few bytes: what is not wanted is not unpacked.
                head = zlib.decompressobj().decompress(content, 512)
                if _name(memoryview(head)[8:]) not in names:
                    continue
                kind, content, _ = _element(memoryview(zlib.decompress(content)), 0)
            if kind == _MATRIX and (name := _name(content)) in names:
                found[name] = _matrix(content)
    except (struct.error, zlib.error, KeyError, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged, or holds something else than numbers ({error})") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path} lacks the variable {missing[0]}")
    return found


def _element(data: memoryview, place: int) -> tuple[int, memoryview, int]:
    """An element's type and content, and where the next one starts."""
    kind, size = struct.unpack_from("<II", data, place)
    if kind >> 16:  # a small one: size and content stand in the tag itself
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError(f"a small element of {size} bytes")
        return kind, data[place + 4 : place + 4 + size], place + 8
    content = data[place + 8 : place + 8 + size]
    if len(content) < size:
        raise ValueError("it ends too early")
    return kind, content, place + 8 + (size if kind == _COMPRESSED else math.ceil(size / 8) * 8)


def _name(matrix: memoryview) -> str:
    place = 0
    for _ in range(2):  # flags, dimensions
        *_, place = _element(matrix, place)
    return bytes(_element(matrix, place)[1]).decode("ascii")


def _matrix(content: memoryview) -> npt.NDArray[Any]:
    _, flags, place = _element(content, 0)
    if flags[0] not in _CLASSES or flags[1] & 0x08:
        raise ValueError(f"class {flags[0]}")
    _, shape, place = _element(content, place)
    *_, place = _element(content, place)  # the name
    kind, numbers, _ = _element(content, place)
    # MATLAB stores small whole numbers as such, whatever the class.
    values: npt.NDArray[Any] = np.frombuffer(numbers, "<" + _NUMBERS[kind])
    return values.reshape(struct.unpack(f"<{len(shape) // 4}i", shape), order="F")
