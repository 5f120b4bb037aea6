"""fastdiff: train, sample, score and edit with denoising diffusion models, fast and exactly.

    import fastdiff as fd

    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(1000))
    table = fd.samplers.ddim(diffusion, steps=20)
    images = fd.sample(model, table, shape=(64, 3, 32, 32), seed=0)

Schedules, diffusions, tables and samplers need NumPy alone; everything else is imported, with torch, on first use.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from fastdiff import samplers
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.process.table import CoefficientTable
from fastdiff.version import __version__

# The public names that are imported on first use, and where each lives: a module, or a name in one.
_PLACES = {
    "DynamicThreshold": "sampling.thresholding:DynamicThreshold",
    "Ema": "training.ema:Ema",
    "Pipeline": "pipeline:Pipeline",
    "TrainConfig": "training.config:TrainConfig",
    "Trainer": "training.trainer:Trainer",
    "UNet": "nets.unet:UNet",
    "UNetConfig": "nets.config:UNetConfig",
    "Views": "sampling.views:Views",
    "accelerate": "convert.acceleration:accelerate",
    "compile": "engine:compile",
    "convert": "convert",
    "data": "data",
    "editing": "sampling.editing",
    "estimate": "likelihood.estimate",
    "evaluation": "evaluation",
    "figures": "files.figures",
    "guidance": "sampling.guidance",
    "langevin": "sampling.langevin",
    "likelihood": "likelihood",
    "load_model": "files.checkpoint:load_model",
    "metrics": "evaluation.metrics",
    "noise": "process.noise",
    "ops": "ops",
    "restore": "nets.acceleration:restore",
    "sample": "sampling.runner:sample",
    "save_model": "files.checkpoint:save_model",
    "serving": "serving",
}

if TYPE_CHECKING:
    # What a type checker reads in the table's place; a test holds the two together.
    from fastdiff import convert as convert
    from fastdiff import data as data
    from fastdiff import evaluation as evaluation
    from fastdiff import likelihood as likelihood
    from fastdiff import ops as ops
    from fastdiff import serving as serving
    from fastdiff.convert.acceleration import accelerate as accelerate
    from fastdiff.engine import compile as compile
    from fastdiff.evaluation import metrics as metrics
    from fastdiff.files import figures as figures
    from fastdiff.files.checkpoint import load_model as load_model
    from fastdiff.files.checkpoint import save_model as save_model
    from fastdiff.likelihood import estimate as estimate
    from fastdiff.nets.acceleration import restore as restore
    from fastdiff.nets.config import UNetConfig as UNetConfig
    from fastdiff.nets.unet import UNet as UNet
    from fastdiff.pipeline import Pipeline as Pipeline
    from fastdiff.process import noise as noise
    from fastdiff.sampling import editing as editing
    from fastdiff.sampling import guidance as guidance
    from fastdiff.sampling import langevin as langevin
    from fastdiff.sampling.runner import sample as sample
    from fastdiff.sampling.thresholding import DynamicThreshold as DynamicThreshold
    from fastdiff.sampling.views import Views as Views
    from fastdiff.training.config import TrainConfig as TrainConfig
    from fastdiff.training.ema import Ema as Ema
    from fastdiff.training.trainer import Trainer as Trainer

__all__ = ["CoefficientTable", "Diffusion", "NoiseSchedule", "__version__", "samplers"]
__all__ += _PLACES

# Modules that once were in this package itself: imports that name them so, and pickled networks, still find them.
_FORMER_MODULES = {
    "acceleration": "nets.acceleration",
    "checkpoint": "files.checkpoint",
    "diffusion": "process.diffusion",
    "editing": "sampling.editing",
    "ema": "training.ema",
    "estimate": "likelihood.estimate",
    "figures": "files.figures",
    "fused_modules": "nets.fused_modules",
    "guidance": "sampling.guidance",
    "images": "files.images",
    "langevin": "sampling.langevin",
    "losses": "ops.reference.bound",
    "metrics": "evaluation.metrics",
    "noise": "process.noise",
    "schedule": "process.schedule",
    "table": "process.table",
    "thresholding": "sampling.thresholding",
    "train_config": "training.config",
    "trainer": "training.trainer",
    "unet": "nets.unet",
    "unet_blocks": "nets.blocks",
    "unet_config": "nets.config",
    "views": "sampling.views",
}


class _FormerModules(MetaPathFinder, Loader):
    """Imports a module by its former name: the same module, not a copy."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        known = fullname.startswith("fastdiff.") and fullname.removeprefix("fastdiff.") in _FORMER_MODULES
        return ModuleSpec(fullname, self) if known else None

    def exec_module(self, module: Any) -> None:
        # The import system returns what it finds under the name when the loader is done.
        place = _FORMER_MODULES[module.__name__.removeprefix("fastdiff.")]
        sys.modules[module.__name__] = importlib.import_module(f"fastdiff.{place}")


sys.meta_path.append(_FormerModules())


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")
    module, _, member = _PLACES[name].partition(":")
    value = importlib.import_module(f"fastdiff.{module}")
    value = getattr(value, member) if member else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
