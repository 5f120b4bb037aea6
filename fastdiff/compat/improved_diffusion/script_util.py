"""Networks and processes from the flags of improved-diffusion's scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdiff.compat.guided_diffusion import script_util as guided
from fastdiff.compat.guided_diffusion._signatures import with_flags
from fastdiff.compat.guided_diffusion.respace import SpacedDiffusion
from fastdiff.compat.guided_diffusion.script_util import (
    NUM_CLASSES,
    add_dict_to_argparser,
    args_to_dict,
    create_gaussian_diffusion,
    str2bool,
)
from fastdiff.compat.improved_diffusion.unet import SuperResModel, UNetModel

__all__ = [
    "NUM_CLASSES",
    "add_dict_to_argparser",
    "args_to_dict",
    "create_gaussian_diffusion",
    "create_model",
    "create_model_and_diffusion",
    "model_and_diffusion_defaults",
    "sr_create_model",
    "sr_create_model_and_diffusion",
    "sr_model_and_diffusion_defaults",
    "str2bool",
]

_DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "attention_resolutions": "16,8",
    "dropout": 0.0,
    "learn_sigma": False,
    "sigma_small": False,
    "class_cond": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": True,
    "rescale_learned_sigmas": True,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
}
_MULTS = {256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}
_SR_SIZES = {"large_size": 256, "small_size": 64}
# Flags in the order of their functions' arguments.
_NETWORK_FLAGS = (
    "num_channels", "num_res_blocks", "learn_sigma", "class_cond", "use_checkpoint", "attention_resolutions",
    "num_heads", "num_heads_upsample", "use_scale_shift_norm", "dropout",
)  # fmt: skip
_PROCESS_FLAGS = (
    "diffusion_steps", "noise_schedule", "timestep_respacing", "use_kl", "predict_xstart", "rescale_timesteps",
    "rescale_learned_sigmas",
)  # fmt: skip
_SHARED = (
    "num_channels", "num_res_blocks", "num_heads", "num_heads_upsample", "attention_resolutions", "dropout",
    *_PROCESS_FLAGS, "use_checkpoint", "use_scale_shift_norm",
)  # fmt: skip
_FLAGS = ("image_size", "class_cond", "learn_sigma", "sigma_small", *_SHARED)
_SR_FLAGS = ("large_size", "small_size", "class_cond", "learn_sigma", *_SHARED)
_VALUES = {**_DEFAULTS, **_SR_SIZES}


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Flags of a network and its process, with their defaults."""
    return dict(_DEFAULTS)


def sr_model_and_diffusion_defaults() -> dict[str, Any]:
    """Flags of a super-resolution network and its process, with their defaults."""
    return {name: _VALUES[name] for name in (*_DEFAULTS, *_SR_SIZES) if name in _SR_FLAGS}


@with_flags(_FLAGS, _VALUES)
def create_model_and_diffusion(**flags: Any) -> tuple[UNetModel, SpacedDiffusion]:
    """A network and its process; see `create_model` and `create_gaussian_diffusion`."""
    model = create_model(**{name: flags[name] for name in ("image_size", *_NETWORK_FLAGS)})
    return model, _process(flags, sigma_small=flags["sigma_small"])


@with_flags(("image_size", *_NETWORK_FLAGS), _VALUES)
def create_model(**flags: Any) -> UNetModel:
    """A network for RGB images of 32, 64 or 256 pixels; `attention_resolutions` are sizes in pixels, such as "16,8".

    Raises:
        ValueError: another image size, or settings that `fastdiff.UNet` does not have.
    """
    return UNetModel(**_arguments(flags, flags["image_size"]))


@with_flags(_SR_FLAGS, _VALUES)
def sr_create_model_and_diffusion(**flags: Any) -> tuple[SuperResModel, SpacedDiffusion]:
    """A super-resolution network and its process."""
    model = sr_create_model(**{name: flags[name] for name in (*_SR_SIZES, *_NETWORK_FLAGS)})
    return model, _process(flags)


@with_flags((*_SR_SIZES, *_NETWORK_FLAGS), _VALUES)
def sr_create_model(**flags: Any) -> SuperResModel:
    """A network that makes images of `large_size` from such of any smaller size; `small_size` is not read."""
    return SuperResModel(**_arguments(flags, flags["large_size"]))


def _process(flags: Mapping[str, Any], *, sigma_small: bool = False) -> SpacedDiffusion:
    options = {name: flags[name] for name in ("learn_sigma", *_PROCESS_FLAGS) if name != "diffusion_steps"}
    return create_gaussian_diffusion(steps=flags["diffusion_steps"], sigma_small=sigma_small, **options)


def _arguments(flags: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The constructor's arguments."""
    if image_size not in _MULTS:
        raise ValueError(f"unsupported image size: {image_size}; it is one of {', '.join(map(str, _MULTS))}")
    kept = ("num_res_blocks", "dropout", "use_checkpoint", "num_heads", "num_heads_upsample", "use_scale_shift_norm")
    return {name: flags[name] for name in kept} | {
        "image_size": image_size,
        "in_channels": 3,
        "model_channels": flags["num_channels"],
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "attention_resolutions": guided.attention_rates(image_size, flags["attention_resolutions"]),
        "channel_mult": _MULTS[image_size],
        "num_classes": NUM_CLASSES if flags["class_cond"] else None,
    }
