"""What canet promises beyond the contract."""

import math

import numpy as np
import pytest
import torch
from deocc_canet.config import Augmentation, Config
from deocc_canet.network import Network, settle, spread
from deocc_canet.restorer import Restorer
from deocc_canet.training import OccludedFaces

import deocc
from deocc import config, plugins
from deocc.faces import Crop


class Faces:
    """Packed faces in memory: smooth pictures with the template's landmarks."""

    crop = Crop(128, 0.75)
    title = "synthetic"

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        small = torch.rand(count, 3, 8, 8, generator=generator)
        large = torch.nn.functional.interpolate(small, size=128, mode="bilinear")
        self.images = (large * 255).byte().permute(0, 2, 3, 1).numpy()
        self.landmarks = np.repeat(self.crop.template()[None], count, axis=0)

    def __len__(self) -> int:
        return len(self.images)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    torch.manual_seed(0)
    return Restorer(config.recipe(plugins.get("canet"), "smoke"))


def test_the_completer_never_sees_an_occluded_pixel(restorer) -> None:
    image = torch.rand(1, 3, 64, 64)
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 20:50, 10:40] = 1
    other = torch.where(hole > 0, torch.rand_like(image), image)
    assert not torch.equal(image, other)
    assert torch.equal(restorer(image, hole).extras["drawn"], restorer(other, hole).extras["drawn"])


def test_visible_pixels_come_back_as_they_are(restorer) -> None:
    image = torch.rand(2, 3, 45, 51)
    restored = restorer(image)
    visible = (restored.occlusion == 0).expand_as(image)
    assert torch.equal(restored.image[visible], image[visible])
    assert restored.image.shape == image.shape
    assert restored.extras["probability"].shape == (2, 1, 45, 51)


def test_a_partly_covered_pixel_is_completed_as_a_whole(restorer) -> None:
    occlusion = torch.zeros(1, 1, 64, 64)
    occlusion[..., 10:20, 10:20] = 0.3
    restored = restorer(torch.rand(1, 3, 64, 64), occlusion)
    assert torch.equal(restored.occlusion, (occlusion > 0).float())


def test_spread_grows_by_the_radius() -> None:
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    assert spread(point, 2).sum() == 25
    assert spread(point, 0) is point


def test_small_gaps_close_and_the_outline_grows_by_the_margin() -> None:
    logits = torch.full((1, 1, 40, 40), -1.0)
    logits[..., 10:30, 10:30] = 1
    logits[..., 18:22, 18:22] = -1
    found = settle(logits, closing=3, margin=2)
    assert found[..., 8:32, 8:32].all()
    assert found.sum() == 24 * 24
    assert settle(logits, closing=0, margin=0).sum() == 20 * 20 - 16


def test_examples_follow_from_index_and_seed() -> None:
    faces = Faces(3)
    first, again = (OccludedFaces(faces, Augmentation(), seed=1)[7] for _ in range(2))
    other = OccludedFaces(faces, Augmentation(), seed=2)[7]
    for name in ("image", "occluded", "occlusion"):
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["occluded"], other["occluded"])
    visible = (first["occlusion"] == 0).expand_as(first["image"])
    assert torch.equal(first["image"][visible], first["occluded"][visible])


def test_augmentation_moves_the_landmarks_with_the_face() -> None:
    """Five bright dots drawn at the landmarks are still at the landmarks after shifting, turning and flipping."""
    from deocc_canet.training import _augment

    landmarks = Crop(128, 0.75).template()
    image = np.zeros((128, 128, 3), np.uint8)
    for number, (x, y) in enumerate(np.rint(landmarks).astype(int)):
        image[y - 2 : y + 3, x - 2 : x + 3] = 80 + 40 * number
    for seed in range(8):
        moved, points = _augment(image, landmarks, Augmentation(light=0.0), np.random.default_rng(seed))
        for number, (x, y) in enumerate(np.rint(points).astype(int)):
            value = int(moved[y, x, 0])
            source = number if value == pytest.approx(80 + 40 * number, abs=25) else {0: 1, 1: 0, 3: 4, 4: 3}[number]
            assert value == pytest.approx(80 + 40 * source, abs=25)


def test_edges_see_patterns_and_no_shift_of_colour() -> None:
    from deocc_canet.training import _edges_loss

    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 4:12, 4:12] = 1
    error = torch.full((1, 3, 16, 16), 0.3)
    assert _edges_loss(error, hole) == 0
    error[..., ::2] = -0.3  # stripes: every difference across is 0.6, none is down
    assert float(_edges_loss(error, hole)) == pytest.approx(0.6)
    assert _edges_loss(error, torch.zeros_like(hole)) == 0


@pytest.mark.parametrize("stage", ["complete", "refine", "polish"])
def test_a_stage_learns_what_it_is_asked_to(stage: str) -> None:
    """A few steps on one batch lower its loss, and what is exported fits the restorer."""
    from deocc.train import SingleDevice

    method = plugins.get("canet")
    settings = config.recipe(method, "smoke")
    settings = config.replace(settings, {f"{stage}.learning_rate": "2e-3", f"{stage}.warmup": "1"})
    settings = config.replace(settings, {f"{stage}.training.steps": "40"})
    torch.manual_seed(0)
    task = method.resolve(stage)(settings)
    examples = task.dataset(Faces(4), train=True)
    batch = {name: torch.stack([examples[i][name] for i in range(4)]) for name in examples[0]}
    logs = [task.step(batch, SingleDevice(), index) for index in range(30)]
    for term in ("find", "whole"):
        assert float(logs[-1][term]) < 0.8 * float(logs[0][term])
    Restorer(settings).network.load_state_dict(task.exports()["restorer"])
    assert all(math.isfinite(value) for value in task.evaluate(batch).values())


def test_packaged_weights_fit_and_are_small() -> None:
    path = plugins.packaged_weights(plugins.get("canet"), "restorer")
    assert path is not None
    assert path.stat().st_size <= 16 * 2**20
    restorer = deocc.restorer("canet")
    assert isinstance(restorer.network, Network)
    assert isinstance(restorer.config, Config)


def test_packaged_weights_find_and_restore_a_masked_portrait(portrait) -> None:
    """On a portrait of nobody it was trained on: the mask is found, and the face comes closer to the true one."""
    from deocc import metrics
    from deocc.images import to_tensor
    from deocc.occlude import occlude

    restorer, telea = deocc.restorer("canet"), deocc.restorer("opencv-telea")
    made = occlude(portrait.image, portrait.landmarks, seed=3, kinds=("surgical",))
    hole = (torch.from_numpy(made.occlusion)[None, None] > 0).float()
    image, occluded = to_tensor(portrait.image), to_tensor(made.image)
    restored = restorer(occluded)
    assert float(metrics.occlusion_iou(restored.occlusion, hole)) > 0.8  # 0.87 on average over test faces
    ours, theirs = (metrics.psnr(result.image, image, where=hole) for result in (restored, telea(occluded, hole)))
    assert float(ours) > float(theirs)
    untouched = restorer(image)
    assert float(untouched.occlusion.mean()) < 0.05
