"""One HTML file that holds its pictures and needs nothing else: no network, no script."""

from __future__ import annotations

import base64
import html as markup
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError
from deocc.report.sheet import INVENTED

_STYLE = """
:root { color-scheme: light dark; --ink: #202124; --faint: #5f6368; --paper: #fff; --line: #dadce0; --note: #fef7e0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa0a6; --paper: #1b1c1f; --line: #3c4043; --note: #3a3320; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; overflow-wrap: anywhere; }
p { margin: .25rem 0; max-width: 46rem; }
.faint { color: var(--faint); font-size: .9rem; }
.note { background: var(--note); padding: .5rem .75rem; border-radius: .4rem; display: inline-block; margin: .75rem 0; }
.pictures { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; }
figure img { display: block; height: 13rem; width: auto; max-width: 100%; object-fit: contain; border-radius: .3rem; }
figcaption { font-size: .85rem; color: var(--faint); padding-top: .25rem; max-width: 20rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); font-size: .9rem; padding-bottom: .4rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
""".strip()


@dataclass(frozen=True)
class Picture:
    """A picture and what is said under it: uint8, (H, W, 3) RGB or (H, W) grey; ``lossless`` keeps it as PNG."""

    caption: str
    image: NDArray[np.uint8]
    lossless: bool = False


@dataclass(frozen=True)
class Row:
    """Pictures that belong together, under one heading, with a line of text."""

    heading: str
    pictures: Sequence[Picture]
    text: str = ""


@dataclass(frozen=True)
class Table:
    """Figures: the first column names the row and is set to the left, the others to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class _Parts:
    body: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        self.body.extend(lines)


def html(
    title: str,
    *,
    intro: str = "",
    rows: Sequence[Row] = (),
    table: Table | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Write a report as one HTML page, light or dark as the reader's system is.

    Args:
        title: heading of the page.
        intro: a paragraph below it.
        rows: the pictures.
        table: the figures.
        facts: what made this report (method, weights, seed, versions), name -> value, shown at the end.

    Returns:
        The page: every text is escaped, every picture is inside it (JPEG, or PNG where asked for), and it says that
        restored pixels are invented.

    Raises:
        InputError: a picture that is not a uint8 array (H, W, 3) or (H, W).
        UsageError: a table row that does not fit its columns.
    """
    escape = markup.escape
    page = _Parts()
    page.add("<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">')
    page.add('<meta name="viewport" content="width=device-width, initial-scale=1">')
    page.add(f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", "</head>", "<body>")
    page.add(f"<h1>{escape(title)}</h1>")
    if intro:
        page.add(f"<p>{escape(intro)}</p>")
    page.add(f'<p class="note">{INVENTED}</p>')
    for row in rows:
        page.add("<section>", f"<h2>{escape(row.heading)}</h2>")
        if row.text:
            page.add(f'<p class="faint">{escape(row.text)}</p>')
        page.add('<div class="pictures">')
        for picture in row.pictures:
            caption = escape(picture.caption, quote=True)
            page.add(f'<figure><img src="{_data_uri(picture)}" alt="{caption}">')
            page.add(f"<figcaption>{caption}</figcaption></figure>")
        page.add("</div>", "</section>")
    if table is not None:
        _add_table(page, table)
    if facts:
        page.add("<h2>How this was made</h2>", "<dl>")
        page.add(*(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()))
        page.add("</dl>")
    page.add("</body>", "</html>")
    return "\n".join(page.body) + "\n"


def _add_table(page: _Parts, table: Table) -> None:
    escape = markup.escape
    page.add("<h2>Figures</h2>", '<div class="scroll"><table>')
    if table.caption:
        page.add(f"<caption>{escape(table.caption)}</caption>")
    page.add("<thead><tr>", *(f'<th scope="col">{escape(name)}</th>' for name in table.columns), "</tr></thead><tbody>")
    for row in table.rows:
        if len(row) != len(table.columns):
            raise UsageError(f"a table of {len(table.columns)} columns got a row of {len(row)} values")
        page.add("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>")
    page.add("</tbody></table></div>")


def _data_uri(picture: Picture) -> str:
    image = picture.image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise InputError(
            f"pictures in a report must be uint8 arrays, got {getattr(image, 'dtype', type(image).__name__)}"
        )
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"pictures in a report must have shape (H, W, 3) or (H, W), got {image.shape}")
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if picture.lossless:
        kind, suffix, options = "png", ".png", [cv2.IMWRITE_PNG_COMPRESSION, 6]
    else:
        kind, suffix, options = "jpeg", ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90]
    encoded = cv2.imencode(suffix, pixels, options)[1]
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"
