"""UniPC: predictor and corrector of one formula, at no further evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import Final, Ladder, LamMin, check_signal, table_from_rows
from fastdiff.samplers.method import IMAGE, NOISE, Step, halved
from fastdiff.samplers.multistep import row_order
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
    lam_min: LamMin = "auto",
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
        lam_min: Least log(alpha / sigma) of a level where the noise is integrated, see `deis`.

    Returns:
        Table of one row per evaluation, float64.

    Raises:
        ValueError: an option out of range.

    Source: Zhao et al. (2023), arXiv:2302.04867, algorithms 1 and 2, eq. 3 to 9.
    """
    order = whole_number("order", order, low=1, high=3)
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be 'bh1' or 'bh2', got {variant!r}")
    # B(h) enters where one value meets one unknown: in formulas through two values.
    method, bh1 = (IMAGE, _half_image_kernel) if predict_x0 else (NOISE, _half_noise_kernel)
    method = method.replacing(2, bh1 if variant == "bh1" else halved)
    ladder = Ladder(steps, spacing, timesteps, final, continuous, None if predict_x0 else lam_min)
    levels = ladder.levels(diffusion)
    if not predict_x0:
        check_signal(levels, "unipc")
    count = len(levels)
    orders = [row_order(i, count, order, lower_order_final, levels.ends_clean()) for i in range(count)]
    rows = []
    for i, evaluation in enumerate(method.evaluations(levels, clip)):
        corrected = _combination(x=1.0)
        if corrector and i > 0 and i not in no_corrector_rows:
            # Zhao et al. (2023), algorithm 1: the step that led here again, with the value at its end.
            gain, weights = method.formula(Step(levels, i - 1, i), range(i, i - 1 - orders[i - 1], -1))
            corrected = _combination(base=gain, values=weights)
        # Zhao et al. (2023), algorithm 2.
        gain, weights = method.formula(Step(levels, i, i + 1), range(i, i - orders[i], -1))
        predicted = gain * corrected + _combination(values=weights)
        row = evaluation | {"save_base": 1.0}
        row |= dict(zip(("cb", "cx", "c0", "c1", "c2", "c3"), predicted.tolist(), strict=True))
        row |= dict(zip(("bb", "bx", "b0", "b1", "b2", "b3"), corrected.tolist(), strict=True))
        rows.append(row)
    options = {"order": order, "variant": variant, "predict_x0": predict_x0, "corrector": corrector}
    return table_from_rows(
        levels, rows, "unipc", order=order + corrector, data_prediction=predict_x0,
        options={**options, **ladder.options, "steps": count}, note=ladder.note(diffusion),
    )  # fmt: skip


def _half_image_kernel(step: Step, moments: Sequence[float]) -> float:
    """With B(h) = h: half of the kernel at the end of the step."""
    return 0.5 * (step.alpha_next * step.h)


def _half_noise_kernel(step: Step, moments: Sequence[float]) -> float:
    """As for the image."""
    return 0.5 * (-step.sigma_next * step.h)


def _combination(base: float = 0.0, x: float = 0.0, values: Sequence[float] | Array = ()) -> Array:
    """A state as its coefficients of base, x, pred, p1, p2 and p3."""
    return np.array([base, x, *values, *[0.0] * (4 - len(values))])
