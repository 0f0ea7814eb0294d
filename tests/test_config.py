"""Configurations survive TOML and dicts, and every wrong key or value is one sentence that names it."""

from __future__ import annotations

import contextlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deocc import config
from deocc.errors import InputError, UsageError


@dataclass(frozen=True)
class Layer:
    width: int = 8
    kernel: tuple[int, int] = (3, 3)


@dataclass(frozen=True)
class Settings:
    layer: Layer = Layer()
    rate: float = 1e-4
    name: str = "plain"
    bias: bool = True
    depth: int | None = 3
    precision: Literal["32", "bf16-mixed"] = "32"
    kinds: tuple[str, ...] = ("mask", "hand")
    weights: Mapping[str, float] = field(default_factory=lambda: {"l1": 1.0})
    layers: tuple[Layer, ...] = (Layer(), Layer(16))
    folder: Path | None = None
    side: Literal["auto", 1, 2] = "auto"
    low: float = 0.1
    high: float = 0.3

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate:g}")


def test_toml_holds_only_what_differs():
    settings = config.from_toml(Settings, "rate = 1\nkinds = []\n[layer]\nwidth = 4\n[weights]\nl2 = 0.5\n")
    assert settings == Settings(rate=1.0, kinds=(), layer=Layer(4), weights={"l2": 0.5})
    assert isinstance(settings.rate, float)


def test_none_is_written_as_text():
    assert 'depth = "none"' in config.to_toml(Settings(depth=None))
    assert config.from_toml(Settings, 'depth = "none"').depth is None
    assert config.from_dict(Settings, {"depth": None}).depth is None


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: text != "none")
widths = st.builds(
    Layer, width=st.integers(-(2**63), 2**63 - 1), kernel=st.tuples(st.integers(0, 9), st.integers(0, 9))
)


@given(
    st.builds(
        Settings,
        layer=widths,
        rate=st.floats(0, allow_nan=False),
        name=texts,
        bias=st.booleans(),
        depth=st.none() | st.integers(-5, 5),
        precision=st.sampled_from(["32", "bf16-mixed"]),
        kinds=st.lists(texts, max_size=3).map(tuple),
        weights=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
        layers=st.lists(widths, max_size=3).map(tuple),
        folder=st.none() | st.just(Path("some/folder")),
    )
)
def test_round_trip(settings):
    assert config.from_dict(Settings, config.to_dict(settings)) == settings
    assert config.from_toml(Settings, config.to_toml(settings)) == settings


