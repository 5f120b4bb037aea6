"""k-diffusion's `config`: the loss and the density of noise levels that a configuration asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fastdiff.compat.k_diffusion import utils
from fastdiff.compat.k_diffusion._missing import missing
from fastdiff.compat.k_diffusion.layers import Denoiser, DenoiserWithVariance, SimpleLossDenoiser

__all__ = ["make_denoiser_wrapper", "make_sample_density"]

_ITS_NETWORKS = (
    "it is about k-diffusion's own networks. Make the network there, `from k_diffusion import config`, and give it to "
    "Denoiser and the samplers here"
)
_ELSEWHERE = dict.fromkeys(("load_config", "make_model", "round_to_power_of_two"), _ITS_NETWORKS)


def make_denoiser_wrapper(config: Mapping[str, Any]) -> Callable[..., Denoiser]:
    """What makes a denoiser of a network, for a configuration as a dict with "model".

    Raises:
        ValueError: a loss that is not known, or the simple one with a variance.
    """
    model = config["model"]
    kind, has_variance = model.get("loss_config", "karras"), model.get("has_variance", False)
    options = {"sigma_data": model.get("sigma_data", 1.0)}
    if kind == "karras":
        options["weighting"] = model.get("loss_weighting", "karras")
        if has_variance:
            return partial(DenoiserWithVariance, **options)
        return partial(Denoiser, **options, scales=model.get("loss_scales", 1))
    if kind != "simple":
        raise ValueError(f"loss_config must be 'karras' or 'simple', got {kind!r}")
    if has_variance:
        raise ValueError("loss_config 'simple' has no variance: take 'karras', or leave out has_variance")
    return partial(SimpleLossDenoiser, **options)


def make_sample_density(config: Mapping[str, Any]) -> Callable[..., Tensor]:
    """The density of noise levels for training, (shape, device=...) -> levels, for a configuration of a model.

    Raises:
        ValueError: a density that is not known.
    """
    options: dict[str, Any]
    density = dict(config["sigma_sample_density"])
    kind, sigma_data = density.pop("type"), config["sigma_data"]

    def either(name: str, other: str) -> Any:
        return density[other] if other in density else density[name]

    if kind == "lognormal":
        return partial(utils.rand_log_normal, loc=either("loc", "mean"), scale=either("scale", "std"))
    if kind == "split-lognormal":
        scales = {"scale_1": either("scale_1", "std_1"), "scale_2": either("scale_2", "std_2")}
        return partial(utils.rand_split_log_normal, loc=either("loc", "mean"), **scales)
    if kind == "loglogistic":
        options = {"loc": math.log(sigma_data), "scale": 0.5, "min_value": 0.0, "max_value": math.inf}
        return partial(utils.rand_log_logistic, **_with(options, density))
    if kind == "loguniform":
        options = {"min_value": config.get("sigma_min"), "max_value": config.get("sigma_max")}
        return partial(utils.rand_log_uniform, **_with(options, density))
    if kind in ("v-diffusion", "cosine"):
        options = {"min_value": 1e-3, "max_value": 1e3}
        return partial(utils.rand_v_diffusion, sigma_data=sigma_data, **_with(options, density))
    if kind == "cosine-interpolated":
        size = max(config["input_size"])
        options = {"image_d": size, "noise_d_low": 32, "noise_d_high": size}
        options |= {"min_value": min(config["sigma_min"], 1e-3), "max_value": max(config["sigma_max"], 1e3)}
        return partial(utils.rand_cosine_interpolated, sigma_data=sigma_data, **_with(options, density))
    raise ValueError(f"the density of noise levels is not known: {kind!r}")


def _with(options: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    return options | {name: value for name, value in chosen.items() if name in options}


def __getattr__(name: str) -> Any:
    return missing(name, __name__, _ELSEWHERE)
