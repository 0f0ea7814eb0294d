"""A report as tables: on the terminal, and as ``report.md``, to be pasted where Markdown is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deocc.files import atomic_write
from deocc.judge.result import Comparison, Figure, Quality, Report, Retrieval, Verification
from deocc.report import print_table

__all__ = ["print_report", "write_markdown"]

_COMPARED = ("tpr@0.01", "tpr@0.001", "auc", "accuracy", "rank1", "map")


class _Table(NamedTuple):
    """A heading, the names of the columns, and rows whose first ``left`` values are words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int


def print_report(report: Report) -> None:
    """Print the tables of a report, and what must be known before them."""
    for line in _facts(report):
        print(line)
    for sentence in report.warnings:
        print(f"NOTE: {sentence}")
    for table in _tables(report):
        print(f"\n{table.title}")
        print_table(table.columns, table.rows, left=table.left)
    print()
    print(report.invented)


def write_markdown(folder: str | Path, report: Report) -> Path:
    """Write ``report.md`` into the folder of a report, and return its path; an earlier one is replaced."""
    lines = [f"- {line}" for line in (*_facts(report), *(f"NOTE: {sentence}" for sentence in report.warnings))]
    for title, columns, rows, left in _tables(report):
        rule = ["---"] * left + ["--:"] * (len(columns) - left)
        lines += ["", f"**{title}**", ""]
        for row in (columns, rule, *rows):
            cells = " | ".join(cell.replace("|", "\\|") for cell in row)
            lines.append(f"| {cells} |")
    path = Path(folder) / "report.md"
    with atomic_write(path) as file:
        file.write("\n".join((*lines, "", report.invented, "")).encode("utf-8", "backslashreplace"))
    return path


def _facts(report: Report) -> Iterator[str]:
    data, masks = report.data, report.masks
    if masks.occluder == "real":
        worn = "real masks"
    else:
        worn = f"masks {masks.fingerprint} of {masks.occluder}, seed {masks.seed}"
    yield f"{data.title}: {data.images} images, {data.identities} identities; {worn}"
    for part in (*report.restorers, *report.recognizers):
        told = {"found": ", occlusion found", "given": ", true occlusion given", "": ""}[part.occlusion]
        yield f"{part.role} {part.key}{told}: {part.weights or 'no weights'} {part.sha256[:16]}".rstrip()
    for network in report.networks:
        yield f"features {network.key}: {network.features} {network.sha256[:16]}".rstrip()


def _tables(report: Report) -> Iterator[_Table]:
    if report.verification is not None:
        yield from _verification(report.verification)
    if report.retrieval is not None:
        yield from _retrieval(report.retrieval)
    if report.quality is not None:
        yield from _quality(report.quality)


def _verification(found: Verification) -> Iterator[_Table]:
    units = "templates" if found.templates else "images"
    rates = [rate.fpr for rate in found.rows[0].rates]
    columns = ["matcher", "restorer", "state", "AUC", "EER", *(f"TPR@{fpr:g}" for fpr in rates), "accuracy"]
    columns += [f"FNMR, TT's threshold@{fpr:g}" for fpr in rates]
    rows = [
        [
            row.recognizer,
            row.restorer or "-",
            row.state,
            *map(_share, (row.auc, row.eer, *(rate.tpr for rate in row.rates), row.accuracy)),
            *(_share(rate.fixed_fnmr) for rate in row.rates),
        ]
        for row in found.rows
        if row.kind == "all"
    ]
    yield _Table(
        f"Verification of {found.pairs} pairs of {units} ({found.genuine} genuine), {found.source}", columns, rows, 3
    )
    yield from _compared(found.comparisons)
    kinds = sorted({row.kind for row in found.rows} - {"all"})
    if kinds:
        states = list(dict.fromkeys((r.recognizer, r.restorer, r.state) for r in found.rows if r.state[1] == "T"))
        by_kind = {(r.recognizer, r.restorer, r.state, r.kind): r for r in found.rows}
        heads = ["kind", "pairs", *(" ".join(part for part in state if part) for state in states)]
        body = []
        for kind in kinds:
            cells = [by_kind[(*state, kind)] for state in states]
            body.append([kind, str(cells[0].pairs), *(_share(cell.rates[0].tpr, False) for cell in cells)])
        yield _Table("TPR at FPR 0.01 by the kind of occlusion", heads, body, 1)


def _retrieval(found: Retrieval) -> Iterator[_Table]:
    title = (
        f"Retrieval of {found.probes} probes of {found.identities} people in a gallery of {found.gallery} full faces "
        f"({found.single} people have one image only)"
    )
    accuracies = {(one.recognizer, one.restorer, one.state): one for one in found.sets}
    rows = []
    for row in found.rows:
        if row.kind == "all":
            sets = accuracies[row.recognizer, row.restorer, row.state]
            figures = (row.rank1, row.rank5, row.rank10, row.map, sets.accuracy)
            rows.append([row.recognizer, row.restorer or "-", row.state, *map(_share, figures)])
    matched = found.sets[0].matched
    head = f"accuracy, {found.sets[0].sets} sets of {matched} + {matched} pairs"
    yield _Table(title, ["matcher", "restorer", "probes", "rank 1", "rank 5", "rank 10", "mAP", head], rows, 3)
    yield from _compared(found.comparisons)


def _quality(found: Quality) -> Iterator[_Table]:
    networks = list(found.rows[0].lpips)
    columns = ["restorer", "kind", "faces", "PSNR (dB)", "SSIM", "hole PSNR", "hole SSIM"]
    columns += [f"LPIPS {key}" for key in networks] + ["occlusion IoU"]
    rows = [
        [
            row.restorer or f"(occluded, {row.size} px)",
            row.kind,
            str(row.faces),
            _plain(row.psnr, 2),
            _plain(row.ssim, 4),
            _plain(row.hole_psnr, 2),
            _plain(row.hole_ssim, 4),
            *(_plain(row.lpips[key], 4) for key in networks),
            _plain(row.iou, 3),
        ]
        for row in found.rows
    ]
    yield _Table(f"Quality of {found.faces} faces", columns, rows, 2)
    if found.distributions:
        table = [
            [
                one.restorer or "(occluded)",
                one.network,
                *(
                    "-" if value is None else f"{value:.4f}"
                    for value in (one.frechet, one.precision, one.recall, one.f1, one.realism)
                ),
            ]
            for one in found.distributions
        ]
        columns = ["restorer", "network", "Frechet", "precision", "recall", "F1", "realism"]
        yield _Table("Restored faces against true faces, as sets", columns, table, 2)


def _compared(comparisons: tuple[Comparison, ...]) -> Iterator[_Table]:
    rows = [
        [
            one.recognizer,
            one.restorer,
            f"{one.after} - {one.before}",
            one.metric,
            _share(one.difference),
            "-" if one.p is None else f"{one.p:.3f}",
            "-" if one.won is None else str(one.won),
            "-" if one.lost is None else str(one.lost),
            "-" if one.recovered is None else f"{one.recovered:.0%}",
        ]
        for one in comparisons
        if one.kind == "all" and one.metric in _COMPARED
    ]
    if rows:
        columns = ["matcher", "restorer", "states", "figure", "difference", "p", "won", "lost", "recovered"]
        yield _Table("Did restoring help? The same pairs or probes, after minus before", columns, rows, 4)


def _share(figure: Figure, interval: bool = True) -> str:
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None or not interval:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} [{figure.low:.3f}, {figure.high:.3f}]"


def _plain(figure: Figure, digits: int) -> str:
    return "-" if figure.value is None else f"{figure.value:.{digits}f}"
