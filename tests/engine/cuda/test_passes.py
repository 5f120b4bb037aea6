"""A GPU's plan computes what the lowered plan and the network do, and leaves little to be done between convolutions."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

import fastdiff as fd
from fastdiff.engine import lower, place, run_plan
from fastdiff.engine.cuda.passes import for_gpu
from support.engine_networks import CONFIGS, double, inputs, network
from support.tolerances import FLOAT64


def gpu_plan(net, size=16, dtype="float32"):
    return for_gpu(lower(net, size, size, "cuda"), dtype)


@pytest.mark.parametrize("case", CONFIGS)
def test_passes_change_nothing_that_is_computed(case):
    net = double(network(case))
    x, t, y = inputs(net)
    with torch.no_grad():
        expected = net(x.double(), t, y)
        for plan in (lower(net, 16, 16, "cuda"), gpu_plan(net)):
            assert (run_plan(plan, net, x.double(), t, y) - expected).abs().max() < FLOAT64


@pytest.mark.parametrize("case", CONFIGS)
def test_buffers_are_written_before_they_are_read_and_all_of_one_type(case):
    plan = gpu_plan(network(case), dtype="bfloat16")
    written = {plan.input}
    for instruction in plan.instructions:
        assert written.issuperset(instruction.reads()), instruction
        written.update(instruction.writes())
    assert plan.output in written
    assert {buffer.dtype for buffer in plan.buffers} == {"bfloat16"}
    assert written == set(range(len(plan.buffers)))


@pytest.mark.parametrize("case", CONFIGS)
def test_libraries_are_asked_for_what_they_do_well(case):
    plan = gpu_plan(network(case))
    assert {i.op for i in plan.instructions} <= {"norm_act", "add", "conv", "attention", "pool", "repeat"}
    for i in (i for i in plan.instructions if i.op == "conv"):
        assert (i.norm, i.act, i.time, i.residual, i.upsample) == (None, False, None, None, False)
        assert i.bias == (i.kernel == 1)
        assert len(i.sources) == 1 or i.kernel == 1
    for number in (plan.input, plan.output):
        assert plan.buffers[number].channels % 8 == 0


def test_published_network_is_a_short_list():
    unet = fd.UNet(fd.UNetConfig.preset("ho-cifar10"))
    lowered = lower(unet, 32, 32, "cuda")
    plan = for_gpu(lowered, "bfloat16")
    count = Counter(i.op for i in plan.instructions)
    # Each norm of the network once, and attention's; no statistics, no concatenation, no activation by itself.
    assert count["norm_act"] == sum(isinstance(m, fd.nets.blocks.GroupNormAct) for m in unet.modules()) == 51
    assert count["attention"] == 6
    assert count["repeat"] == 3
    # Before the six resamplings, and behind the last convolution.
    assert count["add"] == 7
    assert len(plan.instructions) < len(lowered.instructions)


def test_places_are_aligned_for_a_gpu_and_do_not_overlap():
    plan = gpu_plan(network("adm"), dtype="float16")
    placement = place(plan, 3, "cuda")
    assert all(at % 256 == 0 for at in placement.places)
    assert placement.length < sum(3 * buffer.bytes for buffer in plan.buffers)
    wide = place(replace(plan, buffers=tuple(replace(b, dtype="float32") for b in plan.buffers)), 3, "cuda")
    assert wide.length > 1.9 * placement.length
