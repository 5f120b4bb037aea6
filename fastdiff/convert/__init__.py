"""Networks and processes of other projects as fastdiff's own, and back."""

from fastdiff.convert.diffusers_config import (
    diffusion_from_scheduler,
    scheduler_from_diffusion,
    unet_config_from_diffusers,
    unet_config_to_diffusers,
)
from fastdiff.convert.diffusers_unet import from_unet, to_unet
from fastdiff.convert.layouts import from_layout, layout_names, reorder_qkv, to_layout

__all__ = [
    "diffusion_from_scheduler",
    "from_layout",
    "from_unet",
    "layout_names",
    "reorder_qkv",
    "scheduler_from_diffusion",
    "to_layout",
    "to_unet",
    "unet_config_from_diffusers",
    "unet_config_to_diffusers",
]
