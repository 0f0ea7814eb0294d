"""One HTML file that holds its pictures and needs nothing else: no network, no script."""

from __future__ import annotations

import base64
import html as markup
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError
from deocc.report.plot import Plot
from deocc.report.sheet import INVENTED

_STYLE = """
:root { color-scheme: light dark; --ink: #202124; --faint: #5f6368; --paper: #fff; --line: #dadce0; --note: #fef7e0;
  --c0: var(--ink); --c1: #c8102e; --c2: #0b57d0; --c3: #107c41;
  --c4: #8e24aa; --c5: #b06000; --c6: #00838f; --c7: #ad1457; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa0a6; --paper: #1b1c1f; --line: #3c4043; --note: #3a3320;
    --c0: var(--ink); --c1: #ff8a80; --c2: #8ab4f8; --c3: #81c995;
    --c4: #d7aefb; --c5: #fdd663; --c6: #78d9ec; --c7: #ff8bcb; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; overflow-wrap: anywhere; }
p { margin: .25rem 0; max-width: 46rem; }
.faint { color: var(--faint); font-size: .9rem; }
.note { background: var(--note); padding: .5rem .75rem; border-radius: .4rem; display: inline-block; margin: .25rem 0; }
.pictures { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; }
figure img { display: block; height: 13rem; width: auto; max-width: 100%; object-fit: contain; border-radius: .3rem; }
figcaption { font-size: .85rem; color: var(--faint); padding-top: .25rem; max-width: 20rem; }
.scroll { overflow-x: auto; margin-bottom: 1.25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
.plot svg { display: block; width: 100%; max-width: 40rem; height: auto; font: 13px system-ui, sans-serif; }
.plot text { fill: var(--faint); } .plot text.axis { fill: var(--ink); }
.s0 { --series: var(--c0); } .s1 { --series: var(--c1); } .s2 { --series: var(--c2); } .s3 { --series: var(--c3); }
.s4 { --series: var(--c4); } .s5 { --series: var(--c5); } .s6 { --series: var(--c6); } .s7 { --series: var(--c7); }
.plot .grid { stroke: var(--line); } .plot .frame { stroke: var(--faint); }
.plot .curve { fill: none; stroke: var(--series); stroke-width: 2; }
.plot .curve.s0 { stroke-dasharray: 2 3; } .plot .curve.s1 { stroke-dasharray: 7 4; }
.plot .curve.solid { stroke-dasharray: none; }
.plot .area { fill: var(--series); fill-opacity: .4; stroke: var(--series); } .plot .dot { fill: var(--series); }
.plot figcaption { max-width: 40rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .85rem; }
.legend svg { display: inline-block; width: 1.6rem; height: .6rem; margin-right: .4rem; vertical-align: middle; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem 1.5rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(4rem, 6rem)); gap: .3rem; }
.strip img { width: 100%; height: auto; }
.strip figcaption { font-size: .75rem; }
summary { cursor: pointer; margin: 1rem 0 .5rem; }
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
class Strip:
    """A few small pictures side by side with a line of text above them: many strips make a contact sheet."""

    text: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and what belongs under it in any order: neighbouring plots share a line, as strips do.

    ``folded`` sections are closed until the reader opens them; ``level`` 2 is a chapter, 3 is a part of the one before.
    """

    heading: str
    blocks: Sequence[Table | Plot | Strip] = ()
    text: str = ""
    level: int = 2
    folded: bool = False


@dataclass(frozen=True)
class _Parts:
    body: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        self.body.extend(lines)


def html(
    title: str,
    *,
    intro: str = "",
    notes: Sequence[str] = (),
    rows: Sequence[Row] = (),
    table: Table | None = None,
    sections: Sequence[Section] = (),
    facts: Mapping[str, str] | None = None,
) -> str:
    """Write a report as one HTML page, light or dark as the reader's system is.

    Args:
        title: heading of the page.
        intro: a paragraph below it.
        notes: what must be read before anything else.
        rows: the pictures.
        table: the figures.
        sections: anything else, in this order.
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
    page.add(*(f'<p><span class="note">{escape(note)}</span></p>' for note in (INVENTED, *notes)))
    for row in rows:
        page.add("<section>", f"<h2>{escape(row.heading)}</h2>")
        if row.text:
            page.add(f'<p class="faint">{escape(row.text)}</p>')
        page.add('<div class="pictures">')
        page.add(*map(_figure, row.pictures), "</div>", "</section>")
    if table is not None:
        page.add("<h2>Figures</h2>")
        _add_table(page, table)
    for section in sections:
        _add_section(page, section)
    if facts:
        page.add("<h2>How this was made</h2>", "<dl>")
        page.add(*(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()))
        page.add("</dl>")
    page.add("</body>", "</html>")
    return "\n".join(page.body) + "\n"


def _add_table(page: _Parts, table: Table) -> None:
    escape = markup.escape
    if table.caption:  # not a <caption>, which would be as wide as the widest table and be cut with it
        page.add(f'<p class="faint">{escape(table.caption)}</p>')
    page.add('<div class="scroll"><table>')
    page.add("<thead><tr>", *(f'<th scope="col">{escape(name)}</th>' for name in table.columns), "</tr></thead><tbody>")
    for row in table.rows:
        if len(row) != len(table.columns):
            raise UsageError(f"a table of {len(table.columns)} columns got a row of {len(row)} values")
        page.add("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>")
    page.add("</tbody></table></div>")


def _add_section(page: _Parts, section: Section) -> None:
    heading = f"<h{section.level}>{markup.escape(section.heading)}</h{section.level}>"
    if section.folded:
        page.add("<details>", f"<summary>{markup.escape(section.heading)}</summary>")
    else:
        page.add("<section>", heading)
    if section.text:
        page.add(f'<p class="faint">{markup.escape(section.text)}</p>')
    for kind, blocks in groupby(section.blocks, type):
        if kind is Table:
            for table in blocks:
                _add_table(page, cast(Table, table))
            continue
        page.add('<div class="plots">' if kind is Plot else '<div class="small">')
        for block in blocks:
            if isinstance(block, Plot):
                _add_plot(page, block)
            elif isinstance(block, Strip):
                page.add(f'<div><p class="faint">{markup.escape(block.text)}</p>', '<div class="strip">')
                page.add(*map(_figure, block.pictures), "</div></div>")
        page.add("</div>")
    page.add("</details>" if section.folded else "</section>")


def _add_plot(page: _Parts, plot: Plot) -> None:
    page.add('<figure class="plot">', f"<figcaption>{markup.escape(plot.caption)}</figcaption>")
    page.add('<div class="legend">')
    for name, style in plot.legend:
        key = f'<svg viewBox="0 0 26 10"><line class="curve s{style}" x1="0" y1="5" x2="26" y2="5"/></svg>'
        page.add(f"<span>{key}{markup.escape(name)}</span>")
    page.add("</div>", plot.svg, "</figure>")


def _figure(picture: Picture) -> str:
    caption = markup.escape(picture.caption, quote=True)
    image = f'<img src="{_data_uri(picture)}" alt="{caption}">'
    return f"<figure>{image}\n<figcaption>{caption}</figcaption></figure>"


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
