"""From a lowered plan to the one that a GPU runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from fastdiff.engine.plan import Buffer, Instruction, Number, Plan

__all__ = ["CHANNELS_MULTIPLE", "for_gpu"]

# Of images at both ends of the network: 16 bytes of 16-bit numbers, which is what tensor cores are fed with.
CHANNELS_MULTIPLE = 8


def for_gpu(plan: Plan, dtype: Number) -> Plan:
    """The plan for cuDNN's convolutions, cuBLAS's products, and kernels for all that is between them.

    A norm is joined with its one reader's activation, "norm_act", and writes the image that the convolution reads; two
    sources become one there. A convolution writes its sum alone. What it would have added, its bias, a time and a
    residual, is added by the norm that reads the result next, which also writes the sum where something else reads it;
    a product of pixels adds its own bias. Where no norm comes next (before a resampling, and behind the last
    convolution) it is an "add" of its own, in place.

    Args:
        plan: Of `fastdiff.engine.lower(..., target="cuda")`.
        dtype: Of the images. Time vectors, parameters of norms, biases of 3x3 convolutions and all sums are float32.

    Returns:
        A plan of "norm_act", "add", "conv", "attention", "pool" and "repeat", whose input and output have channels up
        to a multiple of `CHANNELS_MULTIPLE`: zeros behind those of the image.
    """
    return _Passes(plan, dtype).run()


@dataclass(frozen=True)
class _Pending:
    """What is still to be added to a buffer."""

    added: str = ""
    added_time: int | None = None
    residual: int | None = None


class _Passes:
    def __init__(self, plan: Plan, dtype: Number) -> None:
        self.plan, self.dtype = plan, dtype
        self.buffers = [replace(buffer, dtype=dtype) for buffer in plan.buffers]
        for number in (plan.input, plan.output):
            buffer = self.buffers[number]
            channels = -(-buffer.channels // CHANNELS_MULTIPLE) * CHANNELS_MULTIPLE
            self.buffers[number] = replace(buffer, channels=channels)
        self.done: list[Instruction] = []
        self.norms = {i.target: i for i in plan.instructions if i.op == "norm"}
        self.pending: dict[int, _Pending] = {}
        self.totals: dict[int, int] = {}
        """Where the sum of a buffer is that a norm wrote elsewhere."""
        self.readers = Counter(
            n for i in plan.instructions if i.op not in ("stats", "norm") for n in (*i.sources, *_residual(i))
        )

    def run(self) -> Plan:
        plan = self.plan
        for instruction in plan.instructions:
            if instruction.op in ("stats", "norm"):
                continue
            self.translate(instruction)
        self.whole(plan.output)
        used = sorted({plan.input, plan.output} | {n for i in self.done for n in (*i.reads(), *i.writes())})
        number = {old: new for new, old in enumerate(used)}
        return Plan(
            tuple(self.buffers[n] for n in used),
            tuple(_renumbered(i, number) for i in self.done),
            number[plan.input],
            number[plan.output],
            plan.projections,
            plan.time_width,
        )

    def translate(self, i: Instruction) -> None:
        if i.norm is not None:
            i = replace(i, sources=(self.activated(i),), norm=None, act=False)
        else:
            i = replace(i, sources=tuple(self.read(n) for n in i.sources))
        if i.residual is not None:
            i = replace(i, residual=self.read(i.residual))
        if i.op != "conv":
            self.done.append(i)
            return
        if i.upsample:
            source = self.buffers[i.sources[0]]
            larger = self.buffer(replace(source, height=2 * source.height, width=2 * source.width))
            self.done.append(Instruction("repeat", i.sources, larger))
            i = replace(i, sources=(larger,), upsample=False)
        # A product of pixels has its bias for nothing.
        own = i.kernel == 1
        self.pending[i.target] = _Pending("" if own else i.parameter, i.time, i.residual)
        self.done.append(replace(i, bias=own, time=None, residual=None, algorithm="direct"))

    def activated(self, i: Instruction) -> int:
        """Emit the norm that i reads through, and tell where its result is."""
        assert i.norm is not None
        norm = self.norms[i.norm]
        first, *others = norm.sources
        sources = (self.totals.get(first, first), *(self.read(n) for n in others))
        pending, total = self.pending.get(first, _Pending()), None
        self.readers[first] -= 1
        if pending != _Pending() and (pending.residual is not None or self.readers[first] > 0):
            total = self.totals[first] = self.buffer(self.buffers[first])
        self.pending.pop(first, None)
        image = self.buffers[first]
        target = self.buffer(replace(image, channels=sum(self.buffers[n].channels for n in sources)))
        self.done.append(
            Instruction(
                "norm_act",
                sources,
                target,
                act=i.act,
                parameter=norm.parameter,
                time=norm.time,
                groups=norm.groups,
                eps=norm.eps,
                residual=pending.residual,
                added=pending.added,
                added_time=pending.added_time,
                total=total,
            )
        )
        return target

    def read(self, number: int) -> int:
        """Where the whole of a buffer is, for one of its readers."""
        self.readers[number] -= 1
        self.whole(number)
        return self.totals.get(number, number)

    def whole(self, number: int) -> None:
        """Add what is still to be added to a buffer."""
        pending = self.pending.pop(number, _Pending())
        if pending != _Pending():
            self.done.append(
                Instruction(
                    "add",
                    (number,),
                    number,
                    residual=pending.residual,
                    added=pending.added,
                    added_time=pending.added_time,
                )
            )

    def buffer(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1


def _residual(i: Instruction) -> tuple[int, ...]:
    return () if i.residual is None else (i.residual,)


def _renumbered(i: Instruction, number: dict[int, int]) -> Instruction:
    return replace(
        i,
        sources=tuple(number[n] for n in i.sources),
        target=number[i.target],
        residual=None if i.residual is None else number[i.residual],
        total=None if i.total is None else number[i.total],
    )
