"""improved-diffusion's modules on fastdiff: those of `fastdiff.compat.guided_diffusion`, and its own where they differ.

Its own are `script_util` (flags, defaults, multipliers), `image_datasets` (no flips, no crops), `unet` (constructors),
`fp16_util` and `train_util` (one flat master, the learning rate of a step).
"""

import sys

from fastdiff.compat.guided_diffusion import dist_util, gaussian_diffusion, logger, losses, nn, resample, respace
from fastdiff.compat.improved_diffusion import fp16_util, image_datasets, script_util, train_util, unet

__all__ = [
    "dist_util",
    "fp16_util",
    "gaussian_diffusion",
    "image_datasets",
    "logger",
    "losses",
    "nn",
    "resample",
    "respace",
    "script_util",
    "train_util",
    "unet",
]

# The same modules under both names, so that what a module knows, as the logger its folder, is known once.
for _shared in (dist_util, gaussian_diffusion, logger, losses, nn, resample, respace):
    sys.modules[f"{__name__}.{_shared.__name__.rpartition('.')[2]}"] = _shared
