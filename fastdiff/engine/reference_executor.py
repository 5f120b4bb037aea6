"""Runs a plan, a CPU's or a GPU's, in plain PyTorch: what the other executors are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.engine.pack import layer_parameters
from fastdiff.engine.plan import Instruction, Plan
from fastdiff.nets import lucidrains
from fastdiff.nets.blocks import resampled
from fastdiff.nets.unet import UNet

__all__ = ["run_plan", "run_steps", "time_vectors"]


def time_vectors(plan: Plan, unet: nn.Module, t: Tensor, y: Tensor | None = None) -> Tensor:
    """What depends on the time and the label alone, [N, time_width], for N times (and labels)."""
    if isinstance(unet, UNet):
        embedded = unet.embed(t, y)
    else:
        assert isinstance(unet, lucidrains.Unet)
        embedded = F.silu(unet.time_mlp(t))
    if not plan.projections:
        return embedded.new_zeros(len(t), 0)
    return torch.cat([unet.get_submodule(name)(embedded) for name in plan.projections], dim=1)


def run_plan(plan: Plan, unet: nn.Module, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The network's output for x [B, C, H, W], in the type of its weights; arguments as in `UNet.forward`.

    x is what the plan reads: with lucidrains' self-conditioning, the last prediction and the image.
    """
    values = run_steps(plan, unet, x, time_vectors(plan, unet, t, y))
    channels = unet.config.out_channels if isinstance(unet, UNet) else plan.buffers[plan.output].channels
    return values[plan.output].permute(0, 3, 1, 2)[:, :channels]


def run_steps(plan: Plan, unet: nn.Module, x: Tensor, times: Tensor) -> dict[int, Tensor]:
    """All buffers after a run, [B, height, width, channels] each; times is [B, time_width]."""
    # A GPU's plan has channels behind the image's.
    values = {plan.input: F.pad(x.permute(0, 2, 3, 1), (0, plan.buffers[plan.input].channels - x.shape[1]))}
    for instruction in plan.instructions:
        if instruction.op in ("norm_act", "add"):
            values.update(_norm_act(plan, unet, instruction, values, times))
            continue
        values[instruction.target] = _run(plan, unet, instruction, values, times)
    return values


def _run(plan: Plan, unet: nn.Module, i: Instruction, values: dict[int, Tensor], times: Tensor) -> Tensor:
    if i.op == "norm":
        return _norm(plan, unet, i, values, times)
    if i.op == "attention":
        return _attention(i, values)
    if i.op in ("memory_attention", "linear_attention"):
        return _attention_with_memory(unet, i, values)
    x = torch.cat([values[n] for n in i.sources], dim=3)
    if i.op == "stats":
        mean = x.mean(dim=(1, 2), keepdim=True)
        squares = (x - mean).square().sum(dim=(1, 2), keepdim=True)
        return torch.cat([mean, squares], dim=1)
    if i.op == "pixel_norm":
        return _pixel_norm(unet, i, x, values, times)
    if i.norm is not None:
        factor, offset = values[i.norm].unbind(dim=1)
        x = x * factor[:, None] + offset[:, None]
    if i.act:
        x = F.silu(x)
    x = x.permute(0, 3, 1, 2)
    if i.op in ("pool", "repeat") and i.kernel == 4:
        return resampled(x, "down" if i.op == "pool" else "up", (1, 3, 3, 1)).permute(0, 2, 3, 1)
    if i.op == "pool":
        return F.avg_pool2d(x, 2).permute(0, 2, 3, 1)
    if i.op == "repeat" or i.upsample:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    if i.op == "repeat":
        return x.permute(0, 2, 3, 1)
    return _conv(plan, unet, i, x, values, times)


def _conv(plan: Plan, unet: nn.Module, i: Instruction, x: Tensor, values: dict[int, Tensor], times: Tensor) -> Tensor:
    weight, bias = (part.to(x.dtype) for part in layer_parameters(unet, i))
    weight = weight if weight.ndim == 4 else weight[:, :, None, None]
    out = plan.buffers[i.target]
    more = (out.channels - weight.shape[0], x.shape[1] - weight.shape[1])
    weight = F.pad(weight, (0, 0, 0, 0, 0, more[1], 0, more[0]))
    added = F.pad(bias, (0, more[0])) if i.bias else None
    # Zeros on the far sides as far as the last window reaches.
    reach = ((out.height - 1) * i.stride + i.kernel - i.pad, (out.width - 1) * i.stride + i.kernel - i.pad)
    x = F.pad(x, (i.pad, max(0, reach[1] - x.shape[3]), i.pad, max(0, reach[0] - x.shape[2])))
    y = F.conv2d(x, weight, added, stride=i.stride).permute(0, 2, 3, 1)
    if i.time is not None:
        y = y + times[:, None, None, i.time : i.time + out.channels]
    if i.residual is not None:
        y = y + values[i.residual]
    return y


