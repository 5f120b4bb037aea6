"""The C++ executor on plans of one instruction."""

import torch

from fastdiff.engine import Plan, place
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
