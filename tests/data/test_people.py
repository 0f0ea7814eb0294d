"""Who is in a data set, as a weights card carries it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deocc.data import IdentityFolder, ImageFolder, PackedFaces, concatenate, pack
from deocc.data.people import People, family, is_name, merged, people_digests, read_people, training_people
from deocc.errors import WeightsError
from deocc.faces import Crop


@pytest.mark.parametrize(
    ("title", "word"), [("LFW test", "lfw"), ("CelebA wild train", "celeba"), ("celeba-wild", "celeba"), ("-", "")]
)
def test_family(title: str, word: str) -> None:
    assert family(title) == word


def test_names() -> None:
    assert is_name("Ann_Lee")
    assert is_name("José-María Núñez")
    assert not any(map(is_name, ("Madonna", "0001", "n000002", "m-001", "Ann_2", "A_B")))


def test_digests() -> None:
    assert people_digests("LFW", ["Ann_Lee"])["Ann_Lee"] == people_digests("mine", ["ANN LEE"])["ANN LEE"]
    assert people_digests("LFW", ["1"])["1"] != people_digests("mine", ["1"])["1"]
    one, other = "Jos\u00e9_Aldo", "Jose\u0301_Aldo"  # as some file systems write it, and as others do
    assert people_digests("a", [one])[one] == people_digests("b", [other])[other]
    assert people_digests("LFW train", ["1"]) == people_digests("LFW test", ["1"])


def test_the_people_of_packs(make: Any, write_landmarks: Any, tmp_path: Path) -> None:
    packs = []
    for title, people in (("one", ("Ann_Lee", "Bo_Ek")), ("two", ("Ann_Lee", "7"))):
        names = [f"{person}/{number}.png" for person in people for number in range(2)]
        write_landmarks(make(tmp_path / title, names), names)
        pack(IdentityFolder(tmp_path / title), tmp_path / f"{title}.pack", crop=Crop(32, 0.75))
        packs.append(PackedFaces(tmp_path / f"{title}.pack"))
    both = training_people(concatenate(packs))
    assert both is not None
    assert [(some.data, some.named, len(some.digests)) for some in both] == [("one", 2, 2), ("two", 1, 2)]
    assert len(set(both[0].digests) & set(both[1].digests)) == 1
    left = concatenate(packs).subset(np.array([0, 4, 5]))
    assert [len(some.digests) for some in training_people(left) or ()] == [1, 1]
    card = {"people": [some.to_card() for some in both]}
    assert read_people(card, "card") == both
    assert read_people({}, "card") is None
    pack(ImageFolder(tmp_path / "one"), tmp_path / "nobody.pack", crop=Crop(32, 0.75))
    nobody = PackedFaces(tmp_path / "nobody.pack")
    assert training_people(nobody) is None
    assert training_people(concatenate([*packs, nobody])) is None


@pytest.mark.parametrize("said", [[{}], 3, [{"data": "x", "named": 0, "count": 3, "digests": "0" * 20}]])
def test_a_card_that_cannot_be_read(said: Any) -> None:
    with pytest.raises(WeightsError, match="file: the card's people cannot be read"):
        read_people({"people": said}, "file")


def test_to_card() -> None:
    assert People("x", 1, ("0" * 10, "1" * 10)).to_card() == {
        "data": "x",
        "count": 2,
        "named": 1,
        "digests": "0" * 10 + "1" * 10,
    }


def test_merged_keeps_each_data_set_once_where_one_entry_holds_the_other() -> None:
    all_of_lfw, some_of_lfw = (People("LFW", 0, digests) for digests in (("a" * 10, "b" * 10), ("b" * 10,)))
    others = People("LFW", 0, ("c" * 10,)), People("CelebA", 0, ("b" * 10,))
    assert set(merged([some_of_lfw, *others, all_of_lfw, all_of_lfw])) == {all_of_lfw, *others}
