"""Networks of the shape that OpenAI's and Ho's files have, and what makes one equal another."""

import torch

from fastdiff import convert
from fastdiff.nets.config import UNetConfig


def tiny(**overrides):
    fields = {
        "image_size": 8,
        "out_channels": 6,
        "channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "dropout": 0.0,
        "num_heads": 2,
        "norm_eps": 1e-5,
        "time_embedding": "cos_sin",
        "downsample_padding": "symmetric",
        "scale_shift_norm": True,
        "qkv_layout": "legacy",
    }
    return UNetConfig.from_dict({**fields, **overrides})


def ho(**overrides):
    fields = {"image_size": 8, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
    return UNetConfig.from_dict({**fields, "attention_resolutions": (4,), "dropout": 0.0, **overrides})


def openai_state(unet, **options):
    return convert.to_layout(unet.state_dict(), unet.config, "openai", **options)


@torch.no_grad()
def assert_same_network(pipe, unet, tolerance=0.0):
    config = unet.config
    x = torch.randn(2, config.in_channels, 8, 8, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([1, 40])
    y = None if config.num_classes is None else torch.tensor([0, 1])
    expected = unet(x, t, y)
    assert (pipe.unet(x, t, y) - expected).abs().max() <= tolerance * expected.abs().max()
