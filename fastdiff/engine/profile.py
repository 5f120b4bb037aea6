"""Where a plan's time goes: every instruction timed by itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.engine.native import NativeNetwork
from fastdiff.engine.plan import Buffer, Instruction

__all__ = ["InstructionTime", "matrix_peak", "profile"]

_PEAK_SIZE = 768


@dataclass(frozen=True)
class InstructionTime:
    """What one instruction costs.

    Attributes:
        number: Its place in the plan.
        instruction: What it does.
        description: Shapes, for people.
        milliseconds: Median of its runs.
        flops: Operations by the direct formula, of the whole batch.
        bytes_moved: Bytes of buffers and weights that it reads and writes.
        predicted_ms: Multiplications that its algorithm makes at the machine's peak; 0 for the others.
    """

    number: int
    instruction: Instruction
    description: str
    milliseconds: float
    flops: int
    bytes_moved: int
    predicted_ms: float


def matrix_peak(seconds: float = 0.3) -> float:
    """Operations per second of PyTorch's largest matrix product in float32, with the threads in use."""
    a, b = torch.randn(_PEAK_SIZE, _PEAK_SIZE), torch.randn(_PEAK_SIZE, _PEAK_SIZE)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * _PEAK_SIZE**3 / best


def profile(network: NativeNetwork, batch: int, size: tuple[int, int], repeats: int = 5) -> list[InstructionTime]:
    """Time every instruction of the plan for `batch` images of size (height, width).

    Args:
        network: The compiled network.
        batch: Images at a time.
        size: Height and width in pixels.
        repeats: Runs of each, of which the median is taken.
    """
    height, width = size
    config = network.unet.config
    weights = network.weights(height, width)
    prepared = network.prepare(batch, height, width)
    x = torch.zeros(batch, config.in_channels, height, width).contiguous(memory_format=torch.channels_last)
    out = torch.empty(batch, config.out_channels, height, width).contiguous(memory_format=torch.channels_last)
    y = None if config.num_classes is None else torch.zeros(1, dtype=torch.int64)
    times = network.times(torch.zeros(1, dtype=torch.int64), y)
    # A run of the whole, so that no buffer holds NaN.
    places = (prepared.input, prepared.output, prepared.arena, prepared.scratch, out)
    torch.ops.fastdiff.plan_forward(x, prepared.code, weights, times, *places)
    peak = matrix_peak()
    nothing = _median(x, prepared.code[:0].contiguous(), weights, times, places, repeats)
    found = []
    for number, instruction in enumerate(prepared.plan.instructions):
        code = prepared.code[number : number + 1].contiguous()
        seconds = max(0.0, _median(x, code, weights, times, places, repeats) - nothing)
        flops = batch * prepared.plan.flops(instruction)
        saved = {"winograd4": 4.0, "winograd2": 2.25}.get(instruction.algorithm, 1.0)
        found.append(
            InstructionTime(
                number,
                instruction,
                _describe(prepared.plan.buffers, instruction),
                1e3 * seconds,
                flops,
                batch * prepared.plan.bytes(instruction) + _weight_bytes(network, instruction),
                1e3 * flops / saved / peak,
            )
        )
    return found


def _median(
    x: Tensor, code: Tensor, weights: Tensor, times: Tensor, places: tuple[int | Tensor, ...], repeats: int
) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.ops.fastdiff.plan_forward(x, code, weights, times, *places)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _weight_bytes(network: NativeNetwork, instruction: Instruction) -> int:
    if not instruction.parameter:
        return 0
    larger = {"winograd4": 36 / 9, "winograd2": 16 / 9}.get(instruction.algorithm, 1.0)
    count = network.unet.get_parameter(f"{instruction.parameter}.weight").numel()
    return int(4 * count * larger)


def _describe(buffers: Sequence[Buffer], instruction: Instruction) -> str:
    shapes = [buffers[n] for n in (*instruction.sources, instruction.target)]
    *sources, target = [f"{b.channels}x{b.height}x{b.width}" for b in shapes]
    parts = ["+".join(sources), "->", target]
    if instruction.op == "conv":
        parts.append(f"{instruction.kernel}x{instruction.kernel}")
        marks = {
            "stride 2": instruction.stride == 2,
            "up": instruction.upsample,
            "norm": instruction.norm is not None,
            "silu": instruction.act,
            "time": instruction.time is not None,
            "residual": instruction.residual is not None,
        }
        parts += [name for name, there in marks.items() if there]
    return " ".join(parts)
