"""Reference of :func:`deocc.ops.domain_constrained_ranking` and of the update of its centres."""

from __future__ import annotations

import torch
from torch import Tensor


def domain_constrained_ranking(
    features: Tensor,
    labels: Tensor,
    domains: Tensor,
    centers: Tensor,
    known: Tensor,
    margin_single: float,
    margin_cross: float,
    cross: float,
    everywhere: bool,
) -> Tensor:
    """Domain constrained ranking loss (Geng et al. 2020, "Masked Face Recognition with Generative Data Augmentation
    and Domain Constrained Ranking", section 4.2, equations 8 to 11), averaged over the minibatch.

    What the paper leaves open, or what is easily read over:

    - Distances are Euclidean norms, not their squares (eq. 8 to 10 have one 2 at the norm, where center loss has two).
    - Features and centres are taken as they are: the paper does not say that they have unit length, and eq. 12 does not
      keep centres on the sphere.
    - Eq. 8: the hardest negative of a centre is an image of the minibatch, of the same domain and another identity.
    - Eq. 10: the hardest positive is an image of the minibatch, of the same identity and the other domain.
    - Eq. 9: the hardest negative is a centre of the image's own domain. The minimum is over the images of the
      minibatch, and so over the centres of identities that have an image of that domain in it. ``everywhere`` takes
      all known centres of the domain instead, which is not in the paper.
    - An image without one of these has no such ranking: that part of its loss is 0. So is the part of eq. 8 while the
      image's own centre is not known; and a centre that is not known is no negative in eq. 9.
    - Eq. 11 is for one image; the loss is the mean over all images of the minibatch, those whose part is 0 included.
      An empty minibatch gives 0.
    - Centres follow eq. 12 and have no gradient. Gradients flow to all features that eq. 8 to 10 compare, the chosen
      images' too. The derivative of a distance of 0, and that of a loss at 0, is 0.
    - Of equally hard ones the first counts: in the order of the minibatch, and of identities with ``everywhere``.

    Args:
        features: (N, D), phi(I).
        labels: (N) int64, the identity of each image.
        domains: (N) bool, False = full face, True = masked.
        centers: (2, identities, D), those of full faces first.
        known: (2, identities) bool, whether a centre has been set.
        margin_single, margin_cross: alpha_s of eq. 8 and alpha_c of eq. 10.
        cross: gamma of eq. 11.
        everywhere: see above.

    Returns:
        A scalar in the inputs' common dtype; half precision is computed in float32.
    """
    dtype = torch.promote_types(features.dtype, centers.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    features = features.to(wide)
    if features.shape[0] == 0:
        return features.sum().to(dtype)
    centers = centers.detach().to(wide).masked_fill(~known[:, :, None], 0)
    domain = domains.long()
    same_identity = labels[:, None] == labels
    same_domain = domains[:, None] == domains

    # Eq. 8, [i, j]: from the centre of image i's identity and domain to image j.
    own, own_known = centers[domain, labels], known[domain, labels]
    to_images = _distances(own, features)
    image, found = _least(to_images, same_domain & ~same_identity)
    single = _ranking(
        _norm(own - features), _norm(own - features.index_select(0, image)), margin_single, own_known & found
    )

    # Eq. 9, from image i to a centre.
    if everywhere:
        to_centers = [_distances(features, of_domain) for of_domain in centers]
        other = torch.arange(centers.shape[1], device=labels.device) != labels[:, None]
        center, found = _least(torch.where(domains[:, None], to_centers[1], to_centers[0]), known[domain] & other)
        nearest = centers[domain, center]
    else:
        image, found = _least(to_images.T, same_domain & ~same_identity & own_known)
        nearest = own[image]

    # Eq. 10, [i, j]: from image i to image j; the largest is the least of what is negated.
    partner, paired = _least(-_distances(features, features), same_identity & ~same_domain)
    crossed = _ranking(
        _norm(features - features.index_select(0, partner)), _norm(features - nearest), margin_cross, paired & found
    )

    return (single + cross * crossed).mean().to(dtype)  # eq. 11


def update(
    centers: Tensor, known: Tensor, features: Tensor, labels: Tensor, domains: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Eq. 12: each centre moves to the mean of its images in the minibatch, by 1 - momentum of the way.

    The paper does not say where centres begin: a centre that was not known becomes the mean. Centres without an image
    in the minibatch stay.

    Args:
        centers, known, features, labels, domains: as in :func:`domain_constrained_ranking`.
        momentum: beta.

    Returns:
        The new centres and which are known.
    """
    wide = torch.promote_types(centers.dtype, torch.float32)
    centers, known = centers.clone(), known.clone()
    for domain in (0, 1):
        for label in sorted(set(labels[domains == domain].tolist())):
            mean = features[(domains == domain) & (labels == label)].to(wide).mean(dim=0)
            before = centers[domain, label].to(wide)
            after = momentum * before + (1 - momentum) * mean if known[domain, label] else mean
            centers[domain, label] = after.to(centers.dtype)
            known[domain, label] = True
    return centers, known


@torch.no_grad()
def _distances(one: Tensor, other: Tensor) -> Tensor:
    """From each row to each other one, (A, D), (B, D) -> (A, B), to choose from; from their differences."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def _least(distances: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Where the least of each row is among those ``allowed``, the first of equals, and whether there is one."""
    return distances.masked_fill(~allowed, torch.inf).argmin(dim=1), allowed.any(dim=1)


def _norm(difference: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return norm


def _ranking(positive: Tensor, negative: Tensor, margin: float, exists: Tensor) -> Tensor:
    """max(positive + margin - negative, 0), and 0 where there is nothing to rank."""
    return torch.where(exists, torch.relu(positive + margin - negative), 0)
