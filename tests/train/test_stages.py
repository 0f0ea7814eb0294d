from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_task
import torch
from tiny_task import METHOD, TinyConfig, settings
from torch import Tensor

from deocc import plugins, weights
from deocc.config import from_toml
from deocc.data import IdentityFolder, ImageFolder, PackedFaces, concatenate, pack
from deocc.data.people import People, read_people, training_people
from deocc.errors import InputError, UsageError, WeightsError
from deocc.faces import TEMPLATE_112, Face
from deocc.images import write_image
from deocc.method import Method
from deocc.train import SingleDevice, fit, run, stages, train
from deocc.train.stages import _hold_out


class Centre:
    """A detector for pictures that are nothing but an aligned face."""

    def detect(self, image: np.ndarray) -> list[Face]:
        return [Face(box=np.array([0, 0, 112, 112]), landmarks=TEMPLATE_112.astype(np.float32), score=1.0)]


def go(out: Path, config: TinyConfig | None = None, method: Method = METHOD, **options: Any) -> dict[str, Path]:
    return run(method, config or TinyConfig(), range(10), range(7), out, progress=False, **options)


def test_stages_run_in_order_and_each_starts_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Tensor]] = []
    monkeypatch.setattr(tiny_task.SecondTask, "start_from", lambda self, exports: given.append(exports["restorer"]))
    assert go(tmp_path, card={"data": "noise", "licence": "CC0-1.0"}) == {"restorer": tmp_path / "restorer.safetensors"}
    first, _ = weights.read(tmp_path / "first/best/restorer.safetensors", method="tiny", part="restorer")
    second, _ = weights.read(tmp_path / "second/best/restorer.safetensors", method="tiny", part="restorer")
    assert all(torch.equal(given[0][name], first[name]) for name in first)
    tensors, card = weights.read(tmp_path / "restorer.safetensors", method="tiny", part="restorer")
    assert all(torch.equal(tensors[name], second[name]) for name in second)
    assert not torch.equal(first["0.weight"], second["0.weight"])
    assert card["stage"] == "second"
    assert card["data"] == "noise"
    assert card["licence"] == "CC0-1.0"
    assert card["steps"] == 12
    assert card["scores"]["error"] > 0
    assert "torch" in card["versions"]
    assert len(card["sha256"]) == 64
    assert from_toml(TinyConfig, tmp_path / "config.toml") == TinyConfig()


def test_the_first_stage_starts_from_weights_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = go(tmp_path / "earlier")["restorer"]
    given: list[dict[str, Tensor]] = []
    monkeypatch.setattr(tiny_task.SecondTask, "start_from", lambda self, exports: given.append(exports["restorer"]))
    paths = go(tmp_path / "later", stages=["second"], start_from=[earlier])
    tensors, card = weights.read(earlier, method="tiny", part="restorer")
    assert given[0].keys() == tensors.keys()
    assert all(torch.equal(given[0][name], tensors[name]) for name in tensors)
    assert weights.read_card(paths["restorer"])["started_from"] == {"restorer": card["sha256"]}
    # Nobody said who the earlier ones were trained on, so nobody knows of these.
    assert weights.read_card(paths["restorer"])["people"] is None
    weights.save(tmp_path / "other.safetensors", tensors, {**card, "method": "another"})
    with pytest.raises(WeightsError, match="'another'"):
        go(tmp_path / "never", start_from=[tmp_path / "other.safetensors"])


def test_the_people_of_weights_to_start_from_are_on_the_card_too(tmp_path: Path) -> None:
    first, second = (People(data, 0, ("0123456789",)).to_card() for data in ("LFW train", "CelebA"))
    earlier = go(tmp_path / "earlier", card={"people": [first]})["restorer"]
    later = go(tmp_path / "later", start_from=[earlier], card={"people": [second]})["restorer"]
    assert {one.data for one in read_people(weights.read_card(later), later) or ()} == {"LFW train", "CelebA"}


