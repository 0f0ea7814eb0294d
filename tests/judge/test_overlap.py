"""People of the test who were in the training are named, and what is not known is said to be unknown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from deocc import judge
from deocc.data.people import People, people_digests, training_people
from deocc.errors import UsageError, WeightsError
from deocc.judge.faces import Faces, open_faces
from deocc.judge.overlap import named_in, overlap
from deocc.judge.parts import Loaded, load_recognizers, load_restorers


def trained(nothing: Any, people: list[People] | None, data: str = "") -> Loaded:
    one = load_restorers([nothing])[0]
    card = {} if people is None else {"people": [some.to_card() for some in people]}
    return dataclasses.replace(one, card=card, result=dataclasses.replace(one.result, sha256="1", data=data))


def of(title: str, *identities: str) -> People:
    digests = people_digests(title, identities)
    named = sum("_" in identity for identity in identities)
    return People(title, named, tuple(sorted(digests.values())))


def faces_of(title: str, split: str = "") -> Faces:
    return Faces(["x"], lambda name: pytest.fail("not read"), lambda name: None, title=title, kind="lfw", split=split)


def test_found_by_name_across_data_sets(nothing: Any) -> None:
    found = overlap(
        trained(nothing, [of("Other", "ann lee", "Bo_Ek")]), faces_of("LFW test"), ["Ann_Lee", "C_Day", "Bo_Ek"]
    )
    assert found.state == "found"
    assert found.identities == ("Ann_Lee", "Bo_Ek")
    assert "2 of the 3 people tested were in the training of Nothing: Ann_Lee, Bo_Ek." in found.sentence


def test_numbers_mean_something_in_one_data_set_alone(nothing: Any) -> None:
    one = trained(nothing, [of("CelebA wild train", "17")])
    assert overlap(one, faces_of("CelebA aligned"), ["17", "18"]).state == "found"
    other = overlap(one, faces_of("VGGFace2"), ["17"])
    assert other.state == "unknown"
    assert other.sentence == (
        "As far as names tell, of 1 people that Nothing was trained or evaluated on none is tested; people of CelebA "
        "wild train are known by number or one word, so whether any of them is tested is UNKNOWN."
    )
    assert overlap(one, faces_of("CelebA aligned"), ["18"]).state == "none"


def test_only_data_sets_without_names_are_named_once(nothing: Any) -> None:
    """A card names a data set twice: those trained on, and those held out. One test identity has one word."""
    people = [of("LFW train", "A_B", "C_D"), of("faces wild", "1", "2"), of("LFW train", "E_F"), of("faces wild", "3")]
    found = overlap(trained(nothing, people), faces_of("LFW test", "test"), ["Ann_Lee", "Madonna"])
    assert found.state == "unknown"
    assert found.sentence == (
        "As far as names tell, of 6 people that Nothing was trained or evaluated on none is tested; people of faces "
        "wild are known by number or one word, so whether any of them is tested is UNKNOWN."
    )
    some = overlap(trained(nothing, [of("other", "A_B", "1")]), faces_of("LFW test"), ["Ann_Lee"])
    assert "; 1 people of other are known by number or one word, so whether any of them is tested" in some.sentence
    tested = overlap(trained(nothing, [of("other", "A_B")]), faces_of("LFW test"), ["Ann_Lee", "Madonna"])
    assert tested.state == "unknown"
    assert (
        "; 1 people of LFW test are known by number or one word, so whether any of them is in both" in tested.sentence
    )


def test_none(nothing: Any) -> None:
    found = overlap(trained(nothing, [of("LFW train", "Ann_Lee")]), faces_of("LFW test", "test"), ["Bo_Ek"])
    assert found.state == "none"
    assert found.sentence == "By name, of 1 people that Nothing was trained or evaluated on none is tested."
    assert overlap(trained(nothing, [of("LFW train", "Ann_Lee")]), faces_of("faces"), []).state == "unknown"


@pytest.mark.parametrize(
    ("data", "title", "split", "state"),
    [
        ("LFW train: 9912 faces, 200 of them held out", "LFW test", "test", "none"),
        ("LFW train + CelebA wild: 20000 faces", "LFW test", "test", "unknown"),
        ("LFW: 13233 faces", "LFW test", "test", "unknown"),
        ("LFW test: 3321 faces", "LFW test", "test", "unknown"),
        ("LFW train: 9912 faces", "LFW", "", "unknown"),
        ("mine train: 3 faces", "mine test", "test", "unknown"),
        ("refined MS-Celeb-1M", "LFW test", "test", "unknown"),
        ("", "LFW test", "test", "unknown"),
    ],
)
def test_cards_without_people(nothing: Any, data: str, title: str, split: str, state: str) -> None:
    found = overlap(trained(nothing, None, data), faces_of(title, split), ["Ann_Lee"])
    assert found.state == state
    assert ("UNKNOWN" in found.sentence) is (state == "unknown")


def test_without_weights_nobody_was_trained_on(nothing: Any) -> None:
    assert overlap(load_restorers([nothing])[0], faces_of("LFW"), ["Ann_Lee"]).state == "untrained"


def test_a_card_that_cannot_be_read(nothing: Any) -> None:
    bad = dataclasses.replace(
        trained(nothing, []), card={"people": [{"data": "x", "named": 0, "count": 2, "digests": "0" * 10}]}
    )
    with pytest.raises(WeightsError, match="the card's people cannot be read"):
        overlap(bad, faces_of("LFW"), ["Ann_Lee"])


def test_named_in_the_configuration(nothing: Any, pixels: Any) -> None:
    one = dataclasses.replace(trained(nothing, []), card={"config": {"losses": [{"identity_method": "pixels"}]}})
    matcher = load_recognizers([pixels])[0]
    matcher = dataclasses.replace(matcher, result=dataclasses.replace(matcher.result, method="pixels", key="pixels"))
    assert named_in(one, [matcher]) == ("pixels",)
    assert named_in(trained(nothing, []), [matcher]) == ()


def test_a_judgement_is_refused_unless_it_is_allowed(
    packed: Any, nothing: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trained(nothing, training_people(packed))
    monkeypatch.setattr("deocc.judge.run.load_restorers", lambda *_, **__: [one])
    options = {"restorers": [nothing], "recognizers": [pixels], "kinds": ["n95"], "resamples": 0}
    with pytest.raises(
        UsageError, match=r"12 of the 12 people tested were in the training of Nothing: Some_Bodya.*allow"
    ):
        judge.verification(packed, **options)
    report = judge.verification(packed, allow_overlap=True, **options)
    assert report.restorers[0].overlap.state == "found"
    assert len(report.restorers[0].overlap.identities) == 12
    assert any("12 of the 12 people" in warning for warning in report.warnings)


def test_identities_of_packs_are_the_readers(folder: Path, packed: Any) -> None:
    faces = open_faces(folder)
    digests = people_digests(faces.title, {faces.identity(name) or "" for name in faces.names})
    assert set(training_people(packed)[0].digests) == set(digests.values())
