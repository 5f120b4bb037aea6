"""The op `group_norm_act`: group norm, scale and shift, SiLU, and what may be added to its input; with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._arguments import describe, is_unwatched
from fastdiff.ops._dispatch import (
    LIBRARY,
    Implementation,
    define,
    dispatch,
    has_extension,
)
from fastdiff.ops.reference import group_norm_act as reference_norm
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype, memory_format

_SCHEMA = (
    "(Tensor x, Tensor? x2, Tensor? residual, Tensor? added_bias, Tensor? added_time, Tensor weight, Tensor bias, "
    "Tensor? scale, Tensor? shift, int groups, float eps, bool act) -> (Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_y, Tensor? grad_sum, Tensor x, Tensor? x2, Tensor? added_bias, Tensor? added_time, Tensor weight, "
    "Tensor bias, Tensor? scale, Tensor? shift, Tensor mean, Tensor rstd, bool act, bool want_added) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    act: bool = True,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    x2: Tensor | None = None,
    added_bias: Tensor | None = None,
    added_time: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Group norm, an optional scale and shift, an optional SiLU: one read of x and one write of the result.

        h = concat(x, x2) + added_bias + added_time
        u = ((h - mean) / sqrt(variance + eps) * weight + bias) * (1 + scale) + shift
        y = u * sigmoid(u), or u

    Mean and (biased) variance are those of the pixels and channels of a group. The variance is that of the differences
    from the mean, so an offset of many deviations does no harm. All arithmetic is in float32 (float64 for float64 x)
    and rounded once. Every tensor has a gradient; there is no second derivative.

    Args:
        x: [B, C, ...] float32, bfloat16, float16 or float64. channels_last is fastest on a GPU; a tensor that is in
            neither that nor contiguous layout is copied.
        weight: [C], of any of the types, but float64 with float64 x and only then. So are all that follow, but x2.
        bias: [C].
        groups: Number of groups of neighbouring channels, a divisor of C. On a GPU with at most 4096 channels each.
        eps: Added to the variance, at least 0.
        act: Apply the SiLU.
        scale: [B, C], together with shift.
        shift: [B, C], together with scale.
        x2: The channels behind x's, [B, C2, ...] of x's type. All channel counts C above are then C + C2. A group may
            have channels of both.
        added_bias: [C], added to x first: the bias of the layer that made x.
        added_time: [B, C], added to x first: a projection of the time.
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        y: [B, C, ...] in x's type and memory format.

    Raises:
        ValueError: shapes, dtypes, devices or numbers that do not fit.
        RuntimeError: the named implementation is not available, or a second derivative was asked for.

    Source: Wu, He (2018), arXiv:1803.08494, eq. 1 and 7; the scale and shift: Nichol, Dhariwal (2021),
    arXiv:2102.09672, appendix A.
    """
    arguments = (x, x2, None, added_bias, added_time, weight, bias, scale, shift, groups, eps, act)
    y: Tensor = _run(arguments, implementation)[0]
    return y


