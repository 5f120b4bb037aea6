"""A small network and process made by the drop-in's own factory, from OpenAI's flags."""

import torch

from fastdiff.compat.guided_diffusion import script_util
from support.networks import shaken

FLAGS = {
    "num_channels": 32,
    "num_res_blocks": 1,
    "image_size": 32,
    "channel_mult": "1,2",
    "attention_resolutions": "16",
}


FLAGS |= {"num_heads": 2, "diffusion_steps": 20}


def tiny_model(**flags):
    torch.manual_seed(0)
    model, diffusion = script_util.create_model_and_diffusion(
        **{**script_util.model_and_diffusion_defaults(), **FLAGS, **flags}
    )
    return shaken(model, 0.05).eval(), diffusion
