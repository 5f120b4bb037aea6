"""Tests of fastdiff.serving.engine: everyone's images are those that they would get alone, whatever else runs."""

import dataclasses
import os
import random
import threading
import time
from concurrent.futures import CancelledError, wait

import psutil
import pytest
import torch

import fastdiff as fd
from fastdiff.nets.lucidrains import Unet
from fastdiff.process.checks import NotFinite
from fastdiff.serving import Closed, Engine, Full, Request, TookTooLong
from fastdiff.serving import engine as engine_module
from support.networks import random_unet, shaken, two_levels
from support.serving import alone, any_request, pipeline

MIXES = int(os.environ.get("FASTDIFF_SERVE_MIXES", "12"))


def run(engine, limit=20000):
    """Step until there is nothing to do; the images evaluated in each step."""
    counts = []
    while count := engine.step():
        counts.append(count)
        assert len(counts) < limit
    return counts


@pytest.mark.parametrize("mix", range(MIXES))
def test_any_mix_gives_each_request_what_it_would_get_alone(mix):
    chance = random.Random(mix)
    classes, learned = chance.random() < 0.7, chance.random() < 0.3
    pipe = pipeline(classes, learned)
    engine = Engine(pipe, capacity=chance.choice([2, 3, 8, 16]))
    requests = [any_request(chance, classes=classes) for _ in range(8)]
    if learned:
        requests = [r for r in requests if not isinstance(r.sampler, fd.CoefficientTable)]
    events = {number: [] for number in range(len(requests))}
    futures = {}
    for number, request in enumerate(requests):
        futures[number] = engine.add(request, events[number].append)
        for _ in range(chance.choice([0, 1, 5])):
            engine.step()
    cancelled = chance.sample(sorted(futures), 2)
    for number in cancelled:
        was_done = futures[number].done()
        assert engine.cancel(futures[number]) is not was_done
    assert all(count <= engine.capacity for count in run(engine))
    for number, request in enumerate(requests):
        future = futures[number]
        if future.cancelled():
            assert number in cancelled
            continue
        assert torch.equal(future.result(timeout=0), alone(pipe, request)), request
        if events[number]:
            assert events[number][-1].done == events[number][-1].total
            assert [e.done for e in events[number]] == sorted(e.done for e in events[number])
        if request.previews == 0:
            assert all(event.preview is None for event in events[number])
    stats = engine.stats
    assert stats.requests == stats.queued_images == stats.running_images == 0
    assert stats.added == len(requests) == stats.finished + stats.cancelled


def test_previews_are_the_predictions_of_the_row():
    pipe = pipeline(classes=False)
    request = Request(num=6, sampler="ddim", steps=7, seed=3, previews=3)
    shown = pipe.progressive(6, rows=[2, 5], sampler="ddim", steps=7, seed=3)
    found = torch.full((2, 6, 1, 8, 8), torch.nan)
    engine = Engine(pipe, capacity=4)

    def keep(event):
        if event.preview is not None:
            found[(2, 5).index(event.row), event.samples.start : event.samples.stop] = event.preview
            assert event.t == shown.times[(2, 5).index(event.row)]

    engine.add(request, keep)
    run(engine)
    assert torch.equal(found, shown.previews)


def test_slots_are_filled_at_each_row_boundary():
    engine = Engine(pipeline(classes=False), capacity=8)
    engine.add(Request(num=3, steps=5))
    assert engine.step() == 3
    engine.add(Request(num=2, sampler="unipc", steps=9))
    engine.add(Request(num=9, sampler="ddpm", steps=4))
    assert engine.step() == 8
    counts = run(engine)
    assert max(counts) == 8
    assert engine.stats.batches == 2 + len(counts)
    assert engine.stats.evaluations == 3 * 5 + 2 * 9 + 9 * 4
    assert engine.stats.fill == pytest.approx(engine.stats.evaluations / (8 * engine.stats.batches))
    assert engine.stats.recent_fill[:2] == (3 / 8, 1.0)


def test_a_large_request_does_not_starve_small_ones():
    engine = Engine(pipeline(classes=False), capacity=8)
    large = engine.add(Request(num=64, steps=10))
    engine.step()
    small = [engine.add(Request(num=1, steps=10, seed=seed)) for seed in range(4)]
    for _ in range(11):
        engine.step()
    assert all(future.done() for future in small)
    assert not large.done()
    # What the small ones left was used all the same.
    assert set(engine.stats.recent_fill) == {1.0}
    run(engine)
    assert torch.equal(large.result(), alone(engine.pipeline, large.request))


