"""What canet promises beyond the contract."""

import math

import numpy as np
import pytest
import torch
from deocc_canet.config import Augmentation, Config
from deocc_canet.faces import OccludedFaces, augment
from deocc_canet.losses import edges_loss, field_loss, gate_loss, identity_losses, patch_mean
from deocc_canet.network import Completer, Network, Output, ResidualBlock, settle, soften, spread
from deocc_canet.photographs import Photographs, light, reclothe
from deocc_canet.restorer import Restorer
from deocc_canet.training import FinderTraining, JointTraining, SiameseInference
from safetensors.torch import save_file

import deocc
from deocc import config, plugins
from deocc.errors import UsageError
from deocc.faces import Crop
from deocc.losses import LPIPS, StyleLoss
from deocc.occlude import occlude
from deocc.ops import area_downsample
from deocc.train import SingleDevice


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
        # u grows to the right and v downwards over the middle of the crop.
        self.fields = np.zeros((count, 128, 128, 3), np.uint8)
        ramp = np.linspace(0, 255, 64).round().astype(np.uint8)
        self.fields[:, 32:96, 32:96, 0] = ramp
        self.fields[:, 32:96, 32:96, 1] = ramp[:, None]
        self.fields[:, 32:96, 32:96, 2] = 255

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
    for name, drawn in restorer(image, hole).extras.items():
        assert torch.equal(drawn, restorer(other, hole).extras[name]), name


def test_visible_pixels_come_back_as_they_are(restorer) -> None:
    image = torch.rand(2, 3, 45, 51)
    restored = restorer(image)
    visible = (restored.occlusion == 0).expand_as(image)
    assert torch.equal(restored.image[visible], image[visible])
    assert restored.image.shape == image.shape
    assert restored.extras["probability"].shape == (2, 1, 45, 51)


def test_a_partly_covered_pixel_is_completed_as_a_whole(restorer) -> None:
    occlusion = torch.zeros(1, 1, 64, 64)
    occlusion[..., 10:20, 10:20] = 0.2
    restored = restorer(torch.rand(1, 3, 64, 64), occlusion)
    assert torch.equal(restored.occlusion, (occlusion > 0).float())


def test_a_faintly_covered_pixel_stays_as_it_is(restorer) -> None:
    image, occlusion = torch.rand(1, 3, 64, 64), torch.full((1, 1, 64, 64), 0.04)
    occlusion[..., 20:40, 20:40] = 1
    restored = restorer(image, occlusion)
    assert torch.equal(restored.occlusion, (occlusion == 1).float())
    faint = (occlusion < 1).expand_as(image)
    assert torch.equal(restored.image[faint], image[faint])


@pytest.mark.parametrize("given", [True, False])
def test_a_large_batch_is_restored_a_few_at_a_time(monkeypatch, given: bool) -> None:
    restorer = Restorer(config.recipe(plugins.get("canet"), "smoke"))
    image, occlusion = torch.rand(5, 3, 32, 48), torch.zeros(5, 1, 32, 48)
    occlusion[:, :, 8:20, 8:20] = 1
    whole = restorer.restore(image, occlusion if given else None)
    seen: list[int] = []
    monkeypatch.setattr("deocc_canet.restorer._AT_ONCE", 2 * 32 * 48)
    restorer.network.completer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    parts = restorer.restore(image, occlusion if given else None)
    assert seen == [2, 2, 1]
    torch.testing.assert_close(parts.image, whole.image, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.occlusion, whole.occlusion)
    assert parts.extras.keys() == whole.extras.keys()
    for name, extra in whole.extras.items():
        torch.testing.assert_close(parts.extras[name], extra, rtol=0, atol=1e-5)


