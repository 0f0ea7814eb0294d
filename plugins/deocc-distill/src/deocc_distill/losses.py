"""The losses of both modules, one function for each equation; the pair- and triplet-wise ones are in deocc.ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def discounted_l1(image: Tensor, true: Tensor, distance: Tensor, gamma: float) -> Tensor:
    """Mean absolute difference inside the hole (eq. 7), weighed by gamma^distance (Yu et al. 2018, section 3.2).

    Args:
        image, true: (N, 3, H, W).
        distance: (N, 1, H, W), in pixels, of the nearest known pixel; 0 outside of the hole.
        gamma: 1 weighs all alike.

    Returns:
        scalar; 0 where nothing is to be completed.
    """
    weight = gamma**distance * (distance > 0)
    return (weight * (image - true).abs()).sum() / (3 * (distance > 0).sum()).clamp(min=1)


def visible_l1(image: Tensor, true: Tensor, distance: Tensor) -> Tensor:
    """Mean absolute difference outside of the hole: shapes as in :func:`discounted_l1`."""
    known = (distance == 0).float()
    return (known * (image - true).abs()).sum() / (3 * known.sum()).clamp(min=1)


def critic_log(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises in eq. 8: -E[log D(real) + log(1 - D(fake))], of logits (N,)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_log(fake: Tensor) -> Tensor:
    """What the generator minimises in eq. 8: E[log(1 - D(fake))], of logits (N,)."""
    return -F.softplus(fake).mean()


def critic_wgan(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(fake)] - E[D(real)], of scores (N,), without the gradient penalty."""
    return fake.mean() - real.mean()


def generator_wgan(fake: Tensor) -> Tensor:
    """-E[D(fake)], of scores (N,)."""
    return -fake.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, hole: Tensor) -> Tensor:
    """E[(|| dD(x)/dx * hole || - 1)^2] at random points x between real and fake (Yu et al. 2018, eq. 6).

    Args:
        critic: (N, 3, H, W) -> (N,); it is differentiated twice.
        real, fake: (N, 3, H, W), of which no gradient is wanted.
        hole: (N, 1, H, W); only what is completed counts.
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    between = torch.lerp(real.detach(), fake.detach(), share).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # The square root has no derivative at 0, where a face without a hole is.
    length = ((gradient * hole).square().sum((1, 2, 3)) + 1e-12).sqrt()
    return (length - 1).square().mean()


def finder_loss(logits: Tensor, occlusion: Tensor) -> Tensor:
    """Cross-entropy and soft Dice, which keeps small occlusions from being ignored: (N, 1, H, W) twice -> scalar."""
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * occlusion).sum((1, 2, 3)) + 1
    dice = overlap / (probability.sum((1, 2, 3)) + occlusion.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, occlusion) + 0.2 * (1 - dice).mean()


def cross_entropy(student: Tensor, teacher: Tensor, centroids: Tensor, scale: float) -> Tensor:
    """Cross-entropy between the outputs of teacher and student (eq. 10): -sum_c p_t(c) log p_s(c), mean over the batch.

    A recognizer has no output layer: its classes are the identities' centroids, with
    ``p(c) = softmax_c(scale * <x, f_c> / |f_c|)``.

    Args:
        student, teacher: (N, D) of unit length.
        centroids: (I, D).
        scale: of the cosines.
    """
    classes = F.normalize(centroids, dim=1)
    wanted = (scale * teacher @ classes.T).softmax(1)
    return F.cross_entropy(scale * student @ classes.T, wanted)


def hard_instance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|t_i - s_i|_1 (eq. 12), the sum over the dimensions, mean over the batch: (N, D) twice -> scalar."""
    return (teacher - student).abs().sum(1).mean()


def soft_instance_loss(student: Tensor, teacher: Tensor, centroid: Tensor) -> Tensor:
    """The instance-wise loss relative to the identity's centre f (eq. 17): | |t_i - f|_1 - |s_i - f|_1 |, mean over the
    batch.

    The student has to be as far from the centre as the teacher is, in whatever direction. As it is written, eq. 17 is
    eq. 12: in ``l1(t_i - f, s_i - f)`` with the difference taken value by value, f cancels. The distances are what is
    left of "softened" that does not.

    Args:
        student, teacher: (N, D).
        centroid: (N, D), f_id of each row's identity.
    """
    return ((teacher - centroid).abs().sum(1) - (student - centroid).abs().sum(1)).abs().mean()
