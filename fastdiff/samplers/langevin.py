"""Langevin dynamics with fixed steps: at one noise level, down the levels, and as corrector of ancestral sampling.

A Langevin row at the level x = alpha x_0 + sigma eps is

    x' = x + d score(x) + sqrt(2 d) z,    score(x) = (alpha x_0(x) - x) / sigma^2,

with the network's x_0(x) and a step d = 2 snr^2 sigma^2. That is Song's step 2 (snr |z| / |score|)^2 with the norms of
the batch replaced by what they are for exact noise, |z| / |score| = sigma, so that a sample does not depend on the rest
of its batch. The factor 1 - beta_t of his VP code, within 2 % of 1 for the linear schedule, is left out, since it
depends on the spacing.

Where the data, or its noised density, is Gaussian with variance V >= sigma^2, the rows leave variance
V / (1 - d / (2 V)). No density noised by sigma is narrower than sigma, so every d < 2 sigma^2, snr < 1, is stable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion, Variance
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.ancestral import ddpm
from fastdiff.samplers.levels import Levels, clip_column, levels_at, table_from_rows, visited
from fastdiff.samplers.registry import sampler

# The default of score_sde, the code of Song et al. (2021).
DEFAULT_SNR = 0.16
# A step of 0.72 sigma^2: measured, see docs/samplers.md. A chain of ever cleaner levels has no rows to spare for
# steps that forget a twentieth of the state.
ANNEALED_SNR = 0.6
# With fewer rows than this, each has a level of its own.
_FEW_ROWS = 32


@sampler
def langevin(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    timestep: int | None = None,
    snr: float | None = None,
    step_size: float | None = None,
    denoise: bool = True,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Langevin dynamics at one noise level; every row has the same t.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, at least 1 and as many as you like; None for T.
        timestep: The level, a position in the schedule, 0 to T-1; where signal and noise are equally strong when None.
        snr: Size of a step against the noise, in (0, 1): the step is 2 snr^2 sigma^2; 0.16 when None.
        step_size: The step d itself, in (0, 2 sigma^2), in units of the state's variance, instead of `snr`.
        denoise: Let the last evaluation give the predicted x_0 of the state, which is the result, without noise. With
            False every row draws noise and the result stays at the noise level it began with.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64, that starts from noise of variance 1, or from your own `x_init`.

    Raises:
        ValueError: an option out of range, or both snr and step_size.

    Source: Song and Ermon (2019), arXiv:1907.05600, eq. 4 (where the step is eps = 2 d); the last row:
    Jolicoeur-Martineau et al. (2020), arXiv:2009.05475, the expected denoised sample.
    """
    num_timesteps = diffusion.num_timesteps
    if timestep is None:
        timestep = int(np.argmin(np.abs(diffusion.schedule.log_snr)))
    timestep = whole_number("timestep", timestep, low=0, high=num_timesteps - 1)
    count = num_timesteps if steps is None else whole_number(spelt("steps"), steps, low=1)
    levels = levels_at(diffusion, np.array([timestep], dtype=np.float64))
    ratio = _step_ratio(snr, step_size, float(levels.sigma[0]))
    corrections = count - 1 if denoise else count
    rows = [_langevin_row(levels, 0, ratio, clip)] * corrections
    if denoise:
        rows.append(_denoise_row(levels, 0, clip))
    states = [0] * corrections + [1] * denoise
    options = {"steps": count, "timestep": timestep, "denoise": denoise, "clip": clip}
    options |= {"step_size": step_size} if snr is None and step_size is not None else {"snr": math.sqrt(ratio / 2)}
    return table_from_rows(levels, rows, "langevin", states=states, options=options)