def test_many_large_requests_do_not_starve_a_small_one():
    engine = Engine(pipeline(classes=False), capacity=4)
    large = [engine.add(Request(num=40, steps=10, seed=seed)) for seed in range(6)]
    engine.step()
    small = engine.add(Request(num=2, steps=10))
    for _ in range(10):
        engine.step()
    assert small.done()
    assert not any(future.done() for future in large)
    assert set(engine.stats.recent_fill) == {1.0}


def test_small_requests_do_not_starve_a_large_one():
    engine = Engine(pipeline(classes=False), capacity=4)
    large = engine.add(Request(num=12, steps=4))
    for seed in range(200):
        engine.add(Request(num=2, steps=4, seed=seed))
        engine.step()
        if large.done():
            break
    # Half of the slots: two of twelve samples at a time, four rows each.
    assert seed <= 6 * 4


def test_priority_goes_first_and_waiting_makes_up_for_it(monkeypatch):
    engine = Engine(pipeline(classes=False), capacity=2)
    low = engine.add(Request(num=2, steps=4))
    high = engine.add(Request(num=2, steps=4, priority=1))
    for _ in range(4):
        engine.step()
    assert high.done()
    assert not low.done()
    monkeypatch.setattr(engine_module, "AGEING_SECONDS", 1e-9)
    monkeypatch.setattr(engine_module, "LOOK_SECONDS", 0)
    engine.add(Request(num=2, steps=4, priority=1))
    for _ in range(8):
        engine.step()
    assert low.done()


def test_the_nearest_deadline_goes_first():
    engine = Engine(pipeline(classes=False), capacity=2)
    engine.add(Request(num=2, steps=2))
    later = engine.add(Request(num=2, steps=2, deadline=300))
    sooner = engine.add(Request(num=2, steps=2, deadline=200))
    for _ in range(2):
        engine.step()
    assert sooner.done()
    assert not later.done()


def test_what_takes_too_long_fails_with_the_reason():
    engine = Engine(pipeline(classes=False), capacity=2, max_wait=0.05)
    first = engine.add(Request(num=2, steps=30))
    engine.step()
    late, waiting = engine.add(Request(num=2, deadline=0.01)), engine.add(Request(num=2, steps=30, priority=-1))
    time.sleep(0.06)
    run(engine)
    assert first.result().shape == (2, 1, 8, 8)
    with pytest.raises(TookTooLong, match=r"not there within 0\.01 s, the request's deadline"):
        late.result()
    with pytest.raises(TookTooLong, match=r"waited for more than 0\.05 s"):
        waiting.result()
    assert engine.stats.failed == 2


def test_a_full_queue_refuses_and_says_when_to_come_again():
    engine = Engine(pipeline(classes=False), capacity=4, max_queued=6)
    engine.add(Request(num=4, steps=3))
    with pytest.raises(Full, match="4 of at most 6 images are waited for, and 3 more were asked for") as caught:
        engine.add(Request(num=3, steps=3))
    assert caught.value.retry_after >= 1
    assert engine.stats.refused == 1
    with pytest.raises(ValueError, match="num must be at most 6, the limit here, got 7"):
        engine.add(Request(num=7))
    run(engine)
    assert engine.add(Request(num=3, steps=3)).done() is False


class Faulty(fd.UNet):
    """Raises, or gives NaN, for samples that hold a mark."""

    kind = "raise"

    def forward(self, x, t, y=None):
        marked = (x.flatten(1) > 1.5).sum(dim=1) == x[0].numel()
        if self.kind == "raise" and bool(marked.any()):
            raise RuntimeError("a mark")
        output = super().forward(x, t, y)
        return torch.where(marked[:, None, None, None], torch.nan, output)


@pytest.mark.parametrize(("kind", "error"), [("raise", RuntimeError), ("nan", NotFinite)])
def test_a_network_that_fails_fails_its_own_requests_alone(kind, error):
    torch.manual_seed(0)
    unet = Faulty(two_levels())
    unet.kind = kind
    pipe = fd.Pipeline(unet, fd.Diffusion(fd.NoiseSchedule.cosine(40)))
    engine = Engine(pipe, capacity=8)
    good = [engine.add(Request(num=2, steps=4, seed=seed)) for seed in range(2)]
    bad = engine.add(Request(num=2, steps=4, x_init=torch.full((2, 1, 8, 8), 2.0)))
    engine.add(Request(num=1, steps=4))
    run(engine)
    with pytest.raises(error):
        bad.result()
    for future in good:
        # PyTorch's convolutions depend on the batch in their last bits.
        expected = alone(pipe, future.request)
        torch.testing.assert_close(future.result(), expected, atol=1e-5, rtol=0)
    assert (engine.stats.failed, engine.stats.finished, engine.stats.requests) == (1, 3, 0)


