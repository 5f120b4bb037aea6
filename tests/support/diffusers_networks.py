"""Small networks of diffusers with random weights, one for every structure that the library converts."""

import torch
from diffusers import UNet2DModel

# google/ddpm-cifar10-32 with its channels divided by 8, and the groups with them.
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
}
SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (8, 16, 24),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
CASES = {
    "cifar10": CIFAR10,
    "small": SMALL,
    "sin_first_no_shift": SMALL | {"flip_sin_to_cos": False},
    "cos_first_shift": SMALL | {"freq_shift": 1},
    "scale_shift": SMALL | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "classes": SMALL | {"num_class_embeds": 7},
    "learned_variance_grey": SMALL | {"in_channels": 1, "out_channels": 2},
    "resnet_resampling": SMALL | RESNET,
    "fractional_width": SMALL | {"block_out_channels": (8, 12), "norm_num_groups": 4, "attention_head_dim": 4},
    "three_levels_one_head": SMALL
    | {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        "block_out_channels": (8, 8, 16),
        "attention_head_dim": None,
    },
    "one_level": SMALL
    | {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)},
}


def diffusers_model(**settings):
    """A network whose every parameter is random, the norms' and the biases' too, so that each of them shows."""
    torch.manual_seed(0)
    model = UNet2DModel(**settings).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model
