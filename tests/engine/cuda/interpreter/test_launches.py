"""A plan's launches compute what the network does, in float32 and in 16 bits."""

import pytest
import torch

from fastdiff.engine import lower
from fastdiff.engine.cuda.launches import make_launches
from fastdiff.engine.cuda.passes import for_gpu
from fastdiff.engine.cuda.weights import Weights
from support.engine_networks import CONFIGS, double, inputs, relative, tiny
from support.engine_networks import TINY_SIZE as SIZE
from support.tolerances import ENGINE_NETWORK

# Error of 16-bit results over plain PyTorch's, at most.
WORSE = {"bfloat16": 2.0, "float16": 2.0}


def launched(net, x, t, y, number):
    """The network's output by a list of launches whose memory holds NaN at first."""
    plan = for_gpu(lower(net, SIZE, SIZE, "cuda"), number)
    weights = Weights(net, getattr(torch, number), tf32=False)
    launches = make_launches(plan, weights, len(x), time_per_sample=True)
    launches.input.zero_()
    launches.input[:, : x.shape[1]].copy_(x)
    launches.times.copy_(weights.times(t, y, plan.projections))
    launches.run()
    return launches.output[:, : net.config.out_channels]


@pytest.mark.parametrize("case", CONFIGS)
def test_launches_are_the_network(case, device):
    net = tiny(case, device)
    x, t, y = (None if v is None else v.to(device) for v in inputs(net, 2, SIZE, SIZE))
    with torch.no_grad():
        expected = double(net)(x.double(), t, y)
        assert relative(launched(net, x, t, y, "float32"), expected) < ENGINE_NETWORK


@pytest.mark.parametrize("number", WORSE)
@pytest.mark.parametrize("case", ["ho", "iddpm", "adm"])
def test_launches_in_16_bits_are_as_good_as_plain_pytorch(case, number, device):
    net = tiny(case, device, getattr(torch, number))
    x, t, y = (None if v is None else v.to(device) for v in inputs(net, 2, SIZE, SIZE))
    with torch.no_grad():
        expected = double(net)(x.to(net.conv_out.weight.dtype).double(), t, y)
        plain = relative(net(x, t, y), expected)
        assert relative(launched(net, x, t, y, number), expected) < WORSE[number] * plain
