"""The rows of each sampler's steps in k-diffusion's convention, x = x_0 + sigma eps, and the loop that runs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff import samplers
from fastdiff.compat.k_diffusion.sigmas import get_ancestral_step
from fastdiff.compat.levels import Levels, variance_exploding
from fastdiff.ops.table_state import TableState
from fastdiff.process.table import DEFAULTS, CoefficientTable
from fastdiff.samplers.exponential import phi
from fastdiff.samplers.two_stage_method import MAX_CHURN

__all__ = [
    "Callback",
    "Churn",
    "Denoiser",
    "NoiseSampler",
    "Step",
    "ancestral",
    "check_ends",
    "churned",
    "default_noise_sampler",
    "falling",
    "falling_or_even",
    "lms_rising",
    "multistep",
    "multistep_sde",
    "one_way",
    "run",
    "singlestep",
    "two_stage_sde",
]

Denoiser = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], None] | None
NoiseSampler = Callable[[Any, Any], Tensor] | None

_SOLVERS: dict[str, Callable[..., CoefficientTable]] = {
    "euler": samplers.euler,
    "heun": samplers.heun,
    "dpm2": samplers.dpm2,
    "dpmpp_2s": samplers.dpmpp_singlestep,
}


@dataclass
class Step:
    """A sampler's step as rows of a table.

    Attributes:
        rows: Columns of the coefficient table.
        number: The step's number.
        sigma: Its level.
        sigma_hat: The level it is raised to.
        noise_levels: For each row, the level to which its noise belongs.
        input_levels: For each row, the level of its evaluation.
        unused_draws: Draws of noise that nothing uses. k-diffusion draws at each step, and a seed gives what it gives
            there only if this does, too.
        carried: For each row, the share of what a callback added to the state that its result is to be given as well;
            None for all of it.
    """

    rows: Mapping[str, Any]
    number: int
    sigma: float
    sigma_hat: float
    noise_levels: Sequence[float]
    input_levels: Sequence[float]
    unused_draws: int = 0
    carried: Sequence[float] | None = None


@dataclass(frozen=True)
class Churn:
    """How far each step's level is raised: by min(amount / steps, sqrt(2) - 1), where it lies within the ends.

    Attributes:
        amount: S_churn.
        low: S_tmin.
        high: S_tmax.
        noise: S_noise.
        rounding: Levels that the network knows, in place of the raised one; None where it knows all.
    """

    amount: float
    low: float
    high: float
    noise: float
    rounding: Callable[[float], float] | None = None

    def raised(self, sigma: float, steps: int) -> float:
        """The level that a step starts from."""
        level = sigma * (1 + min(self.amount / steps, MAX_CHURN)) if self.low <= sigma <= self.high else sigma
        return level if self.rounding is None else self.rounding(level)


def _solver_rows(solver: str, sigmas: list[float]) -> CoefficientTable:
    """A step from the first level to the last, with the levels between for the solvers that stop there."""
    if sigmas[-1] > sigmas[0]:
        return CoefficientTable(
            _rising_columns(solver, *sigmas) | {"t": [0.0] * (1 if solver == "euler" else 2)}, solver
        )
    levels = Levels.from_sigmas(sigmas, "x0")
    if solver == "dpm2":
        levels = replace(levels, timesteps=levels.timesteps[:1])
    options = {"groups": [2]} if solver == "dpmpp_2s" else {}
    return variance_exploding(levels.table(_SOLVERS[solver], clip=None, **options))


def _rising_columns(solver: str, sigma: float, *ends: float) -> dict[str, list[float]]:
    """Euler's, Heun's and DPM-Solver-2's step to a higher level, with D = denoised and slope (x - D) / sigma."""
    ratio = ends[0] / sigma
    if solver == "euler":
        return {"cx": [ratio], "c0": [1 - ratio], "pm": [1.0]}
    change = ends[-1] - sigma
    shared = {"pm": [1.0, 1.0], "bx": [1.0, 0.0], "save_base": [1.0, 0.0], "push": [1.0, 0.0]}
    if solver == "heun":
        first, second = change / (2 * sigma), change / (2 * ends[0])
    else:
        first, second = 0.0, change / ends[0]
    return shared | {
        "cx": [ratio, second],
        "c0": [1 - ratio, -second],
        "cb": [0.0, 1 + first],
        "c1": [0.0, -first],
    }


def lms_rising(levels: list[float], order: int) -> list[Step]:
    """Steps of the linear multistep method to higher levels: exact integrals of the slopes' polynomial in sigma."""
    steps = []
    for i, (sigma, after) in enumerate(pairwise(levels)):
        past = levels[max(0, i + 1 - order) : i + 1][::-1]
        columns = {"cx": 1.0, "px": 1 / sigma, "pm": -1 / sigma, "push": 1.0}
        for k, level in enumerate(past):
            basis = np.poly1d([1.0])
            for other in past:
                if other != level:
                    basis = basis * np.poly1d([1.0, -other]) / (level - other)
            whole = basis.integ()
            columns[f"c{k}"] = float(whole(after) - whole(sigma))
        steps.append(_one_row(columns, i, sigma, after))
    return steps


