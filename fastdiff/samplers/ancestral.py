"""Ancestral sampling: DDPM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastdiff.process.diffusion import Diffusion, Variance
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import clip_column, visited_levels
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.spacing import spaced_indices


@sampler
def ddpm(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[int] | None = None,
    clip: float | None = 1.0,
    variance: Variance | None = None,
) -> CoefficientTable:
    """Coefficients of ancestral sampling, from noise to data.

    Each row draws from N(mean, variance) of the reverse step, with the mean of q(x_s | x_t, x_0) at the predicted
    x_0, on the process respaced to the chosen timesteps. The last row draws no noise.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        spacing: See `spaced_indices`.
        timesteps: The timesteps themselves, instead of `steps` and `spacing`.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        variance: The reverse step's variance, if another than the diffusion's: one of the fixed types.

    Returns:
        Table of one row per timestep, float64.

    Raises:
        ValueError: steps, spacing, timesteps or clip out of range, or a learned variance of a network without one.

    Source: Ho et al. (2020), arXiv:2006.11239, algorithm 2 and eq. 7; Nichol and Dhariwal (2021), eq. 15 and 19.
    """
    if variance is not None and variance != diffusion.variance:
        if variance in ("learned", "learned_range"):
            raise ValueError(
                f"the network has variance {diffusion.variance!r}, so variance {variance!r} cannot be sampled"
            )
        diffusion = replace(diffusion, variance=variance)
    chosen = diffusion.subset(spaced_indices(diffusion.num_timesteps, steps, spacing, timesteps))
    schedule = chosen.schedule
    px, pm = chosen.x0_coefficients()
    # Nichol and Dhariwal (2021), eq. 15.
    log_min, log_max = chosen.variance_logs()
    scale = np.ones(len(schedule)) if chosen.learned_variance else np.exp(0.5 * log_min)
    scale[0] = 0.0
    # Ho et al. (2020), eq. 7.
    columns = {
        "t": schedule.timesteps,
        "ci": chosen.input_scale(),
        "px": px,
        "pm": pm,
        "cx": schedule.posterior_mean_coef2,
        "c0": schedule.posterior_mean_coef1,
        "s": scale,
    }
    if chosen.learned_variance:
        columns |= {"log_min": log_min, "log_max": log_max}
    alphas, sigmas = visited_levels(chosen)
    return CoefficientTable(
        {name: values[::-1] for name, values in columns.items()} | {"clip": clip_column(clip)},
        name="ddpm",
        learned_variance=chosen.learned_variance,
        alphas=alphas,
        sigmas=sigmas,
        options={"steps": len(schedule), "spacing": spacing, "clip": clip, "variance": chosen.variance},
    )
