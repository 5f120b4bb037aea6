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

On a path a step's noise is that of a Brownian motion in the time rho, z over its first half and z' over its second:

    first:   y_m = d_m y + (1 - d_m) D1 + u_m z
    second:  y'  = d' y + (1 - d') (D1 + w (D2 - D1)) + u' (sqrt(h_1 / h) z + sqrt(h_2 / h) z')

with d = rho_down / rho and u = rho_up of `get_ancestral_step`, and h_1 + h_2 = h the lengths in rho. The second row has
z from y_m, y and D1, which are at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.interpolation import position_at_time
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import Ladder, Levels, clip_column, levels_at, position_of

# Karras et al. (2022), arXiv:2206.00364, algorithm 2: a level is raised by this share at most.
MAX_CHURN = math.sqrt(2) - 1


@dataclass(frozen=True)
class Churn:
    """Noise that is added before each step; see `edm`.

    Attributes:
        amount: S_churn.
        low, high: S_tmin and S_tmax, the rho between which levels are raised.
        noise: S_noise.

    Raises:
        ValueError: one of them is out of range.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        for name, value in {"s_churn": self.amount, "s_tmin": self.low, "s_noise": self.noise}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number, at least 0, got {value!r}")
        if not self.high >= self.low:
            raise ValueError(f"s_tmax must be at least s_tmin = {self.low!r}, got {self.high!r}")


@dataclass(frozen=True)
class TwoStage:
    """A solver of this module, as a value: what tells it apart.

    Attributes:
        name: Of the sampler.
        second: Where a step's second evaluation lies: at its end (Heun) or in its middle in log rho (DPM2); None for
            none (Euler).
        eta: Scale of the ancestral noise.
        churn: The noise before each step.
        on_path: Whether the noise of both stages is that of one path, as in DPM-Solver++ on the SDE.
        longest: A step over which rho falls by more than this factor has no second evaluation. Heun's enters with the
            weight (rho / rho' - 1) / 2, and multiplies as much what the network gets wrong there.

    Raises:
        ValueError: eta is not in [0, 1].
    """

    name: str
    second: Literal["end", "middle"] | None = None
    eta: float = 0.0
    churn: Churn = Churn()
    on_path: bool = False
    longest: float = 100.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta!r}")

    @property
    def order(self) -> int:
        """Order of convergence; 0 where stochastic."""
        if self.eta or self.churn.amount:
            return 0
        return 1 if self.second is None else 2


@dataclass(frozen=True)
class _Steps:
    """The steps of a solver over a ladder, noisiest first: N entries each.

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

    def within(self, budget: int) -> _Steps:
        """The same steps with `budget` evaluations: the longest ones lose their second; of equal ones, the last."""
        longest = sorted(np.flatnonzero(self.twice), key=lambda i: (round(float(self.length[i]), 9), i), reverse=True)
        twice = self.twice.copy()
        twice[longest[: self.num_evaluations() - budget]] = False
        return replace(self, twice=twice)


def build(
    method: TwoStage,
    diffusion: Diffusion,
    ladder: Ladder,
    clip: float | None,
    own_options: Mapping[str, object] | None = None,
) -> CoefficientTable:
    """The table of a method over a ladder whose `steps` count evaluations."""
    bound = clip_column(clip)
    steps = _spent(method, diffusion, ladder)
    options = {"steps": steps.num_evaluations(), **ladder.options, "continuous": ladder.continuous, "clip": clip}
    columns, levels = _path_rows(steps, diffusion, method.eta) if method.on_path else _rows(steps, diffusion)
    return CoefficientTable(
        columns | {"clip": bound},
        method.name,
        order=method.order,
        init_scale=steps.init_scale,
        alphas=levels.alpha,
        sigmas=levels.sigma,
        options=options | dict(own_options or {}),
        note=ladder.note(diffusion),
    )


def _spent(method: TwoStage, diffusion: Diffusion, ladder: Ladder) -> _Steps:
    """The steps over as few levels as take the evaluations asked for."""
    if ladder.timesteps is not None:
        steps = _steps(method, diffusion, ladder)
        if ladder.steps is not None and ladder.steps != steps.num_evaluations():
            raise ValueError(
                f"steps = {ladder.steps} disagrees with the {steps.num_evaluations()} evaluations that the given "
                "timesteps take: leave one of them out"
            )
        return steps
    most = max(1, ladder.num_positions(diffusion) - (ladder.final == "sigma_min"))
    budget = most if ladder.steps is None else whole_number("steps", ladder.steps, low=1)
    limit = budget if ladder.continuous else min(budget, most)
    count, grow, before = (budget + 1) // 2, 1, budget
    while True:
        count = min(count, limit)
        steps = _steps(method, diffusion, replace(ladder, steps=count))
        missing = budget - steps.num_evaluations()
        if missing <= 0:
            return steps.within(budget)
        if count == limit:
            raise ValueError(f"steps must be at most {steps.num_evaluations()} for this schedule, got {budget}")
        # One more level brings up to two evaluations, more where it makes long steps shorter, and none where it takes
        # the room of a middle level.
        if method.second is not None and steps.length[np.isfinite(steps.length)].max(initial=0) > math.log(
            method.longest
        ):
            grow = 1
        else:
            grow = (missing + 1) // 2 if missing < before else 2 * grow
        count, before = count + grow, missing


def _steps(method: TwoStage, diffusion: Diffusion, ladder: Ladder) -> _Steps:
    """The method's steps over the ladder, each with all its evaluations; `steps` of the ladder counts levels."""
    if ladder.timesteps is not None:
        ladder = replace(ladder, steps=None)
    visited = ladder.levels(diffusion)
    # N + 1 positions; that of the end is 0, and unused where the end is clean.
    positions = np.append(position_at_time(diffusion.schedule, visited.t), 0.0)
    levels = levels_at(diffusion, positions[:-1], (float(visited.alpha[-1]), float(visited.sigma[-1])))
    steps = _first_stage(levels, positions, 0.0 if method.on_path else method.eta)
    if method.second == "end":
        twice = np.isfinite(levels.rho[:-1]) & (levels.rho[1:] > 0)
        steps = replace(steps, weight=np.full(len(levels), 0.5), twice=twice)
    elif method.second == "middle":
        steps = _with_middle(steps, diffusion, levels, positions, ladder.continuous)
    if ladder.timesteps is None:
        # Levels that were given are visited by the textbook.
        steps = replace(steps, twice=steps.twice & (steps.length <= math.log(method.longest)))
    return _churned(steps, method.churn, diffusion, levels, ladder.continuous) if method.churn.amount else steps


def _first_stage(levels: Levels, positions: Array, eta: float) -> _Steps:
    """Steps of one evaluation, to the rho from where noise of scale eta leads up to the next level."""
    rho = levels.rho
    down, up = _ancestral(rho[:-1], rho[1:], eta)
    with np.errstate(divide="ignore"):
        length = np.log(rho[:-1]) - np.log(down)
    return _Steps(
        start=positions[:-1],
        target=down,
        noise=up,
        length=length,
        middle=positions[1:],
        weight=np.ones(len(levels)),
        twice=np.zeros(len(levels), dtype=bool),
        end=(float(levels.alpha[-1]), float(levels.sigma[-1])),
    )


def _ancestral(rho: Array, after: Array, eta: float) -> tuple[Array, Array]:
    """sigma_down and sigma_up of k-diffusion, `get_ancestral_step`."""
    ratio = after / rho
    return after * np.sqrt((1 - eta**2) + (eta * ratio) ** 2), after * eta * np.sqrt((1 - ratio) * (1 + ratio))


def _with_middle(steps: _Steps, diffusion: Diffusion, levels: Levels, positions: Array, continuous: bool) -> _Steps:
    """The steps with a second evaluation half-way in log rho, or at the nearest timestep inside."""
    rho = levels.rho[:-1]
    inside = np.isfinite(rho) & (steps.target > 0)
    start, reached = np.where(inside, rho, 2.0), np.where(inside, steps.target, 1.0)
    middle = position_of(diffusion, -0.5 * np.log(start * reached))
    # With eta = 1 the middle is the next level: but for rounding, so that whole times stay whole.
    middle = np.where(np.abs(middle - positions[1:]) < 1e-6, positions[1:], middle)
    if not continuous:
        # The margin keeps a target that is itself a timestep's level from being taken for one above it.
        every = levels_at(diffusion, np.arange(diffusion.num_timesteps, dtype=np.float64)).rho[:-1]
        lowest = np.searchsorted(every, reached * (1 + 1e-9), side="right")
        middle = np.clip(np.round(middle), lowest, np.maximum(steps.start - 1, lowest))
    middle = np.where(inside, np.minimum(middle, steps.start), steps.start)
    rho_m = levels_at(diffusion, middle).rho[:-1]
    twice = inside & (rho > rho_m) & (rho_m > steps.target)
    # The middle's place in the step, in log rho: r_1 of the general form of DPM-Solver-2, with the weight 1 / (2 r_1).
    share = np.log(np.where(twice, start / rho_m, 2.0)) / np.log(np.where(twice, start / reached, 2.0))
    return replace(steps, middle=middle, weight=0.5 / share, twice=twice)


def _churned(steps: _Steps, churn: Churn, diffusion: Diffusion, levels: Levels, continuous: bool) -> _Steps:
    """The steps begun from levels raised by noise, which the step before adds."""
    rho = levels.rho[:-1]
    # Karras et al. (2022), algorithm 2: gamma_i, and t_hat = t_i + gamma_i t_i.
    gamma = min(churn.amount / len(levels), MAX_CHURN)
    chosen = (churn.low <= rho) & (rho <= churn.high)
    raised = position_of(diffusion, -np.log(np.where(chosen, rho, 1.0)) - math.log1p(gamma))
    if not continuous:
        raised = np.round(raised)
    start = np.where(chosen, np.maximum(raised, steps.start), steps.start)
    is_raised = start > steps.start
    begun = levels_at(diffusion, start)
    low, high = np.where(is_raised, rho, 0.0), np.where(is_raised, begun.rho[:-1], 0.0)
    added = churn.noise * np.sqrt((high - low) * (high + low))
    # The first state: one of variance 1 at the level itself, and the noise that raises it.
    scale = float(begun.alpha[0] * np.hypot(1 / levels.alpha[0], added[0])) if is_raised[0] else 1.0
    return replace(steps, start=start, noise=np.append(added[1:], 0.0), init_scale=scale)


@dataclass(frozen=True)
class _Evaluations:
    """The evaluations of all steps: the step of each, whether it is a step's first of two or second, and its level."""

    step: npt.NDArray[np.int64]
    first: npt.NDArray[np.bool_]
    second: npt.NDArray[np.bool_]
    levels: Levels

    @classmethod
    def of(cls, steps: _Steps, diffusion: Diffusion) -> _Evaluations:
        step = np.repeat(np.arange(steps.twice.size), 1 + steps.twice)
        second = np.append(False, step[1:] == step[:-1])
        first = np.append(second[1:], False)
        levels = levels_at(diffusion, np.where(second, steps.middle[step], steps.start[step]), steps.end)
        return cls(step, first, second, levels)

    def columns(self) -> dict[str, Array]:
        """What the network is given, and how its output is read."""
        px, pm = self.levels.x0()
        return {"t": self.levels.t, "ci": self.levels.input_scale(), "px": px, "pm": pm}


def _path_rows(steps: _Steps, diffusion: Diffusion, eta: float) -> tuple[dict[str, Array], Levels]:
    """The columns of the two formulas on a path; a step of one evaluation is the first formula over all of it."""
    rows = _Evaluations.of(steps, diffusion)
    levels, second = rows.levels, rows.second
    alpha, sigma, rho = levels.alpha, levels.sigma, levels.rho
    begin = np.arange(second.size) - second
    down, up = _ancestral(rho[begin], rho[1:], eta)
    kept = down / rho[begin]
    # What the row before a second one did, from the same start.
    down_m, up_m, kept_m = (np.roll(values, 1) for values in (down, up, kept))
    # A step from a level without signal has one evaluation.
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (rho[begin] - rho[:-1]) / (rho[begin] - rho[1:])
        again = np.where(second & (up_m > 0), up * np.sqrt(share) / up_m, 0.0)
    weight = np.where(second, steps.weight[rows.step], 1.0)
    columns = rows.columns() | {
        "cx": alpha[1:] * np.where(second, again / np.where(second, alpha[:-1], 1.0), down / sigma[begin]),
        "cb": alpha[1:] * np.where(second, (down - again * down_m) / sigma[begin], 0.0),
        "c0": alpha[1:] * (1 - kept) * weight,
        "c1": alpha[1:] * np.where(second, (1 - kept) * (1 - weight) - again * (1 - kept_m), 0.0),
        "s": alpha[1:] * up * np.sqrt(np.where(second, 1 - share, 1.0)),
    }
    is_first = rows.first.astype(np.float64)
    return columns | {"push": is_first, "save_base": is_first, "bx": is_first}, levels


def _rows(steps: _Steps, diffusion: Diffusion) -> tuple[dict[str, Array], Levels]:
    """The columns of the module's two formulas, one row per evaluation, and the levels that they visit."""
    rows = _Evaluations.of(steps, diffusion)
    step, first, second, levels = rows.step, rows.first, rows.second, rows.levels
    alpha, rho = levels.alpha, levels.rho
    # rho' of the formula "second", and rho_m of "Euler" where a second evaluation follows.
    target = np.where(first, rho[1:], steps.target[step])
    share = target / rho[:-1]
    began = np.where(second, np.append(0.0, rho[:-2]), 0.0)
    # w (rho - rho') / rho_m
    correction = np.where(second, steps.weight[step], 0.0) * (began - target) / rho[:-1]
    columns = rows.columns() | {
        "cx": alpha[1:] * target / levels.sigma[:-1],
        "c0": alpha[1:] * np.where(second, correction, 1 - share),
        "c1": alpha[1:] * np.where(second, 1 - share - correction, 0.0),
        "s": alpha[1:] * np.where(first, 0.0, steps.noise[step]),
        "push": first.astype(np.float64),
    }
    return columns, levels
