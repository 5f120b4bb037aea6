"""The flags of improved- and guided-diffusion's scripts as configurations, and back."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastdiff.nets.config import UNetConfig
from fastdiff.process.checks import check_keys
from fastdiff.process.diffusion import Diffusion, Variance
from fastdiff.process.schedule import NoiseSchedule, recognise_schedule

__all__ = [
    "CHANNEL_MULTS",
    "FLAG_DEFAULTS",
    "NUM_CLASSES",
    "diffusion_from_flags",
    "flags_from_model",
    "parse_flags",
    "rescaled",
    "unet_config_from_flags",
    "why_not_openai",
]

NUM_CLASSES = 1000
"""Classes of a network with class_cond, fixed in their code."""

CHANNEL_MULTS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Multipliers by image size, where the flag is left empty."""

FLAG_DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}
"""guided-diffusion's flags of a model and its process, with their defaults.

improved-diffusion has sigma_small (False) as well, and rescale_timesteps and rescale_learned_sigmas are True there.
"""

# Of the scripts: how to sample or train, not what the network is.
_SCRIPT_FLAGS = (
    "batch_size",
    "num_samples",
    "use_ddim",
    "model_path",
    "clip_denoised",
    "data_dir",
    "classifier_path",
    "classifier_scale",
    "schedule_sampler",
    "lr",
    "weight_decay",
    "lr_anneal_steps",
    "microbatch",
    "ema_rate",
    "log_interval",
    "save_interval",
    "resume_checkpoint",
    "fp16_scale_growth",
)


def parse_flags(flags: str | Mapping[str, Any]) -> dict[str, Any]:
    """Flags as typed values, from their command line or a mapping.

    Args:
        flags: "--image_size 64 --learn_sigma True", or the same as names and values.

    Raises:
        ValueError: a flag is unknown, has no value, or its value cannot be read.
    """
    if isinstance(flags, str):
        words = shlex.split(flags.replace("=", " "))
        if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
            raise ValueError(f"flags must be pairs '--name value', got {flags!r}")
        flags = {word[2:]: value for word, value in zip(words[::2], words[1::2], strict=True)}
    known = {**FLAG_DEFAULTS, "sigma_small": False}
    check_keys(dict(flags), [*known, *_SCRIPT_FLAGS], "OpenAI's flags")
    return {name: _typed(name, value, known[name]) for name, value in flags.items() if name in known}


def unet_config_from_flags(flags: Mapping[str, Any]) -> UNetConfig:
    """The network of a set of flags, as `create_model` of their code would build it.

    Args:
        flags: What `parse_flags` gives; what is left out has guided-diffusion's default.

    Raises:
        ValueError: an image size without multipliers, or a network that `fastdiff.UNet` does not have.
    """
    given = {**FLAG_DEFAULTS, **flags}
    size = given["image_size"]
    mults = given["channel_mult"]
    if mults == "":
        if size not in CHANNEL_MULTS:
            raise ValueError(f"unsupported image size: {size}; give channel_mult, such as '1,2,2,2'")
        mults = CHANNEL_MULTS[size]
    elif isinstance(mults, str):
        mults = tuple(float(part) if "." in part else int(part) for part in mults.split(","))
    heads, upsample_heads = given["num_heads"], given["num_heads_upsample"]
    if upsample_heads not in (-1, heads) and given["num_head_channels"] == -1:
        raise ValueError(f"num_heads_upsample={upsample_heads} must equal num_heads={heads} in fastdiff.UNet")
    # Sizes beyond the lowest level are never reached, and their code takes them without a word.
    sizes = [size >> level for level in range(len(mults))]
    attention = [int(part) for part in str(given["attention_resolutions"]).split(",") if part]
    return UNetConfig(
        image_size=size,
        in_channels=3,
        out_channels=6 if given["learn_sigma"] else 3,
        channels=given["num_channels"],
        channel_mult=tuple(mults),
        num_res_blocks=given["num_res_blocks"],
        attention_resolutions=tuple(part for part in attention if part in sizes),
        dropout=given["dropout"],
        num_heads=heads,
        head_channels=None if given["num_head_channels"] == -1 else given["num_head_channels"],
        norm_groups=32,
        norm_eps=1e-5,
        time_embedding="cos_sin",
        downsample_padding="symmetric",
        scale_shift_norm=given["use_scale_shift_norm"],
        resblock_updown=given["resblock_updown"],
        num_classes=NUM_CLASSES if given["class_cond"] else None,
        qkv_layout="new" if given["use_new_attention_order"] else "legacy",
    )


