"""The noise levels that a sampler visits, between timesteps as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.interpolation import (
    log_abar_at_position,
    log_abar_of,
    position_at_log_abar,
    signal_noise_at,
    time_at_position,
)
from fastdiff.process.parametrization import Parametrization
from fastdiff.process.schedule import Array
from fastdiff.process.table import DEFAULTS, CoefficientTable
from fastdiff.samplers.spacing import SPACINGS, spaced_indices, strictly_increasing

Final = Literal["zero", "sigma_min"]
# Spacings over noise levels; the others are over timesteps.
LEVEL_SPACINGS = ("logsnr", "karras", "exponential")
# rho of Karras et al. (2022), arXiv:2206.00364, table 1.
KARRAS_RHO = 7.0
LamMin = float | Literal["auto"] | None
# A bound on log(alpha / sigma), as DPM-Solver's `clipping_lambda_min` and diffusers' `lambda_min_clipped`. Measured on
# trained networks, which tell the noise to a few per cent where a schedule falls fast: docs/samplers.md. A start from
# pure noise at alpha = 0.08 loses nothing that one could see.
AUTO_LAM_MIN = -2.5
# A schedule that ends above this is taken whole: the linear ones do, of 50 timesteps and more.
_TOLERATED_LAM = -6.0


@dataclass(frozen=True)
class Levels:
    """N levels at which the network is evaluated, from noise to data, and the level at which sampling ends.

    The state at level i is x = alpha[i] x_0 + sigma[i] eps, with alpha^2 + sigma^2 = 1.

    Attributes:
        network: What the network is given and what its output means.
        t: [N] the network's times.
        alpha, sigma: [N + 1]; the last entries are those of the result, 1 and 0 unless it is left slightly noisy.
    """

    network: Parametrization
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
        """[N + 1] sigma / alpha: the noise level of x / alpha, the variance-exploding form; inf where no signal is."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.sigma / self.alpha)

    def x0(self) -> tuple[Array, Array]:
        """(px, pm), [N] each; see `Parametrization.x0`."""
        return self.network.x0(self.alpha[:-1], self.sigma[:-1])

    def eps(self) -> tuple[Array, Array]:
        """(ex, em), [N] each; see `Parametrization.eps`."""
        return self.network.eps(self.alpha[:-1], self.sigma[:-1])

    @cached_property
    def of_noise(self) -> tuple[Array, Array, Array]:
        """(ex, em, ci), [N] each: `eps` and `input_scale` at once, for those who ask row by row."""
        return (*self.eps(), self.input_scale())

    @cached_property
    def of_image(self) -> tuple[Array, Array, Array]:
        """(px, pm, ci), [N] each: `x0` and `input_scale`, likewise."""
        return (*self.x0(), self.input_scale())

    def input_scale(self) -> Array:
        """ci, [N]; see `Parametrization.input_scale`."""
        return self.network.input_scale(self.alpha[:-1], self.sigma[:-1])

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
    alpha, sigma = signal_noise_at(log_abar_at_position(diffusion.schedule, positions))
    t = time_at_position(diffusion.schedule, positions)
    return Levels(diffusion.parametrization, t, np.append(alpha, end[0]), np.append(sigma, end[1]))


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
    return Ladder(steps, spacing, timesteps, final, continuous).levels(diffusion)


