"""Tiny U-Nets of both families with telling weights, inputs for them, and how far from float64 a result may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastdiff.nets.config import UNetConfig
from fastdiff.nets.unet import UNet

# Largest difference over largest value.
TOLERANCE = {
    # About fifty layers of float32 rounding, 6e-8 each, in two orders of summation.
    "network float32": 1e-5,
    "network float64": 1e-12,
    # One block of few operations.
    "block float64": 1e-12,
    "norm float32": 2e-6,
    # t = 1000 has a float32 spacing of 6e-5, which the sine passes on.
    "time float32": 1e-4,
    # Seven bits of mantissa, 4e-3 per rounding, over a few tens of layers.
    "network bfloat16": 3e-2,
}
TINY = UNetConfig(
    image_size=8, channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4
)
TINY_ADM = UNetConfig.from_dict(
    {
        **TINY.to_dict(),
        "out_channels": 6,
        "head_channels": 8,
        "norm_eps": 1e-5,
        "time_embedding": "cos_sin",
        "downsample_padding": "symmetric",
        "scale_shift_norm": True,
        "resblock_updown": True,
        "num_classes": 10,
        "qkv_layout": "legacy",
    }
)
CONFIGS = {"ho": TINY, "adm": TINY_ADM}


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter with values that keep activations near one and leave nothing at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() > 1:
            value = noise / math.sqrt(parameter[0].numel())
        else:
            value = 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        parameter.data.copy_(value)


def make_unet(config: UNetConfig, dtype: torch.dtype = torch.float32) -> UNet:
    unet = UNet(config)
    randomize(unet)
    return unet.to(dtype).eval()


def make_inputs(
    config: UNetConfig, batch: int = 2, size: tuple[int, int] = (8, 8), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, *size, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    if config.num_classes is None:
        return x, t
    return x, t, torch.randint(0, config.num_classes, (batch,), generator=generator)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max())


class Waves(nn.Module):
    """diffusers' time_proj in float64, which its own does not offer: the same formula, one number at a time."""

    def __init__(self, channels: int, *, cos_first: bool, shift: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.cos_first = cos_first
        self.shift = shift

    def forward(self, t: Tensor) -> Tensor:
        functions = (math.cos, math.sin) if self.cos_first else (math.sin, math.cos)
        rates = [10_000.0 ** (-i / (self.half - self.shift)) for i in range(self.half)]
        rows = [[f(float(time) * rate) for f in functions for rate in rates] for time in t]
        return torch.tensor(rows, dtype=torch.float64)
