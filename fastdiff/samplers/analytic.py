"""What statistics of the network's error allow: the best reverse variances and the best timesteps.

With the signal-to-noise ratio snr_t = abar_t / (1 - abar_t), the mean squared errors of the two predictions at t are
tied by E|x_0 - x_0(x_t)|^2 = E|eps - eps(x_t)|^2 / snr_t, per element. `fastdiff.estimate` measures what is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import clip_column, visited_levels
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.spacing import spaced_indices

StepVariance = Literal["fixed_small", "fixed_large", "analytic"]


@sampler
def analytic_ddpm(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    eps_moment: npt.ArrayLike | None = None,
    spacing: str = "trailing",
    timesteps: Sequence[int] | None = None,
    clip: float | None = 1.0,
    data_bound: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Analytic-DPM on DDPM's chain: the reverse step's variance is the best one for the network.

    The variance is lambda^2 + c^2 v_t. lambda^2 is the variance of q(x_s | x_t, x_0), c is the coefficient of x_0 in
    its mean, and v_t = E|x_0 - E[x_0 | x_t]|^2 per element, which is (1 - M_t) / snr_t for the moment
    M_t = E|eps(x_t)|^2, kept within its bounds 0 <= v_t <= min(1 / snr_t, data_bound^2).

    Args:
        diffusion: What the network was trained on; a learned variance is not used.
        steps: Network evaluations, 1 to T; None for all T.
        eps_moment: [T] M_t, the mean square of the predicted eps per element, without unit. From
            `fastdiff.estimate.eps_moment`, or `gaussian_eps_moment`. Needed.
        spacing: See `spaced_indices`.
        timesteps: The timesteps themselves, instead of `steps` and `spacing`.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        data_bound: Half the width of the range of the data, (b - a) / 2; None for data without bounds.

    Returns:
        Table of one row per timestep, float64. The last row draws no noise.

    Raises:
        ValueError: an option out of range, or eps_moment missing.

    Source: Bao, Li, Zhu, Zhang (2022), arXiv:2201.06503, theorem 1; the bounds: theorem 2.
    """
    chosen = spaced_indices(diffusion.num_timesteps, steps, spacing, timesteps)
    return _analytic(
        "analytic_ddpm", diffusion, chosen, eps_moment, eta=1.0, spacing=spacing, clip=clip, data_bound=data_bound
    )


