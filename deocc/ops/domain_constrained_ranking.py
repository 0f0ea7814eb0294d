"""Ranking of images against identity centres in two domains, full and masked faces (Geng et al. 2020)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from deocc.errors import InputError
from deocc.ops._registry import Operator, is_finite
from deocc.ops.reference import domain_constrained_ranking as reference

_NAME = "domain_constrained_ranking"
_OPERATOR = Operator(_NAME, gpu="triton")


def domain_constrained_ranking(
    features: Tensor,
    labels: Tensor,
    domains: Tensor,
    centers: Tensor,
    known: Tensor | None = None,
    *,
    margin_single: float = 0.7,
    margin_cross: float = 0.5,
    cross: float = 0.75,
    negatives: Literal["batch", "all"] = "batch",
) -> Tensor:
    """Draw images towards their identity's centre and the other domain's images, away from other identities.

    Every identity has two centres, one of its full faces and one of its masked ones; :class:`DomainCenters` keeps
    them. For an image of identity l in domain x (Geng et al. 2020, section 4.2), with Euclidean distances:

    - Eq. 8, single domain: max(d(its centre, it) + margin_single - d(its centre, nearest), 0), where nearest is the
      image of another identity in the minibatch, of domain x, that lies nearest to the centre.
    - Eq. 9 and 10, cross domain: max(d(it, farthest) + margin_cross - d(it, nearest), 0), where farthest is the image
      of l in the other domain that lies farthest away in the minibatch, and nearest is the nearest centre of another
      identity in domain x.
    - Eq. 11: the sum of the first and ``cross`` times the second; here its mean over the minibatch.

    A part that has nothing to rank is 0: no image or centre of another identity, no image of the other domain, a centre
    that is not known. So is the loss of an empty minibatch. Of equally hard ones the first counts, in the order of the
    minibatch or, among all centres, of the identities.

    Gradients flow to the features, once, by the chosen images and centres alone: a second derivative is an error. A
    distance of 0 has the gradient 0. Nothing of centers is kept for the backward pass, so they may be updated before
    it. On the CPU no matrix of N x identities is in memory; distances are computed from differences in double
    precision, which finds the hardest among near duplicates too.

    Features and centres promote to one dtype, inside ``torch.autocast`` too. Half precision is computed in float32 and
    rounded once. Choosing among all centres takes little more than half the time in bfloat16 on a processor that
    multiplies it (AVX512-BF16), and chooses the same. Any strides are accepted. The same call gives the same bits, for
    any number of threads on the CPU.

    Args:
        features: (N, D) floating point (float64, float32, bfloat16 or float16). Neither they nor centers are divided
            by their length; the margins suit unit length. Values are not checked: a NaN among what is compared makes
            the loss NaN.
        labels: (N) int64, each image's identity, from 0 to identities - 1. On a GPU, looking waits for it.
        domains: (N) int64 or bool, 0 = full face, 1 = masked.
        centers: (2, identities, D) floating point, those of full faces first. They have no gradient.
        known: (2, identities) bool: which centres are to be used; the others may hold anything. None: all.
        margin_single: alpha_s of the paper, at least 0.
        margin_cross: alpha_c, at least 0; the paper wants it below alpha_s.
        cross: gamma, at least 0; the paper wants it below 1.
        negatives: ``"batch"``: the nearest centre in eq. 9 is one of an identity that the minibatch has an image of, in
            that domain, as in the paper. ``"all"``: any known centre of the domain, which is harder.

    Returns:
        A scalar.

    Raises:
        InputError: a type, shape, dtype, device or value that does not fit. Under ``torch.compile`` the kernels look at
            the values of labels instead, and raise a RuntimeError; every domain but 0 is masked there.
    """
    for name, value in (("margin_single", margin_single), ("margin_cross", margin_cross), ("cross", cross)):
        if not is_finite(value) or value < 0:
            raise InputError(f"{_NAME}: {name} must be a finite number of at least 0, got {value!r}")
    if not isinstance(negatives, str) or negatives not in ("batch", "all"):
        raise InputError(f"{_NAME}: negatives must be 'batch' or 'all', got {negatives!r}")
    _check_centers(_NAME, centers)
    if known is None:
        known = torch.ones(centers.shape[:2], dtype=torch.bool, device=centers.device)
    elif not isinstance(known, Tensor) or known.dtype != torch.bool or known.layout != torch.strided:
        got = known.dtype if isinstance(known, Tensor) else type(known).__name__
        raise InputError(f"{_NAME}: known must be a dense bool tensor or None, got {got}")
    elif known.shape != centers.shape[:2] or known.device != centers.device:
        raise InputError(
            f"{_NAME}: known must have shape {tuple(centers.shape[:2])} on {centers.device}, "
            f"got {tuple(known.shape)} on {known.device}"
        )
    masked = _check_images(_NAME, features, labels, domains, centers)
    features = features.to(torch.promote_types(features.dtype, centers.dtype))
    options = (float(margin_single), float(margin_cross), float(cross), negatives == "all")
    if _OPERATOR.uses_reference(features.device.type):
        return reference.domain_constrained_ranking(features, labels, masked, centers, known, *options)
    derivative = torch.is_grad_enabled() and features.requires_grad
    loss, _ = torch.ops.deocc.domain_constrained_ranking(
        features, labels, masked, centers.detach(), known, *options, derivative
    )
    return loss  # type: ignore[no-any-return]


class DomainCenters(nn.Module):
    """The centres of every identity in both domains, for :func:`domain_constrained_ranking` (Geng et al. 2020, eq. 12).

    ::

        loss = domain_constrained_ranking(features, labels, domains, centers.centers, centers.known)
        centers.update(features, labels, domains)  # now, or after the backward pass
        loss.backward()

    Centres and which of them are known are buffers, and so are in ``state_dict``. They begin unknown, at 0. With
    several processes, gather features, labels and domains first and call update on each with all of them.

    Args:
        identities: how many there are.
        dim: D.
        momentum: beta, from 0 to 1: how much of a centre stays. The paper's is 0.5.
        dtype, device: of the centres.

    Raises:
        InputError: a number that does not fit.
    """

    centers: Tensor
    """(2, identities, D), those of full faces first."""
    known: Tensor
    """(2, identities) bool: whether a centre has been set."""

    def __init__(
        self,
        identities: int,
        dim: int,
        *,
        momentum: float = 0.5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("identities", identities), ("dim", dim)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"DomainCenters: {name} must be an integer of at least 1, got {size!r}")
        if not is_finite(momentum) or not 0 <= momentum <= 1:
            raise InputError(f"DomainCenters: momentum must be a number from 0 to 1, got {momentum!r}")
        if dtype not in _DTYPES:
            raise InputError(f"DomainCenters: dtype must be float32, float64, bfloat16 or float16, got {dtype!r}")
        self.momentum = float(momentum)
        self.register_buffer("centers", torch.zeros(2, identities, dim, dtype=dtype, device=device))
        self.register_buffer("known", torch.zeros(2, identities, dtype=torch.bool, device=device))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, domains: Tensor) -> None:
        """Move the centres of a minibatch's identities towards the mean of their images, by 1 - momentum (eq. 12).

        A centre that was not known becomes the mean. The others stay. The images of an identity are added up in the
        order of the minibatch, in float32 (float64 for float64 centres): the same call gives the same bits.

        Args:
            features, labels, domains: as in :func:`domain_constrained_ranking`. NaN and infinities go into the centre.

        Raises:
            InputError: a type, shape, dtype, device or value that does not fit.
        """
        name = "DomainCenters.update"
        _check_centers(name, self.centers)
        masked = _check_images(name, features, labels, domains, self.centers)
        if not len(labels):
            return
        identities = self.centers.shape[1]
        place, order = torch.sort(masked.long() * identities + labels, stable=True)
        place, counts = torch.unique_consecutive(place, return_counts=True)
        wide = torch.promote_types(self.centers.dtype, torch.float32)
        mean = torch.segment_reduce(features.detach().to(wide)[order], "mean", lengths=counts)
        domain, label = place // identities, place % identities
        before = self.centers[domain, label].to(wide)
        after = torch.where(self.known[domain, label, None], self.momentum * before + (1 - self.momentum) * mean, mean)
        self.centers[domain, label] = after.to(self.centers.dtype)
        self.known[domain, label] = True

    def extra_repr(self) -> str:
        """Sizes and momentum, for ``print``."""
        return f"identities={self.centers.shape[1]}, dim={self.centers.shape[2]}, momentum={self.momentum}"


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check_tensor(name: str, what: str, value: object, dtypes: tuple[torch.dtype, ...], wanted: str) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: {what} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise InputError(f"{name}: {what} must be {wanted}, got {value.dtype}")
    if value.layout != torch.strided:
        raise InputError(f"{name}: {what} must be a dense tensor, got {value.layout}")


def _check_centers(name: str, centers: Tensor) -> None:
    _check_tensor(name, "centers", centers, _DTYPES, "float32, float64, bfloat16 or float16")
    if centers.dim() != 3 or centers.shape[0] != 2 or 0 in centers.shape:
        raise InputError(
            f"{name}: centers must have shape (2, identities, D) with at least one identity and dimension, "
            f"got {tuple(centers.shape)}"
        )


def _check_images(name: str, features: Tensor, labels: Tensor, domains: Tensor, centers: Tensor) -> Tensor:
    """Check everything but the centres; which images are masked."""
    _check_tensor(name, "features", features, _DTYPES, "float32, float64, bfloat16 or float16")
    _check_tensor(name, "labels", labels, (torch.int64,), "int64")
    _check_tensor(name, "domains", domains, (torch.int64, torch.bool), "int64 or bool")
    for what, value in (("features", features), ("labels", labels), ("domains", domains)):
        if value.device != centers.device:
            raise InputError(f"{name}: {what} must be on the centers' device {centers.device}, got {value.device}")
    _, identities, dim = centers.shape
    if features.dim() != 2 or features.shape[1] != dim:
        raise InputError(
            f"{name}: features must have shape (N, {dim}) for centers of shape {tuple(centers.shape)}, "
            f"got {tuple(features.shape)}"
        )
    for what, value in (("labels", labels), ("domains", domains)):
        if value.shape != features.shape[:1]:
            raise InputError(
                f"{name}: {what} must have shape {tuple(features.shape[:1])} for {len(features)} features, "
                f"got {tuple(value.shape)}"
            )
    if not torch.compiler.is_compiling():
        _check_range(f"{name}: labels", labels, identities)
        if domains.dtype != torch.bool:
            _check_range(f"{name}: domains", domains, 2)
    return domains != 0


def _check_range(what: str, value: Tensor, end: int) -> None:
    if not value.numel() or value.is_meta:
        return
    low, high = (int(bound) for bound in value.aminmax())
    if low < 0 or high >= end:
        raise InputError(f"{what} must be from 0 to {end - 1}, got {low if low < 0 else high}")


def _fake(
    features: Tensor,
    labels: Tensor,
    domains: Tensor,
    centers: Tensor,
    known: Tensor,
    margin_single: float,
    margin_cross: float,
    cross: float,
    everywhere: bool,
    derivative: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(features.dtype, torch.float32)
    shape = (features.shape[0] if derivative else 0, features.shape[1])
    return features.new_empty(()), features.new_empty(shape, dtype=wide)


def _fake_backward(gradient: Tensor, by_features: Tensor, features: Tensor) -> Tensor:
    return gradient.new_empty(by_features.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, by_features = output
    ctx.mark_non_differentiable(by_features)
    # The derivative, and not the centres, which may have been updated before it is asked for. The features are there
    # only to be known as such when a second derivative is asked for.
    ctx.save_for_backward(by_features, inputs[0] if inputs[-1] else None)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    by_features, features = ctx.saved_tensors
    if features is None:
        raise RuntimeError("torch.ops.deocc.domain_constrained_ranking was called with derivative=False")
    by_features = torch.ops.deocc.domain_constrained_ranking_backward(gradient, by_features, features)
    return by_features, *[None] * 9


_OPERATOR.define(
    "domain_constrained_ranking(Tensor features, Tensor labels, Tensor domains, Tensor centers, Tensor known,"
    " float margin_single, float margin_cross, float cross, bool everywhere, bool derivative) -> (Tensor, Tensor)",
    _fake,
)
_OPERATOR.define(
    "domain_constrained_ranking_backward(Tensor gradient, Tensor by_features, Tensor features) -> Tensor",
    _fake_backward,
)
_OPERATOR.differentiate(_backward, _setup_context)
_OPERATOR.refuse_derivative("domain_constrained_ranking_backward")
_OPERATOR.implement_in_triton("domain_constrained_ranking", "domain_constrained_ranking_backward")