def test_a_block_without_gradients_does_the_same_and_leaves_its_input() -> None:
    block, x = ResidualBlock(8), torch.randn(2, 8, 6, 5)
    torch.nn.init.normal_(block.second.weight)
    before = x.clone()
    with torch.no_grad():
        result = block(x)
    assert torch.equal(result, block(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("radius", [1, 2, 8])
def test_spread_grows_by_the_radius(radius: int) -> None:
    values = torch.randn(2, 1, 7, 9)
    expected = torch.nn.functional.max_pool2d(values, 2 * radius + 1, 1, radius)
    assert torch.equal(spread(values, radius), expected)
    assert spread(values, 0) is values


def test_the_completer_sees_less_of_a_pixel_the_more_it_is_occluded() -> None:
    occlusion = torch.tensor([0.0, 0.1, 0.125, 0.25, 0.5, 1.0])
    expected = torch.tensor([0.0, 0.0, 0.375, 0.75, 1.0, 1.0])
    assert torch.equal(soften(occlusion, Config(threshold=0.1)), expected)


@pytest.mark.parametrize(("closing", "closed"), [(0, 0), (1, 2), (3, 6)])
def test_gaps_of_up_to_twice_the_closing_are_closed(closing: int, closed: int) -> None:
    for gap in (1, 2, 3, 6, 7):
        probability = torch.full((1, 1, 40, 40), 0.1)
        probability[..., 10:30, 10:30] = 0.25
        probability[..., 16 : 16 + gap, 10:30] = 0.1
        expected = torch.where(probability > 0.2, 0.75, 0.0)
        if gap <= closed:
            expected[..., 16 : 16 + gap, 10:30] = 1
        assert torch.equal(settle(probability, Config(threshold=0.2, closing=closing)), expected), gap


def test_training_hides_by_true_and_found_occlusions_and_now_and_then_as_people_draw() -> None:
    task = JointTraining(config.recipe(plugins.get("canet"), "smoke"))
    occlusion = torch.zeros(2, 1, 40, 40)
    occlusion[..., 10:20, 10:20] = 0.25
    logits = torch.full_like(occlusion, -20)
    logits[..., 25:30, 25:30] = 20
    for step in range(3):
        hole = task._hole(occlusion, logits, step)
        assert torch.equal(hole[0], soften(occlusion, task.config)[0])
        assert torch.equal(hole[1], settle(torch.sigmoid(logits), task.config)[1])
    for step, side in ((3, 12), (7, 14)):
        drawn = task._hole(occlusion, logits, step)
        assert drawn.unique().tolist() == [0, 1]
        assert drawn[0].sum() == side**2
        assert drawn[1].sum() == (side - 5) ** 2


def test_examples_follow_from_index_and_seed() -> None:
    faces = Faces(3)
    first, again = (OccludedFaces(faces, Augmentation(), seed=1)[7] for _ in range(2))
    other = OccludedFaces(faces, Augmentation(), seed=2)[7]
    for name in ("image", "occluded", "occlusion"):
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["occluded"], other["occluded"])
    visible = (first["occlusion"] == 0).expand_as(first["image"])
    assert torch.equal(first["image"][visible], first["occluded"][visible])


def test_two_views_are_one_image_occluded_twice() -> None:
    item = OccludedFaces(Faces(3), Augmentation(unoccluded=0.0), seed=1, views=2)[4]
    assert not torch.equal(item["occlusion"], item["other_occlusion"])
    visible = ((item["occlusion"] == 0) & (item["other_occlusion"] == 0)).expand_as(item["occluded"])
    assert visible.any()
    assert torch.equal(item["occluded"][visible], item["other_occluded"][visible])


def test_augmentation_moves_landmarks_and_field_with_the_face() -> None:
    """Five bright dots drawn at the landmarks, and u there, are still at the landmarks after all movements."""
    landmarks = Crop(128, 0.75).template()
    image = np.zeros((128, 128, 3), np.uint8)
    field = np.full((128, 128, 3), 255, np.uint8)
    field[:, :, 0] = np.arange(128) * 2
    for number, (x, y) in enumerate(np.rint(landmarks).astype(int)):
        image[y - 2 : y + 3, x - 2 : x + 3] = 80 + 40 * number
    mirrored = 0
    for seed in range(8):
        moved, points, warped = augment(image, landmarks, field, Augmentation(light=0.0), np.random.default_rng(seed))
        for number, (x, y) in enumerate(np.rint(points).astype(int)):
            value = int(moved[y, x, 0])
            source = number if value == pytest.approx(80 + 40 * number, abs=25) else {0: 1, 1: 0, 3: 4, 4: 3}[number]
            mirrored += source != number
            assert value == pytest.approx(80 + 40 * source, abs=25)
            u = 2 * landmarks[source, 0]
            assert int(warped[y, x, 0]) == pytest.approx(u if source == number else 255 - u, abs=5) or source == 2
    assert mirrored


def test_the_gate_loss_is_least_where_alpha_is_the_occlusion() -> None:
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., 2:6, 2:6] = 1
    open_in_the_hole = (20 * hole - 10).expand(1, 3, 8, 8)
    assert float(gate_loss(open_in_the_hole, hole)) == pytest.approx(0, abs=1e-4)
    assert float(gate_loss(-open_in_the_hole, hole)) == pytest.approx(10, abs=1e-3)
    shut = torch.full((1, 3, 8, 8), -30.0, requires_grad=True)
    gate_loss(shut, hole).backward()
    assert bool((shut.grad[hole.expand_as(shut) > 0] < 0).all())  # however far shut, it is pushed open


