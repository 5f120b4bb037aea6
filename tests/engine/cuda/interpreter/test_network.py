"""A network compiled for a GPU is called as the network, and follows its weights."""

import pytest
import torch

from fastdiff.engine.cuda.network import CudaNetwork
from support.engine_networks import TINY_SIZE as SIZE
from support.engine_networks import inputs, relative, tiny
from support.tolerances import ENGINE_NETWORK


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
        # A setting or a hook makes it another network, or one that cannot be compiled.
        net.norm_out.eps = 0.5
        assert relative(compiled(x, t, y), net(x, t, y)) < ENGINE_NETWORK
        assert compiled.generation == 2
        hook = net.conv_out.register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match="does not call hooks, and conv_out has one"):
            compiled(x, t, y)
        hook.remove()
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