@sampler
def analytic_ddim(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    eta: float = 0.0,
    eps_moment: npt.ArrayLike | None = None,
    spacing: str = "trailing",
    timesteps: Sequence[int] | None = None,
    clip: float | None = 1.0,
    data_bound: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Analytic-DPM on DDIM's chain: as `analytic_ddpm`, with lambda^2 = eta^2 times the ancestral one.

    Args:
        eta: In [0, 1], no unit; 1 is `analytic_ddpm`. Noise is drawn at 0 as well: it stands for what the network
            cannot know of x_0.

    Other args, Returns, Raises, Source: as `analytic_ddpm`.
    """
    chosen = spaced_indices(diffusion.num_timesteps, steps, spacing, timesteps)
    return _analytic(
        "analytic_ddim", diffusion, chosen, eps_moment, eta=eta, spacing=spacing, clip=clip, data_bound=data_bound
    )


def _analytic(
    name: str,
    diffusion: Diffusion,
    indices: list[int],
    eps_moment: npt.ArrayLike | None,
    *,
    eta: float,
    spacing: str,
    clip: float | None,
    data_bound: float | None,
) -> CoefficientTable:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta!r}")
    moment = _checked_statistic("eps_moment", eps_moment, diffusion.num_timesteps)
    _check_bound(data_bound)
    chosen = diffusion.subset(indices)
    schedule = chosen.schedule
    alpha, sigma = chosen.signal_noise()
    alpha_prev = np.sqrt(schedule.alphas_cumprod_prev)
    # lambda^2, and the coefficient c of x_0 in the mean.
    ancestral = eta**2 * schedule.posterior_variance
    direction = np.sqrt(np.maximum(schedule.one_minus_alphas_cumprod_prev - ancestral, 0.0))
    slope = alpha_prev - direction * alpha / sigma
    unknown = _x0_variance(np.clip(1 - moment[indices], 0.0, 1.0), alpha, sigma, data_bound)
    # Bao et al. (2022), theorem 1.
    scale = np.sqrt(ancestral + slope**2 * unknown)
    scale[0] = 0.0
    px, pm = chosen.x0_coefficients()
    columns = {
        "t": schedule.timesteps, "ci": chosen.input_scale(), "px": px, "pm": pm, "cx": direction / sigma, "c0": slope,
        "s": scale,
    }  # fmt: skip
    alphas, sigmas = visited_levels(chosen)
    options = {"steps": len(schedule), "eta": eta, "spacing": spacing, "clip": clip, "data_bound": data_bound}
    return CoefficientTable(
        {key: values[::-1] for key, values in columns.items()} | {"clip": clip_column(clip)},
        name,
        alphas=alphas,
        sigmas=sigmas,
        options=options,
    )


def gaussian_eps_moment(diffusion: Diffusion, data_variance: npt.ArrayLike) -> Array:
    """E|eps(x_t)|^2 per element, [T], of the exact network for Gaussian data.

    That is (1 - abar_t) / (abar_t s^2 + 1 - abar_t) for a variance s^2.

    Args:
        diffusion: The process.
        data_variance: s^2, or the eigenvalues of the data's covariance, over which the mean is taken. In squared units
            of the data, not negative.

    Raises:
        ValueError: data_variance negative or not finite.
    """
    signal, noise = _gaussian_variances(diffusion, data_variance)
    return np.asarray((noise / (signal + noise)).mean(axis=1))


def gaussian_eps_error(diffusion: Diffusion, data_variance: npt.ArrayLike) -> Array:
    """E|eps - eps(x_t)|^2 per element, [T], of the exact network for Gaussian data.

    That is abar_t s^2 / (abar_t s^2 + 1 - abar_t) for a variance s^2: with `gaussian_eps_moment` it adds up to 1.

    Args, Raises: as `gaussian_eps_moment`.
    """
    signal, noise = _gaussian_variances(diffusion, data_variance)
    return np.asarray((signal / (signal + noise)).mean(axis=1))


def _gaussian_variances(diffusion: Diffusion, data_variance: npt.ArrayLike) -> tuple[Array, Array]:
    values = np.atleast_1d(np.asarray(data_variance, dtype=np.float64)).ravel()
    if values.size == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"data_variance must be finite and not negative, got {data_variance!r}")
    abar, noise = diffusion.schedule.alphas_cumprod, diffusion.schedule.one_minus_alphas_cumprod
    return abar[:, None] * values, noise[:, None]


def step_costs(
    diffusion: Diffusion,
    eps_error: npt.ArrayLike,
    *,
    variance: StepVariance = "fixed_small",
    levels: int | None = None,
    data_bound: float | None = 1.0,
) -> tuple[Array, Array]:
    """What each step of a respaced chain adds to its variational bound, in bits per dimension.

    A step from t to s < t costs E KL(q(x_s | x_t, x_0) || p(x_s | x_t)). With r = (snr_s - snr_t) e_t, for the mean
    squared error e_t of x_0 per element, that is, in nats, r / 2 for "fixed_small", log(1 + r) / 2 for "analytic" (the
    best variance, see `analytic_ddpm`) and (r b + b - 1 - log b) / 2 for "fixed_large", with b the ratio of the two
    fixed variances, (1 - abar_s) / (1 - abar_t).

    The step to the image costs E[-log p(x_0 | x_s)], (e_s / v + log(2 pi v)) / 2, with v = e_s for "analytic" and the
    chain's own decoder for the others: the fixed_small variance of the step before, as in `likelihood.bound`.

    Args:
        diffusion: The process.
        eps_error: [T] mean squared error of the predicted eps per element, from `fastdiff.estimate.eps_error`.
        variance: The reverse step's variance.
        levels: Number of values of the data on [-1, 1]: the last step then costs the coding of such a value, with e_s
            and v widened by the variance of one value's width. None for a density, whose cost may be negative.
        data_bound: Half the width of the range of the data: no x_0 is off by more, so e_t <= data_bound^2; None for
            data without bounds.

    Returns:
        (costs, last), both [T, T] float64 and inf where not defined: costs[t, s] for s < t; last[t, s] of the step from
        s to the image where t comes before s, and last[s, s] where s is the only timestep.

    Raises:
        ValueError: an option out of range, an error of 0 without `levels` for "analytic", or no signal at T-1 without
            `data_bound`.

    Source: Watson et al. (2021), arXiv:2106.03802; r: Kingma et al. (2021), arXiv:2107.00630, eq. 14.
    """
    if variance not in get_args(StepVariance):
        raise ValueError(f"unknown variance {variance!r}: {nearest_name(str(variance), get_args(StepVariance))}")
    error = _checked_statistic("eps_error", eps_error, diffusion.num_timesteps)
    _check_bound(data_bound)
    if levels is not None:
        levels = whole_number("levels", levels, low=2)
    unknown = _x0_variance(error, *diffusion.signal_noise(), data_bound)
    log_abar = diffusion.schedule.log_alphas_cumprod
    noise = diffusion.schedule.one_minus_alphas_cumprod
    count = len(noise)
    later, earlier = np.tril_indices(count, -1)
    # 1 - abar_t / abar_s, the beta of the step, and snr_s - snr_t = (abar_s - abar_t) / (noise_s noise_t).
    beta = -np.expm1(log_abar[later] - log_abar[earlier])
    share = noise[earlier] / noise[later]
    gain = np.exp(log_abar[earlier]) * beta / (noise[earlier] * noise[later]) * unknown[later]
    if variance == "fixed_small":
        nats = 0.5 * gain
    elif variance == "analytic":
        nats = 0.5 * np.log1p(gain)
    else:
        nats = 0.5 * (gain * share + (share - 1 - np.log(share)))
    costs = np.full((count, count), np.inf)
    costs[later, earlier] = nats / math.log(2)

    width = 1.0 if levels is None else 2 / (levels - 1)
    extra = 0.0 if levels is None else width**2 / 12
    if variance == "analytic":
        decoder = np.broadcast_to(unknown, (count, count)) + extra
        if (decoder == 0).any():
            raise ValueError(
                f"eps_error is 0 at t = {int(unknown.argmin())}, and then the density of the data has no bound: give "
                "levels, the number of values of the data"
            )
    else:
        decoder = np.diag(noise) + extra
        decoder[later, earlier] = beta * share + extra
        # Any positive number where no chain goes.
        decoder[earlier, later] = 1.0
    last = 0.5 * ((unknown + extra) / decoder + np.log(2 * math.pi * decoder / width**2)) / math.log(2)
    last[earlier, later] = np.inf
    return costs, last


def optimal_timesteps(
    diffusion: Diffusion,
    eps_error: npt.ArrayLike,
    steps: int,
    *,
    variance: StepVariance = "fixed_small",
    levels: int | None = None,
    data_bound: float | None = 1.0,
) -> list[int]:
    """The timesteps with the least variational bound: the exact minimum over all choices of `steps` that contain T-1.

    Args:
        diffusion: What the network was trained on.
        eps_error: [T] mean squared error of the predicted eps per element, from `fastdiff.estimate.eps_error`.
        steps: How many to choose, 1 to T.
        variance: See `step_costs`, as for `levels` and `data_bound`. For "analytic" and Gaussian data all choices tie.

    Returns:
        Positions in the schedule, increasing; pass them as `timesteps` to any sampler.

    Raises:
        ValueError: as `step_costs`, or steps out of range.

    Source: Watson et al. (2021), arXiv:2106.03802, algorithm 1.
    """
    steps = whole_number(spelt("steps"), steps, low=1, high=diffusion.num_timesteps)
    return least_path(*step_costs(diffusion, eps_error, variance=variance, levels=levels, data_bound=data_bound), steps)


def path_cost(costs: Array, last: Array, timesteps: Sequence[int]) -> float:
    """The bound of a respaced chain in bits per dimension, without the prior's term, from its `step_costs`.

    Raises:
        ValueError: timesteps that are not strictly monotone.
    """
    path = spaced_indices(len(last), timesteps=timesteps)
    return float(costs[path[1:], path[:-1]].sum() + last[path[min(1, len(path) - 1)], path[0]])


def least_path(costs: Array, last: Array, steps: int) -> list[int]:
    """The increasing path of `steps` timesteps up to T-1 of the least `path_cost`."""
    num_timesteps = len(last)
    if steps == 1:
        return [num_timesteps - 1]
    # reach[s] is the least cost of getting from T-1 to s in so many steps; came[k][s] is where from.
    reach = np.full(num_timesteps, np.inf)
    reach[-1] = 0.0
    came = np.zeros((steps, num_timesteps), dtype=np.int64)
    total = np.empty_like(costs)
    for k in range(1, steps):
        np.add(costs, reach[:, None], out=total)
        if k == steps - 1:
            total += last
        came[k] = total.argmin(axis=0)
        reach = total[came[k], np.arange(num_timesteps)]
    path = [int(reach.argmin())]
    for k in range(steps - 1, 0, -1):
        path.append(int(came[k][path[-1]]))
    return path


def _x0_variance(eps_share: Array, alpha: Array, sigma: Array, data_bound: float | None) -> Array:
    """Mean squared error of x_0 per element from that of eps, at most data_bound^2."""
    abar = alpha**2
    signal = abar > 0
    if data_bound is None:
        if not signal.all():
            raise ValueError("the schedule leaves no signal at T-1, and nothing else bounds x0 there: give data_bound")
        return np.asarray(eps_share * sigma**2 / abar)
    # Bounded before the division, which then has no large numbers.
    bounded = np.minimum(eps_share * sigma**2, data_bound**2 * abar)
    return np.asarray(np.divide(bounded, abar, out=np.full_like(abar, data_bound**2), where=signal))


def _checked_statistic(name: str, values: npt.ArrayLike | None, num_timesteps: int) -> Array:
    if values is None:
        raise ValueError(f"{name} is needed, one number per timestep: see fastdiff.estimate.{name}")
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (num_timesteps,):
        raise ValueError(f"{name} must have one entry per timestep ({num_timesteps}), got shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any():
        where = int(np.flatnonzero(~(array >= 0) | np.isinf(array))[0])
        raise ValueError(f"{name} must be finite and not negative, got {array[where]} at t = {where}")
    return array


def _check_bound(data_bound: float | None) -> None:
    if data_bound is not None and not 0 < data_bound < math.inf:
        raise ValueError(f"data_bound must be positive, or None for no bound, got {data_bound!r}")
