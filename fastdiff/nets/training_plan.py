"""A network's training as two lists of instructions over one arena: its forward pass, and the way back.

Buffers are those of one sample, and a batch of B takes B times as much of each. What is needed again on the way back
keeps its room until then; everything else shares it. csrc/include/training_layout.h says what the fields of an
instruction are.
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

    def buffer(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

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

    def place(
        self,
        forward: int,
        x: Image,
        waves: Image,
        label: Image | None,
        output: Image,
        slope: Image,
        label_grad: int | None,
    ) -> tuple[list[int], int]:
        """Where each buffer begins, those that are not alive together in the same room, and the length of the arena.

        First fit by falling size. Arguments are written before the first instruction, the result is read after the
        last one of the forward pass, and the label's gradient at the end.
        """
        alive: dict[int, list[int]] = {}

        def touch(buffer: int, step: int) -> None:
            span = alive.setdefault(buffer, [step, step])
            span[0], span[1] = min(span[0], step), max(span[1], step)

        for step, instruction in enumerate(self.code):
            for name in (*_READ, *_WRITTEN):
                if instruction[name] >= 0:
                    touch(instruction[name], step)
        for image in (x, waves, label):
            if image is not None:
                touch(image.buffer, -1)
        touch(output.buffer, forward)
        touch(slope.buffer, forward - 1)
        if label_grad is not None:
            touch(label_grad, len(self.code))
        sizes = [-(-size // _LINE) * _LINE for size in self.sizes]
        done: list[int] = []
        places, length = [0] * len(sizes), 0
        for buffer in sorted(alive, key=lambda n: (-sizes[n], n)):
            first, last = alive[buffer]
            taken = sorted(
                (places[n], places[n] + sizes[n]) for n in done if alive[n][0] <= last and first <= alive[n][1]
            )
            start = 0
            for begin, end in taken:
                if begin - start >= sizes[buffer]:
                    break
                start = max(start, end)
            places[buffer] = start
            length = max(length, start + sizes[buffer])
            done.append(buffer)
        return places, length
