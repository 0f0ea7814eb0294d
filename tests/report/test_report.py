"""The contact sheet and the HTML report."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from deocc.errors import InputError, UsageError
from deocc.report import INVENTED, Picture, Row, Table, contact_sheet, html, print_table

RED = np.full((40, 40, 3), (200, 10, 20), dtype=np.uint8)
GREY = np.full((20, 60), 130, dtype=np.uint8)


def test_sheet_holds_every_picture() -> None:
    sheet = contact_sheet([[RED, GREY], [GREY]], columns=["one", "two"], labels=["first", "second\n20 dB"], cell=40)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert (sheet == (200, 10, 20)).all(axis=2).sum() == 1600, "a picture of the cell's size is shown as it is"
    assert (sheet == 130).all(axis=2).sum() >= 2 * 40 * 13, "the wide picture is scaled to fit, twice"
    assert (sheet[:, 0] == 255).all(), "there is a margin"


def test_sheet_writes_its_text() -> None:
    bare = contact_sheet([[RED]], cell=64, note="")
    noted = contact_sheet([[RED]], cell=64)
    assert noted.shape[0] > bare.shape[0]
    below = noted[-50:]
    assert (below < 200).any(), "the note is written below the pictures"


def test_sheet_takes_any_letters() -> None:
    contact_sheet([[RED]], columns=["Zoë 漢字 " * 20], labels=["é"], cell=64)


@pytest.mark.parametrize(
    ("rows", "options", "error"),
    [
        ([], {}, UsageError),
        ([[]], {}, UsageError),
        ([[RED]], {"cell": 3}, UsageError),
        ([[RED]], {"labels": ["a", "b"]}, UsageError),
        ([[RED]], {"columns": ["a", "b"]}, UsageError),
        ([[RED.astype(np.float32)]], {}, InputError),
        ([[RED[:, :, :2]]], {}, InputError),
        ([[RED[:0]]], {}, InputError),
    ],
)
def test_sheet_refuses(rows: list, options: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        contact_sheet(rows, **options)


class _Reader(HTMLParser):
    """Collects the tags, so that a test sees what a browser would."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    return reader


def test_html_is_one_file_with_its_pictures() -> None:
    page = html(
        "Report",
        rows=[Row("photo.jpg", [Picture("before", RED), Picture("occlusion", GREY, lossless=True)])],
        table=Table(["photo", "PSNR"], [["photo.jpg", "21.5"]]),
        facts={"method": "x"},
    )
    reader = _read(page)
    assert INVENTED in reader.text
    assert "21.5" in reader.text
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 2
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    for source, shape in zip(sources, (RED.shape, GREY.shape), strict=True):
        data = base64.b64decode(source.split(",", 1)[1])
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape == shape


def test_html_escapes_everything() -> None:
    evil = '"><script>alert(1)</script>'
    page = html(
        evil,
        intro=evil,
        rows=[Row(evil, [Picture(evil, RED)], text=evil)],
        table=Table([evil], [[evil]], caption=evil),
        facts={evil: evil},
    )
    assert "<script" not in page
    assert not [tag for tag, _ in _read(page).tags if tag == "script"]
    assert [attributes["alt"] for tag, attributes in _read(page).tags if tag == "img"] == [evil]


def test_html_refuses() -> None:
    with pytest.raises(InputError):
        html("x", rows=[Row("r", [Picture("p", RED.astype(np.float64))])])
    with pytest.raises(InputError):
        html("x", rows=[Row("r", [Picture("p", RED[:, :0])])])
    with pytest.raises(UsageError):
        html("x", table=Table(["a", "b"], [["1"]]))


def test_a_printed_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("photo", "[PSNR]"), [("IMG [copy]", "1"), ("IMG [/copy]", ":smile:"), ("[red]", "\\[b]")])
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        ["photo", "[PSNR]"],
        ["IMG [copy]", "1"],
        ["IMG [/copy]", ":smile:"],
        ["[red]", "\\[b]"],
    ]


def test_what_is_invented_is_said_whole_on_a_narrow_sheet() -> None:
    def ink(label: str) -> int:
        sheet = contact_sheet([[RED]], labels=[label], cell=64)
        return int((sheet[-40:-12] < 200).any(axis=2).sum())

    assert ink("a") == ink("a label that is much longer than the picture is wide") > 100