def test_edges_see_patterns_and_no_shift_of_colour() -> None:
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 4:12, 4:12] = 1
    error = torch.full((1, 3, 16, 16), 0.3)
    assert edges_loss(error, hole) == 0
    error[..., ::2] = -0.3  # stripes: every difference across is 0.6, none is down
    assert float(edges_loss(error, hole)) == pytest.approx(0.6)
    assert edges_loss(error, torch.zeros_like(hole)) == 0


def test_a_discriminator_is_asked_about_what_was_completed() -> None:
    verdict = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 2)
    completed = torch.zeros(1, 1, 8, 8)
    assert patch_mean(verdict, completed) == 0
    completed[..., :4, 4:] = 1  # the whole of one patch
    assert float(patch_mean(verdict, completed)) == pytest.approx(2)
    completed[..., 4:, 4:6] = 1  # half of another
    assert float(patch_mean(verdict, completed)) == pytest.approx((2 + 4 / 2) / 1.5)


def test_the_field_loss_is_the_mean_distance() -> None:
    field = torch.zeros(2, 2, 4, 4)
    other = field.clone()
    other[0, 0], other[0, 1] = 0.3, 0.4
    assert float(field_loss(field, other)) == pytest.approx(0.25, abs=1e-3)
    moved = field.clone().requires_grad_()
    field_loss(moved, field).backward()
    assert torch.isfinite(moved.grad).all()


def test_the_identity_loss_is_the_squared_distance_of_embeddings() -> None:
    recognizer = deocc.recognizer("mobilefacenet")
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 2, 3, 112, 112, generator=generator)
    wanted = 2 - 2 * (recognizer(one) * recognizer(other)).sum(1).mean()
    found, maps = identity_losses(recognizer, one, other, 1.0, SingleDevice(), views=False)
    assert float(found) == pytest.approx(float(wanted), abs=1e-3)
    assert float(maps) == 0
    same = identity_losses(recognizer, one, one, 1.0, SingleDevice(), views=True, layers=["conv2"])
    assert [float(distance) for distance in same] == pytest.approx([0, 0], abs=1e-6)


def test_the_identity_loss_by_maps_is_the_embeddings_at_every_position_of_each() -> None:
    """The last layer's only position is the embedding; a map's distance is the mean over its positions."""
    recognizer = deocc.recognizer("mobilefacenet")
    network = recognizer.network
    one, other = torch.rand(2, 2, 3, 112, 112, generator=torch.Generator().manual_seed(0))

    def found(*layers: str) -> list[float]:
        losses = identity_losses(recognizer, one, other, 1.0, SingleDevice(), views=False, layers=layers)
        return [float(loss) for loss in losses]

    embedding, at_the_end = found("bn")
    assert at_the_end == pytest.approx(embedding, rel=1e-4)
    first = [network.conv1((faces - network.mean) / network.std) for faces in (one, other)]
    unit = [maps / maps.norm(dim=1, keepdim=True) for maps in first]
    wanted = float((unit[0] - unit[1]).square().sum(1).mean())
    assert found("conv1")[1] == pytest.approx(wanted, rel=1e-2)
    assert found("conv1", "bn")[1] == pytest.approx(wanted + embedding, rel=1e-2)
    assert not any(module._forward_hooks for module in network.modules())
    network.unused = torch.nn.Identity()
    with pytest.raises(UsageError, match="layer unused must give a tensor, got None"):
        found("unused")


