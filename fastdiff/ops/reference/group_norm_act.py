"""The oracle of `group_norm_act` and its gradient, in plain PyTorch: float32 arithmetic, float64 for float64 input.

It is read, not timed. The kernels are held to it, and it to PyTorch's own norm and autograd in float64. One formula,
for a sample and a channel c of group g:

    h    = (x, x2)_c + residual + added_bias_c + added_time_c
    xhat = (h - mean_g) rstd_g                                      rstd = 1 / sqrt(variance + eps)
    u    = (xhat weight_c + bias_c) (1 + scale_c) + shift_c
    y    = u sigmoid(u), or u

Source: Wu, He (2018), arXiv:1803.08494, eq. 1 and 7; SiLU: Ramachandran et al. (2017), arXiv:1710.05941; the scale and
shift: Nichol, Dhariwal (2021), arXiv:2102.09672, appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.calls import GroupNormActBackwardCall, GroupNormActCall
from fastdiff.tensors import compute_dtype


def norm_input(call: GroupNormActCall | GroupNormActBackwardCall) -> Tensor:
    """What is normalised, h [B, C, ...], in the dtype of the arithmetic.

    With a residual it is the sum as it is written out, which is rounded to x's type.
    """
    x, x2, added_bias, added_time = call.x, call.x2, call.added_bias, call.added_time
    dtype = compute_dtype(x)
    h = x.to(dtype) if x2 is None else torch.cat((x, x2), dim=1).to(dtype)
    if added_bias is not None:
        h = h + _spread(added_bias[None], h)
    if added_time is not None:
        h = h + _spread(added_time, h)
    if isinstance(call, GroupNormActCall) and call.residual is not None:
        h = (h + call.residual.to(dtype)).to(x.dtype).to(dtype)
    return h


def group_norm_act(call: GroupNormActCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formula above.

    Args:
        call: As for `fastdiff.ops.group_norm_act` and `add_group_norm_act`, here with x2 and a residual at once.

    Returns:
        (y, h, mean [B, groups], rstd [B, groups]) in the dtype of the arithmetic.
    """
    h, groups = norm_input(call), call.groups
    grouped = h.reshape(h.shape[0], groups, h[0].numel() // groups if h.shape[0] else 0)
    mean = grouped.mean(dim=2)
    variance = (grouped - mean[:, :, None]).square().mean(dim=2)
    rstd = torch.rsqrt(variance + call.eps)
    xhat = (h - _per_channel(mean, h)) * _per_channel(rstd, h)
    u = _modulate(xhat, call)
    return u * torch.sigmoid(u) if call.act else u, h, mean, rstd


def group_norm_act_backward(call: GroupNormActBackwardCall) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the formula above, from its mean and rstd. With a residual, x is the sum that was written out.

        du = dy act'(u),  dxhat = du weight (1 + scale)
        dh = rstd (dxhat - mean_g(dxhat) - xhat mean_g(dxhat xhat)) + grad_sum

    Args:
        call: With the gradients of y and, from elsewhere, of the written sum, both [B, C, ...].

    Returns:
        (dh [B, C, ...], dweight [C], dbias [C], dscale [B, C], dshift [B, C]) in the dtype of the arithmetic.
    """
    weight, bias, scale, mean, rstd = call.weight, call.bias, call.scale, call.mean, call.rstd
    h = norm_input(call)
    dtype, groups = h.dtype, mean.shape[1]
    xhat = (h - _per_channel(mean, h)) * _per_channel(rstd, h)
    du = call.grad_y.to(dtype)
    if call.act:
        u = _modulate(xhat, call)
        sigmoid = torch.sigmoid(u)
        du = du * sigmoid * (1 + u * (1 - sigmoid))

    pixels = tuple(range(2, h.ndim))
    du_sum, du_xhat_sum = (value.sum(dim=pixels) if pixels else value for value in (du, du * xhat))
    gain = 1 + scale.to(dtype) if scale is not None else torch.ones_like(du_sum)
    dscale = weight.to(dtype) * du_xhat_sum + bias.to(dtype) * du_sum
    dweight, dbias = (gain * du_xhat_sum).sum(dim=0), (gain * du_sum).sum(dim=0)

    per_group = h[0].numel() // groups if h.shape[0] else 1

    def group_mean(sums: Tensor) -> Tensor:
        totals = (weight.to(dtype) * gain * sums).reshape(h.shape[0], groups, h.shape[1] // groups).sum(dim=2)
        return _per_channel(totals / max(per_group, 1), h)

    dxhat = du * _spread(weight.to(dtype) * gain, h)
    dh = _per_channel(rstd, h) * (dxhat - group_mean(du_sum) - xhat * group_mean(du_xhat_sum))
    if call.grad_sum is not None:
        dh = dh + call.grad_sum.to(dtype)
    return dh, dweight, dbias, dscale, du_sum


def _modulate(xhat: Tensor, call: GroupNormActCall | GroupNormActBackwardCall) -> Tensor:
    u = xhat * _spread(call.weight[None], xhat) + _spread(call.bias[None], xhat)
    if call.scale is not None and call.shift is not None:
        u = u * (1 + _spread(call.scale, xhat)) + _spread(call.shift, xhat)
    return u


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """[B or 1, C] values in x's dtype so that they broadcast against x [B, C, ...]."""
    return values.to(x.dtype).reshape(*values.shape, *[1] * (x.ndim - 2))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """[B, groups] values so that they broadcast against x [B, C, ...]."""
    return _spread(values.repeat_interleave(x.shape[1] // values.shape[1], dim=1), x)
