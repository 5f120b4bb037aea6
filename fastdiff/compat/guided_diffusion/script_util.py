"""Networks and processes from the flags of their scripts."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fastdiff.compat.guided_diffusion import gaussian_diffusion as gd
from fastdiff.compat.guided_diffusion._signatures import with_flags, without_surplus
from fastdiff.compat.guided_diffusion.respace import SpacedDiffusion, space_timesteps
from fastdiff.compat.guided_diffusion.unet import EncoderUNetModel, SuperResModel, UNetModel
from fastdiff.convert.openai_flags import CHANNEL_MULTS, FLAG_DEFAULTS, NUM_CLASSES

__all__ = [
    "NUM_CLASSES",
    "add_dict_to_argparser",
    "args_to_dict",
    "attention_rates",
    "classifier_and_diffusion_defaults",
    "classifier_defaults",
    "create_classifier",
    "create_classifier_and_diffusion",
    "create_gaussian_diffusion",
    "create_model",
    "create_model_and_diffusion",
    "diffusion_defaults",
    "model_and_diffusion_defaults",
    "sr_create_model",
    "sr_create_model_and_diffusion",
    "sr_model_and_diffusion_defaults",
    "str2bool",
]

Net = TypeVar("Net", bound=UNetModel)

_SR_MULTS: dict[int, tuple[float, ...]] = {512: (1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4)}
# Every flag of a network and its process, in the order of `create_model_and_diffusion`.
_FLAGS = (
    "image_size", "class_cond", "learn_sigma", "num_channels", "num_res_blocks", "channel_mult", "num_heads",
    "num_head_channels", "num_heads_upsample", "attention_resolutions", "dropout", "diffusion_steps", "noise_schedule",
    "timestep_respacing", "use_kl", "predict_xstart", "rescale_timesteps", "rescale_learned_sigmas", "use_checkpoint",
    "use_scale_shift_norm", "resblock_updown", "use_fp16", "use_new_attention_order",
)  # fmt: skip
_PROCESS_FLAGS = ("learn_sigma", *_FLAGS[_FLAGS.index("diffusion_steps") : _FLAGS.index("use_checkpoint")])
# A super-resolution network has two sizes, its own multipliers, and the legacy order of attention.
_NOT_IN_SR = ("image_size", "channel_mult", "use_new_attention_order")
_SR_SIZES = {"large_size": 256, "small_size": 64}


def diffusion_defaults() -> dict[str, Any]:
    """Flags of a process, with their defaults."""
    return {name: FLAG_DEFAULTS[name] for name in _PROCESS_FLAGS}


def classifier_defaults() -> dict[str, Any]:
    """Flags of a classifier, with their defaults."""
    return {
        "image_size": 64,
        "classifier_use_fp16": False,
        "classifier_width": 128,
        "classifier_depth": 2,
        "classifier_attention_resolutions": "32,16,8",
        "classifier_use_scale_shift_norm": True,
        "classifier_resblock_updown": True,
        "classifier_pool": "attention",
    }


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Flags of a network and its process, with their defaults."""
    return dict(FLAG_DEFAULTS)


def classifier_and_diffusion_defaults() -> dict[str, Any]:
    """Flags of a classifier and its process, with their defaults."""
    return {**classifier_defaults(), **diffusion_defaults()}


def sr_model_and_diffusion_defaults() -> dict[str, Any]:
    """Flags of a super-resolution network and its process, with their defaults."""
    return {name: value for name, value in FLAG_DEFAULTS.items() if name not in _NOT_IN_SR} | _SR_SIZES


@with_flags(_FLAGS, FLAG_DEFAULTS)
def create_model_and_diffusion(**flags: Any) -> tuple[UNetModel, SpacedDiffusion]:
    """A network and its process; see `create_model` and `create_gaussian_diffusion`."""
    return create_model(**_without_process(flags)), _process(flags)


@without_surplus
def create_model(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    channel_mult: str = "",
    learn_sigma: bool = False,
    class_cond: bool = False,
    use_checkpoint: bool = False,
    attention_resolutions: str = "16",
    num_heads: int = 1,
    num_head_channels: int = -1,
    num_heads_upsample: int = -1,
    use_scale_shift_norm: bool = False,
    dropout: float = 0,
    resblock_updown: bool = False,
    use_fp16: bool = False,
    use_new_attention_order: bool = False,
) -> UNetModel:
    """A network for RGB images; `attention_resolutions` are sizes in pixels here, such as "16,8".

    Raises:
        ValueError: an image size without default multipliers, or settings that `fastdiff.UNet` does not have.
    """
    return _network(UNetModel, image_size, CHANNEL_MULTS, dict(locals()))


@with_flags((*classifier_defaults(), *_PROCESS_FLAGS), {**classifier_defaults(), **FLAG_DEFAULTS})
def create_classifier_and_diffusion(**flags: Any) -> tuple[EncoderUNetModel, SpacedDiffusion]:
    """A classifier of noisy images and the process that makes them noisy."""
    return create_classifier(**{name: flags[name] for name in classifier_defaults()}), _process(flags)


