"""Tests of fastdiff.serving.http.failures: statuses and sentences of what went wrong."""

import asyncio
from concurrent.futures import CancelledError, Future

import pytest
import torch

from fastdiff.process.checks import NotFinite
from fastdiff.serving import Closed, Full, TookTooLong
from fastdiff.serving.http.failures import refused, told
from fastdiff.serving.http.jobs import Job


def job(error=None, cancelled=False):
    async def make():
        return Job("a", asyncio.get_running_loop())

    made = asyncio.run(make())
    made.future = Future()
    if cancelled:
        made.future.cancel()
    elif error is not None:
        made.future.set_exception(error)
    else:
        made.future.set_result(torch.zeros(1))
    return made


@pytest.mark.parametrize(
    ("error", "status", "outcome", "word"),
    [
        (TookTooLong("not within 3 s"), 504, "late", "not within 3 s"),
        (NotFinite(2, 5), 500, "failed", "NaN or infinity after row 2 of 5"),
        (RuntimeError("/secret"), 500, "failed", "the server's log says why"),
        (CancelledError(), 410, "cancelled", "cancelled"),
    ],
)
def test_a_job_that_failed(error, status, outcome, word):
    found = told(job(error), False)
    assert (found.status, found.outcome) == (status, outcome)
    assert word in found.detail
    assert "/secret" not in found.detail


def test_who_cancelled():
    assert told(job(cancelled=True), False).status == 410
    assert told(job(cancelled=True), True).status == 503
    assert told(job(), True) is None


def test_a_request_that_was_not_taken():
    assert refused(ValueError("steps")).status == 422
    assert refused(Full("full", 2.3)).headers == {"Retry-After": "3"}
    assert refused(Closed()).status == 503
