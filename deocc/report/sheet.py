"""Pictures in rows and columns, with labels, as one picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError

INVENTED = "Restored pixels are invented."
"""What every sheet, report and card says."""

_INK = (32, 33, 36)
_FAINT = (110, 112, 118)
_PAPER = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MARGIN = 24
_GAP = 8


def contact_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    cell: int = 192,
    title: str = "",
    note: str = INVENTED,
) -> NDArray[np.uint8]:
    """Lay pictures out in rows on white paper.

    Args:
        rows: each a sequence of uint8 pictures, (H, W, 3) RGB or (H, W) grey, of any size: each is scaled to fit a
            square cell and centred in it. Rows may differ in length.
        columns: a heading for each column, or none at all.
        labels: a label for each row, written at its left; a line break starts a smaller second line. Or none at all.
        cell: side of a cell in pixels, at least 16.
        title: written above everything.
        note: written below everything; empty to leave it out.

    Returns:
        (H, W, 3) uint8 RGB. Text is ASCII: other letters are shown without their accents, or as "?".

    Raises:
        InputError: a picture that is not a uint8 array of such a shape.
        UsageError: no picture, a cell that is too small, or not as many labels as rows, or headings as columns.
    """
    width = max((len(row) for row in rows), default=0)
    if not width:
        raise UsageError("a contact sheet needs at least one picture, got none")
    if cell < 16:
        raise UsageError(f"a cell must be at least 16 pixels wide, got {cell}")
    if columns and len(columns) != width:
        raise UsageError(f"a sheet {width} pictures wide needs {width} headings or none, got {len(columns)}")
    if labels and len(labels) != len(rows):
        raise UsageError(f"a sheet of {len(rows)} rows needs {len(rows)} labels or none, got {len(labels)}")

    lines = [_ascii(label).split("\n") for label in labels]
    left = _MARGIN + max((_text_width(line, 0.5) for label in lines for line in label), default=-_GAP) + _GAP
    top = _MARGIN + (36 if title else 0) + (26 if columns else 0)
    grid_width = width * (cell + _GAP) - _GAP
    below = left if lines else _MARGIN  # where the note begins
    right = max(left + grid_width, _MARGIN + _text_width(_ascii(title), 0.7), below + _text_width(_ascii(note), 0.45))
    bottom = top + len(rows) * (cell + _GAP) - _GAP
    sheet = np.full((bottom + (26 if note else 0) + _MARGIN, right + _MARGIN, 3), _PAPER, dtype=np.uint8)

    if title:
        _write(sheet, _ascii(title), _MARGIN, _MARGIN + 16, 0.7, _INK)
    for column, heading in enumerate(columns):
        text = _shorten(_ascii(heading), 0.5, cell)
        centre = left + column * (cell + _GAP) + cell // 2
        _write(sheet, text, centre - _text_width(text, 0.5) // 2, top - 10, 0.5, _INK)
    for index, row in enumerate(rows):
        y = top + index * (cell + _GAP)
        for column, picture in enumerate(row):
            x = left + column * (cell + _GAP)
            sheet[y : y + cell, x : x + cell] = _fit(picture, cell)
        if lines:
            for number, line in enumerate(lines[index]):
                baseline = y + cell // 2 + 6 + 20 * number - 10 * (len(lines[index]) - 1)
                _write(sheet, line, _MARGIN, baseline, 0.42 if number else 0.5, _FAINT if number else _INK)
    if note:
        _write(sheet, _ascii(note), below, bottom + 22, 0.45, _FAINT)
    return sheet


def _fit(picture: NDArray[np.uint8], cell: int) -> NDArray[np.uint8]:
    """Scale a picture to fit a square cell, on a very light grey ground that shows where the picture ends."""
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        kind = getattr(picture, "dtype", type(picture).__name__)
        raise InputError(f"pictures on a sheet must be uint8 arrays, got {kind}")
    if picture.ndim not in (2, 3) or 0 in picture.shape or (picture.ndim == 3 and picture.shape[2] != 3):
        raise InputError(f"pictures on a sheet must have shape (H, W, 3) or (H, W), got {picture.shape}")
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    scale = cell / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    if scale != 1:
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        picture = cv2.resize(picture, size, interpolation=how).astype(np.uint8, copy=False)
    ground = np.full((cell, cell, 3), 244, dtype=np.uint8)
    y, x = (cell - size[1]) // 2, (cell - size[0]) // 2
    ground[y : y + size[1], x : x + size[0]] = picture
    return ground


def _ascii(text: str) -> str:
    """The letters OpenCV can draw: accents are dropped, what remains is drawn as "?"."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode("ascii")


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])


def _shorten(text: str, scale: float, width: int) -> str:
    while len(text) > 1 and _text_width(text, scale) > width:
        text = text[:-4].rstrip() + "..." if len(text) > 4 else text[:1]
    return text


def _write(sheet: NDArray[np.uint8], text: str, x: int, y: int, scale: float, colour: tuple[int, int, int]) -> None:
    cv2.putText(sheet, text, (x, y), _FONT, scale, colour, 1, cv2.LINE_AA)
