"""Where a plan's time goes: every instruction timed by itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.engine.native import NativeNetwork
from fastdiff.engine.pack import pack_layers
from fastdiff.engine.plan import ITEM_BYTES, Buffer, Instruction, Number, Plan
from fastdiff.engine.prepared import prepared_for

__all__ = ["InstructionTime", "copy_speed", "engine_peak", "matrix_peak", "products_made", "profile"]

_PEAK_SIZE = 768
_COPIED_BYTES = 4 << 20
# Operations that Winograd's transforms save.
_SAVED = {"winograd4": 4.0, "winograd2": 2.25}


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
        predicted_ms: The longer of two: its algorithm's products at the engine's peak, and its bytes at the speed of a
            copy in the caches.
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
    a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, dtype=torch.float32, device="cpu") for _ in range(2))
    return 2 * _PEAK_SIZE**3 / _least_seconds(lambda: torch.mm(a, b), seconds)


def engine_peak(seconds: float = 0.3, products: Number = "float32") -> float:
    """Operations per second of the engine's own products, with the threads in use: a direct convolution's.

    Args:
        seconds: How long to measure.
        products: Type of what is multiplied, "float32" or "bfloat16".
    """
    buffer, batch = Buffer(16, 16, 256), 4
    conv = Instruction("conv", (0,), 1, kernel=3, pad=1, parameter="conv", products=products)
    plan = Plan((buffer, buffer), (conv,), 0, 1, (), 0)
    layer = (
        torch.zeros(buffer.channels, buffer.channels, 3, 3, device="cpu"),
        torch.zeros(buffer.channels, device="cpu"),
    )
    weights, places = pack_layers(plan, [layer])
    prepared = prepared_for(plan, batch, places)
    shape = (batch, buffer.channels, buffer.height, buffer.width)
    x = torch.zeros(shape, dtype=torch.float32, device="cpu").contiguous(memory_format=torch.channels_last)
    places_of = (*prepared.memory, torch.empty_like(x))
    times = torch.zeros(1, 0, dtype=torch.float32, device="cpu")
    run = lambda: torch.ops.fastdiff.plan_forward(x, prepared.code, weights, times, *places_of)  # noqa: E731
    return batch * plan.flops(conv) / _least_seconds(run, seconds)


def copy_speed(seconds: float = 0.1) -> float:
    """Bytes per second, read plus written, of a copy within the caches."""
    source = torch.zeros(_COPIED_BYTES // 8, dtype=torch.float32, device="cpu")
    target = torch.empty_like(source)
    return _COPIED_BYTES / _least_seconds(lambda: target.copy_(source), seconds)


def products_made(flops: float, instruction: Instruction) -> float:
    """Operations in an instruction's products, of `flops` by the direct formula; its transforms are not counted."""
    return flops / _SAVED.get(instruction.algorithm, 1.0)


def _least_seconds(call: Callable[[], object], seconds: float) -> float:
    least, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def profile(network: NativeNetwork, batch: int, size: tuple[int, int], repeats: int = 5) -> list[InstructionTime]:
    """Time every instruction of the plan for `batch` images of size (height, width).

    Args:
        network: The compiled network.
        batch: Images at a time.
        size: Height and width in pixels.
        repeats: Runs of each, of which the median is taken.
    """
    height, width = size
    with network.lock:
        network.check()
        prepared = network.prepare(batch, height, width)
        plan = prepared.plan
        weights = network.packed(plan)
        shapes = [
            (batch, channels, height, width) for channels in (plan.buffers[plan.input].channels, network.channels[1])
        ]
        x, out = (
            torch.zeros(shape, dtype=torch.float32, device="cpu").contiguous(memory_format=torch.channels_last)
            for shape in shapes
        )
        zero = torch.zeros(1, dtype=torch.int64, device="cpu")
        times = network.times(zero, None if getattr(network.unet, "label_emb", None) is None else zero)
        # A run of the whole, so that no buffer holds NaN.
        places = (*prepared.memory, out)
        torch.ops.fastdiff.plan_forward(x, prepared.code, weights, times, *places)
        types = {instruction.products for instruction in prepared.plan.instructions}
        peaks, speed = {products: engine_peak(products=products) for products in types}, copy_speed()
        nothing = _median(x, prepared.code[:0].contiguous(), weights, times, places, repeats)
        found = []
        for number, instruction in enumerate(prepared.plan.instructions):
            code = prepared.code[number : number + 1].contiguous()
            seconds = max(0.0, _median(x, code, weights, times, places, repeats) - nothing)
            flops = batch * prepared.plan.flops(instruction)
            moved = batch * prepared.plan.bytes(instruction) + _weight_bytes(network, instruction)
            predicted = max(products_made(flops, instruction) / peaks[instruction.products], moved / speed)
            described = _describe(prepared.plan.buffers, instruction)
            found.append(InstructionTime(number, instruction, described, 1e3 * seconds, flops, moved, 1e3 * predicted))
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
    weight = next(network.unet.get_submodule(instruction.parameter).parameters(recurse=False))
    return int(ITEM_BYTES[instruction.products] * weight.numel() * larger)


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
