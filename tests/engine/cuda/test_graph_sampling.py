"""Whole sampling runs through the loop graph, over a CUDA runtime without a GPU, against the C++ engine."""

import pytest
import torch

import fastdiff as fd
from fastdiff import ops
from fastdiff.engine.cuda.graph import Progress
from fastdiff.sampling.runner import initial_noise
from fastdiff.sampling.seeds import checked_ids
from support.graph_sampling import reference_work, run_rows
from support.networks import redrawn
from support.tolerances import FLOAT32_RUN

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")

# Above the signed range.
SEED = 2**63 + 5
SHAPE = (3, 1, 8, 8)


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    return redrawn(fd.UNet(fd.UNetConfig.preset("digits")).eval(), 0.08)


def table_of(sampler):
    options = {"jump_length": 2, "jump_repeats": 2} if sampler == "repaint" else {}
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(1000), prediction="v")
    table = fd.samplers.build(sampler, diffusion, 6, **options)
    # Its jumps back evaluate nothing.
    assert bool(table["evaluate"].all()) == (sampler != "repaint")
    return table


def first_state(table):
    return initial_noise(SHAPE, checked_ids(None, SHAPE[0], torch.device("cpu")), SEED, table.init_scale)


def native(net, table):
    return fd.sample(net, table, shape=SHAPE, seed=SEED, runner="native", progress=False)


# Deterministic, with noise, with a history, with a base, and with rows that evaluate nothing.
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_3m", "heun", "predictor_corrector", "repaint"])
@pytest.mark.parametrize("mode", ["while", "replay", "unrolled"])
def test_loop_graph_samples_what_the_native_runner_samples(runtime, digits, sampler, mode):
    table = table_of(sampler)
    work = reference_work(digits, table, first_state(table))
    assert run_rows(runtime, work, table, seed=SEED, mode=mode) == [Progress(len(table), None)]
    expected = native(digits, table)
    assert (work.x - expected).abs().max() < FLOAT32_RUN * max(1.0, float(expected.abs().max()))
    if mode == "while":
        assert runtime.calls("cudaGraphLaunch") == 1


def test_stretches_are_the_same_to_the_bit(runtime, digits):
    """A stretch ends where somebody wants to look on."""
    table = table_of("ddpm")
    whole, parts = (reference_work(digits, table, first_state(table)) for _ in range(2))
    run_rows(runtime, whole, table, seed=SEED)
    runtime.set("threads", 1)
    cuts = [range(0, 1), range(1, 4), range(4, 4), range(4, 6)]
    assert run_rows(runtime, parts, table, seed=SEED, stretches=cuts) == [Progress(cut.stop, None) for cut in cuts]
    assert torch.equal(whole.x, parts.x)
