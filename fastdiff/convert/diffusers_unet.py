"""A live diffusers `UNet2DModel` as a `fastdiff.UNet`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.convert.diffusers_config import (
    swaps_sin_and_cos,
    unet_config_from_diffusers,
    unet_config_to_diffusers,
)
from fastdiff.convert.layouts import Layout, from_layout, to_layout
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.fused_modules import own_class
from fastdiff.nets.unet import UNet
from fastdiff.nets.wrapped import own_tensors, plain_network

__all__ = ["build_unet", "from_unet", "tensors_from_diffusers", "to_unet"]

_FIRST_LINEAR = "time_embedding.linear_1.weight"


def to_unet(model: torch.nn.Module, *, image_size: int | None = None) -> UNet:
    """A `fastdiff.UNet` that computes what a diffusers `UNet2DModel` computes.

    Args:
        model: The network. It is left as it is; the weights are copied.
        image_size: Height of the images in pixels, where the model's configuration has no `sample_size`.

    Returns:
        Network on the model's device, in its floating type and its training mode. It is called as `unet(x, t)`, or
        `unet(x, t, y)` with labels, and gives the model's `.sample`.

    Raises:
        ValueError: the model is not a `UNet2DModel`, or has blocks or settings that `fastdiff.UNet` does not have.
    """
    if isinstance(model, torch.nn.Module):
        model = plain_network(model)
    settings: Any = getattr(model, "config", None)
    if not isinstance(settings, Mapping):
        raise ValueError(f"expected a diffusers UNet2DModel with its configuration, got {type(model).__name__}")
    settings = {"_class_name": own_class(model).__name__, **settings}
    config = unet_config_from_diffusers(settings, image_size=image_size)
    unet = build_unet(config, tensors_from_diffusers(model.state_dict(), config, settings))
    return unet.train(model.training)


def from_unet(unet: UNet) -> Any:
    """A diffusers `UNet2DModel` that computes what a `fastdiff.UNet` computes; the inverse of `to_unet`.

    Raises:
        ValueError: diffusers has no such network.
        RuntimeError: diffusers is not installed.
    """
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise RuntimeError(f"a UNet2DModel needs diffusers ({error}): pip install diffusers") from error
    settings = unet_config_to_diffusers(unet.config)
    reference = next(unet.parameters())
    model = UNet2DModel.from_config(settings).to(device=reference.device, dtype=reference.dtype)
    model.load_state_dict(to_layout(own_tensors(unet), unet.config, "diffusers"))
    return model.train(unet.training)


def tensors_from_diffusers(
    tensors: Mapping[str, Tensor], config: UNetConfig, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A `UNet`'s tensors from those of a `UNet2DModel`.

    Args:
        tensors: Of the model, with attention as to_q, to_k, to_v, to_out.0 or as query, key, value, proj_attn.
        config: What `unet_config_from_diffusers` made of the settings.
        settings: The model's configuration.
    """
    old = any(name.endswith((".query.weight", ".proj_attn.weight")) for name in tensors)
    layout: Layout = "diffusers_old" if old else "diffusers"
    if swaps_sin_and_cos(settings) and _FIRST_LINEAR in tensors:
        first = tensors[_FIRST_LINEAR]
        tensors = {**tensors, _FIRST_LINEAR: first.roll(first.shape[1] // 2, dims=1)}
    return from_layout(tensors, config, layout)


@torch.no_grad()
def build_unet(config: UNetConfig, tensors: Mapping[str, Tensor], *, device: torch.device | str | None = None) -> UNet:
    """A network with these weights, in evaluation mode. No random number is drawn.

    Args:
        config: Its configuration.
        tensors: By the names of `UNet.state_dict`; copied, in the type of the first floating one.
        device: Where it goes; where the tensors are if None.

    Raises:
        ValueError: a tensor's shape is not the network's.
    """
    with torch.device("meta"):
        unet = UNet(config)
    own = unet.state_dict()
    wrong = [
        f"{name} is {list(tensors[name].shape)} where {list(value.shape)} is expected"
        for name, value in own.items()
        if tensors[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(f"the tensors do not fit the configuration: {'; '.join(wrong[:5])}")
    first = tensors["conv_out.weight"]
    unet.to_empty(device=first.device if device is None else device).to(first.dtype)
    for name, value in unet.state_dict().items():
        value.copy_(tensors[name])
    return unet.eval()
