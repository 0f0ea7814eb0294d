"""Whole judgements of a tiny data set, by parts of which it is known what must come out."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deocc import judge
from deocc.data import IdentityFolder, PackedFaces
from deocc.errors import InputError, UsageError
from deocc.judge.pairs import NO_FOLD
from deocc.judge.result import Figure, Report, Verification, VerificationRow
from deocc.judge.statistics import accuracy
from deocc.method import Occluded, Occluder, Restored
from deocc.metrics.verification import Weights, resample

MASKS = ("surgical", "cloth", "n95")


def row(found: Verification, state: str, restorer: str = "", kind: str = "all") -> VerificationRow:
    return next(r for r in found.rows if (r.state, r.restorer, r.kind) == (state, restorer, kind))


def figures(row: VerificationRow) -> tuple[object, ...]:
    return row.auc, row.eer, row.rates, row.accuracy


def run(packed: Any, restorer: Any, pixels: Any, **options: Any) -> Report:
    options = {"kinds": MASKS, "resamples": 50} | options
    return judge.verification(packed, restorers=[restorer], recognizers=[pixels], **options)


def test_who_restores_perfectly_wins_everything_back(packed: PackedFaces, oracle: Any, pixels: Any) -> None:
    found = run(packed, oracle, pixels).verification
    assert found is not None
    assert (found.genuine, found.folds) == (36, 6)
    assert found.impostors > 25
    assert figures(row(found, "UT", "Oracle")) == figures(row(found, "TT"))
    assert figures(row(found, "UU", "Oracle")) == figures(row(found, "TT"))
    assert row(found, "MT").auc.value < row(found, "TT").auc.value  # type: ignore[operator]
    helped = {c.metric: c for c in found.comparisons if (c.after, c.kind) == ("UT", "all")}
    assert helped["auc"].recovered == pytest.approx(1)
    assert helped["auc"].difference.value > 0  # type: ignore[operator]
    assert helped["auc"].p < 0.05  # type: ignore[operator]
    assert helped["tpr@0.01"].won > 3 * helped["tpr@0.01"].lost  # type: ignore[operator]
    assert helped["tpr@0.01"].p_mcnemar < 0.05  # type: ignore[operator]
    assert all(change.after == pytest.approx(change.true, abs=1e-6) for change in found.gains)  # type: ignore[arg-type]


def test_who_does_nothing_changes_nothing(packed: PackedFaces, nothing: Any, pixels: Any) -> None:
    found = run(packed, nothing, pixels).verification
    assert found is not None
    assert figures(row(found, "UT", "Nothing")) == figures(row(found, "MT"))
    assert figures(row(found, "UU", "Nothing")) == figures(row(found, "MM"))
    for one in found.comparisons:
        assert one.difference.value == 0
        assert one.p in (None, 1.0)
        assert (one.won, one.lost) in ((0, 0), (None, None))
    assert found.gains == found.losses == ()


def test_photos_and_packed_crops_tell_the_same(folder: Path, packed: PackedFaces, oracle: Any, pixels: Any) -> None:
    photos = run(folder, oracle, pixels).verification
    crops = run(packed, oracle, pixels).verification
    assert photos is not None
    assert crops is not None
    assert photos.pairs == crops.pairs
    for state in ("TT", "MT"):
        assert row(photos, state).auc.value == pytest.approx(row(crops, state).auc.value, abs=0.05)
    assert row(photos, "UT", "Oracle").auc.value > row(photos, "MT").auc.value  # type: ignore[operator]


def test_kinds_are_rows_that_share_out_the_pairs(packed: PackedFaces, nothing: Any, pixels: Any) -> None:
    report = run(packed, nothing, pixels)
    found = report.verification
    assert found is not None
    kinds = {r.kind: r.pairs for r in found.rows if r.state == "MT" and r.kind != "all"}
    assert set(kinds) <= set(MASKS)
    assert sum(kinds.values()) == found.pairs
    assert set(report.masks.kinds) == set(MASKS)
    assert sum(report.masks.counts.values()) == report.data.images


def test_intervals_hold_the_figures(packed: PackedFaces, nothing: Any, pixels: Any) -> None:
    found = run(packed, nothing, pixels, resamples=200).verification
    assert found is not None
    for one in found.rows:
        for figure in (one.auc, one.eer, *(rate.tpr for rate in one.rates)):
            assert figure.low <= figure.value <= figure.high  # type: ignore[operator]
    bare = run(packed, nothing, pixels, resamples=0).verification
    assert bare is not None
    assert row(bare, "MT").auc == dataclasses.replace(row(found, "MT").auc, low=None, high=None)
    assert bare.comparisons[0].p is None


def test_part_of_the_pairs_gets_the_same_masks(packed: PackedFaces, nothing: Any, pixels: Any, tmp_path: Path) -> None:
    whole = run(packed, nothing, pixels, cache=tmp_path)
    before = pixels.seen, nothing.seen
    part = run(packed, nothing, pixels, cache=tmp_path, limit=20)
    assert part.verification is not None
    assert part.verification.pairs == 20
    assert part.data.limit == 20
    assert whole.data.limit is None
    # Everything was in the cache but what fell into other batches than before: nothing is new, so nothing is computed.
    assert (pixels.seen, nothing.seen) == before


def test_an_interrupted_run_resumes_to_the_same_bytes(
    packed: PackedFaces, oracle: Any, pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deocc.judge.views.CHUNK", 8)
    run(packed, oracle, pixels, out=tmp_path / "whole")
    needed = oracle.seen

    def interrupt(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    oracle.seen = 0
    with pytest.raises(KeyboardInterrupt):
        run(packed, oracle, pixels, out=tmp_path / "cut", progress=interrupt)
    assert not (tmp_path / "cut" / "report.json").exists()
    run(packed, oracle, pixels, out=tmp_path / "cut")
    assert oracle.seen < 2 * needed
    assert (tmp_path / "cut" / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()
    oracle.seen = 0
    run(packed, oracle, pixels, out=tmp_path / "cut")
    found = judge.read(tmp_path / "cut" / "report.json").verification
    assert found is not None
    assert oracle.seen == len({change.probe for change in found.gains + found.losses})  # for the pictures alone


def test_the_cache_knows_masks_parts_and_pixels_apart(
    packed: PackedFaces, oracle: Any, nothing: Any, pixels: Any, tmp_path: Path
) -> None:
    one = run(packed, nothing, pixels, cache=tmp_path).verification
    other = run(packed, nothing, pixels, cache=tmp_path, seed=1, pairs=None).verification
    third = run(packed, oracle, pixels, cache=tmp_path).verification
    assert one is not None
    assert other is not None
    assert third is not None
    assert row(one, "MT") == row(third, "MT")
    assert row(one, "UT", "Nothing").auc != row(third, "UT", "Oracle").auc
    assert run(packed, nothing, pixels, seed=1).verification == other


def test_report_and_pictures(packed: PackedFaces, oracle: Any, pixels: Any, tmp_path: Path) -> None:
    report = judge.judge(packed, restorers=[oracle], recognizers=[pixels], kinds=MASKS, resamples=20, out=tmp_path)
    assert judge.read(tmp_path / "report.json") == report
    assert report.invented
    assert report.resampling
    assert report.masks.fingerprint
    assert report.restorers[0].occlusion == "given"
    assert report.verification is not None
    assert report.quality is not None
    assert report.retrieval is not None
    shown = [*report.verification.gains, *report.verification.losses, *report.quality.examples]
    assert shown
    for one in shown:
        assert {"true", "occluded", "found", "restored"} <= set(one.pictures)
        for path in one.pictures.values():
            assert cv2.imread(str(tmp_path / path)).shape[:2] == (32, 32)
    gain = report.verification.gains[0]
    true, restored = (cv2.imread(str(tmp_path / gain.pictures[key])) for key in ("true", "restored"))
    assert (true == restored).all()


def test_retrieval(packed: PackedFaces, oracle: Any, pixels: Any) -> None:
    report = judge.retrieval(packed, restorers=[oracle], recognizers=[pixels], kinds=MASKS, resamples=100)
    found = report.retrieval
    assert found is not None
    assert (found.probes, found.gallery, found.identities, found.single) == (12, 24, 12, 0)
    rows = {(r.restorer, r.state): r for r in found.rows if r.kind == "all"}
    assert dataclasses.replace(rows["Oracle", "U"], restorer="", state="T") == rows["", "T"]
    assert rows["", "M"].map.value < rows["", "T"].map.value  # type: ignore[operator]
    assert len(rows["", "T"].cmc) == 24
    sets = {(s.restorer, s.state): s for s in found.sets}
    assert sets["", "T"].sets == len(sets["", "T"].accuracies) == 10
    assert sets["", "T"].matched == sets["", "T"].unmatched == 24
    assert sets["Oracle", "U"].accuracies == sets["", "T"].accuracies
    # Ten times the same 24 pairs.
    assert sets["", "T"].accuracy == Figure(pytest.approx(np.mean(sets["", "T"].accuracies)))
    assert {c.metric: c for c in found.comparisons if c.kind == "all"}["map"].recovered == pytest.approx(1)


@pytest.mark.parametrize(("pairs", "shared"), [(2, False), (3, True)])
def test_ten_sets_have_an_interval_where_they_share_no_pairs(
    packed: PackedFaces, nothing: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch, pairs: int, shared: bool
) -> None:
    monkeypatch.setattr("deocc.judge.retrieve.PAIRS", pairs)
    report = judge.retrieval(packed, restorers=[nothing], recognizers=[pixels], kinds=MASKS, resamples=0)
    assert report.retrieval is not None
    (sets, *_) = report.retrieval.sets
    assert sets.matched == pairs
    assert sets.accuracy.value == pytest.approx(np.mean(sets.accuracies))
    assert (sets.accuracy.low is None, sets.accuracy.high is None) == (shared, shared)


def test_quality(packed: PackedFaces, oracle: Any, nothing: Any, pixels: Any) -> None:
    report = judge.quality(
        packed, restorers=[oracle, nothing], recognizers=[pixels], kinds=MASKS, resamples=20, given=["Nothing"]
    )
    found = report.quality
    assert found is not None
    rows = {r.restorer: r for r in found.rows if r.kind == "all"}
    assert set(rows) == {"", "Oracle", "Nothing", "Nothing (given)"}
    assert rows["Oracle"].hole_ssim.value == pytest.approx(1)
    assert rows["Oracle"].psnr.value is None  # infinite
    for name in ("Nothing", "Nothing (given)"):
        assert rows[name].psnr.value == pytest.approx(rows[""].psnr.value)
        assert rows[name].hole_ssim.value == pytest.approx(rows[""].hole_ssim.value)
    assert rows["Nothing"].iou.value == 0  # found nothing
    assert rows["Nothing (given)"].iou.value is None
    assert rows["Oracle"].iou.value is None
    assert sum(r.faces for r in found.rows if r.restorer == "" and r.kind != "all") == found.faces == 36
    sets = {(d.restorer, d.network): d for d in found.distributions}
    perfect, masked = sets["Oracle", "Pixels"], sets["", "Pixels"]
    assert perfect.frechet == pytest.approx(0, abs=1e-6)
    assert (perfect.precision, perfect.recall, perfect.f1) == (1, 1, 1)
    assert masked.frechet > 0.01  # type: ignore[operator]
    assert report.networks[0].dimensions == 3 * 24 * 24


def test_a_feature_module(packed: PackedFaces, oracle: Any, pixels: Any) -> None:
    class Means(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            assert image.dtype == torch.uint8
            return image.float().mean(dim=(2, 3))

    report = judge.quality(
        packed, restorers=[oracle], recognizers=[], kinds=MASKS, resamples=0, features=[Means()], limit=10
    )
    assert report.quality is not None
    assert [(d.network, d.restorer, d.faces) for d in report.quality.distributions] == [
        ("Means", "", 10),
        ("Means", "Oracle", 10),
    ]
    assert report.networks[0].dimensions == 3


class Lower(Occluder):
    crop_size, crop_zoom = 32, 0.75

    def occlude(self, image: Tensor, seed: int) -> Occluded:
        occlusion = torch.zeros_like(image[:, :1])
        occlusion[:, :, 16:] = 1
        return Occluded(image * (1 - occlusion), occlusion, ({},) * len(image))


def test_an_occluder_and_a_restorer_that_redraws(packed: PackedFaces, pixels: Any, nothing: Any) -> None:
    class Redraw(type(nothing)):  # type: ignore[misc]
        redraws_face = True

        def restore(self, image: Tensor, occlusion: Tensor | None) -> Restored:
            return Restored(1 - image, torch.zeros_like(image[:, :1]))

    report = run(packed, Redraw(), pixels, occluder=Lower(Config()), kinds=None)
    found = report.verification
    assert found is not None
    assert report.masks.occluder == "Lower"
    assert report.masks.kinds == ()
    assert {r.kind for r in found.rows} == {"all"}
    # The centred pixels of a negative point the other way: every score of UT is that of MT, but for its sign.
    assert row(found, "UT", "Redraw").auc.value == pytest.approx(1 - row(found, "MT").auc.value)  # type: ignore[operator]


def test_who_redraws_is_measured_by_what_it_found(
    packed: PackedFaces, pixels: Any, nothing: Any, tmp_path: Path
) -> None:
    class Redraw(type(nothing)):  # type: ignore[misc]
        redraws_face = True

        def restore(self, image: Tensor, occlusion: Tensor | None) -> Restored:
            found = torch.zeros_like(image[:, :1])
            found[:, :, 28:] = 1
            return Restored(1 - image, found)

    redraw = Redraw()
    options = {"restorers": [redraw], "recognizers": [pixels], "occluder": Lower(Config()), "resamples": 0, "limit": 6}
    report = judge.quality(packed, **options, out=tmp_path)
    assert report.quality is not None
    found = next(row for row in report.quality.rows if row.restorer == "Redraw")
    assert found.iou.value == pytest.approx(0.25)
    drawn = cv2.imread(str(tmp_path / report.quality.examples[0].pictures["found"]))
    assert (drawn == 255).all(), "all of the face comes from the restorer"


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 1


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_a_matcher_that_returns_nonsense(
    packed: PackedFaces, nothing: Any, broken: Callable[..., Any], value: float
) -> None:
    with pytest.raises(
        InputError, match=r"the matcher 'Broken' fails on the (true|occluded) face Some_Body.*zero or not"
    ):
        run(packed, nothing, broken(value))


def test_a_restorer_that_returns_nonsense(packed: PackedFaces, nothing: Any, pixels: Any) -> None:
    class Bad(type(nothing)):  # type: ignore[misc]
        def restore(self, image: Tensor, occlusion: Tensor | None) -> Restored:
            return Restored(image * math.nan, torch.ones_like(image[:, :1]))

    with pytest.raises(InputError, match="the restorer 'Bad' returned values that are not finite for Some_Body"):
        run(packed, Bad(), pixels)


def test_faces_that_are_not_found_are_counted(folder: Path, nothing: Any, pixels: Any, tmp_path: Path) -> None:
    root = tmp_path / "people"
    for path in sorted(folder.rglob("*.png")):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        (root / path.parent.name / path.name).write_bytes(path.read_bytes())
    archive = np.load(folder / "landmarks.npz")
    names, points = archive["names"], archive["lm5"].copy()
    keep = names != "Some_Bodya/0001.png"  # the detector finds no face in a pattern
    points[names == "Some_Bodyb/0000.png"] += 1000  # landmarks beyond the picture
    np.savez(root / "landmarks.npz", names=names[keep], lm5=points[keep])
    (root / "Some_Bodyc" / "0002.png").write_bytes(b"no picture")
    report = run(root, nothing, pixels)
    assert report.verification is not None
    assert set(report.data.without_face) == {"Some_Bodya/0001.png", "Some_Bodyb/0000.png"}
    assert report.data.unreadable == ("Some_Bodyc/0002.png",)
    assert str(tmp_path) not in str(report.data), "a report names no folder of the machine"
    assert report.verification.without_face > 0
    assert (
        report.verification.pairs + report.verification.without_face == run(folder, nothing, pixels).verification.pairs
    )  # type: ignore[union-attr]
    assert any("In 2 images no face was found" in warning for warning in report.warnings)


class Masked(IdentityFolder):
    """Every person's last image shows a mask."""

    def attributes(self, name: str) -> dict[str, bool]:
        return {"masked": name.endswith("0002.png")}


