"""The contrastive loss of momentum contrast and its queue of keys (He et al. 2020; van den Oord et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deocc.errors import InputError
from deocc.ops._registry import Operator, is_finite
from deocc.ops.reference import info_nce as reference

_OPERATOR = Operator("info_nce", gpu="triton")


def info_nce(query: Tensor, positive: Tensor, queue: Tensor, *, temperature: float = 0.07) -> Tensor:
    """How surely each query finds its positive among all keys of a queue: the loss of He et al. 2020, equation 1.

    ``-log(exp(q.k+ / t) / (exp(q.k+ / t) + sum over i of exp(q.k_i / t)))``, the mean over the queries: what
    ``torch.nn.functional.cross_entropy`` gives for the N x (1 + K) scores divided by ``temperature``, with class 0
    everywhere. These scores are never in memory.

    Gradients flow to query and positive, once: a second derivative is an error. They are made together with the loss,
    when gradients are on and one of the two wants one, so nothing of the queue is kept: enqueueing in place
    before ``backward`` is safe, and no clone is needed. The queue gets no gradient, and one that wants one is refused.

    The three promote to one dtype, inside ``torch.autocast`` too, which is that of the result; the queue is read as it
    is stored, at half the memory traffic in bfloat16. Half precision is computed in float32 and rounded once, with one
    exception: processors that multiply bfloat16 (AVX512-BF16; GPUs, float16 as well) round the query and the softmax to
    the dtype of such a queue inside the products with it, unless the result is float64. Sums and exponentials stay
    float32. For unit vectors at temperature 0.07 the loss is then right to 1e-3 of it and gradients to 1e-2.

    Vectors are taken as they are: normalise them first. Any strides are accepted. NaN and infinities make the loss NaN
    or infinite, and spoil the gradients of their own query (in the queue: all). The same call gives the same bits for
    the same number of threads.

    Args:
        query: (N, D) floating point (float64, float32, bfloat16 or float16), D at least 1. N = 0 gives a loss of 0.
        positive: (N, D), likewise, the key that each query belongs to.
        queue: (K, D), likewise, keys that no query belongs to, such as :attr:`KeyQueue.queue`. K = 0 gives a loss of 0.
        temperature: positive.

    Returns:
        A scalar.

    Raises:
        InputError: a type, shape, dtype or device that does not fit, a queue that requires a gradient, or a temperature
            that is not positive and finite.
    """
    _check(query, positive, queue, temperature)
    dtype = torch.promote_types(torch.promote_types(query.dtype, positive.dtype), queue.dtype)
    query, positive = query.to(dtype), positive.to(dtype)
    by_query, by_positive = (torch.is_grad_enabled() and value.requires_grad for value in (query, positive))
    if _OPERATOR.uses_reference(query.device.type):
        # Autograd keeps what it multiplied, and the queue may change before it is used.
        return reference.info_nce(query, positive, queue.clone() if by_query else queue, float(temperature))
    loss, _, _ = torch.ops.deocc.info_nce(query, positive, queue, float(temperature), by_query, by_positive)
    return loss  # type: ignore[no-any-return]


class InfoNCE(nn.Module):
    """:func:`info_nce` at one temperature: ``loss = InfoNCE(0.07)(query, positive, keys.queue)``.

    Args:
        temperature: positive.

    Raises:
        InputError: it is not.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        _check_temperature("InfoNCE", temperature)
        self.temperature = float(temperature)

    def forward(self, query: Tensor, positive: Tensor, queue: Tensor) -> Tensor:
        """See :func:`info_nce`."""
        return info_nce(query, positive, queue, temperature=self.temperature)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"temperature={self.temperature}"


