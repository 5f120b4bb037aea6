"""UniPC: predictor and corrector of one formula, at no further evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.ancestral import clip_column
from fastdiff.samplers.exponential import weights
from fastdiff.samplers.levels import Final, Levels, table_from_rows, visited
from fastdiff.samplers.multistep import check_order, row_order, transfer
from fastdiff.samplers.registry import sampler


@sampler
def unipc(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    variant: Literal["bh1", "bh2"] = "bh2",
    predict_x0: bool = True,
    corrector: bool = True,
    no_corrector_rows: Sequence[int] = (),
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool = True,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of UniPC, from noise to data.

    Each evaluation first corrects the state that it was made at, then predicts the next one. `base` holds the corrected
    previous state, so both are one row.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        order: Of the predictor, 1 to 3; with the corrector the method has order + 1.
        variant: B(h) of the paper, "bh1" (h) or "bh2" (exp(h) - 1); they differ only where one value meets one unknown:
            the predictor of order 2 and the corrector of order 1.
        predict_x0: Integrate the predicted x_0, else the predicted noise (nothing is clipped then).
        corrector: False leaves the predictor alone.
        no_corrector_rows: Rows, from 0, whose evaluation corrects nothing.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        lower_order_final: Let the last rows fall to lower orders, as the authors advise for few steps.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64.

    Raises:
        ValueError: an option out of range.

    Source: Zhao et al. (2023), arXiv:2302.04867, algorithms 1 and 2, eq. 3 to 9.
    """
    check_order(order, 3)
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be 'bh1' or 'bh2', got {variant!r}")
    levels = visited(diffusion, steps, spacing=spacing, timesteps=timesteps, final=final, continuous=continuous)
    count = len(levels)
    px, pm = levels.x0() if predict_x0 else levels.eps()
    bound = clip_column(clip) if predict_x0 else np.inf
    orders = [row_order(i, count, order, lower_order_final, levels.ends_clean()) for i in range(count)]
    rows = []
    for i in range(count):
        # The corrected state: its coefficients of base, x, pred, p1, p2, p3.
        state = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        if corrector and i > 0 and i not in no_corrector_rows:
            gain, w = _formula(levels, predict_x0, variant, i - 1, orders[i - 1], with_end=True)
            # w runs over the value at the end (pred) and those at and before the start (p1, p2, ...).
            state = np.array([gain, 0.0, *w, *[0.0] * (4 - len(w))])
        gain, w = _formula(levels, predict_x0, variant, i, orders[i], with_end=False)
        nxt = gain * state + np.array([0.0, 0.0, *w, *[0.0] * (4 - len(w))])
        row = {"t": levels.t[i], "px": px[i], "pm": pm[i], "clip": bound, "push": 1.0, "save_base": 1.0}
        row |= dict(zip(("cb", "cx", "c0", "c1", "c2", "c3"), nxt.tolist(), strict=True))
        row |= dict(zip(("bb", "bx", "b0", "b1", "b2", "b3"), state.tolist(), strict=True))
        rows.append(row)
    options: dict[str, object] = {"order": order, "variant": variant, "predict_x0": predict_x0, "corrector": corrector}
    options |= {"spacing": spacing, "final": final, "steps": count}
    return table_from_rows(levels, rows, "unipc", order=order + corrector, data_prediction=predict_x0, options=options)


def _formula(
    levels: Levels, predict_x0: bool, variant: str, start: int, order: int, *, with_end: bool
) -> tuple[float, Array]:
    """(A, w) of the step from a level to the next through `order` past values and, if asked, that at its end, first."""
    kind: Literal["data", "noise"] = "data" if predict_x0 else "noise"
    h = levels.lam[start + 1] - levels.lam[start]
    nodes = [(levels.lam[start - age] - levels.lam[start]) / h for age in range(order)] if order > 1 else [0.0]
    if with_end:
        nodes = [1.0, *nodes]
    gain, moments = transfer(kind, levels, start, start + 1, len(nodes))
    if len(nodes) == 2:
        scale = levels.alpha[start + 1] if predict_x0 else -levels.sigma[start + 1]
        moments[1] = 0.5 * (scale * h if variant == "bh1" else moments[0])
    return gain, weights(nodes, moments)
