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
from fastdiff.compat.levels import ladder_of_sigmas, variance_exploding
from fastdiff.ops.table_state import TableState
from fastdiff.process.table import (
    COEFFICIENTS,
    DEFAULTS,
    FLAGS,
    CoefficientTable,
)
from fastdiff.samplers.exponential import phi
from fastdiff.samplers.two_stage_method import MAX_CHURN

__all__ = [
    "Callback",
    "Churn",
    "Denoiser",
    "NoiseSampler",
    "Part",
    "ancestral",
    "churned",
    "default_noise_sampler",
    "fall",
    "multistep_sde",
    "run",
    "singlestep",
    "two_stage_sde",
    "whole",
]

Denoiser = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], None] | None
NoiseSampler = Callable[[Any, Any], Tensor] | None


@dataclass
class Part:
    """The rows of one step.

    Attributes:
        rows: Columns of the coefficient table.
        step: The step's number.
        sigma: Its level.
        sigma_hat: The level it is raised to.
        ends: For each row, the level to which its noise belongs.
        at: For each row, the level of its evaluation.
        wasted: Draws of noise that nothing uses. k-diffusion draws at each step, and a seed gives what it gives there
            only if this does, too.
    """

    rows: Mapping[str, Any]
    step: int
    sigma: float
    sigma_hat: float
    ends: Sequence[float]
    at: Sequence[float]
    wasted: int = 0


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


def _pair(kind: str, levels: list[float]) -> CoefficientTable:
    """A step from the first level to the last, with the levels between for the solvers that stop there."""
    way = ladder_of_sigmas(levels, "x0")
    if kind == "dpm2":
        table = samplers.dpm2(way.diffusion, timesteps=way.timesteps[:1], final=way.final, clip=None)
    elif kind == "dpmpp_2s":
        table = samplers.dpmpp_singlestep(
            way.diffusion, timesteps=way.timesteps, final=way.final, groups=[2], clip=None
        )
    else:
        build = samplers.heun if kind == "heun" else samplers.euler
        table = build(way.diffusion, timesteps=way.timesteps, final=way.final, clip=None)
    return variance_exploding(table)


def _with_noise(table: CoefficientTable, scale: float) -> CoefficientTable:
    """The same rows, the last of which adds noise."""
    columns = dict(table.columns)
    columns["s"] = np.append(np.zeros(len(table) - 1), scale)
    return replace(table, columns=columns)


def _raise(sigma: float, sigma_hat: float, s_noise: float) -> CoefficientTable:
    """A row without an evaluation that adds the noise from a level to a higher one."""
    scale = math.sqrt(sigma_hat**2 - sigma**2) * s_noise
    return CoefficientTable({"t": [0.0], "evaluate": [0.0], "cx": [1.0], "s": [scale]}, "churn")


def fall(sigmas: Tensor) -> list[float]:
    """The levels as numbers.

    Raises:
        ValueError: they do not fall strictly, to 0 or above.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas must be [N + 1], falling, got shape {list(sigmas.shape)}")
    levels: list[float] = sigmas.double().cpu().tolist()
    if any(b >= a for a, b in pairwise(levels)) or levels[-1] < 0:
        raise ValueError("sigmas must fall strictly, to 0 or above")
    return levels


def run(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    parts: Sequence[Part],
    extra_args: Mapping[str, Any] | None,
    callback: Callback,
    noise_sampler: NoiseSampler,
    *,
    reports_time: bool = False,
) -> Tensor:
    """Walk from the first level to the last; arguments as `sampling.sample_euler`.

    Args:
        model, x, sigmas, extra_args, callback: See there; sigmas are for the callback alone.
        parts: The steps.
        noise_sampler: (sigma, sigma_next) -> noise; torch.randn_like when None.
        reports_time: Tell the callback t = -log sigma as well.
    """
    columns = {
        name: np.concatenate([np.broadcast_to(part.rows.get(name, DEFAULTS[name]), len(part.at)) for part in parts])
        for name in (*COEFFICIENTS, *FLAGS)
        if name != "t"
    }
    table = CoefficientTable(columns | {"t": np.zeros(len(columns["cx"]))}, "k_diffusion")
    state = TableState(table)
    ones = x.new_ones(x.shape[0])
    draw = default_noise_sampler(x) if noise_sampler is None else noise_sampler
    row = 0
    with torch.no_grad():
        for part in parts:
            reported = False
            level = sigmas.new_tensor(part.sigma)
            for place, (at, end) in enumerate(zip(part.at, part.ends, strict=True)):
                output = None
                if state.evaluates[row]:
                    output = model(x, at * ones, **dict(extra_args or {}))
                    if callback is not None and not reported:
                        info: dict[str, Any] = {"x": x, "i": part.step, "sigma": sigmas[part.step],
                                "sigma_hat": sigmas.new_tensor(part.sigma_hat), "denoised": output}  # fmt: skip
                        if reports_time:
                            info |= {"t": -info["sigma"].log(), "t_up": -info["sigma_hat"].log()}
                        callback(info)
                        reported = True
                noise = draw(level, sigmas.new_tensor(end)) if state.noisy[row] else None
                if place == len(part.at) - 1:
                    for _ in range(part.wasted):
                        draw(level, sigmas.new_tensor(end))
                x, _ = state.step(row, x, output, noise=noise)
                row += 1
    return x


def default_noise_sampler(x: Tensor) -> Callable[[Any, Any], Tensor]:
    """(sigma, sigma_next) -> independent noise like x from PyTorch's default generator."""
    return lambda sigma, sigma_next: torch.randn_like(x)


