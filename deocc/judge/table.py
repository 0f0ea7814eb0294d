"""A report on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from deocc.judge.result import Comparison, Figure, Quality, Report, Retrieval, Verification
from deocc.report import print_table

__all__ = ["print_report"]

_COMPARED = ("tpr@0.01", "tpr@0.001", "auc", "accuracy", "rank1", "map")


def print_report(report: Report) -> None:
    """Print the tables of a report, and what must be known before them."""
    data, masks = report.data, report.masks
    if masks.occluder == "real":
        worn = "real masks"
    else:
        worn = f"masks {masks.fingerprint} of {masks.occluder}, seed {masks.seed}"
    print(f"{data.title}: {data.images} images, {data.identities} identities; {worn}")
    for part in (*report.restorers, *report.recognizers):
        told = {"found": ", occlusion found", "given": ", true occlusion given", "": ""}[part.occlusion]
        print(f"{part.role} {part.key}{told}: {part.weights or 'no weights'} {part.sha256[:16]}".rstrip())
    for network in report.networks:
        print(f"features {network.key}: {network.features} {network.sha256[:16]}".rstrip())
    for sentence in report.warnings:
        print(f"NOTE: {sentence}")
    if report.verification is not None:
        _print_verification(report.verification)
    if report.retrieval is not None:
        _print_retrieval(report.retrieval)
    if report.quality is not None:
        _print_quality(report.quality)
    print()
    print(report.invented)


def _print_verification(found: Verification) -> None:
    units = "templates" if found.templates else "images"
    print(f"\nVerification of {found.pairs} pairs of {units} ({found.genuine} genuine), {found.source}")
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
    print_table(columns, rows, left=3)
    _print_compared(found.comparisons)
    kinds = sorted({row.kind for row in found.rows} - {"all"})
    if kinds:
        print("\nTPR at FPR 0.01 by the kind of occlusion")
        states = list(dict.fromkeys((r.recognizer, r.restorer, r.state) for r in found.rows if r.state[1] == "T"))
        by_kind = {(r.recognizer, r.restorer, r.state, r.kind): r for r in found.rows}
        heads = ["kind", "pairs", *(" ".join(part for part in state if part) for state in states)]
        body = []
        for kind in kinds:
            cells = [by_kind[(*state, kind)] for state in states]
            body.append([kind, str(cells[0].pairs), *(_share(cell.rates[0].tpr, False) for cell in cells)])
        print_table(heads, body)


def _print_retrieval(found: Retrieval) -> None:
    print(
        f"\nRetrieval of {found.probes} probes of {found.identities} people in a gallery of {found.gallery} full faces "
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
    print_table(["matcher", "restorer", "probes", "rank 1", "rank 5", "rank 10", "mAP", head], rows, left=3)
    _print_compared(found.comparisons)


def _print_quality(found: Quality) -> None:
    print(f"\nQuality of {found.faces} faces")
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
    print_table(columns, rows, left=2)
    if found.distributions:
        print("\nRestored faces against true faces, as sets")
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
        print_table(["restorer", "network", "Frechet", "precision", "recall", "F1", "realism"], table, left=2)


def _print_compared(comparisons: tuple[Comparison, ...]) -> None:
    rows = list(_compared(comparisons))
    if rows:
        print("\nDid restoring help? The same pairs or probes, after minus before")
        columns = ["matcher", "restorer", "states", "figure", "difference", "p", "won", "lost", "recovered"]
        print_table(columns, rows, left=4)


def _compared(comparisons: tuple[Comparison, ...]) -> Iterator[list[str]]:
    for one in comparisons:
        if one.kind == "all" and one.metric in _COMPARED:
            yield [
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


def _share(figure: Figure, interval: bool = True) -> str:
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None or not interval:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} [{figure.low:.3f}, {figure.high:.3f}]"


def _plain(figure: Figure, digits: int) -> str:
    return "-" if figure.value is None else f"{figure.value:.{digits}f}"
