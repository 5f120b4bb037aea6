"""A solver's method as a value: what it integrates between two levels, and how.

A method is to the builders of `multistep`, `singlestep` and `unipc` what a Butcher tableau is to a Runge-Kutta solver.
With the network's prediction f a step is x' = A x + sum_k w_k f_k + s z; how the weights w follow from the moments of
the method's kernel stands in `exponential`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fastdiff.process.interpolation import lam_of, log_abar_at_time
from fastdiff.process.schedule import Array, NoiseSchedule
from fastdiff.samplers.exponential import data_moments, noise_moments, plain_moments, sde_moments, weights
from fastdiff.samplers.levels import Levels, clip_column

SolverType = Literal["midpoint", "heun"]


@dataclass(frozen=True)
class Step:
    """A step between two of the levels, by their numbers; x = alpha x_0 + sigma eps at its start.

    Its numbers are NumPy's, which know infinity: alpha may be 0 where sampling begins.
    """

    levels: Levels
    start: int
    end: int

    @property
    def alpha(self) -> float:
        return np.float64(self.levels.alpha[self.start])

    @property
    def sigma(self) -> float:
        return np.float64(self.levels.sigma[self.start])

    @property
    def alpha_next(self) -> float:
        return np.float64(self.levels.alpha[self.end])

    @property
    def sigma_next(self) -> float:
        return np.float64(self.levels.sigma[self.end])

    @property
    def h(self) -> float:
        """By how much half the log-SNR grows; inf to an end without noise."""
        return float(self.levels.lam[self.end] - self.levels.lam[self.start])


# From a step and the exact moments to the one that takes the last one's place.
LastMoment = Callable[[Step, Sequence[float]], float]


@dataclass(frozen=True)
class Method:
    """One way to integrate the probability flow, or the reverse SDE, between two levels.

    Attributes:
        predicts: What f is: the image "x0", which may be clipped, or the noise "eps".
        gain: A of a step.
        moments: The first so many moments M_j of a step's kernel.
        variable: [N + 1] what f is a polynomial in.
        noise: s of a step; None where the method is deterministic.
        last_moment: By the number of values, what replaces the last moment of a formula through so many.
        reaches_zero: Whether formulas through several values hold for a step that ends without noise, where the log-SNR
            is infinite. Otherwise that step is of order 1.
    """

    predicts: Literal["x0", "eps"]
    gain: Callable[[Step], float]
    moments: Callable[[Step, int], list[float]]
    variable: Callable[[Levels], Array]
    noise: Callable[[Step], float] | None = None
    last_moment: Mapping[int, LastMoment] = field(default_factory=dict)
    reaches_zero: bool = False

    def replacing(self, num_values: int, moment: LastMoment) -> Method:
        """The same method with another last moment in its formula through so many values."""
        return replace(self, last_moment={**self.last_moment, num_values: moment})

    def evaluations(self, levels: Levels, clip: float | None) -> list[dict[str, float]]:
        """For each level, the part of a row that evaluates f there and pushes it into the history.

        Raises:
            ValueError: clip is not positive, for a method that clips.
        """
        if self.predicts == "x0":
            (px, pm), bound = levels.x0(), clip_column(clip)
        else:
            (px, pm), bound = levels.eps(), math.inf
        ci = levels.input_scale()
        return [
            {"t": levels.t[i], "ci": ci[i], "px": px[i], "pm": pm[i], "clip": bound, "push": 1.0}
            for i in range(len(levels))
        ]

    def formula(self, step: Step, evaluated: Sequence[int]) -> tuple[float, Array]:
        """(A, w) of a step through the values of f at the levels `evaluated`, in their order."""
        at = self.variable(step.levels)
        length = at[step.end] - at[step.start]
        # The ends by themselves, since the length may be infinite.
        ends = {step.start: 0.0, step.end: 1.0}
        nodes = [ends[level] if level in ends else (at[level] - at[step.start]) / length for level in evaluated]
        moments = self.moments(step, len(nodes))
        if len(nodes) in self.last_moment:
            moments[-1] = self.last_moment[len(nodes)](step, moments)
        return self.gain(step), weights(nodes, moments)


def _half_log_snr(levels: Levels) -> Array:
    return levels.lam


def _noise_moments(step: Step, count: int) -> list[float]:
    return noise_moments(count, step.h, step.alpha, step.sigma, step.alpha_next, step.sigma_next)


# DPM-Solver++: Lu et al. (2022), arXiv:2211.01095, eq. 8.
IMAGE = Method(
    predicts="x0",
    gain=lambda step: step.sigma_next / step.sigma,
    moments=lambda step, count: data_moments(count, step.h, step.alpha_next),
    variable=_half_log_snr,
)

# DPM-Solver, and DEIS in log rho: Lu et al. (2022), arXiv:2206.00927, eq. 3.4.
NOISE = Method(
    predicts="eps",
    gain=lambda step: step.alpha_next / step.alpha,
    moments=_noise_moments,
    variable=_half_log_snr,
)

# SDE-DPM-Solver++: Lu et al. (2022), arXiv:2211.01095, eq. 18.
REVERSE_SDE = Method(
    predicts="x0",
    gain=lambda step: step.sigma_next / step.sigma * math.exp(-step.h),
    moments=lambda step, count: sde_moments(count, step.h, step.alpha_next),
    variable=_half_log_snr,
    noise=lambda step: step.sigma_next * math.sqrt(-math.expm1(-2 * step.h)),
)


def _moments_in_rho(step: Step, count: int) -> list[float]:
    # One value is DDIM in any variable, and its form in the log-SNR has no difference of nearly equal numbers.
    if count == 1:
        return _noise_moments(step, 1)
    rho = step.levels.rho
    return plain_moments(count, step.alpha_next * (rho[step.end] - rho[step.start]))


# DEIS in rho, and LMS: with y = x / alpha the flow is dy = eps drho, so the kernel is constant.
NOISE_IN_RHO = replace(NOISE, moments=_moments_in_rho, variable=lambda levels: levels.rho, reaches_zero=True)


def noise_in_time(schedule: NoiseSchedule) -> Method:
    """DEIS in the timestep, for a schedule: `NOISE` with a polynomial in the network's time."""

    def times(levels: Levels) -> Array:
        return np.append(levels.t, schedule.timesteps[0])

    def moments(step: Step, count: int) -> list[float]:
        # As in rho.
        if count == 1:
            return _noise_moments(step, 1)
        t = times(step.levels)
        return _moments_in_time(schedule, step.alpha_next, t[step.start], t[step.end], count)

    return replace(NOISE, moments=moments, variable=times)


