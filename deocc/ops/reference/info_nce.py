"""Reference of :func:`deocc.ops.info_nce`."""

from __future__ import annotations

import torch
from torch import Tensor

from deocc.ops.reference import in_full


def info_nce(query: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """``-log(exp(q.k+ / t) / (exp(q.k+ / t) + sum over i of exp(q.k_i / t)))``, the mean over all queries.

    Equation 1 of the CANet paper, and of He et al. 2020: the cross-entropy of finding the positive among 1 + K keys.

    Args:
        query: (N, D).
        positive: (N, D), one for each query.
        queue: (K, D), the negatives of all queries; no gradient flows there.
        temperature: t.

    Returns:
        A scalar, in the dtype that the three promote to; half precision is computed in float32. 0 without queries.
    """
    dtype = torch.promote_types(torch.promote_types(query.dtype, positive.dtype), queue.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    query, positive, queue = query.to(wide), positive.to(wide), queue.detach().to(wide)
    right = (query * positive).sum(dim=1, keepdim=True) / temperature
    with in_full(query):
        wrong = query @ queue.T / temperature
    # The fraction with both sides divided by exp(right): its derivative by `right` does not cancel.
    loss = torch.cat([right * 0, wrong - right], dim=1).logsumexp(dim=1)
    return (loss.sum() / max(query.shape[0], 1)).to(dtype)
