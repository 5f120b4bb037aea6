"""Small networks of this library with random weights, for tests that need any network or a preset's structure."""

import torch
from torch import Tensor, nn

import fastdiff as fd
from fastdiff.files.data import DataScaling
from fastdiff.nets.config import PRESETS, UNetConfig


def shaken(module: nn.Module, scale: float) -> nn.Module:
    """The module with noise of the given scale on every parameter: none is left at its 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def redrawn(module: nn.Module, std: float) -> nn.Module:
    """The module with every parameter drawn anew from N(0, std^2)."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def one_level(**changes) -> UNetConfig:
    """The smallest network: one level of 8 channels on grey images of 4x4 pixels, without attention."""
    fields = {"image_size": 4, "in_channels": 1, "out_channels": 1, "channels": 8, "channel_mult": (1,)}
    fields |= {"num_res_blocks": 1, "attention_resolutions": (), "norm_groups": 4}
    return UNetConfig(**(fields | changes))


def two_levels(**changes) -> UNetConfig:
    """Two levels of 8 and 16 channels on grey images of 8x8 pixels, with attention at 4x4."""
    return one_level(**({"image_size": 8, "channel_mult": (1, 2), "attention_resolutions": (4,)} | changes))


def small_preset(name: str, **overrides) -> UNetConfig:
    """A preset with its channels divided by eight or more."""
    config = PRESETS[name]
    fields = {"channels": 16, "norm_groups": 4, "dropout": 0.0, "image_size": config.image_size, "num_res_blocks": 1}
    if config.channel_mult[0] < 1:
        fields["channels"] = 32
    fields |= {"head_channels": 4 if config.head_channels else None, "num_classes": config.num_classes and 5}
    return UNetConfig.preset(name, **{**fields, **overrides})


def small_unet(num_classes: int | None = None) -> fd.UNet:
    """Two levels, shaken, in training mode."""
    torch.manual_seed(0)
    return shaken(fd.UNet(two_levels(num_classes=num_classes)), 0.05)


def random_unet(config: UNetConfig, seed: int = 0) -> fd.UNet:
    """A network of any configuration, shaken, in evaluation mode."""
    torch.manual_seed(seed)
    return shaken(fd.UNet(config).eval(), 0.1)


def small_pipeline(scale: float = 1.0, levels: int = 17) -> fd.Pipeline:
    """The small network with its last layer scaled, a process of six steps, and pixels of `levels` values."""
    unet = small_unet()
    with torch.no_grad():
        unet.conv_out.weight.mul_(scale)
    return fd.Pipeline(unet, fd.Diffusion(fd.NoiseSchedule.cosine(6)), DataScaling(levels))


def fan_scaled(model: nn.Module) -> nn.Module:
    """The module with random weights everywhere, by their fan-in: some layers start at 0 and would hide the others."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return model


def image(channels: int = 3, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two random images."""
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)
