"""DDIM reversed: from data to noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastdiff.diffusion import Diffusion, x0_coefficients
from fastdiff.samplers.ancestral import clip_column
from fastdiff.samplers.levels import visited
from fastdiff.table import CoefficientTable


def ddim_encode(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    continuous: bool = False,
    evaluate_at: Literal["start", "end"] = "start",
    clip: float | None = None,
) -> CoefficientTable:
    """Coefficients of DDIM reversed, from a clean image to the noise that `ddim` decodes.

    With levels 0 (the image), 1, ..., N (the noisiest), row i goes from level i to level i + 1 along the eps that the
    network predicts for the state. No network knows level 0, so row 0 asks for its eps at level 1. Start from an image:
    `sample(..., x_init=image)`.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        spacing: See `visited`, as for `timesteps` and `continuous`: give those of the `ddim` that decodes.
        evaluate_at: The time that the network is given. "start": that of the state, so the times are t_1, t_1, ...,
            t_{N-1}. "end": that of the level to be reached, t_1, ..., t_N, where the decoder will evaluate (diffusers).
            Both are of order 1; for Gaussian data "end" has about half the error.
        clip: Bound on the predicted x_0, in units of the data; None for no bound. A bound makes the map one that
            decoding does not undo.

    Returns:
        Table of one row per evaluation, float64, from the lowest timestep to the highest. Order 1.

    Raises:
        ValueError: an option out of range.

    Source: Song, Meng, Ermon (2021), arXiv:2010.02502, section 4.3 and eq. 14.
    """
    if evaluate_at not in ("start", "end"):
        raise ValueError(f"evaluate_at must be 'start' or 'end', got {evaluate_at!r}")
    levels = visited(diffusion, steps, spacing=spacing, timesteps=timesteps, continuous=continuous)
    t, alpha, sigma = levels.t[::-1], levels.alpha[::-1], levels.sigma[::-1]
    count = len(levels)
    # The level at which row i evaluates, 1 to N.
    asked = np.maximum(np.arange(count), 1) if evaluate_at == "start" else np.arange(1, count + 1)
    px, pm = x0_coefficients(diffusion.prediction, alpha[asked], sigma[asked])
    # eps = (x - alpha x_0) / sigma at the level asked for; x' = gain x + slope eps.
    gain = alpha[1:] / alpha[:-1]
    slope = sigma[1:] - gain * sigma[:-1]
    columns = {
        "t": t[asked - 1],
        "px": px,
        "pm": pm,
        "clip": clip_column(clip),
        "cx": gain + slope / sigma[asked],
        "c0": -slope * alpha[asked] / sigma[asked],
    }
    options = {"steps": count, "spacing": spacing, "continuous": continuous, "evaluate_at": evaluate_at, "clip": clip}
    return CoefficientTable(
        columns, "ddim_encode", init_scale=0.0, order=1, alphas=alpha, sigmas=sigma, options=options
    )
