"""Small classifiers of noisy images, with every pool."""

import copy

import torch

import fastdiff as fd
from fastdiff.nets.encoder import EncoderUNet
from support.networks import fan_scaled, two_levels

WIDE = {"channels": 16, "norm_groups": 4, "in_channels": 3, "out_channels": 7, "image_size": 16}
WIDE |= {"head_channels": 16, "attention_resolutions": (8,)}
CASES = {
    "attention": {"scale_shift_norm": True, "resblock_updown": True, "qkv_layout": "new"},
    "adaptive": {
        "scale_shift_norm": True,
        "qkv_layout": "legacy",
        "head_channels": None,
        "num_heads": 2,
        "channels": 32,
    },
    "spatial": {"downsample_padding": "symmetric", "time_embedding": "cos_sin", "resblock_updown": True},
    "spatial_v2": {"conv_resample": False, "dropout": 0.5, "num_res_blocks": 2},
}


def encoder(pool, seed=0):
    torch.manual_seed(seed)
    config = two_levels(**WIDE | CASES[pool])
    net = EncoderUNet(fan_scaled(fd.UNet(config)), pool, 16)
    for parameter in net.out.parameters():
        parameter.data.normal_(std=0.3)
    return net.eval()


def double(net):
    return copy.deepcopy(net).double()


def inputs(batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 16, 16, generator=generator), torch.arange(batch) * 300


def guided(net, x, t, y):
    """Logits, and what guidance asks for: the gradient of log p(y | x)."""
    image = x.detach().requires_grad_()
    logits = net(image, t)
    chosen = torch.log_softmax(logits, dim=-1)[range(len(y)), y]
    return logits.detach(), torch.autograd.grad(chosen.sum(), image)[0]
