from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deocc.data import LFW, Pair, read_pairs
from deocc.errors import InputError, UsageError

PEOPLE = [f"Person_{letter}" for letter in "ABCDEFGH"]
# Four folds of one pair of each kind; nobody is in two folds.
PAIRS = "4\t1\n" + "".join(
    f"{PEOPLE[2 * fold]}\t1\t2\n{PEOPLE[2 * fold]}\t1\t{PEOPLE[2 * fold + 1]}\t1\n" for fold in range(4)
)


@pytest.fixture
def root(tmp_path: Path, make) -> Path:
    make(tmp_path, [f"{person}/{person}_{number:04d}.jpg" for person in [*PEOPLE, "Nobody"] for number in (1, 2)])
    (tmp_path / "pairs.txt").write_text(PAIRS)
    return tmp_path


def test_split_from_pairs_and_from_file(root: Path) -> None:
    train, test = LFW(root, "train"), LFW(root, "test")
    assert train.identities == ("Nobody", "Person_G", "Person_H")
    assert set(test.identities) == set(PEOPLE[:6])
    assert len(LFW(root)) == len(train) + len(test) == 18
    (root / "split.json").write_text(json.dumps({"train": ["Nobody"], "test": ["Person_A"]}))
    assert LFW(root, "train").identities == ("Nobody",)
    assert LFW(root, "test").title == "LFW test"


def test_split_that_leaks_is_refused(root: Path) -> None:
    (root / "split.json").write_text(json.dumps({"train": ["Nobody", "Person_A"], "test": ["Person_A"]}))
    with pytest.raises(InputError, match="1 identities are in train and in test"):
        LFW(root, "train")
    (root / "split.json").write_text("{}")
    with pytest.raises(InputError, match="wanted the lists train and test"):
        LFW(root, "train")
    with pytest.raises(UsageError, match="must be one of train, test, got 'dev'"):
        LFW(root, "dev")


def test_pairs_of_all_and_of_a_split(root: Path) -> None:
    pairs = LFW(root).pairs()
    assert pairs[0] == Pair("Person_A/Person_A_0001.jpg", "Person_A/Person_A_0002.jpg", True, 0)
    assert pairs[1] == Pair("Person_A/Person_A_0001.jpg", "Person_B/Person_B_0001.jpg", False, 0)
    assert [pair.fold for pair in pairs] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {pair.fold for pair in LFW(root, "test").pairs()} == {0, 1, 2}
    assert {pair.fold for pair in LFW(root, "train").pairs()} == {3}
    (root / "Person_A" / "Person_A_0002.jpg").unlink()
    with pytest.raises(InputError, match=r"Person_A_0002\.jpg is missing"):
        LFW(root).pairs()


def test_pairs_of_view_1_and_without_header(root: Path) -> None:
    path = root / "pairsDevTest.txt"
    path.write_text("1\nPerson_A\t1\t2\nPerson_A\t1\tPerson_B\t2\n")
    assert [(pair.same, pair.fold) for pair in LFW(root).pairs(path)] == [(True, 0), (False, 0)]
    path.write_text("Person_A 1 Person_B 2\nPerson_A 1 2\n")
    assert [pair.same for pair in LFW(root).pairs(path)] == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wanted lines with pairs, got 0 lines"),
        ("2\t1\nA\t1\t2\nA\t1\tB\t1\n", r"wanted 2 folds of 1 \+ 1 pairs, got 2 lines"),
        ("1\t1\nA\t1\tB\t1\nA\t1\t2\n", "line 2 must be"),
        ("A one two\n", "line 1 must be"),
        ("1 2 3\nA 1 2\n", "wanted 1 folds of 1"),
        ("A 1\n", "line 1 must be"),
    ],
)
def test_broken_pairs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs(path)


def test_what_is_missing_is_named(tmp_path: Path, make) -> None:
    with pytest.raises(InputError, match=r"is missing; download lfw-deepfunneled\.tgz"):
        LFW(tmp_path / "lfw")
    make(tmp_path, ["A/A_0001.jpg"])
    with pytest.raises(InputError, match=r"pairs\.txt is missing; download pairs\.txt"):
        LFW(tmp_path, "train")
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(InputError, match="cannot be read as text"):
        LFW(tmp_path).pairs()


def test_the_real_split_never_leaks(shared) -> None:
    root = shared("faces/lfw")
    train, test = LFW(root, "train"), LFW(root, "test")
    assert (len(train), len(train.identities)) == (9912, 4508)
    assert (len(test), len(test.identities)) == (3321, 1241)
    assert not set(train.identities) & set(test.identities)
    pairs = test.pairs()
    assert len(pairs) == 1800
    assert sum(pair.same for pair in pairs) == 900
    assert {pair.fold for pair in pairs} == {0, 1, 2}
    assert not {name for pair in pairs for name in pair[:2]} & set(train.names)


def test_the_split_from_pairs_is_the_one_in_the_file(shared, tmp_path: Path) -> None:
    root = shared("faces/lfw")
    for path in root.iterdir():
        if path.name != "split.json":
            (tmp_path / path.name).symlink_to(path)
    assert LFW(tmp_path, "test").names == LFW(root, "test").names
    assert LFW(tmp_path, "train").names == LFW(root, "train").names


def test_all_real_pairs_are_there(shared) -> None:
    source = LFW(shared("faces/lfw"))
    assert len(source) == 13233
    assert len(source.pairs()) == 6000
    assert all(sample.landmarks is not None for sample in source)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.one_of(st.text(max_size=4), st.integers(0, 3).map(str)), max_size=5), max_size=5))
def test_any_text_is_pairs_or_one_sentence(tmp_path: Path, rows: list[list[str]]) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join("\t".join(row) for row in rows), encoding="utf-8", errors="replace")
    with contextlib.suppress(InputError):
        assert read_pairs(path)
