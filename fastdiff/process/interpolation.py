"""Between timesteps: log abar is linear there, over the network's times as over the positions in the schedule.

A position is 0-based and, like a time, need not be whole. On a schedule that was not respaced the two are the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff.process.schedule import Array, NoiseSchedule


def log_abar_at_time(schedule: NoiseSchedule, times: npt.ArrayLike) -> Array:
    """log abar at the network's times, each within the schedule's."""
    return _interpolated(times, schedule.timesteps, schedule.log_alphas_cumprod)


def log_abar_at_position(schedule: NoiseSchedule, positions: npt.ArrayLike) -> Array:
    """log abar at positions in [0, T-1]."""
    return np.asarray(_interpolated(positions, _positions(schedule), schedule.log_alphas_cumprod))


def time_at_position(schedule: NoiseSchedule, positions: npt.ArrayLike) -> Array:
    """What the network is given at positions in [0, T-1]."""
    return _interpolated(positions, _positions(schedule), schedule.timesteps)


def position_at_time(schedule: NoiseSchedule, times: npt.ArrayLike) -> Array:
    """The inverse of `time_at_position`."""
    return _interpolated(times, schedule.timesteps, _positions(schedule))


def position_at_log_abar(schedule: NoiseSchedule, log_abar: npt.ArrayLike) -> Array:
    """The inverse of `log_abar_at_position`."""
    # The nodes have to rise.
    return _interpolated(-np.asarray(log_abar), -schedule.log_alphas_cumprod, _positions(schedule))


def signal_noise_at(log_abar: npt.ArrayLike) -> tuple[Array, Array]:
    """(alpha, sigma) with alpha^2 = abar and sigma^2 = 1 - abar, which is not taken as a difference."""
    return np.asarray(np.exp(0.5 * np.asarray(log_abar))), np.asarray(np.sqrt(-np.expm1(log_abar)))


def _interpolated(at: npt.ArrayLike, nodes: Array, values: Array) -> Array:
    return np.asarray(np.interp(np.asarray(at, dtype=np.float64), nodes, values))


def _positions(schedule: NoiseSchedule) -> Array:
    return np.arange(len(schedule), dtype=np.float64)
