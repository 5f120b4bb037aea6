"""Tests of fastdiff.serving.job."""

import pytest
import torch

from fastdiff.process.checks import NotFinite
from fastdiff.serving import Request
from fastdiff.serving.job import PIECE, Job
from fastdiff.serving.request import Limits, work_of
from fastdiff.serving.rows import Rows
from support.serving import alone, pipeline
from support.tolerances import FLOAT32_RUN


def job_of(request, on_event=None):
    pipe = pipeline(classes=False)
    return Job(request, work_of(pipe, request, Limits()), on_event, False)


def advance(job, slots):
    """One row for what fits into the slots, evaluated by the network alone."""
    job.begin_turn()
    taken = 0
    while taken < slots and (more := job.claim(slots - taken)):
        taken += more
    for chunk in job.chosen:
        x, t = chunk.state.network_input(chunk.row, chunk.x)
        output = pipeline(classes=False).unet(x, t)
        (prediction,) = Rows([chunk]).step(output, {}, [job.is_shown(chunk)])
        job.advance(chunk, None, prediction)
    return taken


@torch.no_grad()
def test_pieces_are_cut_where_slots_are_few_and_go_on_where_they_were():
    # A history of two, so that what is kept of a sample has to go with it.
    job = job_of(Request(num=9, sampler="dpmpp_3m", steps=6))
    assert advance(job, 16) == 9
    assert [len(chunk.samples) for chunk in job.chosen] == [PIECE, PIECE, 1]
    assert advance(job, 6) == 6
    assert [len(chunk.samples) for chunk in job.chosen] == [PIECE, 2]
    assert (job.running, job.waiting) == (9, 0)
    while not job.is_done:
        advance(job, 16)
    assert job.done == job.total == 9 * 6
    torch.testing.assert_close(
        job.result, alone(pipeline(classes=False), job.request), atol=FLOAT32_RUN, rtol=FLOAT32_RUN
    )


@torch.no_grad()
def test_a_guided_sample_takes_two_slots():
    pipe = pipeline()
    request = Request(num=3, labels=[0, 1, 2], guidance=2.0)
    job = Job(request, work_of(pipe, request, Limits()), None, False)
    job.begin_turn()
    assert job.claim(1) == 0
    assert job.claim(5) == 4
    assert job.claim(1) == 0
    assert [len(chunk.samples) for chunk in job.chosen] == [2]


@torch.no_grad()
def test_a_result_that_is_not_finite_is_told_with_its_row():
    job = job_of(Request(num=2, steps=5))
    for _ in range(4):
        advance(job, 2)
    job.begin_turn()
    job.claim(2)
    (chunk,) = job.chosen
    Rows([chunk]).step(torch.full_like(chunk.x, torch.nan), {}, [False])
    with pytest.raises(NotFinite, match="after row 4 of 5"):
        job.advance(chunk, None, None)


@torch.no_grad()
def test_events_count_and_show():
    events = []
    job = job_of(Request(num=2, steps=4, previews=2), events.append)
    while not job.is_done:
        advance(job, 2)
    assert [(event.done, event.total, event.row) for event in events] == [
        (2, 8, None),
        (4, 8, 1),
        (6, 8, None),
        (8, 8, 3),
    ]
    assert events[1].samples == range(2)
    assert events[1].preview.shape == (2, 1, 8, 8)
