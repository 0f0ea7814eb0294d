"""Image files in and out, and the two steps between a photo's bytes and a network's tensor.

Inside deocc a file is a uint8 RGB array (H, W, 3) and a batch is a float tensor (N, 3, H, W) in [0, 1]; this module is
the edge where one becomes the other.
"""

from __future__ import annotations

import glob
import os
import re
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from deocc.errors import InputError, UsageError
from deocc.files import atomic_write

if TYPE_CHECKING:  # files are read by processes that have no other need of torch, which takes a second to import
    from torch import Tensor

Array = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""File name endings, in lower case, by which :func:`find_images` knows an image."""

MAX_PIXELS = 100_000_000
"""The largest image that :func:`read_image` decodes unless told otherwise: 100 megapixels."""

_MAX_BYTES = 1 << 30
_MAX_PROFILE = 1 << 24
_AFTER_IHDR = 33  # the signature of a PNG and its first chunk, which is always as long
# Suffix -> OpenCV's options, longest side that the format can hold (for PNG, that OpenCV reads again).
_WRITERS: dict[str, tuple[list[int], int]] = {
    ".png": ([], 1_000_000),
    ".jpg": ([cv2.IMWRITE_JPEG_QUALITY, 95], 65_500),
    ".jpeg": ([cv2.IMWRITE_JPEG_QUALITY, 95], 65_500),
    ".webp": ([cv2.IMWRITE_WEBP_QUALITY, 95], 16_383),
}


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, background: int = 255) -> Array:
    """Read an image file as uint8 RGB, upright.

    JPEG (grey, RGB, CMYK), PNG, WebP, BMP, TIFF, PGM and PPM are told apart by their content, not by their name. What
    is not plain 8-bit RGB is turned into it: grey is repeated over the three channels, 16 bits are scaled to 8, what
    is transparent is composited onto white, and the rotation noted by the camera (EXIF) is applied. An embedded colour
    profile is not applied (:func:`read_profile` returns it). The first frame of an animation and the first page of a
    TIFF count.

    A damaged JPEG, a truncated one say, is read as far as it goes, and a ``UserWarning`` says so.

    Args:
        path: the file.
        max_pixels: refuse an image whose header announces more, before anything is decoded.
        background: the grey, 0 to 255, onto which what is transparent is composited.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        InputError: there is no such file, it cannot be read, is no image, is too large, or is too damaged.
    """
    path = Path(path)
    data = _read_bytes(path)
    header = _parse_header(data)
    if header is None:
        raise InputError(f"{path} is not an image that deocc reads (JPEG, PNG, WebP, BMP, TIFF, PGM or PPM)")
    if header.width < 1 or header.height < 1:
        raise InputError(
            f"{path} is a damaged {header.kind}: its header announces {header.width}x{header.height} pixels"
        )
    if header.width * header.height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise InputError(f"{path} announces {header.width}x{header.height} pixels, and deocc reads at most {limit}")
    pixels, complaint = _decode(data, header)
    if pixels is None:
        raise InputError(f"{path} is a {header.kind} too damaged to be read{f' ({complaint})' if complaint else ''}")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path} has pixels of type {pixels.dtype}; deocc reads 8 and 16 bits a channel")
    if complaint and header.kind == "JPEG":
        if (pixels == pixels[0, 0]).all():
            raise InputError(f"{path} is a JPEG of which nothing could be read ({complaint})")
        warnings.warn(f"{path} is damaged and was read as far as it goes ({complaint})", UserWarning, stacklevel=2)
    return np.ascontiguousarray(_turn(_to_rgb(pixels, background), header.orientation))


def read_profile(path: str | os.PathLike[str]) -> bytes | None:
    """The ICC colour profile of RGB pixels that a JPEG, PNG or WebP file has embedded; None where there is none.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    data = _read_bytes(Path(path))
    try:
        if data.startswith(b"\xff\xd8"):
            profile = _jpeg_profile(data)
        elif data.startswith(b"\x89PNG\r\n\x1a\n"):
            # A name, which ends with 0; the number of the compression method, of which there is one; the profile.
            found = next((content for name, content in _png_chunks(data) if name == b"iCCP"), b"")
            # A few bytes can unpack to gigabytes; what is cut off is no profile.
            unpacker = zlib.decompressobj()
            profile = unpacker.decompress(found[found.index(0) + 2 :], _MAX_PROFILE) if found else b""
            profile = profile if unpacker.eof else b""
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            profile = next((content for name, content in _webp_chunks(data) if name == b"ICCP"), b"")
        else:
            profile = b""
    except (struct.error, IndexError, ValueError, zlib.error):
        return None  # damaged; the pixels can be good all the same
    return profile if profile[16:20] == b"RGB " else None  # of CMYK and grey it does not fit what read_image returns


