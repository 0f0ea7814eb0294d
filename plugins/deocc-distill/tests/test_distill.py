"""What distill promises beyond the contract."""

import math
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from deocc_distill import centroids as centroid_file
from deocc_distill.centroids import Centroids, fingerprint
from deocc_distill.config import Augmentation
from deocc_distill.deocclusion import around
from deocc_distill.distillation import DistillationTraining
from deocc_distill.faces import OccludedFaces, augment, recrop
from deocc_distill.network import Generator, ResNet18, settle
from deocc_distill.recognizer import Recognizer
from deocc_distill.restorer import Restorer
from deocc_distill.synthesis import CATEGORIES, OCCLUDERS, choose, paste

import deocc
from deocc import config, plugins, weights
from deocc.errors import InputError, UsageError, WeightsError
from deocc.faces import Crop, Detector, align
from deocc.images import read_image
from deocc.judge.parts import load_recognizers
from deocc.occlude import occlude
from deocc.train import SingleDevice, train


def settings_of(**changes: object):
    return config.replace(
        config.recipe(plugins.get("distill"), "smoke"), {key.replace("__", "."): v for key, v in changes.items()}
    )


def batch_of(task, faces, count: int = 8) -> dict[str, torch.Tensor]:
    examples = task.dataset(faces, train=True)
    return {name: torch.stack([examples[i][name] for i in range(count)]) for name in examples[0]}


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    torch.manual_seed(0)
    return Restorer(settings_of())


# Synthesis (section 4.1) -------------------------------------------------------------------------


def portraits() -> list[tuple[np.ndarray, np.ndarray]]:
    crop, found = Crop(128, 0.75), []
    for path in sorted(Path(str(files("deocc") / "portraits")).glob("*.jpg")):
        photo = read_image(path)
        face = Detector().detect(photo)[0]
        matrix = crop.matrix(face.landmarks)
        landmarks = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
        found.append((align(photo, face.landmarks, crop), landmarks.astype(np.float32)))
    return found


def test_there_are_45_occluders_in_four_categories() -> None:
    assert len(OCCLUDERS) == len(set(OCCLUDERS)) == 45
    assert {occluder.category for occluder in OCCLUDERS} == set(CATEGORIES)
    for occluder in OCCLUDERS:
        assert (len(occluder.layers) > 1) == (occluder.category == "hybrid")


def test_they_are_what_their_category_says_and_cover_a_fifth() -> None:
    faces = portraits()
    covered = {name: [] for name in CATEGORIES}
    for occluder in OCCLUDERS:
        for image, landmarks in faces:
            occluded, occlusion = paste(image, landmarks, occluder)
            untouched = occlusion == 0
            assert np.array_equal(occluded[untouched], image[untouched])
            covered[occluder.category].append((occlusion > 0).mean())
        kind, seed = occluder.layers[0]
        drawn = occlude(*faces[0], seed, kinds=(kind,)).parameters
        printed = drawn.get("printed", False) or drawn.get("pattern", "plain") != "plain"
        if occluder.category in ("simple", "complex"):
            assert printed == (occluder.category == "complex"), occluder
        if occluder.category == "simple":
            assert not drawn.get("label", False)
    mean = np.mean([np.mean(values) for values in covered.values()])
    assert mean == pytest.approx(0.2, abs=0.03), {name: float(np.mean(values)) for name, values in covered.items()}


def test_categories_are_drawn_alike() -> None:
    generator = np.random.default_rng(0)
    drawn = [choose(generator).category for _ in range(2000)]
    for name in CATEGORIES:
        assert drawn.count(name) == pytest.approx(500, abs=80)


def test_layers_lie_over_each_other() -> None:
    image, landmarks = portraits()[0]
    hybrid = OCCLUDERS[-1]
    both, occlusion = paste(image, landmarks, hybrid)
    mask, hand = (occlude(image, landmarks, seed, kinds=(kind,)) for kind, seed in hybrid.layers)
    assert np.array_equal(occlusion == 0, (mask.occlusion == 0) & (hand.occlusion == 0))
    for one, where in ((hand, hand.occlusion == 255), (mask, (hand.occlusion == 0) & (mask.occlusion > 0))):
        assert where.any()
        assert np.array_equal(both[where], one.image[where])


