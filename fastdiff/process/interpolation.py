"""Between timesteps: log abar is linear there, over positions in the schedule and, where they are listed, over times.

A position is 0-based and, like a time, need not be whole. On a schedule that was not respaced the two are the same.
Where the coordinates have a clock of their own, it tells the time of any level, exactly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff.process.schedule import Array, NoiseSchedule


def log_abar_at_time(schedule: NoiseSchedule, times: npt.ArrayLike) -> Array:
    """log abar at the network's times, each within the schedule's."""
    if schedule.coordinates.is_continuous:
        return log_abar_of(schedule.coordinates.lam(times))
    return _interpolated(times, schedule.timesteps, schedule.log_alphas_cumprod)


def log_abar_at_position(schedule: NoiseSchedule, positions: npt.ArrayLike) -> Array:
    """log abar at positions in [0, T-1]."""
    return np.asarray(_interpolated(positions, _positions(schedule), schedule.log_alphas_cumprod))


def time_at_position(schedule: NoiseSchedule, positions: npt.ArrayLike) -> Array:
    """What the network is given at positions in [0, T-1]."""
    if schedule.coordinates.is_continuous:
        return schedule.coordinates.time(lam_of(log_abar_at_position(schedule, positions)))
    return _interpolated(positions, _positions(schedule), schedule.timesteps)


def position_at_time(schedule: NoiseSchedule, times: npt.ArrayLike) -> Array:
    """The inverse of `time_at_position`."""
    if schedule.coordinates.is_continuous:
        return position_at_log_abar(schedule, log_abar_at_time(schedule, times))
    return _interpolated(times, schedule.timesteps, _positions(schedule))


def position_at_log_abar(schedule: NoiseSchedule, log_abar: npt.ArrayLike) -> Array:
    """The inverse of `log_abar_at_position`."""
    # The nodes have to rise.
    return _interpolated(-np.asarray(log_abar), -schedule.log_alphas_cumprod, _positions(schedule))


def log_abar_of(lam: npt.ArrayLike) -> Array:
    """log abar of half log-SNRs lam = log(alpha / sigma)."""
    # log abar = 2 log alpha = -log(1 + exp(-2 lam)).
    return np.asarray(-np.logaddexp(0.0, -2 * np.asarray(lam)))


def lam_of(log_abar: npt.ArrayLike) -> Array:
    """The inverse of `log_abar_of`."""
    with np.errstate(divide="ignore"):
        return np.asarray(0.5 * (np.asarray(log_abar) - np.log(-np.expm1(log_abar))))


def signal_noise_at(log_abar: npt.ArrayLike) -> tuple[Array, Array]:
    """(alpha, sigma) with alpha^2 = abar and sigma^2 = 1 - abar, which is not taken as a difference."""
    return np.asarray(np.exp(0.5 * np.asarray(log_abar))), np.asarray(np.sqrt(-np.expm1(log_abar)))


def _interpolated(at: npt.ArrayLike, nodes: Array, values: Array) -> Array:
    return np.asarray(np.interp(np.asarray(at, dtype=np.float64), nodes, values))


def _positions(schedule: NoiseSchedule) -> Array:
    return np.arange(len(schedule), dtype=np.float64)