def write_image(
    path: str | os.PathLike[str], image: Array, *, overwrite: bool = False, profile: bytes | None = None
) -> None:
    """Write an image file; the suffix names the format: .png, .jpg or .jpeg (quality 95), .webp (quality 95).

    The file appears whole or not at all.

    Args:
        path: the file; its folder must exist.
        image: (H, W, 3) RGB or (H, W) grey, uint8.
        overwrite: replace a file that is there already.
        profile: an ICC colour profile of RGB to embed, as :func:`read_profile` returns it; in a .png alone.

    Raises:
        UsageError: an unknown suffix, or one that takes no profile, or a file is there already and ``overwrite`` is
            False.
        InputError: not such an array, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(f"cannot write {path}: its suffix must be one of {', '.join(_WRITERS)}, got {path.suffix!r}")
    if profile is not None and path.suffix.lower() != ".png":
        raise UsageError(f"cannot write {path} with a colour profile, which deocc embeds in .png alone")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise InputError(f"an image to be written must be a uint8 array (H, W, 3) or (H, W), got {_describe(image)}")
    if image.ndim == 3 and image.shape[2] != 3:
        raise InputError(f"an image to be written must be a uint8 array (H, W, 3) or (H, W), got {_describe(image)}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already and is left as it is unless overwriting is asked for")
    options, longest = _WRITERS[path.suffix.lower()]
    if max(image.shape) > longest:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"{path} cannot hold {size} pixels: {path.suffix} ends at {longest} a side")
    _, buffer = cv2.imencode(path.suffix.lower(), image if image.ndim == 2 else image[..., ::-1], options)
    data = buffer.tobytes()
    if profile is not None:
        chunk = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = data[:_AFTER_IHDR] + chunk + data[_AFTER_IHDR:]
    with atomic_write(path) as file:
        file.write(data)


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the image files that ``paths`` name.

    Args:
        paths: files, which are taken as they are whatever their name; folders, which are searched with all folders
            below them for :data:`IMAGE_SUFFIXES` (hidden files and linked folders are left out); and patterns with
            ``*``, ``?``, ``[...]`` or ``**``.

    Returns:
        In the order of ``paths``, sorted within each, every file once.

    Raises:
        InputError: a path that does not exist, a folder without images or unreadable, a pattern without a match.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            images = _images_below(path)
            if not images:
                raise InputError(f"the folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        elif path.exists():
            images = [path]
        elif glob.has_magic(str(given)):
            images = []
            for match in map(Path, sorted(glob.glob(str(given), recursive=True))):  # noqa: PTH207 - absolute patterns too
                if match.is_dir():
                    images += _images_below(match)
                elif match.suffix.lower() in IMAGE_SUFFIXES:
                    images.append(match)
            if not images:
                raise InputError(f"no image matches {given} ({', '.join(IMAGE_SUFFIXES)})")
        else:
            raise InputError(f"there is no file or folder {path}")
        found.update(dict.fromkeys(images))
    return list(found)


def to_tensor(image: Array) -> Tensor:
    """Turn pixels into a batch: uint8 (H, W, 3) or (N, H, W, 3) -> float32 (N, 3, H, W) in [0, 1].

    Raises:
        InputError: not such an array.
    """
    import torch

    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
        raise InputError(f"pixels must be a uint8 array (H, W, 3) or (N, H, W, 3), got {_describe(image)}")
    batch = image[None] if image.ndim == 3 else image
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))).to(torch.float32).div_(255)


def to_uint8(image: Tensor) -> Array:
    """Turn a batch into pixels: float (N, 3, H, W), clamped to [0, 1] -> uint8 (N, H, W, 3), rounded to nearest.

    ``to_uint8(to_tensor(x))`` is ``x``.

    Raises:
        InputError: not such a tensor, or a value that is not finite.
    """
    import torch

    if not isinstance(image, torch.Tensor) or not image.is_floating_point() or image.ndim != 4 or image.shape[1] != 3:
        raise InputError(f"a batch must be a floating point tensor (N, 3, H, W), got {_describe(image)}")
    image = image.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(image).all()):
        raise InputError("a batch must be finite, got NaN or infinite values")
    levels = image.clamp(0, 1).mul(255).round_().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy())


def check_image(image: object, what: str = "the image") -> None:
    """Raise InputError unless ``image`` is a uint8 array (H, W, 3) with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"{what} must be a uint8 array (H, W, 3), got {_describe(image)}")
    if image.size == 0:
        raise InputError(f"{what} must have at least one pixel, got {_describe(image)}")