# Examples and crops -------------------------------------------------------------------------


def test_examples_follow_from_index_and_seed(faces) -> None:
    first, again = (OccludedFaces(faces, Augmentation(), seed=1)[19] for _ in range(2))
    other = OccludedFaces(faces, Augmentation(), seed=2)[19]
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert not torch.equal(first["occluded"], other["occluded"])
    visible = (first["occlusion"] == 0).expand_as(first["image"])
    assert torch.equal(first["image"][visible], first["occluded"][visible])


def test_the_distance_is_that_of_the_nearest_known_pixel(faces) -> None:
    item = OccludedFaces(faces, None, seed=1)[3]
    distance, hole = item["distance"][0].numpy(), item["occlusion"][0].numpy() > 0
    assert np.array_equal(distance > 0, hole)
    known = np.argwhere(~hole)
    for y, x in np.argwhere(hole)[::97]:
        assert distance[y, x] == np.abs(known - (y, x)).max(1).min()


def test_flip_and_shift_move_the_landmarks_with_the_face() -> None:
    landmarks = Crop(128, 0.75).template()
    image = np.zeros((128, 128, 3), np.uint8)
    for number, (x, y) in enumerate(np.rint(landmarks).astype(int)):
        image[y - 2 : y + 3, x - 2 : x + 3] = 80 + 40 * number
    mirrored = 0
    for seed in range(8):
        moved, points = augment(image, landmarks, Augmentation(), np.random.default_rng(seed))
        values = [int(moved[y, x, 0]) for x, y in np.rint(points).astype(int)]
        straight = [80, 120, 160, 200, 240]
        flipped = [120, 80, 160, 240, 200]
        wanted = flipped if values[0] > values[1] else straight
        mirrored += wanted is flipped
        assert values == pytest.approx(wanted, abs=25)
    assert 0 < mirrored < 8


@pytest.mark.parametrize("target", [Crop(112, 1.0), Crop(160, 0.9), Crop(96, 0.6)])
def test_recropping_is_one_bilinear_warp_that_differentiates(target: Crop) -> None:
    source = Crop(128, 0.75)
    small = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(small, size=128, mode="bicubic").clamp(0, 1).requires_grad_()
    found = recrop(image, source, target)
    matrix = target.matrix(source.template())
    picture = image.detach()[0].permute(1, 2, 0).numpy()
    side = (target.size, target.size)
    wanted = cv2.warpAffine(picture, matrix, side, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(found.detach()[0].permute(1, 2, 0).numpy() - wanted).max() < 0.01
    found.sum().backward()
    assert bool(torch.isfinite(image.grad).all())
    assert float(image.grad.sum()) == pytest.approx(found.numel(), rel=1e-3)
    assert recrop(image, source, source) is image


def test_faces_of_another_crop_are_refused(faces) -> None:
    task = plugins.get("distill").resolve("deocclusion")(settings_of(size=256))
    with pytest.raises(UsageError, match="256 pixels"):
        task.dataset(faces, train=True)


# Networks -------------------------------------------------------------------------


def test_the_generator_never_sees_what_is_hidden(restorer) -> None:
    image = torch.rand(1, 3, 64, 64)
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 20:50, 10:40] = 1
    other = torch.where(hole > 0, torch.rand_like(image), image)
    assert not torch.equal(image, other)
    with torch.no_grad():
        for name, drawn in restorer(image, hole).extras.items():
            assert torch.equal(drawn, restorer(other, hole).extras[name]), name


def test_attention_is_a_branch_of_its_own() -> None:
    whole, without = (Generator(settings_of(generator__attention=on).generator) for on in (True, False))
    names = {name.partition(".")[0] for name in whole.state_dict()}
    assert names - {name.partition(".")[0] for name in without.state_dict()} == {"before", "after"}
    assert tuple(without(torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)).refined.shape) == (1, 3, 32, 32)


