"""Each loss against a plain formula."""

import math

import pytest
import torch
from deocc_distill import losses
from deocc_distill.config import Config
from deocc_distill.deocclusion import around
from deocc_distill.network import Critic, critics
from torch import nn

from deocc.ops import contextual_attention, relational_angle, relational_distance


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(*shape: int, seed: int = 0) -> torch.Tensor:
    return nn.functional.normalize(draw(*shape, seed=seed) - 0.5, dim=1)


def test_the_discounted_l1_weighs_by_the_distance() -> None:
    distance = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    distance[0, 0, 1, 1], distance[0, 0, 1, 2] = 1, 2
    image, true = draw(1, 3, 4, 4), draw(1, 3, 4, 4, seed=1)
    error = (image - true).abs()
    wanted = (0.9 * error[0, :, 1, 1].sum() + 0.81 * error[0, :, 1, 2].sum()) / 6
    torch.testing.assert_close(losses.discounted_l1(image, true, distance, 0.9), wanted)
    plain = (error[0, :, 1, 1].sum() + error[0, :, 1, 2].sum()) / 6
    torch.testing.assert_close(losses.discounted_l1(image, true, distance, 1.0), plain)
    known = (error.sum() - 6 * plain) / (3 * 14)
    torch.testing.assert_close(losses.visible_l1(image, true, distance), known)
    assert losses.discounted_l1(image, true, torch.zeros_like(distance), 0.9) == 0
    assert losses.visible_l1(image, true, torch.ones_like(distance)) == 0


def test_the_logarithmic_loss_is_equation_8() -> None:
    real, fake = draw(5) * 4 - 2, draw(5, seed=1) * 4 - 2
    value = (torch.sigmoid(real).log() + (1 - torch.sigmoid(fake)).log()).mean()
    torch.testing.assert_close(losses.critic_log(real, fake), -value)
    torch.testing.assert_close(losses.generator_log(fake), (1 - torch.sigmoid(fake)).log().mean())


def test_the_wasserstein_loss() -> None:
    real, fake = draw(5), draw(5, seed=1)
    torch.testing.assert_close(losses.critic_wgan(real, fake), fake.mean() - real.mean())
    torch.testing.assert_close(losses.generator_wgan(fake), -fake.mean())


def test_the_gradient_penalty_of_a_linear_critic() -> None:
    """D(x) = <w, x> has the gradient w wherever one looks; only what lies inside the hole counts."""
    weight = draw(1, 3, 8, 8)
    hole = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    hole[:, :, 2:6, 3:5] = 1
    found = losses.gradient_penalty(
        lambda x: (weight * x).sum((1, 2, 3)), draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=2), hole
    )
    wanted = (math.sqrt(float((weight * hole[:1]).square().sum())) - 1) ** 2
    assert float(found) == pytest.approx(wanted)


def test_the_second_derivative_of_the_penalty_reaches_the_critics_weights() -> None:
    """Against differences: the penalty is moved by moving a weight as its gradient says."""
    torch.manual_seed(0)
    critic = Critic(4, 8, 32).double()
    real, fake, hole = draw(2, 3, 32, 32), draw(2, 3, 32, 32, seed=1), torch.ones(2, 1, 32, 32, dtype=torch.float64)

    def penalty() -> torch.Tensor:
        torch.manual_seed(1)
        return losses.gradient_penalty(critic, real, fake, hole)

    weight = critic.layers[0].weight
    penalty().backward()
    gradient = weight.grad.clone()
    assert bool((gradient != 0).any())
    direction = torch.sign(gradient)
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            weight += step * direction
        values.append(float(penalty().detach()))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-3)


