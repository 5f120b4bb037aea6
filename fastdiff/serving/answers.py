"""What the serving engine answers with: images to come, refusals, counts."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from torch import Tensor

from fastdiff.serving.request import Request

__all__ = ["Closed", "Full", "SampleFuture", "Stats", "TookTooLong"]


class Full(RuntimeError):
    """No more work is taken for now.

    Attributes:
        retry_after: Seconds until there may be room again, an estimate.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The engine takes no more work: it is draining, or closed."""


class TookTooLong(TimeoutError):
    """A request waited longer than it may, or was not done by its deadline."""


class SampleFuture(Future[Tensor]):
    """The images of a request, [num, C, H, W] float32 in about [-1, 1], when they are there.

    Attributes:
        id: A name for the request, of no other.
        request: What was asked for.
    """

    def __init__(self, request: Request, drop: Callable[[SampleFuture], None]) -> None:
        super().__init__()
        self.id = uuid.uuid4().hex
        self.request = request
        self._drop = drop
        # Taken by the first who cancels.
        self._first = threading.Lock()

    def cancel(self) -> bool:
        """Take the request out of the engine, whether it runs or waits; False where it is done already."""
        cancelled = super().cancel()
        if cancelled and self._first.acquire(blocking=False):
            # Without it nobody who waits for several futures would learn of it.
            self.set_running_or_notify_cancel()
            self._drop(self)
        return cancelled


@dataclass(frozen=True)
class Stats:
    """What an engine has done, and what it has to do.

    Attributes:
        queued_images: Images that wait for their first evaluation.
        running_images: Images on their way.
        requests: Requests that are not done.
        added, finished, failed, cancelled: Requests since the start; failed has those that took too long.
        refused: Requests that found the queue full.
        images: Images finished.
        batches: Evaluations of the network, each of a batch.
        evaluations: Images evaluated in them, a guided one counted twice.
        fill: Their share of the slots, evaluations / (batches * capacity); 0 before the first.
        recent_fill: The same of the last batches, the newest last.
        seconds_network: Spent in the network.
        seconds_other: Spent in everything else of a step: choosing, joining, the tables' rows, results.
    """

    queued_images: int
    running_images: int
    requests: int
    added: int
    finished: int
    failed: int
    cancelled: int
    refused: int
    images: int
    batches: int
    evaluations: int
    fill: float
    recent_fill: tuple[float, ...]
    seconds_network: float
    seconds_other: float