def test_finished_stages_are_skipped_and_the_weights_are_the_same(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole")["restorer"].read_bytes()
    go(tmp_path / "parts", stages=["first"])
    log = (tmp_path / "parts/first/log.jsonl").read_bytes()
    assert not (tmp_path / "parts/second").exists()
    assert go(tmp_path / "parts")["restorer"].read_bytes() == whole
    assert (tmp_path / "parts/first/log.jsonl").read_bytes() == log


def test_a_stage_alone_starts_from_what_the_folder_holds(tmp_path: Path) -> None:
    people = {"people": [People("LFW train", 0, ("0123456789",)).to_card()]}
    whole = go(tmp_path / "whole", card=people)["restorer"].read_bytes()
    go(tmp_path / "parts", stages=["first"], card=people)
    assert go(tmp_path / "parts", stages=["second"], card=people)["restorer"].read_bytes() == whole
    go(tmp_path / "others", stages=["first"], card={"people": [People("CelebA", 0, ("9876543210",)).to_card()]})
    later = go(tmp_path / "others", stages=["second"], card=people)["restorer"]
    assert {one.data for one in read_people(weights.read_card(later), later) or ()} == {"LFW train", "CelebA"}


def test_weights_that_are_given_go_before_those_of_an_earlier_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = go(tmp_path / "earlier", settings(steps=4))["restorer"]
    go(tmp_path / "run", stages=["first"])
    given: list[dict[str, Tensor]] = []
    load = tiny_task.SecondTask.start_from
    monkeypatch.setattr(
        tiny_task.SecondTask,
        "start_from",
        lambda self, exports: given.append(exports["restorer"]) or load(self, exports),
    )
    go(tmp_path / "run", stages=["second"], start_from=[earlier])
    tensors, card = weights.read(earlier, method="tiny", part="restorer")
    assert all(torch.equal(given[0][name], tensors[name]) for name in tensors)
    assert weights.read_card(tmp_path / "run/restorer.safetensors")["started_from"] == {"restorer": card["sha256"]}
    with pytest.raises(UsageError, match=rf"start\.restorer is '{card['sha256']}' in the checkpoint and "):
        go(tmp_path / "run", stages=["second"])


def test_a_stage_alone_is_resumed_and_knows_where_the_first_one_came_from(tmp_path: Path) -> None:
    earlier = go(tmp_path / "earlier", settings(steps=4))["restorer"]
    go(tmp_path / "run", start_from=[earlier])
    whole = (tmp_path / "run/second/last/restorer.safetensors").read_bytes()
    paths = go(tmp_path / "run", stages=["second"])
    assert (tmp_path / "run/second/last/restorer.safetensors").read_bytes() == whole
    go(tmp_path / "parts", stages=["first"], start_from=[earlier])
    paths = go(tmp_path / "parts", stages=["second"])
    origin = weights.read_card(earlier)["sha256"]
    assert weights.read_card(paths["restorer"])["started_from"] == {"restorer": origin}


def test_what_a_later_stage_lacks_is_said_before_the_first_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, faces: object, *, train: bool) -> None:
        raise UsageError("these faces have no dense fields")

    monkeypatch.setattr(tiny_task.SecondTask, "dataset", refuse)
    with pytest.raises(UsageError, match="no dense fields"):
        go(tmp_path)
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("steps", 0, "training.steps must be 1 or more, got 0"),
        ("workers", -1, "training.workers must be 0 or more, got -1"),
        ("precision", "fp8", "precision must be one of 32, bf16-mixed, got 'fp8'"),
    ],
)
def test_a_wrong_setting_of_a_later_stage_is_said_before_the_first_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: object, message: str
) -> None:
    wrong = dataclasses.replace(TinyConfig().training, **{setting: value})
    monkeypatch.setattr(tiny_task.SecondTask, "training", wrong)
    with pytest.raises(UsageError, match=message):
        go(tmp_path)
    assert not (tmp_path / "first").exists()


def test_only_what_was_trained_is_written(tmp_path: Path) -> None:
    earlier = go(tmp_path / "earlier")["restorer"]
    tensors, card = weights.read(earlier, method="tiny", part="restorer")
    weights.save(tmp_path / "recognizer.safetensors", tensors, {**card, "part": "recognizer"})
    start = [earlier, tmp_path / "recognizer.safetensors"]
    assert list(go(tmp_path / "later", start_from=start)) == ["restorer"]
    wider = TinyConfig(width=5)
    with pytest.raises(WeightsError, match=r"'second' of tiny cannot start from these weights: .* size mismatch for 0"):
        go(tmp_path / "wider", wider, stages=["second"], start_from=[earlier])


def test_a_run_that_started_elsewhere_is_not_gone_on_with(tmp_path: Path) -> None:
    earlier = go(tmp_path / "earlier")["restorer"]
    go(tmp_path / "run", settings(steps=4))
    with pytest.raises(UsageError, match=r"start\.restorer is only here"):
        go(tmp_path / "run", start_from=[earlier])


def test_the_seed_decides_the_first_weights(tmp_path: Path) -> None:
    one = go(tmp_path / "one", stages=["first"])["restorer"].read_bytes()
    torch.rand(100)
    assert go(tmp_path / "two", stages=["first"])["restorer"].read_bytes() == one
    assert go(tmp_path / "three", settings(seed=5), stages=["first"])["restorer"].read_bytes() != one


