"""The loop over recorded rows from Python: two launches per row, for an installation without csrc/cuda's library."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastdiff.engine.cuda.graph import Progress
from fastdiff.engine.cuda.library import NONFINITE, ROW
from fastdiff.ops._arguments import signed

__all__ = ["Marker", "ReplayLoop", "Replayable"]

# Rows that are queued before the first of them is waited for.
AHEAD = 8
# Between two looks at a full queue.
PAUSE_SECONDS = 1e-4


class Replayable(Protocol):
    """A recording that can be launched by itself."""

    def replay(self) -> None:
        """Launch it on the current stream."""


class Marker(Protocol):
    """A place in the stream, as `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether everything before it is done."""


class ReplayLoop:
    """A `fastdiff.engine.cuda.loop.Loop` that launches row by row, on the current stream.

    Args:
        network, step: The two parts of a row.
        control: The control block, int64 on the device.
        mark: Gives a marker behind what is queued.
    """

    def __init__(self, network: Replayable, step: Replayable, control: Tensor, mark: Callable[[], Marker]) -> None:
        self._network, self._step, self._control, self._mark = network, step, control, mark
        self._rows, self._evaluates = range(0), [False]

    def launch(self, rows: range, *, num_rows: int, seed: int, stream: int, evaluates: Sequence[bool]) -> None:
        """Prepare rows; `wait` launches them."""
        words = [rows.start, rows.stop, num_rows, signed(seed), -1]
        self._control[: len(words)].copy_(torch.tensor(words))
        self._rows, self._evaluates = rows, list(evaluates)

    def wait(self, advance: Callable[[Progress], None] | None) -> Progress:
        """Launch the rows, a few ahead of the device, and wait for them. On an exception no more are launched."""
        queue: deque[Marker] = deque()
        waiting = list(zip(self._rows, self._evaluates, strict=True))[::-1]
        done = self._rows.start
        try:
            while waiting or queue:
                while waiting and len(queue) < AHEAD:
                    _, evaluates = waiting.pop()
                    if evaluates:
                        self._network.replay()
                    self._step.replay()
                    self._control[ROW : ROW + 1] += 1
                    queue.append(self._mark())
                before = done
                while queue and queue[0].query():
                    queue.popleft()
                    done += 1
                if done == before:
                    time.sleep(PAUSE_SECONDS)
                elif advance is not None:
                    advance(Progress(done, None))
        except BaseException:
            while queue:
                if queue[0].query():
                    queue.popleft()
                else:
                    time.sleep(PAUSE_SECONDS)
            raise
        bad = int(self._control[NONFINITE])
        return Progress(done, bad if bad >= 0 else None)

    def close(self) -> None:
        """Nothing to release."""
