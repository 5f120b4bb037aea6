"""The probability flow with fixed steps of any order, in both directions, and the exact inverse of DDIM.

With u = x / alpha and rho = sigma / alpha the flow is du / drho = eps(alpha u, t): Song, Meng, Ermon (2021),
arXiv:2010.02502, eq. 14. A step is an explicit Runge-Kutta step in rho; a stage is a row whose prediction is the eps.
`fastdiff.editing` runs these tables; they are not among `samplers.names()`, where `steps` counts evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastdiff.diffusion import Diffusion, eps_coefficients, x0_coefficients
from fastdiff.samplers.levels import Levels, levels_at, position_of, table_from_rows, visited
from fastdiff.schedule import Array
from fastdiff.table import CoefficientTable

# Butcher tableaus by order: the stages' rows, then the weights. A stage's node is the sum of its row.
TABLEAUS: dict[int, tuple[tuple[float, ...], ...]] = {
    # Euler, which is DDIM.
    1: ((1.0,),),
    # Heun.
    2: ((1.0,), (1 / 2, 1 / 2)),
    # Ralston (1962), the least error bound of order 3.
    3: ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    # Kutta (1901).
    4: ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}

# Of images in [-1, 1].
_TYPICAL_VARIANCE = 0.25


def flow_encode(diffusion: Diffusion, steps: int | None = None, *, order: int = 2) -> CoefficientTable:
    """Coefficients of the probability flow, from a clean image to noise, in Runge-Kutta steps.

    The levels are evenly spaced in the log-SNR from t = 0 to t = T-1; the network is given fractional times. A first
    row goes from the image to the level of t = 0 along a score held constant: x' = alpha (x + rho / 2 eps). Start from
    an image: `sample(..., x_init=image)`.

    Args:
        diffusion: What the network was trained on.
        steps: Runge-Kutta steps, at least 1 and as many as you like, of `order` evaluations each, besides the first
            row; None for T.
        order: 1 to 4: Euler, Heun, Ralston, Kutta.

    Returns:
        Table of 1 + steps * order rows, float64.

    Raises:
        ValueError: an option out of range, or a schedule that leaves no signal at t = T-1.

    Source: Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 14; Butcher (2016), Numerical Methods for ODEs.
    """
    return _flow(diffusion, steps, order, "flow_encode")


def flow_decode(diffusion: Diffusion, steps: int | None = None, *, order: int = 2) -> CoefficientTable:
    """Coefficients of the probability flow, from noise to a clean image, in Runge-Kutta steps.

    The way of `flow_encode` in the other direction; its last row goes from the level of t = 0 to the image.

    Args:
        diffusion: What the network was trained on.
        steps: Runge-Kutta steps, at least 1, of `order` evaluations each, besides the last row; None for T.
        order: 1 to 4: Euler, Heun, Ralston, Kutta.

    Returns:
        Table of steps * order + 1 rows, float64.

    Raises:
        ValueError: an option out of range, or a schedule that leaves no signal at t = T-1.

    Source: Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 14; Butcher (2016), Numerical Methods for ODEs.
    """
    return _flow(diffusion, steps, order, "flow_decode")


def fixed_point_encode(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    iterations: int = 5,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    continuous: bool = False,
) -> CoefficientTable:
    """Coefficients of the exact inverse of `ddim`, by fixed-point iteration at each level.

    `ddim` goes from level i to the cleaner level i-1 by x_{i-1} = a x_i + b eps(x_i) = a' x_i + b' x_0(x_i), with the
    predictions at t_i. So x_i = (x_{i-1} - b eps(x_i)) / a, or likewise with x_0, which is iterated from x_{i-1}. The
    form is taken, level by level, that converges faster for Gaussian data of variance 1/4: eps near the image and x_0
    near the noise. Compare the image with what `ddim(..., clip=None)` makes of the result. Start from an image:
    `sample(..., x_init=image)`.

    Args:
        diffusion: What the network was trained on.
        steps: Levels, 1 to T; None for all T.
        iterations: Evaluations per level, at least 1.
        spacing: See `visited`, as for `timesteps` and `continuous`: give those of the `ddim` that decodes.
        timesteps: The timesteps themselves.
        continuous: Whether levels may fall between timesteps.

    Returns:
        Table of steps * iterations rows, float64.

    Raises:
        ValueError: an option out of range.

    Source: Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 12; the iteration: Pan et al. (2023), arXiv:2309.04907.
    """
    if isinstance(iterations, bool) or int(iterations) != iterations or iterations < 1:
        raise ValueError(f"iterations must be a whole number, at least 1, got {iterations!r}")
    levels = visited(diffusion, steps, spacing=spacing, timesteps=timesteps, continuous=continuous)
    reverse = Levels(levels.prediction, levels.t[::-1], levels.alpha[::-1], levels.sigma[::-1])
    rows: list[dict[str, float]] = []
    states: list[int] = []
    for level in range(1, len(levels) + 1):
        alpha, sigma = reverse.alpha[level], reverse.sigma[level]
        alpha_to, sigma_to = reverse.alpha[level - 1], reverse.sigma[level - 1]
        # Each form as (gain of the state, weight and coefficients of the prediction, how fast it converges).
        total = alpha**2 * _TYPICAL_VARIANCE + sigma**2
        gain = alpha_to / alpha
        slope = sigma_to - gain * sigma
        forms = [(gain, slope, _eps(diffusion, alpha, sigma), abs(slope / gain) * sigma / total)]
        if sigma_to > 0:
            gain = sigma_to / sigma
            slope = alpha_to - gain * alpha
            forms.append((gain, slope, _x0(diffusion, alpha, sigma), slope / gain * alpha * _TYPICAL_VARIANCE / total))
        gain, slope, (px, pm), _ = min(forms, key=lambda form: form[3])
        row = {"t": reverse.t[level - 1], "px": px, "pm": pm, "c0": -slope / gain}
        rows.append(row | {"cx": 1 / gain, "save_base": 1.0, "bx": 1.0})
        rows += [row | {"cb": 1 / gain}] * (int(iterations) - 1)
        states += [level] * int(iterations)
    options = {"steps": len(levels), "iterations": int(iterations), "spacing": spacing, "continuous": continuous}
    return table_from_rows(
        reverse, rows, "fixed_point_encode", states=states, init_scale=0.0, order=1, data_prediction=False,
        options=options,
    )  # fmt: skip


def _flow(diffusion: Diffusion, steps: int | None, order: int, name: str) -> CoefficientTable:
    if order not in TABLEAUS:
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order!r}")
    count = diffusion.num_timesteps if steps is None else steps
    if isinstance(count, bool) or int(count) != count or count < 1:
        raise ValueError(f"steps must be a whole number, at least 1, got {steps!r}")
    half_log_snr = 0.5 * diffusion.schedule.log_snr
    if np.isinf(half_log_snr[-1]):
        raise ValueError("the flow needs some signal at t = T-1, and this schedule leaves none")
    count = int(count) if len(half_log_snr) > 1 else 0
    nodes = np.exp(-np.linspace(half_log_snr[0], half_log_snr[-1], count + 1))
    encoding = name == "flow_encode"
    if not encoding:
        nodes = nodes[::-1]
    rows: list[dict[str, float]] = []
    at: list[float] = [] if encoding else [nodes[0]]
    for start, end in pairwise(nodes):
        stages, reached = _step_rows(diffusion, float(start), float(end), TABLEAUS[order])
        rows += stages
        at += reached
    edge = _edge_row(diffusion, encoding)
    rows, at = ([edge, *rows], [0.0, nodes[0], *at]) if encoding else ([*rows, edge], [*at, 0.0])
    rho = np.array(at)
    alpha = 1 / np.sqrt(1 + rho**2)
    return table_from_rows(
        Levels(diffusion.prediction, np.zeros(len(rows)), alpha, rho * alpha),
        rows,
        name,
        init_scale=0.0 if encoding else 1.0,
        order=order,
        data_prediction=False,
        options={"steps": count, "order": order},
    )


def _step_rows(
    diffusion: Diffusion, start: float, end: float, tableau: tuple[tuple[float, ...], ...]
) -> tuple[list[dict[str, float]], list[float]]:
    """The rows of one step in rho, and the rho that each of them reaches."""
    length = end - start
    reached = [start + length * sum(row) for row in tableau]
    asked = [start, *reached[:-1]]
    alpha = [1 / np.sqrt(1 + rho**2) for rho in (*asked, end)]
    rows = []
    for stage, weights in enumerate(tableau):
        levels = _level(diffusion, asked[stage])
        ex, em = _eps(diffusion, levels.alpha[0], levels.sigma[0])
        row = {"t": float(levels.t[0]), "px": ex, "pm": em, "push": 1.0}
        if stage == 0:
            row |= {"cx": alpha[1] / alpha[0], "save_base": 1.0, "bx": 1.0}
        else:
            row["cb"] = alpha[stage + 1] / alpha[0]
        # This row's own eps is `pred`, the stage before it p1, and so on.
        row |= {f"c{age}": alpha[stage + 1] * length * weights[stage - age] for age in range(stage + 1)}
        rows.append(row)
    return rows, reached


def _edge_row(diffusion: Diffusion, encoding: bool) -> dict[str, float]:
    """Between the clean image and the level of t = 0, along its score."""
    alphas, sigmas = diffusion.signal_noise()
    alpha, rho = float(alphas[0]), float(sigmas[0] / alphas[0])
    ex, em = _eps(diffusion, alpha, float(sigmas[0]))
    row = {"t": float(diffusion.schedule.timesteps[0]), "pm": em}
    if encoding:
        return row | {"ci": alpha, "px": ex * alpha, "cx": alpha, "c0": alpha * rho / 2}
    return row | {"px": ex, "cx": 1 / alpha, "c0": -rho / 2}


def _level(diffusion: Diffusion, rho: float) -> Levels:
    alpha = 1 / np.sqrt(1 + rho**2)
    at = levels_at(diffusion, position_of(diffusion, np.array([-np.log(rho)])))
    return Levels(diffusion.prediction, at.t, np.array([alpha]), np.array([rho * alpha]))


def _eps(diffusion: Diffusion, alpha: float, sigma: float) -> tuple[float, float]:
    ex, em = eps_coefficients(diffusion.prediction, _array(alpha), _array(sigma))
    return float(ex[0]), float(em[0])


def _x0(diffusion: Diffusion, alpha: float, sigma: float) -> tuple[float, float]:
    px, pm = x0_coefficients(diffusion.prediction, _array(alpha), _array(sigma))
    return float(px[0]), float(pm[0])


def _array(value: float) -> Array:
    return np.array([value], dtype=np.float64)
