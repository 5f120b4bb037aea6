"""Any list of noise levels as a process, so that every sampler's table can be built over it. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastdiff.process.diffusion import Diffusion, Prediction, Variance
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.process.table import CoefficientTable

# Two levels that are the same become a step of this relative length, whose coefficients are those of standing still.
_NO_STEP = 1e-9


@dataclass(frozen=True)
class Levels:
    """N levels at which a network is evaluated, and the level at which sampling ends, as the arguments of a builder.

    Attributes:
        diffusion: A process whose timesteps are the levels, counted from the cleanest.
        timesteps: The positions of the N levels, noisiest first.
        final: "zero" where sampling ends without noise, else "sigma_min".
    """

    diffusion: Diffusion
    timesteps: list[int]
    final: Literal["zero", "sigma_min"]

    @classmethod
    def from_logs(
        cls,
        log_alphas_cumprod: npt.ArrayLike,
        prediction: Prediction,
        *,
        variance: Variance = "fixed_small",
        end: float = 0.0,
    ) -> Levels:
        """Levels given by log abar.

        Args:
            log_alphas_cumprod: [N], noisiest first; -inf only at the first.
            prediction: What the network predicts.
            variance: See `Diffusion`.
            end: log abar of the result; 0 for an image without noise.
        """
        levels = np.asarray(log_alphas_cumprod, dtype=np.float64)[::-1]
        if end < 0:
            levels = np.concatenate([[end], levels])
        levels = levels.copy()
        for i in range(1, levels.size):
            levels[i] = min(levels[i], levels[i - 1] * (1 + _NO_STEP))
        betas = -np.expm1(np.diff(levels, prepend=0.0))
        diffusion = Diffusion(NoiseSchedule.from_betas(betas), prediction, variance)
        first = 1 if end < 0 else 0
        return cls(diffusion, list(range(levels.size - 1, first - 1, -1)), "sigma_min" if first else "zero")

    @classmethod
    def from_sigmas(cls, sigmas: npt.ArrayLike, prediction: Prediction) -> Levels:
        """N + 1 levels sigma / alpha, noisiest first; the last is the level of the result and may be 0."""
        rho = np.asarray(sigmas, dtype=np.float64)
        return cls.from_logs(-np.log1p(rho[:-1] ** 2), prediction, end=float(-np.log1p(rho[-1] ** 2)))

    def table(self, build: Callable[..., CoefficientTable], **options: Any) -> CoefficientTable:
        """A sampler's table over these levels; `options` are the builder's own."""
        return build(self.diffusion, timesteps=self.timesteps, final=self.final, **options)


def variance_exploding(table: CoefficientTable) -> CoefficientTable:
    """The same sampler for a state y = x / alpha, whose network input is alpha y.

    Raises:
        ValueError: the table does not say which levels it visits, or a level has no signal.
    """
    alphas = np.asarray(table.alphas)
    if alphas.size == 0 or (alphas == 0).any():
        raise ValueError(f"table {table.name!r} does not say which levels it visits, or one of them has no signal")
    before, after = alphas[:-1], alphas[1:]
    columns = dict(table.columns)
    columns["ci"] = np.asarray(table["ci"] * before)
    for name in ("px", "bx"):
        columns[name] = table[name] * before
    columns["cx"] = table["cx"] * before / after
    for name in ("cb", "cm", "c0", "c1", "c2", "c3", "s"):
        columns[name] = table[name] / after
    return replace(table, columns=columns, init_scale=table.init_scale / float(alphas[0]))


def with_times(table: CoefficientTable, times: npt.ArrayLike) -> CoefficientTable:
    """The same table with the network's own times, one per row; as it is where they are negative (log sigma)."""
    if np.min(times) < 0:
        return table
    return replace(table, columns={**table.columns, "t": np.asarray(times, dtype=np.float64)})


def first_rows(table: CoefficientTable, count: int) -> CoefficientTable:
    """The first rows of a table."""
    return replace(
        table,
        columns={name: np.asarray(values)[:count] for name, values in table.columns.items()},
        alphas=np.asarray(table.alphas)[: count + 1],
        sigmas=np.asarray(table.sigmas)[: count + 1],
    )