def _norm_act(
    plan: Plan, unet: nn.Module, i: Instruction, values: dict[int, Tensor], times: Tensor
) -> dict[int, Tensor]:
    """What a "norm_act" or "add" writes."""
    total, channels = values[i.sources[0]], plan.buffers[i.sources[0]].channels
    if i.added:
        bias = unet.get_submodule(i.added).bias
        assert isinstance(bias, Tensor)
        total = total + F.pad(bias, (0, channels - len(bias)))
    if i.added_time is not None:
        total = total + times[:, None, None, i.added_time : i.added_time + channels]
    if i.residual is not None:
        total = total + values[i.residual]
    if i.op == "add":
        return {i.target: total}
    module = unet.get_submodule(i.parameter)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    x = torch.cat([total, *(values[n] for n in i.sources[1:])], dim=3)
    y = F.group_norm(x.permute(0, 3, 1, 2), i.groups, weight, bias, i.eps).permute(0, 2, 3, 1)
    if i.time is not None:
        scale, shift = times[:, None, None, i.time : i.time + 2 * len(weight)].chunk(2, dim=3)
        y = y * (1 + scale) + shift
    y = F.silu(y) if i.act else y
    return {i.target: y} if i.total is None else {i.target: y, i.total: total}


def _norm(plan: Plan, unet: nn.Module, i: Instruction, values: dict[int, Tensor], times: Tensor) -> Tensor:
    module = unet.get_submodule(i.parameter)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    source = plan.buffers[i.sources[0]]
    pixels = source.height * source.width
    mean, squares = torch.cat([values[n] for n in i.stats], dim=3)[:, :, 0].unbind(dim=1)
    own = torch.ones_like(mean)
    if i.factors:
        own = own * torch.cat([own.new_full((count,), factor) for count, factor in i.factors])
    mean, squares = own * mean, own.square() * squares
    grouped = mean.unflatten(1, (i.groups, -1))
    group_mean = grouped.mean(dim=2, keepdim=True)
    within = squares.unflatten(1, (i.groups, -1)) + pixels * (grouped - group_mean).square()
    variance = within.mean(dim=2, keepdim=True) / pixels
    rstd = torch.rsqrt(variance + i.eps).expand_as(grouped).flatten(1)
    factor = rstd * weight
    offset = bias - group_mean.expand_as(grouped).flatten(1) * factor
    if i.time is not None:
        scale, shift = times[:, i.time : i.time + 2 * len(weight)].chunk(2, dim=1)
        factor, offset = factor * (1 + scale), offset * (1 + scale) + shift
    return torch.stack([own * factor, offset], dim=1)[:, :, None]


def _attention(i: Instruction, values: dict[int, Tensor]) -> Tensor:
    packed = values[i.sources[0]]
    batch, height, width, _ = packed.shape
    parts = 3 if len(i.sources) == 1 else 2
    q, *k, v = packed.reshape(batch, height * width, parts, i.heads, -1).permute(2, 0, 3, 1, 4)
    if not k:
        assert i.norm is not None
        factor, offset = values[i.norm].unbind(dim=1)
        keys = values[i.sources[1]] * factor[:, None] + offset[:, None]
        k = [keys.reshape(batch, 1, height * width, -1)]
    y: Tensor = torch.softmax(q @ k[0].transpose(2, 3), dim=3) @ v
    y = y.transpose(1, 2).reshape(batch, height, width, -1)
    return y if i.residual is None else y + values[i.residual]


def _pixel_norm(unet: nn.Module, i: Instruction, x: Tensor, values: dict[int, Tensor], times: Tensor) -> Tensor:
    if i.norm is not None:
        factor, offset = values[i.norm].unbind(dim=1)
        y = x * factor[:, None] + offset[:, None]
        y = F.silu(y) if i.act else y
        return y if i.residual is None else y + values[i.residual]
    gain, bias = (part.to(x.dtype) for part in layer_parameters(unet, i))
    y = F.layer_norm(x, gain.shape, gain, bias, i.eps) if i.eps > 0 else F.normalize(x, dim=3) * gain
    if i.time is not None:
        scale, shift = times[:, None, None, i.time : i.time + 2 * len(gain)].chunk(2, dim=3)
        y = y * (1 + scale) + shift
    y = F.silu(y) if i.act else y
    return y if i.residual is None else y + values[i.residual]


def _attention_with_memory(unet: nn.Module, i: Instruction, values: dict[int, Tensor]) -> Tensor:
    packed = values[i.sources[0]]
    batch, height, width, _ = packed.shape
    q, k, v = packed.reshape(batch, height * width, 3, i.heads, -1).permute(2, 0, 3, 1, 4)
    learned = layer_parameters(unet, i)[0].to(packed.dtype)[:, None].expand(-1, batch, -1, -1, -1)
    k, v = torch.cat([learned[0], k], dim=2), torch.cat([learned[1], v], dim=2)
    if i.op == "memory_attention":
        y = torch.softmax(q @ k.transpose(2, 3), dim=3) @ v
    else:
        context = torch.softmax(k, dim=2).transpose(2, 3) @ v
        softened = F.pad(torch.softmax(q[..., : i.groups], dim=3), (0, q.shape[3] - i.groups))
        y = softened @ context * i.groups**-0.5
    return y.transpose(1, 2).reshape(batch, height, width, -1)
