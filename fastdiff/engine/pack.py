"""Weights and instructions as the C++ executor reads them; csrc/include/plan_layout.h has the other side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdiff.engine import memory, packed_cache
from fastdiff.engine import schemas as _plan  # noqa: F401
from fastdiff.engine.lucidrains import layer_parameters as lucidrains_parameters
from fastdiff.engine.plan import VECTOR, Instruction, Placement, Plan
from fastdiff.nets import lucidrains
from fastdiff.nets.blocks import PyramidConv
from fastdiff.nets.unet import AttentionBlock, UNet

__all__ = [
    "ALGORITHMS",
    "CODE_FIELDS",
    "OPS",
    "Places",
    "attention_weights",
    "encode",
    "layer_parameters",
    "pack_layers",
    "pack_weights",
    "weight_and_bias",
]

OPS = (
    "stats", "norm", "conv", "attention", "pool", "repeat", "pixel_norm", "memory_attention", "linear_attention",
)  # fmt: skip
ALGORITHMS = ("direct", "winograd4", "winograd2")
CODE_FIELDS = (
    "op", "algorithm", "kernel", "stride", "pad", "upsample", "act", "source", "channels", "source2", "channels2",
    "height_in", "width_in", "height", "width", "channels_out", "target", "residual", "norm", "weight", "bias", "time",
    "groups", "epsilon", "heads", "stats", "stats2", "pairs", "memory",
)  # fmt: skip
PANEL = 64


Places = dict[int, tuple[int, int, int]]
"""For each instruction that has parameters where they begin among the weights: (weight, bias, epsilon)."""


def pack_weights(plan: Plan, unet: nn.Module, folder: Path | None = None) -> tuple[Tensor, Places]:
    """All weights of a network in one float32 tensor, and their places.

    Args:
        plan: What they are packed for.
        unet: The network.
        folder: Where packed weights are kept, if anywhere: those of the same network are read, else written.
    """
    layers = [layer_parameters(unet, i) for i in plan.instructions if i.parameter]
    if folder is None:
        return pack_layers(plan, layers)
    path = folder / packed_cache.name_of(plan, layers)
    places, length = _places(plan, layers)
    if (found := packed_cache.load(path, length)) is not None:
        return found, places
    packed, places = pack_layers(plan, layers)
    packed_cache.save(path, packed)
    return packed, places


def layer_parameters(unet: nn.Module, instruction: Instruction) -> tuple[Tensor, Tensor]:
    """Weight and bias of an instruction."""
    if isinstance(unet, lucidrains.Unet):
        return lucidrains_parameters(unet, instruction)
    assert isinstance(unet, UNet)
    if instruction.qkv:
        weight, bias = attention_weights(unet, instruction)
    else:
        module = unet.get_submodule(instruction.parameter)
        weight, bias = weight_and_bias(module)
        if isinstance(module, PyramidConv):
            weight = module.whole_kernel().detach()
    if instruction.op != "conv" or (instruction.gain == 1 and not instruction.factors):
        return weight, bias
    return _multiplied(instruction, weight.double(), bias.double())


def _multiplied(instruction: Instruction, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution's parameters with its gain and the factors of its sources in them, float64."""
    gain: Tensor | float = instruction.gain
    if instruction.qkv == "folded":
        # Of v alone, which is added to the input.
        gain = torch.cat([weight.new_ones(len(bias) // 2), weight.new_full((len(bias) // 2,), instruction.gain)])
    shape = (-1, *[1] * (weight.ndim - 1))
    bias = bias * gain
    weight = weight * (gain.view(shape) if isinstance(gain, Tensor) else gain)
    if instruction.factors:
        columns = torch.cat([weight.new_full((count,), factor) for count, factor in instruction.factors])
        weight = weight * columns.view(1, -1, *shape[2:])
    return weight, bias


def pack_layers(plan: Plan, layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Places]:
    """The same for weights and biases that are given, in the order of the instructions that have some."""
    places, length = _places(plan, layers)
    packed = memory.zeros(length)
    for (number, (at_weight, at_bias, at_epsilon)), (weight, bias) in zip(places.items(), layers, strict=True):
        instruction = plan.instructions[number]
        packed[at_bias : at_bias + bias.numel()] = bias.detach()
        if at_epsilon >= 0:
            packed[at_epsilon] = instruction.eps
            for number, (_, factor) in enumerate(instruction.factors, 1):
                packed[at_epsilon + number] = factor
        if instruction.op != "conv":
            packed[at_weight : at_weight + weight.numel()] = weight.detach().flatten()
        else:
            _pack(packed[at_weight : at_weight + _packed_size(instruction, weight)], instruction, weight.detach())
    return packed, places


def _places(plan: Plan, layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Places, int]:
    """Where the packed weights and biases lie, in the order of the instructions, and how many numbers there are."""
    numbers = [number for number, instruction in enumerate(plan.instructions) if instruction.parameter]
    places: Places = {}
    length = 0

    def take(count: int) -> int:
        nonlocal length
        start = length
        # Whole cache lines; a vector load may reach behind a tensor's end.
        length += -(-(count + 16) // 16) * 16
        return start

    for number, (weight, bias) in zip(numbers, layers, strict=True):
        norm, conv = (plan.instructions[number].op == op for op in ("norm", "conv"))
        norm = norm or _pixel_norm(plan.instructions[number]) == 1
        count = _packed_size(plan.instructions[number], weight) if conv else weight.numel()
        places[number] = (take(count), take(bias.numel()), take(3) if norm else -1)
    return places, length


def _pixel_norm(instruction: Instruction) -> int:
    """Which of its norms a "pixel_norm" is: see `csrc/include/plan_layout.h`."""
    if instruction.op != "pixel_norm":
        return 0
    return 2 if instruction.norm is not None else int(instruction.eps > 0)


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor]:
    """The parameters of a layer; zeros where it has no bias."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    return weight.detach(), weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()


def encode(plan: Plan, placement: Placement, weight_places: Places) -> Tensor:
    """The instructions as int64 [N, len(CODE_FIELDS)]; places are those of float32 numbers."""
    rows, places = [], [place // 4 for place in placement.places]
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
            "source": places[i.sources[0]],
            "channels": sources[0].channels,
            "source2": places[i.sources[1]] if second else -1,
            "channels2": sources[1].channels if second else 0,
            "height_in": sources[0].height,
            "width_in": sources[0].width,
            "height": out.height,
            "width": out.width,
            "channels_out": out.channels,
            "target": places[i.target],
            "residual": -1 if i.residual is None else places[i.residual],
            "norm": -1 if i.norm is None else places[i.norm],
            "weight": weight,
            "bias": bias,
            "time": -1 if i.time is None else i.time,
            "groups": i.groups,
            "epsilon": epsilon,
            "heads": i.heads,
            "stats": places[i.stats[0]] if i.stats else -1,
            "stats2": places[i.stats[1]] if len(i.stats) > 1 else -1,
            "pairs": int(i.products == "bfloat16"),
            "memory": int(bool(i.factors)) if i.op == "norm" else i.memory or _pixel_norm(i),
        }
        rows.append([values[field] for field in CODE_FIELDS])
    return torch.tensor(rows, dtype=torch.int64, device="cpu")


def _points(instruction: Instruction) -> int:
    """Matrices that a layer's weights are: one per tap of the kernel, or per point of Winograd's transform."""
    return {"winograd4": 36, "winograd2": 16}.get(instruction.algorithm, instruction.kernel**2)


def _words(instruction: Instruction, rows: int) -> int:
    """Words of 32 bits that a column of so many rows has."""
    return -(-rows // 2) if instruction.products == "bfloat16" else rows


def _packed_size(instruction: Instruction, weight: Tensor) -> int:
    return _points(instruction) * _words(instruction, weight.shape[1]) * -(-weight.shape[0] // PANEL) * PANEL


def _pack(packed: Tensor, instruction: Instruction, weight: Tensor) -> None:
    """[C_out, C_in, k, k] or [C_out, C_in] in panels of columns; csrc/cpu/packing.h says how they lie."""
    torch.ops.fastdiff.plan_pack(
        weight.reshape(*weight.shape[:2], -1).contiguous(),
        packed,
        ALGORITHMS.index(instruction.algorithm),
        instruction.products == "bfloat16",
    )


def attention_weights(unet: UNet, instruction: Instruction) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer before or behind an attention, float64.

    "packed": rows in the order q, k, v, head by head, each with zero rows behind it up to whole vectors, and q scaled.
    "plain": without the zero rows. "projection": zero columns in the same places. "folded", for one head: with
    q = Q x + a, k = K y + b and v = V y + c of a pixel x and the pixels y, and the projection P (.) + p behind the sum
    over y,

        q . k           = (K^T Q x + K^T a) . y + (what does not depend on y, so that softmax drops it)
        P sum w v + p   = sum w (P V y + P c + p)       since the weights w sum to 1

    so with q' = scale (K^T Q x + K^T a) and v' = P V y + P c + p the keys are the y themselves.
    """
    block = unet.get_submodule(instruction.parameter.rpartition(".")[0])
    assert isinstance(block, AttentionBlock)
    heads = block.num_heads
    project, p = (value.double() for value in weight_and_bias(block.proj))
    if instruction.qkv == "projection":
        return _with_zeros(project.T, heads).T, p
    weight, bias = (value.double() for value in weight_and_bias(block.qkv))
    rows = torch.arange(len(bias), device=weight.device).view(1, 1, -1)
    order = torch.cat([part.reshape(-1) for part in block.split_heads(rows)])
    (q, k, v), (a, b, c) = (value[order].chunk(3) for value in (weight, bias))
    scale = (len(a) // heads) ** -0.5
    if instruction.qkv == "folded":
        return torch.cat([scale * k.T @ q, project @ v]), torch.cat([scale * k.T @ a, project @ c + p])
    layers = ((scale * q, scale * a), (k, b), (v, c))
    if instruction.qkv == "plain":
        weights, biases = (torch.cat(parts) for parts in zip(*layers, strict=True))
        return weights, biases
    weights, biases = (torch.cat([_with_zeros(part, heads) for part in parts]) for parts in zip(*layers, strict=True))
    return weights, biases


def _with_zeros(rows: Tensor, heads: int) -> Tensor:
    """[heads * d, ...] with zeros behind each head, up to whole vectors."""
    size = rows.shape[0] // heads
    padded = rows.new_zeros(heads, -(-size // VECTOR) * VECTOR, *rows.shape[1:])
    padded[:, :size] = rows.unflatten(0, (heads, size))
    return padded.flatten(0, 1)
