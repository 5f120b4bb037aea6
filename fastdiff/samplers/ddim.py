"""DDIM, and DDIM reversed: from data to noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import clip_column, visited, visited_levels
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.spacing import spaced_indices


@sampler
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
    # Song, Meng, Ermon (2021), eq. 16.
    variance = eta**2 * schedule.posterior_variance
    # Eq. 12: alpha' x_0 + direction eps + noise, with eps from x_0 and x where it is not the network's own.
    direction = np.sqrt(np.maximum(schedule.one_minus_alphas_cumprod_prev - variance, 0.0))
    px, pm = chosen.x0_coefficients()
    if clipped_eps == "keep":
        ex, em = chosen.eps_coefficients()
        update = {"cx": direction * ex, "cm": direction * em, "c0": alpha_prev}
    else:
        update = {"cx": direction / sigma, "c0": alpha_prev - direction * alpha / sigma}
    seen = {"t": schedule.timesteps, "ci": chosen.input_scale(), "px": px, "pm": pm}
    columns = {**seen, "s": np.sqrt(variance), **update}
    alphas, sigmas = visited_levels(chosen)
    return CoefficientTable(
        {name: values[::-1] for name, values in columns.items()} | {"clip": clip_column(clip)},
        name="ddim",
        order=1 if eta == 0 else 0,
        alphas=alphas,
        sigmas=sigmas,
        options={"steps": len(schedule), "eta": eta, "spacing": spacing, "clip": clip, "clipped_eps": clipped_eps},
    )


@sampler
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
    px, pm = levels.network.x0(alpha[asked], sigma[asked])
    # Song, Meng, Ermon (2021), eq. 14: x' = gain x + slope eps; eps = (x - alpha x_0) / sigma at the level asked for.
    gain = alpha[1:] / alpha[:-1]
    slope = sigma[1:] - gain * sigma[:-1]
    columns = {
        "t": t[asked - 1],
        "ci": levels.network.input_scale(alpha[asked], sigma[asked]),
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
