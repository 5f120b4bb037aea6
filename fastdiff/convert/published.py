"""Published weights by the names of their files: what the files themselves do not say."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from fastdiff.convert.openai_flags import diffusion_from_flags, parse_flags, unet_config_from_flags
from fastdiff.nets.config import PRESETS, UNetConfig
from fastdiff.nets.recipes import RECIPES, build_diffusion
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name
from fastdiff.process.diffusion import Diffusion

__all__ = ["KnownModel", "known_file", "known_preset"]

_ADM = (
    "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown True "
    "--use_scale_shift_norm True "
)
_IDDPM = "--rescale_timesteps True --use_scale_shift_norm True --learn_sigma True "
_IDDPM_4000 = _IDDPM + "--diffusion_steps 4000 --noise_schedule cosine "
_LSUN = _ADM + "--image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 --dropout 0.1 "

# Patterns of file names to flags, from the README files of improved- and guided-diffusion.
_OPENAI: dict[str, str] = {
    r"64x64_diffusion\.pt": _ADM
    + "--class_cond True --dropout 0.1 --image_size 64 --noise_schedule cosine --num_channels 192 "
    "--num_head_channels 64 --num_res_blocks 3 --use_new_attention_order True",
    r"128x128_diffusion\.pt": _ADM
    + "--class_cond True --image_size 128 --noise_schedule linear --num_channels 256 --num_heads 4",
    r"256x256_diffusion\.pt": _ADM
    + "--class_cond True --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64",
    r"256x256_diffusion_uncond\.pt": _ADM
    + "--class_cond False --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64",
    r"512x512_diffusion\.pt": _ADM
    + "--class_cond True --image_size 512 --noise_schedule linear --num_channels 256 --num_head_channels 64",
    r"lsun_(bedroom|cat|horse)\.pt": _LSUN,
    r"lsun_horse_nodropout\.pt": _LSUN.replace("--dropout 0.1", "--dropout 0.0"),
    r"cifar10_uncond_50M_500K\.pt": _IDDPM_4000 + "--image_size 32 --num_channels 128 --num_res_blocks 3 --dropout 0.3",
    r"imagenet64_uncond_100M_1500K\.pt": _IDDPM_4000 + "--image_size 64 --num_channels 128 --num_res_blocks 3",
    r"imagenet64_cond_270M_250K\.pt": _IDDPM_4000
    + "--image_size 64 --num_channels 192 --num_res_blocks 3 --class_cond True",
    r"lsun_uncond_100M_\d+K_bs\d+\.pt": "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 "
    "--learn_sigma True --use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 "
    "--noise_schedule linear --rescale_timesteps False",
}
# Ho's networks in PyTorch. All were trained with 1000 linear steps.
_HO: dict[str, str] = {
    r"(ema_)?diffusion_cifar10_model-\d+\.ckpt": "ho-cifar10",
    r"(ema_)?diffusion_lsun_(bedroom|church|cat)_model-\d+\.ckpt": "ho-256",
}


@dataclass(frozen=True)
class KnownModel:
    """A network and its process, and where that is known from."""

    source: str
    unet: UNetConfig
    diffusion: Diffusion | None


def known_file(name: str) -> KnownModel | None:
    """The published model whose weights file has this name, or None."""
    for pattern, text in _OPENAI.items():
        if re.fullmatch(pattern, name):
            flags = parse_flags(text)
            return KnownModel(f"the file's name, {name}", unet_config_from_flags(flags), diffusion_from_flags(flags))
    for pattern, preset in _HO.items():
        if re.fullmatch(pattern, name):
            known = known_preset(preset)
            return KnownModel(f"the file's name, {name}", known.unet, known.diffusion)
    return None


def known_preset(name: str) -> KnownModel:
    """A preset of `fastdiff.nets.config.PRESETS` as its recipe builds it, with the process of the recipe.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown {spelt('preset')} {name!r}: {nearest_name(name, PRESETS)}")
    recipe = RECIPES.get(name, {})
    unet = dataclasses.replace(PRESETS[name], **recipe.get("unet", {}))
    if "diffusion" not in recipe:
        return KnownModel(f"preset {name!r}", unet, None)
    diffusion = build_diffusion(recipe["diffusion"])[0]
    unet = dataclasses.replace(unet, out_channels=diffusion.model_channels(unet.in_channels))
    return KnownModel(f"preset {name!r}", unet, diffusion)
