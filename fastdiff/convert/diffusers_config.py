"""diffusers' configuration files and ours, in both directions: `UNet2DModel` and the schedulers. Plain dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastdiff.nets.config import UNetConfig
from fastdiff.process.checks import check_types, height_and_width
from fastdiff.process.diffusion import Diffusion, Prediction, Variance
from fastdiff.process.schedule import NoiseSchedule

__all__ = [
    "DIFFUSERS_VERSION",
    "diffusion_from_scheduler",
    "scheduler_from_diffusion",
    "size_from_diffusers",
    "swaps_sin_and_cos",
    "unet_config_from_diffusers",
    "unet_config_to_diffusers",
]

DIFFUSERS_VERSION = "0.42.1"
"""The release whose files are read and written here; older ones have the same keys or fewer."""

_DOWN = {"DownBlock2D": (False, False), "AttnDownBlock2D": (True, None), "ResnetDownsampleBlock2D": (False, True)}
_UP = {"UpBlock2D": (False, False), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, True)}
# Values of UNet2DModel's own constructor, for keys that a file leaves out.
_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_TYPES: dict[str, str] = {
    "in_channels": "count",
    "out_channels": "count",
    "center_input_sample": "flag",
    "time_embedding_type": "text",
    "time_embedding_dim": "count or null",
    "freq_shift": "number",
    "flip_sin_to_cos": "flag",
    "down_block_types": "texts",
    "mid_block_type": "text or null",
    "up_block_types": "texts",
    "block_out_channels": "counts",
    "mid_block_scale_factor": "number",
    "downsample_padding": "number",
    "downsample_type": "text",
    "upsample_type": "text",
    "dropout": "number",
    "act_fn": "text",
    "attention_head_dim": "count or null",
    "norm_num_groups": "count",
    "attn_norm_num_groups": "count or null",
    "norm_eps": "number",
    "resnet_time_scale_shift": "text",
    "add_attention": "flag",
    "class_embed_type": "text or null",
    "num_class_embeds": "count or null",
}
_SCHEDULER_TYPES: dict[str, str] = {
    "num_train_timesteps": "count",
    "beta_start": "number",
    "beta_end": "number",
    "beta_schedule": "text",
    "trained_betas": "numbers or null",
    "prediction_type": "text",
    "variance_type": "text or null",
    "rescale_betas_zero_snr": "flag or null",
    "shift": "number",
    "use_dynamic_shifting": "flag or null",
    "sigma_data": "number",
    "sigma_min": "number",
    "sigma_max": "number",
    "rho": "number",
    "sigma_schedule": "text",
}
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCES: dict[str, Variance] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}


def unet_config_from_diffusers(config: Mapping[str, Any], *, image_size: int | None = None) -> UNetConfig:
    """The network that a `UNet2DModel`'s configuration describes.

    Args:
        config: Contents of its `config.json`, or `model.config`. Keys that start with "_" are ignored.
        image_size: In place of the configuration's `sample_size`.

    Raises:
        ValueError: the network is of another class, has blocks or settings that `fastdiff.UNet` does not have, or
            states no image size and none is given.
    """
    known = {**_DEFAULTS, **{key: value for key, value in config.items() if not key.startswith("_")}}
    name = config.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise ValueError(f"the network must be a UNet2DModel, got {name}: only unconditional and class-labelled U-Nets")
    unknown = sorted(set(known) - set(_DEFAULTS))
    if unknown:
        raise ValueError(f"unknown keys in the configuration of a UNet2DModel: {', '.join(unknown)}")
    check_types(known, _TYPES)
    _check_settings(known)
    attention, resampling = _block_kinds(known)
    widths = tuple(known["block_out_channels"])
    size = size_from_diffusers(config)[0] if image_size is None else image_size
    head_channels = known["attention_head_dim"]
    shift = known["freq_shift"]
    if shift not in (0, 1):
        raise ValueError(f"freq_shift must be 0 or 1, got {shift!r}")
    return UNetConfig(
        image_size=size,
        in_channels=known["in_channels"],
        out_channels=known["out_channels"],
        channels=widths[0],
        channel_mult=tuple(width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths),
        num_res_blocks=known["layers_per_block"],
        attention_resolutions=tuple(size >> level for level, has in enumerate(attention) if has),
        dropout=known["dropout"],
        num_heads=1,
        head_channels=head_channels,
        norm_groups=known["norm_num_groups"],
        norm_eps=known["norm_eps"],
        time_embedding="sin_cos" if shift == 1 else "cos_sin",
        downsample_padding="symmetric" if known["downsample_padding"] == 1 else "asymmetric",
        scale_shift_norm=known["resnet_time_scale_shift"] == "scale_shift",
        resblock_updown=resampling,
        num_classes=known["num_class_embeds"],
        qkv_layout="separate",
    )


def size_from_diffusers(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the images that a `UNet2DModel`'s configuration states.

    Raises:
        ValueError: it states none, or something else than one number or two.
    """
    size = config.get("sample_size")
    if size is None:
        raise ValueError(
            "the configuration has no sample_size: give the images' height, or (height, width), as image_size"
        )
    return height_and_width("sample_size", size)