def diffusion_from_flags(flags: Mapping[str, Any]) -> Diffusion:
    """The process of a set of flags that the network was trained on; `timestep_respacing` is the sampler's.

    Raises:
        ValueError: an unknown schedule, or `rescale_timesteps` left out where T is not 1000: improved-diffusion's
            default is True and guided-diffusion's False, and the network must see the times it was trained on.
    """
    given = {**FLAG_DEFAULTS, **flags}
    num = given["diffusion_steps"]
    if num != 1000 and "rescale_timesteps" not in flags:
        raise ValueError(
            f"with diffusion_steps={num} give rescale_timesteps as well: improved-diffusion's default is True, "
            "guided-diffusion's is False"
        )
    if given["noise_schedule"] not in ("linear", "cosine"):
        raise ValueError(f"unknown beta schedule: {given['noise_schedule']!r}; it is linear or cosine")
    schedule = NoiseSchedule.named(given["noise_schedule"], num)
    if given["rescale_timesteps"]:
        schedule = rescaled(schedule)
    fixed: Variance = "fixed_small" if given.get("sigma_small") else "fixed_large"
    variance: Variance = "learned_range" if given["learn_sigma"] else fixed
    return Diffusion(schedule, "x0" if given["predict_xstart"] else "eps", variance)


def rescaled(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule whose network sees times in [0, 1000) whatever T is (their `rescale_timesteps`)."""
    num = len(schedule)
    return NoiseSchedule(schedule.betas, np.arange(num, dtype=np.float64) * (1000.0 / num), schedule.name)


def flags_from_model(config: UNetConfig, diffusion: Diffusion) -> dict[str, Any]:
    """The flags that make their code build this network and process; see `why_not_openai`."""
    flags = {
        **FLAG_DEFAULTS,
        "image_size": config.image_size,
        "num_channels": config.channels,
        "num_res_blocks": config.num_res_blocks,
        "num_heads": config.num_heads,
        "num_head_channels": -1 if config.head_channels is None else config.head_channels,
        "attention_resolutions": ",".join(str(size) for size in config.attention_resolutions),
        "channel_mult": ",".join(f"{mult:g}" for mult in config.channel_mult),
        "dropout": config.dropout,
        "class_cond": config.num_classes is not None,
        "use_scale_shift_norm": config.scale_shift_norm,
        "resblock_updown": config.resblock_updown,
        "use_new_attention_order": config.qkv_layout in ("new", "separate"),
        "learn_sigma": diffusion.variance == "learned_range",
        "diffusion_steps": diffusion.num_timesteps,
        "noise_schedule": _schedule_flag(diffusion.schedule) or diffusion.schedule.name,
        "predict_xstart": diffusion.prediction == "x0",
        "rescale_timesteps": diffusion.num_timesteps != 1000
        and np.array_equal(diffusion.schedule.timesteps, rescaled(diffusion.schedule).timesteps),
    }
    if diffusion.variance == "fixed_small":
        flags["sigma_small"] = True
    return flags


def why_not_openai(config: UNetConfig, diffusion: Diffusion) -> list[str]:
    """What their code does otherwise than this model; empty where it computes the same.

    The weights can be written in their names all the same: fastdiff reads them back, their code would compute
    something else.
    """
    fixed = {"norm_eps": 1e-5, "norm_groups": 32, "time_embedding": "cos_sin"}
    if not config.resblock_updown and config.conv_resample and len(config.channel_mult) > 1:
        fixed["downsample_padding"] = "symmetric"
    reasons = [
        f"{name} is {theirs!r} there, {getattr(config, name)!r} here"
        for name, theirs in fixed.items()
        if getattr(config, name) != theirs
    ]
    if not config.conv_resample and not config.resblock_updown:
        reasons.append("their scripts have no flag for conv_resample=False")
    if config.in_channels != 3 or config.out_channels not in (3, 6):
        reasons.append(f"images have 3 channels there, {config.in_channels} here")
    if config.num_classes not in (None, NUM_CLASSES):
        reasons.append(f"labels are {NUM_CLASSES} there, {config.num_classes} here")
    if config.qkv_layout == "edm":
        reasons.append("the qkv rows are in EDM's order")
    if _schedule_flag(diffusion.schedule) is None:
        reasons.append(f"they have no schedule {diffusion.schedule.name!r}")
    if diffusion.prediction not in ("eps", "x0"):
        reasons.append(f"they have no prediction {diffusion.prediction!r}")
    if diffusion.variance == "learned":
        reasons.append("their scripts have no flag for variance 'learned'")
    return reasons


def _schedule_flag(schedule: NoiseSchedule) -> str | None:
    """Their name of a schedule; None where they have none, or their networks would see other times."""
    named = recognise_schedule(schedule.betas, ("linear", "cosine"))
    plain = np.arange(len(schedule))
    if named is None or not any(
        np.array_equal(schedule.timesteps, times) for times in (plain, rescaled(schedule).timesteps)
    ):
        return None
    return named.name


def _typed(name: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    text = value.lower()
    if isinstance(default, bool):
        if text not in ("true", "false", "yes", "no", "y", "n", "1", "0", "t", "f"):
            raise ValueError(f"flag {name} must be True or False, got {value!r}")
        return text in ("true", "yes", "y", "1", "t")
    try:
        return type(default)(value)
    except ValueError:
        raise ValueError(f"flag {name} must be a number, got {value!r}") from None
