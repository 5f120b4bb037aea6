"""Small networks with every structure that the engine knows, for its tests."""

import torch

import fastdiff as fd
from support.networks import redrawn

SMALL = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "image_size": 16, "attention_resolutions": (8,)}
CONFIGS = {
    "ho": {},
    "iddpm": {
        "norm_eps": 1e-5,
        "time_embedding": "cos_sin",
        "downsample_padding": "symmetric",
        "scale_shift_norm": True,
        "qkv_layout": "legacy",
        "num_heads": 4,
        "out_channels": 6,
    },
    "adm": {
        "scale_shift_norm": True,
        "resblock_updown": True,
        "qkv_layout": "new",
        "head_channels": 32,
        "num_classes": 7,
    },
    "heads of 8 channels": {"num_heads": 8, "qkv_layout": "legacy"},
    "one head of 40 channels": {"channels": 20, "norm_groups": 5},
    "edm heads": {"qkv_layout": "edm", "num_heads": 2},
    "no resampling convs": {"conv_resample": False},
    "three levels": {"channel_mult": (1, 2, 2), "norm_groups": 16},
    "grey": {"in_channels": 1, "out_channels": 2, "channels": 48, "norm_groups": 12},
}


def network(case, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    net = fd.UNet(fd.UNetConfig(**(SMALL | CONFIGS[case]))).eval()
    return redrawn(net, 0.08).to(dtype)


# Images of 8 pixels, for Triton's interpreter, which takes milliseconds per program.
TINY_SIZE = 8


def tiny(case, device, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    config = SMALL | {"image_size": TINY_SIZE, "attention_resolutions": (4,)} | CONFIGS[case]
    return redrawn(fd.UNet(fd.UNetConfig(**config)).eval(), 0.08).to(device, dtype)


def double(net):
    copy = fd.UNet(net.config).double().eval()
    copy.load_state_dict({name: value.double() for name, value in net.state_dict().items()})
    return copy


def in_bfloat16(net):
    """PyTorch's own network of that type, as one runs it on a CPU; without gradients."""
    copy = fd.UNet(net.config).eval()
    copy.load_state_dict(net.state_dict())
    return copy.to(torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_(False)


def inputs(net, batch=3, height=16, width=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, net.config.in_channels, height, width, generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    y = (
        None
        if net.config.num_classes is None
        else torch.randint(0, net.config.num_classes, (batch,), generator=generator)
    )
    return x, t, y


def relative(actual, expected):
    return float((actual.double() - expected).abs().max() / expected.abs().max())
