"""Pseudo numerical methods: classical formulas on the noise prediction, moved between levels by DDIM's rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import (
    Final,
    Ladder,
    LamMin,
    Levels,
    check_signal,
    levels_at,
    table_from_rows,
)
from fastdiff.samplers.registry import sampler

# Adams-Bashforth weights for equal steps, newest value first.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)

# With fewer levels than these the order that nobody chose is 1, 2 and 3: the weights of higher ones are large and of
# either sign, and over long steps multiply what the network gets wrong. One that predicts the noise is wrong by a like
# share of it at all levels, and so by most at the noisy ones. Measured: docs/samplers.md.
_LEVELS_OF_ORDER = (5, 8, 40)
_LEVELS_OF_ORDER_FOR_NOISE = (6, 40, 40)
# With fewer evaluations PLMS takes no improved Euler step, and PNDM no Runge-Kutta step: each would be too long.
_LEAST_IMPROVED = 8
_LEAST_RUNGE_KUTTA = 20


@sampler
def ipndm(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int | None = None,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lam_min: LamMin = "auto",
) -> CoefficientTable:
    """Coefficients of improved PNDM: linear multistep with equal-step weights, the order growing from 1.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        order: Values combined, 1 to 4, with equal-step weights; 1 is DDIM. None for 4, but 1, 2 and 3 with fewer than
            5, 8 and 40 levels, 1 and 2 with fewer than 6 and 40 where the network predicts eps or the score, unless
            `timesteps` are given. The order of convergence is at most 2, since DDIM's rule moves the combined value as
            if it were constant over the step.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        lam_min: Least log(alpha / sigma) of a level, see `deis`.

    Raises:
        ValueError: an option out of range.

    Source: Zhang and Chen (2023), arXiv:2204.13902, appendix H.2; Liu et al. (2022), arXiv:2202.09778.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous, lam_min)
    levels = ladder.levels(diffusion)
    check_signal(levels, "ipndm")
    order = _order(order, levels, ladder, diffusion)
    rows = [_multistep_row(levels, i, min(order, i + 1)) for i in range(len(levels))]
    options = {"order": order, **ladder.options, "steps": len(levels)}
    return table_from_rows(
        levels,
        rows,
        "ipndm",
        order=min(order, 2),
        data_prediction=False,
        options=options,
        note=ladder.note(diffusion),
    )


@sampler
def plms(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int | None = None,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lam_min: LamMin = "auto",
) -> CoefficientTable:
    """Coefficients of PLMS: `ipndm` whose first step is an improved Euler step, with a second evaluation of its own.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T + 1: one more than the levels. Fewer than 8 have no second evaluation, and
            are `ipndm` but for `lam_min`.
        order: Values combined, 1 to 4, see `ipndm`, as for None; the order of convergence is 2 at most.
        spacing: See `visited`, as for `timesteps` (the levels), `final` and `continuous`.
        lam_min: Least log(alpha / sigma) of a level, see `deis`; "auto" is -2.5 here, whatever the
            network predicts.

    Raises:
        ValueError: an option out of range.

    Source: Liu et al. (2022), arXiv:2202.09778, eq. 12 and 13, as in latent diffusion's and diffusers' code.
    """
    if steps is not None:
        steps = whole_number(spelt("steps"), steps, low=1)
    improved = steps is None or steps >= (_LEAST_IMPROVED if timesteps is None else 3)
    num_levels = steps - 1 if steps is not None and improved else steps
    ladder = Ladder(num_levels, spacing, timesteps, final, continuous, lam_min, has_stages=True)
    levels = ladder.levels(diffusion)
    check_signal(levels, "plms")
    order = _order(order, levels, ladder, diffusion)
    rows = [_multistep_row(levels, i, min(order, i + 1)) for i in range(len(levels))]
    reached = list(range(1, len(levels) + 1))
    if improved and len(levels) > 1:
        rows[0] |= {"save_base": 1.0, "bx": 1.0}
        gain, scale = _ddim(levels, 0, 1)
        # At level 1 already: again from level 0, with the mean of both values.
        rows.insert(1, _evaluation(levels, 1) | {"cb": gain, "c0": 0.5 * scale, "c1": 0.5 * scale})
        reached.insert(0, 1)
    options = {"order": order, **ladder.options, "steps": len(rows)}
    return table_from_rows(
        levels,
        rows,
        "plms",
        states=reached,
        order=min(order, 2),
        data_prediction=False,
        options=options,
        note=ladder.note(diffusion),
    )


