"""What images are compared by: features of a network, or of the pixels themselves.

* builtin: a small convolutional network with fixed random weights. For tests and quick looks: its distances compare
  with each other alone, never with a published FID.
* pixels: the pixels in [-1, 1], for images of a few hundred values.
* inception:FILE, dinov2:FOLDER, and NAME.pt, a TorchScript module: see `fastdiff.evaluation.feature_files`.

Nothing is ever downloaded.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from fastdiff.evaluation import feature_files
from fastdiff.evaluation.feature_values import Features
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name
from fastdiff.process.noise import Stream, normals

__all__ = ["FORMS", "open_features"]

FORMS = "'builtin', 'pixels', 'inception:FILE', 'dinov2:FOLDER' or the path of a TorchScript module (.pt)"
# A covariance of more values takes gigabytes.
MOST_PIXELS = 4096
# Output channels of the layers of the built-in network.
_WIDTHS = (32, 64, 128)
_SEED = 20260101


def open_features(text: str, channels: int, device: torch.device | str = "cpu") -> Features:
    """The features that are called so.

    Args:
        text: One of `FORMS`.
        channels: Of the images.
        device: Where a network goes.

    Raises:
        ValueError: another name, or a file that is missing or something else.
        RuntimeError: a library that the network needs is not installed.
    """
    if text == "pixels":
        return Features(text, _pixels, False, {"resize": "none"})
    if text == "builtin":
        return builtin(channels, device)
    kind, colon, path = text.partition(":")
    if colon and kind in feature_files.KINDS:
        return feature_files.KINDS[kind](text, path, torch.device(device))
    if text.lower().endswith((".pt", ".pth", ".ts", ".torchscript")):
        return feature_files.torchscript(text, text, torch.device(device))
    names = ["builtin", "pixels", *feature_files.KINDS]
    raise ValueError(f"unknown {spelt('features')} {text!r}: {nearest_name(kind, names)}; give {FORMS}")


def builtin(channels: int, device: torch.device | str = "cpu") -> Features:
    """The built-in network: three convolutions of stride 2 with weights of a fixed seed; 416 features.

    Of the first and third layer the mean of each channel is kept, of the second the means of four quarters.

    Args:
        channels: Of the images.
        device: Where it goes.
    """
    weights, inputs = [], channels
    for row, outputs in enumerate(_WIDTHS):
        values = normals(_SEED, np.arange(outputs), 9 * inputs, Stream.INITIAL, row)
        # The scale that keeps the variance through a ReLU.
        scale = np.float32(np.sqrt(2 / (9 * inputs)))
        weight = torch.from_numpy(values * scale).view(outputs, inputs, 3, 3).to(device)
        weights.append(weight.contiguous(memory_format=torch.channels_last))
        inputs = outputs
    # The first layer sees pixels / 127.5 - 1, with black around the image.
    bias = -weights[0].sum(dim=(1, 2, 3))
    weights[0] = weights[0] / 127.5

    def compute(images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = images.to(weights[0].device, torch.float32, memory_format=torch.channels_last)
        found = []
        for layer, weight in enumerate(weights):
            x = functional.conv2d(x, weight, bias if layer == 0 else None, stride=2, padding=1).relu_()
            grid = functional.adaptive_avg_pool2d(x, 2) if layer == 1 else x.mean(dim=(2, 3))
            found.append(grid.flatten(1))
        return torch.cat(found, dim=1), None

    note = "fixed random weights, for tests and quick looks: not comparable with a published FID"
    return Features("builtin", compute, False, {"resize": "none", "note": note})


def _pixels(images: Tensor) -> tuple[Tensor, Tensor | None]:
    flat = images.flatten(1)
    if flat.shape[1] > MOST_PIXELS:
        raise ValueError(
            f"{spelt('features', 'the features')} pixels are for images of at most {MOST_PIXELS:,} values, and these "
            f"have {flat.shape[1]:,}: take the features of a network"
        )
    return flat.to(torch.float32) / 127.5 - 1, None