def _describe(value: object) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def _images_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]  # thumbnails, what was thrown away
        found += [
            Path(root, name)
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.exists():
            raise InputError(f"there is no file {path}")
        if not path.is_file():  # a folder, or a device or pipe that might never end
            raise InputError(f"{path} is not a file")
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"{path} is empty")
        if size > _MAX_BYTES:
            raise InputError(f"{path} has {size / 2**30:.1f} GiB, and deocc reads image files of at most 1 GiB")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {str(path)!r}: {error}") from error  # a path with a NUL character


# --- Headers -------------------------------------------------------------------------------------------------------
# OpenCV tells an image's size only by decoding it, and its own limit on pixels can only be set before it is imported.


_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
"""A marker of a JPEG that ends it or starts a segment; after the others there is no length."""


class _Header(NamedTuple):
    kind: str
    width: int
    height: int
    orientation: int = 1  # EXIF: 1..8, 1 = upright


def _parse_header(data: bytes) -> _Header | None:
    """Size and orientation as the header has them; size 0x0 if the header is damaged; None for no known image."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _parse_jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack(">II", data[16:24])
            return _Header("PNG", width, height, _png_orientation(data))
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _parse_webp(data)
        if data.startswith(b"BM"):
            if struct.unpack("<I", data[14:18])[0] == 12:  # the header of OS/2
                width, height = struct.unpack("<HH", data[18:22])
                return _Header("BMP", width, height)
            width, height = struct.unpack("<ii", data[18:26])
            return _Header("BMP", width, abs(height))  # a negative height means rows from top to bottom
        if data[:4] in (b"II*\0", b"MM\0*"):
            tags = _read_tags(data)
            return _Header("TIFF", tags.get(256, 0), tags.get(257, 0))  # OpenCV applies a TIFF's orientation by itself
        if match := re.match(rb"P[2356]\s(?:\s|#[^\n]*\n)*(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s", data[:4096]):
            return _Header("PGM or PPM", int(match[1]), int(match[2]))
    except (struct.error, IndexError):
        return _Header("file", 0, 0)
    return None


def _parse_jpeg(data: bytes) -> _Header:
    orientation, at = 1, 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker, length = struct.unpack(">HH", data[at : at + 4])
        if marker in (0xFFD8, 0xFFD9, 0xFFDA) or marker < 0xFF01 or length < 2:
            return _Header("JPEG", 0, 0)  # pixels before any size
        if marker == 0xFFE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _read_tags(data[at + 10 : at + 2 + length]).get(0x0112, 1)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return _Header("JPEG", width, height, orientation)
        at += 2 + length


def _jpeg_ends(data: bytes) -> bool:
    """Whether a JPEG has its end marker; what comes after that, a phone's short film say, is not looked at.

    Segments are passed over by their length, since a thumbnail inside one has an end marker too. In the scans between
    them every byte FF is followed by 00, or by the number of a restart.
    """
    at = 2
    while match := _MARKER.search(data, at):
        if match[1] == b"\xd9":
            return True
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2])
    return False


def _jpeg_profile(data: bytes) -> bytes:
    """The ICC profile, which may be spread over several segments that are numbered; empty where there is none."""
    parts, at = {}, 2
    while (length := struct.unpack(">H", data[at + 2 : at + 4])[0]) >= 2 and data[at + 1] != 0xDA:
        if data[at : at + 2] == b"\xff\xe2" and data[at + 4 : at + 16] == b"ICC_PROFILE\0":
            parts[data[at + 16]] = data[at + 18 : at + 2 + length]
        at += 2 + length
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
    return b"".join(parts[number] for number in sorted(parts))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _png_orientation(data: bytes) -> int:
    exif = next((content for name, content in _png_chunks(data) if name == b"eXIf"), b"")
    return _read_tags(exif).get(0x0112, 1)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        length = struct.unpack("<I", data[at + 4 : at + 8])[0]
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _parse_webp(data: bytes) -> _Header:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return _Header("WebP", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        return _Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        return _Header("WebP", 0, 0)
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    exif = next((content for name, content in _webp_chunks(data) if name == b"EXIF"), b"")
    return _Header("WebP", width, height, _read_tags(exif.removeprefix(b"Exif\0\0")).get(0x0112, 1))


def _read_tags(tiff: bytes) -> dict[int, int]:
    """The single integers of the first directory of a TIFF, which is also how EXIF is laid out; empty if damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    tags: dict[int, int] = {}
    try:
        if order is not None:
            start = struct.unpack(order + "I", tiff[4:8])[0]
            for at in range(start + 2, start + 2 + 12 * struct.unpack(order + "H", tiff[start : start + 2])[0], 12):
                tag, kind, count = struct.unpack(order + "HHI", tiff[at : at + 8])
                if count == 1 and kind == 3:
                    tags[tag] = struct.unpack(order + "H", tiff[at + 8 : at + 10])[0]
                elif count == 1 and kind == 4:
                    tags[tag] = struct.unpack(order + "I", tiff[at + 8 : at + 12])[0]
    except struct.error:
        pass  # what came before the damage counts
    return tags