def test_unknown_and_missing_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method 'tiny' has no stage 'third'; its stages are: first, second"):
        go(tmp_path, stages=["first", "third"])
    with pytest.raises(UsageError, match="method 'tiny' has no stage to train; its stages are: first, second"):
        go(tmp_path, stages=[])
    with pytest.raises(UsageError, match="method 'idle' has no stage to train; its stages are: none"):
        go(tmp_path, method=Method(api=1, name="idle", config="tiny_task:TinyConfig"))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Six packed faces, which are noise: the tiny task only counts them."""

    (tmp_path / "photos").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (112, 112, 3), np.uint8)
        write_image(tmp_path / f"photos/{number}.png", pixels)
    pack(ImageFolder(tmp_path / "photos"), tmp_path / "packed", detector=Centre())  # type: ignore[arg-type]
    return tmp_path / "packed"


def test_train_from_names_and_paths(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "get", {"tiny": METHOD}.__getitem__)
    (tmp_path / "short.toml").write_text("width = 3\n[training]\nsteps = 99\nbatch = 4\n")
    overrides = {"training.steps": "4"}
    recipe = tmp_path / "short.toml"
    paths = train(
        "tiny",
        data=[packed, packed],
        eval_data=[packed],
        out=tmp_path / "run",
        recipe=recipe,
        overrides=overrides,
        progress=False,
    )
    card = weights.read_card(paths["restorer"])
    assert card["config"]["width"] == 3
    assert card["recipe"] == "short.toml training.steps=4"
    assert "12 faces" in card["data"]
    assert card["people"] is None  # whose faces these are is not known
    state = json.loads((tmp_path / "run/second/log.jsonl").read_text().splitlines()[-1])
    assert state["step"] == 4
    again = train(
        "tiny:training.steps=4",
        data=[packed, packed],
        eval_data=[packed],
        out=tmp_path / "run",
        recipe=recipe,
        progress=False,
    )
    assert again == paths
    with pytest.raises(UsageError, match=r"evaluation faces is '.*, 6 faces, \w+' in the checkpoint and None here"):
        train("tiny", data=[packed, packed], out=tmp_path / "run", recipe=recipe, overrides=overrides, progress=False)
    with pytest.raises(UsageError, match="already holds a training run"):
        train(
            "tiny",
            data=[packed],
            out=tmp_path / "run",
            recipe=recipe,
            overrides=overrides,
            progress=False,
            resume=False,
        )
    with pytest.raises(UsageError, match="examples is 12 in the checkpoint and 6 here"):
        train("tiny", data=[packed], out=tmp_path / "run", recipe=recipe, overrides=overrides, progress=False)


def test_an_engine_is_handed_on(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "get", {"tiny": METHOD}.__getitem__)
    engine = SingleDevice("cpu", "32")
    given: list[object] = []
    fit = stages.fit
    monkeypatch.setattr(
        stages, "fit", lambda *args, **options: given.append(options["engine"]) or fit(*args, **options)
    )
    train("tiny", data=[packed], out=tmp_path / "run", overrides={"training.steps": 1}, engine=engine, progress=False)
    assert given == [engine, engine]


def test_train_says_what_is_missing(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no method 'nothing-like-it'"):
        train("nothing-like-it", data=[packed], out=tmp_path / "run")
    monkeypatch.setattr(plugins, "get", {"tiny": METHOD}.__getitem__)
    with pytest.raises(UsageError, match="at least one folder of packed faces, got none"):
        train("tiny", data=[], out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"unknown key 'training\.step'; did you mean 'steps'"):
        train("tiny", data=[packed], out=tmp_path / "run", overrides={"training.step": "4"})
    with pytest.raises(InputError, match=r"small\.toml"):
        train("tiny", data=[packed], out=tmp_path / "run", recipe="small.toml")
    with pytest.raises(InputError, match="photos"):
        train("tiny", data=[tmp_path / "photos"], out=tmp_path / "run")
    with pytest.raises(UsageError, match="device 'cuda:99' cannot be used here"):
        train("tiny", data=[packed], out=tmp_path / "run", device="cuda:99", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two packed faces of each of eight people."""
    for person in range(8):
        for number in range(2):
            (tmp_path / f"people/{person}").mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / f"people/{person}/{number}.png", np.full((112, 112, 3), 10 * person, np.uint8))
    pack(IdentityFolder(tmp_path / "people"), tmp_path / "packed", detector=Centre())  # type: ignore[arg-type]
    return tmp_path / "packed"


