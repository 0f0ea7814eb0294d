"""``report.html``: a report with its plots and pictures as one file that needs neither a network nor a script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor, log10
from pathlib import Path

from deocc.errors import InputError
from deocc.files import atomic_write
from deocc.images import read_image
from deocc.judge.result import (
    Change,
    Comparison,
    Curve,
    Example,
    Figure,
    Part,
    Report,
    Retrieval,
    RetrievalRow,
    Verification,
    VerificationRow,
    read,
)
from deocc.report import Picture, Plot, Section, Strip, Table, html
from deocc.report.plot import STYLES, Line, Panel, Points, histograms, intervals, lines

__all__ = ["page", "write_page"]

_STATES = {
    "TT": "nothing occluded",
    "MT": "probe occluded",
    "UT": "probe restored",
    "MM": "both occluded",
    "UU": "both restored",
    "T": "not occluded",
    "M": "occluded",
    "U": "restored",
}


def write_page(folder: str | Path) -> Path:
    """Write ``report.html`` beside the ``report.json`` of a folder, and return its path; an earlier one is replaced.

    Raises:
        InputError: the report or one of its pictures cannot be read, or the page cannot be written.
    """
    path = Path(folder) / "report.html"
    text = page(read(Path(folder) / "report.json"), Path(folder))
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    return path


def page(report: Report, folder: Path) -> str:
    """The page of a report whose pictures are in ``folder``.

    Raises:
        InputError: one of its pictures cannot be read.
    """
    restorers = [part.key for part in report.restorers]
    sections: list[Section] = []
    if report.verification is not None:
        sections += _verification(report.verification, restorers, report.invented, folder)
    if report.retrieval is not None:
        sections += _retrieval(report.retrieval, restorers, report.invented)
    if report.quality is not None:
        sections += _quality(report, folder)
    return html(
        f"Does restoring help? {_listed(restorers)} on {report.data.title}",
        intro="Every figure is shown with its 95 % interval where it has one.",
        notes=report.warnings,
        sections=sections,
        facts=_facts(report),
    )


# Verification ------------------------------------------------------------------------------------------------------


def _verification(verification: Verification, restorers: Sequence[str], invented: str, folder: Path) -> list[Section]:
    matchers = list(dict.fromkeys(row.recognizer for row in verification.rows))
    what = "pairs of templates" if verification.templates else "pairs of images"
    sections = [
        Section(
            "Is it the same person?",
            [_headline(verification, restorers, matchers)],
            f"{verification.pairs:,} {what}, {verification.genuine:,} of one person and {verification.impostors:,} of "
            f"two. The probe is the image that is occluded. {invented}",
        )
    ]
    curves = [plot for matcher in matchers for plot in _roc(verification, restorers, matcher)]
    sections.append(
        Section(
            "ROC curves",
            curves,
            "How many pairs of one person are accepted (true positive rate), against how many pairs of two are (false "
            "positive rate). Higher is better.",
            level=3,
        )
    )
    scores = [plot for matcher in matchers for key in restorers for plot in _scores(verification, key, matcher)]
    sections.append(
        Section("Scores before and after", scores, "How alike two faces are to the matcher, as a cosine.", level=3)
    )
    kinds = [plot for matcher in matchers for plot in _kinds(verification, restorers, matcher)]
    if kinds:
        sections.append(Section("By kind of occlusion", kinds, level=3))
    sections.append(Section("All figures", _tables(verification, "all"), level=3, folded=True))
    if kinds:
        sections.append(Section("All figures by kind of occlusion", _tables(verification, ""), level=3, folded=True))
    for title, changes, way in (
        ("What restoring gained", verification.gains, "the right way: up for one person, down for two"),
        ("What restoring lost", verification.losses, "the wrong way: down for one person, up for two"),
    ):
        groups = {(one.recognizer, one.restorer): None for one in changes}
        if groups:
            text = f"The pairs whose score moved farthest {way}. These are the extremes, not the rule. {invented}"
            sections.append(Section(title, text=text))
        for matcher, key in groups:
            chosen = [one for one in changes if (one.recognizer, one.restorer) == (matcher, key)]
            sections.append(Section(f"{key}, to {matcher}", [_change(one, folder) for one in chosen], level=3))
    return sections


def _headline(verification: Verification, restorers: Sequence[str], matchers: Sequence[str]) -> Table:
    """For each matcher and restorer: what the occlusion cost, and what restoring won back."""
    rows = []
    fpr = _rate(verification.rows)
    for matcher in matchers:
        for key in restorers:
            row = {row.state: row for row in verification.rows if _is(row, matcher, key) and row.kind == "all"}
            found = _comparison(verification.comparisons, matcher, key, "UT", f"tpr@{fpr:g}")
            values = [_tpr(row[state], fpr).value if state in row else None for state in ("TT", "MT", "UT")]
            if found is None:
                rows.append([matcher, key, *map(_number, values), "-", "-", "-"])
                continue
            won = "-" if found.recovered is None else f"{100 * found.recovered:.0f} %"
            rows.append([matcher, key, *map(_number, values), _signed(found.difference), _p(found.p), won])
    few = fpr * verification.impostors < 1
    strict = (
        f" (of so few pairs of two people that means that none of {verification.impostors} may pass)" if few else ""
    )
    return Table(
        ["matcher", "restorer", "nothing occluded", "probe occluded", "probe restored", "difference", "p", "won back"],
        rows,
        f"True positive rate at a false positive rate of {100 * fpr:g} %{strict}. Difference: restored minus occluded, "
        "with its paired 95 % interval; won back: its share of what the occlusion cost.",
    )


def _roc(verification: Verification, restorers: Sequence[str], matcher: str) -> list[Plot]:
    plots = []
    left = 10.0 ** floor(log10(1 / max(verification.impostors, 10)) + 1e-9)
    for states, words in ((("TT", "MT", "UT"), "the probe is occluded"), (("TT", "MM", "UU"), "both are occluded")):
        curves = [curve for curve in verification.curves if curve.recognizer == matcher and curve.state in states]
        if not {curve.state for curve in curves} - {"TT"}:
            continue
        drawn = [
            Line(_series(curve), _style(curve, restorers), curve.fpr, curve.tpr)
            for curve in sorted(curves, key=lambda curve: _style(curve, restorers))
        ]
        lowest = min(max((y for x, y in zip(one.x, one.y, strict=True) if x <= left), default=0) for one in drawn)
        plots.append(
            lines(
                drawn,
                x_label="false positive rate",
                y_label="true positive rate",
                caption=f"{matcher}: {words}",
                log_x=True,
                x_range=(left, 1),
                y_range=(min(floor(10 * lowest) / 10, 0.9), 1),
            )
        )
    return plots


def _scores(verification: Verification, key: str, matcher: str) -> list[Plot]:
    curves = {curve.state: curve for curve in verification.curves if _is(curve, matcher, key)}
    states = [state for state in ("TT", "MT", "UT") if state in curves]
    if not any(sum(curves[state].scores.genuine + curves[state].scores.impostors) for state in states):
        return []
    fpr = _rate(verification.rows)
    true = [row for row in verification.rows if _is(row, matcher, "") and row.state == "TT" and row.kind == "all"]
    threshold = next((rate.threshold for row in true for rate in row.rates if rate.fpr == fpr), None)
    panels = [
        Panel(_series(curves[state]), (curves[state].scores.genuine, curves[state].scores.impostors), threshold)
        for state in states
    ]
    return [
        histograms(
            curves[states[0]].scores.edges,
            panels,
            [("one person", 2), ("two people", 1)],
            x_label="score",
            caption=f"{matcher}, {key}",
            mark="" if threshold is None else f"threshold for {100 * fpr:g} % with nothing occluded",
        )
    ]


def _kinds(verification: Verification, restorers: Sequence[str], matcher: str) -> list[Plot]:
    fpr = _rate(verification.rows)
    rows = [row for row in verification.rows if row.recognizer == matcher and row.kind != "all"]
    kinds = sorted({row.kind for row in rows})
    if not kinds:
        return []
    series = []
    for state, key in (("TT", ""), ("MT", ""), *(("UT", key) for key in restorers)):
        by_kind = {row.kind: _tpr(row, fpr) for row in rows if (row.state, row.restorer) == (state, key)}
        if by_kind:
            figures = [by_kind.get(kind, Figure()) for kind in kinds]
            name = _STATES[state] + (f" by {key}" if key else "")
            sides = ([getattr(figure, side) for figure in figures] for side in ("value", "low", "high"))
            style = _style_of(state, key, restorers)
            series.append(Points(name, style, *sides))
    known = [bound for one in series for side in (one.values, one.lows) for bound in side if bound is not None]
    pairs = {row.kind: row.pairs for row in rows}
    return [
        intervals(
            [f"{kind} ({pairs[kind]:,})" for kind in kinds],
            series,
            x_label=f"true positive rate at a false positive rate of {100 * fpr:g} %",
            caption=f"{matcher}: each kind of occlusion (pairs), with 95 % intervals",
            x_range=(min(floor(10 * min(known)) / 10, 0.9) if known else 0.0, 1.0),
        )
    ]


def _tables(verification: Verification, kind: str) -> list[Table]:
    """Every row and every comparison: of all pairs, or (kind is empty) of each kind."""
    rows = [row for row in verification.rows if (row.kind == "all") == (kind == "all")]
    rates = list(dict.fromkeys(rate.fpr for row in rows for rate in row.rates))
    names = [f"TPR at {100 * fpr:g} %" for fpr in rates] + [f"FNMR, FMR at {100 * fpr:g} % fixed" for fpr in rates]
    figures = []
    for row in rows:
        by_rate = {rate.fpr: rate for rate in row.rates}
        line = [row.recognizer, _series(row), row.kind, f"{row.pairs:,}", *map(_shown, (row.auc, row.eer))]
        line += [
            _shown(by_rate[fpr].tpr) + ("" if by_rate[fpr].accepted else " *") if fpr in by_rate else "-"
            for fpr in rates
        ]
        line += [
            f"{_number(by_rate[fpr].fixed_fnmr.value)}, {_number(by_rate[fpr].fixed_fmr.value)}"
            if fpr in by_rate
            else "-"
            for fpr in rates
        ]
        figures.append([*line, _shown(row.accuracy)])
    tables = [
        Table(
            ["matcher", "state", "kind", "pairs", "AUC", "EER", *names, "accuracy"],
            figures,
            "TPR: true positive rate at that false positive rate (*: none of the impostor pairs may pass). Fixed: "
            "false non-match and false match rates at the threshold that gives that rate with nothing occluded.",
        )
    ]
    compared = [one for one in verification.comparisons if (one.kind == "all") == (kind == "all")]
    return [*tables, _comparisons(compared)] if compared else tables


def _comparisons(compared: Iterable[Comparison]) -> Table:
    return Table(
        [
            "matcher",
            "restorer",
            "compared",
            "kind",
            "figure",
            "difference",
            "p",
            "won",
            "lost",
            "p (McNemar)",
            "won back",
        ],
        [
            [
                one.recognizer,
                one.restorer,
                f"{one.after} - {one.before}",
                one.kind,
                one.metric,
                _signed(one.difference),
                _p(one.p),
                "-" if one.won is None else str(one.won),
                "-" if one.lost is None else str(one.lost),
                _p(one.p_mcnemar),
                "-" if one.recovered is None else f"{100 * one.recovered:.0f} %",
            ]
            for one in compared
        ],
        "Restored against occluded over the same pairs or probes, with paired bootstrap intervals. Won and lost: those "
        "that only the restored, or only the occluded, gets right. A probe's state comes first: T unoccluded, M "
        "occluded, U restored.",
    )


def _change(change: Change, folder: Path) -> Strip:
    true = "" if change.true is None else f"{change.true:.2f} unoccluded, "
    kind = f", {change.kind}" if change.kind else ""
    text = (
        f"{'One person' if change.same else 'Two people'}{kind}: {true}{change.before:.2f} occluded, "
        f"{change.after:.2f} restored ({change.gallery}, {change.probe})"
    )
    names = {"gallery": "gallery", "true": "probe", "occluded": "occluded", "restored": "restored"}
    return Strip(text, _pictures(change, names, folder))


# Retrieval ---------------------------------------------------------------------------------------------------------


def _retrieval(retrieval: Retrieval, restorers: Sequence[str], invented: str) -> list[Section]:
    rows = [row for row in retrieval.rows if row.kind == "all"]
    matchers = list(dict.fromkeys(row.recognizer for row in rows))
    table = Table(
        ["matcher", "probes", "number", "rank 1", "rank 5", "rank 10", "mAP"],
        [
            [row.recognizer, _series(row), f"{row.probes:,}", *map(_shown, (row.rank1, row.rank5, row.rank10, row.map))]
            for row in rows
        ],
        "Rank k: share of the probes with an image of the same person among the first k. mAP: mean average precision.",
    )
    plots = []
    for matcher in matchers:
        drawn = sorted((row for row in rows if row.recognizer == matcher), key=lambda row: _style(row, restorers))
        drawn = [row for row in drawn if row.cmc]
        if not drawn or len(drawn[0].cmc) < 2:
            continue
        lowest = min(row.cmc[0] for row in drawn)
        plots.append(
            lines(
                [Line(_series(row), _style(row, restorers), range(1, len(row.cmc) + 1), row.cmc) for row in drawn],
                x_label="rank",
                y_label="share of the probes found",
                caption=f"{matcher}: cumulative match characteristic",
                x_range=(1, len(drawn[0].cmc)),
                y_range=(min(floor(10 * lowest) / 10, 0.9), 1),
            )
        )
    sections = [
        Section(
            "Who is it?",
            [table, *plots],
            f"{retrieval.probes:,} probes of {retrieval.identities:,} people, looked for in a gallery of "
            f"{retrieval.gallery:,} unoccluded images. {invented}",
        )
    ]
    by_kind = [row for row in retrieval.rows if row.kind != "all"]
    more: list[Table] = []
    if by_kind:
        more.append(
            Table(
                ["matcher", "probes", "kind", "number", "rank 1", "mAP"],
                [
                    [row.recognizer, _series(row), row.kind, f"{row.probes:,}", _shown(row.rank1), _shown(row.map)]
                    for row in by_kind
                ],
            )
        )
    if retrieval.sets:
        more.append(
            Table(
                ["matcher", "probes", "sets", "pairs in each", "accuracy"],
                [
                    [
                        one.recognizer,
                        _series(one),
                        str(one.sets),
                        f"{one.matched} + {one.unmatched}",
                        _shown(one.accuracy),
                    ]
                    for one in retrieval.sets
                ],
                "Accuracy over sets of pairs of a probe and a gallery image, each with the others' threshold.",
            )
        )
    if retrieval.comparisons:
        more.append(_comparisons(retrieval.comparisons))
    if more:
        sections.append(Section("All figures of retrieval", more, level=3, folded=True))
    return sections


# Quality -----------------------------------------------------------------------------------------------------------


def _quality(report: Report, folder: Path) -> list[Section]:
    quality = report.quality
    assert quality is not None
    networks = list(dict.fromkeys(name for row in quality.rows for name in row.lpips))
    names = [
        "restorer",
        "kind",
        "faces",
        "PSNR, hole",
        "SSIM, hole",
        "PSNR",
        "SSIM",
        *(f"LPIPS {n}" for n in networks),
        "IoU",
    ]
    tables = {
        whole: Table(
            names,
            [
                [
                    row.restorer or "occluded, as it is",
                    row.kind,
                    f"{row.faces:,}",
                    _shown(row.hole_psnr, 2),
                    _shown(row.hole_ssim),
                    _shown(row.psnr, 2),
                    _shown(row.ssim),
                    *(_shown(row.lpips.get(network, Figure())) for network in networks),
                    _shown(row.iou),
                ]
                for row in quality.rows
                if (row.kind == "all") == whole
            ],
            "Means over the faces, against the true ones, in the restorer's crop. PSNR in dB; hole: inside the true "
            "occlusion alone. LPIPS: lower is better. IoU: overlap of the occlusion found with the true one.",
        )
        for whole in (True, False)
    }
    blocks = [tables[True]]
    if quality.distributions:
        blocks.append(
            Table(
                ["restorer", "network", "faces", "Frechet", "precision", "recall", "F1", "realism"],
                [
                    [
                        one.restorer or "occluded, as it is",
                        one.network,
                        f"{one.faces:,}",
                        _number(one.frechet, 2),
                        *map(_number, (one.precision, one.recall, one.f1, one.realism)),
                    ]
                    for one in quality.distributions
                ],
                "Restored and true faces as two sets, over the features of a network. Frechet distance: lower is "
                "better, and comparable over one network only.",
            )
        )
    sections = [Section("How near to the truth?", blocks, f"{quality.faces:,} faces. {report.invented}")]
    if tables[False].rows:
        sections.append(Section("Quality by kind of occlusion", [tables[False]], level=3, folded=True))
    words = {"best": "Best inside the hole", "worst": "Worst inside the hole", "spaced": "Evenly spaced, not selected"}
    for key in dict.fromkeys(example.restorer for example in quality.examples):
        for why, heading in words.items():
            chosen = [one for one in quality.examples if (one.restorer, one.why) == (key, why)]
            if chosen:
                strips = [_example(one, folder) for one in chosen]
                sections.append(Section(f"{heading}: {key}", strips, report.invented, level=3))
    return sections


def _example(example: Example, folder: Path) -> Strip:
    psnr = "" if example.hole_psnr is None else f", {example.hole_psnr:.1f} dB inside the hole"
    names = {"true": "true", "occluded": "occluded", "found": "what was restored", "restored": "restored"}
    return Strip(f"{example.name}: {example.kind}{psnr}", _pictures(example, names, folder))


# What the sections share -------------------------------------------------------------------------------------------


def _facts(report: Report) -> dict[str, str]:
    """What made the report: enough to tell whether two are of the same faces, masks and networks."""
    data, masks, tasks = report.data, report.masks, (report.verification, report.retrieval, report.quality)
    facts = {
        "data": f"{data.title} ({', split '.join(filter(None, (data.kind, data.split)))}): {data.images:,} images, "
        f"{data.identities:,} people, digest {data.digest or '-'}"
        + ("" if data.limit is None else f"; limited to {data.limit:,}, evenly spaced"),
        "landmarks": data.landmarks,
        "occlusions": f"{masks.occluder}{f' ({_listed(masks.kinds)})' if masks.kinds else ''}, seed {masks.seed}, "
        f"fingerprint {masks.fingerprint or '-'}",
        "occluded images": ", ".join(f"{kind} {count:,}" for kind, count in masks.counts.items()),
        "resampling": report.resampling,
    }
    if (verification := report.verification) is not None:
        facts["pairs"] = (
            f"{verification.source}: {verification.pairs:,} in {verification.folds} folds; left out: "
            f"{len(verification.missing):,} that name missing images, {verification.elsewhere:,} of other parts of the "
            f"data, {verification.without_face:,} without a face"
            + (f", {verification.alike:,} of two masked faces or of two full ones" if verification.alike else "")
        )
    seeds = sorted({(task.seed, task.resamples) for task in tasks if task is not None})
    facts["bootstrap"] = "; ".join(f"{resamples:,} samples, seed {seed}" for seed, resamples in seeds)
    facts["left out"] = "; ".join(
        f"{len(names):,} images {why}: {_listed(names[:10])}{', ...' if len(names) > 10 else ''}"
        for names, why in ((data.without_face, "without a face"), (data.unreadable, "that could not be read"))
        if names
    )
    facts["odd images"] = "; ".join(f"{name}: {sentence}" for name, sentence in list(data.notes.items())[:10])
    for part in (*report.restorers, *report.recognizers):
        facts[f"{part.role} {part.key}"] = _part(part)
    for network in report.networks:
        file = f"{network.file}, " if network.file else ""
        facts[f"network {network.key}"] = (
            f"{network.features}; {file}SHA-256 {network.sha256 or '-'}, {network.dimensions} dimensions"
        )
    facts["deocc"] = report.deocc
    facts["invented"] = report.invented
    return {name: value for name, value in facts.items() if value}


def _part(part: Part) -> str:
    words = [
        f"{part.method} of {part.distribution or '?'} {part.version}".rstrip(),
        f"weights {part.weights}, SHA-256 {part.sha256}" if part.weights else "no weights",
        f"reads {_listed(part.files)}" if part.files else "",
        f"configuration {part.config}",
        f"crop {part.size} px, zoom {part.zoom:g}",
        f"occlusion {part.occlusion}" if part.occlusion else "",
        "redraws visible pixels too" if part.redraws_face else "",
        f"trained on: {part.data}" if part.data else "",
        part.overlap.sentence.rstrip("."),
        f"trained to please {_listed(part.trained_with)}, whose figures flatter it" if part.trained_with else "",
        f"licence {part.licence}" if part.licence else "",
        part.notes.rstrip("."),
    ]
    return "; ".join(word for word in words if word)


def _pictures(item: Change | Example, names: dict[str, str], folder: Path) -> list[Picture]:
    found = []
    for key, caption in names.items():
        if (relative := item.pictures.get(key)) is None:
            continue
        path = (folder / relative).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InputError(f"{folder}/report.json names the picture {relative!r}, which is not in its folder")
        image = read_image(path)
        grey = key == "found"
        found.append(Picture(caption, image[..., 0] if grey else image, lossless=grey))
    return found


def _is(item: VerificationRow | Curve, matcher: str, key: str) -> bool:
    """True for what belongs to a matcher, and to a restorer or to none."""
    return item.recognizer == matcher and item.restorer in ("", key)


def _series(item: VerificationRow | Curve | RetrievalRow | object) -> str:
    state, key = getattr(item, "state", ""), getattr(item, "restorer", "")
    return _STATES[state] + (f" by {key}" if key else "")


def _style(item: object, restorers: Sequence[str]) -> int:
    return _style_of(getattr(item, "state", ""), getattr(item, "restorer", ""), restorers)


def _style_of(state: str, key: str, restorers: Sequence[str]) -> int:
    if key:
        return 2 + (restorers.index(key) if key in restorers else 0) % (STYLES - 2)
    return 1 if "M" in state else 0


def _comparison(
    comparisons: Iterable[Comparison], matcher: str, key: str, after: str, metric: str
) -> Comparison | None:
    wanted = (matcher, key, after, "all", metric)
    return next(
        (one for one in comparisons if (one.recognizer, one.restorer, one.after, one.kind, one.metric) == wanted), None
    )


def _rate(rows: Sequence[VerificationRow]) -> float:
    """The false positive rate that is shown where only one is: 1 %, or the first there is."""
    rates = [rate.fpr for row in rows for rate in row.rates]
    return 0.01 if 0.01 in rates or not rates else rates[0]


def _tpr(row: VerificationRow, fpr: float) -> Figure:
    return next((rate.tpr for rate in row.rates if rate.fpr == fpr), Figure())


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _shown(figure: Figure, digits: int = 3) -> str:
    if figure.low is None or figure.high is None:
        return _number(figure.value, digits)
    return f"{_number(figure.value, digits)} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _signed(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:+.3f}"
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
