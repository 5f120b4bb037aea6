"""Whether network, process, data and settings fit each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastdiff.data.source import ImageSource
from fastdiff.nets.conditions import ImageCondition
from fastdiff.nets.unet import UNet
from fastdiff.nets.wrapped import own_tensors, plain_network
from fastdiff.process.arguments import spelt
from fastdiff.process.diffusion import Diffusion
from fastdiff.training.augmentation import NUM_LABELS
from fastdiff.training.config import TrainConfig
from fastdiff.training.objectives import check_objective

__all__ = ["check_fit", "plain_unet"]


def plain_unet(model: nn.Module) -> UNet:
    given: Any = model
    unet = plain_network(given) if isinstance(given, nn.Module) else given
    if not isinstance(unet, UNet):
        raise TypeError(f"unet must be a fastdiff.UNet, got {type(unet).__name__}: checkpoints hold no other network")
    # What could not be saved, or not be loaded again, is refused before it is trained.
    own_tensors(unet)
    return unet


def check_fit(unet: UNet, diffusion: Diffusion, data: ImageSource, config: TrainConfig) -> None:
    channels, height, width = data.shape
    network = unet.config
    if len(data) == 0:
        raise ValueError("there are no images to train on")
    check_objective(diffusion, config)
    wanted, what = channels, f"the images have {channels} channels"
    if config.condition is not None:
        condition = ImageCondition(config.condition)
        condition.check_size(height, width)
        wanted += condition.channels(channels)
        what += f", and their condition {config.condition} has {wanted - channels}"
    if network.in_channels != wanted:
        raise ValueError(f"{what}, but the network takes {network.in_channels}")
    if network.out_channels != diffusion.model_channels(channels):
        raise ValueError(
            f"with variance {diffusion.variance!r} the network needs {diffusion.model_channels(channels)} out_channels "
            f"for images of {channels} channels, got {network.out_channels}"
        )
    if height % network.size_divisor or width % network.size_divisor:
        raise ValueError(f"height and width must be multiples of {network.size_divisor}, got {height}x{width} images")
    data.check()
    if network.num_classes is not None:
        if data.labels is None:
            raise ValueError(f"the network takes {network.num_classes} classes, but the images have no labels")
        low, high = int(data.labels.min()), int(data.labels.max())
        if low < 0 or high >= network.num_classes:
            raise ValueError(f"labels must be in 0..{network.num_classes - 1}, got {low}..{high}")
    if config.label_dropout:
        if network.num_classes is None or data.labels is None:
            raise ValueError(
                f"label_dropout is for a network with classes, and this one has none; got {config.label_dropout}"
            )
        if int(data.labels.max()) == network.num_classes - 1:
            raise ValueError(
                f"label_dropout needs a null class behind those of the data: give the network num_classes = "
                f"{network.num_classes + 1}, got {network.num_classes}, whose last the data use"
            )
    if config.augment and network.augment_channels != NUM_LABELS:
        raise ValueError(
            f"augment tells the network {NUM_LABELS} labels, and it takes {network.augment_channels or 'none'}: give "
            f"it augment_channels = {NUM_LABELS}, or leave out {spelt('augment')}"
        )
    types = {parameter.dtype for parameter in unet.parameters()}
    if types != {torch.float32}:
        raise ValueError(f"the network must be float32 to be trained, got {', '.join(sorted(map(str, types)))}")