def test_a_self_conditioned_network_is_given_its_own_predictions():
    torch.manual_seed(0)
    unet = shaken(Unet(8, dim_mults=(1, 2), channels=1, self_condition=True), 0.1)
    unet.config = two_levels()
    pipe = fd.Pipeline(unet, fd.Diffusion(fd.NoiseSchedule.cosine(40)))
    engine = Engine(pipe, capacity=4)
    requests = [Request(num=3, steps=5), Request(num=2, sampler="dpmpp_2m", steps=4, seed=7), Request(steps=6, seed=8)]
    futures = []
    for request in requests:
        futures.append(engine.add(request))
        engine.step()
    run(engine)
    for request, future in zip(requests, futures, strict=True):
        assert torch.equal(future.result(), alone(pipe, request))


def test_a_thread_serves_many_threads_and_sleeps_when_idle():
    pipe = pipeline(classes=False)
    with Engine(pipe, capacity=8).start() as engine:
        found = {}

        def ask(number):
            request = Request(num=1 + number % 3, steps=3 + number % 5, seed=number)
            found[number] = request, engine.add(request).result(timeout=60)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for request, images in found.values():
            assert torch.equal(images, alone(pipe, request))
        process = psutil.Process()
        before = sum(process.cpu_times()[:2])
        time.sleep(1)
        assert sum(process.cpu_times()[:2]) - before < 0.05


def test_draining_finishes_and_closing_cancels():
    pipe = pipeline(classes=False)
    engine = Engine(pipe, capacity=4).start()
    futures = [engine.add(Request(num=2, steps=10, seed=seed)) for seed in range(5)]
    assert engine.drain(timeout=60)
    assert all(future.done() and not future.cancelled() for future in futures)
    with pytest.raises(Closed, match="draining"):
        engine.add(Request())
    engine.close()
    other = Engine(pipe, capacity=4)
    left = other.add(Request(num=2))
    other.close()
    with pytest.raises(CancelledError):
        left.result(timeout=1)
    with pytest.raises(Closed, match="closed"):
        other.start()


def test_draining_without_a_thread_steps_itself():
    engine = Engine(pipeline(classes=False), capacity=4)
    future = engine.add(Request(num=2, steps=5))
    assert not engine.drain(timeout=0)
    assert engine.drain()
    assert future.done()


def test_a_preview_that_cannot_be_told_fails_its_request_alone():
    engine = Engine(pipeline(classes=False), capacity=4)

    def broken(event):
        raise OSError("nobody listens")

    bad, good = engine.add(Request(num=1, steps=3), broken), engine.add(Request(num=1, steps=3))
    run(engine)
    assert good.result().shape == (1, 1, 8, 8)
    with pytest.raises(OSError, match="nobody listens"):
        bad.result()


def test_image_sizes_take_turns():
    engine = Engine(pipeline(classes=False), capacity=4)
    requests = [Request(num=4, steps=5, size=size) for size in ((8, 8), (16, 8), (8, 16))]
    futures = [engine.add(request) for request in requests]
    for _ in range(3 * 4):
        engine.step()
    assert not any(future.done() for future in futures)
    done = []
    for _ in range(3):
        engine.step()
        done.append([future.done() for future in futures])
    assert done == [[True, False, False], [True, True, False], [True, True, True]]
    for request, future in zip(requests, futures, strict=True):
        assert torch.equal(future.result(), alone(engine.pipeline, request))


