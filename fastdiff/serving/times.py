"""What a network makes of times and labels alone: computed some rows ahead, and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.engine.native import NativeNetwork
from fastdiff.serving.job import Chunk

__all__ = ["AHEAD", "TimeVectors"]

AHEAD = 32
"""Rows of a table whose vectors are made together: a call for many costs little more than one for one."""
# Of the vectors that are kept, the newest: 64 MB of float32.
_KEPT_NUMBERS = 1 << 24
_Key = tuple[float, int | None]


class TimeVectors:
    """The vectors of a network, by time and label.

    Args:
        network: Whose.
    """

    def __init__(self, network: NativeNetwork) -> None:
        self._network = network
        self._known: OrderedDict[_Key, Tensor] = OrderedDict()
        self._generation = -1

    def of(self, chunks: Sequence[Chunk]) -> Tensor:
        """[B, time_width] for the rows that chunks are at, a guided one's for its labels and then the null class."""
        if self._network.generation != self._generation:
            self._known.clear()
            self._generation = self._network.generation
        known = self._known
        keys: list[_Key] = []
        missing: dict[_Key, None] = {}
        for chunk in chunks:
            labels = _labels(chunk)
            time = chunk.state.t[chunk.row]
            own = [(time, label) for label in labels]
            if any(key not in known for key in own):
                missing |= _ahead(chunk, labels)
            keys += own
        self._make([key for key in missing if key not in known])
        vectors = torch.stack([known[key] for key in keys])
        while len(known) * vectors.shape[1] > _KEPT_NUMBERS and len(known) > len(keys):
            known.popitem(last=False)
        return vectors

    def _make(self, keys: list[_Key]) -> None:
        if not keys:
            return
        times, labels = zip(*keys, strict=True)
        are_whole = all(time.is_integer() for time in times)
        t = torch.tensor(times, dtype=torch.int64 if are_whole else torch.float32, device="cpu")
        y = None if labels[0] is None else torch.tensor(labels, device="cpu")
        self._known.update(zip(keys, self._network.times(t, y), strict=True))


def _labels(chunk: Chunk) -> list[int | None]:
    """Of each of its places in the batch."""
    guidance = chunk.job.work.guidance
    own: list[int | None] = [None] * len(chunk.samples) if chunk.labels is None else chunk.labels.tolist()
    return own if guidance is None else own + [guidance[1]] * len(own)


def _ahead(chunk: Chunk, labels: list[int | None]) -> dict[_Key, None]:
    """What its next rows need."""
    state = chunk.state
    rows = range(chunk.row, min(chunk.row + AHEAD, chunk.job.num_rows))
    return {(state.t[row], label): None for row in rows if state.evaluates[row] for label in set(labels)}