def _with_noise(table: CoefficientTable, scale: float) -> CoefficientTable:
    """The same rows, the last of which adds noise."""
    columns = dict(table.columns)
    columns["s"] = np.append(np.zeros(len(table) - 1), scale)
    return replace(table, columns=columns)


def _raise(sigma: float, sigma_hat: float, s_noise: float) -> CoefficientTable:
    """A row without an evaluation that adds the noise from a level to a higher one."""
    scale = math.sqrt(sigma_hat**2 - sigma**2) * s_noise
    return CoefficientTable({"t": [0.0], "evaluate": [0.0], "cx": [1.0], "s": [scale]}, "churn")


def one_way(sigmas: Tensor) -> list[float]:
    """The levels as numbers: falling strictly, to 0 or above, or rising strictly, from data to noise.

    Raises:
        ValueError: they do neither.
    """
    levels: list[float] = sigmas.double().cpu().flatten().tolist()
    if sigmas.ndim == 1 and len(levels) > 1 and levels[0] > 0 and all(b > a for a, b in pairwise(levels)):
        return levels
    return falling(sigmas)


def falling(sigmas: Tensor) -> list[float]:
    """The levels as numbers.

    Raises:
        ValueError: they do not fall strictly, to 0 or above.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas must be [N + 1], falling, got shape {list(sigmas.shape)}")
    levels: list[float] = sigmas.double().cpu().tolist()
    if any(b >= a for a, b in pairwise(levels)) or levels[-1] < 0:
        raise ValueError("sigmas must fall strictly, to 0 or above, or rise strictly from above 0, from data to noise")
    return levels


def falling_or_even(sigmas: Tensor, eta: float) -> list[float]:
    """The levels as numbers: falling strictly, or, without noise, rising strictly from above 0.

    Raises:
        ValueError: they do neither, or rise with noise.
    """
    levels = one_way(sigmas)
    if levels[-1] > levels[0] and eta:
        raise ValueError(
            f"on the way from data to noise eta must be 0, got {eta:g}: the reverse process whose noise it scales "
            "runs the other way"
        )
    return levels


def check_ends(sigma_max: float, sigma_min: float, eta: float) -> tuple[float, float]:
    """The first level and the last as numbers.

    Raises:
        ValueError: levels that are not positive, or noise on the way to noise.
    """
    start, end = float(sigma_max), float(sigma_min)
    if end <= 0 or start <= 0:
        raise ValueError(f"sigma_min and sigma_max must be positive, got {end} and {start}")
    if end >= start and eta:
        raise ValueError("eta must be 0 on the way from data to noise")
    return start, end


def run(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    steps: Sequence[Step],
    *,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback = None,
    noise_sampler: NoiseSampler = None,
    reports_time: bool = False,
    slope_first: bool = False,
) -> Tensor:
    """Walk from the first level to the last; arguments as `sampling.sample_euler`.

    Args:
        model, x, sigmas, extra_args, callback: See there; sigmas are for the callback alone.
        steps: What to execute.
        noise_sampler: (sigma, sigma_next) -> noise; torch.randn_like when None.
        reports_time: Tell the callback t = -log sigma as well.
        slope_first: The slope is taken before the callback: what that writes into x is carried along the step, and what
            it writes into denoised has no effect. Else both count.
    """
    columns = {
        name: np.concatenate([np.broadcast_to(step.rows.get(name, value), len(step.input_levels)) for step in steps])
        for name, value in DEFAULTS.items()
    }
    state = TableState(CoefficientTable(columns | {"t": np.zeros(len(columns["cx"]))}, "k_diffusion"))
    ones = x.new_ones(x.shape[0])
    draw = default_noise_sampler(x) if noise_sampler is None else noise_sampler
    row = 0
    with torch.no_grad():
        for step in steps:
            level = sigmas.new_tensor(step.sigma)
            change = None
            for k, (input_level, noise_level) in enumerate(zip(step.input_levels, step.noise_levels, strict=True)):
                output = None
                if state.evaluates[row]:
                    output = model(x, input_level * ones, **dict(extra_args or {}))
                    if callback is not None and k == 0:
                        info: dict[str, Any] = {"x": x, "i": step.number, "sigma": sigmas[step.number],
                                "sigma_hat": sigmas.new_tensor(step.sigma_hat), "denoised": output}  # fmt: skip
                        if reports_time:
                            info |= {"t": -info["sigma"].log(), "t_up": -info["sigma_hat"].log()}
                        if slope_first:
                            x, output, change = _carried(callback, info)
                        else:
                            callback(info)
                noise = draw(level, sigmas.new_tensor(noise_level)) if state.noisy[row] else None
                x, _ = state.step(row, x, output, noise=noise)
                if change is not None:
                    x = x + (change if step.carried is None else step.carried[k] * change)
                row += 1
            for _ in range(step.unused_draws):
                draw(level, sigmas.new_tensor(step.noise_levels[-1]))
    return x


def _carried(callback: Callable[[dict[str, Any]], None], info: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """State and denoised image as they were before the callback, and what it added to the state, if anything."""
    state, denoised = info["x"], info["denoised"]
    before, kept = state.clone(), denoised.clone()
    callback(info)
    return before, kept, None if torch.equal(before, state) else state - before


def default_noise_sampler(x: Tensor) -> Callable[[Any, Any], Tensor]:
    """(sigma, sigma_next) -> independent noise like x from PyTorch's default generator."""
    return lambda sigma, sigma_next: torch.randn_like(x)


