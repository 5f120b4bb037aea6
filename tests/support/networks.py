"""Small networks of this library with random weights, for tests that need any network or a preset's structure."""

import torch

import fastdiff as fd
from fastdiff.nets.config import PRESETS, UNetConfig


def small_unet(num_classes: int | None = None) -> fd.UNet:
    config = fd.UNetConfig(
        image_size=8,
        in_channels=1,
        out_channels=1,
        channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        norm_groups=4,
        num_classes=num_classes,
    )
    torch.manual_seed(0)
    unet = fd.UNet(config)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


def small_preset(name, **overrides):
    """A preset with its channels divided by eight or more."""
    config = PRESETS[name]
    fields = {"channels": 16, "norm_groups": 4, "dropout": 0.0, "image_size": config.image_size, "num_res_blocks": 1}
    if config.channel_mult[0] < 1:
        fields["channels"] = 32
    fields |= {"head_channels": 4 if config.head_channels else None, "num_classes": config.num_classes and 5}
    return UNetConfig.preset(name, **{**fields, **overrides})


def random_unet(config, seed=0):
    torch.manual_seed(seed)
    unet = fd.UNet(config).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet
