"""The noise levels that a sampler visits, between timesteps as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fastdiff.process.checks import nearest_name
from fastdiff.process.diffusion import (
    Diffusion,
    Prediction,
    eps_coefficients,
    x0_coefficients,
)
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.spacing import SPACINGS, spaced_indices, strictly_increasing

Final = Literal["zero", "sigma_min"]
# Spacings over noise levels; the others are over timesteps.
LEVEL_SPACINGS = ("logsnr", "karras", "exponential")
# rho of Karras et al. (2022), arXiv:2206.00364, table 1.
KARRAS_RHO = 7.0


@dataclass(frozen=True)
class Levels:
    """N levels at which the network is evaluated, from noise to data, and the level at which sampling ends.

    The state at level i is x = alpha[i] x_0 + sigma[i] eps, with alpha^2 + sigma^2 = 1.

    Attributes:
        prediction: What the network predicts.
        t: [N] the network's times.
        alpha, sigma: [N + 1]; the last entries are those of the result, 1 and 0 unless it is left slightly noisy.
    """

    prediction: Prediction
    t: Array
    alpha: Array
    sigma: Array

    def __len__(self) -> int:
        return int(self.t.size)

    @cached_property
    def lam(self) -> Array:
        """[N + 1] half the log-SNR, log(alpha / sigma); inf at an end without noise."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.alpha) - np.log(self.sigma))

    @cached_property
    def rho(self) -> Array:
        """[N + 1] sigma / alpha: the noise level of x / alpha, the variance-exploding form of the state."""
        return np.asarray(self.sigma / self.alpha)

    def x0(self) -> tuple[Array, Array]:
        """(px, pm), [N] each; see `x0_coefficients`."""
        return x0_coefficients(self.prediction, self.alpha[:-1], self.sigma[:-1])

    def eps(self) -> tuple[Array, Array]:
        """(ex, em), [N] each; see `eps_coefficients`."""
        return eps_coefficients(self.prediction, self.alpha[:-1], self.sigma[:-1])

    def ends_clean(self) -> bool:
        """Whether no noise is left at the end."""
        return bool(self.sigma[-1] == 0)


def levels_at(diffusion: Diffusion, positions: Array, end: tuple[float, float] = (1.0, 0.0)) -> Levels:
    """Levels at positions in [0, T-1], noisiest first; log alpha is linear between the timesteps.

    Args:
        diffusion: What the network was trained on.
        positions: [N], 0-based positions in the schedule, whole or not.
        end: alpha and sigma of the result.
    """
    grid = np.arange(diffusion.num_timesteps, dtype=np.float64)
    log_abar = np.interp(positions, grid, diffusion.schedule.log_alphas_cumprod)
    t = np.interp(positions, grid, diffusion.schedule.timesteps)
    alpha, sigma = np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar))
    return Levels(diffusion.prediction, t, np.append(alpha, end[0]), np.append(sigma, end[1]))


def visited(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
) -> Levels:
    """The levels of a sampler with `steps` evaluations.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        spacing: A spacing of timesteps, see `spaced_indices`, or of noise levels: "logsnr" and "exponential" (two names
            of one grid) are uniform in log(alpha / sigma); "karras" is uniform in (sigma / alpha)^(1/7). Both run from
            t = T-1 to t = 0.
        timesteps: The timesteps themselves, strictly monotone; fractions only with `continuous`.
        final: "zero" ends at the image; "sigma_min" at the level of t = 0, which then is not evaluated.
        continuous: Let the noise levels fall between timesteps; the network is then given fractional times. Otherwise
            they are moved to the nearest timesteps.

    Raises:
        ValueError: anything out of range, or `continuous` with a spacing of timesteps.

    Source: Karras et al. (2022), arXiv:2206.00364, eq. 5; Lu et al. (2022), arXiv:2206.00927, appendix D.4.
    """
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final must be 'zero' or 'sigma_min', got {final!r}")
    num_timesteps = diffusion.num_timesteps
    extra = 1 if final == "sigma_min" else 0
    if timesteps is not None:
        positions = _explicit(num_timesteps, steps, timesteps, continuous)
    elif spacing in LEVEL_SPACINGS:
        positions = _spaced_levels(diffusion, steps, spacing, continuous, extra)
    elif spacing in SPACINGS:
        if continuous:
            raise ValueError(f"spacing {spacing!r} is one of whole timesteps: continuous needs one of {LEVEL_SPACINGS}")
        wanted = num_timesteps - extra if steps is None else steps
        if extra and wanted >= num_timesteps:
            raise ValueError(f"final='sigma_min' allows at most T - 1 = {num_timesteps - 1} steps, got {wanted}")
        whole = spaced_indices(num_timesteps, wanted + (extra if spacing != "trailing" else 0), spacing)
        positions = np.array(whole[::-1], dtype=np.float64)
        if extra and spacing != "trailing":
            positions = positions[:-1]
    else:
        raise ValueError(f"unknown spacing {spacing!r}: {nearest_name(spacing, [*SPACINGS, *LEVEL_SPACINGS])}")
    if not extra:
        return levels_at(diffusion, positions)
    if positions[-1] <= 0:
        raise ValueError("final='sigma_min' ends at the level of t = 0, so t = 0 cannot be evaluated before it")
    alpha, sigma = diffusion.signal_noise()
    return levels_at(diffusion, positions, (float(alpha[0]), float(sigma[0])))