def churned(solver: str, levels: list[float], churn: Churn) -> list[Step]:
    """Steps of "euler", "heun" or "dpm2", each from a level raised by noise. Source: Karras (2022), algorithm 2."""
    steps = []
    for i, (sigma, after) in enumerate(pairwise(levels)):
        hat = churn.raised(sigma, len(levels) - 1)
        if hat > sigma:
            steps.append(Step(_raise(sigma, hat, churn.noise).columns, i, sigma, hat, [hat], [hat]))
        steps.append(_solver_step(solver, i, sigma, hat, after, after))
        steps[-1].unused_draws = int(hat <= sigma)
    return steps


def ancestral(solver: str, levels: list[float], eta: float, s_noise: float) -> list[Step]:
    """Steps of "euler", "dpm2" or "dpmpp_2s" to below the next level, and noise up to it."""
    if solver == "dpmpp_2s" and levels[-1] > levels[0]:
        # The same evaluations; one draw in a step, which nothing uses.
        return [replace(step, unused_draws=1) for step in two_stage_sde(levels, 0.0, s_noise, 1 / 2)]
    steps = []
    for i, (sigma, after) in enumerate(pairwise(levels)):
        down, up = get_ancestral_step(sigma, after, eta)
        noise = up * s_noise if after > 0 else 0.0
        steps.append(_solver_step(solver, i, sigma, sigma, down, after, noise))
        steps[-1].unused_draws = int(after > 0 and noise == 0)
    return steps


def _solver_step(
    solver: str, i: int, sigma: float, hat: float, target: float, after: float, noise: float = 0.0
) -> Step:
    """A step from `hat` to `target`, and noise from there to `after`."""
    input_levels, ends = [hat], [target]
    if target == 0:
        solver = "euler"
    elif solver == "heun":
        input_levels = [hat, target]
    elif solver != "euler":
        # They stop half-way in log sigma.
        input_levels = [hat, math.sqrt(hat * target)]
        ends = [input_levels[1], target]
    rows = _solver_rows(solver, [hat, *ends])
    rows = _with_noise(rows, noise) if noise else rows
    found = Step(rows.columns, i, sigma, hat, [after] * len(input_levels), input_levels)
    if solver in ("heun", "dpm2"):
        # In the second row the state between the two also stands for the saved state and the first prediction, from
        # which it came. By the formulas it counts for the second slope alone.
        slope = (target - hat) / input_levels[1] / (2 if solver == "heun" else 1)
        found.carried = [1.0, 1.0 + slope - float(np.asarray(rows.columns["cx"])[1])]
    return found


def multistep(build: Callable[..., CoefficientTable], levels: list[float], **options: Any) -> list[Step]:
    """The rows of a multistep sampler's table, one per step; `options` are its builder's."""
    columns = variance_exploding(Levels.from_sigmas(levels, "x0").table(build, **options)).columns
    return [
        _one_row({name: np.asarray(values)[i] for name, values in columns.items()}, i, sigma, after)
        for i, (sigma, after) in enumerate(pairwise(levels))
    ]