@pytest.mark.parametrize("views", [False, True])
def test_the_identity_loss_sees_colours(views: bool) -> None:
    """Skin of another colour and the same brightness is another face, to the embedding and to the maps."""
    recognizer = deocc.recognizer("mobilefacenet")
    true = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
    image = true + torch.tensor([0.2, -0.13, 0.144]).view(3, 1, 1)  # 0 by the weights of ITU-R BT.601
    losses = identity_losses(recognizer, image, true, 1.0, SingleDevice(), views=views, layers=["features.4"])
    assert min(float(loss) for loss in losses) > 0.01


def settings_of(**changes: str):
    return config.replace(
        config.recipe(plugins.get("canet"), "smoke"), {k.replace("__", "."): v for k, v in changes.items()}
    )


def batch_of(task) -> dict[str, torch.Tensor]:
    examples = task.dataset(Faces(4), train=True)
    return {name: torch.stack([examples[i][name] for i in range(4)]) for name in examples[0]}


def test_every_selected_layer_gives_an_image_and_a_field() -> None:
    settings = settings_of(architecture__dense_field="true", architecture__layers="[1, 3]")
    completer = Completer(settings.architecture)
    outputs = completer(torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64))
    assert [tuple(output.image.shape) for output in outputs] == [(2, 3, 64, 64), (2, 3, 16, 16)]
    assert [tuple(output.field.shape) for output in outputs] == [(2, 2, 64, 64), (2, 2, 16, 16)]
    plain = Completer(settings_of(architecture__fusion="false").architecture)
    output = plain(torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))[0]
    assert output.attention is None
    assert output.field is None


@pytest.mark.parametrize("layers", ["[2, 3]", "[1, 4]", "[1, 1]", "[]"])
def test_layers_that_do_not_exist_are_named(layers: str) -> None:
    with pytest.raises(UsageError, match=r"layers 1 .* to 3"):
        Completer(settings_of(architecture__layers=layers).architecture)


def test_contrast_pulls_the_two_views_together_and_the_queue_moves() -> None:
    method = plugins.get("canet")
    torch.manual_seed(0)
    task = method.resolve("siamese")(settings_of(siamese__training__steps="40", siamese__learning_rate="0.1"))
    batch = batch_of(task)
    slow = task.key.head.weight.clone()
    logs = [task.step(batch, SingleDevice(), index) for index in range(20)]
    assert float(logs[-1]["contrast"]) < float(logs[1]["contrast"])
    assert int(task.keys.pointer) == 20 * 4 % 64
    assert not torch.equal(task.key.head.weight, slow)
    assert not torch.equal(task.key.head.weight, task.query.head.weight)


def test_the_key_encoder_follows_by_the_momentum() -> None:
    task = plugins.get("canet").resolve("siamese")(settings_of())
    with torch.no_grad():
        task.query.head.weight.add_(1.0)
    before, now = task.key.head.weight.clone(), task.query.head.weight.detach().clone()
    task.step(batch_of(task), SingleDevice(), 0)
    torch.testing.assert_close(task.key.head.weight, 0.9 * before + 0.1 * now)


