"""DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastdiff.diffusion import Diffusion
from fastdiff.samplers.ancestral import clip_column, visited_levels
from fastdiff.samplers.spacing import spaced_indices
from fastdiff.table import CoefficientTable


def ddim(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    eta: float = 0.0,
    spacing: str = "trailing",
    timesteps: Sequence[int] | None = None,
    clip: float | None = 1.0,
    clipped_eps: Literal["rederive", "keep"] = "rederive",
) -> CoefficientTable:
    """Coefficients of DDIM, from noise to data.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        eta: Noise scale in [0, 1], no unit. 0 is deterministic; 1 has the ancestral (fixed_small) variance.
        spacing: See `spaced_indices`.
        timesteps: The timesteps themselves, instead of `steps` and `spacing`.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        clipped_eps: The noise direction where x_0 was clipped: "rederive" takes the eps that leads from the clipped
            x_0 to x_t (OpenAI, lucidrains); "keep" takes the network's own eps (diffusers).

    Returns:
        Table of one row per timestep, float64. Order 1 when eta = 0.

    Raises:
        ValueError: steps, eta, spacing, timesteps, clip or clipped_eps out of range.

    Source: Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta!r}")
    if clipped_eps not in ("rederive", "keep"):
        raise ValueError(f"clipped_eps must be 'rederive' or 'keep', got {clipped_eps!r}")
    chosen = diffusion.subset(spaced_indices(diffusion.num_timesteps, steps, spacing, timesteps))
    schedule = chosen.schedule
    alpha, sigma = chosen.signal_noise()
    alpha_prev = np.sqrt(schedule.alphas_cumprod_prev)
    variance = eta**2 * schedule.posterior_variance
    direction = np.sqrt(np.maximum(schedule.one_minus_alphas_cumprod_prev - variance, 0.0))
    px, pm = chosen.x0_coefficients()
    if clipped_eps == "keep":
        ex, em = chosen.eps_coefficients()
        update = {"cx": direction * ex, "cm": direction * em, "c0": alpha_prev}
    else:
        update = {"cx": direction / sigma, "c0": alpha_prev - direction * alpha / sigma}
    columns = {"t": schedule.timesteps, "px": px, "pm": pm, "s": np.sqrt(variance), **update}
    alphas, sigmas = visited_levels(chosen)
    return CoefficientTable(
        {name: values[::-1] for name, values in columns.items()} | {"clip": clip_column(clip)},
        name="ddim",
        order=1 if eta == 0 else 0,
        alphas=alphas,
        sigmas=sigmas,
        options={"steps": len(schedule), "eta": eta, "spacing": spacing, "clip": clip, "clipped_eps": clipped_eps},
    )
