"""Singlestep solvers: each step starts afresh, with one to three evaluations of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.ancestral import clip_column
from fastdiff.samplers.exponential import weights
from fastdiff.samplers.levels import Final, table_from_rows, visited
from fastdiff.samplers.multistep import SolverType, check_order, check_solver_type, transfer
from fastdiff.samplers.registry import sampler


@sampler(evaluations_per_step=2)
def dpmpp_singlestep(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    solver_type: SolverType = "midpoint",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    groups: Sequence[int] | None = None,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of singlestep DPM-Solver++, from noise to data.

    The levels are taken in groups of up to `order`; within a group every row starts from the group's first state, with
    all values since. The last groups are smaller where the steps do not divide, and the last is of order 1 where
    sampling ends without noise.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        order: 1 to 3.
        solver_type: The second-order formula; "heun" is the exact one for a linear prediction.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        groups: Sizes of the groups, each 1 to `order` and `steps` in all, instead of the rule above.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64.

    Raises:
        ValueError: an option out of range.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 1; arXiv:2206.00927, algorithms 1 and 2 and appendix D.1.
    """
    return _singlestep("dpmpp_singlestep", "data", diffusion, steps, order, solver_type, spacing, timesteps, final,
                       continuous, groups, clip)  # fmt: skip


@sampler(evaluations_per_step=2)
def dpm_solver_singlestep(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    solver_type: SolverType = "midpoint",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    groups: Sequence[int] | None = None,
) -> CoefficientTable:
    """Coefficients of singlestep DPM-Solver, which integrates the noise prediction; nothing is clipped.

    Args, Returns, Raises: as `dpmpp_singlestep`.

    Source: Lu et al. (2022), arXiv:2206.00927, algorithms 1 and 2 and appendix D.1.
    """
    return _singlestep("dpm_solver_singlestep", "noise", diffusion, steps, order, solver_type, spacing, timesteps,
                       final, continuous, groups, None)  # fmt: skip


def group_sizes(steps: int, order: int, ends_clean: bool) -> list[int]:
    """Sizes of the groups: `order` each, what is left over as one smaller group, and one of 1 last if it ends clean."""
    whole = steps - 1 if ends_clean else steps
    sizes = [order] * (whole // order) + ([whole % order] if whole % order else [])
    return sizes + ([1] if ends_clean else [])


def _singlestep(
    name: str,
    kind: Literal["data", "noise"],
    diffusion: Diffusion,
    steps: int | None,
    order: int,
    solver_type: SolverType,
    spacing: str,
    timesteps: Sequence[float] | None,
    final: Final,
    continuous: bool,
    groups: Sequence[int] | None,
    clip: float | None,
) -> CoefficientTable:
    check_order(order, 3)
    check_solver_type(solver_type)
    levels = visited(diffusion, steps, spacing=spacing, timesteps=timesteps, final=final, continuous=continuous)
    px, pm = levels.x0() if kind == "data" else levels.eps()
    bound = clip_column(clip) if kind == "data" else np.inf
    lam, rows, start = levels.lam, [], 0
    sizes = group_sizes(len(levels), order, levels.ends_clean()) if groups is None else list(groups)
    if sum(sizes) != len(levels) or min(sizes) < 1 or max(sizes) > order or (levels.ends_clean() and sizes[-1] != 1):
        raise ValueError(
            f"groups must be of 1 to {order} levels, {len(levels)} in all, and the last of 1 where sampling ends "
            f"without noise, got {sizes}"
        )
    for size in sizes:
        for inside in range(size):
            i = start + inside
            k = inside + 1
            gain, moments = transfer(kind, levels, start, i + 1, k)
            h = lam[i + 1] - lam[start]
            # Newest value first, as the history has them.
            nodes = [(lam[i - age] - lam[start]) / h for age in range(k)] if k > 1 else [0.0]
            if k == 2 and solver_type == "midpoint":
                moments[1] = 0.5 * moments[0]
            w = weights(nodes, moments)
            row = {"t": levels.t[i], "px": px[i], "pm": pm[i], "clip": bound, "push": 1.0}
            row |= {f"c{age}": value for age, value in enumerate(w)}
            # The first row of a group starts from x and saves it; the others start from what was saved.
            row |= {"cx": gain, "save_base": 1.0, "bx": 1.0} if inside == 0 else {"cb": gain}
            rows.append(row)
        start += size
    options = {"order": order, "solver_type": solver_type, "spacing": spacing, "final": final, "steps": len(levels)}
    return table_from_rows(levels, rows, name, order=order, data_prediction=kind == "data", options=options)
