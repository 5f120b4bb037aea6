"""How the networks of `unet_config.PRESETS` are trained, as plain settings. Needs NumPy alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fastdiff.process.arguments import check_options, spelt
from fastdiff.process.checks import check_keys, nearest_name
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule

__all__ = ["DIFFUSION_KEYS", "RECIPES", "Settings", "build_diffusion"]

Settings = dict[str, Any]

DIFFUSION_KEYS = ("schedule", "timesteps", "prediction", "variance", "sigma_data")

RECIPES: dict[str, Settings] = {
    # The demonstration's. The digits have 17 grey values, 1/8 apart in [-1, 1], and the first step's noise, sigma 0.05,
    # is near half of that: less would spend bits, and the network, on what the decoder's rounding gives for free.
    "digits": {
        "unet": {"num_res_blocks": 1, "dropout": 0.0},
        "diffusion": {
            "schedule": {"name": "cosine", "offset": 0.05},
            "timesteps": 100,
            "prediction": "v",
            "variance": "learned_range",
        },
        "train": {
            "steps": 1500,
            "learning_rate": 1e-3,
            "betas": [0.9, 0.99],
            "warmup_steps": 50,
            "ema_decay": 0.995,
            "flip": False,
            "checkpoint_every": 500,
            "log_every": 10,
        },
    },
    # What is quick to learn and good with every sampler: half an hour on one core.
    "small-32": {
        "diffusion": {"schedule": "cosine", "prediction": "v"},
        "train": {
            "steps": 5000,
            "batch_size": 16,
            "learning_rate": 5e-4,
            "warmup_steps": 100,
            "ema_decay": 0.999,
            "checkpoint_every": 500,
            "log_every": 20,
        },
    },
    # Ho et al. (2020), appendix B.
    "ho-cifar10": {"diffusion": {"schedule": "linear", "variance": "fixed_large"}},
    "ho-256": {
        "diffusion": {"schedule": "linear", "variance": "fixed_small"},
        "train": {"batch_size": 64, "learning_rate": 2e-5},
    },
    # The README of improved-diffusion.
    "iddpm-cifar10": {
        "diffusion": {"schedule": "cosine", "timesteps": 4000, "variance": "learned_range"},
        "train": {"learning_rate": 1e-4, "warmup_steps": 0, "clip_norm": None},
    },
    "iddpm-imagenet64": {
        "diffusion": {"schedule": "cosine", "timesteps": 4000, "variance": "learned_range"},
        "train": {"learning_rate": 1e-4, "warmup_steps": 0, "clip_norm": None},
    },
    # The README of guided-diffusion, which does not say how the networks were trained.
    "adm-imagenet64": {"diffusion": {"schedule": "cosine", "variance": "learned_range"}},
    "adm-imagenet128": {"diffusion": {"schedule": "linear", "variance": "learned_range"}},
    "adm-imagenet256": {"diffusion": {"schedule": "linear", "variance": "learned_range"}},
    "adm-imagenet512": {"diffusion": {"schedule": "linear", "variance": "learned_range"}},
}
"""How the networks of `PRESETS` were trained, as far as the settings here can say it."""


def build_diffusion(settings: Mapping[str, Any]) -> tuple[Diffusion, Settings]:
    """A process from plain settings.

    Args:
        settings: "schedule": a name, or a name with options, {"name": "cosine", "offset": 0.05}; "timesteps";
            "prediction"; "variance"; "sigma_data", for prediction "F" alone. What is left out is cosine, 1000, eps and
            fixed_small.

    Returns:
        The process, and its settings with nothing left out.

    Raises:
        ValueError: unknown keys, names or options (the nearest is suggested), or values out of range.
    """
    check_keys(dict(settings), DIFFUSION_KEYS, "section 'diffusion'")
    schedule = settings.get("schedule", "cosine")
    options: Settings = dict(schedule) if isinstance(schedule, Mapping) else {"name": schedule}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(
            f"a schedule is a name, or a name with options: {{name: cosine, offset: 0.01}}; got {schedule!r}"
        )
    timesteps = settings.get("timesteps", 1000)
    known = NoiseSchedule.names()
    if name not in known:
        raise ValueError(f"unknown {spelt('schedule', 'noise schedule')} {name!r}: {nearest_name(name, known)}")
    if options:
        # "warmup10" and the like are names only.
        builder: Any = getattr(NoiseSchedule, name, None)
        accepted = [] if builder is None else list(inspect.signature(builder).parameters)
        check_keys(options, [key for key in accepted if key != "num_timesteps"], f"schedule {name!r}")
        check_options(options, builder, f"schedule {name!r}")
        made = builder(timesteps, **options)
    else:
        made = NoiseSchedule.named(name, timesteps)
    prediction, variance = settings.get("prediction", "eps"), settings.get("variance", "fixed_small")
    plain = {
        "schedule": {"name": name, **options} if options else name,
        "timesteps": timesteps,
        "prediction": prediction,
        "variance": variance,
    }
    if prediction != "F":
        if "sigma_data" in settings:
            raise ValueError(f"{spelt('sigma_data')} is for prediction 'F' alone, got prediction {prediction!r}")
        return Diffusion(made, prediction, variance), plain
    diffusion = Diffusion(made, prediction, variance, settings.get("sigma_data", 0.5))
    return diffusion, {**plain, "sigma_data": diffusion.sigma_data}
