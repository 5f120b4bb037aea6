"""Weights for launches: in their types and layouts, padded, and written again where they lie."""

import gc
import weakref

import pytest
import torch

import fastdiff as fd
from fastdiff.engine import lower
from fastdiff.engine.cuda.passes import for_gpu
from fastdiff.engine.cuda.weights import Weights
from fastdiff.engine.reference_executor import time_vectors
from support.engine_networks import CONFIGS, network
from support.tolerances import FLOAT32_DEEP


def instruction(plan, name, op="conv"):
    return next(i for i in plan.instructions if i.parameter == name and i.op == op)


@pytest.fixture
def net():
    return network("ho")


@pytest.fixture
def plan(net):
    return for_gpu(lower(net, 16, 16, "cuda"), "float32")


def test_kernels_have_zeros_up_to_the_buffers_channels(net, plan):
    weights = Weights(net, torch.bfloat16, tf32=False)
    first = weights.kernel(instruction(plan, "input_blocks.0.0"), 8, 32)
    assert first.shape == (32, 8, 3, 3)
    assert first.dtype == torch.bfloat16
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first[:, :3], net.input_blocks[0][0].weight.bfloat16())
    assert not first[:, 3:].any()
    last = weights.kernel(instruction(plan, "conv_out"), 32, 8)
    assert torch.equal(last[:3], net.conv_out.weight.bfloat16())
    assert not last[3:].any()


def test_two_sources_have_a_matrix_each(net, plan):
    i = next(i for i in plan.instructions if len(i.sources) == 2 and i.op == "conv")
    widths = [plan.buffers[n].channels for n in i.sources]
    parts, bias = Weights(net, torch.float32, tf32=False).matrices(i, widths)
    module = net.get_submodule(i.parameter)
    assert torch.equal(torch.cat(parts), module.weight.flatten(1).T)
    assert torch.equal(bias, module.bias)
    # As rows of C_in numbers, which a product reads transposed.
    assert all(part.T.is_contiguous() for part in parts)


@pytest.mark.parametrize("case", CONFIGS)
def test_time_vectors_are_the_networks(case):
    net = network(case)
    plan = lower(net, 16, 16, "cuda")
    t = torch.tensor([3, 998])
    y = None if net.config.num_classes is None else torch.tensor([0, 5])
    with torch.no_grad():
        ours = Weights(net, torch.float32, tf32=False).times(t, y, plan.projections)
        assert (ours - time_vectors(plan, net, t, y)).abs().max() < FLOAT32_DEEP


def test_refresh_writes_into_the_same_memory(net, plan):
    weights = Weights(net, torch.float32, tf32=False)
    i = instruction(plan, "input_blocks.0.0")
    kernel, places = weights.kernel(i, 8, 32), []
    places.append(kernel.data_ptr())
    before = kernel.clone()
    with torch.no_grad():
        net.input_blocks[0][0].weight.mul_(2)
    assert torch.equal(kernel, before)
    weights.refresh()
    assert torch.equal(kernel, 2 * before)
    assert weights.kernel(i, 8, 32) is kernel


def test_network_is_not_kept_alive():
    net = fd.UNet(fd.UNetConfig.preset("digits"))
    weights, gone = Weights(net, torch.float32, tf32=False), weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match="is gone"):
        weights.times(torch.tensor([1]), None, ())