@with_flags(classifier_defaults(), classifier_defaults())
def create_classifier(**flags: Any) -> EncoderUNetModel:
    """A classifier of noisy RGB images with 1000 classes."""
    size = flags["image_size"]
    return EncoderUNetModel(
        image_size=size,
        in_channels=3,
        model_channels=flags["classifier_width"],
        out_channels=NUM_CLASSES,
        num_res_blocks=flags["classifier_depth"],
        attention_resolutions=attention_rates(size, flags["classifier_attention_resolutions"]),
        channel_mult=_multipliers(size, "", CHANNEL_MULTS),
        use_fp16=flags["classifier_use_fp16"],
        num_head_channels=64,
        use_scale_shift_norm=flags["classifier_use_scale_shift_norm"],
        resblock_updown=flags["classifier_resblock_updown"],
        pool=flags["classifier_pool"],
    )


@with_flags([*_SR_SIZES, *(name for name in _FLAGS if name not in _NOT_IN_SR)], {**FLAG_DEFAULTS, **_SR_SIZES})
def sr_create_model_and_diffusion(**flags: Any) -> tuple[SuperResModel, SpacedDiffusion]:
    """A super-resolution network and its process."""
    return sr_create_model(**_without_process(flags)), _process(flags)


@with_flags(
    [*_SR_SIZES, *(name for name in inspect.signature(create_model).parameters if name not in _NOT_IN_SR)],
    {**FLAG_DEFAULTS, **_SR_SIZES},
)
def sr_create_model(**flags: Any) -> SuperResModel:
    """A network that makes images of `large_size` from such of any smaller size; `small_size` is not read."""
    return _network(SuperResModel, flags["large_size"], _SR_MULTS, flags)


@without_surplus
def create_gaussian_diffusion(
    *,
    steps: int = 1000,
    learn_sigma: bool = False,
    sigma_small: bool = False,
    noise_schedule: str = "linear",
    use_kl: bool = False,
    predict_xstart: bool = False,
    rescale_timesteps: bool = False,
    rescale_learned_sigmas: bool = False,
    timestep_respacing: str | Iterable[int] = "",
) -> SpacedDiffusion:
    """A process on all its timesteps, or on those of `timestep_respacing` ("250", "10,15,20", "ddim25")."""
    if use_kl:
        loss = gd.LossType.RESCALED_KL
    else:
        loss = gd.LossType.RESCALED_MSE if rescale_learned_sigmas else gd.LossType.MSE
    fixed = gd.ModelVarType.FIXED_SMALL if sigma_small else gd.ModelVarType.FIXED_LARGE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, timestep_respacing or [steps]),
        betas=gd.get_named_beta_schedule(noise_schedule, steps),
        model_mean_type=gd.ModelMeanType.START_X if predict_xstart else gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.LEARNED_RANGE if learn_sigma else fixed,
        loss_type=loss,
        rescale_timesteps=rescale_timesteps,
    )


def add_dict_to_argparser(parser: argparse.ArgumentParser, default_dict: dict[str, Any]) -> None:
    """Add a flag for each entry, of the type of its value; None is text."""
    for name, value in default_dict.items():
        kind: Any = str if value is None else type(value)
        parser.add_argument(f"--{name}", default=value, type=str2bool if kind is bool else kind)


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The values of some flags, by name."""
    return {key: getattr(args, key) for key in keys}


def str2bool(v: str | bool) -> bool:
    """A truth value from "yes", "true", "t", "y", "1" and their opposites."""
    if isinstance(v, bool):
        return v
    text = v.lower()
    if text in ("yes", "true", "t", "y", "1"):
        return True
    if text in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError("boolean value expected")


def _without_process(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name == "learn_sigma" or name not in _PROCESS_FLAGS}


def _process(flags: Mapping[str, Any]) -> SpacedDiffusion:
    options = {name: flags[name] for name in _PROCESS_FLAGS if name != "diffusion_steps"}
    return create_gaussian_diffusion(steps=flags["diffusion_steps"], **options)


def _network(
    kind: type[Net], image_size: int, multipliers: Mapping[int, tuple[float, ...]], flags: Mapping[str, Any]
) -> Net:
    """A U-Net of flags, most of which are arguments of its constructor."""
    arguments = {name: flags[name] for name in inspect.signature(UNetModel).parameters if name in flags}
    arguments |= {
        "image_size": image_size,
        "in_channels": 3,
        "model_channels": flags["num_channels"],
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "attention_resolutions": attention_rates(image_size, flags["attention_resolutions"]),
        "channel_mult": _multipliers(image_size, flags.get("channel_mult", ""), multipliers),
        "num_classes": NUM_CLASSES if flags["class_cond"] else None,
    }
    return kind(**arguments)


def attention_rates(image_size: int, resolutions: str) -> tuple[int, ...]:
    """The rates of downsampling at which images of that size have the resolutions of "16,8"."""
    return tuple(image_size // int(size) for size in resolutions.split(","))


def _multipliers(image_size: int, given: str, defaults: Mapping[int, tuple[float, ...]]) -> tuple[float, ...]:
    if given:
        return tuple(float(part) if "." in part else int(part) for part in given.split(","))
    if image_size not in defaults:
        raise ValueError(f"unsupported image size: {image_size}")
    return defaults[image_size]
