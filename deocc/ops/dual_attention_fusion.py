"""Dual attention fusion (canet section 3.2): decoder features become an image, which is blended with the known one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deocc.errors import InputError
from deocc.ops._registry import Operator
from deocc.ops.reference import dual_attention_fusion as reference
from deocc.ops.reference import in_full

_PROJECTION = Operator("gated_projection")
_ATTENTION = Operator("channel_attention_projection")
_DOWNSAMPLE = Operator("area_downsample")
_BLEND = Operator("attention_blend")


def gated_projection(features: Tensor, channel_gate: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1 x 1 convolution of rescaled features, ``weight (channel_gate * features) + bias`` (canet eq. 5 and 7).

    The gate goes into the weights of each sample, so the rescaled features never exist, and the features are read once.
    Gradients flow to all four and can be differentiated again.

    The result has the features' dtype, also inside ``torch.autocast`` and whatever the small tensors have: these are
    converted to what is computed in, float32 for half precision, which is rounded once. Any strides are accepted;
    channels_last features give a channels_last result, and are not copied. NaN and infinities spread to the pixels
    that they have a part in, as in ordinary arithmetic.

    Args:
        features: (N, C, H, W) floating point (float64, float32, bfloat16 or float16).
        channel_gate: (N, C) likewise, one factor for each channel of each sample.
        weight: (O, C) likewise; a convolution's (O, C, 1, 1) will do.
        bias: (O) likewise, or None.

    Returns:
        (N, O, H, W).

    Raises:
        InputError: a type, shape, dtype or device that does not fit.
    """
    name = "gated_projection"
    _check_features(name, features)
    batch, channels = features.shape[:2]
    weight, bias = _check_projection(name, features, weight, bias)
    _check_small(name, "channel_gate", channel_gate, features, (batch, channels))
    if _PROJECTION.uses_reference(features.device.type):
        return reference.gated_projection(features, channel_gate, weight, bias)
    wide = _wide(features)
    return torch.ops.deocc.gated_projection(  # type: ignore[no-any-return]
        features, channel_gate.to(wide), weight.to(wide), bias.to(wide)
    )


