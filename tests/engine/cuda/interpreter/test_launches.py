"""A plan's launches compute what the network does, in float32 and in 16 bits, and again after the weights changed."""

import pytest
import torch

import fastdiff as fd
from fastdiff.engine import lower
from fastdiff.engine.cuda.launches import make_launches
from fastdiff.engine.cuda.network import CudaNetwork
from fastdiff.engine.cuda.passes import for_gpu
from fastdiff.engine.cuda.weights import Weights
from support.engine_networks import CONFIGS, SMALL, double, inputs, relative
from support.networks import redrawn
from support.tolerances import ENGINE_NETWORK

# Images of 8 pixels: the interpreter takes milliseconds per program.
SIZE = 8
TINY = SMALL | {"image_size": SIZE, "attention_resolutions": (4,)}
# Error of 16-bit results over plain PyTorch's, at most.
WORSE = {"bfloat16": 2.0, "float16": 2.0}


def tiny(case, device, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    net = fd.UNet(fd.UNetConfig(**(TINY | CONFIGS[case]))).eval()
    return redrawn(net, 0.08).to(device, dtype)


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


def test_compiled_network_is_called_as_the_network(device):
    net = tiny("adm", device)
    x, t, y = (v.to(device) for v in inputs(net, 2, SIZE, SIZE))
    compiled = CudaNetwork(net, precision="strict")
    with torch.no_grad():
        assert relative(compiled(x, t, y), net(x, t, y)) < ENGINE_NETWORK
        assert compiled(x[:0], t[:0], y[:0]).shape == (0, 3, SIZE, SIZE)
        # Weights that change are noticed, and written where they were.
        for parameter in net.parameters():
            parameter.mul_(1.1)
        assert relative(compiled(x, t, y), net(x, t, y)) < ENGINE_NETWORK
        assert compiled.generation == 1
        net.half().float()
        assert relative(compiled(x, t, y), net(x, t, y)) < ENGINE_NETWORK
    assert "CudaNetwork(UNet of" in repr(compiled)


def test_calls_that_do_not_fit_are_refused(device):
    compiled = CudaNetwork(tiny("ho", device))
    x, t, _ = (None if v is None else v.to(device) for v in inputs(compiled.unet, 2, SIZE, SIZE))
    with pytest.raises(RuntimeError, match="no gradients"):
        compiled(x.requires_grad_(), t)
    with pytest.raises(ValueError, match="labels"):
        compiled(x.detach(), t, t)
    with pytest.raises(ValueError, match=r"fastdiff\.UNet, got Linear"):
        CudaNetwork(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="one type"):
        CudaNetwork(tiny("ho", device, torch.float64))
