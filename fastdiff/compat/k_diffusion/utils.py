"""k-diffusion's `utils`: what its samplers, wrappers and scripts take from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastdiff.compat.k_diffusion import _densities, _rates
from fastdiff.compat.k_diffusion._densities import *  # noqa: F403
from fastdiff.compat.k_diffusion._missing import missing
from fastdiff.compat.k_diffusion._rates import *  # noqa: F403

__all__ = [
    "append_dims",
    "ema_update",
    "ema_update_dict",
    "eval_mode",
    "from_pil_image",
    "n_params",
    "to_pil_image",
    "train_mode",
]
__all__ += _densities.__all__
__all__ += _rates.__all__

_PICTURES = ("L", "LA", "RGB", "RGBA")
_ELSEWHERE = {
    "CSVLogger": "fastdiff's trainer writes metrics.jsonl, and csv is in Python",
    "FolderOfImages": "fastdiff.data reads folders of pictures",
    "download_file": "nothing here downloads; torch.hub.download_url_to_file does",
    "get_safetensors_metadata": "safetensors.safe_open(path, 'pt').metadata() is the same",
    "hf_datasets_augs_helper": "take it from k_diffusion, or fastdiff.data for folders and arrays",
    "tf32_mode": "set torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32",
}


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """x with dimensions of size 1 at its end, `target_dims` in all.

    Raises:
        ValueError: x has more dimensions.
    """
    missing_dims = target_dims - x.ndim
    if missing_dims < 0:
        raise ValueError(f"input has {x.ndim} dims but target_dims is {target_dims}, which is less")
    return x[(..., *[None] * missing_dims)]


def from_pil_image(x: Image.Image) -> Tensor:
    """A picture as [C, H, W] float32 in [-1, 1].

    Raises:
        ValueError: it has another mode than 8 bits of grey or colour, with or without transparency.
    """
    if x.mode not in _PICTURES:
        raise ValueError(f"the picture's mode must be one of {', '.join(_PICTURES)}, got {x.mode!r}: x.convert('RGB')")
    pixels = torch.from_numpy(np.array(x, ndmin=3) if x.mode != "L" else np.array(x)[..., None])
    return pixels.permute(2, 0, 1).contiguous().float() / 255 * 2 - 1


def to_pil_image(x: Tensor) -> Image.Image:
    """The picture of [C, H, W] or [1, C, H, W] in [-1, 1], clamped; a value between two of 8 bits becomes the lower.

    Raises:
        ValueError: several images, or channels that no picture has.
    """
    pixels = x[0] if x.ndim == 4 and x.shape[0] == 1 else x
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or not 1 <= pixels.shape[0] <= len(_PICTURES):
        raise ValueError(f"x must be one image of 1 to 4 channels, [C, H, W] or [1, C, H, W], got {list(x.shape)}")
    values = ((pixels.detach().cpu().clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    array = values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array)


def n_params(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def train_mode(model: nn.Module, mode: bool = True) -> Iterator[nn.Module]:
    """Within it the module is in training mode, or in evaluation mode; each part then gets its own mode back."""
    before = [(part, part.training) for part in model.modules()]
    try:
        yield model.train(mode)
    finally:
        for part, training in before:
            part.training = training


def eval_mode(model: nn.Module) -> Any:
    """`train_mode` for evaluation; a decorator as well."""
    return train_mode(model, False)


@torch.no_grad()
def ema_update(model: nn.Module, averaged_model: nn.Module, decay: float) -> None:
    """Move an average's parameters by 1 - decay to a model's, and copy its buffers.

    Raises:
        ValueError: the two do not have the same parameters and buffers.
    """
    kinds = ("named_parameters", "named_buffers")
    pairs = [(dict(getattr(model, kind)()), dict(getattr(averaged_model, kind)())) for kind in kinds]
    for new, average in pairs:
        if differ := sorted(new.keys() ^ average.keys()):
            raise ValueError(
                f"the average must have the model's parameters and buffers, and they differ in {differ[:5]}"
            )
    (parameters, averages), (buffers, copies) = pairs
    for name, value in parameters.items():
        averages[name].lerp_(value, 1 - decay)
    for name, value in buffers.items():
        copies[name].copy_(value)


def ema_update_dict(values: dict[str, Any], updates: Mapping[str, Any], decay: float) -> dict[str, Any]:
    """Move averages by 1 - decay to new values, in place; a new name begins at its value."""
    for name, value in updates.items():
        values[name] = value if name not in values else decay * values[name] + (1 - decay) * value
    return values


def __getattr__(name: str) -> Any:
    return missing(name, __name__, _ELSEWHERE)
