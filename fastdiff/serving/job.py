"""A request while it runs: its samples in chunks, each at its own row of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.ops.table_state import TableState
from fastdiff.process.checks import NotFinite
from fastdiff.sampling.known_pixels import Known, KnownPixels
from fastdiff.sampling.runner import initial_noise
from fastdiff.sampling.seeds import Seeds
from fastdiff.sampling.self_conditioning import SelfConditioning
from fastdiff.serving.places import Places, is_plain
from fastdiff.serving.request import Request, Work

__all__ = ["PIECE", "Chunk", "Event", "Job"]

PIECE = 4
"""Samples that start together at the most: what one request takes in its turn, where others wait."""


@dataclass(frozen=True, eq=False)
class Event:
    """What is told of a request while it runs.

    Attributes:
        done: Evaluations done, over all its images.
        total: Evaluations in all.
        samples: Which of its images the preview is of; None without one.
        row: The row of the table that they are at, 0-based.
        t: The row's time, as the network sees it.
        preview: [n, C, H, W] the predicted images, about [-1, 1], on the CPU; None for mere progress.
    """

    done: int
    total: int
    samples: range | None = None
    row: int | None = None
    t: float | None = None
    preview: Tensor | None = None


class Chunk:
    """Samples of a request that are at the same row.

    Attributes:
        job: The request.
        samples: Which of its samples.
        state: The table.
        x: Their state [n, C, H, W].
        row: The row to be executed next.
        feedback: Of a self-conditioned network.
        places: Where C++ finds all that; None where it does not run these rows.
    """

    def __init__(self, job: Job, samples: range, x: Tensor, state: TableState, row: int) -> None:
        self.job, self.samples, self.x, self.state, self.row = job, samples, x, state, row
        some, work = self.some, job.work
        self.ids = work.ids[some]
        self.labels = None if work.labels is None else work.labels[some]
        self.feedback: SelfConditioning | None = None
        self._pixels = None
        if work.known is not None:
            known = Known(work.known.image[some], work.known.mask[some])
            self._pixels = KnownPixels(known, work.table, x, self.ids, Seeds(work.seed))
        self.places = None
        if is_plain(x):
            self.places = Places(state, x, self.ids, seed=work.seed, copies=job.cost)

    @property
    def some(self) -> slice:
        """Its samples' places in what the request holds."""
        return slice(self.samples.start, self.samples.stop)

    @property
    def is_done(self) -> bool:
        """Whether no row is left."""
        return self.row == self.job.num_rows

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The first so many samples, and the rest."""
        parts = []
        for some in (slice(0, count), slice(count, len(self.samples))):
            x = self.x[some]
            part = Chunk(self.job, self.samples[some], x, self.state.part(x, some), self.row)
            part.feedback = None if self.feedback is None else self.feedback.part(some)
            parts.append(part)
        return parts[0], parts[1]

    def skip(self) -> None:
        """Execute the rows before the next evaluation."""
        while not self.is_done and not self.state.evaluates[self.row]:
            self.state.step(self.row, self.x, None, seed=self.job.work.seed, sample_ids=self.ids, out=self.x)
            self._after_row()

    def advance(self, before: Tensor | None, prediction: Tensor | None) -> None:
        """Go on behind a row that was executed, up to the next evaluation.

        Args:
            before: The state that it started at, for a self-conditioned network.
            prediction: Of that row, likewise.
        """
        if self.feedback is not None and before is not None and prediction is not None:
            self.feedback.keep(self.row, before, prediction)
        self._after_row()
        self.skip()

    def _after_row(self) -> None:
        if self._pixels is not None:
            self._pixels.put_back(self.x, self.row)
        self.row += 1


class Job:
    """A request that is being worked on.

    Attributes:
        request, work: What is asked for, and what it comes to.
        number: Of all requests, in their order.
        added: When it came, in seconds of `time.monotonic`.
        served: When it last got a slot, or came.
        cost: Evaluations that a sample takes at each row: two with guidance.
        chosen: What runs in the next evaluation.
        done: Evaluations done, a guided one counted once.
        left: Samples that are not done.
        num_rows: Of the table.
        has_whole_times: Whether the network is given whole numbers as times.
        has_learned_variance: Whether the table takes the network's variance.
        level: Of priority, waiting included.

    Raises:
        ValueError: a self-conditioned network, and a table that predicts noise at levels it does not say.
    """

    def __init__(
        self, request: Request, work: Work, on_event: Callable[[Event], None] | None, is_fed_back: bool
    ) -> None:
        self.request, self.work, self.number = request, work, 0
        self.added = self.served = time.monotonic()
        self.started: float | None = None
        self.cost = 1 if work.guidance is None else 2
        self.chosen: list[Chunk] = []
        self.done = 0
        self.num_rows = len(work.table)
        self.has_whole_times = work.table.integer_times
        self.has_learned_variance = work.table.learned_variance
        self.level = request.priority
        self.result = torch.empty(work.shape, device=work.ids.device)
        self._on_event = on_event
        # With no prediction yet, as each chunk begins.
        self._feedback = SelfConditioning(work.table) if is_fed_back else None
        # Of each row: how many evaluations there were up to it.
        self._counts = work.table["evaluate"][work.start_row :].cumsum().astype(int).tolist()
        self._running: list[Chunk] = []
        self._next = 0
        self.left = work.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.work.shape[2], self.work.shape[3]

    @property
    def waiting(self) -> int:
        """Samples that have not started."""
        return self.work.shape[0] - self._next

    @property
    def running(self) -> int:
        """Samples that have started and are not done."""
        return self.left - self.waiting

    @property
    def total(self) -> int:
        """Evaluations in all, a guided one counted once."""
        return self.work.shape[0] * self.work.evaluations

    @property
    def is_done(self) -> bool:
        """Whether all samples are there."""
        return self.left == 0

    def begin_turn(self) -> None:
        """Choose anew what runs next."""
        self.chosen = []
        self._claims = self._pieces()

    def claim(self, slots: int) -> int:
        """Choose one piece more, of at most so many slots; how many it takes, 0 where there is none."""
        if slots < self.cost:
            return 0
        self._slots = slots
        chunk = next(self._claims, None)
        if chunk is None:
            return 0
        self.chosen.append(chunk)
        return self.cost * len(chunk.samples)

    def _pieces(self) -> Iterator[Chunk]:
        """What has started, then what has not: pieces that fit into the slots of each claim."""
        for chunk in list(self._running):
            yield self._cut(chunk)
        while self.waiting:
            yield self._begun(min(PIECE, self.waiting, self._slots // self.cost))

    def _cut(self, chunk: Chunk) -> Chunk:
        fits = self._slots // self.cost
        if len(chunk.samples) <= fits:
            return chunk
        first, rest = chunk.split(fits)
        place = self._running.index(chunk)
        self._running[place : place + 1] = [first, rest]
        return first

    def _begun(self, count: int) -> Chunk:
        work, samples = self.work, range(self._next, self._next + count)
        some = slice(samples.start, samples.stop)
        shape = (count, *work.shape[1:])
        if work.x_init is None:
            x = initial_noise(shape, work.ids[some], work.seed, work.table.init_scale)
        else:
            x = work.x_init[some].clone(memory_format=torch.channels_last)
        chunk = Chunk(self, samples, x, work.state.part(x, some), work.start_row)
        if self._feedback is not None:
            chunk.feedback = self._feedback.part(slice(None))
        self._next += count
        self._running.append(chunk)
        if self.started is None:
            self.started = time.monotonic()
        return chunk

    def is_shown(self, chunk: Chunk) -> bool:
        """Whether a preview of a chunk's row is asked for."""
        every = self.request.previews
        return every > 0 and self._on_event is not None and self._counts[chunk.row - self.work.start_row] % every == 0

    def advance(self, chunk: Chunk, before: Tensor | None, prediction: Tensor | None) -> None:
        """Go on behind a row of a chunk, tell of it, and take over its samples where it was the last.

        Args:
            chunk: Whose row was executed.
            before: The state that it started at, for a self-conditioned network.
            prediction: The row's, where it is shown or fed back.

        Raises:
            NotFinite: what came of it is not finite.
        """
        row, is_shown = chunk.row, self.is_shown(chunk)
        chunk.advance(before, prediction)
        self.done += len(chunk.samples)
        if chunk.is_done:
            self._finish(chunk)
        if self._on_event is None:
            return
        if is_shown and prediction is not None:
            at = chunk.state.t[row]
            self._on_event(Event(self.done, self.total, chunk.samples, row, at, prediction.cpu()))
        else:
            self._on_event(Event(self.done, self.total))

    def skip(self, chunk: Chunk) -> None:
        """Execute the rows in front of the first evaluation, and take over the samples where there is none."""
        chunk.skip()
        if chunk.is_done:
            self._finish(chunk)

    def _finish(self, chunk: Chunk) -> None:
        if not bool(torch.isfinite(chunk.x).all()):
            raise NotFinite(chunk.row - 1, self.num_rows)
        x = chunk.x
        if self.work.known is not None:
            known = self.work.known
            x = torch.where(known.mask[chunk.some], known.image[chunk.some], x)
        self.result[chunk.some] = x
        self._running.remove(chunk)
        self.left -= len(chunk.samples)
