"""A chain of DDIM steps that can be undone exactly, and its inverse by fixed-point iteration.

Plain `ddim` cannot be undone: its last step gives the predicted image, and the denoiser maps many states to one image.
Here the chain goes on down to t = 0, with a step wherever sigma would fall by more than half, and ends on half of the
way along the score, x / alpha - rho / 2 eps, as the flow's tables do.
`fastdiff.editing` runs these tables; they are not among `samplers.names()`, where `steps` counts evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import Levels, position_of, table_from_rows, told
from fastdiff.samplers.spacing import spaced_indices

# By how much sigma may fall in one step: the step's derivative along what the data leave no room for.
_LARGEST_RATIO = 2.0
# The largest variance of images in [-1, 1] in any direction that the iteration reckons with; more is slower, not wrong.
_LARGEST_VARIANCE = 4.0


@dataclass(frozen=True)
class _Link:
    """One step down, y = gain x + slope prediction(x, t), between two levels of the chain.

    Attributes:
        t: What the network is given.
        gain, slope: As above.
        ci: What the state is multiplied by for the network.
        px, pm: The prediction, eps or x_0, of the state and the network's output.
        least, largest: The derivative dy / dx for Gaussian data of variance 0, and of `_LARGEST_VARIANCE`.
    """

    t: float
    gain: float
    slope: float
    ci: float
    px: float
    pm: float
    least: float
    largest: float


def invertible_encode(diffusion: Diffusion, steps: int | None = None, *, iterations: int = 5) -> CoefficientTable:
    """Coefficients of the inverse of `invertible_decode`, from a clean image to noise, by fixed-point iteration.

    A step down y = F(x) is undone by x <- x + (y - F(x)) / d, from x = y. For Gaussian data dF / dx lies between two
    numbers that the levels tell, and the divisors d of the K iterations are the zeros of the Chebyshev polynomial of
    degree K on that interval, in Leja's order: with its ends a factor of 2 apart the error falls by 5.8 each time.
    Start from an image: `sample(..., x_init=image)`.

    Args:
        diffusion: What the network was trained on.
        steps: Of the decoder, 1 to T; None for T.
        iterations: Evaluations per step, at least 1.

    Returns:
        Table of one row per iteration, float64.

    Raises:
        ValueError: an option out of range.

    Source: Pan et al. (2023), arXiv:2309.04907, for the iteration; Richardson (1911) and Varga (1962), Matrix iterative
    analysis, section 5.1, for the divisors.
    """
    iterations = whole_number("iterations", iterations, low=1)
    levels, links = _chain(diffusion, steps)
    rows: list[dict[str, float]] = []
    states: list[int] = []
    for level, link in enumerate(links, start=1):
        for k, d in enumerate(_divisors(link.least, link.largest, iterations)):
            row = _evaluation(link) | {"cx": 1 - link.gain / d, "c0": -link.slope / d}
            # The first iteration begins at y itself, which the later ones need as well.
            row |= {"cb": 1 / d} if k else {"save_base": 1.0, "bx": 1.0, "cx": row["cx"] + 1 / d}
            rows.append(row)
            states.append(level)
    return table_from_rows(
        levels, rows, "invertible_encode", states=states, init_scale=0.0, data_prediction=False,
        options={"steps": steps, "iterations": iterations},
    )  # fmt: skip


def invertible_decode(diffusion: Diffusion, steps: int | None = None) -> CoefficientTable:
    """Coefficients of DDIM in a form that `invertible_encode` undoes, from noise to a clean image.

    Args:
        diffusion: What the network was trained on.
        steps: 1 to T, as for `ddim`; None for T. There are a few more evaluations, near the image.

    Returns:
        Table of one row per evaluation, float64.

    Raises:
        ValueError: an option out of range.

    Source: Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 12.
    """
    levels, links = _chain(diffusion, steps)
    rows = [_evaluation(link) | {"cx": link.gain, "c0": link.slope} for link in reversed(links)]
    reverse = Levels(levels.network, levels.t[::-1], levels.alpha[::-1], levels.sigma[::-1])
    return table_from_rows(
        reverse, rows, "invertible_decode", order=1, data_prediction=False, options={"steps": steps}
    )  # fmt: skip


def _evaluation(link: _Link) -> dict[str, float]:
    return {"t": link.t, "ci": link.ci, "px": link.px, "pm": link.pm}


def _chain(diffusion: Diffusion, steps: int | None) -> tuple[Levels, list[_Link]]:
    """The levels from the clean image to noise, and what leads from each of them down to the one before."""
    if steps is not None:
        steps = whole_number(spelt("steps"), steps, low=1, high=diffusion.num_timesteps)
    diffusion = told(diffusion)
    steps = None if steps is None else min(steps, diffusion.num_timesteps)
    at = _refined(diffusion, spaced_indices(diffusion.num_timesteps, steps))
    alphas, sigmas = (c[at] for c in diffusion.signal_noise())
    times = diffusion.schedule.timesteps[at]
    alpha, sigma = float(alphas[0]), float(sigmas[0])
    network = diffusion.parametrization
    ci = float(network.input_scale(alphas[:1], sigmas[:1])[0])
    ex, em = (float(c[0]) for c in network.eps(alphas[:1], sigmas[:1]))
    left = alpha**2 * _LARGEST_VARIANCE + sigma**2
    links = [
        _Link(
            t=float(times[0]),
            gain=1 / alpha,
            slope=-sigma / alpha / 2,
            ci=ci,
            px=ex,
            pm=em,
            least=0.5 / alpha,
            largest=(1 - sigma**2 / left / 2) / alpha,
        )
    ]
    pairs = (slice(level - 1, level + 1) for level in range(1, len(at)))
    links += [_ddim_link(diffusion, float(times[pair][1]), alphas[pair], sigmas[pair]) for pair in pairs]
    levels = Levels(network, times, np.append(1.0, alphas), np.append(0.0, sigmas))
    return levels, links


def _ddim_link(diffusion: Diffusion, t: float, alphas: Array, sigmas: Array) -> _Link:
    (alpha_to, alpha), (sigma_to, sigma) = (map(float, alphas), map(float, sigmas))
    # Song, Meng, Ermon (2021), eq. 12, in two forms: by the x_0 where noise prevails, since alpha may be 0 there, and
    # else by the eps.
    network = diffusion.parametrization
    ci = float(network.input_scale(alphas[1:], sigmas[1:])[0])
    if alpha < sigma:
        px, pm = (float(c[0]) for c in network.x0(alphas[1:], sigmas[1:]))
        gain = sigma_to / sigma
        slope = alpha_to - gain * alpha
    else:
        px, pm = (float(c[0]) for c in network.eps(alphas[1:], sigmas[1:]))
        gain = alpha_to / alpha
        slope = sigma_to - gain * sigma
    v = _LARGEST_VARIANCE
    largest = (alpha_to * alpha * v + sigma_to * sigma) / (alpha**2 * v + sigma**2)
    return _Link(t, gain, slope, ci, px, pm, sigma_to / sigma, largest)


def _refined(diffusion: Diffusion, chosen: list[int]) -> list[int]:
    """The timesteps with t = 0 and others between them, so that sigma falls by half at most, or T allows no more."""
    sigma = diffusion.signal_noise()[1]
    found = {0, *chosen}
    for low, high in pairwise(sorted(found)):
        pieces = math.ceil(math.log(sigma[high] / sigma[low]) / math.log(_LARGEST_RATIO) - 1e-9)
        wanted = np.geomspace(sigma[low], sigma[high], pieces + 1)[1:-1]
        between = position_of(diffusion, 0.5 * np.log1p(-(wanted**2)) - np.log(wanted))
        found |= {int(t) for t in np.round(between)}
    return sorted(found)


def _divisors(least: float, largest: float, count: int) -> list[float]:
    """Zeros of the Chebyshev polynomial on [least, largest]; each next one is farthest from those before, in product.

    Source: Leja (1957); Reichel (1990), Newton interpolation at Leja points.
    """
    middle, reach = (largest + least) / 2, (largest - least) / 2
    left = [middle + reach * math.cos(math.pi * (2 * k + 1) / (2 * count)) for k in range(count)]
    order = [left.pop(0)]
    while left:
        distances = [math.prod(abs(d - other) / max(reach, 1e-300) for other in order) for d in left]
        order.append(left.pop(int(np.argmax(distances))))
    return order