def swaps_sin_and_cos(config: Mapping[str, Any]) -> bool:
    """Whether the halves of the time embedding stand the other way round than in `fastdiff.UNet`.

    There, sines come first where freq_shift is 1 and cosines first where it is 0. diffusers allows all four, and the
    columns of the first linear layer are then exchanged.
    """
    known = {**_DEFAULTS, **config}
    return bool(known["flip_sin_to_cos"]) == bool(known["freq_shift"] == 1)


def unet_config_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The configuration of the `UNet2DModel` that is this network.

    Raises:
        ValueError: diffusers has no such network; the message says which field is in the way.
    """
    if config.of_song:
        raise ValueError(f"diffusers has no network with {', '.join(config.of_song)}")
    widths = config.level_channels
    if widths[0] != config.channels:
        raise ValueError(
            f"diffusers has no such network: its time embedding is as wide as the first level, {widths[0]} channels, "
            f"here it is {config.channels}"
        )
    if not config.resblock_updown and not config.conv_resample and len(widths) > 1:
        raise ValueError("diffusers has no such network: UNet2DModel resamples with convolutions (conv_resample)")
    attention = [size in config.attention_resolutions for size in config.level_sizes]
    attended = {width for width, has in zip(widths, attention, strict=True) if has} | {widths[-1]}
    if config.head_channels is not None:
        head_dim: int | None = config.head_channels
    elif config.num_heads == 1:
        head_dim = None
    elif len(attended) == 1:
        head_dim = attended.pop() // config.num_heads
    else:
        raise ValueError(
            f"diffusers has no such network: {config.num_heads} heads at widths {sorted(attended)} differ in channels "
            "per head, and UNet2DModel has one attention_head_dim"
        )
    resnet = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    plain = resnet if config.resblock_updown else ("DownBlock2D", "UpBlock2D")
    kind = "resnet" if config.resblock_updown else "conv"
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        **_DEFAULTS,
        "sample_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "freq_shift": 1 if config.time_embedding == "sin_cos" else 0,
        "flip_sin_to_cos": config.time_embedding == "cos_sin",
        "down_block_types": ["AttnDownBlock2D" if has else plain[0] for has in attention],
        "up_block_types": ["AttnUpBlock2D" if has else plain[1] for has in reversed(attention)],
        "block_out_channels": list(widths),
        "layers_per_block": config.num_res_blocks,
        "downsample_padding": 1 if config.downsample_padding == "symmetric" else 0,
        "downsample_type": kind,
        "upsample_type": kind,
        "dropout": config.dropout,
        "attention_head_dim": head_dim,
        "norm_num_groups": config.norm_groups,
        # With scale and shift, and without this, diffusers leaves out the norm of the middle attention.
        "attn_norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "num_class_embeds": config.num_classes,
    }


def diffusion_from_scheduler(config: Mapping[str, Any], *, learned_variance: bool = False) -> Diffusion:
    """The process that a scheduler's configuration describes, in float64.

    Args:
        config: Contents of `scheduler_config.json`, or `scheduler.config`. Only what the network was trained on is
            read; clipping, spacing and the like are the sampler's.
        learned_variance: Whether the network gives 2C channels; schedulers without a `variance_type` do not know.

    Raises:
        ValueError: the scheduler has no discrete process, or one that is not known here.
    """
    check_types(config, _SCHEDULER_TYPES)
    num = config.get("num_train_timesteps", 1000)
    if "beta_schedule" not in config and ("sigma_data" in config or "shift" in config):
        return _without_betas(config, num)
    schedule = _schedule(config, num)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"unknown prediction_type {prediction!r}: known: {', '.join(_PREDICTIONS)}")
    variance = config.get("variance_type") or ("learned_range" if learned_variance else "fixed_small")
    if variance == "learned":
        raise ValueError(
            "variance_type 'learned' is the raw variance in diffusers, which fastdiff does not have: its 'learned' is "
            "the log-variance"
        )
    if variance not in _VARIANCES:
        raise ValueError(f"unknown variance_type {variance!r}: known: {', '.join(_VARIANCES)}")
    return Diffusion(schedule, _PREDICTIONS[prediction], _VARIANCES[variance])


def scheduler_from_diffusion(diffusion: Diffusion) -> dict[str, Any]:
    """The configuration of the `DDPMScheduler` of a process; of a flow's or EDM's own scheduler for theirs.

    A flow's has as many training steps as its network's times reach up to (1000, the `time_scale`), since diffusers
    takes the one from the other; how many the process here has is lost.

    Raises:
        ValueError: diffusers has no such process; the message says why.
    """
    schedule = diffusion.schedule
    if schedule.coordinates.to_dict() or diffusion.prediction in ("velocity", "F"):
        return _own_scheduler(diffusion)
    if not np.array_equal(schedule.timesteps, np.arange(len(schedule))):
        raise ValueError("diffusers has no respaced processes: convert the process that the network was trained on")
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    if diffusion.prediction not in predictions:
        raise ValueError(f"diffusers has no prediction {diffusion.prediction!r}")
    if diffusion.variance == "learned":
        raise ValueError("diffusers' variance_type 'learned' is the raw variance, here it is the log-variance")
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": len(schedule),
        **_beta_settings(schedule),
        "variance_type": diffusion.variance,
        "prediction_type": predictions[diffusion.prediction],
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }


def _without_betas(config: Mapping[str, Any], num: int) -> Diffusion:
    """The process of a flow's scheduler, which has a shift, or of EDM's, which has a sigma_data."""
    if "sigma_data" not in config:
        # With a shift that depends on the image there is none of the training.
        shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", 1.0)
        return Diffusion(NoiseSchedule.flow(num, shift, float(num)), "velocity")
    prediction, levels = config.get("prediction_type", "epsilon"), config.get("sigma_schedule", "karras")
    if prediction != "epsilon" or levels != "karras":
        raise ValueError(
            "of EDM's schedulers those with prediction_type 'epsilon' and sigma_schedule 'karras' are known, got "
            f"{prediction!r} and {levels!r}"
        )
    ends = {name: float(config[name]) for name in ("sigma_min", "sigma_max", "rho") if name in config}
    return Diffusion(NoiseSchedule.edm(num, **ends), "F", sigma_data=float(config["sigma_data"]))


def _own_scheduler(diffusion: Diffusion) -> dict[str, Any]:
    settings, num = diffusion.schedule.to_dict(), len(diffusion.schedule)
    options: dict[str, float] = settings.get("options", {})
    if diffusion.learned_variance:
        raise ValueError(
            "diffusers' schedulers of flows and of EDM take networks that predict no variance: convert one that was "
            f"trained with variance 'fixed_small', got {diffusion.variance!r}"
        )
    common = {"_diffusers_version": DIFFUSERS_VERSION, "num_train_timesteps": num}
    kind = (settings["name"], diffusion.prediction, "betas" in settings and "num_timesteps" not in settings)
    scale = float(options.get("time_scale", 1000.0))
    if kind == ("flow", "velocity", False) and scale >= 1 and scale.is_integer():
        common["num_train_timesteps"] = int(scale)
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", **common, "shift": options.get("shift", 1.0)}
    if kind == ("edm", "F", False):
        levels = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0} | options
        return {
            "_class_name": "EDMEulerScheduler", **common, **levels, "sigma_data": diffusion.sigma_data,
            "sigma_schedule": "karras", "prediction_type": "epsilon",
        }  # fmt: skip
    raise ValueError(
        f"diffusers has no scheduler of the process {diffusion.schedule.name!r} with prediction "
        f"{diffusion.prediction!r}: it has flows of velocities, with a whole number for a time_scale, and EDM's of F"
    )


def _beta_settings(schedule: NoiseSchedule) -> dict[str, Any]:
    num = len(schedule)
    start, end = float(schedule.betas[0]), float(schedule.betas[-1])
    ends = {"beta_start": start, "beta_end": end}
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        settings: dict[str, Any] = {"beta_schedule": name, "trained_betas": None}
        settings |= {} if name == "squaredcos_cap_v2" else ends
        if np.array_equal(_schedule(settings, num).betas, schedule.betas):
            return settings
    return {"beta_schedule": "linear", **ends, "trained_betas": schedule.betas.tolist()}


def _schedule(config: Mapping[str, Any], num: int) -> NoiseSchedule:
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = NoiseSchedule.from_betas(config["trained_betas"])
    elif name == "linear":
        schedule = NoiseSchedule.linear(num, start, end)
    elif name == "scaled_linear":
        schedule = NoiseSchedule.quadratic(num, start, end)
    elif name == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(num)
    elif name == "sigmoid":
        rise = 1 / (1 + np.exp(-np.linspace(-6, 6, num)))
        schedule = NoiseSchedule.from_betas(rise * (end - start) + start, "sigmoid of betas")
    else:
        raise ValueError(
            f"unknown beta_schedule {name!r}: known: linear, scaled_linear, squaredcos_cap_v2, sigmoid, trained_betas"
        )
    return _zero_snr(schedule) if config.get("rescale_betas_zero_snr") else schedule


def _zero_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule with its signal shifted and scaled so that none is left at the end (Lin 2023, arXiv:2305.08891)."""
    root = np.sqrt(schedule.alphas_cumprod)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root**2
    betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
    return NoiseSchedule.from_betas(betas, f"{schedule.name}, zero terminal SNR")