def add_group_norm_act(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    act: bool = True,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    added_bias: Tensor | None = None,
    added_time: Tensor | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """`group_norm_act` of the sum x + residual + added_bias + added_time, which is written out as well.

    Args:
        x: As in `group_norm_act`, and so are all others that are not named here.
        residual: [B, C, ...] of x's type.

    Returns:
        (y, sum), both in x's type and memory format. The sum is rounded to that type before it is normalised.

    Raises:
        ValueError: shapes, dtypes, devices or numbers that do not fit.
        RuntimeError: the named implementation is not available.
    """
    arguments = (x, None, residual, added_bias, added_time, weight, bias, scale, shift, groups, eps, act)
    y, total = _run(arguments, implementation)[:2]
    return y, total


def _run(arguments: tuple[Any, ...], implementation: Implementation) -> Any:
    _check(*arguments)
    if implementation == "auto" and _is_plain(arguments):
        # Autograd's part of an op in Python takes as long as a small image.
        return _cpu(*arguments)
    return dispatch("group_norm_act", arguments[0], implementation, arguments)


def _is_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether C++ runs in the end, and nobody wants a gradient or looks on."""
    x = arguments[0]
    if type(x) is not Tensor or not x.is_cpu or not has_extension() or not is_unwatched():
        return False
    return not torch.is_grad_enabled() or not any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def _check(
    x: Tensor,
    x2: Tensor | None,
    residual: Tensor | None,
    added_bias: Tensor | None,
    added_time: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    act: bool,
) -> None:
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must be [B, C, ...], got shape {list(x.shape)}")
    batch, channels, size = x.shape[0], x.shape[1], x.shape[2:]
    if x2 is not None:
        if x2.ndim != x.ndim:
            raise ValueError(f"x2 must have as many dimensions as x, {x.ndim}, got shape {list(x2.shape)}")
        _check_image("x2", x2, x, (batch, x2.shape[1], *size))
        channels += x2.shape[1]
    if residual is not None:
        _check_image("residual", residual, x, x.shape)
    if groups < 1 or channels == 0 or channels % groups:
        raise ValueError(f"groups must divide the number of channels, {channels}, got {groups}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together, got one of them: pass both or neither")
    for name, value in (("weight", weight), ("bias", bias), ("added_bias", added_bias)):
        if value is not None:
            _check_vector(name, value, x, (channels,))
    for name, value in (("scale", scale), ("shift", shift), ("added_time", added_time)):
        if value is not None:
            _check_vector(name, value, x, (batch, channels))


def _check_image(name: str, value: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.dtype != x.dtype or value.device != x.device:
        raise ValueError(f"{name} must be {x.dtype} {list(shape)} on {x.device}, as x, got {describe(value)}")


def _check_vector(name: str, value: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.device != x.device:
        raise ValueError(f"{name} must be {list(shape)} on {x.device}, got {describe(value)}")
    if value.dtype not in FLOAT_DTYPES or (value.dtype == torch.float64) != (x.dtype == torch.float64):
        raise ValueError(f"{name} of {value.dtype} does not fit x of {x.dtype}: float64 goes with float64 only")


def _num_channels(x: Tensor, x2: Tensor | None) -> int:
    return x.shape[1] + (0 if x2 is None else x2.shape[1])


def _reference(
    x: Tensor,
    x2: Tensor | None,
    residual: Tensor | None,
    added_bias: Tensor | None,
    added_time: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, h, mean, rstd = reference_norm.group_norm_act(
        x, x2, residual, added_bias, added_time, weight, bias, scale, shift, groups, eps, act
    )
    layout = memory_format(x)
    total = x.new_empty(0) if residual is None else h.to(x.dtype).contiguous(memory_format=layout)
    return y.to(x.dtype).contiguous(memory_format=layout), total, mean, rstd


def _fake(
    x: Tensor,
    x2: Tensor | None,
    residual: Tensor | None,
    added_bias: Tensor | None,
    added_time: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (x.shape[0], _num_channels(x, x2), *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    total = x.new_empty(0) if residual is None else torch.empty_like(y)
    mean = x.new_empty((x.shape[0], groups), dtype=compute_dtype(x))
    return y, total, mean, torch.empty_like(mean)


def _backward_reference(
    grad_y: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    x2: Tensor | None,
    added_bias: Tensor | None,
    added_time: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    act: bool,
    want_added: bool,
) -> tuple[Tensor, ...]:
    dh, dweight, dbias, dscale, dshift = reference_norm.group_norm_act_backward(
        grad_y, grad_sum, x, x2, added_bias, added_time, weight, bias, scale, shift, mean, rstd, act
    )
    layout = memory_format(x)
    first, second = dh.split((x.shape[1], dh.shape[1] - x.shape[1]), dim=1)
    # Results may share memory neither with arguments nor with each other.
    dx = first.to(x.dtype, copy=True).contiguous(memory_format=layout)
    dx2 = x.new_empty(0) if x2 is None else second.to(x.dtype, copy=True).contiguous(memory_format=layout)
    dscale, dshift = (
        x.new_empty(0) if of is None else value.to(of.dtype, copy=True)
        for of, value in ((scale, dscale), (shift, dshift))
    )
    added = dh.flatten(2).sum(dim=2) if dh.ndim > 2 else dh.clone()
    added = added if want_added else x.new_empty(0, dtype=dh.dtype)
    return dx, dx2, dweight.to(weight.dtype), dbias.to(bias.dtype), dscale, dshift, added


def _backward_fake(
    grad_y: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    x2: Tensor | None,
    added_bias: Tensor | None,
    added_time: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    act: bool,
    want_added: bool,
) -> tuple[Tensor, ...]:
    def like(source: Tensor | None) -> Tensor:
        return x.new_empty(0) if source is None else source.new_empty(source.shape)

    layout = memory_format(x)
    dx = torch.empty_like(x, memory_format=layout)
    dx2 = x.new_empty(0) if x2 is None else torch.empty_like(x2, memory_format=layout)
    shape = (x.shape[0], _num_channels(x, x2)) if want_added else (0,)
    added = x.new_empty(shape, dtype=compute_dtype(x))
    return dx, dx2, like(weight), like(bias), like(scale), like(shift), added


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, x2, residual, added_bias, added_time, weight, bias, scale, shift, _, _, act = inputs
    _, total, mean, rstd = output
    # The written sum already holds all that was added.
    kept = (x, x2, added_bias, added_time) if residual is None else (total, None, None, None)
    ctx.save_for_backward(*kept, weight, bias, scale, shift, mean, rstd)
    ctx.act = act
    ctx.added_dtypes = [None if value is None else value.dtype for value in (added_bias, added_time)]
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_sum: Tensor | None, grad_mean: Any, grad_rstd: Any
) -> tuple[Tensor | None, ...]:
    x, x2, added_bias, added_time, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
    if grad_y is None and grad_sum is None:
        return (None,) * 12
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    needs = ctx.needs_input_grad
    want_added = needs[3] or needs[4]
    if not ctx.has_residual:
        grad_sum = None
    dx, dx2, dweight, dbias, dscale, dshift, added = torch.ops.fastdiff.group_norm_act_backward(
        grad_y, grad_sum, x, x2, added_bias, added_time, weight, bias, scale, shift, mean, rstd, ctx.act, want_added
    )
    bias_dtype, time_dtype = ctx.added_dtypes
    return (
        dx if needs[0] else None,
        dx2 if needs[1] else None,
        dx if needs[2] else None,
        added.sum(dim=0).to(bias_dtype) if needs[3] else None,
        added.to(time_dtype) if needs[4] else None,
        dweight if needs[5] else None,
        dbias if needs[6] else None,
        dscale if needs[7] else None,
        dshift if needs[8] else None,
        None,
        None,
        None,
    )


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("group_norm_act has no second derivative: take the first without create_graph")


def _cpu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if arguments[0].dtype == torch.float64 or arguments[0].numel() == 0:
        return _reference(*arguments)
    return torch.ops.fastdiff.group_norm_act_cpu(*arguments)  # type: ignore[no-any-return]


def _backward_cpu(*arguments: Any) -> tuple[Tensor, ...]:
    _, _, x, _, _, _, weight, bias, scale, shift, *_ = arguments
    if x.dtype == torch.float64 or x.numel() == 0:
        return _backward_reference(*arguments)
    dx, dx2, du_sum, du_xhat_sum, added = torch.ops.fastdiff.group_norm_act_backward_cpu(*arguments)
    if scale is None or shift is None:
        dscale, dshift = x.new_empty(0), x.new_empty(0)
    else:
        dscale = (weight.float() * du_xhat_sum + bias.float() * du_sum).to(scale.dtype)
        dshift, gain = du_sum.to(shift.dtype, copy=True), 1 + scale.float()
        du_sum, du_xhat_sum = gain * du_sum, gain * du_xhat_sum
    dweight, dbias = du_xhat_sum.sum(dim=0), du_sum.sum(dim=0)
    return dx, dx2, dweight.to(weight.dtype), dbias.to(bias.dtype), dscale, dshift, added


# What C++ knows of these: all types but float64, and at least one value.
LIBRARY.define("group_norm_act_cpu" + _SCHEMA)
LIBRARY.define(
    "group_norm_act_backward_cpu" + _BACKWARD_SCHEMA.split("->")[0] + "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
define("group_norm_act", _SCHEMA, _reference, _fake)
define("group_norm_act_backward", _BACKWARD_SCHEMA, _backward_reference, _backward_fake)
if has_extension():
    LIBRARY.impl("group_norm_act", _cpu, "CPU")
    LIBRARY.impl("group_norm_act_backward", _backward_cpu, "CPU")
torch.library.register_autograd("fastdiff::group_norm_act", _backward, setup_context=_setup)
torch.library.register_autograd("fastdiff::group_norm_act_backward", _no_second_derivative)
