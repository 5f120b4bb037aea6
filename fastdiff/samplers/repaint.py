"""Samplers that go back to more noise: RePaint's jumps, and an image re-noised and brought back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion, Variance
from fastdiff.process.table import DEFAULTS, CoefficientTable
from fastdiff.samplers.ancestral import ddpm
from fastdiff.samplers.registry import build, sampler
from fastdiff.samplers.spacing import spaced_indices


def jump_visits(num_levels: int, jump_length: int, jump_repeats: int) -> list[int]:
    """The levels that RePaint visits: N-1 down to 0 and then -1, the image, with the jumps back up between.

    Every multiple of `jump_length` below N - jump_length is reached `jump_repeats` times; after each time but the last
    the next entry lies `jump_length` higher.

    Source: Lugmayr et al. (2022), arXiv:2201.09865, appendix; its code lists the single steps of a jump as well.
    """
    left = dict.fromkeys(range(0, num_levels - jump_length, jump_length), jump_repeats - 1)
    visits = [num_levels - 1]
    while visits[-1] >= 0:
        level = visits[-1]
        if left.get(level, 0) > 0:
            left[level] -= 1
            visits.append(level + jump_length)
        else:
            visits.append(level - 1)
    return visits


@sampler
def repaint(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    jump_length: int = 10,
    jump_repeats: int = 10,
    spacing: str = "trailing",
    timesteps: Sequence[int] | None = None,
    clip: float | None = 1.0,
    variance: Variance | None = None,
) -> CoefficientTable:
    """Coefficients of RePaint's resampling: rows of `ddpm`, and jumps back to more noise without an evaluation.

    The mask is no part of the table: an inpainting run puts the known pixels, noised to the level
    (`alphas[r + 1]`, `sigmas[r + 1]`), into the state after row r.

    Args:
        diffusion: What the network was trained on.
        steps: Distinct timesteps N, 1 to T, as in the paper; None for all T. There are more evaluations:
            N + (jump_repeats - 1) * jump_length * ceil((N - jump_length) / jump_length), for N > jump_length.
        jump_length: Timesteps in a jump, at least 1 (the paper's j). With N <= jump_length there are no jumps.
        jump_repeats: How often each place is sampled, at least 1 (the paper's r); 1 is `ddpm`.
        spacing: See `spaced_indices`.
        timesteps: The timesteps themselves, instead of `steps` and `spacing`.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        variance: The reverse step's variance, see `ddpm`.

    Returns:
        Table of one row per evaluation and one per jump, float64. A jump's t is that of the state it starts from. The
        last row draws no noise.

    Raises:
        ValueError: an option out of range.

    Source: Lugmayr et al. (2022), arXiv:2201.09865, algorithm 1 and appendix; a jump is the forward process, Ho
    et al. (2020), eq. 2.
    """
    jump_length = whole_number("jump_length", jump_length, low=1)
    jump_repeats = whole_number("jump_repeats", jump_repeats, low=1)
    reverse = ddpm(diffusion, steps, spacing=spacing, timesteps=timesteps, clip=clip, variance=variance)
    chosen = spaced_indices(diffusion.num_timesteps, steps, spacing, timesteps)
    log_abar = diffusion.schedule.log_alphas_cumprod[chosen]
    count = len(chosen)
    visits = np.array(jump_visits(count, jump_length, jump_repeats))
    here, there = visits[:-1], visits[1:]
    # The tables count rows from the noisiest level, and levels count from the cleanest.
    source = count - 1 - here
    jumps = there > here
    columns = {name: reverse[name][source] for name in DEFAULTS}
    for name, default in DEFAULTS.items():
        if name != "t":
            columns[name][jumps] = default
    columns["evaluate"][jumps] = 0.0
    # Ho et al. (2020), eq. 2, over all the timesteps of a jump.
    gained = log_abar[there[jumps]] - log_abar[here[jumps]]
    columns["cx"][jumps] = np.exp(0.5 * gained)
    columns["s"][jumps] = np.sqrt(-np.expm1(gained))
    states = count - 1 - visits
    return CoefficientTable(
        columns,
        "repaint",
        learned_variance=reverse.learned_variance,
        alphas=np.asarray(reverse.alphas)[states],
        sigmas=np.asarray(reverse.sigmas)[states],
        options={
            "steps": count, "jump_length": jump_length, "jump_repeats": jump_repeats, "spacing": spacing,
            "clip": clip, "variance": reverse.options["variance"],
        },
    )  # fmt: skip


@sampler
def renoise(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    strength: float | None = None,
    timestep: int | None = None,
    sampler: str = "ddim",
    options: Mapping[str, Any] | None = None,
) -> CoefficientTable:
    """Noise an image up to a level and bring it back with another sampler.

    Row 0 has no evaluation: x' = alpha x + sigma z. The rows after it are those of `sampler` on the timesteps from
    that level down. Start from an image: `sample(..., x_init=image)`; without one, `init_scale` = 0 starts from grey.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations: the `steps` of the sampler on the timesteps left; None for its default.
        strength: Share of the timesteps to go back, in (0, 1]; 1 noises to t = T-1. 0.5 when None.
        timestep: The timestep to noise to, a position in the schedule, 0 to T-1, instead of `strength`.
        sampler: Name of the sampler, see `samplers.names()`.
        options: Options of the sampler. `timesteps` counts positions in the schedule and may not go above the level.

    Returns:
        Table of one row more than the sampler's, float64. Its first row leaves the state at the sampler's own first
        level, which lies below the one asked for where the sampler's spacing does not start at its top ("leading").

    Raises:
        ValueError: strength or timestep out of range, both given, an unknown sampler or option, or a sampler that
            does not start from noise.

    Source: Meng et al. (2022), arXiv:2108.01073, algorithm 1 (SDEdit).
    """
    top = _start(diffusion.num_timesteps, strength, timestep)
    try:
        back = build(sampler, diffusion.subset(range(top + 1)), steps, **dict(options or {}))
    except ValueError as error:
        raise ValueError(
            f"{error} (the {top + 1} timesteps from t = {top} down are left of T = {diffusion.num_timesteps})"
        ) from None
    alphas, sigmas = np.asarray(back.alphas), np.asarray(back.sigmas)
    if alphas.size == 0 or sigmas[0] == 0:
        raise ValueError(f"sampler {sampler!r} does not start from noise of a known level, so it cannot bring back")
    first = {"t": back["t"][0], "evaluate": 0.0, "cx": alphas[0], "s": sigmas[0]}
    return CoefficientTable(
        {name: np.append(first.get(name, default), back[name]) for name, default in DEFAULTS.items()},
        "renoise",
        learned_variance=back.learned_variance,
        init_scale=0.0,
        alphas=np.append(1.0, alphas),
        sigmas=np.append(0.0, sigmas),
        options={"timestep": top, "sampler": sampler, "options": back.options},
    )


def _start(num_timesteps: int, strength: float | None, timestep: int | None) -> int:
    """The position of the level to noise to."""
    if timestep is not None:
        if strength is not None:
            raise ValueError("give strength or timestep, not both")
        return whole_number("timestep", timestep, low=0, high=num_timesteps - 1)
    strength = 0.5 if strength is None else strength
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength!r}")
    return max(round(strength * num_timesteps), 1) - 1
