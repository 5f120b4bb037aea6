"""Live networks of three projects, tiny, with what a call of each is given."""

import torch

from support import openai_networks as openai
from support import peer_lucidrains
from support.diffusers_networks import SMALL, diffusers_model
from support.networks import shaken


def make(name):
    """The network, in evaluation mode, and the arguments of a call."""
    torch.manual_seed(0)
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 5])
    if name == "diffusers":
        return diffusers_model(**SMALL), (x, t)
    if name == "diffusers, labels":
        return diffusers_model(**SMALL, num_class_embeds=7), (x, t, y)
    if name == "openai":
        return shaken(openai.whole(openai.QKVAttentionLegacy).eval(), 0.05), (x, t)
    if name == "openai, labels":
        return shaken(openai.whole(num_classes=7, use_scale_shift_norm=False).eval(), 0.05), (x, t, y)
    if name == "openai, super-resolution":
        return shaken(openai.super_res().eval(), 0.05), (x, t, torch.randn(2, 3, 4, 4))
    if name == "openai, classifier":
        return shaken(openai.Encoder("attention").eval(), 0.05), (torch.randn(2, 3, 16, 16), t)
    settings = {"dim": 16, "dim_mults": (1, 2), "self_condition": name.endswith("self-conditioned")}
    net = shaken(peer_lucidrains.load().Unet(**settings).eval(), 0.05)
    return net, (x, t, torch.randn(2, 3, 8, 8)) if net.self_condition else (x, t)


NAMES = (
    "diffusers", "diffusers, labels", "openai", "openai, labels", "openai, super-resolution", "openai, classifier",
    "lucidrains", "lucidrains, self-conditioned",
)  # fmt: skip


def value(output):
    """The tensor of an output."""
    return output if isinstance(output, torch.Tensor) else output[0]
