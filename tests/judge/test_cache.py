"""Vectors kept on disk survive whatever ends a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deocc.errors import InputError
from deocc.judge.cache import Cache

KEYS = [bytes([number]) * 16 for number in range(5)]
VECTORS = np.arange(15, dtype=np.float32).reshape(5, 3)


def filled(folder: Path) -> Path:
    cache = Cache(folder)
    cache.stage({"what": 1}).put(KEYS, VECTORS)
    cache.close()
    return next(folder.glob("*.vectors"))


def kept(folder: Path) -> int:
    stage = Cache(folder).stage({"what": 1})
    return sum(stage.get([key]) is not None for key in KEYS)


def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    filled(tmp_path)
    stage = Cache(tmp_path).stage({"what": 1})
    np.testing.assert_array_equal(stage.get(KEYS), VECTORS)  # type: ignore[arg-type]
    np.testing.assert_array_equal(stage.get([KEYS[3]]), VECTORS[3:4])  # type: ignore[arg-type]
    assert stage.get([KEYS[0], b"?" * 16]) is None
    assert stage.get([]) == []
    assert Cache(tmp_path).stage({"what": 2}).get(KEYS) is None


def test_memory_alone(tmp_path: Path) -> None:
    stage = Cache(None).stage({})
    assert stage.put(KEYS, VECTORS)[1].tolist() == [3, 4, 5]
    assert stage.get(KEYS[:1]) is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", [1, 20, 31, 32, 33])
def test_a_record_that_was_cut_off_is_dropped_and_the_rest_goes_on(tmp_path: Path, lost: int) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    left = 5 - -(-lost // 32)
    assert kept(tmp_path) == left
    cache = Cache(tmp_path)
    cache.stage({"what": 1}).put(KEYS[left:], VECTORS[left:])
    cache.close()
    assert kept(tmp_path) == 5
    np.testing.assert_array_equal(Cache(tmp_path).stage({"what": 1}).get(KEYS), VECTORS)  # type: ignore[arg-type]


def test_what_was_altered_is_not_believed(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1  # in the last record but one
    path.write_bytes(bytes(data))
    assert kept(tmp_path) == 3


@pytest.mark.parametrize("data", [b"", b"something else", b"deocc judge cache 1\n\x01"])
def test_a_file_of_another_kind_is_started_anew(tmp_path: Path, data: bytes) -> None:
    path = filled(tmp_path)
    path.write_bytes(data)
    assert kept(tmp_path) == 0
    assert filled(tmp_path) == path
    assert kept(tmp_path) == 5


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        Cache(tmp_path / "file" / "cache")
