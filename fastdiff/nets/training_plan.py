"""A network's training as two lists of instructions over one arena: its forward pass, and the way back.

Buffers are those of one sample, and a batch of B takes B times as much of each. What is needed again on the way back
keeps its room until then; everything else shares it. csrc/include/training_layout.h says what the fields of an
instruction are.

Threads share out each instruction of a large network. Of a small one (`is_apart`) each takes samples of its own through
all instructions, with nobody to wait for in between, and then the gradients of the weights, which are sums over all
samples, one by one. So these come last, what they read is kept for them, and no two samples may share any room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

__all__ = ["FIELDS", "OPS", "Image", "Recorder", "TrainingPlan", "Unplanned"]

OPS = (
    "conv", "conv_grad", "linear", "linear_grad", "sums", "norm", "norm_grad", "scale_grad", "dropout", "attention",
    "attention_grad", "silu", "silu_grad", "add", "pool", "repeat", "unfold", "fold",
)  # fmt: skip
FIELDS = (
    "op", "x", "channels", "x2", "channels2", "height", "width", "dy", "added", "more", "y", "y2", "height_out",
    "width_out", "channels_out", "stride", "pad", "weight", "bias", "transposed", "act", "time", "scale", "stats",
    "sums", "products", "total", "groups", "heads", "heads_first", "layer", "last_kept", "number",
)  # fmt: skip
# Fields that name buffers, -1 for none, and parameters, likewise.
_READ = ("x", "x2", "dy", "added", "more", "time", "scale")
_WRITTEN = ("y", "y2", "stats", "sums", "products", "total")
_NONE = {*_READ, *_WRITTEN, "weight", "bias"}
# Sums over all samples.
_OF_WEIGHTS = ("conv_grad", "linear_grad", "sums")
_DEFAULTS = {name: -1 if name in _NONE else 1 if name in ("height", "width", "stride") else 0 for name in FIELDS}
# Floats of a cache line.
_LINE = 16


class Unplanned(ValueError):
    """A part of the network that no instruction computes; the message names it."""


@dataclass(frozen=True)
class TrainingPlan:
    """A network's training for one image size.

    Attributes:
        forward, backward: Instructions, int64 [n, len(FIELDS)].
        floats: Length of the arena, for each sample.
        image, waves, output, slope: Where the image, the embedded times, the result and its gradient lie; places of one
            sample.
        label, label_grad: Of what a label adds to the embedding, and of its gradient; None without labels.
        channels: Of the result.
        width: Channels of the embedding.
        alone: Of a plan whose samples go through it by themselves, so many instructions of the way back are of each
            sample alone, and those behind are independent of each other; None of another plan.
    """

    forward: Tensor
    backward: Tensor
    floats: int
    image: int
    waves: int
    output: int
    slope: int
    label: int | None
    label_grad: int | None
    channels: int
    width: int
    alone: int | None


@dataclass(frozen=True)
class Image:
    """A buffer of one sample, [height, width, channels]."""

    buffer: int
    height: int
    width: int
    channels: int

    @property
    def size(self) -> dict[str, int]:
        """As fields of who reads it."""
        return {"height": self.height, "width": self.width}


class Recorder:
    """Takes down buffers and instructions."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.code: list[dict[str, int]] = []
        # Buffers that do not have a sample's numbers together.
        self.spread: set[int] = set()

    def buffer(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def spread_buffer(self, size: int) -> int:
        """One that does not have a sample's numbers together."""
        self.spread.add(buffer := self.buffer(size))
        return buffer

    def image(self, height: int, width: int, channels: int) -> Image:
        return Image(self.buffer(height * width * channels), height, width, channels)

    def like(self, image: Image) -> Image:
        return self.image(image.height, image.width, image.channels)

    def vector(self, channels: int) -> Image:
        return self.image(1, 1, channels)

    def emit(self, op: str, **fields: int | float) -> None:
        number = fields.pop("number", 0.0)
        bits = int(np.float64(number).view(np.int64))
        self.code.append({**_DEFAULTS, **{name: int(value) for name, value in fields.items()}, "number": bits})
        self.code[-1]["op"] = OPS.index(op)

    def rows(self, places: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """The instructions with places for buffers."""
        for instruction in self.code:
            for name in (*_READ, *_WRITTEN):
                if instruction[name] >= 0:
                    instruction[name] = places[instruction[name]]
        return np.array([[row[name] for name in FIELDS] for row in self.code], dtype=np.int64)

    def set_weights_last(self, forward: int) -> int | None:
        """Move the gradients of weights behind all else of the way back, which begins at `forward`; the costly ones
        first, so that threads end together.

        Returns:
            How many instructions of the way back come before them; None, and nothing is moved, where one of them reads
            what is written to afterwards.
        """
        last_written: dict[int, int] = {}
        for step, instruction in enumerate(self.code):
            last_written |= {instruction[name]: step for name in _WRITTEN if instruction[name] >= 0}
        back = list(enumerate(self.code))[forward:]
        of_weights = [(step, row) for step, row in back if OPS[row["op"]] in _OF_WEIGHTS]
        for step, row in of_weights:
            if any(last_written.get(row[name], -1) > step for name in _READ if row[name] >= 0):
                return None
        others = [row for _, row in back if OPS[row["op"]] not in _OF_WEIGHTS]
        self.code = self.code[:forward] + others + sorted((row for _, row in of_weights), key=_cost, reverse=True)
        return len(others)

    def keep_what_leads_to(self, forward: int, wanted: int) -> None:
        """Of the way back, which begins at `forward`, keep what a buffer depends on."""
        needed, kept = {wanted}, []
        for row in reversed(self.code[forward:]):
            if OPS[row["op"]] not in _OF_WEIGHTS and not needed.isdisjoint({row["y"], row["y2"]}):
                # What a norm's gradient is made of; nobody wants that of what was added to what it read.
                kept.append(row | {"total": -1})
                needed |= {row[name] for name in _READ if row[name] >= 0}
        self.code[forward:] = reversed(kept)

    def place(
        self,
        forward: int,
        given: list[int],
        results: list[int],
        slopes: list[int],
        taken: list[int],
        *,
        apart: int | None,
    ) -> tuple[list[int], int]:
        """Where each buffer begins, those that are not alive together in the same room, and the length of the arena.

        First fit by falling size.

        Args:
            forward: Instructions of the forward pass.
            given: Buffers that are written before the first instruction.
            results, slopes: Those that are read and those that are written between the two passes.
            taken: Those that are read behind the last instruction.
            apart: As `TrainingPlan.alone`.
        """
        spans = self._spans(forward, given, results, slopes, taken)
        sizes = [-(-size // _LINE) * _LINE for size in self.sizes]
        if apart is None:
            return _first_fit(spans, sizes)
        # Where samples are at different instructions, buffers of one size alone can share room: there a sample meets
        # itself. What a pass has altogether can lie where another pass has something else.
        shared, room_of = self._shared_rooms(spans)
        ends = (forward, forward + apart)
        passes = {room: [sum(step >= end for end in ends) for step in span] for room, span in shared.items()}
        places, length = _first_fit(passes, [-(-size // _LINE) * _LINE for size in self._room_sizes(room_of)])
        return [places[room_of[buffer]] if buffer in room_of else 0 for buffer in range(len(sizes))], length

    def _spans(
        self, forward: int, given: list[int], results: list[int], slopes: list[int], taken: list[int]
    ) -> dict[int, list[int]]:
        """First and last instruction that each buffer is alive at."""
        spans: dict[int, list[int]] = {}

        def touch(buffer: int, step: int) -> None:
            span = spans.setdefault(buffer, [step, step])
            span[0], span[1] = min(span[0], step), max(span[1], step)

        for step, instruction in enumerate(self.code):
            for name in (*_READ, *_WRITTEN):
                if instruction[name] >= 0:
                    touch(instruction[name], step)
        for buffer in given:
            touch(buffer, -1)
        for buffer in results:
            touch(buffer, forward)
        for buffer in slopes:
            touch(buffer, forward - 1)
        for buffer in taken:
            touch(buffer, len(self.code))
        return spans

    def _shared_rooms(self, spans: dict[int, list[int]]) -> tuple[dict[int, list[int]], dict[int, int]]:
        """Rooms that buffers of one size share: when each is in use, and the room of each buffer."""
        rooms: dict[int, list[int]] = {}
        room_of: dict[int, int] = {}
        free: dict[int, list[int]] = {}
        for buffer in sorted(spans, key=lambda n: (spans[n][0], n)):
            first, last = spans[buffer]
            candidates = [] if buffer in self.spread else free.setdefault(self.sizes[buffer], [])
            room = next((room for room in candidates if rooms[room][1] < first), None)
            if room is None:
                room = len(rooms)
                rooms[room] = [first, last]
                candidates.append(room)
            rooms[room][1] = max(rooms[room][1], last)
            room_of[buffer] = room
        return rooms, room_of

    def _room_sizes(self, room_of: dict[int, int]) -> list[int]:
        sizes = [0] * (max(room_of.values(), default=-1) + 1)
        for buffer, room in room_of.items():
            sizes[room] = self.sizes[buffer]
        return sizes


def _cost(row: dict[str, int]) -> int:
    """Products of an instruction that computes gradients of weights, about."""
    factor = {"conv_grad": 3 * row["channels_out"], "linear_grad": row["channels_out"], "sums": 1}[OPS[row["op"]]]
    return factor * row["height"] * row["width"] * (row["channels"] + row["channels2"])


def _first_fit(spans: dict[int, list[int]], sizes: list[int]) -> tuple[list[int], int]:
    """Where each thing begins, so that what is there at the same time lies apart, and where the last one ends."""
    done: list[int] = []
    places, length = [0] * len(sizes), 0
    for thing in sorted(spans, key=lambda n: (-sizes[n], n)):
        first, last = spans[thing]
        taken = sorted((places[n], places[n] + sizes[n]) for n in done if spans[n][0] <= last and first <= spans[n][1])
        start = 0
        for begin, end in taken:
            if begin - start >= sizes[thing]:
                break
            start = max(start, end)
        places[thing] = start
        length = max(length, start + sizes[thing])
        done.append(thing)
    return places, length
