"""A network as a plan: a flat list of instructions over buffers, the same for every executor.

Buffers are per sample: images [H, W, C], channels last, and small vectors. What depends on the time alone is one vector
per time, computed before the plan runs; instructions name slices of it. Parameters are named as in the module.

Two kinds of plans are made of the same instructions. For the CPU a convolution reads through a norm's factors and adds
bias, time and residual to what it writes. For a GPU (`fastdiff.engine.cuda.passes`) convolutions are the libraries',
which do neither: there the norm writes the activated image, and what a convolution leaves to be added is added by the
norm that reads its result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

__all__ = [
    "Algorithm",
    "AttentionLayer",
    "Buffer",
    "Instruction",
    "Number",
    "Op",
    "Placement",
    "Plan",
    "PlanBuilder",
    "place",
]

Op = Literal[
    "stats", "norm", "conv", "attention", "pool", "repeat", "pixel_norm", "memory_attention", "linear_attention",
    "norm_act", "add",
]  # fmt: skip
Algorithm = Literal["direct", "winograd4", "winograd2"]
AttentionLayer = Literal["", "packed", "projection", "folded", "plain", "heads", "joined"]
Number = Literal["float32", "bfloat16", "float16"]
ITEM_BYTES: dict[Number, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes; a cache line, and what a GPU's allocator gives.
ALIGNMENT = {"cpu": 64, "cuda": 256}
# Channels in a vector of the executors.
VECTOR = 16


@dataclass(frozen=True)
class Buffer:
    """Memory of one sample, [height, width, channels]."""

    height: int
    width: int
    channels: int
    dtype: Number = "float32"

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.height * self.width * self.channels

    @property
    def bytes(self) -> int:
        """Bytes of it."""
        return self.size * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Instruction:
    """One fused operation. Buffers are named by their number in the plan.

    Attributes:
        op: "stats": mean and sum of squares about it, per channel. "norm": from those, factor and offset of each
            channel of a group norm. "conv": convolution of act(factor * x + offset) over one or two sources, plus bias,
            time and residual. "attention": softmax(q k^T) v of the packed q, k, v, with q scaled; or, of two sources,
            of the packed q and v and of keys that are factor * x + offset; plus residual. "pool": mean of 2x2 pixels of
            act(factor * x + offset). "repeat": each pixel of that twice in both directions. Both with `kernel` 4: with
            the filter (1, 3, 3, 1) in each direction, and zeros outside of the image. "norm_act": act of the norm,
            scaled and shifted by the time, of its sources, to the first of which bias, time and residual are added
            first. "add": the first source with bias, time and residual added. "pixel_norm": act of each pixel over its
            length times a gain per channel, scaled and shifted by the time, plus residual; with `eps`, of each pixel
            less its mean, over its deviation, times a gain, plus an offset; with `norm`, act(factor * x + offset) plus
            residual. "memory_attention":
            softmax(q k^T) v of the packed q, k, v, with learned keys and values in front. "linear_attention": the
            same with softmax(q) (softmax(k)^T v), over the channels of q and the tokens of k, times d^(-1/2).
        sources: What is read; of a convolution's or norm's two sources, the channels follow each other.
        target: What is written.
        kernel, stride, pad: Of a convolution; `pad` rows above and columns to the left, zeros outside of the image.
        upsample: The convolution reads each pixel twice in both directions.
        act: SiLU behind the norm.
        norm: Buffer of factors and offsets that a convolution or pool applies to what it reads, an attention to keys.
        residual: Buffer that is added to the result of a convolution or attention, or to the first source of a
            "norm_act" or "add".
        stats: Buffers of statistics that a norm reads, one per source.
        parameter: Name of the module whose weight and bias it uses.
        time: Where the instruction's slice of the time vector begins: [C] to add, or [2C], scale and shift.
        groups, eps: Of a norm; groups of an attention with a memory: the numbers d of a head, without zeros.
        memory: Learned keys and values of an attention.
        factors: Channels of each source and what they are to be multiplied by, to be the network's own values: a
            convolution has it in its weights, a norm beside its epsilon. None where that is 1.
        gain: What a convolution's weights and bias are multiplied by besides.
        heads: Of an attention, or the layers around it.
        bias: A convolution adds its bias.
        added: Of a "norm_act" or "add", the module whose bias is added to the first source.
        added_time: Of these, where the slice of the time vector begins that is added to it.
        total: Buffer to which a "norm_act" writes the first source with what was added to it.
        qkv: What a convolution is to an attention. "packed": it makes q, k and v, its rows in the order q, k, v, and q
            scaled, each head with zeros behind it up to whole vectors. "projection": it reads such heads. "folded": for
            one head, it makes q and v so that the normalised input itself serves as k, and v holds the projection as
            well; `fastdiff.engine.pack` says how. "plain": as "packed", without the zeros. "heads" and "joined": as
            "packed" and "projection", of lucidrains' layers.
        algorithm: Of a convolution.
        products: Type that a convolution's or attention's factors are rounded to before they are multiplied; sums are
            float32. On the CPU weights are stored in it. Not "float16".
    """

    op: Op
    sources: tuple[int, ...]
    target: int
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    upsample: bool = False
    act: bool = False
    norm: int | None = None
    residual: int | None = None
    stats: tuple[int, ...] = ()
    parameter: str = ""
    time: int | None = None
    groups: int = 1
    eps: float = 0.0
    heads: int = 1
    qkv: AttentionLayer = ""
    algorithm: Algorithm = "direct"
    products: Number = "float32"
    bias: bool = True
    added: str = ""
    added_time: int | None = None
    total: int | None = None
    memory: int = 0
    factors: tuple[tuple[int, float], ...] = ()
    gain: float = 1.0

    def reads(self) -> tuple[int, ...]:
        """All buffers that it reads."""
        others = [n for n in (self.norm, self.residual) if n is not None]
        # A norm needs its sources' shapes and statistics, not their values.
        return (*(self.sources if self.op != "norm" else ()), *self.stats, *others)

    def writes(self) -> tuple[int, ...]:
        """All buffers that it writes."""
        return (self.target,) if self.total is None else (self.target, self.total)


@dataclass(frozen=True)
class Plan:
    """A network for one image size.

    Attributes:
        buffers: All of them.
        instructions: In the order in which they run.
        input, output: Buffers of the image and the result.
        projections: Modules whose outputs for the embedded time, one behind the other, are the time vector.
        time_width: Length of the time vector.
    """

    buffers: tuple[Buffer, ...]
    instructions: tuple[Instruction, ...]
    input: int
    output: int
    projections: tuple[str, ...]
    time_width: int

    def channels_in(self, instruction: Instruction) -> int:
        """Channels of all sources."""
        return sum(self.buffers[n].channels for n in instruction.sources)

    def flops(self, instruction: Instruction) -> int:
        """Operations of one sample, a multiplication and an addition counted as two, by the direct formula."""
        out = self.buffers[instruction.target]
        pixels = out.height * out.width
        if instruction.op == "conv":
            return 2 * pixels * out.channels * self.channels_in(instruction) * instruction.kernel**2
        if instruction.op == "attention":
            return 4 * pixels * pixels * out.channels
        if instruction.op == "memory_attention":
            return 4 * pixels * (pixels + instruction.memory) * out.channels
        if instruction.op == "linear_attention":
            return 2 * (2 * pixels + instruction.memory) * out.channels * (out.channels // instruction.heads)
        return 0

    def bytes(self, instruction: Instruction) -> int:
        """Bytes of buffers read and written for one sample."""
        return sum(self.buffers[n].bytes for n in (*instruction.reads(), *instruction.writes()))

    def small(self) -> Plan:
        """The same with the transform of 2x2 tiles where there is that of 4x4: weights 2.25 times smaller."""
        instructions = (replace(i, algorithm="winograd2" if i.algorithm == "winograd4" else i.algorithm)
                        for i in self.instructions)  # fmt: skip
        return replace(self, instructions=tuple(instructions))

    @functools.cached_property
    def algorithms(self) -> tuple[str, ...]:
        """How all instructions are computed: what packed weights depend on."""
        # Most gains are the network's, but some are of the number of pixels.
        return tuple(f"{i.algorithm} {i.products} {i.gain}" for i in self.instructions)

    def strict(self) -> Plan:
        """The same with direct convolutions alone."""
        return replace(self, instructions=tuple(replace(i, algorithm="direct") for i in self.instructions))


@dataclass(frozen=True)
class Placement:
    """Where each buffer lies in the arena, in bytes, for a batch, and how long the arena is."""

    places: tuple[int, ...]
    length: int


def place(plan: Plan, batch: int, target: Literal["cpu", "cuda"] = "cpu") -> Placement:
    """Put buffers into one arena; those that are not alive together share room.

    First fit by falling size. The input and the output live from the first to the last instruction.
    """
    last = len(plan.instructions)
    alive: dict[int, list[int]] = {plan.input: [-1, last], plan.output: [-1, last]}
    for step, instruction in enumerate(plan.instructions):
        for number in (*instruction.reads(), *instruction.writes()):
            span = alive.setdefault(number, [step, step])
            span[1] = max(span[1], step)
    sizes = [_padded(buffer.bytes * batch, ALIGNMENT[target]) for buffer in plan.buffers]
    places = [0] * len(plan.buffers)
    done: list[int] = []
    for number in sorted(alive, key=lambda n: (-plan.buffers[n].bytes, n)):
        taken = sorted(
            (places[n], places[n] + sizes[n])
            for n in done
            if alive[n][0] <= alive[number][1] and alive[number][0] <= alive[n][1]
        )
        places[number] = _first_gap(taken, sizes[number])
        done.append(number)
    return Placement(tuple(places), max(places[n] + sizes[n] for n in done))


def _padded(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment


def _first_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    start = 0
    for first, end in taken:
        if first - start >= size:
            return start
        start = max(start, end)
    return start


class PlanBuilder:
    """A plan in the making, for what lowers a network of some class.

    Attributes:
        names: Each module's name in the network.
        buffers, instructions, projections, time_width: As those of `Plan`, as far as it got.
    """

    def __init__(self, unet: nn.Module) -> None:
        self.names = {module: name for name, module in unet.named_modules()}
        self.buffers: list[Buffer] = []
        self.instructions: list[Instruction] = []
        self.projections: list[str] = []
        self.time_width = 0

    def buffer(self, height: int, width: int, channels: int) -> int:
        """Room for an image, by its number."""
        self.buffers.append(Buffer(height, width, channels))
        return len(self.buffers) - 1

    def emit(self, instruction: Instruction) -> int:
        """Add an instruction; its target."""
        self.instructions.append(instruction)
        return instruction.target

    def plan(self, image: int, output: int) -> Plan:
        """From the buffer of the input to that of the result."""
        return Plan(
            tuple(self.buffers), tuple(self.instructions), image, output, tuple(self.projections), self.time_width
        )