def test_attention_lets_a_pixel_look_far_away() -> None:
    """In the hole of one corner, a change in the other corner is seen through the attention branch."""
    torch.manual_seed(0)
    network = Generator(settings_of().generator)
    features = torch.rand(1, 3, 64, 64, requires_grad=True)
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., :16, :16] = 1
    seen = network.before(torch.cat((features, torch.ones_like(hole), hole), 1))
    assert seen.shape == (1, 16, 16, 16)
    refined = network(features, hole).refined
    refined[..., 4:8, 4:8].sum().backward()
    assert bool((features.grad[..., 56:, 56:] != 0).any())


def test_the_paper_student_is_resnet_18() -> None:
    """11.18 million parameters without the classifier (He et al. 2016), and 512 x 128 + 128 of the embedding."""
    student = ResNet18((64, 128, 256, 512), 128)
    count = sum(parameter.numel() for parameter in student.parameters())
    assert count == 11_176_512 + 512 * 128 + 128


def test_what_is_found_grows_by_the_margin() -> None:
    logits = torch.full((1, 1, 32, 32), -1.0)
    logits[..., 10:20, 10:20] = 1
    assert settle(logits, 2).sum() == 14 * 14
    assert settle(logits, 0).sum() == 100


# Training -------------------------------------------------------------------------


@pytest.mark.parametrize("adversarial", ["wgan-gp", "log", "none"])
@pytest.mark.parametrize("attention", [True, False])
def test_the_deocclusion_module_learns(faces, adversarial: str, attention: bool) -> None:
    settings = settings_of(
        generator__attention=attention,
        generator__width=8,
        generator__finder_width=8,
        deocclusion__adversarial=adversarial,
        deocclusion__learning_rate=1e-3,
        deocclusion__critic_steps=1,
        augmentation__unoccluded=0.0,
    )
    torch.manual_seed(0)
    task = plugins.get("distill").resolve("deocclusion")(settings)
    batch = batch_of(task, faces, 4)
    before = {name: value.clone() for name, value in task.local_critic.state_dict().items()}
    logs = [task.step(batch, SingleDevice(), index) for index in range(20)]
    for term in ("find", "coarse", "refined"):
        assert float(logs[-1][term]) < 0.8 * float(logs[0][term]), term
    trained = any(not torch.equal(value, before[name]) for name, value in task.local_critic.state_dict().items())
    assert trained == (adversarial != "none")
    assert ("penalty" in logs[-1]) == (adversarial == "wgan-gp")
    Restorer(settings).network.load_state_dict(task.exports()["restorer"])
    with torch.no_grad():
        assert all(math.isfinite(value) for value in task.evaluate(batch).values())


@pytest.mark.parametrize("instance", ["none", "hard", "soft"])
def test_the_student_learns(faces, centroids, instance: str) -> None:
    settings = settings_of(
        student__widths="[8, 16, 16, 16]",
        distillation__completion="none",
        distillation__centroids=str(centroids),
        distillation__instance=instance,
        distillation__cross_entropy=1.0,
        distillation__learning_rate=0.05,
    )
    torch.manual_seed(0)
    task = DistillationTraining(settings)
    batch = batch_of(task, faces)
    logs = [task.step(batch, SingleDevice(), index) for index in range(25)]
    if instance != "none":  # relations alone say nothing of where the embeddings lie
        assert float(logs[-1]["cosine"]) > float(logs[0]["cosine"]) + 0.1
    for term in ("cross_entropy", "relations", *(["instance"] if instance != "none" else [])):
        assert float(logs[-1][term]) < float(logs[0][term]), term
    assert ("instance" in logs[-1]) == (instance != "none")
    assert set(task.exports()) == {"recognizer"}


