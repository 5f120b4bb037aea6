"""Multistep solvers: one evaluation per step, and the past ones reused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.ancestral import clip_column
from fastdiff.samplers.exponential import data_moments, noise_moments, plain_moments, sde_moments, weights
from fastdiff.samplers.levels import Final, Levels, table_from_rows, visited
from fastdiff.samplers.registry import sampler

SolverType = Literal["midpoint", "heun"]
# Below so many steps the last ones fall to lower orders, as the papers' codes do.
FEW_STEPS = 15


def check_order(order: int, highest: int) -> None:
    """Raise ValueError unless order is 1 to `highest`."""
    if isinstance(order, bool) or order not in range(1, highest + 1):
        raise ValueError(f"order must be 1 to {highest}, got {order!r}")


def check_solver_type(solver_type: str) -> None:
    """Raise ValueError unless it is "midpoint" or "heun"."""
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")


def row_order(i: int, num_rows: int, order: int, lower_order_final: bool | None, ends_clean: bool) -> int:
    """The order of row i: limited by the values at hand, and lower towards the end.

    The last row to a level without noise is of order 1, since log-SNR is infinite there.
    """
    falls = num_rows < FEW_STEPS if lower_order_final is None else lower_order_final
    limit = min(order, i + 1)
    if falls:
        limit = min(limit, num_rows - i)
    return 1 if ends_clean and i == num_rows - 1 else limit


def _rows(
    levels: Levels,
    order: int,
    lower_order_final: bool | None,
    step: Callable[[int, int], tuple[float, Array, float]],
    prediction: tuple[Array, Array],
    clip: float,
) -> list[dict[str, float]]:
    """Rows x' = A x + sum_k w_k f_k + s z, where `step(i, k)` gives (A, w, s) of row i at order k."""
    px, pm = prediction
    rows = []
    count = len(levels)
    for i in range(count):
        k = row_order(i, count, order, lower_order_final, levels.ends_clean())
        gain, w, s = step(i, k)
        row = {"t": levels.t[i], "px": px[i], "pm": pm[i], "clip": clip, "cx": gain, "s": s, "push": 1.0}
        rows.append(row | {f"c{age}": value for age, value in enumerate(w)})
    return rows


@sampler
def dpmpp(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    solver_type: SolverType = "midpoint",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool | None = None,
    clip: float | None = 1.0,
    compat: Literal["diffusers"] | None = None,
) -> CoefficientTable:
    """Coefficients of multistep DPM-Solver++, from noise to data.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        order: 1 to 3. Order 1 is DDIM with eta = 0.
        solver_type: The second-order formula, both of order 2: "heun" is the exact one for a linear prediction.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        lower_order_final: Let the last rows fall to lower orders; None does so for fewer than 15 steps.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        compat: "diffusers" halves the second-derivative term of order 3 as that library and the authors' code do, which
            leaves it with order 2.

    Returns:
        Table of one row per evaluation, float64.

    Raises:
        ValueError: an option out of range.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2 and appendix B.
    """
    return _dpm("dpmpp", "data", diffusion, steps, order, solver_type, spacing, timesteps, final, continuous,
                lower_order_final, clip, compat)  # fmt: skip


@sampler
def dpm_solver(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    solver_type: SolverType = "midpoint",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool | None = None,
    compat: Literal["diffusers"] | None = None,
) -> CoefficientTable:
    """Coefficients of multistep DPM-Solver, which integrates the noise prediction; nothing is clipped.

    Args, Returns, Raises: as `dpmpp`.

    Source: Lu et al. (2022), arXiv:2206.00927; the multistep form: arXiv:2211.01095, appendix B.
    """
    return _dpm("dpm_solver", "noise", diffusion, steps, order, solver_type, spacing, timesteps, final, continuous,
                lower_order_final, None, compat)  # fmt: skip


@sampler
def dpmpp_sde(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    solver_type: SolverType = "midpoint",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool | None = None,
    clip: float | None = 1.0,
    compat: Literal["diffusers"] | None = None,
) -> CoefficientTable:
    """Coefficients of SDE-DPM-Solver++: DPM-Solver++ on the reverse SDE, with fresh noise in every row but the last.

    Args, Returns, Raises: as `dpmpp`; with compat="diffusers", order 3 has their sign in its last term.

    Source: Lu et al. (2022), arXiv:2211.01095, eq. 18 and 19.
    """
    return _dpm("dpmpp_sde", "sde", diffusion, steps, order, solver_type, spacing, timesteps, final, continuous,
                lower_order_final, clip, compat)  # fmt: skip