def test_real_masks(folder: Path, nothing: Any, oracle: Any, pixels: Any, tmp_path: Path) -> None:
    report = run(Masked(folder), nothing, pixels, occluder="real", kinds=None)
    found = report.verification
    assert found is not None
    assert {r.state for r in found.rows} == {"MT", "UT"}
    assert report.masks.occluder == "real"
    assert row(found, "MT").rates[0].fixed_fnmr.value is None
    assert (found.genuine, found.alike) == (24, 0)
    assert report.masks.counts == {"real": 12}
    people = sorted({path.parent.name for path in folder.rglob("*.png")})
    lines = [f"{one}/0002.png {one}/0000.png 1" for one in people]
    lines += [f"{one}/0000.png {other}/0002.png 0" for one, other in itertools.pairwise(people)]
    lines += [f"{one}/0000.png {one}/0001.png 1" for one in people]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    report = run(Masked(folder), nothing, pixels, occluder="real", kinds=None, pairs=tmp_path / "pairs.txt")
    found = report.verification
    assert found is not None
    assert (found.genuine, found.impostors, found.alike) == (12, 11, 12)
    assert "12 pairs are of two masked faces or of two full ones; with real masks they are left out." in report.warnings
    with pytest.raises(InputError, match="does not say which faces are occluded"):
        run(folder, nothing, pixels, occluder="real", kinds=None)
    with pytest.raises(UsageError, match="cannot be given to 'Oracle'"):
        run(folder, oracle, pixels, occluder="real", kinds=None)
    with pytest.raises(UsageError, match="nobody knows under a real mask"):
        judge.quality(folder, restorers=[nothing], recognizers=[pixels], occluder="real")
    with pytest.raises(InputError, match="does not say which faces are occluded"):
        judge.retrieval(folder, restorers=[nothing], recognizers=[pixels], occluder="real")