@dataclass(frozen=True)
class Ladder:
    """What a sampler is asked about its levels, as one value; see `visited`."""

    steps: int | None = None
    spacing: str = "trailing"
    timesteps: Sequence[float] | None = None
    final: Final = "zero"
    continuous: bool = False
    lam_min: LamMin = None
    has_stages: bool = False

    @property
    def options(self) -> dict[str, object]:
        """What a table's options say of it, besides the number of steps."""
        return {"spacing": self.spacing, "final": self.final}

    def levels(self, diffusion: Diffusion) -> Levels:
        """The levels that were asked for. Raises ValueError as `visited`."""
        if self.final not in ("zero", "sigma_min"):
            raise ValueError(f"final must be 'zero' or 'sigma_min', got {self.final!r}")
        positions = self._positions(diffusion, self.num_positions(diffusion))
        if self.final == "zero":
            return levels_at(diffusion, positions)
        if positions[-1] <= 0:
            raise ValueError("final='sigma_min' ends at the level of t = 0, so t = 0 cannot be evaluated before it")
        alpha, sigma = diffusion.signal_noise()
        return levels_at(diffusion, positions, (float(alpha[0]), float(sigma[0])))

    def num_positions(self, diffusion: Diffusion) -> int:
        """How many positions of the schedule, from 0 on, may be visited; see `noisiest_position`."""
        if self.timesteps is not None:
            return diffusion.num_timesteps
        return noisiest_position(diffusion, self.lam_min, self.has_stages) + 1

    def note(self, diffusion: Diffusion) -> str:
        """What a table should say of where it starts; empty where that is the schedule's end."""
        last = self.num_positions(diffusion) - 1
        if last == diffusion.num_timesteps - 1:
            return ""
        schedule = diffusion.schedule
        return (
            f"begins at t = {schedule.timesteps[last]:g}, with log(alpha / sigma) = {0.5 * schedule.log_snr[last]:.2f} "
            f"(lam_min); at t = {schedule.timesteps[-1]:g} it is {0.5 * schedule.log_snr[-1]:.2f}"
        )

    def _positions(self, diffusion: Diffusion, num: int) -> Array:
        if self.timesteps is not None:
            return self._given_positions(self.timesteps, diffusion.num_timesteps)
        if self.spacing in LEVEL_SPACINGS:
            return self._positions_over_levels(diffusion, num)
        if self.spacing not in SPACINGS:
            known = [*SPACINGS, *LEVEL_SPACINGS]
            raise ValueError(f"unknown spacing {self.spacing!r}: {nearest_name(self.spacing, known)}")
        if self.continuous:
            raise ValueError(
                f"spacing {self.spacing!r} is one of whole timesteps: continuous needs one of {LEVEL_SPACINGS}"
            )
        return self._positions_over_timesteps(diffusion.num_timesteps, num)

    def _given_positions(self, timesteps: Sequence[float], num_timesteps: int) -> Array:
        if not self.continuous:
            return np.array(spaced_indices(num_timesteps, self.steps, timesteps=timesteps)[::-1], dtype=np.float64)
        chosen = np.array(timesteps, dtype=np.float64)
        if chosen.ndim != 1 or chosen.size == 0 or (self.steps is not None and self.steps != chosen.size):
            raise ValueError(
                f"timesteps must be a list of numbers, as many as steps, got {chosen.size} for {self.steps}"
            )
        if chosen.size > 1 and chosen[0] < chosen[-1]:
            chosen = chosen[::-1]
        falls = not (np.diff(chosen) >= 0).any()
        if not np.isfinite(chosen).all() or not falls or chosen[-1] < 0 or chosen[0] > num_timesteps - 1:
            raise ValueError(f"timesteps must be strictly monotone and in [0, {num_timesteps - 1}]")
        return chosen

    def _positions_over_timesteps(self, num_timesteps: int, num: int) -> Array:
        wanted = num_timesteps - self._num_unevaluated if self.steps is None else self.steps
        if self._num_unevaluated and wanted >= num_timesteps:
            raise ValueError(f"final='sigma_min' allows at most T - 1 = {num_timesteps - 1} steps, got {wanted}")
        # All but "trailing" begin with t = 0, which is left out.
        takes_end = self._num_unevaluated and self.spacing != "trailing"
        wanted = whole_number(spelt("steps"), wanted, low=1, high=num_timesteps)
        # Where the noisiest levels are left out there may be fewer than were asked for.
        wanted = min(wanted, num - self._num_unevaluated)
        indices = spaced_indices(num, wanted + 1 if takes_end else wanted, self.spacing)
        return np.array(indices[:0:-1] if takes_end else indices[::-1], dtype=np.float64)

    def _positions_over_levels(self, diffusion: Diffusion, num: int) -> Array:
        most = diffusion.num_timesteps - self._num_unevaluated
        steps = most if self.steps is None else self.steps
        steps = whole_number(spelt("steps"), steps, low=1, high=None if self.continuous else most)
        log_snr = diffusion.schedule.log_snr[:num]
        if np.isinf(log_snr[-1]):
            raise ValueError(
                f"spacing {self.spacing!r} needs some signal at t = T-1, and this schedule has zero terminal SNR: "
                f"use one of {', '.join(SPACINGS)}"
            )
        if not self.continuous:
            steps = min(steps, num - self._num_unevaluated)
        count = steps + self._num_unevaluated
        first, last = 0.5 * log_snr[-1], 0.5 * log_snr[0]
        ramp = np.linspace(0, 1, count) if count > 1 else np.zeros(1)
        if self.spacing == "karras":
            # Karras et al. (2022), eq. 5.
            noisiest, cleanest = np.exp(-first / KARRAS_RHO), np.exp(-last / KARRAS_RHO)
            lam = -KARRAS_RHO * np.log(noisiest + ramp * (cleanest - noisiest))
        else:
            lam = first + ramp * (last - first)
        positions = position_of(diffusion, lam)
        if not self.continuous:
            nearest = np.round(positions[::-1]).astype(np.int64)
            positions = strictly_increasing(nearest, num)[::-1].astype(np.float64)
        return positions[:steps]

    @property
    def _num_unevaluated(self) -> int:
        """Levels at the end of the ladder, 0 or 1, where the network is not asked."""
        return 1 if self.final == "sigma_min" else 0


