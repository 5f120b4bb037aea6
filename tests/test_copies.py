"""Every public network and wrapper: a copy and a pickle of it compute the same, and then with weights of their own."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.compat import k_diffusion, lucidrains
from fastdiff.compat.guided_diffusion import script_util, unet
from fastdiff.sampling import guidance
from support.networks import shaken, small_unet, two_levels

PROCESS = fd.Diffusion(fd.NoiseSchedule.cosine(20))
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([3, 4])
LEVELS = torch.tensor([1.0, 2.0])


def plain():
    return small_unet().eval()


def openai(kind=unet.UNetModel, **options):
    torch.manual_seed(0)
    settings = {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 1, "num_res_blocks": 1}
    settings |= {"attention_resolutions": (2,), "channel_mult": (1, 2)} | options
    return shaken(kind(**settings), 0.05).eval()


def lucidrains_unet():
    torch.manual_seed(0)
    return shaken(lucidrains.Unet(8, dim_mults=(1, 2), channels=1), 0.05).eval()


def accelerated():
    network = openai()
    fd.accelerate(network)
    return network


def labelled():
    return fd.UNet(two_levels(num_classes=3)).eval()


def gradient(x, t, **kwargs):
    return torch.zeros_like(x)


def image(network):
    return network(IMAGES, TIMES)


def seeded(process):
    torch.manual_seed(1)
    return process.sample(1)


def denoised(denoiser):
    return denoiser(IMAGES, LEVELS)


SIGNAL = torch.tensor(PROCESS.schedule.alphas_cumprod, dtype=torch.float32)
# How it is made, and a result of it.
KINDS = {
    "UNet": (plain, image),
    "UNetModel": (openai, image),
    "UNetModel, recomputing": (lambda: openai(use_checkpoint=True), image),
    "SuperResModel": (
        lambda: openai(unet.SuperResModel, use_checkpoint=True),
        lambda network: network(IMAGES, TIMES, low_res=IMAGES[..., ::2, ::2]),
    ),
    "EncoderUNetModel": (lambda: openai(unet.EncoderUNetModel, use_checkpoint=True), image),
    "classifier": (
        lambda: script_util.create_classifier(64, False, 32, 1, "32", True, True, "adaptive").eval(),
        lambda network: network.input_blocks[1](torch.ones(1, 32, 8, 8), torch.ones(1, 128)),
    ),
    "lucidrains Unet": (lucidrains_unet, image),
    "lucidrains GaussianDiffusion": (
        lambda: lucidrains.GaussianDiffusion(lucidrains_unet(), image_size=8, timesteps=10, sampling_timesteps=2),
        seeded,
    ),
    "accelerated": (accelerated, image),
    "compiled": (lambda: fd.compile(plain()), image),
    "torch.compile": (lambda: torch.compile(openai(), backend="eager"), image),
    "ClassifierFreeGuidance": (
        lambda: guidance.ClassifierFreeGuidance(labelled(), {"y": 0}, 2.0),
        lambda network: network(IMAGES, TIMES, y=torch.tensor([1, 2])),
    ),
    "AutoGuidance": (lambda: guidance.AutoGuidance(plain(), plain(), 1.5), image),
    "AutoGuidance, compiled": (lambda: guidance.AutoGuidance(fd.compile(plain()), plain(), 1.5), image),
    "ClassifierGuidance": (lambda: guidance.ClassifierGuidance(plain(), gradient, PROCESS), image),
    "Pipeline": (lambda: fd.Pipeline(plain(), PROCESS), lambda pipe: pipe.sample(1, steps=2)),
    "Pipeline, UNetModel": (
        lambda: fd.Pipeline(openai(), PROCESS),
        lambda pipe: pipe.sample(1, steps=2, runner="eager"),
    ),
    "Views": (lambda: fd.Pipeline(plain(), PROCESS).views(), lambda views: views.eps(IMAGES, TIMES)),
    "DiscreteEpsDDPMDenoiser": (
        lambda: k_diffusion.DiscreteEpsDDPMDenoiser(plain(), SIGNAL, quantize=False),
        denoised,
    ),
    "VDenoiser": (lambda: k_diffusion.VDenoiser(plain()), denoised),
    "DenoiserFromNetwork": (lambda: k_diffusion.DenoiserFromNetwork(plain(), PROCESS), denoised),
    "NetworkFromDenoiser": (
        lambda: k_diffusion.NetworkFromDenoiser(k_diffusion.DenoiserFromNetwork(plain(), PROCESS), PROCESS),
        image,
    ),
}


def parameters(thing):
    """Of a network, or of what holds one."""
    if isinstance(thing, nn.Module):
        found = list(thing.parameters())
        held = getattr(thing, "model", None)
        return found if held is None or isinstance(held, nn.Module) else found + parameters(held)
    return parameters(thing.model if hasattr(thing, "model") else thing.unet)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_compute_with_their_own_weights(kind, how):
    make, result = KINDS[kind]
    original = make()
    with torch.no_grad():
        before = result(original)
        other = how(original)
        assert torch.equal(result(other), before)
        for parameter in parameters(other):
            parameter.mul_(0.5).add_(0.1)
        assert not torch.equal(result(other), before)
        assert torch.equal(result(original), before)
        for parameter, source in zip(parameters(other), parameters(original), strict=True):
            parameter.copy_(source)
        assert torch.equal(result(other), before)


@pytest.mark.parametrize("kind", ["UNet", "UNetModel", "SuperResModel", "EncoderUNetModel", "classifier"])
def test_pickled_networks_keep_the_names_of_their_state_dict(kind):
    network = KINDS[kind][0]()
    again = pickle.loads(pickle.dumps(network))
    assert list(again.state_dict()) == list(network.state_dict())
    again.load_state_dict(network.state_dict())