def _dpm(
    name: str,
    kind: Literal["data", "noise", "sde"],
    diffusion: Diffusion,
    steps: int | None,
    order: int,
    solver_type: SolverType,
    spacing: str,
    timesteps: Sequence[float] | None,
    final: Final,
    continuous: bool,
    lower_order_final: bool | None,
    clip: float | None,
    compat: Literal["diffusers"] | None,
) -> CoefficientTable:
    check_order(order, 3)
    check_solver_type(solver_type)
    if compat not in (None, "diffusers"):
        raise ValueError(f"compat must be None or 'diffusers', got {compat!r}")
    levels = visited(diffusion, steps, spacing=spacing, timesteps=timesteps, final=final, continuous=continuous)
    alpha, sigma, lam = levels.alpha, levels.sigma, levels.lam

    def step(i: int, k: int) -> tuple[float, Array, float]:
        h = lam[i + 1] - lam[i]
        gain, moments = transfer(kind, levels, i, i + 1, k)
        nodes = [(lam[i - age] - lam[i]) / h for age in range(k)] if k > 1 else [0.0]
        if k == 2 and solver_type == "midpoint":
            moments[1] = 0.5 * moments[0]
        if k == 3 and compat == "diffusers":
            # Their last term is the second derivative's, times half of it; in the SDE its constant has the wrong sign.
            moments[2] = 0.5 * moments[2] if kind != "sde" else 0.5 * moments[2] - alpha[i + 1]
        noise = sigma[i + 1] * math.sqrt(-math.expm1(-2 * h)) if kind == "sde" else 0.0
        return gain, weights(nodes, moments), noise

    prediction = levels.eps() if kind == "noise" else levels.x0()
    rows = _rows(levels, order, lower_order_final, step, prediction, clip_column(clip))
    options = {"order": order, "solver_type": solver_type, "spacing": spacing, "final": final, "steps": len(levels)}
    return table_from_rows(
        levels, rows, name, order=0 if kind == "sde" else order, data_prediction=kind != "noise", options=options
    )


def transfer(
    kind: Literal["data", "noise", "sde"], levels: Levels, start: int, end: int, count: int
) -> tuple[float, list[float]]:
    """(A, M) of the step from one level to another, for the first `count` moments."""
    alpha, sigma = levels.alpha, levels.sigma
    h = float(levels.lam[end] - levels.lam[start])
    if kind == "noise":
        moments = noise_moments(count, h, alpha[start], sigma[start], alpha[end], sigma[end])
        return float(alpha[end] / alpha[start]), moments
    gain = float(sigma[end] / sigma[start])
    if kind == "data":
        return gain, data_moments(count, h, float(alpha[end]))
    return gain * math.exp(-h), sde_moments(count, h, float(alpha[end]))


@sampler
def dpmpp_2m(diffusion: Diffusion, steps: int | None = None, *, spacing: str = "trailing",
             timesteps: Sequence[float] | None = None, clip: float | None = 1.0) -> CoefficientTable:  # fmt: skip
    """DPM-Solver++(2M): `dpmpp` of order 2.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2 and appendix B.
    """
    return dpmpp(diffusion, steps, order=2, spacing=spacing, timesteps=timesteps, clip=clip)


@sampler
def dpmpp_3m(diffusion: Diffusion, steps: int | None = None, *, spacing: str = "trailing",
             timesteps: Sequence[float] | None = None, clip: float | None = 1.0) -> CoefficientTable:  # fmt: skip
    """DPM-Solver++(3M): `dpmpp` of order 3.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2 and appendix B.
    """
    return dpmpp(diffusion, steps, order=3, spacing=spacing, timesteps=timesteps, clip=clip)


