"""The op `group_norm_act`: group norm, scale and shift, SiLU, and what may be added to its input; with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastdiff.calls import GroupNormActBackwardCall, GroupNormActCall
from fastdiff.ops._arguments import check_precision, describe, is_unwatched
from fastdiff.ops._dispatch import (
    LIBRARY,
    Implementation,
    define,
    differentiate,
    dispatch,
    gradients,
    has_extension,
    refuse_second_derivative,
    wanted_gradients,
)
from fastdiff.ops._linear import column_sums
from fastdiff.ops._schema import schema
from fastdiff.ops.reference import group_norm_act as reference
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype, memory_format

# y, the written sum, mean and rstd.
_Results = tuple[Tensor, Tensor, Tensor, Tensor]
# Of x, x2, weight, bias, scale and shift, and of what was added.
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# dx, dx2, the sums of du and of du xhat, of which the vectors' gradients are made, and that of what was added.
_GradientSums = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

# What C++ knows of these: all types but float64, and at least one value.
LIBRARY.define("group_norm_act_cpu" + schema(GroupNormActCall, _Results))
LIBRARY.define("group_norm_act_backward_cpu" + schema(GroupNormActBackwardCall, _GradientSums))
_FORWARD_CPU = torch.ops.fastdiff.group_norm_act_cpu.default
_BACKWARD_CPU = torch.ops.fastdiff.group_norm_act_backward_cpu.default


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
    call = GroupNormActCall(x, x2, None, added_bias, added_time, weight, bias, scale, shift, groups, eps, act)
    y: Tensor = _run(call, implementation)[0]
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
    call = GroupNormActCall(x, None, residual, added_bias, added_time, weight, bias, scale, shift, groups, eps, act)
    y, total = _run(call, implementation)[:2]
    return y, total


def group_norm_act_beside(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, *, eps: float = 1e-5, act: bool = True
) -> tuple[Tensor, Tensor]:
    """`group_norm_act` of x, and x itself for whoever reads it beside the norm.

    On the CPU in float32 the gradient that x gets from there is added in the norm's own backward pass, which is a pass
    over memory less than autograd's sum of the two.

    Args:
        x, weight, bias, groups, eps, act: As in `group_norm_act`.

    Returns:
        (y, x).

    Raises:
        ValueError: shapes, dtypes, devices or numbers that do not fit.
        RuntimeError: a second derivative was asked for.
    """
    call = GroupNormActCall(x, None, None, None, None, weight, bias, None, None, groups, eps, act)
    wants_gradient = torch.is_grad_enabled() and x.requires_grad
    is_ours = has_extension() and x.is_cpu and x.dtype == torch.float32 and x.numel() > 0
    if not (wants_gradient and is_ours and is_unwatched()):
        return _run(call, "auto")[0], x
    _check(call)
    y, same = _Beside.apply(x, weight, bias, groups, eps, act)  # type: ignore[no-untyped-call]
    return y, same


class _Beside(torch.autograd.Function):
    """`group_norm_act_beside`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, act: bool
    ) -> tuple[Tensor, Tensor]:
        """(y, x), the latter as it is, which PyTorch takes for a view."""
        call = GroupNormActCall(x, None, None, None, None, weight, bias, None, None, groups, eps, act)
        y, _, mean, rstd = _cpu(call)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.act = act
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_x: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of x, weight and bias."""
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if grad_y is None:
            return (grad_x, *[None] * 5)
        arguments = (grad_y, grad_x, x, None, None, None, weight, bias, None, None, mean, rstd, ctx.act, False)
        dx, _, dweight, dbias, *_ = _backward_cpu(GroupNormActBackwardCall._make(arguments))
        return dx, dweight, dbias, None, None, None


def _run(call: GroupNormActCall, implementation: Implementation) -> Any:
    _check(call)
    if implementation == "auto" and _is_plain(call):
        # Autograd's part of an op in Python takes as long as a small image.
        return _cpu(call)
    return dispatch(call, implementation)


def _is_plain(call: GroupNormActCall) -> bool:
    """Whether C++ runs in the end, and nobody wants a gradient or looks on."""
    x = call.x
    if type(x) is not Tensor or not x.is_cpu or not has_extension() or not is_unwatched():
        return False
    return not torch.is_grad_enabled() or not any(isinstance(a, Tensor) and a.requires_grad for a in call)


def _check(call: GroupNormActCall) -> None:
    x, x2, residual, added_bias, added_time, weight, bias, scale, shift, groups, eps, _ = call
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must be [B, C, ...], got shape {list(x.shape)}")
    batch, channels, *size = x.shape
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
    # One by one: a loop over names and values takes as long as the checks.
    shape, rows, device = (channels,), (batch, channels), x.device
    _check_vector("weight", weight, x, shape, device)
    _check_vector("bias", bias, x, shape, device)
    if added_bias is not None:
        _check_vector("added_bias", added_bias, x, shape, device)
    if scale is not None and shift is not None:
        _check_vector("scale", scale, x, rows, device)
        _check_vector("shift", shift, x, rows, device)
    if added_time is not None:
        _check_vector("added_time", added_time, x, rows, device)


def _check_image(name: str, value: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.dtype != x.dtype or value.device != x.device:
        raise ValueError(f"{name} must be {x.dtype} {list(shape)} on {x.device}, as x, got {describe(value)}")


def _check_vector(name: str, value: Tensor, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if value.shape != shape or value.device != device:
        raise ValueError(f"{name} must be {list(shape)} on {device}, got {describe(value)}")
    check_precision(name, value.dtype, "x", x.dtype)


def _num_channels(call: GroupNormActCall | GroupNormActBackwardCall) -> int:
    return call.x.shape[1] + (0 if call.x2 is None else call.x2.shape[1])


def _reference(call: GroupNormActCall) -> _Results:
    y, h, mean, rstd = reference.group_norm_act(call)
    x, layout = call.x, memory_format(call.x)
    total = x.new_empty(0) if call.residual is None else h.to(x.dtype).contiguous(memory_format=layout)
    return y.to(x.dtype).contiguous(memory_format=layout), total, mean, rstd


def _fake(call: GroupNormActCall) -> _Results:
    x = call.x
    shape = (x.shape[0], _num_channels(call), *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    total = x.new_empty(0) if call.residual is None else torch.empty_like(y)
    mean = x.new_empty((x.shape[0], call.groups), dtype=compute_dtype(x))
    return y, total, mean, torch.empty_like(mean)


def _cpu(call: GroupNormActCall) -> _Results:
    if call.x.dtype == torch.float64 or call.x.numel() == 0:
        return _reference(call)
    return _FORWARD_CPU(*call)  # type: ignore[no-any-return]


def _backward_reference(call: GroupNormActBackwardCall) -> _Gradients:
    dh, dweight, dbias, dscale, dshift = reference.group_norm_act_backward(call)
    x, x2, layout = call.x, call.x2, memory_format(call.x)
    first, second = dh.split((x.shape[1], dh.shape[1] - x.shape[1]), dim=1)
    # Results may share memory neither with arguments nor with each other.
    dx = first.to(x.dtype, copy=True).contiguous(memory_format=layout)
    dx2 = x.new_empty(0) if x2 is None else second.to(x.dtype, copy=True).contiguous(memory_format=layout)
    dscale, dshift = (
        x.new_empty(0) if of is None else value.to(of.dtype, copy=True)
        for of, value in ((call.scale, dscale), (call.shift, dshift))
    )
    added = dh.flatten(2).sum(dim=2) if dh.ndim > 2 else dh.clone()
    added = added if call.want_added else x.new_empty(0, dtype=dh.dtype)
    return dx, dx2, dweight.to(call.weight.dtype), dbias.to(call.bias.dtype), dscale, dshift, added


def _backward_fake(call: GroupNormActBackwardCall) -> _Gradients:
    x, x2, layout = call.x, call.x2, memory_format(call.x)

    def like(source: Tensor | None) -> Tensor:
        return x.new_empty(0) if source is None else source.new_empty(source.shape)

    dx = torch.empty_like(x, memory_format=layout)
    dx2 = x.new_empty(0) if x2 is None else torch.empty_like(x2, memory_format=layout)
    added = x.new_empty((x.shape[0], _num_channels(call)) if call.want_added else (0,), dtype=compute_dtype(x))
    return dx, dx2, like(call.weight), like(call.bias), like(call.scale), like(call.shift), added


def _backward_cpu(call: GroupNormActBackwardCall) -> _Gradients:
    x, weight, bias, scale, shift = call.x, call.weight, call.bias, call.scale, call.shift
    if x.dtype == torch.float64 or x.numel() == 0:
        return _backward_reference(call)
    dx, dx2, du_sum, du_xhat_sum, added = _BACKWARD_CPU(*call)
    if scale is None or shift is None:
        dscale, dshift = x.new_empty(0), x.new_empty(0)
    else:
        dscale = (weight.float() * du_xhat_sum + bias.float() * du_sum).to(scale.dtype)
        dshift, gain = du_sum.to(shift.dtype, copy=True), 1 + scale.float()
        du_sum, du_xhat_sum = gain * du_sum, gain * du_xhat_sum
    dweight, dbias = column_sums(du_xhat_sum), column_sums(du_sum)
    return dx, dx2, dweight.to(weight.dtype), dbias.to(bias.dtype), dscale, dshift, added


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    call = GroupNormActCall(*inputs)
    _, total, mean, rstd = output
    # The written sum already holds all that was added.
    kept = (call.x, call.x2, call.added_bias, call.added_time) if call.residual is None else (total, None, None, None)
    ctx.save_for_backward(*kept, call.weight, call.bias, call.scale, call.shift, mean, rstd)
    ctx.act = call.act
    ctx.added_dtypes = [None if value is None else value.dtype for value in (call.added_bias, call.added_time)]
    ctx.has_residual = call.residual is not None
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_sum: Tensor | None, grad_mean: Any, grad_rstd: Any
) -> tuple[Tensor | None, ...]:
    if grad_y is None and grad_sum is None:
        return gradients(GroupNormActCall)
    if grad_y is None:
        grad_y = torch.zeros_like(ctx.saved_tensors[0])
    if not ctx.has_residual:
        grad_sum = None
    wanted = wanted_gradients(GroupNormActCall, ctx)
    want_added = not wanted.isdisjoint(("added_bias", "added_time"))
    dx, dx2, dweight, dbias, dscale, dshift, added = dispatch(
        GroupNormActBackwardCall._make((grad_y, grad_sum, *ctx.saved_tensors, ctx.act, want_added))
    )
    bias_dtype, time_dtype = ctx.added_dtypes
    found = {"x": dx, "x2": dx2, "residual": dx, "weight": dweight, "bias": dbias, "scale": dscale, "shift": dshift}
    if "added_bias" in wanted:
        found["added_bias"] = column_sums(added).to(bias_dtype)
    if "added_time" in wanted:
        found["added_time"] = added.to(time_dtype)
    return gradients(GroupNormActCall, **{name: value for name, value in found.items() if name in wanted})


define("group_norm_act", GroupNormActCall, _reference, _fake, cpu=_cpu, kernel="group_norm_act")
define(
    "group_norm_act_backward",
    GroupNormActBackwardCall,
    _backward_reference,
    _backward_fake,
    cpu=_backward_cpu,
    kernel="group_norm_act_backward",
)
differentiate(GroupNormActCall, _backward, _setup)
refuse_second_derivative("group_norm_act_backward", "group_norm_act has")