def test_nan_is_written():
    assert math.isnan(config.from_toml(Settings, config.to_toml(Settings(rate=math.nan))).rate)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rat = 1", "unknown key 'rat'; did you mean 'rate'?"),
        ("zzz = 1", "unknown key 'zzz'; there is bias, depth, folder"),
        ("layer = {wdth = 1}", "unknown key 'layer.wdth'; did you mean 'width'?"),
        ("layer = 3", "'layer' must be a table of Layer, got 3 (int)"),
        ("layer = {width = 1.5}", "'layer.width' must be an integer, got 1.5 (float)"),
        ("layer = {width = true}", "'layer.width' must be an integer, got True (bool)"),
        (
            "layer = {kernel = [3]}",
            "'layer.kernel' must be a list of 2 values (an integer, an integer), got [3] (list)",
        ),
        ("layers = [{width = 'a'}]", "'layers[0].width' must be an integer, got 'a' (str)"),
        ("rate = 'fast'", "'rate' must be a number, got 'fast' (str)"),
        ("rate = -1", "Settings refuses its values: rate must not be negative, got -1"),
        ("name = 3", "'name' must be text, got 3 (int)"),
        ("bias = 1", "'bias' must be true or false, got 1 (int)"),
        ("depth = 'deep'", "'depth' must be an integer or none, got 'deep' (str)"),
        ("precision = '23'", "'precision' must be '32' or 'bf16-mixed', got '23' (str)"),
        ("kinds = 'mask'", "'kinds' must be a list of text, got 'mask' (str)"),
        ("kinds = ['a', 1]", "'kinds[1]' must be text, got 1 (int)"),
        ("weights = {l1 = 'x'}", "'weights.l1' must be a number, got 'x' (str)"),
        ("weights = 1", "'weights' must be a table of a number, got 1 (int)"),
    ],
)
def test_wrong_toml_is_one_sentence(text, sentence, tmp_path):
    with pytest.raises(UsageError) as error:
        config.from_toml(Settings, text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as named:
        config.from_toml(Settings, path)
    assert str(named.value).startswith(f"{path}: ")


def test_unreadable_toml_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="the text is not TOML: "):
        config.from_toml(Settings, "rate = ")
    with pytest.raises(InputError, match=r"none\.toml: .*No such file"):
        config.from_toml(Settings, tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        config.from_toml(Settings, tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"rate": "0.5"}, {"rate": 0.5}),
        ({"rate": 2}, {"rate": 2.0}),
        ({"name": "hello"}, {"name": "hello"}),
        ({"name": "32"}, {"name": "32"}),
        ({"name": '"quoted"'}, {"name": "quoted"}),
        ({"bias": "false"}, {"bias": False}),
        ({"depth": "none"}, {"depth": None}),
        ({"depth": None}, {"depth": None}),
        ({"precision": "bf16-mixed"}, {"precision": "bf16-mixed"}),
        ({"precision": "32"}, {"precision": "32"}),
        ({"kinds": '["scarf"]'}, {"kinds": ("scarf",)}),
        ({"layer.width": "4", "layer.kernel": "[1, 1]"}, {"layer": Layer(4, (1, 1))}),
        ({"layer": {"width": 4}}, {"layer": Layer(4)}),
        ({"layer": Layer(2)}, {"layer": Layer(2)}),
        ({"weights.l2": "0.1"}, {"weights": {"l1": 1.0, "l2": 0.1}}),
        ({"folder": "a/b"}, {"folder": Path("a/b")}),
        ({"side": "2"}, {"side": 2}),
        ({"side": "auto"}, {"side": "auto"}),
        ({"low": "0.4", "high": "0.6"}, {"low": 0.4, "high": 0.6}),
        ({"high": "0.6", "layer.width": 4, "low": "0.4"}, {"low": 0.4, "high": 0.6, "layer": Layer(4)}),
        ({"layer": {"width": 4}, "layer.kernel": "[1, 1]"}, {"layer": Layer(4, (1, 1))}),
        ({"layer.width": 4, "layer": Layer(2)}, {"layer": Layer(2)}),
    ],
)
def test_replace(changes, wanted):
    before = Settings()
    assert config.replace(before, changes) == Settings(**wanted)
    assert before == Settings()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer.wdth": "4"}, "unknown key 'layer.wdth'; did you mean 'width'?"),
        ({"rate.x": "4"}, "unknown key 'rate.x': 'rate' is 0.0001 (float) and has no keys"),
        ({"rate": "fast"}, "'rate' must be a number, got 'fast' (str)"),
        ({"rate": "-1"}, "Settings refuses 'rate': rate must not be negative"),
        ({"": "1"}, "unknown key ''"),
        ({"low": "0.5", "rate": 1}, "Settings refuses 'low', 'rate': low must be below high, got 0.5 and 0.3"),
        ({"side": "3"}, "'side' must be 'auto' or 1 or 2, got '3' (str)"),
        ({"bias": "yes"}, "'bias' must be true or false, got 'yes' (str)"),
        ({"depth": "1\nrate = 2"}, "'depth' must be an integer or none"),
    ],
)
def test_replace_refuses(changes, sentence):
    with pytest.raises(UsageError) as error:
        config.replace(Settings(), changes)
    assert sentence in str(error.value)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.integers() | st.none() | st.lists(st.integers())))
def test_anything_is_taken_or_refused(values):
    for call in (lambda: config.replace(Settings(), values), lambda: config.from_dict(Settings, values)):
        with contextlib.suppress(UsageError):
            assert isinstance(call(), Settings)


def test_written_toml_reads_well():
    text = config.to_toml(Settings())
    assert tomllib.loads(text)["layer"] == {"width": 8, "kernel": [3, 3]}
    assert text.startswith("rate = 0.0001\n")
    assert "\n\n[layer]\nwidth = 8\n" in text
