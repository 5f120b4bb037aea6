"""The enums of a process and the named schedules; `gaussian_diffusion` has them too, where their code keeps them."""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fastdiff.process.schedule import NoiseSchedule

__all__ = ["Array", "LossType", "ModelMeanType", "ModelVarType", "betas_for_alpha_bar", "get_named_beta_schedule"]

Array = npt.NDArray[np.float64]


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> Array:
    """Betas [T], float64, of "linear" (Ho's, scaled by 1000 / T) or "cosine".

    Raises:
        NotImplementedError: another name.
    """
    if schedule_name not in ("linear", "cosine"):
        raise NotImplementedError(f"unknown beta schedule: {schedule_name}")
    return NoiseSchedule.named(schedule_name, num_diffusion_timesteps).betas.copy()


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> Array:
    """Betas [T] of a cumulative product of alphas given as a function of time in [0, 1]."""
    by_grid = np.vectorize(alpha_bar, otypes=[np.float64])
    return NoiseSchedule.from_alphas_cumprod(by_grid, num_diffusion_timesteps, max_beta).betas.copy()


class ModelMeanType(enum.Enum):
    """What the network predicts."""

    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()


class ModelVarType(enum.Enum):
    """What the reverse step's variance is. LEARNED is a log-variance, LEARNED_RANGE interpolates between two."""

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()
    FIXED_LARGE = enum.auto()
    LEARNED_RANGE = enum.auto()


class LossType(enum.Enum):
    """What is trained. RESCALED_MSE weighs the bound's term by T / 1000, RESCALED_KL by T."""

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self) -> bool:
        """Whether it is the variational bound alone."""
        return self in (LossType.KL, LossType.RESCALED_KL)