def multistep_sde(levels: list[float], order: int, eta: float, s_noise: float, *, heun: bool = False) -> list[Step]:
    """Steps of DPM-Solver++(2M) or (3M) on an SDE whose noise has the scale eta; 1 is the exact reverse SDE.

    With h the fall of log sigma and x = (1 + eta) h, the state counts for sigma' / sigma exp(-eta h), the denoised
    image for x phi_1(-x), and the differences of its past values for x phi_2(-x) and x phi_3(-x).

    Source: Lu et al. (2022), arXiv:2211.01095, appendix B; k-diffusion, sample_dpmpp_2m_sde and sample_dpmpp_3m_sde.
    """
    steps: list[Step] = []
    past: list[float] = []
    now, last, older = np.eye(3)
    for i, (sigma, after) in enumerate(pairwise(levels)):
        if after == 0:
            steps.append(_one_row({"c0": 1.0, "pm": 1.0}, i, sigma, after))
            break
        h = math.log(sigma / after)
        x = (1 + eta) * h
        weights = x * phi(1, -x) * now
        if len(past) >= 2 and order == 3:
            r0, r1 = past[-1] / h, past[-2] / h
            first, second = (now - last) / r0, (last - older) / r1
            bend = (first - second) / (r0 + r1)
            weights = weights + x * phi(2, -x) * (first + bend * r0) + x * phi(3, -x) * bend
        elif past:
            half = order == 2 and not heun
            weights = weights + (0.5 * x * phi(1, -x) if half else x * phi(2, -x)) * (now - last) * h / past[-1]
        noise = after * math.sqrt(-math.expm1(-2 * eta * h)) * s_noise
        columns = {"cx": after / sigma * math.exp(-eta * h), "s": noise, "pm": 1.0, "push": 1.0}
        columns |= {f"c{k}": float(weight) for k, weight in enumerate(weights)}
        steps.append(_one_row(columns, i, sigma, after))
        past.append(h)
    return steps


def two_stage_sde(levels: list[float], eta: float, s_noise: float, r: float) -> list[Step]:
    """Steps of DPM-Solver++ (stochastic): an ancestral step to the share r of the way in log sigma, then all of it.

    Source: Lu et al. (2022), arXiv:2211.01095; k-diffusion, sample_dpmpp_sde.
    """
    steps: list[Step] = []
    second = 1 / (2 * r)
    for i, (sigma, after) in enumerate(pairwise(levels)):
        if after == 0:
            steps.append(_one_row({"c0": 1.0, "pm": 1.0}, i, sigma, after))
            break
        middle = sigma * (after / sigma) ** r
        (down_1, up_1), (down_2, up_2) = (get_ancestral_step(sigma, level, eta) for level in (middle, after))
        share = 1 - down_2 / sigma
        columns = {
            "pm": [1.0, 1.0],
            "cx": [down_1 / sigma, 0.0],
            "cb": [0.0, down_2 / sigma],
            "c0": [1 - down_1 / sigma, share * second],
            "c1": [0.0, share * (1 - second)],
            "s": [up_1 * s_noise, up_2 * s_noise],
            "bx": [1.0, 0.0],
            "save_base": [1.0, 0.0],
            "push": [1.0, 0.0],
        }
        unused_draws = sum(scale == 0 for scale in columns["s"])
        steps.append(Step(columns, i, sigma, sigma, [middle, after], [sigma, middle], unused_draws))
    return steps


def singlestep(i: int, order: int, sigma: float, down: float, noise: float, after: float) -> Step:
    """A step of DPM-Solver of order 1 to 3 from sigma to `down`, and noise of a standard deviation.

    Source: Lu et al. (2022), arXiv:2206.00927, algorithms 1 and 2, with r_1 = 1/2 for order 2, 1/3 and 2/3 for order 3.
    """
    h = math.log(sigma / down)
    shares = {1: [0.0], 2: [0.0, 1 / 2], 3: [0.0, 1 / 3, 2 / 3]}[order]
    at = [sigma * math.exp(-r * h) for r in shares]
    # Each stage goes to the next level by x - a eps_0 - b (eps_last - eps_0), with eps = (state - D) / sigma.
    stages = []
    for k, (level, r) in enumerate(zip([*at[1:], down], [*shares[1:], 1.0], strict=True)):
        a = level * math.expm1(r * h)
        if k == 0:
            b = 0.0
        elif order == 2:
            b = a / (2 * shares[1])
        else:
            b = level * r * h * phi(2, r * h) * r / shares[k]
        stages.append((a - b, b))
    columns: dict[str, list[float]] = {name: [0.0] * order for name in ("cx", "cb", "c0", "c1", "c2", "s")}
    for k, (first, latest) in enumerate(stages):
        if k == 0:
            columns["cx"][0], columns["c0"][0] = 1 - (first + latest) / sigma, (first + latest) / sigma
            continue
        columns["cb"][k] = 1 - first / sigma
        columns[f"c{k}"][k] = first / sigma
        columns["cx"][k], columns["c0"][k] = -latest / at[k], latest / at[k]
    columns["s"][-1] = noise
    starts = [1.0] + [0.0] * (order - 1)
    columns |= {"bx": starts, "save_base": starts, "push": [1.0] * order, "pm": [1.0] * order}
    return Step(columns, i, sigma, sigma, [after] * order, at, unused_draws=int(noise == 0))


def _one_row(columns: Mapping[str, Any], i: int, sigma: float, after: float) -> Step:
    return Step(columns, i, sigma, sigma, [after], [sigma])