# --- Pixels --------------------------------------------------------------------------------------------------------

_stderr_lock = threading.Lock()
_CHATTER = re.compile(
    r"^(\[ ?(WARN|ERROR|INFO|DEBUG)|libpng |Corrupt JPEG|Premature end of JPEG|Invalid SOS|Inconsistent prog)"
)


def _decode(data: bytes, header: _Header) -> tuple[npt.NDArray[Any] | None, str]:
    """Decode as the file has it: BGR, any depth, not turned; None if that fails. And what the decoder said, if any."""
    complaint = ""
    if header.kind == "JPEG" and not _jpeg_ends(data):
        complaint = "it ends too early"
        data += b"\xff\xd9"  # what a decoder needs to hand over what came before
    with _captured_stderr() as lines:
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            pixels = None
    said = [line for line in lines if not line.startswith("[")]
    return pixels, complaint or (said[0].strip() if said else "")


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Keep the image decoders' own messages off the terminal and hand them over, one a line, when the context ends.

    libjpeg and libpng write to the process's stderr, not to Python's: only the file descriptor can be held back. What
    another thread has written meanwhile is passed on.
    """
    lines: list[str] = []
    with _stderr_lock:
        try:
            terminal = os.dup(2)
        except OSError:  # a process without stderr
            yield lines
            return
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield lines
            finally:
                os.dup2(terminal, 2)
                os.close(terminal)
                file.seek(0)
                for line in file.read().decode(errors="replace").splitlines():
                    if _CHATTER.match(line):
                        lines.append(line)
                    elif line:
                        os.write(2, f"{line}\n".encode())


def _to_rgb(pixels: npt.NDArray[Any], background: int) -> Array:
    if pixels.dtype == np.uint16:  # 65535 / 255 = 257: the nearest of 256 levels
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)
    code = cv2.COLOR_BGR2RGB if pixels.ndim == 3 and pixels.shape[2] == 3 else cv2.COLOR_GRAY2RGB
    return cv2.cvtColor(pixels, code).astype(np.uint8, copy=False)


def _turn(image: Array, orientation: int) -> Array:
    """Undo the EXIF orientation: 2..4 mirror and turn by 180 degrees, 5..8 also swap rows and columns."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