def test_identities_are_held_out_whole(people: Path) -> None:
    faces = PackedFaces(people)
    rest, held = _hold_out(faces, 0.25)
    assert sorted(set(held.identities)) == [0, 4]
    assert (len(rest), len(held)) == (12, 4)
    assert not set(rest.identities) & set(held.identities)
    with pytest.raises(UsageError, match="too few identities"):
        _hold_out(faces.subset(faces.identities == 0), 0.25)


def test_somebody_in_two_packs_is_held_out_of_both(tmp_path: Path, people: Path) -> None:
    """With one pack's numbers beside the other's, evenly spaced identities would be different people."""
    for name, some in (("first", "abcdefgh"), ("second", "bcdf")):
        for person in some:
            (tmp_path / name / f"Ann_{person * 3}").mkdir(parents=True)
            write_image(tmp_path / name / f"Ann_{person * 3}/0.png", np.full((112, 112, 3), ord(person), np.uint8))
        pack(IdentityFolder(tmp_path / name), tmp_path / f"{name}-packed", detector=Centre())  # type: ignore[arg-type]
    packs = [PackedFaces(tmp_path / f"{name}-packed") for name in ("first", "second")]
    rest, held = _hold_out(concatenate(packs), 0.25)
    levels = [{int(image.mean()) for image in one.images[:]} for one in (rest, held)]
    assert levels[0] | levels[1] == set(map(ord, "abcdefgh"))
    assert not levels[0] & levels[1]


def test_evaluating_on_those_trained_on_is_said(tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "get", {"tiny": METHOD}.__getitem__)
    with pytest.warns(RuntimeWarning, match="8 of the 8 people evaluated on are trained on too"):
        train(
            "tiny",
            data=[people],
            eval_data=[people],
            out=tmp_path / "run",
            overrides={"training.steps": 1},
            progress=False,
        )


def test_an_unfinished_stage_is_gone_on_from_and_that_is_said(tmp_path: Path) -> None:
    fit(
        tiny_task.build(),
        range(10),
        range(7),
        tmp_path / "first",
        progress=False,
        stop_after=6,
        card={"method": "tiny"},
    )
    with pytest.warns(RuntimeWarning, match=r"first stands at step 6 of 12"):
        go(tmp_path, stages=["second"])


def test_the_card_says_who_was_trained_and_evaluated_on(
    tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "get", {"tiny": METHOD}.__getitem__)
    options: dict[str, Any] = {"data": [people], "overrides": {"training.steps": 1}, "progress": False}
    paths = train("tiny", out=tmp_path / "run", hold_out=0.25, **options)
    faces = PackedFaces(people)
    wanted = [one for part in _hold_out(faces, 0.25) for one in training_people(part) or ()]
    assert read_people(weights.read_card(paths["restorer"]), "card") == wanted
    assert sum(len(one.digests) for one in wanted) == 8


@pytest.mark.parametrize(("share", "number"), [(0.02, 20), (0.1, 100), (0.35, 350), (0.4, 400), (0.5, 500)])
def test_as_many_are_held_out_as_was_asked_for(share: float, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "identity_digests", lambda faces: [str(one) for one in faces.identities])

    class Many:
        identities = np.arange(1000)

        def subset(self, inside: np.ndarray) -> int:
            return int(inside.sum())

    assert _hold_out(Many(), share) == (1000 - number, number)  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_a_share_that_makes_no_sense(tmp_path: Path, packed: Path, share: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(plugins, "get", {"tiny": METHOD}.__getitem__)
    with pytest.raises(UsageError, match=r"above 0 and at most 0\.5"):
        train("tiny", data=[packed], out=tmp_path / "run", hold_out=share)
    with pytest.raises(UsageError, match="got both"):
        train("tiny", data=[packed], eval_data=[packed], out=tmp_path / "run", hold_out=0.1)
    with pytest.raises(UsageError, match=r"photos does not say whose its faces are; .* --kind identities"):
        train("tiny", data=[packed], out=tmp_path / "run", hold_out=0.1)


def test_other_labels_of_the_same_pictures_are_refused(tmp_path: Path, people: Path) -> None:
    faces = PackedFaces(people)
    fit(tiny_task.build(), faces, None, tmp_path / "run", progress=False, stop_after=3)
    faces.identities = faces.identities[::-1].copy()
    with pytest.raises(UsageError, match="training labels is"):
        fit(tiny_task.build(), faces, None, tmp_path / "run", progress=False)
