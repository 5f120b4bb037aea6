"""What a client is told when something went wrong: a status, a sentence, and how long to wait."""

from __future__ import annotations

import math
from concurrent.futures import CancelledError

from fastdiff.process.checks import NotFinite
from fastdiff.serving import Closed, Full, TookTooLong
from fastdiff.serving.http.jobs import Job

__all__ = ["Refusal", "refused", "told"]


class Refusal(Exception):
    """A request that gets an answer other than its images.

    Args:
        status: Of HTTP.
        detail: What is said, one sentence.
        outcome: For the metrics.
        headers: Beside the usual ones.
    """

    def __init__(self, status: int, detail: str, outcome: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.outcome, self.headers = status, detail, outcome, headers or {}


def told(job: Job, is_closing: bool) -> Refusal | None:
    """What to say of a job that has ended; None where it has its images.

    Args:
        job: Which has ended.
        is_closing: Whether the server stops: then it was the server that cancelled.
    """
    assert job.future is not None
    if job.future.cancelled():
        error: BaseException | None = CancelledError()
    else:
        error = job.future.exception()
    if error is None:
        return None
    if isinstance(error, CancelledError):
        if is_closing:
            return Refusal(503, "the server stops, and the request was not done in time", "cancelled")
        return Refusal(410, "the request was cancelled", "cancelled")
    if isinstance(error, TookTooLong):
        return Refusal(504, str(error), "late")
    if isinstance(error, NotFinite):
        return Refusal(500, f"the network failed on this request: {error}", "failed")
    return Refusal(500, "the network failed on this request; the server's log says why, under its id", "failed")


def refused(error: Exception) -> Refusal:
    """What to say where the engine did not take a request."""
    if isinstance(error, Full):
        seconds = max(1, math.ceil(error.retry_after))
        return Refusal(429, str(error), "refused", {"Retry-After": str(seconds)})
    if isinstance(error, Closed):
        return Refusal(503, "the server stops and takes no new requests", "refused", {"Retry-After": "5"})
    return Refusal(422, str(error), "invalid")