def churned(kind: str, levels: list[float], churn: Churn) -> list[Part]:
    """Steps of "euler", "heun" or "dpm2", each from a level raised by noise. Source: Karras (2022), algorithm 2."""
    parts = []
    for i, (sigma, after) in enumerate(pairwise(levels)):
        hat = churn.raised(sigma, len(levels) - 1)
        step = _step(kind, i, sigma, hat, after, after)
        if hat > sigma:
            parts.append(Part(_raise(sigma, hat, churn.noise).columns, i, sigma, hat, [hat], [hat]))
        else:
            step.wasted = 1
        parts.append(step)
    return parts


def _step(kind: str, i: int, sigma: float, hat: float, target: float, after: float, noise: float = 0.0) -> Part:
    """A step from `hat` to `target`, and noise from there to `after`."""
    middle = math.sqrt(hat * target)
    if target == 0 or kind == "euler":
        table, at = _pair("euler", [hat, target]), [hat]
    elif kind == "heun":
        table, at = _pair("heun", [hat, target]), [hat, target]
    else:
        table, at = _pair(kind, [hat, middle, target]), [hat, middle]
    rows = (_with_noise(table, noise) if noise else table).columns
    return Part(rows, i, sigma, hat, [after] * len(at), at)


def ancestral(kind: str, levels: list[float], eta: float, s_noise: float) -> list[Part]:
    """Steps of "euler", "dpm2" or "dpmpp_2s" to below the next level, and noise up to it."""
    parts = []
    for i, (sigma, after) in enumerate(pairwise(levels)):
        down, up = get_ancestral_step(sigma, after, eta)
        noise = up * s_noise if after > 0 else 0.0
        parts.append(_step(kind, i, sigma, sigma, down, after, noise))
        parts[-1].wasted = int(after > 0 and noise == 0)
    return parts


def whole(table: CoefficientTable, levels: list[float]) -> list[Part]:
    """The rows of a multistep table, one per step."""
    columns = variance_exploding(table).columns
    return [
        _row({name: np.asarray(values)[i] for name, values in columns.items()}, i, sigma, after)
        for i, (sigma, after) in enumerate(pairwise(levels))
    ]


def multistep_sde(levels: list[float], order: int, eta: float, s_noise: float, *, heun: bool = False) -> list[Part]:
    """Steps of DPM-Solver++(2M) or (3M) on an SDE whose noise has the scale eta; 1 is the exact reverse SDE.

    With h the fall of log sigma and x = (1 + eta) h, the state counts for sigma' / sigma exp(-eta h), the denoised
    image for x phi_1(-x), and the differences of its past values for x phi_2(-x) and x phi_3(-x).

    Source: Lu et al. (2022), arXiv:2211.01095, appendix B; k-diffusion, sample_dpmpp_2m_sde and sample_dpmpp_3m_sde.
    """
    parts: list[Part] = []
    past: list[float] = []
    now, last, older = np.eye(3)
    for i, (sigma, after) in enumerate(pairwise(levels)):
        if after == 0:
            parts.append(_row({"c0": 1.0, "pm": 1.0}, i, sigma, after))
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
        parts.append(_row(columns, i, sigma, after))
        past.append(h)
    return parts


def two_stage_sde(levels: list[float], eta: float, s_noise: float, r: float) -> list[Part]:
    """Steps of DPM-Solver++ (stochastic): an ancestral step to the share r of the way in log sigma, then all of it.

    Source: Lu et al. (2022), arXiv:2211.01095; k-diffusion, sample_dpmpp_sde.
    """
    parts: list[Part] = []
    second = 1 / (2 * r)
    for i, (sigma, after) in enumerate(pairwise(levels)):
        if after == 0:
            parts.append(_row({"c0": 1.0, "pm": 1.0}, i, sigma, after))
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
        wasted = sum(scale == 0 for scale in columns["s"])
        parts.append(Part(columns, i, sigma, sigma, [middle, after], [sigma, middle], wasted))
    return parts


def singlestep(i: int, order: int, sigma: float, down: float, noise: float, after: float) -> Part:
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
    return Part(columns, i, sigma, sigma, [after] * order, at)


def _row(columns: Mapping[str, Any], i: int, sigma: float, after: float) -> Part:
    return Part(columns, i, sigma, sigma, [after], [sigma])
