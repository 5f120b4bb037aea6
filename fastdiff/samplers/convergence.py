"""The order of convergence of a sampler, measured where the solution is known. NumPy only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastdiff.process.checks import shown, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.interpolation import log_abar_at_time, signal_noise_at
from fastdiff.process.schedule import Array, NoiseSchedule
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.registry import registered

__all__ = ["convergence_order"]

# Of the data. For a single one the leading term of the error may vanish.
_VARIANCES = np.array([0.1, 0.25, 0.6, 3.0])
# Multiples of 6: solvers of two or three evaluations a step take another step first, or last, for the others.
_STEPS = (120, 168, 240, 330, 480)
# What a builder is asked for where it takes it and the caller said nothing.
_SMOOTH = {"spacing": "logsnr", "continuous": True, "final": "sigma_min", "clip": None}
# Errors below are rounding.
_SMALLEST_ERROR = 1e-13
# For builders that end between timesteps: to the cleanest level the errors of order 3 cancel on Gaussian data.
_FIRST_TIMESTEP = 150
# For builders that visit whole timesteps alone: so many that they are as good as a continuum.
_MANY_TIMESTEPS = 16000


def convergence_order(
    build: str | Callable[..., CoefficientTable],
    diffusion: Diffusion | None = None,
    *,
    steps: Sequence[int] = _STEPS,
    **options: Any,
) -> float:
    """Order of convergence of a sampler: how fast its error falls with the number of steps, as a power of it.

    The network is the exact one for Gaussian data, which is linear. So the table multiplies its first state by a
    number, and so does the exact probability flow. The order is minus the slope of their relative difference, the
    largest of four data variances, over the number of rows, both on logarithmic axes.

    The slope is the order only where levels are spaced smoothly, which rounding to timesteps, a clip, and a last step
    to an image without noise are not. So a builder that takes `spacing`, `continuous`, `final` and `clip` is asked for
    spacing="logsnr", continuous=True, final="sigma_min" and clip=None, unless `options` say otherwise. One that visits
    whole timesteps alone, such as `ddim`, keeps its own spacing, on a process of 16,000 timesteps.

    Args:
        build: A sampler's name, or a function (diffusion, steps, **options) that returns a table.
        diffusion: The process; when None, the linear schedule with eps, without its 150 cleanest timesteps of 1000
            where the builder takes `continuous`, else whole with 16,000.
        steps: Numbers of steps that `build` is called with, at least two, such that a method's first rows, which are of
            lower order, do not count for much; multiples of the evaluations in its steps.
        **options: Of the sampler.

    Returns:
        The order: about 1 for `ddim`, 2 for `dpmpp` and `heun`.

    Raises:
        ValueError: a table that draws noise, does not say which levels it visits, or starts from an image or from a
            level without signal; steps that are not at least two different numbers; errors that are rounding alone.
    """
    function = registered(build).build if isinstance(build, str) else build
    known = inspect.signature(function).parameters
    smooth = {name: value for name, value in _SMOOTH.items() if name in known}
    if "continuous" not in known:
        smooth.pop("spacing", None)
    if diffusion is None:
        schedule = NoiseSchedule.linear(1000 if "continuous" in known else _MANY_TIMESTEPS)
        if "continuous" in known:
            schedule = NoiseSchedule.from_betas(schedule.subset(range(_FIRST_TIMESTEP, len(schedule))).betas)
        diffusion = Diffusion(schedule)
    counts = sorted({whole_number("steps", count, low=1) for count in np.atleast_1d(steps)})
    if len(counts) < 2:
        raise ValueError(f"steps must be at least two different numbers, got {shown(steps)}")
    tables = [function(diffusion, count, **(smooth | options)) for count in counts]
    errors = np.array([_error(table, diffusion) for table in tables])
    if errors.min() < _SMALLEST_ERROR:
        count = counts[int(errors.argmin())]
        raise ValueError(f"with {count} steps the result is exact to rounding, which shows no order: give fewer steps")
    slope = np.polyfit(np.log([len(table) for table in tables]), np.log(errors), 1)[0]
    return -float(slope)


def _error(table: CoefficientTable, diffusion: Diffusion) -> float:
    """How far a table's factor of the first state is from the exact flow's, relative to that."""
    alphas, sigmas = np.asarray(table.alphas), np.asarray(table.sigmas)
    if alphas.size == 0:
        raise ValueError(f"the table of {table.name!r} does not say which levels it visits: give it alphas and sigmas")
    if table.is_stochastic:
        raise ValueError(f"the table of {table.name!r} draws noise, so it has no order: set its noise to 0, as by eta")
    if alphas[0] == 0:
        raise ValueError(f"the table of {table.name!r} begins at a level without signal, where there is no exact flow")
    spread = alphas[[0, -1], None] ** 2 * _VARIANCES + sigmas[[0, -1], None] ** 2
    return float(np.abs(_factors(table, diffusion) / np.sqrt(spread[1] / spread[0]) - 1).max())


def _factors(table: CoefficientTable, diffusion: Diffusion) -> Array:
    """What the table multiplies the first state by, for each data variance, with the exact network."""
    outputs = _outputs(table, diffusion)
    x = np.ones_like(_VARIANCES)
    base, past = np.zeros_like(x), [np.zeros_like(x)] * 3
    for row in range(len(table)):
        k = {name: float(table[name][row]) for name in table.columns}
        m = outputs[row] * k["ci"] * x if k["evaluate"] else np.zeros_like(x)
        pred = k["px"] * x + k["pm"] * m
        slots = {"x": x, "b": base, "m": m, "0": pred, "1": past[0], "2": past[1], "3": past[2]}
        x, saved = (np.sum([k[letter + name] * slot for name, slot in slots.items()], axis=0) for letter in "cb")
        base = saved if k["save_base"] else base
        past = [pred, *past[:2]] if k["push"] else past
    return x


def _outputs(table: CoefficientTable, diffusion: Diffusion) -> Array:
    """[R, 4] the exact network's output for an input of 1, at each row's time and for each data variance."""
    alpha, sigma = signal_noise_at(log_abar_at_time(diffusion.schedule, table["t"]))
    # eps = ex x + em m, and the exact eps of a state of 1 is sigma / (alpha^2 V + sigma^2).
    network = diffusion.parametrization
    scale = network.input_scale(alpha, sigma)
    ex, em = network.eps(alpha, sigma)
    eps = sigma[:, None] / (alpha[:, None] ** 2 * _VARIANCES + sigma[:, None] ** 2)
    return np.asarray((eps - ex[:, None]) / (em * scale)[:, None])