def test_a_face_without_a_hole_gives_no_bad_gradient() -> None:
    critic = Critic(4, 8, 32)
    losses.gradient_penalty(
        critic, torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    ).backward()
    gradients = [parameter.grad for parameter in critic.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_the_critics_hold_nothing_without_a_second_derivative() -> None:
    """contextual_attention refuses one, which is why no discriminator contains it."""
    kinds = {type(module) for critic in critics(Config()) for module in critic.modules()}
    assert kinds == {Critic, nn.Sequential, nn.Conv2d, nn.LeakyReLU, nn.Linear}
    features = torch.rand(1, 4, 8, 8, requires_grad=True)
    (first,) = torch.autograd.grad(contextual_attention(features, features).square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


def test_the_local_critic_sees_the_smallest_square_about_the_hole() -> None:
    size = 64
    ramp = torch.arange(size).float()
    picture = torch.stack((ramp.expand(size, size), ramp[:, None].expand(size, size)))[None].repeat(3, 1, 1, 1)
    hole = torch.zeros(3, 1, size, size)
    hole[0, :, 30:34, 40:44] = 1  # small: a window of half the side about (41.5, 31.5)
    hole[1, :, 8:56, 20:40] = 1  # high: a square of 48 pixels about it
    seen = around(picture, hole)
    assert seen.shape == (3, 2, 32, 32)
    torch.testing.assert_close(seen[0, 0, 0], torch.arange(26.0, 58.0))
    torch.testing.assert_close(seen[0, 1, :, 0], torch.arange(16.0, 48.0))
    torch.testing.assert_close(seen[1, 1, :, 0], torch.linspace(8.25, 54.75, 32))
    torch.testing.assert_close(seen[1, 0, 0], torch.linspace(6.25, 52.75, 32))
    torch.testing.assert_close(seen[2, 0, 0], torch.arange(16.0, 48.0))  # without a hole: the middle


def test_cross_entropy_is_equation_10_over_the_centroids() -> None:
    student, teacher, centroids = units(4, 6), units(4, 6, seed=1), draw(5, 6, seed=2) - 0.5
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        outputs = []
        for x in (t, s):
            cosines = torch.stack([x @ f / f.norm() for f in centroids])
            outputs.append((3.0 * cosines).exp() / (3.0 * cosines).exp().sum())
        total -= float((outputs[0] * outputs[1].log()).sum())
    assert float(losses.cross_entropy(student, teacher, centroids, 3.0)) == pytest.approx(total / 4)


def test_the_hard_instance_loss_is_equation_12() -> None:
    student, teacher = units(4, 6), units(4, 6, seed=1)
    wanted = sum(float((t - s).abs().sum()) for t, s in zip(teacher, student, strict=True)) / 4
    assert float(losses.hard_instance_loss(student, teacher)) == pytest.approx(wanted)


def test_equation_17_as_it_is_written_is_equation_12() -> None:
    student, teacher, centre = units(4, 6), units(4, 6, seed=1), draw(4, 6, seed=2)
    written = ((teacher - centre) - (student - centre)).abs().sum(1).mean()
    torch.testing.assert_close(written, losses.hard_instance_loss(student, teacher))


def test_the_soft_instance_loss_wants_the_distance_from_the_centre() -> None:
    student, teacher, centre = units(4, 6), units(4, 6, seed=1), draw(4, 6, seed=2)
    rows = zip(student, teacher, centre, strict=True)
    wanted = sum(abs(float((t - f).abs().sum()) - float((s - f).abs().sum())) for s, t, f in rows) / 4
    assert float(losses.soft_instance_loss(student, teacher, centre)) == pytest.approx(wanted)
    mirrored = 2 * centre - teacher  # as far from the centre, on the other side
    assert float(losses.soft_instance_loss(mirrored, teacher, centre)) == pytest.approx(0, abs=1e-12)
    assert float(losses.hard_instance_loss(mirrored, teacher)) > 1
    # The only image of an identity is its centre: there the soft loss is the hard one.
    alone = losses.soft_instance_loss(student, teacher, teacher)
    torch.testing.assert_close(alone, losses.hard_instance_loss(student, teacher))


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def test_the_pair_wise_loss_is_equation_13() -> None:
    """All pairs, each distance over its own network's mean."""
    student, teacher = units(5, 4), units(5, 6, seed=1)

    def potentials(x: torch.Tensor) -> list[float]:
        distances = [float((a - b).norm()) for a in x for b in x]
        mean = sum(distances) / (5 * 4)
        return [distance / mean for distance in distances]

    wanted = sum(huber(a - b) for a, b in zip(potentials(student), potentials(teacher), strict=True)) / 25
    assert float(relational_distance(student, teacher)) == pytest.approx(wanted)


def test_the_triplet_wise_loss_is_equation_14() -> None:
    """All triplets, the cosine at the one in the middle (eq. 15)."""
    student, teacher = units(4, 4), units(4, 6, seed=1)

    def potentials(x: torch.Tensor) -> list[float]:
        found = []
        for j in range(4):
            for i in range(4):
                for k in range(4):
                    a, b = x[i] - x[j], x[k] - x[j]
                    found.append(0.0 if j in (i, k) else float(a @ b / (a.norm() * b.norm())))
        return found

    wanted = sum(huber(a - b) for a, b in zip(potentials(student), potentials(teacher), strict=True)) / 64
    assert float(relational_angle(student, teacher)) == pytest.approx(wanted)


def test_the_finders_loss() -> None:
    occlusion = torch.zeros(1, 1, 4, 4)
    occlusion[..., :2] = 1
    logits = torch.where(occlusion > 0, 20.0, -20.0)
    assert float(losses.finder_loss(logits, occlusion)) == pytest.approx(0, abs=1e-6)
    nothing = float(losses.finder_loss(torch.zeros(1, 1, 4, 4), occlusion))
    assert nothing == pytest.approx(math.log(2) + 0.2 * (1 - (2 * 4 + 1) / (8 + 8 + 1)))
