"""A plan ready to run in C++: its code, and the memory that it runs in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.engine import memory as memory_of
from fastdiff.engine import schemas as _plan  # noqa: F401
from fastdiff.engine.pack import Places, encode
from fastdiff.engine.plan import Placement, Plan, place

__all__ = ["MAX_PLANS", "Prepared", "Room", "lanes_of", "prepared_for", "samples_to_a_lane"]

MAX_PLANS = 64
"""Plans kept at a time, one per batch and size; the oldest goes. They share their memory."""
# Of a network that threads evaluate side by side, each with samples of its own: packed weights that the last cache
# holds, and activations of some samples that a thread's own cache holds. Below so many operations per sample it pays
# for fewer samples than threads as well: meeting after each instruction costs more than the others' help is worth.
LANE_WEIGHT_BYTES = 16 << 20
LANE_ARENA_BYTES = 1 << 20
LANE_FLOPS = 100_000_000


@dataclass(frozen=True, eq=False)
class Prepared:
    """A plan with its memory, for one batch and number of threads.

    Attributes:
        plan: The instructions.
        code: The same for C++, [N, len(CODE_FIELDS)] int64.
        input, output: Where the image and the result lie in the arena.
        arena, scratch: Memory, float32.
        part, lanes: So many threads take so many samples each through the whole plan; or 0, and all threads share every
            instruction.
    """

    plan: Plan
    code: Tensor
    input: int
    output: int
    arena: Tensor
    scratch: Tensor
    part: int
    lanes: int

    @property
    def memory(self) -> tuple[int, int, Tensor, Tensor, int, int]:
        """What the ops are given of it."""
        return self.input, self.output, self.arena, self.scratch, self.part, self.lanes


class Room:
    """Memory that plans share which run one after the other: as much as the largest of them needs.

    Attributes:
        plans: Those prepared in it, by batch, height, width and threads, the oldest first.
    """

    def __init__(self) -> None:
        self.plans: OrderedDict[tuple[int, int, int, int], Prepared] = OrderedDict()
        self._codes: OrderedDict[tuple[int, int], tuple[Plan, Placement, Tensor]] = OrderedDict()
        self._blocks: dict[str, Tensor] = {}

    def block(self, name: str, count: int) -> Tensor:
        """`count` float32 numbers of one of the two blocks, uninitialised; plans go when it has to grow."""
        block = self._blocks.get(name)
        if block is None or block.numel() < count:
            self.plans.clear()
            self._blocks.pop(name, None)
            del block
            block = self._blocks[name] = memory_of.empty(count)
        return block[:count]

    def code(self, plan: Plan, batch: int, places: Places) -> tuple[Placement, Tensor]:
        """Where a plan's buffers lie for so many samples, and the plan for C++; batches of equal lanes share it."""
        key = (id(plan), batch)
        if key not in self._codes:
            placement = place(plan, batch)
            # It holds the plan, whose number would be another's.
            self._codes[key] = plan, placement, encode(plan, placement, places)
            while len(self._codes) > MAX_PLANS:
                self._codes.popitem(last=False)
        return self._codes[key][1:]

    def clear(self) -> None:
        """Give all back."""
        self.plans.clear()
        self._codes.clear()
        self._blocks.clear()


def prepared_for(plan: Plan, batch: int, places: Places, part: int = 0, room: Room | None = None) -> Prepared:
    """Memory and code of a plan for a batch and the number of threads in use; `part` samples to a lane, if any."""
    room = Room() if room is None else room
    lanes = min(torch.get_num_threads(), -(-batch // part)) if part else 0
    placement, code = room.code(plan, part or batch, places)
    scratch = room.block("scratch", torch.ops.fastdiff.plan_scratch(code, batch, part, lanes))
    arena = room.block("arena", max(1, lanes) * placement.length // 4)
    input, output = (placement.places[number] // 4 for number in (plan.input, plan.output))
    return Prepared(plan, code, input, output, arena, scratch, part, lanes)


def samples_to_a_lane(plan: Plan, batch: int, weight_bytes: int, sample_bytes: int | None = None) -> int:
    """How many samples one thread takes through the whole plan at a time, or 0: all threads share every instruction."""
    most, few = lanes_of(plan, weight_bytes, sample_bytes)
    threads = torch.get_num_threads()
    if most == 0 or (batch < threads and not few):
        return 0
    return max(1, min(most, -(-batch // threads)))


def lanes_of(plan: Plan, weight_bytes: int, sample_bytes: int | None = None) -> tuple[int, bool]:
    """How many samples may be one thread's at a time, at most, and whether it pays for fewer samples than threads."""
    sample_bytes = place(plan, 1).length if sample_bytes is None else sample_bytes
    if weight_bytes > LANE_WEIGHT_BYTES or sample_bytes > LANE_ARENA_BYTES:
        return 0, False
    return LANE_ARENA_BYTES // sample_bytes, sum(plan.flops(i) for i in plan.instructions) <= LANE_FLOPS
