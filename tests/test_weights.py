"""Weights come back as they were written, and everything else is one sentence."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from deocc import weights
from deocc.errors import UsageError, WeightsError

CARD = {"method": "mine", "part": "restorer", "config": {"width": 8}}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "mine.safetensors"
    weights.save(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}, CARD)
    return path


def read(path):
    return weights.read(path, method="mine", part="restorer")


def test_round_trip(saved):
    tensors, card = read(saved)
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
    assert tensors["b"].dtype == torch.float16
    assert set(card) == set(weights.CARD_KEYS)
    assert card["config"] == {"width": 8}
    assert weights.read_card(saved) == card


def test_any_layout_can_be_written(tmp_path):
    path = tmp_path / "mine.safetensors"
    base = torch.arange(24.0).view(2, 3, 2, 2)
    tensors = {"shared": base[0], "last": base.contiguous(memory_format=torch.channels_last), "turned": base[0, 0].T}
    tensors |= {
        "same": base,
        "graph": base.clone().requires_grad_(True),
        "empty": torch.ones(0, 3),
        "one": torch.tensor(3),
    }
    weights.save(path, tensors, CARD)
    got, _ = read(path)
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())


def test_files_are_the_same_bytes_each_time(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    weights.save(again, {"b": torch.ones(4, dtype=torch.float16), "a": torch.arange(6.0).view(2, 3)}, CARD)
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("key", ["method", "part", "config"])
def test_card_must_say_what_it_belongs_to(key, tmp_path):
    card = {name: value for name, value in CARD.items() if name != key}
    with pytest.raises(UsageError, match=f"lacks {key}"):
        weights.save(tmp_path / "mine.safetensors", {}, card)
    assert not list(tmp_path.iterdir())


def test_other_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"written as \.safetensors"):
        weights.save(tmp_path / "mine.pt", {}, CARD)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def pickled(protocol):
    return lambda path: path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (pickled(2), "got a pickle (pickles are never loaded)"),
        (pickled(5), "got a pickle (pickles are never loaded)"),
        (lambda path: torch.save({"a": torch.ones(3)}, path), "got a zip archive, such as a PyTorch pickle"),
        (lambda path: path.write_bytes(b""), "got an empty file"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "got something else"),
        (lambda path: path.write_bytes(b"{}"), "got something else"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "the weights are truncated: "),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "the weights are truncated inside the header"),
        (lambda path: path.write_bytes(path.read_bytes()[:9]), "the weights are truncated inside the header"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "was wanted by its card, but the file has"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\x01"), "was wanted by its card, but the file has"),
        (lambda path: path.write_bytes(struct.pack("<Q", 3) + b'{"a' + bytes(9)), "header is damaged"),
        (lambda path: path.write_bytes(struct.pack("<Q", 7) + b'{"a":1}'), "header is damaged"),
        (lambda path: path.unlink(), "cannot be read: No such file or directory"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
        (lambda path: weights.card_path(path).unlink(), "its card mine.json is missing"),
        (lambda path: weights.card_path(path).write_text("{"), "the card is not JSON"),
        (lambda path: weights.card_path(path).write_bytes(b"\xff"), "the card is not JSON"),
        (lambda path: weights.card_path(path).write_text("[]"), "must be a JSON object, got list"),
        (lambda path: weights.card_path(path).write_text("{}"), "the card lacks method, part"),
    ],
)
def test_files_that_cannot_be_used(saved, make, sentence):
    make(saved)
    with pytest.raises(WeightsError) as error:
        read(saved)
    assert sentence in str(error.value)
    assert saved.stem in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_another_method_or_part(saved):
    with pytest.raises(
        WeightsError, match="the restorer of method 'yours' was wanted, but these are weights of the res"
    ):
        weights.read(saved, method="yours", part="restorer")
    with pytest.raises(WeightsError, match="the recognizer of method 'mine' was wanted"):
        weights.read(saved, method="mine", part="recognizer")


def test_card_without_config(saved):
    card = json.loads(weights.card_path(saved).read_text())
    weights.card_path(saved).write_text(json.dumps({**card, "config": 3}))
    with pytest.raises(WeightsError, match="config must be a JSON object, got int"):
        read(saved)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(start=st.integers(0, 200), noise=st.binary(max_size=64))
def test_any_damage_is_a_sentence(saved, start, noise):
    whole = saved.read_bytes()
    damaged = whole[:start] + noise + whole[start + len(noise) :]
    other = saved.with_name("damaged.safetensors")
    other.write_bytes(damaged)
    weights.card_path(other).write_bytes(weights.card_path(saved).read_bytes())
    if damaged == whole:
        read(other)
        return
    with pytest.raises(WeightsError):
        read(other)


def test_interrupted_between_the_two_files(saved):
    """New weights under an old card are noticed."""
    card = weights.card_path(saved).read_bytes()
    weights.save(saved, {"a": torch.zeros(2, 3)}, CARD)
    weights.card_path(saved).write_bytes(card)
    with pytest.raises(WeightsError, match="sha256"):
        read(saved)


def test_fill_casts_half_precision():
    network = nn.Linear(2, 2)
    weights.fill(network, {"weight": torch.eye(2).half(), "bias": torch.zeros(2).half()}, source="here")
    assert network.weight.dtype == torch.float32
    assert torch.equal(network.weight, torch.eye(2))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"weight": torch.eye(2)}, "1 tensors are missing (such as 'bias')"),
        ({"weight": torch.eye(2), "bias": torch.zeros(2), "x": torch.zeros(1)}, "have no place in it (such as 'x')"),
        ({"weight": torch.eye(3), "bias": torch.zeros(2)}, "'weight' should have shape (2, 2)"),
        ({"weight": torch.eye(2, dtype=torch.int64), "bias": torch.zeros(2)}, "'weight' should be torch.float32"),
    ],
)
def test_fill_is_strict(tensors, sentence):
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    with pytest.raises(WeightsError) as error:
        weights.fill(network, tensors, source="here")
    assert str(error.value).startswith("here: ")
    assert sentence in str(error.value)
    assert torch.equal(network.weight, before)