class KeyQueue(nn.Module):
    """The last K keys, for :func:`info_nce` (He et al. 2020, section 3.2)::

        keys = KeyQueue(65536, 128)
        loss = info_nce(query, key, keys.queue)
        keys.enqueue(key)  # before or after loss.backward(), as you like

    Its state is two buffers, both in ``state_dict``, so a run resumes where it stopped:

    - ``queue`` (K, D): rows of unit length. At first they are random, from ``seed`` and from nothing else: the same on
      every process, and the global random state is not touched.
    - ``pointer``: a scalar int64, the row that the next key replaces, the oldest.

    ``enqueue(keys, gather=True)`` keeps the queues of many processes equal. Keep them out of what
    ``DistributedDataParallel`` wraps, or pass it ``broadcast_buffers=False``: it would send the whole queue around at
    every step.

    Args:
        length: K, at least 1.
        dim: D, at least 1.
        dtype: float32, or bfloat16 for half the memory and a faster loss; also float64 and float16.
        device: where the buffers are made; by default PyTorch's default device.
        seed: of the first keys.

    Raises:
        InputError: a length, dim, dtype or seed that does not fit.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(
        self,
        length: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("length", length), ("dim", dim)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"KeyQueue: {name} must be an integer of at least 1, got {value!r}")
        if dtype not in _DTYPES:
            raise InputError(f"KeyQueue: dtype must be float32, float64, bfloat16 or float16, got {dtype}")
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64:
            raise InputError(f"KeyQueue: seed must be an integer from -2**63 to 2**64 - 1, got {seed!r}")
        device = torch.get_default_device() if device is None else device
        generator = torch.Generator("cpu").manual_seed(seed)
        rows = torch.randn(length, dim, generator=generator, dtype=torch.float32, device="cpu")
        self.register_buffer("queue", nn.functional.normalize(rows, dim=1).to(device=device, dtype=dtype))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def enqueue(
        self, keys: Tensor, *, gather: bool = False, group: torch.distributed.ProcessGroup | None = None
    ) -> None:
        """Replace the oldest keys, in place; past the last row it goes on with the first.

        However many keys come, the result is that of enqueueing them one by one: of more than K the last K stay.
        They are detached, divided by their norms (in float64; a row of zeros stays) and rounded to the queue's dtype.
        NaN stays NaN: nothing looks at the values, so that a GPU need not be waited for.

        Args:
            keys: (B, D) floating point, on the queue's device; any B, 0 included.
            gather: take the keys of all processes, in the order of their ranks. Every process has to call it; their
                numbers of keys may differ. Without ``torch.distributed`` this process is all there are.
            group: which processes; None means all of them.

        Raises:
            InputError: a type, shape, dtype or device that does not fit.
        """
        length, dim = self.queue.shape
        _check_matrix("KeyQueue.enqueue", "keys", keys)
        if keys.shape[1] != dim:
            raise InputError(f"KeyQueue.enqueue: keys must have shape (B, {dim}), got {tuple(keys.shape)}")
        if keys.device != self.queue.device:
            wanted = f"on the queue's device {self.queue.device}"
            raise InputError(f"KeyQueue.enqueue: keys must be {wanted}, got {keys.device}")
        # In float64 the squares of narrower numbers neither overflow nor vanish.
        keys = nn.functional.normalize(keys.detach().double(), dim=1, eps=_LEAST).to(self.queue.dtype)
        if gather and torch.distributed.is_available() and torch.distributed.is_initialized():
            keys = _gather(keys, group)
        left_out = max(len(keys) - length, 0)
        rows = self.pointer + torch.arange(left_out, len(keys), device=self.queue.device)
        self.queue.index_copy_(0, rows % length, keys[left_out:])
        self.pointer.copy_((self.pointer + len(keys)) % length)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        length, dim = self.queue.shape
        return f"{length}, {dim}, dtype={self.queue.dtype}"


def _gather(keys: Tensor, group: torch.distributed.ProcessGroup | None) -> Tensor:
    """The rows of all processes, in the order of their ranks; each may have another number of them."""
    processes = torch.distributed.get_world_size(group)
    counts = [torch.zeros((), dtype=torch.int64, device=keys.device) for _ in range(processes)]
    torch.distributed.all_gather(counts, torch.tensor(len(keys), device=keys.device), group=group)
    lengths = torch.stack(counts).tolist()
    most = max(lengths)
    padded = nn.functional.pad(keys, (0, 0, 0, most - len(keys)))
    everywhere = [torch.empty_like(padded) for _ in range(processes)]
    torch.distributed.all_gather(everywhere, padded, group=group)
    return torch.cat([rows[:length] for rows, length in zip(everywhere, lengths, strict=True)])


_LEAST = torch.finfo(torch.float64).tiny
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check_temperature(name: str, temperature: float) -> None:
    if not is_finite(temperature) or not temperature > 0:
        raise InputError(f"{name}: temperature must be a positive, finite number, got {temperature!r}")


def _check_matrix(name: str, what: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: {what} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in _DTYPES:
        raise InputError(f"{name}: {what} must be float32, float64, bfloat16 or float16, got {value.dtype}")
    if value.layout != torch.strided:
        raise InputError(f"{name}: {what} must be a dense tensor, got {value.layout}")
    if value.dim() != 2 or not value.shape[1]:
        shape = "(B, D)" if what == "keys" else "(K, D)" if what == "queue" else "(N, D)"
        raise InputError(f"{name}: {what} must have shape {shape} with D at least 1, got {tuple(value.shape)}")


def _check(query: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> None:
    for what, value in (("query", query), ("positive", positive), ("queue", queue)):
        _check_matrix("info_nce", what, value)
        if value.device != query.device:
            raise InputError(f"info_nce: {what} must be on the query's device {query.device}, got {value.device}")
    if positive.shape != query.shape:
        raise InputError(
            f"info_nce: positive must have the query's shape {tuple(query.shape)}, got {tuple(positive.shape)}"
        )
    if queue.shape[1] != query.shape[1]:
        raise InputError(
            f"info_nce: queue must have shape (K, {query.shape[1]}) for queries of that dimension, "
            f"got {tuple(queue.shape)}"
        )
    if queue.requires_grad and torch.is_grad_enabled():
        raise InputError("info_nce: the queue gets no gradient, and this one requires one; pass queue.detach()")
    _check_temperature("info_nce", temperature)


def _fake(
    query: Tensor, positive: Tensor, queue: Tensor, temperature: float, by_query: bool, by_positive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    count, dim = query.shape
    to_query, to_positive = (
        query.new_empty((count if wanted else 0, dim), dtype=dtype) for wanted in (by_query, by_positive)
    )
    return query.new_empty(()), to_query, to_positive


def _fake_backward(
    gradient: Tensor, by_query: Tensor, by_positive: Tensor, query: Tensor | None, positive: Tensor | None
) -> tuple[Tensor, Tensor]:
    return by_query.new_empty(by_query.shape, dtype=gradient.dtype), by_positive.new_empty(
        by_positive.shape, dtype=gradient.dtype
    )


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float, bool, bool], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    query, positive, _, _, *wanted = inputs
    _, by_query, by_positive = output
    ctx.mark_non_differentiable(by_query, by_positive)
    ctx.set_materialize_grads(False)
    # The inputs themselves are there only to be known as such when a second derivative is asked for.
    kept = (value if asked else None for value, asked in zip((query, positive), wanted, strict=True))
    ctx.save_for_backward(by_query, by_positive, *kept)


def _backward(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    by_query, by_positive, query, positive = ctx.saved_tensors
    if gradient is None:
        return (None,) * 6
    for name, needed, kept in zip(("query", "positive"), ctx.needs_input_grad, (query, positive), strict=False):
        if needed and kept is None:
            raise RuntimeError(f"torch.ops.deocc.info_nce was called without by_{name}, and its gradient is asked for")
    by_query, by_positive = torch.ops.deocc.info_nce_backward(gradient, by_query, by_positive, query, positive)
    return by_query if query is not None else None, by_positive if positive is not None else None, *(None,) * 4


_OPERATOR.define(
    "info_nce(Tensor query, Tensor positive, Tensor queue, float temperature, bool by_query, bool by_positive)"
    " -> (Tensor, Tensor, Tensor)",
    _fake,
)
_OPERATOR.define(
    "info_nce_backward(Tensor gradient, Tensor by_query, Tensor by_positive, Tensor? query, Tensor? positive)"
    " -> (Tensor, Tensor)",
    _fake_backward,
)
_OPERATOR.differentiate(_backward, _setup_context)
_OPERATOR.refuse_derivative("info_nce_backward")
_OPERATOR.implement_in_triton("info_nce", "info_nce_backward")
