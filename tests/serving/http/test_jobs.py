"""Tests of fastdiff.serving.http.jobs: the latest state for every reader, and bounds on what is kept."""

import asyncio
import gc
import weakref
from concurrent.futures import Future

import pytest
import torch

from fastdiff.serving import Event
from fastdiff.serving.http.jobs import Job, Kept, Taken


def event(first, stop, done=1):
    return Event(done, 10, range(first, stop), 0, 5.0, torch.zeros(stop - first, 1, 2, 2))


def run(coroutine):
    return asyncio.run(coroutine)


def ended(job):
    future = Future()
    job.follow(future, lambda _: None)
    future.set_result(torch.zeros(1))


def test_a_reader_gets_the_latest_preview_of_each_image():
    async def main():
        job = Job("a", asyncio.get_running_loop())
        for first, stop in ((0, 2), (2, 4), (0, 2), (1, 2)):
            job.hear(event(first, stop))
        assert [(p.version, p.event.samples) for p in job.previews(0)] == [
            (2, range(2, 4)),
            (3, range(0, 2)),
            (4, range(1, 2)),
        ]
        assert [p.version for p in job.previews(3)] == [4]
        assert (job.done, job.total) == (1, 10)

    run(main())


def test_events_wake_readers_once_for_many():
    async def main():
        job = Job("a", asyncio.get_running_loop())
        flag = job.read()
        assert flag.is_set()
        flag.clear()
        for done in range(100):
            await asyncio.to_thread(job.hear, Event(done, 100))
        await asyncio.wait_for(flag.wait(), 5)
        assert job.done == 99
        job.leave(flag)
        flag.clear()
        job.hear(Event(100, 100))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not flag.is_set()

    run(main())


def test_previews_are_given_up_at_the_end():
    async def main():
        job = Job("a", asyncio.get_running_loop())
        flag = job.read()
        told = event(0, 1)
        gone = weakref.ref(told)
        job.hear(told)
        del told
        ended(job)
        await job.ended.wait()
        assert len(job.previews(0)) == 1
        job.leave(flag)
        assert not job.previews(0)
        gc.collect()
        assert gone() is None

    run(main())


def test_an_end_after_the_loop_is_closed_is_no_error():
    async def main():
        return Job("a", asyncio.get_running_loop())

    ended(run(main()))


def test_kept_bounds_number_and_bytes():
    async def main():
        loop = asyncio.get_running_loop()
        kept = Kept(loop, 60, num=3, num_bytes=100)
        for number in range(6):
            job = Job(str(number), loop)
            kept.add(job)
            kept.end(job, 10)
        assert [kept.get(str(n)) is not None for n in range(6)] == [False] * 3 + [True] * 3
        assert (len(kept), kept.num_bytes) == (3, 30)
        large = Job("large", loop)
        kept.add(large)
        kept.end(large, 90)
        assert len(kept) == 2
        assert kept.num_bytes == 100
        whole = Job("too large", loop)
        kept.add(whole)
        kept.end(whole, 101)
        assert (len(kept), kept.num_bytes) == (0, 0)
        kept.close()

    run(main())


def test_kept_forgets_after_its_time_by_one_timer():
    async def main():
        loop = asyncio.get_running_loop()
        kept = Kept(loop, 1.0, num=10, num_bytes=100)
        jobs = [Job(str(number), loop) for number in range(3)]
        for job in jobs:
            kept.add(job)
        kept.end(jobs[0], 1)
        await asyncio.sleep(0.6)
        kept.end(jobs[1], 1)
        await asyncio.sleep(0.6)
        assert [kept.get(job.id) is job for job in jobs] == [False, True, True]
        await asyncio.sleep(0.6)
        assert [kept.get(job.id) is job for job in jobs] == [False, False, True]
        assert kept.num_bytes == 0
        assert kept.running() == [jobs[2]]
        kept.close()

    run(main())


def test_an_id_in_use_is_refused_until_it_is_dropped():
    async def main():
        loop = asyncio.get_running_loop()
        kept = Kept(loop, 60, num=3, num_bytes=100)
        kept.add(Job("a", loop))
        with pytest.raises(Taken, match="the request id a is in use: take another, or none"):
            kept.add(Job("a", loop))
        kept.drop("a")
        kept.add(Job("a", loop))
        kept.end(Job("a", loop), 5)
        assert kept.num_bytes == 0

    run(main())


def test_what_was_not_fetched_is_known():
    async def main():
        loop = asyncio.get_running_loop()
        kept = Kept(loop, 60, num=3, num_bytes=100)
        job = Job("a", loop)
        kept.add(job)
        assert kept.unfetched()
        job.is_fetched = True
        assert not kept.unfetched()

    run(main())
