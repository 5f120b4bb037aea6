"""Singlestep solvers: each step starts afresh, with one to three evaluations of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import Final, Ladder, LamMin, Levels, check_signal, table_from_rows
from fastdiff.samplers.method import IMAGE, NOISE, Method, SolverType, Step, with_solver_type
from fastdiff.samplers.registry import sampler

# A group over which sigma / alpha falls by more than this factor is taken apart where nothing is clipped: its second
# value is that of what the first one got wrong. Measured on trained networks: docs/samplers.md.
_LONGEST = 8.0


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
    all values since. The last groups are smaller where the steps do not divide; the last is of order 1 where sampling
    ends without noise, and the first where it starts without signal.

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
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    return _singlestep("dpmpp_singlestep", IMAGE, diffusion, ladder, order, solver_type, groups, clip)


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
    lam_min: LamMin = "auto",
) -> CoefficientTable:
    """Coefficients of singlestep DPM-Solver, which integrates the noise prediction; nothing is clipped.

    A group over which sigma / alpha falls by more than a factor of 8 is made smaller, unless `timesteps` or `groups`
    are given: in a long step the second evaluation sees what the first one got wrong.

    Args, Returns, Raises: as `dpmpp_singlestep`, and lam_min: least log(alpha / sigma) of a level; "auto"
    is -2.5 where the schedule ends below -6. See `noisiest_position`.

    Source: Lu et al. (2022), arXiv:2206.00927, algorithms 1 and 2 and appendix D.1.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous, lam_min, has_stages=True)
    return _singlestep("dpm_solver_singlestep", NOISE, diffusion, ladder, order, solver_type, groups)


def group_sizes(steps: int, order: int, ends_clean: bool, starts_blank: bool = False) -> list[int]:
    """Sizes of the groups: `order` each, what is left over as one smaller group, and one of 1 last if it ends clean.

    One of 1 comes first where sampling starts without signal: no formula leads through several values from there.
    """
    if starts_blank and steps > 1:
        return [1, *group_sizes(steps - 1, order, ends_clean)]
    num_full, rest = divmod(steps - 1 if ends_clean else steps, order)
    return [order] * num_full + [rest] * (rest > 0) + [1] * ends_clean


def _short_groups(levels: Levels, order: int) -> list[int]:
    """Sizes of the groups as `group_sizes` has them, but for those that would be longer than `_LONGEST`."""
    end = len(levels) - 1 if levels.ends_clean() else len(levels)
    sizes: list[int] = []
    while (start := sum(sizes)) < end:
        size = min(order, end - start)
        while size > 1 and levels.lam[start + size] - levels.lam[start] > math.log(_LONGEST):
            size -= 1
        sizes.append(size)
    return sizes + [1] * (len(levels) - end)


def _singlestep(
    name: str,
    method: Method,
    diffusion: Diffusion,
    ladder: Ladder,
    order: int,
    solver_type: SolverType,
    groups: Sequence[int] | None,
    clip: float | None = None,
) -> CoefficientTable:
    """Rows x' = A base + sum_k w_k f_k, where base is the state at the start of a group of rows."""
    order = whole_number("order", order, low=1, high=3)
    method = with_solver_type(method, solver_type)
    levels = ladder.levels(diffusion)
    count, ends_clean, starts_blank = len(levels), levels.ends_clean(), bool(levels.alpha[0] == 0)
    if method.predicts == "eps":
        check_signal(levels, name)
    evaluations = method.evaluations(levels, clip)
    if groups is not None:
        sizes = list(groups)
    elif method.predicts == "eps" and ladder.timesteps is None:
        sizes = _short_groups(levels, order)
    else:
        sizes = group_sizes(count, order, ends_clean, starts_blank)
    if sum(sizes) != count or min(sizes) < 1 or max(sizes) > order or (ends_clean and sizes[-1] != 1):
        raise ValueError(
            f"groups must be of 1 to {order} levels, {count} in all, and the last of 1 where sampling ends "
            f"without noise, got {sizes}"
        )
    if starts_blank and sizes[0] != 1:
        raise ValueError(f"groups must begin with one of 1 where the schedule has zero terminal SNR, got {sizes}")
    rows: list[dict[str, float]] = []
    for size in sizes:
        start = len(rows)
        for i in range(start, start + size):
            # Newest value first, as the history has them.
            gain, weights = method.formula(Step(levels, start, i + 1), range(i, start - 1, -1))
            # The first row of a group starts from x and saves it; the others start from what was saved.
            state = {"cx": gain, "save_base": 1.0, "bx": 1.0} if i == start else {"cb": gain}
            rows.append(evaluations[i] | state | {f"c{age}": weight for age, weight in enumerate(weights)})
    return table_from_rows(
        levels, rows, name, order=order, data_prediction=method.predicts == "x0",
        options={"order": order, "solver_type": solver_type, **ladder.options, "steps": count},
        note=ladder.note(diffusion),
    )  # fmt: skip