def position_of(diffusion: Diffusion, lam: Array) -> Array:
    """Positions in the schedule, whole or not, of half log-SNRs within its range."""
    # log alpha = -log(1 + exp(-2 lam)) / 2, and log alpha is linear between timesteps.
    log_abar = -np.logaddexp(0.0, -2 * lam)
    grid = np.arange(diffusion.num_timesteps, dtype=np.float64)
    return np.asarray(np.interp(-log_abar, -diffusion.schedule.log_alphas_cumprod, grid))


def _spaced_levels(diffusion: Diffusion, steps: int | None, spacing: str, continuous: bool, extra: int) -> Array:
    num_timesteps = diffusion.num_timesteps
    steps = num_timesteps - extra if steps is None else steps
    limit = None if continuous else num_timesteps - extra
    if isinstance(steps, bool) or int(steps) != steps or steps < 1 or (limit is not None and steps > limit):
        raise ValueError(f"steps must be a whole number from 1 to {limit or 'any'}, got {steps!r}")
    log_snr = diffusion.schedule.log_snr
    if np.isinf(log_snr[-1]):
        raise ValueError(f"spacing {spacing!r} needs some signal at t = T-1, and this schedule leaves none")
    count = int(steps) + extra
    first, last = 0.5 * log_snr[-1], 0.5 * log_snr[0]
    ramp = np.linspace(0, 1, count) if count > 1 else np.zeros(1)
    if spacing == "karras":
        noisiest, cleanest = np.exp(-first / KARRAS_RHO), np.exp(-last / KARRAS_RHO)
        lam = -KARRAS_RHO * np.log(noisiest + ramp * (cleanest - noisiest))
    else:
        lam = first + ramp * (last - first)
    positions = position_of(diffusion, lam)
    if not continuous:
        whole = strictly_increasing(np.round(positions[::-1]).astype(np.int64), num_timesteps)
        positions = whole[::-1].astype(np.float64)
    return positions[: int(steps)]


def _explicit(num_timesteps: int, steps: int | None, timesteps: Sequence[float], continuous: bool) -> Array:
    if not continuous:
        return np.array(spaced_indices(num_timesteps, steps, timesteps=timesteps)[::-1], dtype=np.float64)
    chosen = np.array(timesteps, dtype=np.float64)
    if chosen.ndim != 1 or chosen.size == 0 or (steps is not None and steps != chosen.size):
        raise ValueError(f"timesteps must be a list of numbers, as many as steps, got {chosen.size} for {steps}")
    if chosen.size > 1 and chosen[0] < chosen[-1]:
        chosen = chosen[::-1]
    if not np.isfinite(chosen).all() or (np.diff(chosen) >= 0).any() or chosen[-1] < 0 or chosen[0] > num_timesteps - 1:
        raise ValueError(f"timesteps must be strictly monotone and in [0, {num_timesteps - 1}]")
    return chosen


def table_from_rows(
    levels: Levels, rows: list[dict[str, float]], name: str, *, states: Sequence[int] | None = None, **fields: object
) -> CoefficientTable:
    """A table of rows that name only the columns they use; `states` says at which level each row leaves the state."""
    columns = {key: np.array([row.get(key, _DEFAULT.get(key, 0.0)) for row in rows]) for key in _used(rows)}
    reached = list(range(1, len(rows) + 1)) if states is None else list(states)
    at = np.array([0, *reached])
    return CoefficientTable(columns, name, alphas=levels.alpha[at], sigmas=levels.sigma[at], **fields)  # type: ignore[arg-type]


_DEFAULT = {"ci": 1.0, "clip": np.inf, "evaluate": 1.0}


def _used(rows: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