def test_retrieval_of_real_masks(folder: Path, nothing: Any, pixels: Any) -> None:
    report = judge.retrieval(Masked(folder), restorers=[nothing], recognizers=[pixels], occluder="real", resamples=0)
    assert report.retrieval is not None
    assert (report.retrieval.probes, report.retrieval.gallery) == (12, 24)
    assert {r.state for r in report.retrieval.rows} == {"M", "U"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks": ["speed"]}, "tasks must be some of verification, retrieval, quality, got speed"),
        ({"tasks": []}, "got none"),
        ({"restorers": []}, "at least one restorer"),
        ({"recognizers": []}, "at least one recognizer"),
        ({"resamples": -1}, "resamples must be 0 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"kinds": ["n95"], "occluder": "real"}, "cannot be chosen for another occluder"),
        ({"kinds": ["n94"]}, "did you mean 'n95'"),
        ({"limit": 1}, "at least two pairs"),
        ({"given": ["other"]}, "given to 'other', which is none of the restorers"),
        ({"weight_files": {"other": "x"}}, "weights were given for 'other'"),
        ({"restorers": [1]}, "must be a method's name or a deocc.method.Restorer, got int"),
    ],
)
def test_bad_calls(packed: PackedFaces, nothing: Any, pixels: Any, options: dict[str, Any], sentence: str) -> None:
    call = {"restorers": [nothing], "recognizers": [pixels], "tasks": ["verification"]} | options
    with pytest.raises(UsageError, match=sentence):
        judge.judge(packed, **call)


