"""Which runner a network gets, and why not the engine."""

import warnings

import pytest
import torch

import fastdiff as fd
from support.engine_networks import network


def test_sample_says_why_it_cannot_run_natively():
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(100)), 2)
    options = {"shape": (1, 3, 8, 8), "progress": False}
    with pytest.raises(ValueError, match=r"it runs a fastdiff\.UNet, got function"):
        fd.sample(lambda x, t: x, table, runner="native", **options)
    with pytest.raises(ValueError, match="float32"):
        fd.sample(network("ho", torch.float64), table, runner="native", dtype=torch.float64, **options)
    net = network("ho")
    fd.sample(net, table, **options)
    hook = net.middle_block[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"middle_block\.1 has one"):
        fd.sample(net, table, runner="native", **options)
    with pytest.warns(RuntimeWarning, match=r"eager runner is used.*middle_block\.1 has one"):
        fd.sample(net, table, **options)
    hook.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fd.sample(net, table, **options)


def test_sample_warns_of_a_subclass():
    class Changed(fd.UNet):
        def forward(self, x, t, y=None):
            return 2 * super().forward(x, t, y)

    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(100)), 2)
    with pytest.warns(RuntimeWarning, match=r"takes a fastdiff\.UNet, got Changed"):
        fd.sample(Changed(network("ho").config), table, shape=(1, 3, 8, 8), progress=False)
