"""Single instructions of the engine, run in C++ and in float64."""

import torch
import torch.nn.functional as F

from fastdiff.engine import Buffer, Instruction, Plan, place
from fastdiff.engine.pack import encode, pack_layers


def run_one(instruction, buffers, layers, x, others=()):
    """The C++ executor's result of a plan of one instruction; `others` fills further buffers."""
    plan = Plan(buffers, (instruction,), 0, instruction.target, (), 0)
    placement = place(plan, len(x))
    weights, places = pack_layers(plan, layers)
    code = encode(plan, placement, places)
    arena = torch.full((placement.length // 4,), torch.nan)
    for number, values in others:
        start = placement.places[number] // 4
        arena[start : start + values.numel()] = values.permute(0, 2, 3, 1).reshape(-1)
    out_buffer = buffers[instruction.target]
    shape = (len(x), out_buffer.channels, out_buffer.height, out_buffer.width)
    out = torch.full(shape, torch.nan).contiguous(memory_format=torch.channels_last)
    torch.ops.fastdiff.plan_forward(
        x.contiguous(memory_format=torch.channels_last),
        code,
        weights,
        torch.zeros(1, 0),
        placement.places[0] // 4,
        placement.places[instruction.target] // 4,
        arena,
        torch.full((torch.ops.fastdiff.plan_scratch(code, len(x), 0, 0),), torch.nan),
        0,
        0,
        out,
    )
    return out


CONVOLUTIONS = [
    # channels in, out, height, width, kernel, stride, pad, upsample, algorithm
    (32, 48, 8, 8, 3, 1, 1, False, "winograd4"),
    (32, 48, 9, 7, 3, 1, 1, False, "winograd4"),
    (32, 16, 1, 1, 3, 1, 1, False, "winograd4"),
    (48, 80, 6, 10, 3, 1, 1, True, "winograd4"),
    (32, 48, 4, 4, 3, 1, 1, False, "winograd2"),
    (48, 144, 5, 3, 3, 1, 1, True, "winograd2"),
    (3, 40, 7, 5, 3, 1, 1, False, "direct"),
    (40, 3, 7, 5, 3, 1, 1, False, "direct"),
    (32, 1, 7, 5, 3, 1, 1, False, "direct"),
    (48, 2, 8, 6, 3, 1, 1, False, "direct"),
    (16, 3, 8, 6, 3, 2, 0, False, "direct"),
    (64, 4, 6, 4, 3, 1, 1, True, "direct"),
    (32, 70, 8, 6, 3, 2, 1, False, "direct"),
    (32, 64, 8, 6, 3, 2, 0, False, "direct"),
    (17, 33, 4, 4, 1, 1, 0, False, "direct"),
    (1, 200, 3, 5, 1, 1, 0, False, "direct"),
    (128, 128, 3, 3, 1, 1, 0, False, "direct"),
    (20, 24, 3, 5, 3, 1, 1, True, "direct"),
]


def convolution(case, residual, batch, *, products="float32", act=True, rounded=False):
    """What the engine makes of a convolution, and float64; `rounded`: of numbers that are bfloat16."""
    channels, channels_out, height, width, kernel, stride, pad, upsample, algorithm = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(channels_out, channels, kernel, kernel, generator=generator) / (channels * kernel**2) ** 0.5
    if rounded:
        x, weight = x.bfloat16().float(), weight.bfloat16().float()
    bias = torch.randn(channels_out, generator=generator)
    scale = 2 if upsample else 1
    out = Buffer(height * scale // stride, width * scale // stride, channels_out)
    added = torch.randn(batch, channels_out, out.height, out.width, generator=generator)
    instruction = Instruction(
        "conv", (0,), 1, kernel=kernel, stride=stride, pad=pad, upsample=upsample, act=act, parameter="c",
        algorithm=algorithm, products=products,
        residual=2 if residual else None,
    )  # fmt: skip
    buffers = (Buffer(height, width, channels), out, out)
    actual = run_one(instruction, buffers, [(weight, bias)], x, [(2, added)] if residual else [])
    source = F.interpolate(x, scale_factor=float(scale)) if upsample else x
    read = F.silu(source.double()) if act else source.double()
    if stride == 2 and pad == 0:
        read = F.pad(read, (0, 1, 0, 1))
    expected = F.conv2d(read, weight.double(), bias.double(), stride=stride, padding=pad)
    return actual, expected + added.double() if residual else expected


def run_pointwise(x, weight):
    """A convolution of one pixel without a bias, of bfloat16 numbers. x: [pixels, C]; weight: [C_out, C]."""
    buffers = (Buffer(1, len(x), x.shape[1]), Buffer(1, len(x), len(weight)))
    instruction = Instruction("conv", (0,), 1, kernel=1, pad=0, parameter="c", products="bfloat16")
    image = x.T.reshape(1, x.shape[1], 1, len(x))
    result = run_one(instruction, buffers, [(weight[:, :, None, None], torch.zeros(len(weight)))], image)
    return result[0, :, 0].T.contiguous()