@sampler
def deis(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 3,
    variable: Literal["log_rho", "t", "rho"] = "log_rho",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool | None = None,
) -> CoefficientTable:
    """Coefficients of DEIS: Adams-Bashforth on the noise prediction, exact in the linear part.

    The prediction is a polynomial through the past values in `variable`, with rho = sigma / alpha: in log rho
    (diffusers' "logrho"), in the timestep (tAB) or in rho (rhoAB).

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        order: 1 to 4 values; order 1 is DDIM.
        variable: See above.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        lower_order_final: As in `dpmpp`.

    Raises:
        ValueError: an option out of range.

    Source: Zhang and Chen (2023), arXiv:2204.13902, eq. 13 to 15 and table 1.
    """
    check_order(order, 4)
    levels = visited(diffusion, steps, spacing=spacing, timesteps=timesteps, final=final, continuous=continuous)
    if variable not in ("log_rho", "t", "rho"):
        raise ValueError(f"variable must be 'log_rho', 't' or 'rho', got {variable!r}")
    rows = _adams_bashforth(diffusion, levels, order, variable, lower_order_final)
    options = {"order": order, "variable": variable, "spacing": spacing, "final": final, "steps": len(levels)}
    return table_from_rows(levels, rows, "deis", order=order, data_prediction=False, options=options)


@sampler
def lms(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 4,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
) -> CoefficientTable:
    """Coefficients of the linear multistep method in sigma: `deis` in rho, at full order to the end.

    Args, Raises: as `deis`.

    Source: Crowson, k-diffusion, `sample_lms`; Karras et al. (2022), arXiv:2206.00364, eq. 3.
    """
    check_order(order, 4)
    levels = visited(diffusion, steps, spacing=spacing, timesteps=timesteps, final=final, continuous=continuous)
    rows = _adams_bashforth(diffusion, levels, order, "rho", False)
    options = {"order": order, "spacing": spacing, "final": final, "steps": len(levels)}
    return table_from_rows(levels, rows, "lms", order=order, data_prediction=False, options=options)


def _adams_bashforth(
    diffusion: Diffusion, levels: Levels, order: int, variable: str, lower_order_final: bool | None
) -> list[dict[str, float]]:
    alpha, rho, lam = levels.alpha, levels.rho, levels.lam

    def step(i: int, k: int) -> tuple[float, Array, float]:
        gain = alpha[i + 1] / alpha[i]
        if variable == "log_rho" or k == 1:
            _, moments = transfer("noise", levels, i, i + 1, k)
            places = -lam
        elif variable == "rho":
            moments = plain_moments(k, alpha[i + 1] * (rho[i + 1] - rho[i]))
            places = rho
        else:
            places = np.append(levels.t, diffusion.schedule.timesteps[0])
            moments = _time_moments(diffusion, alpha[i + 1], places[i], places[i + 1], k)
        width = places[i + 1] - places[i]
        nodes = [(places[i - age] - places[i]) / width for age in range(k)] if k > 1 else [0.0]
        return gain, weights(nodes, moments), 0.0

    # In rho nothing is infinite at a clean end, so the order need not fall there.
    clean = levels.ends_clean() and variable != "rho"
    px, pm = levels.eps()
    rows = []
    for i in range(len(levels)):
        k = row_order(i, len(levels), order, lower_order_final, clean)
        gain, w, _ = step(i, k)
        row = {"t": levels.t[i], "px": px[i], "pm": pm[i], "cx": gain, "push": 1.0}
        rows.append(row | {f"c{age}": value for age, value in enumerate(w)})
    return rows


def _time_moments(diffusion: Diffusion, alpha_next: float, start: float, end: float, count: int) -> list[float]:
    """Integral of r^j d(rho) over a step, with r the share of the timestep gone: Gauss-Legendre between timesteps."""
    times, schedule = diffusion.schedule.timesteps, diffusion.schedule
    inside = times[(times < start) & (times > end)]
    edges = np.concatenate([[end], inside, [start]])
    x, w = np.polynomial.legendre.leggauss(6)
    middle, half = 0.5 * (edges[1:] + edges[:-1])[:, None], 0.5 * np.diff(edges)[:, None]
    t = middle + half * x
    log_abar = np.interp(t, times, schedule.log_alphas_cumprod)
    slope = (np.diff(np.interp(edges, times, schedule.log_alphas_cumprod)) / np.diff(edges))[:, None]
    # rho^2 = exp(-log_abar) - 1.
    rate = -0.5 * np.exp(-log_abar) * slope / np.sqrt(np.expm1(-log_abar))
    r = (t - start) / (end - start)
    return [-float(alpha_next * np.sum(w * half * rate * r**j)) for j in range(count)]
