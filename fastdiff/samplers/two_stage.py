"""Solvers in the noise level rho = sigma / alpha: Euler, Heun and DPM2, ancestral or not, and EDM's Heun with churn.

With y = x / alpha the probability-flow ODE is dy/drho = (y - x_0(y)) / rho. A step from rho to rho' evaluates the
network at its start, D1, and all but Euler's also at a level rho_m that an Euler step has reached, D2:

    Euler:   y_m = D1 + (rho_m / rho) (y - D1)                 the whole step where rho_m = rho'
    second:  y'  = D1 + (rho' / rho_m) (y_m - D1) + w (rho - rho') / rho_m (D2 - D1)

Heun has rho_m = rho' and w = 1/2; DPM2 has rho_m = sqrt(rho rho') and w = 1. This is the textbook form with y
eliminated: no row reads the state that the step began with, which is large against the result where alpha is small, and
so float32 keeps its accuracy. Ancestral solvers take rho' below the next level and add the noise that is missing there;
churn adds noise to a finished step and starts the next one from the level so raised. A row of y becomes one of x by the
alphas of the levels before and after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.ancestral import clip_column
from fastdiff.samplers.levels import LEVEL_SPACINGS, Final, Levels, levels_at, position_of, visited
from fastdiff.samplers.registry import sampler

# Karras et al. (2022), arXiv:2206.00364, algorithm 2: a level is raised by this share at most.
MAX_CHURN = math.sqrt(2) - 1


@dataclass(frozen=True)
class _Path:
    """The steps of a solver, noisiest first: N entries each.

    Attributes:
        start: Positions in the schedule where the steps begin.
        target: The rho up to which the ODE is solved.
        noise: Standard deviation of the noise then added to x / alpha.
        length: Of the steps in log rho, from the level to the target.
        middle: Positions of the second evaluation, used where `twice`.
        weight: w of the second row, used where `twice`.
        twice: Whether the step has a second evaluation; otherwise it is Euler's.
        end: alpha and sigma of the result.
        init_scale: See `CoefficientTable`.
    """

    start: Array
    target: Array
    noise: Array
    length: Array
    middle: Array
    weight: Array
    twice: npt.NDArray[np.bool_]
    end: tuple[float, float]
    init_scale: float = 1.0

    def num_evaluations(self) -> int:
        return int(self.twice.size + self.twice.sum())

    def within(self, budget: int) -> _Path:
        """The same steps with `budget` evaluations: the longest ones lose their second; of equal ones, the last."""
        longest = sorted(np.flatnonzero(self.twice), key=lambda i: (round(float(self.length[i]), 9), i), reverse=True)
        twice = self.twice.copy()
        twice[longest[: self.num_evaluations() - budget]] = False
        return replace(self, twice=twice)


# From the levels and their positions, N + 1 each, to the path; the end's position is 0 (unused where it is clean).
_Solver = Callable[[Levels, Array], _Path]


@sampler
def euler(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Euler's method in sigma / alpha, which is DDIM with eta = 0.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. Order 1.

    Raises:
        ValueError: an option out of range.

    Source: Karras et al. (2022), arXiv:2206.00364, eq. 4 and table 1; Crowson, k-diffusion, `sample_euler`.
    """

    def solve(levels: Levels, positions: Array) -> _Path:
        return _one_stage(levels, positions, _rho(levels)[1:], np.zeros(len(levels)))

    return _build("euler", diffusion, steps, solve, 1, spacing, timesteps, final, continuous, clip, {})


