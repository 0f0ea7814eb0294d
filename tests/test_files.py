from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deocc.errors import InputError
from deocc.files import atomic_write, locked, sha256


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    for data in (b"first", b"2"):
        with atomic_write(target) as file:
            file.write(data)
        assert target.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with atomic_write(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"


def test_name_can_be_given_to_a_writer_that_wants_a_path(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    with atomic_write(target) as file:
        assert Path(file.name).parent == tmp_path
        assert Path(file.name).suffix == ".png"
        Path(file.name).write_bytes(b"by name")
    assert target.read_bytes() == b"by name"


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), FileNotFoundError(2, "gone", "other.txt")])
def test_an_error_leaves_nothing_behind_and_is_passed_on(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), atomic_write(tmp_path / "a.bin") as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with pytest.raises(InputError, match=r"a\.bin cannot be written \(No space left"), atomic_write(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_missing_folder_and_folder_as_target(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"), atomic_write(tmp_path / "no" / "a"):
        pass
    with pytest.raises(InputError, match="it is a folder"), atomic_write(tmp_path):
        pass


def test_kill_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    code = (
        "import os, signal, sys; from deocc.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as f:\n"
        "    f.write(b'new'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == -9
    assert target.read_bytes() == b"old"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(InputError, match="cannot be read"):
        sha256(tmp_path / "b")


def test_one_process_holds_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path, "test"):
        script = f"from deocc.files import locked\nwith locked({str(tmp_path)!r}, 'test'): pass"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "UsageError: " in other.stderr
    assert "is in use by another test process" in other.stderr
    with locked(tmp_path, "test"):
        pass
    with pytest.raises(InputError, match="cannot be written"), locked(tmp_path / "none", "test"):
        pass
