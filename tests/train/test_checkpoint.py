from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deocc.errors import InputError, UsageError
from deocc.train.checkpoint import Checkpoints, read, write


def optimizer_state(optimizer: type[torch.optim.Optimizer], **options: Any) -> dict[str, Any]:
    """The state of an optimizer after two steps on a channels_last network (which LBFGS cannot train)."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    if optimizer is not torch.optim.LBFGS:
        network.to(memory_format=torch.channels_last)
    made = optimizer(network.parameters(), **options)

    def loss() -> torch.Tensor:
        made.zero_grad()
        value = network(torch.ones(1, 3, 5, 5)).square().sum()
        value.backward()
        return value

    made.step(loss)  # type: ignore[arg-type]
    made.step(loss)  # type: ignore[arg-type]
    return made.state_dict()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.9)}),
        (torch.optim.RMSprop, {"lr": 1e-7 / 3}),
        (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 2}),
    ],
)
def test_the_state_of_optimizers_comes_back_to_the_bit(
    tmp_path: Path, optimizer: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    state = optimizer_state(optimizer, **options)
    write(tmp_path / "a.safetensors", {"state": state})
    assert same(read(tmp_path / "a.safetensors")["state"], state)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        (),
        {1: "a", "1": "b"},
        {"tensor": 1, "dict": [], "tuple": ({},)},
        (1, 2.0, True, None, "ü", [float("inf")]),
        0.1 + 0.2,
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.arange(5, dtype=torch.int64)[::2],
        torch.rand(2, 3, dtype=torch.float64).t(),
        torch.rand(4).bfloat16(),
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(1, 6).expand(3, 6),
    ],
    ids=repr,
)
def test_values_come_back(tmp_path: Path, value: Any) -> None:
    write(tmp_path / "a.safetensors", {"value": value})
    back = read(tmp_path / "a.safetensors")["value"]
    if isinstance(value, torch.Tensor):
        assert back.dtype == value.dtype
        assert torch.equal(back, value)
    else:
        assert same(back, value)


def test_tensors_that_share_memory_are_held_apart(tmp_path: Path) -> None:
    tied = torch.rand(3)
    write(tmp_path / "a.safetensors", {"one": tied, "other": tied, "part": tied[:2]})
    back = read(tmp_path / "a.safetensors")
    assert torch.equal(back["one"], tied)
    assert torch.equal(back["other"], tied)
    assert torch.equal(back["part"], tied[:2])


@pytest.mark.parametrize("value", [{1, 2}, object(), {(1, 2): 3}, b"bytes", lambda: None])
def test_what_it_cannot_hold_is_refused_by_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UsageError, match=r"a checkpoint cannot hold .* at /a/0"):
        write(tmp_path / "a.safetensors", {"a": [value]})
    assert list(tmp_path.iterdir()) == []


def test_any_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"step": 7, "weights": torch.rand(50), "more": {"a": torch.arange(3)}})
    good = path.read_bytes()
    draws = random.Random(0)
    for _ in range(300):
        data = bytearray(good)
        kind = draws.choice(["flip", "cut", "longer", "zeros"])
        place = draws.randrange(len(data))
        if kind == "flip":
            data[place] ^= 1 << draws.randrange(8)
        elif kind == "cut":
            del data[place:]
        elif kind == "longer":
            data += bytes(draws.randrange(1, 50))
        else:
            data[place:] = bytes(len(data) - place)
        if data == good:
            continue
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.safetensors"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"x", b"\x80\x04", bytes(100), b"\xff" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors is damaged"):
        read(tmp_path / "a.safetensors")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.safetensors"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(InputError):
        read(tmp_path)


def test_weights_are_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors is not a checkpoint"):
        read(tmp_path / "a.safetensors")


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    for step in (5, 50, 500):
        checkpoints.save(step, {"step": step})
    assert [path.name for path in checkpoints.paths()] == ["step-00000500.safetensors", "step-00000050.safetensors"]
    assert checkpoints.latest() == {"step": 500}


def test_a_damaged_one_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})
    (tmp_path / "step-00000002.safetensors").write_bytes(b"damage")
    with pytest.warns(RuntimeWarning, match="trying the checkpoint before it"):
        assert checkpoints.latest() == {"step": 1}
    checkpoints.save(2, {"step": 2})
    assert [path.name for path in checkpoints.paths()] == ["step-00000002.safetensors", "step-00000001.safetensors"]


def test_one_that_cannot_be_opened_or_is_newer_is_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})

    def refuse(*args: object, **options: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.safe_open", refuse)
        with pytest.raises(InputError, match=r"cannot be read \(.*Too many open files"):
            checkpoints.latest()
    with monkeypatch.context() as patch:
        patch.setattr("deocc.train.checkpoint.FORMAT", "deocc-checkpoint-2")
        with pytest.raises(InputError, match="its format is 'deocc-checkpoint-1', not"):
            checkpoints.latest()
    assert checkpoints.latest() == {"step": 2}
