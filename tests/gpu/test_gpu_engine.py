"""The CUDA engine on a GPU: compiled networks, recorded rows, and what cannot be recorded."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from support.engine_networks import CONFIGS, SMALL, double, inputs, network, relative
from support.networks import redrawn
from support.tolerances import ENGINE_NETWORK, FLOAT32_RUN

pytestmark = pytest.mark.usefixtures("cuda")
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000))
# A whole small network in 16 bits against float64, over the largest value: a few dozen roundings of the type.
IN_16_BITS = {torch.bfloat16: 5e-2, torch.float16: 8e-3}


@pytest.mark.parametrize("case", CONFIGS)
def test_compiled_network_is_the_network(case):
    net = network(case)
    x, t, y = (None if v is None else v.cuda() for v in inputs(net))
    with torch.no_grad():
        expected = double(net).cuda()(x.double(), t, y)
        strict = fd.compile(net.cuda(), precision="strict")
        assert relative(strict(x, t, y), expected) < ENGINE_NETWORK
        # The second call replays a graph.
        assert relative(strict(x, t, y), expected) < ENGINE_NETWORK
        for dtype, bound in IN_16_BITS.items():
            assert relative(fd.compile(net.to(dtype))(x, t, y), expected) < bound


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "unipc", "edm"])
def test_recorded_rows_are_the_eager_loop(sampler):
    net = network("ho").cuda()
    table = getattr(fd.samplers, sampler)(DIFFUSION, 10)
    options = {"shape": (3, 3, 16, 16), "seed": 5, "progress": False}
    ours = fd.sample(net, table, runner="graph", **options)
    assert (ours - fd.sample(net, table, runner="eager", **options)).abs().max() < FLOAT32_RUN


def test_large_batch_runs_in_chunks_with_labels_and_callbacks():
    net = network("adm").cuda()
    table = fd.samplers.ddim(DIFFUSION, 4)
    labels = torch.arange(300, device="cuda") % 7
    seen = []
    options = {"shape": (300, 3, 16, 16), "progress": False, "model_kwargs": {"y": labels}, "callback_rows": [1]}
    ours = fd.sample(net, table, runner="graph", callback=lambda step: seen.append(step.x.clone()), **options)
    eager = fd.sample(net, table, runner="eager", callback=lambda step: seen.append(step.x.clone()), **options)
    assert (ours - eager).abs().max() < FLOAT32_RUN
    assert (seen[0] - seen[1]).abs().max() < FLOAT32_RUN


class Waits(nn.Module):
    """It reads a value on the host."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x, t):
        return self.inner(x) * float(t[0].item() + 1)


class Draws(nn.Module):
    """It draws from PyTorch's generator."""

    def __init__(self):
        super().__init__()
        self.noise = nn.Dropout(0.5)

    def forward(self, x, t):
        return self.noise.train()(x)


@pytest.mark.parametrize(("model", "reason"), [(Waits, "cannot be captured"), (Draws, "random generator")])
def test_what_cannot_be_recorded_is_named_and_runs_eagerly(model, reason):
    model = redrawn(model().cuda(), 0.1)
    table = fd.samplers.ddim(DIFFUSION, 3)
    options = {"shape": (2, 3, 8, 8), "progress": False}
    with pytest.raises(ValueError, match=reason):
        fd.sample(model, table, runner="graph", **options)
    with pytest.warns(RuntimeWarning, match=reason):
        fd.sample(model, table, runner="auto", **options)


def test_other_networks_are_recorded_as_they_are():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1)).cuda()

    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x) + t.view(-1, 1, 1, 1) / 1000

    table, options = fd.samplers.dpmpp_2m(DIFFUSION, 6), {"shape": (4, 3, 8, 8), "progress": False}
    ours, eager = (fd.sample(Takes().eval(), table, runner=runner, **options) for runner in ("graph", "eager"))
    assert (ours - eager).abs().max() < FLOAT32_RUN


def test_guidance_weight_is_changed_without_recording_again():
    net = redrawn(fd.UNet(fd.UNetConfig(**(SMALL | {"num_classes": 5}))).eval(), 0.05).cuda()
    table, labels = fd.samplers.ddim(DIFFUSION, 4), torch.tensor([0, 1, 2], device="cuda")
    guided = fd.guidance.ClassifierFreeGuidance(net, {"y": 4}, 2.0)
    for scale in (2.0, 5.0):
        guided.scale = scale
        options = {"shape": (3, 3, 16, 16), "progress": False, "model_kwargs": {"y": labels}}
        ours, eager = (fd.sample(guided, table, runner=runner, **options) for runner in ("graph", "eager"))
        assert (ours - eager).abs().max() < FLOAT32_RUN