def test_two_parts_of_one_name(packed: PackedFaces, nothing: Any, pixels: Any) -> None:
    with pytest.raises(UsageError, match="'Nothing' was given twice"):
        judge.verification(packed, restorers=[nothing, nothing], recognizers=[pixels])


def test_a_folder_in_use(packed: PackedFaces, nothing: Any, pixels: Any, tmp_path: Path) -> None:
    script = (
        "import fcntl, sys, time\n"
        f"file = open({str(tmp_path / '.lock')!r}, 'w'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(UsageError, match="in use by another deocc judge"):
                run(packed, nothing, pixels, out=tmp_path)
        finally:
            other.kill()


def test_ijbc(folder: Path, nothing: Any, pixels: Any, tmp_path: Path) -> None:
    crops, meta = tmp_path / "loose_crop", tmp_path / "meta"
    crops.mkdir()
    meta.mkdir()
    media, points = [], []
    landmarks = np.load(folder / "landmarks.npz")["lm5"][0].ravel()
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        (crops / f"{number}.png").write_bytes(path.read_bytes())
        person, image = divmod(number, 3)
        # Templates 2p: two frames of one video; 2p + 1: a photo.
        media.append(f"{number}.png {2 * person + image // 2} {number // 2 if image < 2 else 1000 + number}")
        points.append(" ".join([f"{number}.png", *map(str, landmarks), "0.9"]))
    pairs = [f"{2 * p} {2 * q + 1} {int(p == q)}" for p in range(12) for q in range(12)]
    (meta / "ijbc_face_tid_mid.txt").write_text("\n".join(media))
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(points))
    (meta / "ijbc_template_pair_label.txt").write_text("\n".join([*pairs, "0 999 0"]))
    report = run(f"ijbc:{tmp_path}", nothing, pixels)
    found = report.verification
    assert found is not None
    assert (found.templates, found.pairs, found.genuine, found.elsewhere) == (True, 144, 12, 1)
    assert {r.kind for r in found.rows} == {"all"}
    assert row(found, "TT").accuracy.value is None  # one fold
    assert row(found, "TT").auc.value > row(found, "MT").auc.value > 0.5  # type: ignore[operator]
    with pytest.raises(InputError, match="IJB-C does not say which faces are occluded"):
        run(f"ijbc:{tmp_path}", nothing, pixels, occluder="real", kinds=None)
    with pytest.raises(UsageError, match="are of templates"):
        run(f"ijbc:{tmp_path}", nothing, pixels, impostors=10)


