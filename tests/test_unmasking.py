"""A whole photo: what is hidden is restored, and nothing else is touched."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import deocc
from deocc.errors import InputError, UsageError
from deocc.faces import Detector
from deocc.images import read_image, write_image
from deocc.method import Restored, Restorer
from deocc.unmasking import read_occlusion, unmask

PORTRAIT = Path(str(files("deocc").joinpath("portraits", "eileen-collins.jpg")))


class Paint(Restorer):
    """Paints what is hidden in one colour; finds the lower half of every face hidden."""

    finds_occlusion = True
    colour = (1.0, 0.0, 0.0)

    def restore(self, image, occlusion):
        if occlusion is None:
            occlusion = torch.zeros_like(image[:, :1])
            occlusion[:, :, 64:, 32:96] = 1
        painted = torch.tensor(self.colour)[None, :, None, None].expand_as(image)
        return Restored(painted, occlusion, {"doubled": image[:, :1] * 2})


class Told(Paint):
    finds_occlusion = False


class Redraw(Paint):
    redraws_face = True


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return read_image(PORTRAIT)


@pytest.fixture
def hidden(photo: np.ndarray) -> np.ndarray:
    occlusion = np.zeros(photo.shape[:2], np.uint8)
    occlusion[125:170, 190:260] = 255  # mouth and chin
    return occlusion


def test_given_occlusion_is_restored_and_nothing_else(photo, hidden, detector):
    result = unmask(photo, occlusion=hidden, restorer=Told(None), detector=detector)
    assert (result.photo[hidden == 0] == photo[hidden == 0]).all()
    inside = result.photo[130:165, 195:255].reshape(-1, 3).astype(int)
    assert (np.abs(inside - (255, 0, 0)) <= 2).all(), "the seam lies outside what was hidden"
    (face,) = result.faces
    assert face.before.shape == face.after.shape == (128, 128, 3)
    assert face.occlusion.max() == 255
    assert face.extras["doubled"].shape == (1, 128, 128)
    centre = face.matrix[:, :2] @ face.landmarks[2] + face.matrix[:, 2]
    assert 50 < centre[0] < 80, "the matrix leads from the photo into the crop"


def test_found_occlusion(photo, detector):
    result = unmask(photo, restorer=Paint(None), detector=detector)
    changed = (result.photo != photo).any(axis=2)
    (face,) = result.faces
    ys, xs = np.nonzero(changed)
    corners = face.matrix[:, :2] @ np.stack([xs, ys]) + face.matrix[:, 2:]
    assert corners[0].min() > 30
    assert corners[0].max() < 98
    assert corners[1].min() > 62
    assert changed.sum() > 2000


class GreenFinder(Paint):
    """Finds what is more than a tenth green, to the pixel, and paints it white."""

    colour = (1.0, 1.0, 1.0)

    def restore(self, image, occlusion):
        return super().restore(image, (green(image, 1)[:, None] > 0.1).float())


def green(image, axis):
    red, green, blue = (image.select(axis, i) for i in range(3))
    return green - torch.maximum(red, blue)


def test_the_rim_of_what_hides_a_face_does_not_shine_through(photo, hidden, detector):
    photo, hidden = (np.repeat(np.repeat(one, 2, axis=0), 2, axis=1) for one in (photo, hidden))
    photo[hidden > 0] = (0, 255, 0)
    assert green(torch.from_numpy(photo).float(), 2).max() == 255
    result = unmask(photo, restorer=GreenFinder(None), detector=detector)
    # Bicubic cutting and pasting leave a little of it; a seam inside the occlusion would leave all of it.
    assert green(torch.from_numpy(result.photo).float(), 2).max() < 90
    assert (result.photo[hidden > 0].min(axis=1) > 150).mean() > 0.9


def test_redrawing_restorer_changes_the_whole_face(photo, detector):
    result = unmask(photo, restorer=Redraw(None), detector=detector)
    (face,) = result.faces
    x, y = face.landmarks[0].round().astype(int)
    assert (np.abs(result.photo[y, x].astype(int) - (255, 0, 0)) <= 2).all(), "an eye that was visible is redrawn"


def test_path_and_array_give_the_same(photo, hidden, detector, tmp_path):
    write_image(tmp_path / "photo.png", photo)
    write_image(tmp_path / "occlusion.png", hidden)
    one = unmask(photo, occlusion=hidden, restorer=Told(None), detector=detector)
    other = deocc.unmask(
        tmp_path / "photo.png", occlusion=tmp_path / "occlusion.png", restorer=Told(None), detector=detector
    )
    assert (one.photo == other.photo).all()


def test_several_faces(photo, detector):
    smaller = photo[::2, ::2]
    pair = np.zeros((512, 768, 3), np.uint8)
    pair[:, :512], pair[:256, 512:] = photo, smaller
    every = unmask(pair, restorer=Paint(None), detector=detector)
    largest = unmask(pair, restorer=Paint(None), detector=detector, faces="largest")
    assert len(every.faces) == 2
    assert len(largest.faces) == 1
    assert every.faces[0].box[2] > every.faces[1].box[2]
    assert (every.photo[:256, 512:] != pair[:256, 512:]).any()
    assert (largest.photo[:256, 512:] == pair[:256, 512:]).all()


def test_a_black_and_white_photo_stays_one(photo, detector):
    grey = np.repeat(photo.mean(axis=2, keepdims=True).round().astype(np.uint8), 3, axis=2)
    masked = grey.copy()
    masked[125:170, 190:260] = (90, 160, 220)  # whatever colour the mask has
    hidden = np.zeros(photo.shape[:2], np.uint8)
    hidden[125:170, 190:260] = 255
    result = unmask(masked, occlusion=hidden, restorer=Told(None), detector=detector)
    (face,) = result.faces
    assert (face.after == face.after[..., :1]).all()
    assert (result.photo[130:165, 195:255] == 76).all()  # red, as bright as it is


def test_what_is_transparent_in_an_occlusion_is_not_occluded(photo, hidden, detector, tmp_path):
    strokes = np.dstack([np.full_like(photo, 255), hidden])
    cv2.imwrite(str(tmp_path / "strokes.png"), strokes)
    assert (read_occlusion(tmp_path / "strokes.png", photo) == hidden).all()


class Optimise(Paint):
    """Searches for what it paints, by gradients of its own."""

    def restore(self, image, occlusion):
        restored = super().restore(image, occlusion)
        with torch.enable_grad():
            searched = torch.zeros_like(image, requires_grad=True)
            (slope,) = torch.autograd.grad((searched - restored.image).square().sum() / 2, searched)
            found = searched - slope
        return restored._replace(image=found, extras={"searched": found.clamp(0, 1)})


def test_a_restorer_may_use_gradients(photo, hidden, detector):
    one, other = (
        unmask(photo, occlusion=hidden, restorer=restorer, detector=detector)
        for restorer in (Optimise(None), Paint(None))
    )
    assert (one.photo == other.photo).all()
    assert one.faces[0].extras["searched"].shape == (3, 128, 128)


def test_no_face(detector):
    grey = np.full((200, 300, 3), 128, np.uint8)
    with pytest.raises(InputError, match="no face was found"):
        unmask(grey, restorer=Paint(None), detector=detector)


def test_refuses(photo, hidden, detector, tmp_path):
    def run(image=photo, **options):
        return unmask(image, **{"restorer": Told(None), "detector": detector, "occlusion": hidden, **options})

    with pytest.raises(InputError, match="as large as the photo, 512x512, got 512x100"):
        run(occlusion=hidden[:100])
    with pytest.raises(InputError, match="uint8"):
        run(occlusion=hidden / 255)
    with pytest.raises(InputError, match="uint8"):
        run(occlusion=photo)
    with pytest.raises(InputError, match="no file"):
        run(tmp_path / "missing.jpg")
    for wrong in (photo[..., 0], photo / 255.0, photo[:0], [[1]], None):
        with pytest.raises(InputError):
            run(wrong)
    with pytest.raises(UsageError, match="cannot find the occlusion"):
        run(occlusion=None)
    with pytest.raises(UsageError, match="'all' or 'largest'"):
        run(faces="some")
    with pytest.raises(UsageError, match="there is no method"):
        run(restorer=None, method="no-such-method")
