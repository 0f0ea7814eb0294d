from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from deocc.data import IdentityFolder, ImageFolder
from deocc.data.source import read_landmarks
from deocc.errors import InputError


def test_identity_folder_is_a_sequence_of_samples(tmp_path: Path, make, write_landmarks) -> None:
    names = ["b/2.png", "a/1.jpg", "b/deep/3.bmp"]
    make(tmp_path, names)
    write_landmarks(tmp_path, ["a/1.jpg", "b/2.png", "gone/9.jpg"])
    source = IdentityFolder(tmp_path)
    assert source.names == ("a/1.jpg", "b/2.png", "b/deep/3.bmp")
    assert len(source) == 3
    assert source.identities == ("a", "b")
    assert [sample.identity for sample in source] == ["a", "b", "b"]
    assert source[-1] == source[2]
    assert source[2].landmarks is None
    landmarks = source[0].landmarks
    assert landmarks is not None
    assert landmarks.shape == (5, 2)
    assert landmarks.dtype == np.float32
    assert source[1].read().shape == (60, 50, 3)
    assert source[1].attributes == {}
    assert source.index("b/2.png") == 1
    with pytest.raises(InputError, match="no image named 'c'"):
        source.index("c")
    with pytest.raises(IndexError):
        source[3]
    assert pickle.loads(pickle.dumps(source)).names == source.names


def test_where_keeps_a_part(tmp_path: Path, make) -> None:
    source = IdentityFolder(make(tmp_path, ["a/1.png", "b/1.png", "b/2.png"]))
    part = source.where(lambda sample: sample.identity == "b", "only b")
    assert (part.title, part.names, part.identities) == ("only b", ("b/1.png", "b/2.png"), ("b",))
    assert part.index("b/1.png") == 0
    assert len(source) == 3
    with pytest.raises(InputError, match="is left by that choice"):
        source.where(lambda sample: False)


def test_what_is_no_image_is_ignored(tmp_path: Path, make) -> None:
    make(tmp_path, ["a/1.png", "a/.hidden.png", ".cache/2.png"])
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "Thumbs.db").write_bytes(b"\0")
    assert ImageFolder(tmp_path).names == ("a/1.png",)
    assert IdentityFolder(tmp_path).names == ("a/1.png",)
    assert ImageFolder(tmp_path).identities == ()
    assert ImageFolder(tmp_path)[0].identity is None


def test_stray_images_belong_to_nobody(tmp_path: Path, make) -> None:
    make(tmp_path, ["preview.png", "a/1.png"])
    assert IdentityFolder(tmp_path).names == ("a/1.png",)
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(InputError, match="no folders of images"):
        IdentityFolder(tmp_path)


@pytest.mark.parametrize("reader", [ImageFolder, IdentityFolder])
def test_missing_empty_and_file(tmp_path: Path, reader) -> None:
    with pytest.raises(InputError, match="is missing; give a folder"):
        reader(tmp_path / "no")
    with pytest.raises(InputError, match="holds no image"):
        reader(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        reader(tmp_path / "file")


def test_broken_landmarks(tmp_path: Path, make) -> None:
    make(tmp_path, ["a/1.png"])
    path = tmp_path / "landmarks.npz"
    path.write_bytes(b"PK\3\4 truncated")
    with pytest.raises(InputError, match=r"landmarks\.npz cannot be used"):
        IdentityFolder(tmp_path)
    np.savez(path, names=np.array(["a/1.png"]), lm5=np.zeros((1, 4, 2)))
    with pytest.raises(InputError, match=r"wanted names \(N,\) as text and lm5 \(N, 5, 2\)"):
        IdentityFolder(tmp_path)
    np.savez(path, names=np.array(["a/1.png"], object), lm5=np.zeros((1, 5, 2)))
    with pytest.raises(InputError, match="allow_pickle"):
        IdentityFolder(tmp_path)
    np.savez(path, names=np.array(["a/1.png"]), lm5=np.full((1, 5, 2), np.nan))
    assert IdentityFolder(tmp_path)[0].landmarks is None


def test_real_folder_of_identities(shared) -> None:
    source = IdentityFolder(shared("faces/celeba-wild"))
    assert len(source) == 5454
    assert all(sample.landmarks is not None for sample in source)
    assert source[0].read().shape == (160, 160, 3)


def test_a_link_that_leads_back_is_not_followed(make, tmp_path: Path) -> None:
    root = make(tmp_path / "people", ["ann/1.png", "bob/1.png"])
    (root / "latest").symlink_to(".")
    (root / "ann" / "up").symlink_to("..")
    make(tmp_path / "elsewhere", ["1.png"])
    (root / "cid").symlink_to(tmp_path / "elsewhere")
    assert IdentityFolder(root).names == ("ann/1.png", "bob/1.png", "cid/1.png")


def test_whatever_is_damaged_in_landmarks_is_one_sentence(tmp_path: Path) -> None:
    names = np.array([f"{number}.png" for number in range(40)])
    points = np.random.default_rng(0).random((40, 5, 2)).astype(np.float32)
    np.savez_compressed(tmp_path / "whole.npz", names=names, lm5=points)
    whole = (tmp_path / "whole.npz").read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        (tmp_path / "landmarks.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_landmarks(tmp_path / "landmarks.npz")
        except InputError:
            refused += 1
    assert refused > 50