def test_a_state_of_ones_own_starts_where_it_is_told():
    pipe = pipeline(classes=False)
    table = fd.samplers.ddim(pipe.diffusion, 10)
    state = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    engine = Engine(pipe, capacity=4)
    future = engine.add(Request(num=3, sampler=table, x_init=state, start_row=6))
    assert len(run(engine)) == 4
    expected = fd.sample(pipe.unet, table, shape=(3, 1, 8, 8), x_init=state, start_row=6, progress=False)
    assert torch.equal(future.result(), expected)
    # The caller's own is left as it was.
    assert torch.equal(state, torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_bfloat16_shares_batches_without_changing_bits():
    pipe = pipeline(classes=False)
    engine = Engine(pipe, capacity=4, precision="bfloat16")
    requests = [Request(num=2, steps=4, seed=seed) for seed in range(3)]
    futures = [engine.add(request) for request in requests]
    run(engine)
    for request, future in zip(requests, futures, strict=True):
        expected = pipe.sample(2, steps=4, seed=request.seed, precision="bfloat16")
        assert torch.equal(future.result(), expected)


def test_the_pipelines_own_precision_holds_where_none_is_given():
    plain = pipeline(classes=False)
    pipe = fd.Pipeline(plain.unet, plain.diffusion, metadata=plain.metadata)
    pipe.precision = "bfloat16"
    engine = Engine(pipe, capacity=4)
    future = engine.add(Request(num=2, steps=4))
    run(engine)
    assert torch.equal(future.result(), pipe.sample(2, steps=4))


def test_who_waits_for_several_futures_learns_of_a_cancelled_one():
    engine = Engine(pipeline(classes=False), capacity=4)
    future = engine.add(Request(num=2))
    assert future.cancel()
    assert wait([future], timeout=5).done == {future}
    assert future.cancel()
    assert engine.stats.cancelled == 1


def test_what_the_caller_writes_to_its_tensors_later_has_no_part():
    pipe = pipeline()
    fields = {"num": 6, "steps": 4, "labels": torch.tensor([0, 1, 2, 0, 1, 2]), "sample_ids": torch.arange(6)}
    image, mask = torch.zeros(6, 1, 8, 8), torch.arange(64).reshape(8, 8) < 32
    kinds = [{}, {"image": image, "strength": 0.0}, {"image": image, "strength": 0.5}]
    kinds += [{"image": image, "mask": mask, "options": {"jump_repeats": 1}}]
    requests = [Request(**fields, **kind) for kind in kinds]
    expected = [alone(pipe, request) for request in requests]
    engine = Engine(pipe, capacity=4)
    futures = [engine.add(request) for request in requests]
    for tensor in (image, mask, fields["labels"], fields["sample_ids"]):
        tensor.fill_(1)
    run(engine)
    for future, images in zip(futures, expected, strict=True):
        assert torch.equal(future.result(), images)


def test_a_table_that_cannot_feed_a_network_back_is_refused_alone():
    unet = shaken(Unet(8, dim_mults=(1, 2), channels=1, self_condition=True), 0.1)
    unet.config = two_levels()
    pipe = fd.Pipeline(unet, fd.Diffusion(fd.NoiseSchedule.cosine(40)))
    table = fd.samplers.pndm(pipe.diffusion, 6)
    silent = dataclasses.replace(table, alphas=(), sigmas=())
    assert not silent.data_prediction
    engine = Engine(pipe, capacity=4)
    good = engine.add(Request(steps=3))
    with pytest.raises(ValueError, match="predicts noise at levels that it does not say"):
        engine.add(Request(sampler=silent))
    run(engine)
    assert good.done()
    assert (engine.stats.added, engine.stats.finished) == (1, 1)


def test_what_a_step_calls_may_add_cancel_and_close_but_not_wait_for_the_step():
    engine = Engine(pipeline(classes=False), capacity=4).start()
    added, errors = [], []

    def told(event):
        if not added:
            for wrong in (engine.step, engine.drain):
                try:
                    wrong()
                except RuntimeError as error:
                    errors.append(str(error))
            added.append(engine.add(Request(steps=2)))
            assert engine.cancel(added[0])
        if event.done == event.total:
            engine.close()

    future = engine.add(Request(steps=3), told)
    assert wait([future], timeout=60).done
    engine.close()
    assert [error.partition(" would")[0].rpartition(" ")[2] for error in errors] == ["step()", "drain()"]
    assert added[0].cancelled()
    assert engine.stats.requests == 0


def test_what_is_asked_of_an_engine_is_checked():
    pipe = pipeline(classes=False)
    for options, message in [
        ({"capacity": 1}, "capacity"),
        ({"max_queued": 0}, "max_queued"),
        ({"max_wait": 0}, "max_wait must be a positive number of seconds, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Engine(pipe, **options)
    given = random_unet(two_levels(in_channels=2))
    conditioned = fd.Pipeline(given, pipe.diffusion, metadata={"data": {"shape": [1, 8, 8]}})
    with pytest.raises(ValueError, match="given images beside the noisy one"):
        Engine(conditioned)