def _check_settings(known: Mapping[str, Any]) -> None:
    wanted = {
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None, 4 * known["block_out_channels"][0]),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1,),
        "act_fn": ("silu", "swish"),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "add_attention": (True,),
        "class_embed_type": (None,),
        "downsample_padding": (0, 1),
    }
    for key, values in wanted.items():
        if known[key] not in values:
            raise ValueError(
                f"fastdiff.UNet has no {key}={known[key]!r}, only {' or '.join(repr(value) for value in values)}"
            )
    if type(known["layers_per_block"]) is not int:
        raise ValueError(f"layers_per_block must be one number, got {known['layers_per_block']!r}")
    groups = known["attn_norm_num_groups"]
    if groups not in (None, known["norm_num_groups"]):
        raise ValueError(f"attn_norm_num_groups={groups} must equal norm_num_groups={known['norm_num_groups']}")
    if groups is None and known["resnet_time_scale_shift"] == "scale_shift":
        raise ValueError(
            "with resnet_time_scale_shift='scale_shift' and no attn_norm_num_groups, the middle attention of a "
            "UNet2DModel has no norm, and fastdiff.UNet always has one"
        )


def _block_kinds(known: Mapping[str, Any]) -> tuple[list[bool], bool]:
    """Whether each level has attention, full resolution first, and whether residual blocks resample."""
    down, up = list(known["down_block_types"]), list(known["up_block_types"])
    for given, table, what in ((down, _DOWN, "down_block_types"), (up, _UP, "up_block_types")):
        unknown = [name for name in given if name not in table]
        if unknown:
            raise ValueError(f"unknown block {unknown[0]!r} in {what}: fastdiff.UNet has {', '.join(table)}")
    if not len(down) == len(up) == len(known["block_out_channels"]):
        raise ValueError(
            f"down_block_types, up_block_types and block_out_channels must be of one length, got {len(down)}, "
            f"{len(up)} and {len(known['block_out_channels'])}"
        )
    attention = [_DOWN[name][0] for name in down]
    if attention != [_UP[name][0] for name in reversed(up)]:
        raise ValueError(
            f"attention must be at the same levels on the way down and up, got down_block_types={down} and "
            f"up_block_types={up}"
        )
    # The last level on either way has no resampling.
    resampling = set()
    for names, table, key in ((down, _DOWN, "downsample_type"), (up, _UP, "upsample_type")):
        for name in names[:-1]:
            kind = table[name][1]
            if kind is None and known[key] not in ("conv", "resnet"):
                raise ValueError(f"{key} must be 'conv' or 'resnet', got {known[key]!r}")
            resampling.add(known[key] == "resnet" if kind is None else kind)
    if len(resampling) > 1:
        raise ValueError(
            "some levels resample with a convolution and some in residual blocks, and fastdiff.UNet does one of the "
            f"two: got down_block_types={down}, up_block_types={up}, downsample_type={known['downsample_type']!r} and "
            f"upsample_type={known['upsample_type']!r}"
        )
    return attention, True in resampling