@sampler
def annealed_langevin(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    num_levels: int | None = None,
    snr: float = ANNEALED_SNR,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of annealed Langevin dynamics: Langevin rows at one level after the other, from noise to data.

    The state is passed on unchanged from level to level. The last evaluation denoises: its predicted x_0 is the result.
    The evaluations before it are shared out evenly, and what is left over goes to the cleanest levels.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, at least 1; None for T.
        num_levels: Noise levels, 1 to T. When None, half as many as Langevin rows, or as many where there are fewer
            than 32 rows: near levels need few steps each. No more levels than rows are visited.
        snr: Size of a step against the noise, in (0, 1): the step is 2 snr^2 sigma^2.
        spacing: Of the levels, see `visited`. The paper's geometric sequence of sigma / alpha is "logsnr".
        timesteps: The levels themselves, instead of `num_levels` and `spacing`; no more of them than Langevin rows.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64.

    Raises:
        ValueError: an option out of range.

    Source: Song and Ermon (2019), arXiv:1907.05600, algorithm 1; the last row: Jolicoeur-Martineau et al. (2020),
    arXiv:2009.05475, the expected denoised sample.
    """
    ratio = _step_ratio(snr, None, 1.0)
    count = diffusion.num_timesteps if steps is None else whole_number(spelt("steps"), steps, low=1)
    num_rows = count - 1
    if timesteps is not None:
        if num_levels is not None:
            raise ValueError("give num_levels or timesteps, not both")
        levels = visited(diffusion, None, timesteps=timesteps)
        if len(levels) > max(num_rows, 1):
            raise ValueError(
                f"steps = {count} leaves {num_rows} Langevin rows for {len(levels)} timesteps: "
                f"take at least {len(levels) + 1} steps"
            )
    else:
        if num_levels is None:
            num_levels = max(1, num_rows if num_rows < _FEW_ROWS else num_rows // 2)
            num_levels = min(num_levels, diffusion.num_timesteps)
        num_levels = whole_number("num_levels", num_levels, low=1, high=diffusion.num_timesteps)
        levels = visited(diffusion, max(min(num_levels, num_rows), 1), spacing=spacing)
    base, extra = divmod(num_rows, len(levels))
    rows: list[dict[str, float]] = []
    states: list[int] = []
    for level in range(len(levels)):
        repeats = base + (level >= len(levels) - extra)
        rows += [_langevin_row(levels, level, ratio, clip)] * repeats
        # Its last row hands the state to the next level.
        states += [level] * (repeats - 1) + [min(level + 1, len(levels) - 1)] * (repeats > 0)
    rows.append(_denoise_row(levels, len(levels) - 1, clip))
    states.append(len(levels))
    options = {"steps": count, "num_levels": len(levels), "snr": snr, "spacing": spacing, "clip": clip}
    return table_from_rows(levels, rows, "annealed_langevin", states=states, options=options)


@sampler(evaluations_per_step=2)
def predictor_corrector(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    corrections: int = 1,
    snr: float = DEFAULT_SNR,
    spacing: str = "trailing",
    timesteps: Sequence[int] | None = None,
    clip: float | None = 1.0,
    variance: Variance | None = None,
) -> CoefficientTable:
    """Coefficients of predictor-corrector sampling: a row of `ddpm`, then Langevin rows at the level it reached.

    N levels take N + (N - 1) corrections evaluations, since the image itself, reached last, is not corrected. `steps`
    evaluations have the largest N that fits; what is left over, at most `corrections`, corrects the first state, as
    Song's code does throughout.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations in all, predictor and corrector, at least 1; None for as many as the levels take.
        corrections: Langevin rows per level, at least 0; 0 is `ddpm`.
        snr: Size of a corrector's step against the noise, in (0, 1): the step is 2 snr^2 sigma^2.
        spacing: Of the levels, see `spaced_indices`.
        timesteps: The levels themselves, instead of as many as `steps` allows.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        variance: The predictor's variance, see `ddpm`.

    Returns:
        Table of one row per evaluation, float64. The last row draws no noise.

    Raises:
        ValueError: an option out of range.

    Source: Song et al. (2021), arXiv:2011.13456, algorithms 1, 3 and 5, appendix G.
    """
    ratio = _step_ratio(snr, None, 1.0)
    corrections = whole_number("corrections", corrections, low=0)
    per_level = 1 + corrections
    num_levels = diffusion.num_timesteps if timesteps is None else len(timesteps)
    most, least = num_levels * per_level, num_levels * per_level - corrections
    count = least if steps is None else whole_number(spelt("steps"), steps, low=1)
    lowest, whose = (1, "of the schedule") if timesteps is None else (least, "given")
    if not lowest <= count <= most:
        raise ValueError(
            f"with corrections = {corrections} the {num_levels} timesteps {whose} allow steps from {lowest} to {most}, "
            f"got {count}"
        )
    used = num_levels if timesteps is not None else (count + corrections) // per_level
    predictor = ddpm(
        diffusion, None if timesteps is not None else used, spacing=spacing, timesteps=timesteps, clip=clip,
        variance=variance,
    )  # fmt: skip
    alpha, sigma = np.asarray(predictor.alphas), np.asarray(predictor.sigmas)
    levels = Levels(diffusion.parametrization, predictor["t"], alpha, sigma)
    rows: list[dict[str, float]] = []
    states: list[int] = []
    for level in range(used):
        repeats = corrections if level > 0 else count - (used * per_level - corrections)
        rows += [_langevin_row(levels, level, ratio, clip)] * repeats
        rows.append({name: float(predictor[name][level]) for name in predictor.columns})
        states += [level] * repeats + [level + 1]
    options = {
        "steps": count, "corrections": corrections, "snr": snr, "spacing": spacing, "clip": clip,
        "variance": predictor.options["variance"],
    }  # fmt: skip
    return table_from_rows(
        levels, rows, "predictor_corrector", states=states, learned_variance=predictor.learned_variance, options=options
    )


def _langevin_row(levels: Levels, level: int, ratio: float, clip: float | None) -> dict[str, float]:
    """One Langevin row at a level, with the step ratio * sigma^2."""
    # Song and Ermon (2019), eq. 4, with their step eps = 2 d.
    noise = math.sqrt(2 * ratio) * levels.sigma[level]
    row = _denoise_row(levels, level, clip)
    return row | {"cx": 1 - ratio, "c0": ratio * levels.alpha[level], "s": noise}


def _denoise_row(levels: Levels, level: int, clip: float | None) -> dict[str, float]:
    """x' = the predicted x_0, the mean of the clean image given the state."""
    px, pm, scale = levels.of_image
    at = {"t": levels.t[level], "ci": scale[level], "px": px[level], "pm": pm[level]}
    return at | {"clip": clip_column(clip), "c0": 1.0}


def _step_ratio(snr: float | None, step_size: float | None, sigma: float) -> float:
    """The step in units of sigma^2, in (0, 2)."""
    if step_size is not None:
        if snr is not None:
            raise ValueError("give snr or step_size, not both")
        if not 0 < step_size < 2 * sigma**2:
            raise ValueError(
                f"step_size must be in (0, 2 sigma^2 = {2 * sigma**2:.4g}), beyond which the chain diverges, "
                f"got {step_size!r}"
            )
        return step_size / sigma**2
    snr = DEFAULT_SNR if snr is None else snr
    if not 0 < snr < 1:
        raise ValueError(f"snr must be in (0, 1): from 1 on the chain diverges; got {snr!r}")
    return 2 * snr**2