def noisiest_position(diffusion: Diffusion, lam_min: LamMin, has_stages: bool = False) -> int:
    """The position, 0 to T-1, of the noisiest level with log(alpha / sigma) >= lam_min.

    A step that integrates the noise from a level without signal multiplies what the network gets wrong by the quotient
    of the alphas: by 1400 in the first of 20 steps on the cosine schedule, which ends at log(alpha / sigma) = -9.9.

    Args:
        diffusion: What the network was trained on.
        lam_min: The bound. "auto", on a schedule that ends below -6, is -2.5 for a network that predicts the noise or
            the score, and for a solver that has stages whatever is predicted; for other networks the position is T-1,
            or the one before where no signal is left at T-1. None is T-1.
        has_stages: Whether the solver evaluates the network several times in a step, each time at what the last
            evaluation made of the state.

    Raises:
        ValueError: lam_min is no number, or every level is below it.

    Source: Lu et al., the code of DPM-Solver, and diffusers' `lambda_min_clipped`; Lin et al. (2023), arXiv:2305.08891,
    for what a network that predicts the noise cannot tell there.
    """
    last = diffusion.num_timesteps - 1
    if lam_min is None:
        return last
    lam = 0.5 * diffusion.schedule.log_snr
    if isinstance(lam_min, str):
        if lam_min != "auto":
            raise ValueError(f"lam_min must be a number, 'auto' or None, got {lam_min!r}")
        applies = has_stages or diffusion.prediction in ("eps", "score")
        lam_min = AUTO_LAM_MIN
        if not applies or lam[-1] >= _TOLERATED_LAM or lam[0] < lam_min:
            return last_with_signal(diffusion)
    if not lam_min <= lam[0]:
        raise ValueError(
            f"lam_min must be at most {lam[0]:.4g}, log(alpha / sigma) of the cleanest timestep, got {lam_min!r}"
        )
    return int(np.flatnonzero(lam >= lam_min)[-1])


def last_with_signal(diffusion: Diffusion) -> int:
    """The position, 0 to T-1, of the noisiest level with any signal; T-1 where there is none at all."""
    last = diffusion.num_timesteps - 1
    return last - 1 if last > 0 and np.isinf(diffusion.schedule.log_snr[-1]) else last


def with_signal(diffusion: Diffusion) -> Diffusion:
    """The process without a last level that has no signal, which lies at an infinite distance in the log-SNR."""
    last = last_with_signal(diffusion)
    return diffusion if last == diffusion.num_timesteps - 1 else diffusion.subset(range(last + 1))


def told(diffusion: Diffusion) -> Diffusion:
    """The process up to the noisiest level at which its network can tell the signal; see `noisiest_position`."""
    num = noisiest_position(diffusion, "auto") + 1
    return diffusion if num == diffusion.num_timesteps else diffusion.subset(range(num))


def check_signal(levels: Levels, name: str) -> None:
    """Raise ValueError where a solver that integrates the noise would begin at a level without signal."""
    if levels.alpha[0] == 0:
        raise ValueError(
            f"the schedule has zero terminal SNR: no signal is left at t = {levels.t[0]:g}, and {name!r}, which "
            "integrates the noise, cannot start there. Use 'dpmpp', 'unipc', 'heun' or 'ddim' with a network that "
            f"predicts v or x0, or start below it with lam_min={AUTO_LAM_MIN} or timesteps"
        )


def position_of(diffusion: Diffusion, lam: Array) -> Array:
    """Positions in the schedule, whole or not, of half log-SNRs within its range."""
    return position_at_log_abar(diffusion.schedule, log_abar_of(lam))


def visited_levels(diffusion: Diffusion) -> tuple[Array, Array]:
    """Arrays (alphas, sigmas) of the states from the noisiest step down to the image: length T + 1."""
    alpha, sigma = diffusion.signal_noise()
    return np.concatenate([alpha[::-1], [1.0]]), np.concatenate([sigma[::-1], [0.0]])


def clip_column(clip: float | None) -> float:
    """The table's clip: inf for None. Raises ValueError unless positive."""
    if clip is None:
        return np.inf
    if not clip > 0:
        raise ValueError(f"clip must be a positive bound on the predicted x0, or None for no bound, got {clip!r}")
    return float(clip)


def table_from_rows(
    levels: Levels, rows: list[dict[str, float]], name: str, *, states: Sequence[int] | None = None, **fields: object
) -> CoefficientTable:
    """A table of rows that name only the columns they use; `states` says at which level each row leaves the state."""
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {key: np.array([row.get(key, DEFAULTS[key]) for row in rows]) for key in names}
    reached = list(range(1, len(rows) + 1)) if states is None else list(states)
    at = np.array([0, *reached])
    return CoefficientTable(columns, name, alphas=levels.alpha[at], sigmas=levels.sigma[at], **fields)  # type: ignore[arg-type]