def test_added_impostors_count_in_all_but_accuracy(packed: PackedFaces, nothing: Any, pixels: Any) -> None:
    one, more = (run(packed, nothing, pixels, impostors=count).verification for count in (0, 200))
    assert one is not None
    assert more is not None
    assert (more.genuine, more.impostors, more.folds) == (one.genuine, one.impostors + 200, one.folds)
    for state in ("TT", "MT"):
        before, after = row(one, state), row(more, state)
        assert after.accuracy == before.accuracy
        assert after.rates[0].accepted == (one.impostors + 200) // 100 > before.rates[0].accepted
        assert after.auc != before.auc


def test_accuracy_is_of_the_pairs_that_have_a_fold() -> None:
    generator = np.random.default_rng(0)
    same = np.arange(200) < 60
    scores, folds = generator.normal(size=200) + same, np.where(np.arange(200) < 120, np.arange(200) % 3, NO_FOLD)
    weights = resample(60, 140, 30, seed=1)
    listed = Weights(weights.genuine, weights.impostors[:, :60])
    each, right, samples = accuracy(scores, same, folds, weights)  # type: ignore[misc]
    wanted = accuracy(scores[:120], same[:120], folds[:120], listed)
    assert wanted is not None
    for one, other in zip((each, right, samples), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    counted = np.hstack([listed.genuine, listed.impostors])
    np.testing.assert_allclose(samples, counted @ right / counted.sum(1))
    assert accuracy(scores, same, np.where(folds == 0, 0, NO_FOLD), weights) is None
