"""Sampling with the CPU engine: against the eager runner, in parts, with callbacks, and stopped."""

import dataclasses
import os
import threading
import time

import pytest
import torch

import fastdiff as fd
from fastdiff.engine import loop as engine_loop
from support.engine_networks import network
from support.networks import redrawn
from support.tolerances import FLOAT32_RUN


def sampled(net, table, runner, **options):
    shape = (3, net.config.in_channels, 16, 16)
    return fd.sample(net, table, shape=shape, seed=5, runner=runner, progress=False, **options)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_3m", "plms", "unipc", "heun", "predictor_corrector"])
def test_sample_native_follows_eager(sampler):
    net = network("ho")
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(1000), prediction="v")
    table = fd.samplers.build(sampler, diffusion, 20)
    eager, native = (sampled(net, table, runner) for runner in ("eager", "native"))
    assert (native - eager).abs().max() < FLOAT32_RUN * max(1.0, float(eager.abs().max()))
    assert torch.equal(sampled(net, table, "auto"), native)


def test_sample_native_fifty_steps_of_ddim():
    net = network("ho")
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.linear(1000)), 50)
    assert (sampled(net, table, "native") - sampled(net, table, "eager")).abs().max() < FLOAT32_RUN


def test_sample_native_with_labels_and_a_learned_variance(monkeypatch):
    net = network("adm")
    wide = fd.UNet(dataclasses.replace(net.config, out_channels=6)).eval()
    redrawn(wide, 0.05)
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(100), variance="learned_range")
    table = fd.samplers.ddpm(diffusion, 12)
    options = {"model_kwargs": {"y": torch.tensor([0, 3, 6])}}
    eager, native = (sampled(wide, table, runner, **options) for runner in ("eager", "native"))
    assert (native - eager).abs().max() < FLOAT32_RUN
    # In parts, and with few times at hand: the same to the bit.
    monkeypatch.setattr(engine_loop, "MAX_PART", 2)
    monkeypatch.setattr(engine_loop, "TIMES_NUMBERS", 1)
    assert torch.equal(sampled(wide, table, "native", **options), native)


def test_sample_native_calls_back_like_eager():
    net = network("ho")
    table = fd.samplers.dpmpp_2m(fd.Diffusion(fd.NoiseSchedule.cosine(1000), prediction="v"), 6)
    seen = {}
    for runner in ("eager", "native"):
        steps = seen[runner] = []
        sampled(
            net,
            table,
            runner,
            callback=lambda s, steps=steps: steps.append((s.row, s.t, s.x.clone(), s.prediction.clone())),
        )
    assert [s[:2] for s in seen["native"]] == [s[:2] for s in seen["eager"]]
    for ours, theirs in zip(seen["native"], seen["eager"], strict=True):
        assert (ours[2] - theirs[2]).abs().max() < FLOAT32_RUN
        assert (ours[3] - theirs[3]).abs().max() < FLOAT32_RUN


def test_sample_native_stops_at_chosen_rows_and_runs_on_between(monkeypatch):
    net = network("ho")
    table = fd.samplers.dpmpp_2m(fd.Diffusion(fd.NoiseSchedule.cosine(1000), prediction="v"), 12)
    every, some, calls = {}, {}, []
    sampled(net, table, "native", callback=lambda s: every.update({s.row: (s.x.clone(), s.prediction.clone())}))
    plain = torch.ops.fastdiff.plan_sample

    def counted(*arguments):
        calls.append(arguments[13:15])
        return plain(*arguments)

    monkeypatch.setattr(engine_loop.torch.ops.fastdiff, "plan_sample", counted)
    monkeypatch.setattr(engine_loop, "STRETCH_SECONDS", 1000)
    callback = lambda s: some.update({s.row: (s.x.clone(), s.prediction.clone())})  # noqa: E731
    result = sampled(net, table, "native", callback=callback, callback_rows=[2, 8, -1])
    assert list(some) == [2, 8, 11]
    assert all(torch.equal(a, b) for row in some for a, b in zip(some[row], every[row], strict=True))
    assert torch.equal(result, every[11][0])
    assert len(calls) < 12
    assert {3, 9, 12} <= {end for _, end in calls}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "unipc"])
def test_sample_native_does_not_depend_on_batch_threads_or_run(sampler):
    """To the bit."""
    net = network("adm")
    table = fd.samplers.build(sampler, fd.Diffusion(fd.NoiseSchedule.cosine(1000), prediction="v"), 6)
    y = torch.tensor([0, 3, 6, 1, 2])

    def images(first, last):
        return fd.sample(
            net,
            table,
            shape=(last - first, 3, 16, 16),
            seed=2,
            sample_ids=range(first, last),
            model_kwargs={"y": y[first:last]},
            runner="native",
            progress=False,
        )

    whole = images(0, 5)
    assert torch.equal(whole, images(0, 5))
    assert torch.equal(whole, torch.cat([images(0, 1), images(1, 4), images(4, 5)]))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(whole, images(0, 5))
    finally:
        torch.set_num_threads(before)


def test_sample_native_on_images_that_are_not_square():
    net = network("ho")
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.linear(1000)), 10)
    options = {"shape": (2, 3, 12, 20), "progress": False}
    eager, native = (fd.sample(net, table, runner=runner, **options) for runner in ("eager", "native"))
    assert (native - eager).abs().max() < FLOAT32_RUN
    assert fd.sample(net, table, runner="native", **options | {"shape": (0, 3, 12, 20)}).shape == (0, 3, 12, 20)
    with pytest.raises(ValueError, match="positive multiples of 2"):
        fd.sample(net, table, runner="native", **options | {"shape": (2, 3, 12, 21)})


def test_sample_native_refuses_a_table_that_does_not_fit():
    learned = fd.samplers.ddpm(fd.Diffusion(fd.NoiseSchedule.linear(100), variance="learned_range"), 3)
    with pytest.raises(ValueError, match=r"output must have shape \[3, 6, 16, 16\], got \[3, 3, 16, 16\]"):
        sampled(network("ho"), learned, "native")
    # Six channels fit a table that ignores the last three.
    ignored = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.linear(1000)), 3)
    eager, native = (sampled(network("iddpm"), ignored, runner) for runner in ("eager", "native"))
    assert (native - eager).abs().max() < FLOAT32_RUN


def test_sample_native_follows_the_threads_of_a_callback():
    net = network("ho")
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.linear(1000)), 4)
    expected = sampled(net, table, "native")
    before = torch.get_num_threads()
    try:
        callback = lambda seen: torch.set_num_threads(1 + seen.row % 3)  # noqa: E731
        assert torch.equal(sampled(net, table, "native", callback=callback), expected)
    finally:
        torch.set_num_threads(before)


def test_sample_native_starts_in_the_middle():
    net = network("ho")
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(1000), prediction="v"), 8)
    x = torch.randn(3, 3, 16, 16)
    eager, native = (sampled(net, table, runner, x_init=x, start_row=5) for runner in ("eager", "native"))
    assert (native - eager).abs().max() < FLOAT32_RUN


def test_sample_native_stops_at_ctrl_c():
    net = network("ho")
    table = fd.samplers.ddpm(fd.Diffusion(fd.NoiseSchedule.cosine(4000)))

    def interrupt():
        time.sleep(0.5)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fd.sample(net, table, shape=(64, 3, 16, 16), runner="native", progress=False)
    thread.join()
    assert time.monotonic() - began < 10