@sampler
def pndm(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int | None = None,
    spacing: str = "trailing",
    timesteps: Sequence[int] | None = None,
    final: Final = "zero",
    lam_min: LamMin = "auto",
) -> CoefficientTable:
    """Coefficients of PNDM: three Runge-Kutta steps of four evaluations each, then linear multistep of order 4.

    The inner evaluations of a Runge-Kutta step lie half way in time, at the nearest timestep.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; fewer than 20 have no Runge-Kutta step and are `ipndm` but for `lam_min`.
            None for T levels.
        order: Values that the multistep part combines, 1 to 4, see `ipndm`, as for None.
        spacing: See `visited`, as for `timesteps` (the levels) and `final`.
        lam_min: Least log(alpha / sigma) of a level, see `deis`; "auto" is -2.5 here, whatever the
            network predicts.

    Raises:
        ValueError: an option out of range.

    Source: Liu et al. (2022), arXiv:2202.09778, algorithm 2, eq. 11 to 13.
    """
    if steps is not None:
        steps = whole_number(spelt("steps"), steps, low=1)
    # Timesteps that are given are visited by the textbook, where there are evaluations for two Runge-Kutta steps.
    least = _LEAST_RUNGE_KUTTA if timesteps is None else 12
    num_runge_kutta = 3 if steps is None else min(3, (steps - 1) // 4) if steps >= least else 0
    num_levels = None if steps is None else steps - 3 * num_runge_kutta
    ladder = Ladder(num_levels, spacing, timesteps, final, lam_min=lam_min, has_stages=True)
    levels = ladder.levels(diffusion)
    check_signal(levels, "pndm")
    num_runge_kutta = min(num_runge_kutta, len(levels) - 1)
    order = _order(order, levels, ladder, diffusion)
    rows, reached = [], []
    for i in range(len(levels)):
        if i < num_runge_kutta:
            inner = _half_way(diffusion, levels, i)
            rows += _runge_kutta_rows(inner)
            reached += [i + 1] * 4
        else:
            rows.append(_multistep_row(levels, i, min(order, i + 1)))
            reached.append(i + 1)
    options = {"order": order, **ladder.options, "steps": len(rows)}
    return table_from_rows(
        levels,
        rows,
        "pndm",
        states=reached,
        order=min(order, 2),
        data_prediction=False,
        options=options,
        note=ladder.note(diffusion),
    )


def _order(order: int | None, levels: Levels, ladder: Ladder, diffusion: Diffusion) -> int:
    """The order asked for, or what suits the number of levels and what is predicted."""
    if order is not None:
        return whole_number("order", order, low=1, high=4)
    if ladder.timesteps is not None:
        return 4
    tells_noise = diffusion.prediction in ("eps", "score")
    counts = _LEVELS_OF_ORDER_FOR_NOISE if tells_noise else _LEVELS_OF_ORDER
    return 1 + sum(len(levels) >= count for count in counts)


def _ddim(levels: Levels, start: int, end: int) -> tuple[float, float]:
    """(A, B) of x' = A x + B eps between two levels, PNDM's eq. 11 in a form without cancellation of its own."""
    alpha, sigma = levels.alpha, levels.sigma
    gain = float(alpha[end] / alpha[start])
    return gain, float(sigma[end] - gain * sigma[start])


def _evaluation(levels: Levels, i: int) -> dict[str, float]:
    ex, em, scale = levels.of_noise
    return {"t": levels.t[i], "ci": scale[i], "px": ex[i], "pm": em[i]}


def _multistep_row(levels: Levels, i: int, order: int) -> dict[str, float]:
    gain, scale = _ddim(levels, i, i + 1)
    values = {f"c{age}": scale * weight for age, weight in enumerate(ADAMS_BASHFORTH[order - 1])}
    return _evaluation(levels, i) | {"cx": gain, "push": 1.0} | values


def _half_way(diffusion: Diffusion, levels: Levels, i: int) -> Levels:
    """Levels i, half way to i + 1, and i + 1."""
    times = diffusion.schedule.timesteps
    middle = 0.5 * (levels.t[i] + levels.t[i + 1])
    # The earlier of two equally near timesteps.
    nearest = float(np.argmin(np.abs(times - middle)))
    start = float(np.argmin(np.abs(times - levels.t[i])))
    positions = np.array([start, nearest])
    inner = levels_at(diffusion, positions, (float(levels.alpha[i + 1]), float(levels.sigma[i + 1])))
    return Levels(inner.network, np.append(inner.t, levels.t[i + 1]), np.append(inner.alpha, 1.0),
                  np.append(inner.sigma, 0.0))  # fmt: skip


def _runge_kutta_rows(inner: Levels) -> list[dict[str, float]]:
    """The four rows of a Runge-Kutta step from level 0 over level 1 to level 2 of `inner`; only k1 is pushed.

    x_half = A_h base + B_h k, x_full = A base + B k. The third row's input is A_h base + B_h k2, so k2 is known from x
    and base, and base can take up A base + B (k2 + k3) / 3: with k1 in the history nothing else need be kept.
    """
    gain_half, scale_half = _ddim(inner, 0, 1)
    gain, scale = _ddim(inner, 0, 2)
    third = scale / 3
    first = {"cx": gain_half, "c0": scale_half, "save_base": 1.0, "bx": 1.0, "push": 1.0}
    second = {"cb": gain_half, "c0": scale_half}
    # k2 = (x - A_h base) / B_h.
    from_x = third / scale_half
    third_row = {"cb": gain, "c0": scale, "save_base": 1.0, "bx": from_x, "bb": gain - from_x * gain_half, "b0": third}
    fourth = {"cb": 1.0, "c0": scale / 6, "c1": scale / 6}
    rows = (first, second, third_row, fourth)
    return [_evaluation(inner, at) | row for at, row in zip((0, 1, 1, 2), rows, strict=True)]