def test_a_copy_of_the_teacher_begins_as_the_teacher_and_learns(faces, centroids) -> None:
    settings = settings_of(
        student__network="teacher",
        distillation__completion="none",
        distillation__centroids=str(centroids),
        distillation__learning_rate=1e-3,
    )
    task = DistillationTraining(settings)
    teacher = plugins.load("mobilefacenet", "recognizer")
    assert set(task.student.state_dict()) == {f"network.{name}" for name in teacher.network.state_dict()}
    batch = batch_of(task, faces)
    task.student.train()
    image = torch.rand(2, 3, 112, 112)
    torch.testing.assert_close(torch.nn.functional.normalize(task.student(image), dim=1), teacher(image))
    logs = [task.step(batch, SingleDevice(), index) for index in range(8)]
    assert float(logs[-1]["cosine"]) > float(logs[0]["cosine"])
    for name, value in teacher.network.state_dict().items():
        trained = task.student.state_dict()[f"network.{name}"]
        if "running" in name:
            assert torch.equal(trained, value), name
    student = Recognizer(settings)
    student.network.load_state_dict(task.exports()["recognizer"])
    trained = torch.nn.functional.normalize(task.student(image), dim=1)
    torch.testing.assert_close(student(image), trained, atol=5e-3, rtol=0)


def test_a_copy_needs_a_teacher_that_gradients_go_through(monkeypatch) -> None:
    if "mobilefacenet" not in plugins.names():
        pytest.skip("needs the teacher mobilefacenet, which is not installed")
    monkeypatch.setattr(plugins.get("mobilefacenet").resolve("recognizer"), "differentiable", False)
    with pytest.raises(UsageError, match="gradients go through, got 'mobilefacenet'"):
        DistillationTraining(settings_of(student__network="teacher", distillation__completion="none"))


def test_relations_are_the_operators_with_the_papers_weights(faces) -> None:
    from deocc.ops import relational_angle, relational_distance

    task = DistillationTraining(settings_of(distillation__completion="none", distillation__instance="none"))
    student, teacher = torch.nn.functional.normalize(torch.randn(2, 6, 128), dim=2)
    terms = task._terms(student, teacher, torch.zeros(6))
    wanted = relational_distance(student, teacher) + 2 * relational_angle(student, teacher)
    torch.testing.assert_close(terms["relations"], wanted)
    assert set(terms) == {"relations"}


