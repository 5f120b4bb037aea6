"""Where a plan's time goes: every instruction once, with the operations that its shape takes."""

import pytest
import torch

import fastdiff as fd
from fastdiff.engine import copy_speed, engine_peak, lower, matrix_peak, products_made, profile
from fastdiff.engine.plan import Instruction
from support.engine_networks import inputs, network


@pytest.fixture(scope="module")
def profiled():
    compiled = fd.compile(network("adm"))
    x, t, y = inputs(compiled.unet, 2, 16, 16)
    before = compiled(x, t, y)
    found = profile(compiled, 2, (16, 16), repeats=1)
    assert torch.equal(compiled(x, t, y), before)
    return compiled, found


def test_profile_has_every_instruction_in_its_place(profiled):
    compiled, found = profiled
    assert [one.number for one in found] == list(range(len(found)))
    assert tuple(one.instruction for one in found) == compiled.plan(16, 16).instructions
    assert all(one.milliseconds >= 0 and one.predicted_ms > 0 for one in found)


def test_profile_counts_the_operations_of_the_direct_formula(profiled):
    compiled, found = profiled
    plan = compiled.plan(16, 16)
    counted = 0
    for one in found:
        if one.instruction.op != "conv":
            continue
        target = plan.buffers[one.instruction.target]
        channels = sum(plan.buffers[n].channels for n in one.instruction.sources)
        products = target.channels * target.height * target.width * channels * one.instruction.kernel**2
        assert one.flops == 2 * 2 * products
        # Its result and its sources at least, in float32.
        assert one.bytes_moved >= 4 * 2 * target.channels * target.height * target.width
        counted += 1
    assert counted > 10


def test_profile_describes_shapes_and_what_a_convolution_does_besides(profiled):
    _, found = profiled
    texts = [one.description for one in found]
    assert texts[0].split()[1] == "->" or "->" in texts[0]
    for one in found:
        if one.instruction.op == "conv":
            assert ("stride 2" in one.description) == (one.instruction.stride == 2)
            assert ("residual" in one.description) == (one.instruction.residual is not None)
            assert f"{one.instruction.kernel}x{one.instruction.kernel}" in one.description


@pytest.mark.parametrize(("algorithm", "saved"), [("direct", 1.0), ("winograd2", 36 / 16), ("winograd4", 144 / 36)])
def test_products_made_by_winograd_are_those_of_its_tiles(algorithm, saved):
    """F(m x m, 3 x 3) takes (m + 2)^2 products for m^2 results of 9 each."""
    conv = Instruction("conv", (0,), 1, kernel=3, pad=1, algorithm=algorithm)
    assert products_made(7200.0, conv) == pytest.approx(7200 / saved)


def test_speeds_are_positive_and_those_of_a_machine():
    # From a slow core to a large one: operations and bytes per second.
    assert 1e8 < engine_peak(0.02) < 1e14
    assert 1e8 < matrix_peak(0.02) < 1e14
    assert 1e7 < copy_speed(0.02) < 1e14


def test_plans_of_the_profile_are_the_lowered_ones(profiled):
    compiled, _ = profiled
    plan, lowered = compiled.plan(16, 16), lower(compiled.unet, 16, 16)
    assert [i.op for i in plan.instructions] == [i.op for i in lowered.instructions]
    assert plan.buffers == lowered.buffers