@sampler
def euler_ancestral(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    eta: float = 1.0,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Euler's method with ancestral noise, which is DDIM with the same eta.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        eta: Noise scale in [0, 1], no unit. 0 is `euler`; 1 has the variance of q(x_s | x_t, x_0).
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. No noise is drawn on the way to an end without noise.

    Raises:
        ValueError: an option out of range.

    Source: Crowson, k-diffusion, `get_ancestral_step` and `sample_euler_ancestral`.
    """
    _check_eta(eta)

    def solve(levels: Levels, positions: Array) -> _Path:
        return _one_stage(levels, positions, *_ancestral(levels, eta))

    order = 1 if eta == 0 else 0
    return _build("euler_ancestral", diffusion, steps, solve, order, spacing, timesteps, final, continuous, clip,
                  {"eta": eta})  # fmt: skip


@sampler(evaluations_per_step=2)
def heun(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Heun's method in sigma / alpha: two evaluations per step, at both of its ends.

    A step that ends without noise, or begins without signal, is Euler's, with one evaluation. N levels thus take
    2 N - 1 evaluations, or 2 N with final="sigma_min". `steps` are spent exactly: if they do not come out even, the
    longest of the other steps, in log-SNR, is Euler's too, which keeps the order. There the second evaluation is worth
    least: it enters with the weight (rho / rho' - 1) / 2, which multiplies the network's errors.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to 2 T - 1, in all (not per level); None for T.
        spacing: Of the levels, see `visited`, as for `final` and `continuous`.
        timesteps: The levels themselves; the evaluations follow.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. Order 2.

    Raises:
        ValueError: an option out of range.

    Source: Karras et al. (2022), arXiv:2206.00364, algorithm 1 and table 1; Crowson, k-diffusion, `sample_heun`.
    """
    return _build("heun", diffusion, steps, _heun, 2, spacing, timesteps, final, continuous, clip, {})


@sampler(evaluations_per_step=2)
def dpm2(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of DPM2, which is DPM-Solver-2: a second evaluation half-way through each step in log-SNR.

    Where the times are whole, so is that of the middle level: the nearest one strictly inside the step, with the weight
    1 / (2 r) for its place r in the step, so that the order stays 2; a step with no timestep inside is Euler's.
    Otherwise as in `heun`: steps that end without noise are Euler's and `steps` are spent exactly.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations in all, 1 to T, or any number if `continuous`; None for T.
        spacing: Of the levels, see `visited`, as for `final` and `continuous`.
        timesteps: The levels themselves; the evaluations follow.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. Order 2.

    Raises:
        ValueError: an option out of range.

    Source: Crowson, k-diffusion, `sample_dpm_2`; Lu et al. (2022), arXiv:2206.00927, algorithm 1, and its general form
    with r_1 in the appendix.
    """

    def solve(levels: Levels, positions: Array) -> _Path:
        target = _rho(levels)[1:]
        return _midpoint(diffusion, levels, positions, target, np.zeros(len(levels)), continuous)

    return _build("dpm2", diffusion, steps, solve, 2, spacing, timesteps, final, continuous, clip, {})


@sampler(evaluations_per_step=2)
def dpm2_ancestral(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    eta: float = 1.0,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of DPM2 with ancestral noise; with eta = 1 the middle level of a step is the next level itself.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to 2 T - 1, in all (not per level); None for T. Spent exactly, see `heun`.
        eta: Noise scale in [0, 1], no unit. 0 is `dpm2`; 1 has the variance of q(x_s | x_t, x_0).
        spacing: Of the levels, see `visited`, as for `final` and `continuous`. Middle levels: see `dpm2`.
        timesteps: The levels themselves; the evaluations follow.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. No noise is drawn on the way to an end without noise.

    Raises:
        ValueError: an option out of range.

    Source: Crowson, k-diffusion, `sample_dpm_2_ancestral`.
    """
    _check_eta(eta)

    def solve(levels: Levels, positions: Array) -> _Path:
        return _midpoint(diffusion, levels, positions, *_ancestral(levels, eta), continuous)

    order = 2 if eta == 0 else 0
    return _build("dpm2_ancestral", diffusion, steps, solve, order, spacing, timesteps, final, continuous, clip,
                  {"eta": eta})  # fmt: skip


@sampler(evaluations_per_step=2)
def edm(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    spacing: str = "karras",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool | None = None,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of EDM's stochastic sampler: Heun's method with noise added before each step ("churn").

    Each of the N steps from rho first raises the level to rho (1 + min(s_churn / N, sqrt(2) - 1)) with fresh noise, and
    evaluates the network there. The noise is drawn in the row before; the first state begins at the raised level. No
    level is raised above that of t = T-1. `steps` are spent as in `heun`.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations in all (not per level); None for T.
        s_churn: Amount of churn, at least 0, no unit. 0 is `heun` on the same levels.
        s_tmin: Least rho = sigma / alpha that is raised, at least 0.
        s_tmax: Largest rho that is raised, at least `s_tmin`.
        s_noise: Standard deviation of the churn noise, in units of what the levels call for; the paper takes 1.003
            and 1.007.
        spacing: Of the levels, see `visited`, as for `final`.
        timesteps: The levels themselves; the evaluations follow.
        continuous: Let levels, the raised ones too, fall between timesteps; None does so for spacings of noise levels.
            Otherwise they are moved to the nearest timesteps, and the noise with them.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. Order 2 without churn. The last row draws no noise.

    Raises:
        ValueError: an option out of range.

    Source: Karras et al. (2022), arXiv:2206.00364, algorithm 2 and eq. 5.
    """
    for name, value in {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number, at least 0, got {value!r}")
    if not s_tmax >= s_tmin:
        raise ValueError(f"s_tmax must be at least s_tmin = {s_tmin!r}, got {s_tmax!r}")
    between = spacing in LEVEL_SPACINGS and timesteps is None if continuous is None else continuous

    def solve(levels: Levels, positions: Array) -> _Path:
        rho, path = _rho(levels), _heun(levels, positions)
        share = min(s_churn / len(levels), MAX_CHURN)
        chosen = (share > 0) & (s_tmin <= rho[:-1]) & (rho[:-1] <= s_tmax)
        lam = -np.log(np.where(chosen, rho[:-1], 1.0)) - math.log1p(share)
        raised = position_of(diffusion, lam)
        if not between:
            raised = np.round(raised)
        start = np.where(chosen, np.maximum(raised, path.start), path.start)
        is_raised = start > path.start
        begun = levels_at(diffusion, start)
        low, high = np.where(is_raised, rho[:-1], 0.0), np.where(is_raised, _rho(begun)[:-1], 0.0)
        added = s_noise * np.sqrt((high - low) * (high + low))
        # The first state: one of variance 1 at the level itself, and the noise that raises it.
        scale = float(begun.alpha[0] * np.hypot(1 / levels.alpha[0], added[0])) if is_raised[0] else 1.0
        return replace(path, start=start, noise=np.append(added[1:], 0.0), init_scale=scale)

    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax if s_tmax < math.inf else None,
               "s_noise": s_noise}  # fmt: skip
    order = 2 if s_churn == 0 else 0
    return _build("edm", diffusion, steps, solve, order, spacing, timesteps, final, between, clip, options)


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta!r}")


def _rho(levels: Levels) -> Array:
    """sigma / alpha, inf where no signal is left."""
    with np.errstate(divide="ignore"):
        return np.asarray(levels.sigma / levels.alpha)


def _ancestral(levels: Levels, eta: float) -> tuple[Array, Array]:
    """(down, up): the rho that the ODE is solved to, and the noise from there to the next level."""
    rho = _rho(levels)
    ratio = rho[1:] / rho[:-1]
    down = rho[1:] * np.sqrt((1 - eta**2) + (eta * ratio) ** 2)
    up = rho[1:] * eta * np.sqrt((1 - ratio) * (1 + ratio))
    return down, up


def _one_stage(levels: Levels, positions: Array, target: Array, noise: Array) -> _Path:
    with np.errstate(divide="ignore"):
        length = np.log(_rho(levels)[:-1]) - np.log(target)
    return _Path(
        start=positions[:-1],
        target=target,
        noise=noise,
        length=length,
        middle=positions[1:],
        weight=np.ones(len(levels)),
        twice=np.zeros(len(levels), dtype=bool),
        end=(float(levels.alpha[-1]), float(levels.sigma[-1])),
    )


def _heun(levels: Levels, positions: Array) -> _Path:
    rho = _rho(levels)
    path = _one_stage(levels, positions, rho[1:], np.zeros(len(levels)))
    twice = np.isfinite(rho[:-1]) & (rho[1:] > 0)
    return replace(path, weight=0.5 * path.weight, twice=twice)


def _midpoint(
    diffusion: Diffusion, levels: Levels, positions: Array, target: Array, noise: Array, continuous: bool
) -> _Path:
    rho = _rho(levels)[:-1]
    path = _one_stage(levels, positions, target, noise)
    inside = np.isfinite(rho) & (target > 0)
    start, reached = np.where(inside, rho, 2.0), np.where(inside, target, 1.0)
    middle = position_of(diffusion, -0.5 * np.log(start * reached))
    # With eta = 1 the middle is the next level: but for rounding, so that whole times stay whole.
    middle = np.where(np.abs(middle - positions[1:]) < 1e-6, positions[1:], middle)
    if not continuous:
        # The margin keeps a target that is itself a timestep's level from being taken for one above it.
        every = _rho(levels_at(diffusion, np.arange(diffusion.num_timesteps, dtype=np.float64)))[:-1]
        lowest = np.searchsorted(every, reached * (1 + 1e-9), side="right")
        middle = np.clip(np.round(middle), lowest, np.maximum(path.start - 1, lowest))
    middle = np.where(inside, np.minimum(middle, path.start), path.start)
    at = _rho(levels_at(diffusion, middle))[:-1]
    twice = inside & (rho > at) & (at > target)
    place = np.log(np.where(twice, start / at, 2.0)) / np.log(np.where(twice, start / reached, 2.0))
    return replace(path, middle=middle, weight=0.5 / place, twice=twice)


def _build(
    name: str,
    diffusion: Diffusion,
    steps: int | None,
    solve: _Solver,
    order: int,
    spacing: str,
    timesteps: Sequence[float] | None,
    final: Final,
    continuous: bool,
    clip: float | None,
    own_options: dict[str, Any],
) -> CoefficientTable:
    bound = clip_column(clip)

    def path_of(count: int | None) -> _Path:
        levels = visited(diffusion, count, spacing=spacing, timesteps=timesteps, final=final, continuous=continuous)
        grid = np.arange(diffusion.num_timesteps, dtype=np.float64)
        positions = np.append(np.interp(levels.t, diffusion.schedule.timesteps, grid), 0.0)
        end = (float(levels.alpha[-1]), float(levels.sigma[-1]))
        return solve(levels_at(diffusion, positions[:-1], end), positions)

    if timesteps is None:
        whole = max(1, diffusion.num_timesteps - (final == "sigma_min"))
        path = _spend(path_of, whole if steps is None else steps, None if continuous else whole)
    else:
        path = path_of(None)
        if steps is not None and steps != path.num_evaluations():
            raise ValueError(
                f"steps = {steps} disagrees with the {path.num_evaluations()} evaluations that the given timesteps "
                "take: leave one of them out"
            )
    options = {"steps": path.num_evaluations(), "spacing": spacing, "final": final, "continuous": continuous,
               "clip": clip, **own_options}  # fmt: skip
    return _table(name, diffusion, path, bound, order, options)


def _spend(path_of: Callable[[int | None], _Path], steps: int, most: int | None) -> _Path:
    """A path of `steps` evaluations over few levels, `most` of them at most."""
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be a whole number, at least 1, got {steps!r}")
    budget = int(steps)
    limit = budget if most is None else min(budget, most)
    count, grow, before = (budget + 1) // 2, 1, budget
    while True:
        count = min(count, limit)
        path = path_of(count)
        missing = budget - path.num_evaluations()
        if missing <= 0:
            return path.within(budget)
        if count == limit:
            raise ValueError(f"steps must be at most {path.num_evaluations()} for this schedule, got {budget}")
        # One more level brings up to two evaluations, and none where it takes the room of a middle level.
        grow = (missing + 1) // 2 if missing < before else 2 * grow
        count, before = count + grow, missing


def _table(
    name: str, diffusion: Diffusion, path: _Path, clip: float, order: int, options: dict[str, Any]
) -> CoefficientTable:
    step = np.repeat(np.arange(path.twice.size), 1 + path.twice)
    second = np.append(False, step[1:] == step[:-1])
    first = np.append(second[1:], False)
    levels = levels_at(diffusion, np.where(second, path.middle[step], path.start[step]), path.end)
    alpha, rho = levels.alpha, _rho(levels)
    target = np.where(first, rho[1:], path.target[step])
    share = target / rho[:-1]
    began = np.where(second, np.append(0.0, rho[:-2]), 0.0)
    correction = np.where(second, path.weight[step], 0.0) * (began - target) / rho[:-1]
    px, pm = levels.x0()
    columns = {
        "t": levels.t,
        "px": px,
        "pm": pm,
        "clip": np.full(step.size, clip),
        "cx": alpha[1:] * target / levels.sigma[:-1],
        "c0": alpha[1:] * np.where(second, correction, 1 - share),
        "c1": alpha[1:] * np.where(second, 1 - share - correction, 0.0),
        "s": alpha[1:] * np.where(first, 0.0, path.noise[step]),
        "push": first.astype(np.float64),
    }
    return CoefficientTable(columns, name, order=order, init_scale=path.init_scale, alphas=alpha, sigmas=levels.sigma,
                            options=options)  # fmt: skip
