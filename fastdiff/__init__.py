"""fastdiff: train, sample, score and edit with denoising diffusion models, fast and exactly.

    import fastdiff as fd

    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(1000))
    table = fd.samplers.ddim(diffusion, steps=20)
    images = fd.sample(model, table, shape=(64, 3, 32, 32), seed=0)

Schedules, diffusions, tables and samplers need NumPy alone; everything else is imported, with torch, on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastdiff import samplers
from fastdiff.diffusion import Diffusion
from fastdiff.schedule import NoiseSchedule
from fastdiff.table import CoefficientTable

if TYPE_CHECKING:
    from fastdiff import convert, data, editing, guidance, langevin, likelihood, ops
    from fastdiff.acceleration import accelerate, restore
    from fastdiff.checkpoint import load_model, save_model
    from fastdiff.ema import Ema
    from fastdiff.engine import compile
    from fastdiff.pipeline import Pipeline
    from fastdiff.sampling import sample
    from fastdiff.thresholding import DynamicThreshold
    from fastdiff.trainer import TrainConfig, Trainer
    from fastdiff.unet import UNet, UNetConfig
    from fastdiff.views import Views

__version__ = "0.1.0"

# Names to the module that holds them; modules themselves to "".
_LAZY = {
    "Ema": "fastdiff.ema",
    "Pipeline": "fastdiff.pipeline",
    "TrainConfig": "fastdiff.train_config",
    "Trainer": "fastdiff.trainer",
    "UNet": "fastdiff.unet",
    "UNetConfig": "fastdiff.unet",
    "accelerate": "fastdiff.acceleration",
    "Views": "fastdiff.views",
    "compile": "fastdiff.engine",
    "load_model": "fastdiff.checkpoint",
    "restore": "fastdiff.acceleration",
    "sample": "fastdiff.sampling",
    "save_model": "fastdiff.checkpoint",
    "DynamicThreshold": "fastdiff.thresholding",
    "convert": "",
    "data": "",
    "editing": "",
    "guidance": "",
    "langevin": "",
    "likelihood": "",
    "ops": "",
}

__all__ = [
    "CoefficientTable",
    "Diffusion",
    "DynamicThreshold",
    "Ema",
    "NoiseSchedule",
    "Pipeline",
    "TrainConfig",
    "Trainer",
    "UNet",
    "UNetConfig",
    "Views",
    "__version__",
    "accelerate",
    "compile",
    "convert",
    "data",
    "editing",
    "guidance",
    "langevin",
    "likelihood",
    "load_model",
    "ops",
    "restore",
    "sample",
    "samplers",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")
    if not _LAZY[name]:
        return importlib.import_module(f"fastdiff.{name}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
