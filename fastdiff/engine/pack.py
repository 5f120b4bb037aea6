"""Weights and instructions as the C++ executor reads them; csrc/include/plan_layout.h has the other side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.engine import memory
from fastdiff.engine.plan import VECTOR, Instruction, Placement, Plan
from fastdiff.unet import AttentionBlock, UNet

__all__ = ["ALGORITHMS", "CODE_FIELDS", "OPS", "Places", "attention_weights", "encode", "pack_layers", "pack_weights"]

OPS = ("stats", "norm", "conv", "attention", "pool", "repeat")
ALGORITHMS = ("direct", "winograd4", "winograd2")
CODE_FIELDS = (
    "op", "algorithm", "kernel", "stride", "pad", "upsample", "act", "source", "channels", "source2", "channels2",
    "height_in", "width_in", "height", "width", "channels_out", "target", "residual", "norm", "weight", "bias", "time",
    "groups", "epsilon", "heads", "stats", "stats2",
)  # fmt: skip
PANEL = 64
# Filter transforms of F(4x4, 3x3) and F(2x2, 3x3). Source: Lavin and Gray (2016), arXiv:1509.09308, section 4.
_G4 = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_G2 = [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]


Places = dict[int, tuple[int, int, int]]
"""For each instruction that has parameters where they begin among the weights: (weight, bias, epsilon)."""


def pack_weights(plan: Plan, unet: UNet) -> tuple[Tensor, Places]:
    """All weights of a network in one float32 tensor, and their places."""
    layers: list[tuple[Tensor, Tensor]] = []
    for instruction in plan.instructions:
        if not instruction.parameter:
            continue
        module = unet.get_submodule(instruction.parameter)
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        layers.append(attention_weights(unet, instruction) if instruction.qkv else (weight, bias))
    return pack_layers(plan, layers)


def pack_layers(plan: Plan, layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Places]:
    """The same for weights and biases that are given, in the order of the instructions that have some."""
    parts: list[Tensor] = []
    places: Places = {}
    length = 0

    def add(values: Tensor) -> int:
        nonlocal length
        start = length
        parts.append(values.detach().to("cpu", torch.float32).reshape(-1))
        # Whole cache lines; a vector load may reach behind a tensor's end.
        length += -(-(values.numel() + 16) // 16) * 16
        return start

    numbers = [number for number, instruction in enumerate(plan.instructions) if instruction.parameter]
    for number, (weight, bias) in zip(numbers, layers, strict=True):
        instruction = plan.instructions[number]
        if instruction.op == "norm":
            places[number] = (add(weight), add(bias), add(torch.tensor([instruction.eps])))
        else:
            places[number] = (add(_packed(instruction, weight)), add(bias), -1)
    packed = memory.empty(length)
    start = 0
    for part in parts:
        end = start + -(-(part.numel() + 16) // 16) * 16
        packed[start : start + part.numel()] = part
        packed[start + part.numel() : end] = 0
        start = end
    return packed, places


def encode(plan: Plan, placement: Placement, weight_places: Places) -> Tensor:
    """The instructions as int64 [N, len(CODE_FIELDS)]."""
    rows = []
    for number, i in enumerate(plan.instructions):
        sources = [plan.buffers[n] for n in i.sources]
        out = plan.buffers[i.target]
        weight, bias, epsilon = weight_places.get(number, (-1, -1, -1))
        second = len(sources) > 1
        values = {
            "op": OPS.index(i.op),
            "algorithm": ALGORITHMS.index(i.algorithm),
            "kernel": i.kernel,
            "stride": i.stride,
            "pad": i.pad,
            "upsample": int(i.upsample),
            "act": int(i.act),
            "source": placement.places[i.sources[0]],
            "channels": sources[0].channels,
            "source2": placement.places[i.sources[1]] if second else -1,
            "channels2": sources[1].channels if second else 0,
            "height_in": sources[0].height,
            "width_in": sources[0].width,
            "height": out.height,
            "width": out.width,
            "channels_out": out.channels,
            "target": placement.places[i.target],
            "residual": -1 if i.residual is None else placement.places[i.residual],
            "norm": -1 if i.norm is None else placement.places[i.norm],
            "weight": weight,
            "bias": bias,
            "time": -1 if i.time is None else i.time,
            "groups": i.groups,
            "epsilon": epsilon,
            "heads": i.heads,
            "stats": placement.places[i.stats[0]] if i.stats else -1,
            "stats2": placement.places[i.stats[1]] if len(i.stats) > 1 else -1,
        }
        rows.append([values[field] for field in CODE_FIELDS])
    return torch.tensor(rows, dtype=torch.int64)


def _packed(instruction: Instruction, weight: Tensor) -> Tensor:
    """[C_out, C_in, k, k] or [C_out, C_in] in panels of columns: [panels, taps, C_in, PANEL], or by point first."""
    values = weight.detach().to("cpu", torch.float64)
    if values.ndim == 2:
        values = values[:, :, None, None]
    if instruction.algorithm == "direct":
        # [taps, C_in, C_out]
        matrix = values.permute(2, 3, 1, 0).reshape(-1, *values.shape[1::-1])
        return _panels(matrix).permute(1, 0, 2, 3)
    g = torch.tensor(_G4 if instruction.algorithm == "winograd4" else _G2, dtype=torch.float64)
    # [points, C_in, C_out]
    matrix = torch.einsum("ay,oiyx,bx->abio", g, values, g).reshape(len(g) ** 2, *values.shape[1::-1])
    return _panels(matrix)


def _panels(matrix: Tensor) -> Tensor:
    """[N, C_in, C_out] to [N, panels, C_in, PANEL], zero behind the last column."""
    count, rows, columns = matrix.shape
    panels = -(-columns // PANEL)
    padded = torch.zeros(count, rows, panels * PANEL)
    padded[:, :, :columns] = matrix
    return padded.view(count, rows, panels, PANEL).permute(0, 2, 1, 3).contiguous()


def attention_weights(unet: UNet, instruction: Instruction) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer before or behind an attention, float64.

    "packed": rows in the order q, k, v, head by head, each with zero rows behind it up to whole vectors, and q scaled.
    "projection": zero columns in the same places. "folded", for one head: with q = Q x + a, k = K y + b and v = V y + c
    of a pixel x and the pixels y, and the projection P (.) + p behind the sum over y,

        q . k           = (K^T Q x + K^T a) . y + (what does not depend on y, so that softmax drops it)
        P sum w v + p   = sum w (P V y + P c + p)       since the weights w sum to 1

    so with q' = scale (K^T Q x + K^T a) and v' = P V y + P c + p the keys are the y themselves.
    """
    block = unet.get_submodule(instruction.parameter.rpartition(".")[0])
    assert isinstance(block, AttentionBlock)
    heads = block.num_heads
    project, p = (value.detach().cpu().double() for value in (block.proj.weight, block.proj.bias))
    if instruction.qkv == "projection":
        return _with_zeros(project.T, heads).T, p
    weight, bias = (value.detach().cpu().double() for value in (block.qkv.weight, block.qkv.bias))
    rows = torch.arange(len(bias)).view(1, 1, -1)
    order = torch.cat([part.reshape(-1) for part in block.split_heads(rows)])
    (q, k, v), (a, b, c) = (value[order].chunk(3) for value in (weight, bias))
    scale = (len(a) // heads) ** -0.5
    if instruction.qkv == "folded":
        return torch.cat([scale * k.T @ q, project @ v]), torch.cat([scale * k.T @ a, project @ c + p])
    layers = ((scale * q, scale * a), (k, b), (v, c))
    weights, biases = (torch.cat([_with_zeros(part, heads) for part in parts]) for parts in zip(*layers, strict=True))
    return weights, biases


def _with_zeros(rows: Tensor, heads: int) -> Tensor:
    """[heads * d, ...] with zeros behind each head, up to whole vectors."""
    size = rows.shape[0] // heads
    padded = rows.new_zeros(heads, -(-size // VECTOR) * VECTOR, *rows.shape[1:])
    padded[:, :size] = rows.unflatten(0, (heads, size))
    return padded.flatten(0, 1)
