from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deocc.data import IdentityFolder, PackedFaces, PairedSampler, UnpairedSampler, pack
from deocc.errors import UsageError
from deocc.faces import Crop


def occlude(image, landmarks, seed):
    """Blackens a row that the seed chooses."""
    occlusion = np.zeros(image.shape[:2], np.uint8)
    occlusion[seed % len(image)] = 255
    return SimpleNamespace(image=np.where(occlusion[..., None] > 0, 0, image), occlusion=occlusion, parameters={})


@pytest.fixture
def faces(tmp_path: Path, make, write_landmarks) -> PackedFaces:
    names = [f"{person}/{number}.png" for person in "abc" for number in range(3)]
    root = make(tmp_path / "source", names)
    write_landmarks(root, names)
    pack(IdentityFolder(root), tmp_path / "pack", crop=Crop(64, 0.75))
    return PackedFaces(tmp_path / "pack")


def test_paired_is_the_same_face_masked_anew_every_epoch(faces: PackedFaces) -> None:
    pairs = PairedSampler(faces, seed=3, occlude=occlude)
    assert len(pairs) == len(list(pairs)) == 9
    item = pairs[4]
    np.testing.assert_array_equal(item.full, faces.images[4])
    assert item.identity == faces.identities[4]
    hidden = item.occlusion > 0
    assert hidden.any()
    np.testing.assert_array_equal(item.masked[~hidden], item.full[~hidden])
    np.testing.assert_array_equal(pairs[9 + 4].full, item.full)
    assert len({pairs[9 * epoch + 4].occlusion.tobytes() for epoch in range(6)}) > 3


def test_paired_is_deterministic(faces: PackedFaces) -> None:
    first, again, other = (PairedSampler(faces, seed=seed, occlude=occlude) for seed in (1, 1, 2))
    # In another order: an item depends on nothing but its index.
    backwards = {index: again[index].occlusion for index in reversed(range(27))}
    assert all((first[index].occlusion == backwards[index]).all() for index in range(27))
    assert any((first[index].occlusion != other[index].occlusion).any() for index in range(9))
    with pytest.raises(IndexError):
        first[-1]


def test_paired_with_the_real_occlusions(faces: PackedFaces) -> None:
    item = PairedSampler(faces, seed=0)[0]
    assert item.masked.shape == item.full.shape == (64, 64, 3)
    assert item.occlusion.shape == (64, 64)
    assert item.occlusion.max() == 255


def test_unpaired_takes_every_full_face_once_an_epoch(faces: PackedFaces) -> None:
    masked, full = faces.subset([0, 1, 2, 3]), faces.subset([4, 5, 6, 7])
    sampler = UnpairedSampler(masked, full, seed=5)
    number = {face.image.tobytes(): position for position, face in enumerate(faces)}
    drawn = [number[sampler[index].full.tobytes()] for index in range(40)]
    epochs = [drawn[4 * epoch : 4 * epoch + 4] for epoch in range(10)]
    assert all(sorted(epoch) == [4, 5, 6, 7] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert [number[item.masked.tobytes()] for item in sampler] == [0, 1, 2, 3]
    again = UnpairedSampler(masked, full, seed=5)
    assert [number[again[index].full.tobytes()] for index in reversed(range(40))] == drawn[::-1]


def test_unpaired_with_synthetic_masks_and_fewer_full_faces(faces: PackedFaces) -> None:
    pairs = PairedSampler(faces, seed=1, occlude=occlude)
    sampler = UnpairedSampler(pairs, faces.subset([1, 2]), seed=0)
    assert len(sampler) == 9
    np.testing.assert_array_equal(sampler[11].masked, pairs[11].masked)
    assert {item.full.tobytes() for item in sampler} == {faces.images[1].tobytes(), faces.images[2].tobytes()}


def test_unpaired_refuses_what_does_not_fit(faces: PackedFaces, tmp_path: Path) -> None:
    pack(IdentityFolder(tmp_path / "source"), tmp_path / "small", crop=Crop(32, 0.75))
    with pytest.raises(UsageError, match="must share one crop"):
        UnpairedSampler(faces, PackedFaces(tmp_path / "small"))
    with pytest.raises(UsageError, match="got 9 masked and 0 full ones"):
        UnpairedSampler(faces, faces.subset([]))