def channel_attention_projection(
    features: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """:func:`gated_projection` by the gate that the features themselves give (canet eq. 3 to 5; Hu et al. 2018).

    ``gate = sigmoid(up relu(down z + down_bias) + up_bias)``, z being each channel's average over the pixels. The same
    as computing that gate first, and faster in training: the gradient that comes back through the average is written
    together with the others. Gradients flow to all seven and can be differentiated again (that recomputes everything
    in plain PyTorch). Dtypes, strides and special values are treated as by :func:`gated_projection`; a NaN or an
    infinity spreads to the whole sample.

    Args:
        features: (N, C, H, W) floating point (float64, float32, bfloat16 or float16).
        down, down_bias: (R, C) and (R) likewise, R being C / 16 by custom; (R, C, 1, 1) will do.
        up, up_bias: (C, R) and (C) likewise; (C, R, 1, 1) will do.
        weight: (O, C) or (O, C, 1, 1) likewise.
        bias: (O) likewise, or None.

    Returns:
        (N, O, H, W).

    Raises:
        InputError: a type, shape, dtype or device that does not fit.
    """
    name = "channel_attention_projection"
    _check_features(name, features)
    channels = features.shape[1]
    weight, bias = _check_projection(name, features, weight, bias)
    down = _check_weight(name, "down", down, features, channels)
    _check_small(name, "down_bias", down_bias, features, (down.shape[0],))
    up = _check_weight(name, "up", up, features, down.shape[0])
    if up.shape[0] != channels:
        raise InputError(f"{name}: up must have shape {(channels, down.shape[0])}, got {tuple(up.shape)}")
    _check_small(name, "up_bias", up_bias, features, (channels,))
    if _ATTENTION.uses_reference(features.device.type):
        return reference.channel_attention_projection(features, down, down_bias, up, up_bias, weight, bias)
    small = (value.to(_wide(features)) for value in (down, down_bias, up, up_bias, weight, bias))
    return torch.ops.deocc.channel_attention_projection(features, *small)[0]  # type: ignore[no-any-return]


def area_downsample(image: Tensor, size: Sequence[int]) -> Tensor:
    """Make an image smaller; each new pixel is the average of those that it covers (the arrow in canet eq. 6).

    Windows are those of ``torch.nn.functional.interpolate(mode="area")``: row i averages the rows from floor(i H / h)
    up to and without ceil((i + 1) H / h), so a row that two windows share counts in both. Gradients can be
    differentiated again. Half precision is computed in float32 and rounded once. Any strides are accepted; a
    channels_last image gives a channels_last result. NaN and infinities spread to the windows that they are in.

    Args:
        image: (N, C, H, W) floating point (float64, float32, bfloat16 or float16).
        size: (h, w), at least (1, 1) and at most (H, W).

    Returns:
        (N, C, h, w).

    Raises:
        InputError: a type, shape, dtype or size that does not fit.
    """
    name = "area_downsample"
    _check_tensor(name, "image", image)
    if image.dim() != 4 or 0 in image.shape[1:]:
        raise InputError(
            f"{name}: image must have shape (N, C, H, W) with at least one channel and pixel, got {tuple(image.shape)}"
        )
    if not isinstance(size, Sequence) or len(size) != 2 or not all(_is_integer(value) for value in size):
        raise InputError(f"{name}: size must be two integers, got {size!r}")
    height, width = size
    if not (1 <= height <= image.shape[2] and 1 <= width <= image.shape[3]):
        raise InputError(
            f"{name}: size must be at least 1 x 1 and at most the image's {image.shape[2]} x {image.shape[3]}, "
            f"got {height} x {width}"
        )
    if _DOWNSAMPLE.uses_reference(image.device.type):
        return reference.area_downsample(image, (height, width))
    return torch.ops.deocc.area_downsample(image, height, width)  # type: ignore[no-any-return]


def attention_blend(logits: Tensor, restored: Tensor, known: Tensor) -> Tensor:
    """``alpha * restored + (1 - alpha) * known`` with ``alpha = sigmoid(logits)``, in one pass (canet eq. 7 and 8).

    1 - alpha is sigmoid(-logits), so that neither loses digits at large logits. Gradients flow to all three, and can
    be differentiated again, for a gradient penalty.

    The three promote to one dtype as in ordinary arithmetic, inside ``torch.autocast`` too. Half precision is computed
    in float32 and rounded once. Any strides are accepted; a channels_last restored image gives a channels_last
    result. NaN and infinities propagate: a weight of 0 times an infinity is NaN.

    Args:
        logits: (N, C, H, W) floating point (float64, float32, bfloat16 or float16): alpha has the image's channels.
        restored: (N, C, H, W) likewise, what shows where alpha is 1.
        known: (N, C, H, W) likewise, what shows where alpha is 0.

    Returns:
        (N, C, H, W).

    Raises:
        InputError: a type, shape, dtype or device that does not fit.
    """
    name = "attention_blend"
    for what, value in (("logits", logits), ("restored", restored), ("known", known)):
        _check_tensor(name, what, value, logits, "logits'")
    if logits.dim() != 4:
        raise InputError(f"{name}: logits must have shape (N, C, H, W), got {tuple(logits.shape)}")
    for what, value in (("restored", restored), ("known", known)):
        if value.shape != logits.shape:
            raise InputError(
                f"{name}: {what} must have the logits' shape {tuple(logits.shape)}, got {tuple(value.shape)}"
            )
    if not logits.dtype == restored.dtype == known.dtype:
        dtype = torch.promote_types(torch.promote_types(logits.dtype, restored.dtype), known.dtype)
        logits, restored, known = logits.to(dtype), restored.to(dtype), known.to(dtype)
    if _BLEND.uses_reference(logits.device.type):
        return reference.attention_blend(logits, restored, known)
    return torch.ops.deocc.attention_blend(logits, restored, known)  # type: ignore[no-any-return]


class Fusion(NamedTuple):
    """What :meth:`DualAttentionFusion.parts` computes; all are (N, O, h, w)."""

    result: Tensor
    """``alpha * restored + (1 - alpha) * known``."""
    restored: Tensor
    """The features as an image, W_K of the rescaled features."""
    known: Tensor
    """The image at the features' scale, x'."""
    logits: Tensor
    """Of the attention: alpha is their sigmoid."""


class DualAttentionFusion(nn.Module):
    """The dual attention fusion module (canet section 3.2), to be put behind any scale of a decoder.

    Channel attention over the features, their projection to an image, the known image at that scale, and spatial
    attention between the two. A multi-scale decoder holds one module for each scale, and gives all of them the same
    full-size image; the paper does so at its last scales and has a loss at every one of them.

    Where the paper is silent: all convolutions have biases, the attention's hidden layers are followed by ReLU, and the
    image is made smaller by averaging (:func:`area_downsample`), before the 1 x 1 convolution W_C: both are linear, so
    their order does not matter but for the time.

    The operators read the weights of ``down``, ``up``, ``project`` and ``embed``; these layers are never called, so
    hooks on them do not run. What replaces a weight by a property, as ``torch.nn.utils.parametrizations`` does, works.

    Args:
        channels: C of the features.
        reduction: r of the channel attention: its hidden layer has max(C / r, 1) channels.
        hidden: channels between the three convolutions of the spatial attention.
        image_channels: of the known image and of the result.

    Raises:
        InputError: a number that is not a positive integer.
    """

    def __init__(self, channels: int, reduction: int = 16, hidden: int = 32, *, image_channels: int = 3) -> None:
        super().__init__()
        sizes = {"channels": channels, "reduction": reduction, "hidden": hidden, "image_channels": image_channels}
        for name, value in sizes.items():
            if not _is_integer(value) or value < 1:
                raise InputError(f"DualAttentionFusion: {name} must be a positive integer, got {value!r}")
        self.down = nn.Linear(channels, max(channels // reduction, 1))
        self.up = nn.Linear(self.down.out_features, channels)
        self.project = nn.Conv2d(channels, image_channels, 1)
        self.embed = nn.Conv2d(image_channels, image_channels, 1)
        self.attend = nn.Sequential(
            nn.Conv2d(2 * image_channels, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, image_channels, 3, padding=1),
        )

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """Blend what the features show with what is known.

        Args:
            features: (N, channels, h, w).
            image: (N, image_channels, H, W), the input image, occluded as it is, with H >= h and W >= w.

        Returns:
            (N, image_channels, h, w).

        Raises:
            InputError: a type, shape, dtype or device that does not fit.
        """
        return self.parts(features, image).result

    def parts(self, features: Tensor, image: Tensor) -> Fusion:
        """The same, with what it is made of: for losses on the restored image, and for pictures of the attention.

        Args:
            features, image: as of :meth:`forward`.

        Raises:
            InputError: as there.
        """
        restored = channel_attention_projection(
            features,
            self.down.weight,
            self.down.bias,
            self.up.weight,
            self.up.bias,
            self.project.weight,
            self.project.bias,
        )
        _check_tensor("DualAttentionFusion", "image", image, features)
        batch, channels, height, width = restored.shape
        if image.dim() != 4 or image.shape[:2] != (batch, channels):
            wanted = f"({batch}, {channels}, H, W)"
            raise InputError(f"DualAttentionFusion: image must have shape {wanted}, got {tuple(image.shape)}")
        # Few channels to few: bound by memory, for which convolutions are not made.
        known = gated_projection(
            area_downsample(image, (height, width)),
            image.new_ones((batch, channels)),
            self.embed.weight,
            self.embed.bias,
        )
        pair, dtype = torch.cat((restored, known), 1), self.attend[0].weight.dtype
        if pair.dtype != dtype and not torch.is_autocast_enabled(pair.device.type):
            raise InputError(
                f"DualAttentionFusion: features and image must have the module's dtype {dtype}, but inside "
                f"torch.autocast, got {features.dtype} and {image.dtype}"
            )
        # Convolutions of few channels are up to twice as fast on channels_last images.
        logits = self.attend(pair.contiguous(memory_format=torch.channels_last))
        return Fusion(attention_blend(logits, restored, known), restored, known, logits)


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _wide(value: Tensor) -> torch.dtype:
    """What a tensor is computed in."""
    return torch.promote_types(value.dtype, torch.float32)


def _check_tensor(name: str, what: str, value: Tensor, like: Tensor | None = None, whose: str = "features'") -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: {what} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in _DTYPES:
        raise InputError(f"{name}: {what} must be float32, float64, bfloat16 or float16, got {value.dtype}")
    if value.layout != torch.strided:
        raise InputError(f"{name}: {what} must be a dense tensor, got {value.layout}")
    if like is not None and value.device != like.device:
        raise InputError(f"{name}: {what} must be on the {whose} device {like.device}, got {value.device}")


def _check_features(name: str, features: Tensor) -> None:
    _check_tensor(name, "features", features)
    if features.dim() != 4 or 0 in features.shape[1:]:
        raise InputError(
            f"{name}: features must have shape (N, C, H, W) with at least one channel and pixel, "
            f"got {tuple(features.shape)}"
        )


def _check_small(name: str, what: str, value: Tensor, features: Tensor, shape: tuple[int, ...]) -> None:
    _check_tensor(name, what, value, features)
    if value.shape != shape:
        raise InputError(
            f"{name}: {what} must have shape {shape} for features of shape {tuple(features.shape)}, "
            f"got {tuple(value.shape)}"
        )


def _check_weight(name: str, what: str, weight: Tensor, features: Tensor, inputs: int) -> Tensor:
    """(rows, inputs), without the two axes of size 1 of a convolution's weight."""
    _check_tensor(name, what, weight, features)
    if weight.dim() == 4 and weight.shape[2:] == (1, 1):
        weight = weight[:, :, 0, 0]
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != inputs:
        raise InputError(
            f"{name}: {what} must have {inputs} columns, of shape (rows, {inputs}), got {tuple(weight.shape)}"
        )
    return weight


def _check_projection(name: str, features: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    weight = _check_weight(name, "weight", weight, features, features.shape[1])
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    _check_small(name, "bias", bias, features, (weight.shape[0],))
    return weight, bias


def _is_channels_last(value: Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()


def _empty(like: Tensor, shape: Sequence[int | torch.SymInt], channels_last: bool) -> Tensor:
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order)


def _fake_projection(features: Tensor, channel_gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    return _empty(features, (batch, weight.shape[0], height, width), _is_channels_last(features))


def _fake_products(gradient: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    (batch, channels), outputs = features.shape[:2], gradient.shape[1]
    wide = _wide(features)
    return features.new_empty((batch, outputs, channels), dtype=wide), features.new_empty((batch, outputs), dtype=wide)


def _fake_features(gradient: Tensor, folded: Tensor, shift: Tensor, channels_last: bool) -> Tensor:
    return _empty(gradient, (gradient.shape[0], folded.shape[2], *gradient.shape[2:]), channels_last)


def _fake_attention(
    features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    average, gate = (features.new_empty(features.shape[:2], dtype=_wide(features)) for _ in range(2))
    return _fake_projection(features, gate, weight, bias), average, gate


def _fake_downsample(image: Tensor, height: int, width: int) -> Tensor:
    return _empty(image, (*image.shape[:2], height, width), _is_channels_last(image))


def _like(value: Tensor) -> Tensor:
    return _empty(value, value.shape, _is_channels_last(value))


def _fake_blend(logits: Tensor, restored: Tensor, known: Tensor) -> Tensor:
    return _like(restored)


def _fake_blend_backward(
    gradient: Tensor, logits: Tensor, restored: Tensor, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(restored), _like(restored), _like(restored)


def _again(
    function: Any, gradient: Tensor, inputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Derivatives that can be differentiated again, from the reference."""
    # Views, since one input may have been computed from another: what flows between them is not ours.
    inputs = [value.view_as(value) for value in inputs]
    leaves = [value for value, want in zip(inputs, wanted, strict=True) if want]
    with in_full(gradient):
        found = iter(torch.autograd.grad(function(*inputs), leaves, gradient, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _projection_backward(ctx: Any, gradient: Tensor) -> Sequence[Tensor | None]:
    features, gate, weight, bias = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: what is returned will be differentiated again
        return _again(reference.gated_projection, gradient, (features, gate, weight, bias), ctx.needs_input_grad)
    by_features = by_gate = by_weight = by_bias = None
    if ctx.needs_input_grad[0]:
        by_features = torch.ops.deocc.gated_projection_features(
            gradient, weight * gate[:, None], torch.zeros_like(gate), _is_channels_last(features)
        )
    if any(ctx.needs_input_grad[1:]):
        products, sums = torch.ops.deocc.gated_projection_products(gradient, features)
        by_gate, by_weight, by_bias = (products * weight).sum(1), (products * gate[:, None]).sum(0), sums.sum(0)
    return by_features, by_gate, by_weight, by_bias


def _keep_attention(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, average, gate = output
    ctx.mark_non_differentiable(average, gate)
    ctx.save_for_backward(*inputs, average, gate)


def _attention_backward(ctx: Any, gradient: Tensor, *_: Tensor | None) -> Sequence[Tensor | None]:
    *inputs, average, gate = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: what is returned will be differentiated again
        return _again(reference.channel_attention_projection, gradient, inputs, ctx.needs_input_grad)
    features, down, down_bias, up, _, weight, _ = inputs
    products, sums = torch.ops.deocc.gated_projection_products(gradient, features)
    by_weight, by_bias = (products * gate[:, None]).sum(0), sums.sum(0)
    with in_full(gradient):  # torch.compile differentiates inside the autocast that it found
        hidden = torch.addmm(down_bias, average, down.T).relu()
        by_up_sum = (products * weight).sum(1) * gate * (1 - gate)
        by_down_sum = (by_up_sum @ up) * (hidden > 0)
        by_mean = by_down_sum @ down
        by_down, by_up = by_down_sum.T @ average, by_up_sum.T @ hidden
    by_features = None
    if ctx.needs_input_grad[0]:
        shift = by_mean / (features.shape[2] * features.shape[3])
        by_features = torch.ops.deocc.gated_projection_features(
            gradient, weight * gate[:, None], shift, _is_channels_last(features)
        )
    return by_features, by_down, by_down_sum.sum(0), by_up, by_up_sum.sum(0), by_weight, by_bias


def _keep_shape(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _downsample_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    wide = gradient.to(_wide(gradient))
    if gradient.device.type == "cpu":
        # Of the image, the shape is all that this derivative looks at.
        image = wide.new_zeros(()).expand(ctx.shape)
        by_image: Tensor = torch.ops.aten._adaptive_avg_pool2d_backward(wide, image)
    else:
        by_image = _spread(wide, ctx.shape[2:])
    return by_image.to(gradient.dtype), None, None


def _spread(gradient: Tensor, size: Sequence[int]) -> Tensor:
    """The adjoint of :func:`area_downsample`: what aten has for a GPU adds up in any order, so that bits change."""
    rows, columns = (_windows(to, of, gradient) for to, of in zip(gradient.shape[2:], size, strict=True))
    with in_full(gradient):
        return rows.T @ gradient @ columns


def _windows(to: int, of: int, like: Tensor) -> Tensor:
    """The matrix (to, of) that averages ``of`` numbers to ``to``."""
    index, place = torch.arange(to, device=like.device), torch.arange(of, device=like.device)
    first, last = index * of // to, ((index + 1) * of + to - 1) // to
    inside = (place >= first[:, None]) & (place < last[:, None])
    return inside.to(like.dtype) / (last - first)[:, None]


def _blend_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if torch.is_grad_enabled():  # create_graph=True: what is returned will be differentiated again
        return reference.attention_blend_backward(gradient, *ctx.saved_tensors)
    return torch.ops.deocc.attention_blend_backward(gradient, *ctx.saved_tensors)  # type: ignore[no-any-return]


_PROJECTION.define(
    "gated_projection(Tensor features, Tensor channel_gate, Tensor weight, Tensor bias) -> Tensor", _fake_projection
)
_PROJECTION.define("gated_projection_products(Tensor gradient, Tensor features) -> (Tensor, Tensor)", _fake_products)
_PROJECTION.define(
    "gated_projection_features(Tensor gradient, Tensor folded, Tensor shift, bool channels_last) -> Tensor",
    _fake_features,
)
_PROJECTION.differentiate(_projection_backward, _keep_inputs)
_ATTENTION.define(
    "channel_attention_projection(Tensor features, Tensor down, Tensor down_bias, Tensor up, Tensor up_bias,"
    " Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)",
    _fake_attention,
)
_ATTENTION.differentiate(_attention_backward, _keep_attention)
_DOWNSAMPLE.define("area_downsample(Tensor image, int height, int width) -> Tensor", _fake_downsample)
_DOWNSAMPLE.differentiate(_downsample_backward, _keep_shape)
_BLEND.define("attention_blend(Tensor logits, Tensor restored, Tensor known) -> Tensor", _fake_blend)
_BLEND.define(
    "attention_blend_backward(Tensor gradient, Tensor logits, Tensor restored, Tensor known)"
    " -> (Tensor, Tensor, Tensor)",
    _fake_blend_backward,
)
_BLEND.differentiate(_blend_backward, _keep_inputs)