def test_the_encoder_goes_into_the_second_stage_unless_contrast_is_off() -> None:
    method = plugins.get("canet")
    first = method.resolve("siamese")(settings_of())
    with torch.no_grad():
        first.query.encoder.stem.weight.fill_(0.25)
    exports = first.exports()
    second = method.resolve("joint")(settings_of())
    second.start_from(exports)
    assert bool((second.completer.encoder.stem.weight == 0.25).all())
    assert bool((second.average.completer.encoder.stem.weight == 0.25).all())
    without = method.resolve("joint")(settings_of(contrastive="false"))
    without.start_from(exports)
    assert not bool((without.completer.encoder.stem.weight == 0.25).any())
    torch.testing.assert_close(
        without.completer.decoder.last.weight, second.completer.decoder.last.weight, rtol=0, atol=0
    )


@pytest.fixture
def alexnet(tmp_path) -> str:
    """A small network with the layout of AlexNet and the heads of LPIPS."""
    generator = torch.Generator().manual_seed(0)
    tensors, channels = {}, 3
    for index, (width, kernel) in enumerate(((4, 11), (6, 5), (8, 3), (6, 3), (6, 3))):
        tensors[f"conv{index}.weight"] = 0.2 * torch.randn(width, channels, kernel, kernel, generator=generator)
        tensors[f"conv{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
        tensors[f"lin{index}"] = torch.rand(1, width, 1, 1, generator=generator)
        channels = width
    save_file(tensors, tmp_path / "alexnet.safetensors")
    return str(tmp_path / "alexnet.safetensors")


def test_style_and_perceptual_losses_are_terms_of_the_second_stage(alexnet) -> None:
    """Each is its weight times the mean over the texture layers, and reaches what draws there."""
    names = {"style": "240", "perceptual": "2"}
    settings = settings_of(
        joint__losses__texture_layers="[1, 2]",
        **{f"joint__losses__{name}": weight for name, weight in names.items()},
        **{f"joint__losses__{name}_weights": alexnet for name in names},
    )
    torch.manual_seed(0)
    task = JointTraining(settings)
    image, drawn = torch.rand(2, 2, 3, 128, 128)
    pictures = [area_downsample(drawn, (side, side)).requires_grad_() for side in (128, 64, 32)]
    terms = task._texture([Output(one, None, None) for one in pictures], image, SingleDevice())
    for name, measure in (("style", StyleLoss(alexnet)), ("perceptual", LPIPS(alexnet))):
        each = [measure(one, area_downsample(image, one.shape[2:])).mean() for one in pictures[:2]]
        assert terms[name].item() == pytest.approx(float(names[name]) * sum(one.item() for one in each) / 2, rel=1e-4)
        found = torch.autograd.grad(terms[name], pictures, retain_graph=True, allow_unused=True)
        assert all(bool(gradient.any()) for gradient in found[:2])
        assert found[2] is None
    logs = task.step(batch_of(task), SingleDevice(), 0)
    assert all(float(logs[name]) > 0 for name in names)


@pytest.mark.parametrize("term", ["style", "perceptual"])
def test_a_loss_without_its_file_names_the_setting(term: str) -> None:
    with pytest.raises(UsageError, match=f"joint.losses.{term} needs joint.losses.{term}_weights, a safetensors file"):
        JointTraining(settings_of(**{f"joint__losses__{term}": "1"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture.widths": "[]"}, "architecture.widths must hold one number at least"),
        ({"architecture.widths": "[8, 9]"}, r"divisible by the 4 heads of the attention, got \(8, 9\)"),
        ({"architecture.widths": "[8, -8]"}, r"architecture.widths must be at least 1, got \(8, -8\)"),
        ({"architecture.finder_widths": "[]"}, "architecture.finder_widths must hold one number at least"),
        ({"siamese.learning_rate": "-1"}, "siamese.learning_rate must be at least 0, got -1"),
        ({"siamese.momentum": "1.5"}, "siamese.momentum must be from 0 to 1, got 1.5"),
        ({"siamese.clip": "0"}, "siamese.clip must be at least 1e-06, got 0"),
        ({"joint.average": "2"}, "joint.average must be from 0 to 1, got 2"),
        ({"joint.losses.reconstruction": "-1"}, "losses.reconstruction must be at least 0, got -1"),
        ({"joint.losses.texture_layers": "[]"}, "losses.texture_layers must hold one layer at least"),
        ({"augmentation.unoccluded": "2"}, "augmentation.unoccluded must be from 0 to 1, got 2"),
        ({"finder.plain": "nan"}, "finder.plain must be from 0 to 1, got nan"),
        ({"threshold": "-1"}, "threshold must be from 0 to 1, got -1"),
        ({"closing": "-1"}, "closing must be at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.replace(Config(), changes)


@pytest.mark.parametrize("given", [False, True])
def test_an_empty_batch_has_empty_extras(restorer, given: bool) -> None:
    image = torch.rand(0, 3, 48, 40)
    restored = restorer(image, image[:, :1] if given else None)
    some = restorer(torch.rand(2, 3, 48, 40), torch.zeros(2, 1, 48, 40) if given else None)
    assert restored.image.shape == (0, 3, 48, 40)
    assert restored.occlusion.shape == (0, 1, 48, 40)
    assert {name: value.shape[1:] for name, value in restored.extras.items()} == {
        name: value.shape[1:] for name, value in some.extras.items()
    }
    assert all(len(value) == 0 for value in restored.extras.values())


@pytest.mark.parametrize("fusion", ["true", "false"])
def test_the_second_stage_learns_what_it_is_asked_to(fusion: str, tmp_path) -> None:
    """A few steps on one batch lower every loss, and what is exported fits the restorer."""
    settings = settings_of(
        architecture__dense_field="true",
        architecture__fusion=fusion,
        joint__learning_rate="5e-3",
        joint__warmup="1",
        joint__training__steps="60",
        joint__losses__texture_layers="[1, 2]",
        joint__losses__identity_maps="0.02",
    )
    torch.manual_seed(0)
    task = plugins.get("canet").resolve("joint")(settings)
    batch = batch_of(task)
    logs = [task.step(batch, SingleDevice(), index) for index in range(40)]
    terms = ["find", "reconstruction", "field"] + (["gate"] if fusion == "true" else [])
    assert ("gate" in logs[0]) == (fusion == "true")
    for term in terms:
        assert float(logs[-1][term]) < 0.8 * float(logs[0][term]), term
    assert {"identity", "identity_maps", "edges", "adversarial", "discriminator"} <= set(logs[-1])
    Restorer(settings).network.load_state_dict(task.exports()["restorer"])
    assert all(math.isfinite(value) for value in task.evaluate(batch).values())
    assert task.preview(batch)["U"].shape == (4, 3, 128, 128)


def test_the_terms_are_averaged_over_the_selected_layers() -> None:
    """Eq. 13 and 15: with perfect images at all layers but one, the loss is that one's over their number."""
    task = JointTraining(settings_of(architecture__dense_field="true"))
    image, field = torch.rand(2, 3, 64, 64), torch.rand(2, 2, 64, 64)
    sizes = [(64, 64), (32, 32), (16, 16)]
    outputs = [Output(area_downsample(image, s), area_downsample(field, s), None) for s in sizes]
    hole = torch.zeros(2, 1, 64, 64)
    terms = task._structure(outputs, image, field, hole)
    assert float(terms["reconstruction"]) == 0
    assert "gate" not in terms  # there are none without fusion
    outputs[1] = Output(outputs[1].image + 0.2, outputs[1].field + 0.5, None)
    terms = task._structure(outputs, image, field, hole)
    assert float(terms["reconstruction"]) == pytest.approx(6 * 0.2 / 3, rel=1e-4)
    assert float(terms["field"]) == pytest.approx(0.1 * 0.5 * math.sqrt(2) / 3, rel=1e-2)


def test_faces_of_another_crop_are_refused() -> None:
    faces = Faces(4)
    for task in (JointTraining, SiameseInference, FinderTraining):
        with pytest.raises(UsageError, match=r"crops of 64 pixels and zoom 1 .* packed with 128 and 0\.75"):
            task(settings_of(size="64", zoom="1.0")).dataset(faces, train=True)
        with pytest.raises(UsageError, match="a multiple of 4 for this architecture, got 126"):
            task(settings_of(size="126")).dataset(faces, train=True)
    restorer = Restorer(settings_of(size="64", zoom="1.0"))
    assert (restorer.crop_size, restorer.crop_zoom) == (64, 1.0)


def test_a_recognizer_without_gradients_is_refused(monkeypatch) -> None:
    class Blind:
        differentiable = False

    monkeypatch.setattr(plugins, "load", lambda name, part: Blind())
    with pytest.raises(UsageError, match="gradients go through, got 'dlib'"):
        JointTraining(settings_of(joint__losses__identity="0.1", joint__losses__identity_method="dlib"))


@pytest.mark.parametrize(("layers", "got"), [('["conv2", "conv9"]', "conv9"), ("[]", "none")])
def test_layers_that_the_recognizer_does_not_have_are_refused(layers: str, got: str) -> None:
    changes = {"joint__losses__identity_maps": "0.1", "joint__losses__identity_layers": layers}
    with pytest.raises(
        UsageError, match=f"submodules of the network of mobilefacenet's recognizer, one at least, got {got}$"
    ):
        JointTraining(settings_of(**changes))


def test_faces_without_fields_are_refused_where_the_field_is_learnt() -> None:
    faces = Faces(4)
    faces.fields = None
    task = plugins.get("canet").resolve("joint")(settings_of(architecture__dense_field="true"))
    with pytest.raises(UsageError, match="--dense-field"):
        task.dataset(faces, train=True)


def test_the_recipes_are_complete_and_paper_is_the_papers() -> None:
    method = plugins.get("canet")
    paper = config.recipe(method, "paper")
    losses = paper.joint.losses
    assert (losses.reconstruction, losses.dense_field, losses.style, losses.identity) == (6.0, 0.1, 240.0, 0.1)
    assert (losses.perceptual, losses.adversarial, losses.texture_layers) == (0.0, 0.0, (1, 2, 3))
    assert paper.architecture.layers == (1, 2, 3, 4, 5, 6)
    assert (paper.siamese.queue, paper.siamese.temperature, paper.siamese.momentum) == (65536, 0.07, 0.9)
    assert (paper.siamese.learning_rate, paper.joint.learning_rate) == (0.015, 1e-4)
    Completer(paper.architecture)
    assert config.recipe(method, "small").architecture == Config().architecture


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
    assert float(metrics.occlusion_iou(restored.occlusion, hole)) > 0.75  # 0.81 on average: faint shadows are left
    ours, theirs = (metrics.psnr(result.image, image, where=hole) for result in (restored, telea(occluded, hole)))
    assert float(ours) > float(theirs)


def test_of_bare_faces_nothing_is_taken_for_occluded(portraits) -> None:
    """Two of the four are lit from behind."""
    from deocc.images import to_tensor

    restorer = deocc.restorer("canet")
    found = {name: float(restorer(to_tensor(one.image)).occlusion.mean()) for name, one in portraits.items()}
    assert max(found.values()) < 0.001, found


def test_restoring_in_bfloat16_changes_little(portrait) -> None:
    """Inside ``torch.autocast``: the visible pixels not at all, the others by less than one of 255 on average."""
    from deocc.images import to_tensor
    from deocc.occlude import occlude

    made = occlude(portrait.image, portrait.landmarks, seed=3, kinds=("surgical",))
    occluded = to_tensor(made.image)
    restorer = deocc.restorer("canet")
    exact = restorer(occluded)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = restorer(occluded)
    assert rounded.image.dtype == torch.float32
    visible = (rounded.occlusion == 0).expand_as(occluded)
    assert torch.equal(rounded.image[visible], occluded[visible])
    assert not torch.equal(rounded.image, exact.image)
    hidden = ((exact.occlusion > 0) & (rounded.occlusion > 0)).expand_as(occluded)
    assert float((rounded.image - exact.image)[hidden].abs().mean()) < 1 / 255
    assert float((rounded.occlusion != exact.occlusion).float().mean()) < 0.001


def test_fields_without_a_loss_have_no_gradient_to_wait_for() -> None:
    for weight, trained in (("0", False), ("0.1", True)):
        settings = settings_of(architecture__dense_field="true", joint__losses__dense_field=weight)
        task = JointTraining(settings)
        assert {value.requires_grad for value in task.completer.fields.parameters()} == {trained}


def test_photographs_follow_from_index_and_seed_and_hide_the_share_that_is_asked_for() -> None:
    faces = Faces(3)
    first, again = (Photographs(faces, Augmentation(), seed=1)[7] for _ in range(2))
    assert {name: torch.equal(first[name], again[name]) for name in first} == {"occluded": True, "occlusion": True}
    assert not torch.equal(first["occluded"], Photographs(faces, Augmentation(), seed=2)[7]["occluded"])
    bare = Photographs(faces, Augmentation(unoccluded=1.0), seed=1)
    assert not any(bare[index]["occlusion"].any() for index in range(8))
    hidden = Photographs(faces, Augmentation(unoccluded=0.0), seed=1)
    assert all(hidden[index]["occlusion"].any() for index in range(8))


def test_a_plain_photograph_is_what_the_other_stages_see() -> None:
    """Visible pixels are then the moved face's own, whatever the seed; otherwise they are not."""
    faces, still = Faces(1), Augmentation(shift=0.0, scale=0.0, rotate=0.0, light=0.0, unoccluded=0.0)
    whole = torch.from_numpy(faces.images[0].transpose(2, 0, 1).copy())
    changed = 0
    for seed in range(6):
        for plain in (1.0, 0.0):
            item = Photographs(faces, still, seed, plain=plain)[0]
            seen = (item["occlusion"] == 0).expand_as(whole)
            same = [torch.equal(item["occluded"][seen], face[seen]) for face in (whole, whole.flip(2))]
            assert any(same) or not plain
            changed += not any(same)
    assert changed >= 4


def test_no_face_is_lit_evenly() -> None:
    grey = np.full((128, 128, 3), 100, np.uint8)
    for seed in range(12):
        lit = light(grey, Crop(128, 0.75).template(), np.random.default_rng(seed))
        assert lit.dtype == np.uint8
        assert lit.shape == grey.shape
        assert int(lit.max()) - int(lit.min()) > 5


def test_a_mask_of_other_cloth_hides_the_same() -> None:
    image, landmarks = Faces(1).images[0], Crop(128, 0.75).template()
    made = occlude(image, landmarks, seed=3, kinds=["surgical"])
    other = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    for seed in range(8):
        clothed = reclothe(image, made, landmarks, other, np.random.default_rng(seed))
        assert np.array_equal(clothed[made.occlusion == 0], image[made.occlusion == 0])
        inside = made.occlusion == 255
        assert np.abs(clothed[inside].astype(int) - made.image[inside]).mean() > 5


def test_the_third_stage_trains_the_finder_alone(tmp_path) -> None:
    settings = settings_of(finder__learning_rate="5e-3", finder__warmup="1", finder__training__steps="60")
    torch.manual_seed(0)
    joint = JointTraining(settings)
    task = plugins.get("canet").resolve("finder")(settings)
    task.start_from(joint.exports())
    batch = batch_of(task)
    with pytest.warns(RuntimeWarning, match="beside a completer that never was"):
        FinderTraining(settings).step(batch, SingleDevice(), 0)
    logs = [task.step(batch, SingleDevice(), index) for index in range(40)]
    assert float(logs[-1]["find"]) < 0.8 * float(logs[0]["find"])
    before, after = joint.exports()["restorer"], task.exports()["restorer"]
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name])
        assert same if name.startswith("completer.") else not same or name.endswith("bias"), name
    Restorer(settings).network.load_state_dict(after)
    held = task.dataset(Faces(4), train=False)
    held = {name: torch.stack([held[i][name] for i in range(4)]) for name in held[0]}
    assert set(task.evaluate(held)) == {"hole_psnr_found", "occlusion_iou", "bare_found"}
    assert all(math.isfinite(value) for value in task.evaluate(held).values())
    assert task.preview(held)["restored"].shape == (4, 3, 128, 128)
