"""A GPU's plan as a list of launches: closures over static memory that pass the dispatcher by and allocate nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import AttentionCall, GroupNormActCall
from fastdiff.engine.cuda.fastest import fastest
from fastdiff.engine.cuda.kernels import (
    GroupNormActOut,
    launch_add,
    launch_attention,
    launch_group_norm_act,
    partial_shape,
    takes_head,
)
from fastdiff.engine.cuda.weights import Weights
from fastdiff.engine.plan import Instruction, Plan, place
from fastdiff.tensors import split_heads, split_qkv

__all__ = ["Launch", "Launches", "make_launches"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Launch:
    """An instruction and what runs it; a product of two sources is two launches, and so is a padded convolution."""

    instruction: Instruction
    run: Callable[[], None]


@dataclass(frozen=True, eq=False)
class Launches:
    """A plan over its memory, for one batch.

    Attributes:
        plan: The plan.
        input: Where the image goes, [B, channels, H, W] channels_last; channels behind the image's must be 0.
        times: Where the time vector goes, float32 [1 or B, plan.time_width].
        output: Where the result is, [B, channels, H, W] channels_last.
        launches: In their order.
        memory: Bytes held.
    """

    plan: Plan
    input: Tensor
    times: Tensor
    output: Tensor
    launches: tuple[Launch, ...]
    memory: int

    def run(self) -> None:
        """Launch all of it."""
        for launch in self.launches:
            launch.run()


def make_launches(plan: Plan, weights: Weights, batch: int, *, time_per_sample: bool) -> Launches:
    """Allocate a plan's memory and bind its instructions to it.

    Args:
        plan: From `fastdiff.engine.cuda.passes.for_gpu`.
        weights: Of the network, on the device on which the plan shall run.
        batch: Samples.
        time_per_sample: Whether each sample has a time vector of its own.

    Raises:
        torch.OutOfMemoryError: there is not enough memory.
    """
    return _Binding(plan, weights, batch, time_per_sample).bind()


class _Binding:
    def __init__(self, plan: Plan, weights: Weights, batch: int, time_per_sample: bool) -> None:
        self.plan, self.weights, self.batch, self.device = plan, weights, batch, weights.device
        placement = place(plan, batch, "cuda")
        # Zeros: a convolution may read channels that nothing writes.
        self.arena = torch.zeros(placement.length, dtype=torch.uint8, device=self.device)
        self.places = placement.places
        shape = (batch if time_per_sample else 1, plan.time_width)
        self.times = torch.zeros(shape, dtype=torch.float32, device=self.device)
        self.held = self.arena.numel() + 4 * self.times.numel()
        self.launches: list[Launch] = []
        # Results that nobody reads, the largest of all instructions.
        self.statistics: dict[str, Tensor] = {}

    def bind(self) -> Launches:
        for instruction in self.plan.instructions:
            getattr(self, instruction.op)(instruction)
        return Launches(
            self.plan,
            self.image(self.plan.input),
            self.times,
            self.image(self.plan.output),
            tuple(self.launches),
            self.held,
        )

    def image(self, number: int) -> Tensor:
        """[B, C, H, W], channels_last."""
        buffer, start = self.plan.buffers[number], self.places[number]
        flat = self.arena[start : start + self.batch * buffer.bytes].view(_DTYPES[buffer.dtype])
        return flat.view(self.batch, buffer.height, buffer.width, buffer.channels).permute(0, 3, 1, 2)

    def pixels(self, number: int) -> Tensor:
        """[B H W, C]."""
        return self.image(number).permute(0, 2, 3, 1).flatten(0, 2)

    def time(self, start: int | None, width: int) -> Tensor | None:
        return None if start is None else self.times[:, start : start + width].expand(self.batch, width)

    def scratch(self, name: str, size: int) -> Tensor:
        held = self.statistics.get(name)
        if held is None or held.numel() < size:
            held = self.statistics[name] = torch.empty(size, dtype=torch.float32, device=self.device)
            self.held += 4 * size
        return held[:size]

    def add_launch(self, instruction: Instruction, run: Callable[[], None]) -> None:
        self.launches.append(Launch(instruction, run))

    def norm_act(self, i: Instruction) -> None:
        x, *others = (self.image(n) for n in i.sources)
        channels = x.shape[1] + sum(other.shape[1] for other in others)
        scale_shift = self.time(i.time, 2 * channels)
        scale, shift = (None, None) if scale_shift is None else scale_shift.chunk(2, dim=1)
        weight, bias = self.weights.norm(i)
        call = GroupNormActCall(
            x,
            others[0] if others else None,
            None if i.residual is None else self.image(i.residual),
            self.weights.added(i, channels),
            self.time(i.added_time, x.shape[1]),
            weight,
            bias,
            scale,
            shift,
            i.groups,
            i.eps,
            i.act,
        )
        total = None if i.total is None else self.image(i.total)
        size = partial_shape(call)
        out = GroupNormActOut(
            self.image(i.target),
            total,
            self.scratch("mean", self.batch * i.groups).view(self.batch, i.groups),
            self.scratch("rstd", self.batch * i.groups).view(self.batch, i.groups),
            None if size is None else self.scratch("partial", size[0] * size[1]).view(size),
        )
        self.add_launch(i, lambda: _ignore(launch_group_norm_act(call, out)))

    def add(self, i: Instruction) -> None:
        x = self.image(i.sources[0])
        residual = None if i.residual is None else self.image(i.residual)
        bias, time = self.weights.added(i, x.shape[1]), self.time(i.added_time, x.shape[1])
        out = self.image(i.target)
        self.add_launch(i, lambda: launch_add(x, residual, bias, time, out))

    def conv(self, i: Instruction) -> None:
        if i.kernel == 1:
            self.product(i)
            return
        x, y = self.image(i.sources[0]), self.image(i.target)
        weight, pad, stride = self.weights.kernel(i, x.shape[1], y.shape[1]), i.pad, i.stride
        height, width = ((size - 1) * stride + i.kernel - pad for size in y.shape[2:])
        if height > x.shape[2] + pad or width > x.shape[3] + pad:
            # Zeros below and to the right alone, which cuDNN does not know: a copy that has them.
            shape = (self.batch, x.shape[1], height, width)
            padded = torch.zeros(shape, dtype=x.dtype, device=x.device).contiguous(memory_format=torch.channels_last)
            self.held += padded.numel() * padded.element_size()
            inside, source = padded[:, :, : x.shape[2], : x.shape[3]], x
            self.add_launch(i, lambda: _ignore(inside.copy_(source)))
            x = padded
        self.add_launch(i, lambda: _convolve(x, weight, y, stride, pad, self.weights.tf32))

    def product(self, i: Instruction) -> None:
        first, *others = (self.pixels(n) for n in i.sources)
        matrices, bias = self.weights.matrices(i, [first.shape[1], *(other.shape[1] for other in others)])
        y, head = self.pixels(i.target), matrices[0]
        tf32 = self.weights.tf32
        self.add_launch(i, lambda: _multiply(bias, first, head, y, tf32))
        for other, matrix in zip(others, matrices[1:], strict=True):
            self.add_launch(i, functools.partial(_multiply, y, other, matrix, y, tf32))

    def attention(self, i: Instruction) -> None:
        buffer = self.plan.buffers[i.sources[0]]
        tokens = buffer.height * buffer.width
        qkv = self.pixels(i.sources[0]).view(self.batch, tokens, buffer.channels)
        out = self.pixels(i.target).view(self.batch, tokens, buffer.channels // 3)
        # q is scaled by its weights.
        call = AttentionCall(qkv, i.heads, "new", 1.0)
        lse = self.scratch("lse", self.batch * i.heads * tokens).view(self.batch, i.heads, tokens)
        ways: list[Callable[[], None]] = [lambda: _attend(call, out)]
        if takes_head(out.shape[2] // i.heads):
            ways.insert(0, lambda: _ignore(launch_attention(call, (out, lse))))
        key = (self.batch, tokens, i.heads, out.shape[2], out.dtype, self.device)
        self.add_launch(i, fastest(key, ways))

    def pool(self, i: Instruction) -> None:
        x, y = self.image(i.sources[0]), self.image(i.target)
        self.add_launch(i, lambda: _ignore(torch.ops.aten.avg_pool2d.out(x, [2, 2], out=y)))

    def repeat(self, i: Instruction) -> None:
        x, y = self.image(i.sources[0]), self.image(i.target)
        size = list(y.shape[2:])
        self.add_launch(i, lambda: _ignore(torch.ops.aten.upsample_nearest2d.out(x, size, out=y)))


def _ignore(result: object) -> None:
    """What a launcher returns, it has written."""


def _attend(call: AttentionCall, out: Tensor) -> None:
    """PyTorch's attention, whose result is copied into its place."""
    q, k, v = split_qkv(call.qkv, call.num_heads, call.layout)
    heads = F.scaled_dot_product_attention(q, k, v, scale=call.scale)
    split_heads(out, call.num_heads).copy_(heads)


def _multiply(summand: Tensor, x: Tensor, matrix: Tensor, y: Tensor, tf32: bool) -> None:
    """y = summand + x matrix; TensorFloat-32 as is said here, whatever PyTorch is set to."""
    if x.dtype != torch.float32 or not x.is_cuda:
        torch.addmm(summand, x, matrix, out=y)
        return
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        torch.addmm(summand, x, matrix, out=y)
    finally:
        setting.fp32_precision = before


def _convolve(x: Tensor, weight: Tensor, y: Tensor, stride: int, pad: int, tf32: bool) -> None:
    if x.is_cuda:
        torch.ops.aten.cudnn_convolution.out(
            x, weight, [pad, pad], [stride, stride], [1, 1], 1, torch.backends.cudnn.benchmark, False, tf32, out=y
        )
    else:
        y.copy_(F.conv2d(x, weight, None, stride, pad))
