"""The probability flow with fixed steps of any order, in both directions.

With u = x / alpha and rho = sigma / alpha the flow is du / drho = eps(alpha u, t): Song, Meng, Ermon (2021),
arXiv:2010.02502, eq. 14. A step is an explicit Runge-Kutta step in rho; a stage is a row whose prediction is the eps.
`fastdiff.editing` runs these tables; they are not among `samplers.names()`, where `steps` counts evaluations.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import Levels, levels_at, position_of, table_from_rows, with_signal

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


def flow_encode(diffusion: Diffusion, steps: int | None = None, *, order: int = 2) -> CoefficientTable:
    """Coefficients of the probability flow, from a clean image to noise, in Runge-Kutta steps.

    The levels are evenly spaced in the log-SNR from t = 0 to t = T-1, or to the timestep before where no signal is left
    there; the network is given fractional times. A first
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
        ValueError: an option out of range, or a schedule of one step that leaves no signal.

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
        ValueError: an option out of range, or a schedule of one step that leaves no signal.

    Source: Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 14; Butcher (2016), Numerical Methods for ODEs.
    """
    return _flow(diffusion, steps, order, "flow_decode")


def _flow(diffusion: Diffusion, steps: int | None, order: int, name: str) -> CoefficientTable:
    order = whole_number("order", order, low=1, high=max(TABLEAUS))
    diffusion = with_signal(diffusion)
    count = diffusion.num_timesteps if steps is None else whole_number(spelt("steps"), steps, low=1)
    half_log_snr = 0.5 * diffusion.schedule.log_snr
    if np.isinf(half_log_snr[-1]):
        raise ValueError("the flow needs some signal, and this schedule leaves none")
    if len(half_log_snr) == 1:
        count = 0
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
        Levels(diffusion.parametrization, np.zeros(len(rows)), alpha, rho * alpha),
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
        ci, ex, em = _eps(diffusion, levels.alpha[0], levels.sigma[0])
        row = {"t": float(levels.t[0]), "ci": ci, "px": ex, "pm": em, "push": 1.0}
        if stage == 0:
            row |= {"cx": alpha[1] / alpha[0], "save_base": 1.0, "bx": 1.0}
        else:
            row["cb"] = alpha[stage + 1] / alpha[0]
        # A stage of Song, Meng, Ermon (2021), eq. 14. Its own eps is `pred`, that of the stage before it p1, and so on.
        row |= {f"c{age}": alpha[stage + 1] * length * weights[stage - age] for age in range(stage + 1)}
        rows.append(row)
    return rows, reached


def _edge_row(diffusion: Diffusion, encoding: bool) -> dict[str, float]:
    """Between the clean image and the level of t = 0, along its score."""
    alphas, sigmas = diffusion.signal_noise()
    alpha, rho = float(alphas[0]), float(sigmas[0] / alphas[0])
    ci, ex, em = _eps(diffusion, alpha, float(sigmas[0]))
    row = {"t": float(diffusion.schedule.timesteps[0]), "pm": em}
    if encoding:
        return row | {"ci": ci * alpha, "px": ex * alpha, "cx": alpha, "c0": alpha * rho / 2}
    return row | {"ci": ci, "px": ex, "cx": 1 / alpha, "c0": -rho / 2}


def _level(diffusion: Diffusion, rho: float) -> Levels:
    alpha = 1 / np.sqrt(1 + rho**2)
    at = levels_at(diffusion, position_of(diffusion, np.array([-np.log(rho)])))
    return Levels(diffusion.parametrization, at.t, np.array([alpha]), np.array([rho * alpha]))


def _eps(diffusion: Diffusion, alpha: float, sigma: float) -> tuple[float, float, float]:
    """ci, and (ex, em); see `Parametrization`."""
    network, at = diffusion.parametrization, (_array(alpha), _array(sigma))
    ex, em = network.eps(*at)
    return float(network.input_scale(*at)[0]), float(ex[0]), float(em[0])


def _array(value: float) -> Array:
    return np.array([value], dtype=np.float64)
