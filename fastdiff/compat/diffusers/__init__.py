"""diffusers' schedulers on coefficient tables, one fused op per step, under their own names.

    from fastdiff.compat.diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

Each class is a subclass of diffusers' own of that name: its constructor, configuration, files, timesteps and outputs
are theirs, and its step executes one row of a table. See `FusedScheduler` for what is put right and for `compat`.
"""

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise ImportError('fastdiff.compat.diffusers needs diffusers: pip install "fastdiff-ddpm[diffusers]"') from error

# Their loader looks a class's base up in the module that a pipeline's index names.
from diffusers import SchedulerMixin as SchedulerMixin

from fastdiff.compat.diffusers._ancestral import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    RePaintScheduler,
)
from fastdiff.compat.diffusers._base import FusedScheduler
from fastdiff.compat.diffusers._consistency import LCMScheduler, TCDScheduler
from fastdiff.compat.diffusers._euler import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
)
from fastdiff.compat.diffusers._multistep import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from fastdiff.compat.diffusers._pipeline import FusedUNet2DModel, accelerate
from fastdiff.compat.diffusers._processes import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    IPNDMScheduler,
)
from fastdiff.compat.diffusers._sde import DPMSolverSDEScheduler
from fastdiff.compat.diffusers._two_stage import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler

__all__ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FusedScheduler",
    "FusedUNet2DModel",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "accelerate",
]
