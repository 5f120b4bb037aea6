"""Langevin dynamics whose step is controlled per sample, at one noise level or down several.

The tables of `fastdiff.samplers` have fixed steps; a step that depends on the state has to be a loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastdiff.nets.model import Model, model_device
from fastdiff.ops.reference.noise import torch_normals
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.interpolation import log_abar_at_time
from fastdiff.process.noise import Stream, check_seed
from fastdiff.samplers.langevin import DEFAULT_SNR
from fastdiff.sampling.runner import initial_noise
from fastdiff.sampling.seeds import checked_ids
from fastdiff.sampling.views import Views
from fastdiff.tensors import per_sample

__all__ = ["langevin"]

# A step never exceeds this share of sigma^2; from 2 on the chain diverges where the density is as narrow as the noise.
_LARGEST_STEP = 1.0


def langevin(
    model: Model,
    diffusion: Diffusion,
    *,
    timesteps: Sequence[float],
    shape: tuple[int, ...],
    steps_per_level: int = 10,
    snr: float = DEFAULT_SNR,
    denoise: bool = True,
    clip: float | None = 1.0,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    x_init: Tensor | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Langevin sampling from a model's score, annealed where there are several levels.

    x' = x + d score(x, t) + sqrt(2 d) z with d = 2 snr^2 D / |score|^2, at most sigma^2, from the norm of each sample's
    own score over its D dimensions, so that a sample depends on its own id and not on its batch. Song's code takes the
    mean norms of the batch, and |z| for its expectation sqrt(D). A step that depends on the state leaves p / d rather
    than p: a variance too large by about 2 / D, which is nothing for images and much for two dimensions.
    `samplers.annealed_langevin`, `samplers.langevin` and `samplers.predictor_corrector` are the same with the fixed
    step that exact noise would give, as tables.

    Args:
        model: Any callable; see `fastdiff.sample`.
        diffusion: What the network was trained on.
        timesteps: The levels, noisiest first: one for plain Langevin dynamics.
        shape: [B, C, ...] of the result.
        steps_per_level: Steps at each level, at least 1.
        snr: Size of a step against the noise, in (0, 1).
        denoise: Return the predicted x_0 of the last state, with one more evaluation, rather than the state.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        seed: In [0, 2^64).
        sample_ids: One whole number per sample; 0..B-1 when None.
        x_init: The state to start from, at the first level; noise of variance 1 when None.
        model_kwargs: Passed to the model at each call.

    Returns:
        Samples of `shape`, float32 (float64 for a float64 `x_init`).

    Raises:
        ValueError: levels, steps or shapes that do not fit.

    Source: Song et al. (2021), arXiv:2011.13456, algorithm 5; Song and Ermon (2019), arXiv:1907.05600, algorithm 1.
    """
    check_seed(seed)
    levels = [float(t) for t in timesteps]
    if not levels or any(late >= early for early, late in pairwise(levels)):
        raise ValueError(f"timesteps must fall, from the noisiest level to the cleanest, got {levels}")
    steps_per_level = whole_number("steps_per_level", steps_per_level, low=1)
    if not 0 < snr < 1:
        raise ValueError(f"snr must be in (0, 1), got {snr!r}")
    if x_init is not None and tuple(x_init.shape) != tuple(shape):
        raise ValueError(f"x_init must have shape {list(shape)}, got {list(x_init.shape)}")
    ids = checked_ids(sample_ids, shape[0], model_device(model, x_init, None))
    dtype = torch.float64 if x_init is not None and x_init.dtype == torch.float64 else torch.float32
    x = initial_noise(tuple(shape), ids, seed) if x_init is None else x_init.to(ids.device, dtype)
    views = Views(model, diffusion, model_kwargs or {}, clip)
    number = 0
    with torch.no_grad():
        for t in levels:
            largest = _LARGEST_STEP * -math.expm1(log_abar_at_time(diffusion.schedule, t))
            for _ in range(steps_per_level):
                row = torch.tensor([number], device=ids.device)
                z = torch_normals(seed, ids, tuple(x.shape[1:]), Stream.LANGEVIN, row).to(x.dtype)
                score = views.score(x, t)
                squares = score.flatten(1).square().mean(dim=1).clamp(min=1e-30)
                step = per_sample((2 * snr**2 / squares).clamp(max=largest), x)
                x = x + step * score + torch.sqrt(2 * step) * z
                number += 1
        return views.x0(x, levels[-1]) if denoise else x