def test_the_learning_rate_falls_every_24_epochs() -> None:
    task = DistillationTraining(settings_of(distillation__completion="none"))
    rates = [task._set_learning_rate(0, epoch) for epoch in (0, 23, 24, 47, 48)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_the_epoch_follows_from_the_step_alone(faces) -> None:
    """Processes see different shares of a batch, and would leave each other at a boundary between epochs."""
    task = DistillationTraining(
        settings_of(
            distillation__completion="none", distillation__decay_epochs=2, distillation__training__batch=len(faces)
        )
    )
    batch = batch_of(task, faces, 4)
    rates = [float(task.step(batch, SingleDevice(), index)["learning_rate"]) for index in (0, 1, 2)]
    assert rates == pytest.approx([rates[0], rates[0], rates[0] / 10])


def test_a_student_of_untrained_completions_is_refused(faces) -> None:
    task = DistillationTraining(settings_of())
    with pytest.raises(UsageError, match="deocclusion"):
        task.step(batch_of(task, faces, 4), SingleDevice(), 0)
    joint = plugins.get("distill").resolve("joint")(settings_of())
    with pytest.raises(UsageError, match="start from both"):
        joint.step(batch_of(joint, faces, 4), SingleDevice(), 0)


def test_any_restorer_can_complete(faces) -> None:
    if "opencv-telea" not in plugins.names():
        pytest.skip("needs opencv-telea, which is not installed")
    task = DistillationTraining(settings_of(distillation__completion="opencv-telea"))
    batch = batch_of(task, faces, 4)
    assert "relations" in task.step(batch, SingleDevice(), 0)
    occluded, hole = batch["occluded"] / 255, (batch["distance"] > 0).float()
    completed = task._complete(occluded, hole)
    visible = (hole == 0).expand_as(occluded)
    assert torch.equal(completed[visible], occluded[visible])
    assert not torch.equal(completed, occluded)
    assert all(math.isfinite(value) for value in task.evaluate(batch).values())


def test_joint_training_moves_both_modules_by_the_embedding(faces) -> None:
    """Without the L1 losses the generator still learns: through the student and the warp."""
    method, settings = plugins.get("distill"), settings_of(joint__reconstruction=0.0, deocclusion__visible=0.0)
    torch.manual_seed(0)
    first = method.resolve("deocclusion")(settings)
    second = method.resolve("distillation")(settings)
    second.start_from(first.exports())
    joint = method.resolve("joint")(settings)
    joint.start_from(second.exports())
    before = {name: {k: v.clone() for k, v in n.state_dict().items()} for name, n in joint.networks().items()}
    joint.step(batch_of(joint, faces, 4), SingleDevice(), 0)
    for name, network in joint.networks().items():
        moved = any(not torch.equal(value, before[name][key]) for key, value in network.state_dict().items())
        assert moved == (name != "finder"), name
    assert not bool(torch.equal(joint.generator.coarse[0][0].weight, before["generator"]["coarse.0.0.weight"]))


def test_joint_training_keeps_the_loss_on_visible_pixels(faces) -> None:
    terms = []
    for visible in (0.0, 5.0):
        settings = settings_of(joint__reconstruction=0.0, deocclusion__visible=visible)
        torch.manual_seed(0)
        joint = plugins.get("distill").resolve("joint")(settings)
        joint._has_started = True
        terms.append(joint.step(batch_of(joint, faces, 4), SingleDevice(), 0))
    for name in ("coarse", "refined"):
        assert float(terms[0][name]) == 0
        assert float(terms[1][name]) > 0


def test_all_stages_train_and_the_two_files_make_one_recognizer(faces, tmp_path) -> None:
    """deocc train with the recipe smoke; then eq. 6 from both files, its gradient from embedding to pixels."""
    folder = faces.paths[0]
    written = train("distill", data=[folder], out=tmp_path / "run", recipe="smoke", hold_out=0.25, progress=False)
    assert set(written) == {"restorer", "recognizer"}
    whole = deocc.recognizer(
        "distill", weights=written["recognizer"], end_to_end=True, restorer_weights=str(written["restorer"])
    )
    assert (whole.crop_size, whole.crop_zoom) == (128, 0.75)
    assert whole.files == (written["restorer"],)
    image = torch.rand(2, 3, 128, 128, requires_grad=True)
    embedding = whole(image)
    assert embedding.shape == (2, 128)
    (embedding[0] * embedding[1].detach()).sum().backward()
    assert bool(torch.isfinite(image.grad).all())
    assert bool((image.grad[0] != 0).any())
    assert bool((image.grad[1] == 0).all())
    assert whole(image[:0].detach()).shape == (0, 128)
    student = deocc.recognizer("distill", weights=written["recognizer"])
    assert (student.crop_size, student.crop_zoom) == (112, 1.0)
    assert student.files == ()
    completed = deocc.restorer("distill", weights=written["restorer"])(image.detach()).image
    seen = recrop(completed, Crop(128, 0.75), Crop(112, 1.0)).clamp(0, 1)
    torch.testing.assert_close(student(seen), embedding.detach())


def test_a_retrained_restorer_is_another_end_to_end_recognizer(tmp_path) -> None:
    """deocc judge must not answer with what the restorer before computed."""
    method = plugins.get("distill")
    packaged = plugins.packaged_weights(method, "restorer")
    assert Recognizer(config.replace(method.resolve("config")(), {"end_to_end": True})).files == (packaged,)
    tensors, card = weights.read(packaged, method="distill", part="restorer")
    path = tmp_path / "restorer.safetensors"
    found = []
    for change in (0, 1e-3):
        weights.save(path, {name: tensor + change for name, tensor in tensors.items()}, card)
        (one,) = load_recognizers([f"distill:end_to_end=true,restorer_weights={path}"])
        found.append(one)
    assert found[0].identity != found[1].identity
    assert found[0].result.sha256 == found[1].result.sha256
    assert found[0].result.files != found[1].result.files


def test_the_gradient_passes_the_restorer(restorer) -> None:
    """From a restored pixel to visible ones: what end-to-end training stands on."""
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 24:40, 24:40] = 1
    restorer(image, hole).image[..., 30, 30].sum().backward()
    assert bool((image.grad[..., :20, :] != 0).any())
    assert bool((image.grad[..., 24:40, 24:40] == 0).all())


