"""Writing files so that nothing is ever half-written, and naming their content.

>>> with atomic_write("picture.png") as file:  # doctest: +SKIP
...     file.write(data)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deocc.errors import InputError, UsageError

__all__ = ["atomic_write", "locked", "make_folder", "sha256"]

BAD_ARCHIVE = (
    OSError,
    KeyError,
    ValueError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""What numpy raises on a damaged .npz."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that appears under ``path`` complete, or not at all.

    The data goes to a temporary file in the same folder, reaches the disk, and then takes the place of ``path`` in one
    step; an earlier file of that name is there until then. When the block raises, or the process dies, ``path`` is as
    it was; when the block raises, the temporary file is gone too. The permissions are those of any new file (umask).

    Args:
        path: where to write; its folder must exist.

    Yields:
        A file open for writing and reading; its ``name`` is the temporary path, for writers that want a path.

    Raises:
        InputError: the folder is missing or not writable, ``path`` is a folder, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} cannot be written as a file: it is a folder")
    # The suffix is kept: writers that are handed the name choose the format by it.
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}{path.suffix}")
    try:
        # Not tempfile, which gives permissions 0600 whatever the umask.
        file = temporary.open("x+b")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from error
    try:
        with file:
            yield file
        # By path, since the block may have used the name and not the open file.
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # Errors of write() and fsync() name no file; any other OSError is the caller's own.
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise InputError(f"{path} cannot be written ({error.strerror or error})") from error
        raise


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], user: str) -> Iterator[None]:
    """Hold a folder for this process, by its file ``.lock``; the lock goes with the process, however that ends.

    Args:
        folder: must exist.
        user: what holds such folders, for the sentence: "deocc judge".

    Raises:
        UsageError: another process holds it.
        InputError: it cannot be written.
    """
    try:
        file = (Path(folder) / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from error
    with file:
        try:
            # lockf, not flock: a process's workers would inherit the latter and outlive it, when it is killed, with it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder} is in use by another {user} process; wait for it, or give another folder"
            ) from error
        yield


def make_folder(path: str | os.PathLike[str]) -> bool:
    """Make a folder to write to, with those around it; True when it was not there before.

    Raises:
        InputError: it cannot be made.
    """
    path = Path(path)
    try:
        missing = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        blocked = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in its place or above it" if blocked else error.strerror
        raise InputError(f"the folder {path} cannot be made ({reason})") from error
    return missing


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{os.fspath(path)} cannot be read ({error.strerror})") from error


def _sync(path: Path) -> None:
    """Make a file's data, or the names inside a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
