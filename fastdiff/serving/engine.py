"""The serving engine: requests at different rows of different tables, in one batch at each evaluation."""

from __future__ import annotations

import logging
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import InvalidStateError
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from fastdiff.engine.native import Precision
from fastdiff.pipeline import Pipeline
from fastdiff.process.checks import NotFinite, whole_number
from fastdiff.serving.answers import Closed, Full, SampleFuture, Stats, TookTooLong
from fastdiff.serving.batch import Evaluator, Outputs
from fastdiff.serving.job import PIECE, Chunk, Event, Job
from fastdiff.serving.policy import deal_to_both
from fastdiff.serving.request import Limits, Request, Work, work_of
from fastdiff.serving.rows import Rows

__all__ = ["AGEING_SECONDS", "Engine"]

logger = logging.getLogger("fastdiff.serving")

AGEING_SECONDS = 10.0
"""A request that has got no slot for so long gains a level of priority, so that none waits for ever."""
LOOK_SECONDS = 0.02
"""Between two looks at deadlines."""
# Of recent batches, in `Stats.recent_fill`.
_RECENT = 256
_Size = tuple[int, int]


class Engine:
    """Samples requests of all kinds together, each with the images that it would get alone.

    At each step the slots of one batch are dealt out in turns among the requests (`policy.deal`): a sample may join at
    any row boundary, whatever the sampler, number of steps, label or guidance of the others. In the C++ engine an
    image's bits are those of `Pipeline.sample`, `vary` or `inpaint` with the same arguments; elsewhere they agree to
    rounding. Image sizes take turns, a batch each.

    Args:
        model: The pipeline, or the path of its model.
        capacity: Images evaluated at a time, at most; one with guidance takes two places.
        precision: Of the C++ engine; see `fastdiff.compile`. The pipeline's own when None.
        max_queued: Images that may be in the engine at a time; further requests are refused with `Full`.
        max_wait: Seconds that a request may wait for its first evaluation; None for any time.
        max_steps: Evaluations per image that a request may ask for; None for any number.
        max_num: Images that a request may ask for; `max_queued` when None.
        max_pixels: Height times width that a request may ask for; None for any.

    Raises:
        ValueError: arguments out of range, or a model whose network is given images beside the noisy one.
    """

    def __init__(
        self,
        model: Pipeline | str | Path,
        capacity: int = 16,
        *,
        precision: Precision | None = None,
        max_queued: int = 1024,
        max_wait: float | None = None,
        max_steps: int | None = None,
        max_num: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.pipeline = model if isinstance(model, Pipeline) else Pipeline.from_pretrained(model)
        if self.pipeline.extra_channels:
            raise ValueError(
                "the network is given images beside the noisy one (super-resolution, inpainting by training), which "
                "requests here have no part for: sample it with Pipeline.sample"
            )
        # Two, since a guided sample takes as many.
        self.capacity = whole_number("capacity", capacity, low=2)
        self.max_queued = whole_number("max_queued", max_queued, low=1)
        if max_wait is not None and not max_wait > 0:
            raise ValueError(f"max_wait must be a positive number of seconds, got {max_wait!r}")
        self.max_wait = max_wait
        num = self.max_queued if max_num is None else min(self.max_queued, whole_number("max_num", max_num, low=1))
        steps = None if max_steps is None else whole_number("max_steps", max_steps, low=1)
        self.limits = Limits(num, steps, None if max_pixels is None else whole_number("max_pixels", max_pixels, low=1))
        self._evaluate = Evaluator(self.pipeline, self.pipeline.precision if precision is None else precision)
        # Held for the lists and counts below, and for nothing that takes time.
        self._changed = threading.Condition()
        # Held for a step.
        self._stepping = threading.Lock()
        # The thread that holds it.
        self._stepper: int | None = None
        self._jobs: dict[SampleFuture, Job] = {}
        # Those of each image size in the order in which they are served; the sizes take turns.
        self._queues: dict[_Size, list[Job]] = {}
        self._future_of: dict[Job, SampleFuture] = {}
        self._looked = self._ranked = 0.0
        self._number = 0
        self._thread: threading.Thread | None = None
        self._is_draining = self._is_closed = False
        self._was_idle = True
        self._counts = dict.fromkeys(("added", "finished", "failed", "cancelled", "refused", "images"), 0)
        self._batches = self._evaluations = 0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._seconds_network = self._seconds_other = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, request: Request, on_event: Callable[[Event], None] | None = None) -> SampleFuture:
        """Take a request.

        Args:
            request: What is asked for.
            on_event: Told of each evaluation, in the thread that steps, which waits for it: return at once.

        Returns:
            Its images, once they are there. `cancel` takes it out again.

        Raises:
            ValueError: something in the request that does not fit, with the sentence that sampling gives.
            Full: there is too much to do.
            Closed: the engine is draining or closed.
        """
        with self._changed:
            self._refuse_if_closed()
        work = work_of(self.pipeline, request, self.limits)
        future = SampleFuture(request, self._drop)
        # What does not fit shows here, before it is counted.
        job = None if work.answer is not None else Job(request, work, on_event, self._evaluate.self_condition)
        with self._changed:
            self._refuse_if_closed()
            held = sum(job.left for job in self._jobs.values())
            if held + work.shape[0] > self.max_queued:
                self._counts["refused"] += 1
                seconds = self._seconds_to_go()
                raise Full(
                    f"{held} of at most {self.max_queued} images are waited for, and {work.shape[0]} more were asked "
                    f"for: try again in about {seconds:.0f} s",
                    seconds,
                )
            self._counts["added"] += 1
            if job is not None:
                self._number += 1
                job.number = self._number
                self._jobs[future] = job
                self._future_of[job] = future
                insort(self._queues.setdefault(job.size, []), job, key=_order)
                self._changed.notify_all()
                return future
        self._settle(future, work)
        return future

    def step(self) -> int:
        """Evaluate one batch, and execute the rows that wait for it.

        Returns:
            Images evaluated, a guided one counted twice; 0 where there is nothing to do.

        Raises:
            RuntimeError: called by what a step calls.
        """
        self._refuse_within_a_step("step")
        with self._stepping, torch.no_grad():
            self._stepper = threading.get_ident()
            try:
                return self._step()
            finally:
                self._stepper = None

    def _step(self) -> int:
        began = time.perf_counter()
        self._look_at_clocks()
        evaluated, seconds = 0, 0.0
        # Requests may be done without an evaluation.
        while evaluated == 0 and (chunks := self._chosen()):
            chunks = self._ready(chunks)
            evaluated = sum(len(chunk.samples) * chunk.job.cost for chunk in chunks)
            if chunks:
                at = time.perf_counter()
                evaluations = self._evaluations_of(chunks)
                seconds = time.perf_counter() - at
                for rows, outputs in evaluations:
                    self._execute(rows, outputs)
        self._was_idle = evaluated == 0
        with self._changed:
            self._seconds_network += seconds
            self._seconds_other += time.perf_counter() - began - seconds
            if evaluated:
                self._batches += 1
                self._evaluations += evaluated
                self._recent.append(evaluated / self.capacity)
        return evaluated

    def cancel(self, future: SampleFuture) -> bool:
        """Take a request out, whether it runs or waits; False where it is done already."""
        return future.cancel()

    @property
    def stats(self) -> Stats:
        """What was done, and what there is to do."""
        with self._changed:
            jobs = list(self._jobs.values())
            return Stats(
                queued_images=sum(job.waiting for job in jobs),
                running_images=sum(job.running for job in jobs),
                requests=len(jobs),
                **self._counts,
                batches=self._batches,
                evaluations=self._evaluations,
                fill=self._evaluations / (self._batches * self.capacity) if self._batches else 0.0,
                recent_fill=tuple(self._recent),
                seconds_network=self._seconds_network,
                seconds_other=self._seconds_other,
            )

    def start(self) -> Self:
        """Have a thread step while there is work; it sleeps while there is none.

        Raises:
            Closed: the engine is closed.
        """
        with self._changed:
            if self._is_closed:
                raise Closed("the engine is closed: make a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fastdiff-serving", daemon=True)
                self._thread.start()
        return self

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those that there are.

        Args:
            timeout: Seconds to wait at the most.

        Returns:
            Whether all are done.

        Raises:
            RuntimeError: called by what a step calls, which would wait for itself.
        """
        self._refuse_within_a_step("drain")
        with self._changed:
            self._is_draining = True
        if self._thread is None:
            end = None if timeout is None else time.monotonic() + timeout
            while self._jobs and (end is None or time.monotonic() < end):
                self.step()
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """Cancel what there is, take no more requests, and end the thread."""
        with self._changed:
            self._is_draining = self._is_closed = True
            left = list(self._jobs)
            self._changed.notify_all()
            thread = self._thread
        for future in left:
            future.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _refuse_if_closed(self) -> None:
        if self._is_draining:
            raise Closed("no more requests are taken: the engine is " + ("closed" if self._is_closed else "draining"))

    def _refuse_within_a_step(self, name: str) -> None:
        if self._stepper == threading.get_ident():
            raise RuntimeError(
                f"on_event and the callbacks of futures run within a step, where {name}() would wait for itself: call "
                "it in another thread"
            )

    def _seconds_to_go(self) -> float:
        """How long the work that there is may take."""
        seconds = self._seconds_network + self._seconds_other
        rate = self._evaluations / seconds if seconds else 0.0
        left = sum((job.total - job.done) * job.cost for job in self._jobs.values())
        return max(1.0, left / rate) if rate else 1.0

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if self._is_closed:
                    return
            try:
                self.step()
            except Exception as error:
                # A fault of the engine's own: nobody may wait for ever.
                logger.exception("a step failed")
                for job in list(self._jobs.values()):
                    self._fail(job, error)

    def _look_at_clocks(self) -> None:
        """Fail the requests that took too long, and rank anew those that wait."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        late = []
        with self._changed:
            for job in self._jobs.values():
                deadline, waited = job.request.deadline, now - job.added
                if deadline is not None and waited > deadline:
                    late.append((job, f"the images were not there within {deadline:g} s, the request's deadline"))
                elif self.max_wait is not None and job.started is None and waited > self.max_wait:
                    late.append((job, f"the request waited for more than {self.max_wait:g} s: there is too much to do"))
            if now - self._ranked >= min(1.0, AGEING_SECONDS):
                self._ranked = now
                for queue in self._queues.values():
                    for job in queue:
                        job.level = job.request.priority + int((now - job.served) / AGEING_SECONDS)
                    queue.sort(key=_order)
        for job, why in late:
            self._fail(job, TookTooLong(why))

    def _chosen(self) -> list[Chunk]:
        """What runs next: samples of one image size, the next in turn."""
        now = time.monotonic()
        with self._changed:
            if not self._queues:
                return []
            # To the end of the line.
            size = next(iter(self._queues))
            queue = self._queues[size] = self._queues.pop(size)
            left, chosen = self.capacity, []
            for _, level in groupby(queue, lambda job: job.level):
                if left == 0:
                    break
                large, small, claimants = _first_of(level, left)
                for job in claimants:
                    job.begin_turn()
                left -= deal_to_both(large, small, claimants, left)
                for job in claimants:
                    if job.chosen:
                        job.served = now
                        chosen += job.chosen
            return chosen

    def _ready(self, chunks: list[Chunk]) -> list[Chunk]:
        """Those that the network is to evaluate, past the rows that need none."""
        ready = []
        for chunk in chunks:
            if not chunk.state.evaluates[chunk.row]:
                try:
                    chunk.job.skip(chunk)
                except Exception as error:
                    self._fail(chunk.job, error)
                    continue
                if chunk.job.is_done:
                    self._finish(chunk.job)
            if not chunk.is_done:
                ready.append(chunk)
        return ready

    def _evaluations_of(self, chunks: list[Chunk]) -> list[tuple[Rows, Outputs]]:
        """The network's outputs. Where it fails, each request is evaluated alone, and those fail for which it does."""
        try:
            if self._was_idle:
                self._evaluate.refresh()
            rows = Rows(chunks)
            outputs = self._evaluate(rows)
            if outputs.is_finite:
                return [(rows, outputs)]
        except Exception as error:
            logger.warning("an evaluation failed, and each request is evaluated alone: %s", error)
        found = []
        for job, own in groupby(chunks, lambda chunk: chunk.job):
            rows = Rows(list(own))
            try:
                outputs = self._evaluate(rows)
                if not outputs.is_finite:
                    raise NotFinite(rows.chunks[0].row, job.num_rows)
            except Exception as error:
                self._fail(job, error)
            else:
                found.append((rows, outputs))
        return found

    def _execute(self, rows: Rows, outputs: Outputs) -> None:
        """The rows, and what follows from them."""
        chunks, fed_back = rows.chunks, self._evaluate.self_condition
        before = [chunk.x.clone() if fed_back else None for chunk in chunks]
        wanted = [fed_back or chunk.job.is_shown(chunk) for chunk in chunks]
        try:
            predictions = rows.step(outputs.output, outputs.guided, wanted)
        except Exception as error:
            # An output of another shape, which is that of all of them.
            for job in {chunk.job for chunk in chunks}:
                self._fail(job, error)
            return
        for chunk, was, prediction in zip(chunks, before, predictions, strict=True):
            job = chunk.job
            try:
                job.advance(chunk, was, prediction)
            except Exception as error:
                self._fail(job, error)
            else:
                if job.is_done:
                    self._finish(job)

    def _take_out(self, job: Job) -> SampleFuture | None:
        """A request that is done with; None where it was before. `_changed` is held."""
        future = self._future_of.pop(job, None)
        if future is not None:
            del self._jobs[future]
            queue = self._queues[job.size]
            queue.remove(job)
            if not queue:
                del self._queues[job.size]
            self._changed.notify_all()
        return future

    def _finish(self, job: Job) -> None:
        with self._changed:
            future = self._take_out(job)
        if future is not None:
            self._settle(future, job.work, job.result)

    def _settle(self, future: SampleFuture, work: Work, result: Tensor | None = None) -> None:
        """Give the images out."""
        images = work.answer if result is None else result
        assert images is not None
        with self._changed:
            self._counts["finished"] += 1
            self._counts["images"] += work.shape[0]
        try:
            future.set_result(images)
        except InvalidStateError:
            # Cancelled in this moment.
            with self._changed:
                self._counts["finished"] -= 1
                self._counts["images"] -= work.shape[0]
                self._counts["cancelled"] += 1

    def _fail(self, job: Job, error: Exception) -> None:
        with self._changed:
            future = self._take_out(job)
            if future is None:
                return
            self._counts["failed"] += 1
        try:
            future.set_exception(error)
        except InvalidStateError:
            with self._changed:
                self._counts["failed"] -= 1
                self._counts["cancelled"] += 1

    def _drop(self, future: SampleFuture) -> None:
        with self._changed:
            job = self._jobs.get(future)
            if job is not None and self._take_out(job) is not None:
                self._counts["cancelled"] += 1


def _first_of(level: Iterable[Job], count: int) -> tuple[list[Job], list[Job], list[Job]]:
    """The first so many large requests, small ones, and all of these; there is a slot for each of them at the most."""
    large: list[Job] = []
    small: list[Job] = []
    both: list[Job] = []
    for job in level:
        own = large if job.work.shape[0] > PIECE else small
        if len(own) < count:
            own.append(job)
            both.append(job)
        elif len(large) + len(small) == 2 * count:
            break
    return large, small, both


def _order(job: Job) -> tuple[int, float, int]:
    """The highest level first, in it the nearest deadline, then the oldest."""
    deadline = job.request.deadline
    return -job.level, float("inf") if deadline is None else job.added + deadline, job.number
