"""Parts are named and identified by everything that decides what they compute."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deocc import judge, weights
from deocc.errors import UsageError
from deocc.files import sha256
from deocc.judge.parts import Loaded, _key, load_occluder, load_recognizers, load_restorers, state_digest

BOTH = 'restorer="{module}_parts:Learned", recognizer="{module}_parts:Embed", occluder="{module}_parts:Grey",'


@pytest.fixture
def file(install: Any, tmp_path: Path) -> Path:
    install("mine", extra=BOTH)
    parts = importlib.import_module("fake_mine_parts")
    network = parts.Learned(parts.Config()).network
    weights.save(
        tmp_path / "w.safetensors",
        network.state_dict(),
        {"method": "mine", "part": "restorer", "config": {"width": 4}, "data": "some faces", "licence": "CC0-1.0"},
    )
    return tmp_path / "w.safetensors"


def test_what_a_report_says_of_a_part(file: Path) -> None:
    restorer = load_restorers(["mine"], weight_files={"mine": file})[0]
    found = restorer.result
    assert (found.key, found.method, found.distribution, found.version) == ("mine", "mine", "fake-mine", "1.0")
    assert (found.role, found.occlusion) == ("restorer", "given")
    assert (found.weights, found.sha256) == ("w.safetensors", weights.read_card(file)["sha256"])
    assert (found.data, found.licence, found.size, found.zoom) == ("some faces", "CC0-1.0", 16, 0.75)
    recognizer = load_recognizers(["mine"])[0]
    assert (recognizer.result.role, recognizer.result.occlusion, recognizer.result.sha256) == ("recognizer", "", "")


def test_the_identity_follows_weights_config_source_and_whether_the_occlusion_is_given(
    file: Path, nothing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = load_restorers(["mine"], weight_files={"mine": file})[0]
    assert load_restorers(["mine"], weight_files={"mine": file})[0].identity == one.identity
    other = file.with_name("other.safetensors")
    tensors, card = weights.read(file, method="mine", part="restorer")
    weights.save(other, {name: tensor + 1 for name, tensor in tensors.items()}, card)
    assert load_restorers(["mine"], weight_files={"mine": other})[0].identity != one.identity
    wide = {**card, "config": {"width": 4, "gain": 2.0}}
    weights.save(other, tensors, wide)
    assert load_restorers(["mine"], weight_files={"mine": other})[0].identity != one.identity
    source = Path(sys.modules["fake_mine_parts"].__file__ or "")
    source.write_text(source.read_text() + "\n# changed\n")
    assert load_restorers(["mine"], weight_files={"mine": file})[0].identity != one.identity
    found, given = load_restorers([nothing], given=["Nothing"])
    assert (found.key, given.key) == ("Nothing", "Nothing (given)")
    assert (found.given, given.given) == (False, True)
    assert found.identity != given.identity
    assert found.lock is given.lock


def test_a_model_beside_the_weights_counts(nothing: Any, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"1")
    nothing.files = (model,)
    one = load_restorers([nothing])[0]
    assert one.result.weights == "model.onnx"
    model.write_bytes(b"2")
    assert load_restorers([nothing])[0].identity != one.identity


def test_models_read_besides_the_weights_count_too(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Loaded:
        return load_restorers(["mine"], weight_files={"mine": file})[0]

    digest = weights.read_card(file)["sha256"]
    bare = load()
    assert (bare.identity["weights"], bare.result.files) == (digest, ())
    model = tmp_path / "model.onnx"
    model.write_bytes(b"1")
    monkeypatch.setattr(sys.modules["fake_mine_parts"].Learned, "files", (model,))
    one = load()
    assert one.identity["weights"] != digest
    assert (one.result.weights, one.result.sha256) == ("w.safetensors", digest)
    assert one.result.files == (f"model.onnx {sha256(model)}",)
    model.write_bytes(b"2")
    assert load().identity["weights"] not in (digest, one.identity["weights"])


def test_a_digest_of_one_thing_is_that_things(nothing: Any, tmp_path: Path) -> None:
    """Caches are kept by it."""
    assert load_restorers([nothing])[0].identity["weights"] == ""
    nothing.network = torch.nn.Linear(2, 2)
    own = state_digest(nothing.network)
    assert load_restorers([nothing])[0].identity["weights"] == own
    models = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for model in models:
        model.write_bytes(b"1")
    nothing.files = models[:1]
    both = load_restorers([nothing])[0]
    assert both.identity["weights"] not in (own, sha256(models[0]))
    assert (both.result.sha256, both.result.files) == (own, (f"a.onnx {sha256(models[0])}",))
    nothing.network = None
    alone = load_restorers([nothing])[0]
    assert alone.identity["weights"] == alone.result.sha256 == sha256(models[0])
    assert (alone.result.weights, alone.result.files) == ("a.onnx", ())
    nothing.files = models
    two = load_restorers([nothing])[0]
    assert (two.result.weights, two.result.sha256) == ("a.onnx", sha256(models[0]))
    assert two.result.files == (f"b.onnx {sha256(models[1])}",)
    assert two.identity["weights"] != alone.identity["weights"]


@dataclass(frozen=True)
class SimpleConfig:
    model: str


def test_where_a_file_lies_does_not_count(nothing: Any, tmp_path: Path) -> None:
    found = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        model = tmp_path / folder / "model.onnx"
        model.write_bytes(b"1")
        nothing.config, nothing.files = SimpleConfig(str(model)), (model,)
        found.append(load_restorers([nothing])[0])
    assert found[0].result.config == found[1].result.config
    assert found[0].identity == found[1].identity


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["onnx:run1/model.onnx"], ["onnx:model.onnx"]),
        (["onnx:run1/model.onnx", "onnx:run2/model.onnx"], ["onnx:run1/model.onnx", "onnx:run2/model.onnx"]),
        (
            ["onnx:/a/run/m.onnx", "onnx:/b/run/m.onnx", "onnx:c/n.onnx"],
            ["onnx:a/run/m.onnx", "onnx:b/run/m.onnx", "onnx:n.onnx"],
        ),
        (["onnx:/a/m.onnx", "onnx:a/m.onnx", "onnx:m.onnx"], ["onnx:/a/m.onnx", "onnx:a/m.onnx", "onnx:m.onnx"]),
        (["onnx:a/m.onnx", "onnx:a/m.onnx"], ["onnx:m.onnx"] * 2),
        (
            ["onnx:a/m.onnx,layout=x/l.toml", "onnx:a/m.onnx,layout=y/l.toml"],
            [f"onnx:a/m.onnx,layout={x}/l.toml" for x in "xy"],
        ),
    ],
)
def test_of_a_path_as_much_as_tells_it_from_another(names: list[str], keys: list[str]) -> None:
    assert [_key(name, names) for name in names] == keys


def test_two_files_of_one_name_are_two_parts(install: Any) -> None:
    install("mine", extra=BOTH, edits=[("width: int = 4", 'path: str = ""')])
    found = load_recognizers(["mine:run1/m.onnx", "mine:run2/m.onnx"])
    assert [one.key for one in found] == ["mine:run1/m.onnx", "mine:run2/m.onnx"]
    with pytest.raises(UsageError, match=r"the recognizer 'mine:m\.onnx' was given twice"):
        load_recognizers(["mine:run1/m.onnx", "mine:run1/m.onnx"])


def test_the_digest_of_a_network_without_a_file() -> None:
    network = torch.nn.Linear(2, 2)
    before = state_digest(network)
    with torch.no_grad():
        network.bias[0] += 1
    assert state_digest(network) != before


def test_an_occluder(file: Path) -> None:
    part, name, mark = load_occluder("mine")
    assert (name, len(mark)) == ("mine", 16)
    assert part.crop_size == 16


def test_a_restorer_that_must_be_told_is_not_judged_twice(file: Path, oracle: Any) -> None:
    assert [one.key for one in load_restorers([oracle], given=["Oracle"])] == ["Oracle"]
    with pytest.raises(UsageError, match="there is no method 'nobody'"):
        load_restorers(["nobody"])


def test_a_weights_file_goes_to_the_part_that_its_card_names(
    file: Path, packed: Any, nothing: Any, pixels: Any
) -> None:
    report = judge.quality(packed, restorers=["mine"], recognizers=["mine"], weight_files={"mine": [file]}, limit=4)
    assert (report.restorers[0].weights, report.recognizers[0].weights) == ("w.safetensors", "")
    with pytest.raises(UsageError, match="holds weights of a restorer, but 'mine' is judged as a recognizer"):
        judge.quality(packed, restorers=[nothing], recognizers=["mine"], weight_files={"mine": file})
    with pytest.raises(UsageError, match="'mine' has two files for its restorer"):
        judge.quality(packed, restorers=["mine"], recognizers=[pixels], weight_files={"mine": [file, file]})