def _moments_in_time(schedule: NoiseSchedule, alpha_next: float, start: float, end: float, count: int) -> list[float]:
    """Integral of r^j d(rho) over a step, with r the share of the timestep gone: Gauss-Legendre between timesteps."""
    if schedule.coordinates.is_continuous:
        return _moments_by_clock(schedule, alpha_next, start, end, count)
    inside = schedule.timesteps[(schedule.timesteps < start) & (schedule.timesteps > end)]
    edges = np.concatenate([[end], inside, [start]])
    x, w = np.polynomial.legendre.leggauss(6)
    middle, half = 0.5 * (edges[1:] + edges[:-1])[:, None], 0.5 * np.diff(edges)[:, None]
    t = middle + half * x
    log_abar = log_abar_at_time(schedule, t)
    slope = (np.diff(log_abar_at_time(schedule, edges)) / np.diff(edges))[:, None]
    # rho^2 = exp(-log_abar) - 1.
    rate = -0.5 * np.exp(-log_abar) * slope / np.sqrt(np.expm1(-log_abar))
    r = (t - start) / (end - start)
    return [-float(alpha_next * np.sum(w * half * rate * r**j)) for j in range(count)]


def _moments_by_clock(schedule: NoiseSchedule, alpha_next: float, start: float, end: float, count: int) -> list[float]:
    """The same where a clock tells the time of any level: Gauss-Legendre in the log-SNR, with d(rho) = -rho d(lam)."""
    first, last = lam_of(log_abar_at_time(schedule, np.array([start, end])))
    x, w = np.polynomial.legendre.leggauss(6)
    edges = np.linspace(first, last, 17)
    middle, half = 0.5 * (edges[1:] + edges[:-1])[:, None], 0.5 * np.diff(edges)[:, None]
    lam = middle + half * x
    r = (schedule.coordinates.time(lam) - start) / (end - start)
    return [-float(alpha_next * np.sum(w * half * np.exp(-lam) * r**j)) for j in range(count)]


def halved(step: Step, moments: Sequence[float]) -> float:
    """Half of the first moment: the midpoint rule. Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2."""
    return 0.5 * moments[0]


def with_solver_type(method: Method, solver_type: SolverType) -> Method:
    """The method with the second-order formula of that name: "heun" is the exact one for a linear prediction.

    Raises:
        ValueError: unless it is "midpoint" or "heun".
    """
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    return method.replacing(2, halved) if solver_type == "midpoint" else method