# Centroids (eq. 18) -------------------------------------------------------------------------


def test_centroids_are_the_means_of_the_teachers_embeddings(faces, centroids) -> None:
    teacher = plugins.load("mobilefacenet", "recognizer")
    found = Centroids.load(centroids, teacher)
    assert found.names == faces.identity_names
    images = torch.from_numpy(np.asarray(faces.images[:2])).permute(0, 3, 1, 2) / 255
    embeddings = teacher(recrop(images, faces.crop, Crop(112, 1.0)).clamp(0, 1))
    torch.testing.assert_close(found.values[0], embeddings.mean(0), rtol=0, atol=1e-5)
    assert found.rows(faces).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found.rows(faces.subset([5, 0])).tolist() == [2, 0]


def test_centroids_of_another_teacher_are_refused(centroids) -> None:
    other = plugins.load("mobilefacenet", "recognizer")
    with torch.no_grad():
        next(other.network.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(other) != fingerprint(plugins.load("mobilefacenet", "recognizer"))
    with pytest.raises(WeightsError, match="compute them again"):
        Centroids.load(centroids, other)


def test_the_task_refuses_centroids_of_another_teacher(centroids, tmp_path) -> None:
    found = Centroids.load(centroids, plugins.load("mobilefacenet", "recognizer"))
    Centroids(found.values, found.names, "mobilefacenet", "0" * 64).save(tmp_path / "other.safetensors")
    changes = {"distillation__instance": "soft", "distillation__completion": "none"}
    with pytest.raises(WeightsError, match="compute them again"):
        DistillationTraining(settings_of(distillation__centroids=str(tmp_path / "other.safetensors"), **changes))
    with pytest.raises(UsageError, match=r"deocc_distill\.centroids"):
        DistillationTraining(settings_of(**changes))


def test_an_identity_without_a_centroid_is_refused(faces, centroids) -> None:
    teacher = plugins.load("mobilefacenet", "recognizer")
    found = Centroids.load(centroids, teacher)
    fewer = Centroids(found.values[:2], found.names[:2], found.teacher, found.sha256)
    with pytest.raises(InputError, match="person2"):
        fewer.rows(faces)


def test_a_file_that_holds_no_centroids_is_refused(tmp_path) -> None:
    teacher = plugins.load("mobilefacenet", "recognizer")
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(WeightsError, match="cannot be read"):
        Centroids.load(tmp_path / "text", teacher)
    with pytest.raises(WeightsError, match="cannot be read"):
        Centroids.load(tmp_path / "missing", teacher)


def test_the_command_writes_the_same_file(faces, centroids, tmp_path, capsys) -> None:
    centroid_file.main(["--data", str(faces.paths[0]), "-o", str(tmp_path / "again.safetensors")])
    assert "4 identities of 8 faces" in capsys.readouterr().out
    assert (tmp_path / "again.safetensors").read_bytes() == centroids.read_bytes()


def test_a_student_of_other_dimensions_than_its_teacher_is_refused() -> None:
    with pytest.raises(UsageError, match=r"student\.dim must be 128"):
        DistillationTraining(settings_of(student__dim=64, distillation__completion="none"))


# Recipes and weights -------------------------------------------------------------------------


def test_the_paper_recipe_is_the_papers() -> None:
    paper = config.recipe(plugins.get("distill"), "paper")
    distillation = paper.distillation
    assert (distillation.pair, distillation.triplet, distillation.training.batch) == (1.0, 2.0, 128)
    assert (distillation.learning_rate, distillation.schedule, distillation.decay_epochs) == (0.1, "epochs", 24)
    assert distillation.instance == "soft"
    assert paper.student.widths == (64, 128, 256, 512)
    assert (paper.size, paper.generator.width, paper.generator.attention) == (256, 32, True)
    assert (paper.deocclusion.discount, paper.deocclusion.penalty) == (0.99, 10.0)
    Generator(paper.generator)


@pytest.mark.parametrize("part", ["restorer", "recognizer"])
def test_the_small_recipes_weights_are_small(part: str) -> None:
    method = plugins.get("distill")
    built = {"restorer": Restorer, "recognizer": Recognizer}[part](config.recipe(method, "small"))
    numbers = sum(value.numel() for value in built.network.state_dict().values())
    assert 2 * numbers <= 16 * 2**20
    path = plugins.packaged_weights(method, part)
    if path is not None:
        assert path.stat().st_size <= 16 * 2**20
        assert weights.read_card(path)["recipe"].startswith("small")


# What may go wrong -------------------------------------------------------------------------


def test_autocast_leaves_warps_as_they_are(faces) -> None:
    """A grid of bfloat16 lies up to a sixth of a pixel beside."""
    face = torch.from_numpy(np.array(faces.images[:2])).permute(0, 3, 1, 2).float() / 255
    hole = torch.zeros(2, 1, *face.shape[2:])
    hole[:, :, 50:90, 30:100] = 1
    plain = recrop(face, faces.crop, Crop(112, 1.0)), around(face, hole)
    with torch.autocast("cpu", torch.bfloat16):
        again = recrop(face, faces.crop, Crop(112, 1.0)), around(face, hole)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("adversarial", ["wgan-gp", "log"])
def test_the_discriminators_train_under_fabric_in_half_precision(faces, tmp_path, adversarial: str) -> None:
    fabric = pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed (deocc[train])")
    precision = "bf16-mixed"
    written = train(
        "distill",
        data=faces.paths,
        out=tmp_path / "run",
        recipe="smoke",
        stages=["deocclusion"],
        overrides={"deocclusion.adversarial": adversarial, "deocclusion.training.precision": precision},
        engine=fabric.Fabric(accelerator="cpu", devices=1, precision=precision),
        progress=False,
    )
    assert written["restorer"].exists()


@pytest.mark.parametrize(("adversarial", "step"), [("none", 16), ("wgan-gp", 32)])
def test_sizes_that_the_networks_cannot_have_are_refused(adversarial: str, step: int) -> None:
    build = plugins.get("distill").resolve("deocclusion")
    build(settings_of(size=128 + step, deocclusion__adversarial=adversarial))
    with pytest.raises(UsageError, match=f"size must be a multiple of {step} .* got {128 + step // 2}"):
        build(settings_of(size=128 + step // 2, deocclusion__adversarial=adversarial))


def test_a_restorer_of_another_crop_is_refused() -> None:
    DistillationTraining(settings_of(distillation__completion="opencv-telea", size=160))
    with pytest.raises(UsageError, match=r"completes crops of 128 pixels .* got 160 and 0\.75"):
        DistillationTraining(settings_of(distillation__completion="distill", size=160))


def test_a_teachers_files_count_by_their_content(tmp_path) -> None:
    teacher = plugins.load("mobilefacenet", "recognizer")
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a"), two.write_bytes(b"a")
    found = []
    for path in (one, two):
        teacher.files = (path,)
        found.append(fingerprint(teacher))
    two.write_bytes(b"b")
    assert found[0] == found[1] != fingerprint(teacher)


def test_identities_of_one_name_are_refused(faces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "identity_names", ["a"] * len(faces.identity_names))
    with pytest.raises(InputError, match="the same folder's name"):
        centroid_file.compute(faces, "mobilefacenet", plugins.load("mobilefacenet", "recognizer"))
