"""Lists of pairs: read, checked against the data, or made."""

from __future__ import annotations

from pathlib import Path

import pytest

from deocc.data import Pair
from deocc.errors import InputError, UsageError
from deocc.judge.faces import Faces, open_faces
from deocc.judge.pairs import NO_FOLD, list_pairs, made_pairs, read_list


def faces(names: list[str], partial: bool = False, masked: str = "") -> Faces:
    return Faces(
        names,
        lambda name: pytest.fail("no image is read for a list"),
        lambda name: name.partition("/")[0],
        title="faces",
        kind="folder",
        partial=partial,
        occluded=(lambda name: masked in name) if masked else None,
    )


def names(people: int, images: int) -> list[str]:
    return [f"p{person:02d}/{image}.png" for person in range(people) for image in range(images)]


def test_lines_with_paths(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("# probe second\na/1.png b/2.png 0 3\n\nb/1.png b/2.png 1 0\n")
    assert read_list(path) == [Pair("a/1.png", "b/2.png", False, 3), Pair("b/1.png", "b/2.png", True, 0)]
    path.write_text("a b/1.png\tb/2.JPG\t0\n" * 20)
    assert [pair.fold for pair in read_list(path)] == [number // 2 for number in range(20)]
    assert read_list(path)[0].first == "a b/1.png"
    path.write_text("a,1.png, b/2.png, 1\n".replace("a,", "a"))
    assert read_list(path) == [Pair("a1.png", "b/2.png", True, 0)]


def test_lfw_format(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("Abel 1 2\nAbel 1 Bo 3\n")
    assert read_list(path) == [
        Pair("Abel/Abel_0001.jpg", "Abel/Abel_0002.jpg", True, 0),
        Pair("Abel/Abel_0001.jpg", "Bo/Bo_0003.jpg", False, 0),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no pairs"),
        ("a/1.png b/2.png 2\n", "must be 'image image 1|0"),
        ("a/1.png b/2.png 1 x\n", "must be 'image image 1|0"),
        ("a/1.png b/2.png\n", "must be 'image image 1|0"),
        ("what is this\n", "line 1 must be"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match=sentence.replace("|", r"\|")):
        read_list(tmp_path / "pairs.txt")
    with pytest.raises(InputError, match="is missing"):
        read_list(tmp_path / "none.txt")


def listing(tmp_path: Path, lines: list[str]) -> Path:
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    return tmp_path / "pairs.txt"


def test_missing_images_are_listed_and_refused_beyond_one_in_a_hundred(tmp_path: Path) -> None:
    good = [f"p{i % 50:02d}/0.png p{i % 50:02d}/1.png 1" for i in range(198)]
    path = listing(tmp_path, [*good, "p00/0.png gone/1.png 0", "p01/0.png gone/2.png 0"])
    found = list_pairs(faces(names(50, 2)), path)
    assert len(found.pairs) == 198
    assert found.missing == ("p00/0.png gone/1.png", "p01/0.png gone/2.png")
    path = listing(tmp_path, [*good, *[f"p00/0.png gone/{i}.png 0" for i in range(3)]])
    with pytest.raises(
        InputError, match=r"3 of the 201 pairs of pairs.txt name images that are not in faces.*gone/0.png"
    ):
        list_pairs(faces(names(50, 2)), path)


def test_pairs_of_another_part_are_counted_not_missing(tmp_path: Path) -> None:
    path = listing(tmp_path, ["p00/0.png p00/1.png 1", "x/0.png y/1.png 0", "x/0.png y/2.png 0"])
    found = list_pairs(faces(names(2, 2), partial=True), path)
    assert (len(found.pairs), found.elsewhere, found.missing) == (1, 2, ())
    with pytest.raises(InputError, match="2 of the 3 pairs"):
        list_pairs(faces(names(2, 2)), path)
    with pytest.raises(InputError, match=r"none of the 3 pairs of pairs\.txt has its images in faces"):
        list_pairs(faces(["z/0.png"], partial=True), path)


def test_the_probe_is_the_occluded_one(tmp_path: Path) -> None:
    path = listing(tmp_path, ["p00/0.png p00/1.png 1", "p00/1.png p01/0.png 0", "p00/0.png p01/0.png 0"])
    found = list_pairs(faces(names(2, 2), masked="0.png"), path)
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("p00/1.png", "p00/0.png"),
        ("p00/1.png", "p01/0.png"),
        ("p00/0.png", "p01/0.png"),
    ]


def test_of_real_masks_a_pair_is_of_a_full_face_and_a_masked_one(tmp_path: Path) -> None:
    lines = ["p00/0.png p00/1.png 1", "p00/1.png p01/0.png 0", "p00/0.png p01/0.png 0", "p00/1.png p01/1.png 0"]
    path = listing(tmp_path, lines)
    found = list_pairs(faces(names(2, 2), masked="0.png"), path, real=True)
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("p00/1.png", "p00/0.png"),
        ("p00/1.png", "p01/0.png"),
    ]
    assert (found.alike, found.missing, found.elsewhere) == (2, (), 0)
    assert list_pairs(faces(names(2, 2), masked="0.png"), path).alike == 0
    with pytest.raises(
        InputError, match=r"none of the 4 pairs of pairs\.txt in faces is of a full face and a masked one"
    ):
        list_pairs(faces(names(2, 2), masked="png"), path, real=True)
    for file in (path, None):
        with pytest.raises(InputError, match=r"faces does not say which faces are occluded \(such as p00/0\.png\)"):
            list_pairs(faces(names(2, 2)), file, real=True)


def test_made_pairs_of_real_masks() -> None:
    there = [*names(40, 4), *(f"p{person}/3.png" for person in range(40, 50))]  # the latter have a full face alone
    source = faces(there, masked="0.png")
    pairs = made_pairs(source, seed=0, real=True)
    assert sum(pair.same for pair in pairs) == 40 * 3
    assert len(pairs) > 1.8 * 40 * 3
    assert {(source.occluded(pair.first), source.occluded(pair.second)) for pair in pairs} == {(False, True)}
    assert set(list_pairs(source, None, real=True).pairs) == set(pairs)
    with pytest.raises(InputError, match="has 20 people, of whom 0 have a full face and a masked one"):
        made_pairs(faces(names(20, 2), masked="png"), seed=0, real=True)


def test_impostors_are_added(tmp_path: Path) -> None:
    lines = [f"p{i:02d}/0.png p{i:02d}/1.png 1" for i in range(20)] + ["p00/0.png p01/1.png 0", "p02/0.png p03/1.png 0"]
    source, path = faces(names(30, 2)), listing(tmp_path, lines)
    plain, found = list_pairs(source, path), list_pairs(source, path, impostors=50)
    assert found.pairs[:22] == plain.pairs
    added = found.pairs[22:]
    assert len({frozenset(pair[:2]) for pair in added}) == 50
    assert {(pair.same, pair.fold) for pair in added} == {(False, NO_FOLD)}
    assert not {pair[:2] for pair in added} & {pair[:2] for pair in plain.pairs}
    assert all(pair.first.partition("/")[0] != pair.second.partition("/")[0] for pair in added)
    assert found.images() == plain.images()
    assert found.source == "pairs.txt and 50 more of two people, drawn by the seed 0"
    assert list_pairs(source, path, impostors=50) == found != list_pairs(source, path, impostors=50, seed=1)
    assert len(list_pairs(source, path, impostors=10**6).pairs) == 20 + 20 * 19
    with pytest.raises(UsageError, match="impostors to add must be 0 or more, got -1"):
        list_pairs(source, path, impostors=-1)
    nobody = Faces(source.names, source.load, lambda name: None, title="strangers", kind="folder")
    with pytest.raises(UsageError, match="strangers does not say who is on every image"):
        list_pairs(nobody, path, impostors=5)


def test_made_pairs() -> None:
    pairs = made_pairs(faces(names(40, 3)), seed=0)
    assert pairs == made_pairs(faces(names(40, 3)), seed=0) != made_pairs(faces(names(40, 3)), seed=1)
    genuine = [pair for pair in pairs if pair.same]
    assert len(genuine) == 40 * 3
    assert len(set(pairs)) == len(pairs) > 1.8 * len(genuine)
    fold_of: dict[str, set[int]] = {}
    for pair in pairs:
        people = {name.partition("/")[0] for name in (pair.first, pair.second)}
        assert len(people) == (1 if pair.same else 2)
        for person in people:
            fold_of.setdefault(person, set()).add(pair.fold)
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert {pair.fold for pair in pairs} == set(range(10))
    few = made_pairs(faces(names(40, 3)), seed=0, most=40)
    assert (
        len({pair.first.partition("/")[0] for pair in few if pair.same}) == 40
    )  # everybody comes before anybody again


@pytest.mark.parametrize(("people", "images"), [(1, 5), (5, 1)])
def test_nothing_can_be_made(people: int, images: int) -> None:
    with pytest.raises(InputError, match=f"has {people} people"):
        list_pairs(faces(names(people, images)), None)


def test_limit_is_spaced_and_keeps_both_kinds(tmp_path: Path) -> None:
    lines = [f"p{i:02d}/0.png p{i:02d}/1.png 1 0" for i in range(50)] + ["p00/0.png p01/0.png 0 1"] * 10
    whole = faces(names(50, 2))
    found = list_pairs(whole, listing(tmp_path, lines), limit=30)
    assert len(found.pairs) == 30
    assert sum(pair.same for pair in found.pairs) == 20
    assert found.pairs[0].first == "p00/0.png"
    assert found.pairs[19].first == "p49/0.png"
    with pytest.raises(UsageError, match="at least two pairs must be judged, got the limit 1"):
        list_pairs(whole, listing(tmp_path, lines), limit=1)


def test_lfw_names_its_own_list(tmp_path: Path) -> None:
    for person in ("A_B", "C_D"):
        (tmp_path / person).mkdir()
        for number in (1, 2):
            (tmp_path / person / f"{person}_{number:04d}.jpg").write_bytes(b"")
    (tmp_path / "pairs.txt").write_text("1\t1\nA_B\t1\t2\nA_B\t1\tC_D\t2\n")
    found = list_pairs(open_faces(f"lfw:{tmp_path}"), None)
    assert found.source == "pairs.txt of LFW"
    assert [pair.same for pair in found.pairs] == [True, False]
    assert found.images() == ({"A_B/A_B_0001.jpg"}, {"A_B/A_B_0002.jpg", "C_D/C_D_0002.jpg"})
