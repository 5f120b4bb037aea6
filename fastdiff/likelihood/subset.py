"""The variational bound from some of its terms, with an error bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastdiff.likelihood.variational import Bound, ImageBatch, Scoring, TermEvaluator, prior_term
from fastdiff.nets.model import Model
from fastdiff.ops.reference.bound import Cdf, Decoder
from fastdiff.process import noise
from fastdiff.process.checks import nearest_name, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream
from fastdiff.process.schedule import Array

Allocation = Literal["importance", "stratified"]

# The pilot: so many images at so many timesteps tell where the terms are large.
_PILOT_IMAGES = 8
_PILOT_TIMESTEPS = 12
# Share of the draws that goes evenly to all timesteps, whatever the pilot says: no weight exceeds its inverse.
_EVEN_SHARE = 0.1
# Rounds are run until the spread is known from so many degrees of freedom, over all images.
_DEGREES_OF_FREEDOM = 16
# Without a target: the standard error as a share of the mean.
_DEFAULT_RELATIVE_ERROR = 0.01


def bound_estimate(
    model: Model,
    diffusion: Diffusion,
    x: Tensor,
    *,
    target_error: float | None = None,
    allocation: Allocation = "importance",
    draws: int = 1,
    max_rounds: int | None = None,
    clip: float | None = 1.0,
    decoder: Decoder = "discrete",
    cdf: Cdf = "exact",
    levels: int = 256,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Tensor] | None = None,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Bound:
    """The variational bound estimated from a random subset of its terms, to a requested standard error.

    An unbiased estimate, per image, of what `bound` gives for the same seed and sample ids. A round draws `draws`
    timesteps per image, one in each stratum of equal mass under a distribution q of timesteps, and estimates the sum of
    the terms by the mean of L_t / q(t). The decoder's term, which stands alone, is always evaluated. Rounds are
    independent, so their spread gives the error. Terms that were drawn before are not evaluated again; once an image
    has all of its terms, its estimate is the bound itself and its error 0.

    Args:
        model: See `bound`, as for the arguments not listed here.
        diffusion: See `bound`.
        x: Images [B, C, ...]; see `bound`.
        target_error: Stop when `mean_sampling_error`, the standard error of the mean over these images as an estimate
            of their full bound, is no larger, in bits/dim; 1 % of the mean when None.
        allocation: q. "importance": proportional to the root mean square of the terms, as a pilot of up to 8 images and
            12 timesteps of this call tells; the pilot's evaluations are counted. "stratified": in proportion to 1 / t,
            even in log t, as terms fall; it needs no pilot, and an image's draws do not depend on the other images.
        draws: Timesteps per image and round, at least 1. A call makes at least two rounds, so a few images or a loose
            target need no more than 1; more of them make `sampling_error` of a single image better known.
        max_rounds: Stop after so many rounds, at least 2, whatever the error; None for no limit.

    Returns:
        Bound. `total` is the estimate, `sampling_error` its standard error per image (from few rounds, hence rough for
        a single image; the mean's is better known), `terms` what was evaluated.

    Raises:
        ValueError: an argument out of range; see `bound` for the others.

    Source: the terms as an expectation over t: Nichol and Dhariwal (2021), arXiv:2102.09672, section 3.3, eq. 18.
    """
    if allocation not in get_args(Allocation):
        raise ValueError(f"unknown allocation {allocation!r}: {nearest_name(str(allocation), get_args(Allocation))}")
    if target_error is not None and not target_error > 0:
        raise ValueError(f"target_error must be positive, in bits/dim, or None for 1 % of the mean, got {target_error}")
    whole_number("draws", draws, low=1)
    if max_rounds is not None:
        # The spread of the rounds gives the error.
        whole_number("max_rounds", max_rounds, low=2)
    whole_number("batch_size", batch_size, low=1)
    scoring = Scoring(clip, decoder, cdf, levels)
    batch = ImageBatch.build(model, x, scoring.grid_levels, levels, sample_ids, model_kwargs)
    evaluator = TermEvaluator(model, diffusion, batch, scoring, seed, batch_size)
    prior = prior_term(diffusion, batch.images).cpu()
    num_images, num_timesteps = len(batch), diffusion.num_timesteps
    _evaluate(evaluator, torch.arange(num_images), torch.zeros(num_images, dtype=torch.int64))
    if allocation == "importance" and num_timesteps > 2:
        shares = _pilot_shares(evaluator)
    else:
        shares = _mixed(1 / np.arange(1, num_timesteps))

    rounds: list[Tensor] = []
    fewest = max(2, 1 + math.ceil(_DEGREES_OF_FREEDOM / num_images))
    wanted = fewest if max_rounds is None else min(fewest, max_rounds)
    while num_timesteps > 1 and not _complete(evaluator):
        rounds += _rounds(evaluator, shares, draws, range(len(rounds), wanted))
        result = _result(evaluator, prior, rounds)
        target = _DEFAULT_RELATIVE_ERROR * abs(result.mean) if target_error is None else target_error
        if on_progress is not None:
            on_progress(result.evaluations, num_images * num_timesteps)
        # Written so that NaN from a network ends it as well.
        if not result.mean_sampling_error > target or len(rounds) == max_rounds:
            return result
        # The error falls with the root of the rounds. At most twice as many at once: it is only an estimate so far.
        needed = math.ceil(len(rounds) * (result.mean_sampling_error / target) ** 2)
        wanted = min(max(needed, len(rounds) + 1), 2 * len(rounds), max_rounds or 2 * len(rounds))
    return _result(evaluator, prior, rounds)


def _pilot_shares(evaluator: TermEvaluator) -> Array:
    """[T - 1] the share of the draws that each t > 0 gets, from a few images and timesteps."""
    num_timesteps, batch = evaluator.diffusion.num_timesteps, len(evaluator.batch)
    # The terms vary by orders of magnitude near t = 0 and slowly after that.
    chosen = np.unique(np.geomspace(1, num_timesteps - 1, min(_PILOT_TIMESTEPS, num_timesteps - 1)).round().astype(int))
    images = np.unique(np.linspace(0, batch - 1, min(_PILOT_IMAGES, batch)).round().astype(int))
    image, t = (torch.from_numpy(a.ravel()) for a in np.meshgrid(images, chosen))
    # With a seed of its own, so that the draws know nothing of the terms' noise, which would bias the estimate.
    pilot = replace(evaluator, seed=evaluator.seed ^ 1 << 63, evaluations=0)
    pilot(image, t)
    evaluator.evaluations += pilot.evaluations
    size = pilot.terms[:, torch.from_numpy(chosen)].square().nanmean(dim=0).sqrt().numpy()
    t_all = np.arange(1, num_timesteps)
    floor = max(float(size.max()), np.finfo(np.float64).tiny) * 1e-6
    density = np.exp(np.interp(np.log(t_all), np.log(chosen), np.log(np.maximum(size, floor))))
    return _mixed(density)


def _mixed(density: Array) -> Array:
    """The density as shares, some of them spread evenly."""
    return np.asarray((1 - _EVEN_SHARE) * density / max(density.sum(), 1e-300) + _EVEN_SHARE / max(1, density.size))


def _rounds(evaluator: TermEvaluator, shares: Array, draws: int, numbers: range) -> Tensor:
    """[R, B] estimates of the sum of the terms t > 0, each from `draws` timesteps of each image, all in one go."""
    batch, count = len(evaluator.batch), len(numbers)
    ids, number = np.tile(evaluator.batch.ids.cpu().numpy(), count), np.repeat(np.asarray(numbers), batch)
    words = noise.words(evaluator.seed, ids, draws, Stream.LIKELIHOOD_TIME, number)
    # The middle of the interval that a word stands for, so in (0, 1).
    within = (words.astype(np.float64) + 0.5) * 2.0**-32
    edges = np.cumsum(shares)
    at = (np.arange(draws) + within) / draws * edges[-1]
    index = np.minimum(np.searchsorted(edges, at, side="right"), len(shares) - 1)
    t = torch.from_numpy(index + 1)
    image = torch.arange(batch).repeat(count)[:, None].expand(batch * count, draws)
    _evaluate(evaluator, image.reshape(-1), t.reshape(-1))
    weights = torch.from_numpy(1 / (draws * shares[index]))
    return (evaluator.terms[image, t] * weights).sum(dim=1).reshape(count, batch)


def _evaluate(evaluator: TermEvaluator, image: Tensor, t: Tensor) -> None:
    """Evaluate what is not known yet, the terms of one t together."""
    pairs = torch.unique(t * len(evaluator.batch) + image)
    image, t = pairs % len(evaluator.batch), pairs // len(evaluator.batch)
    unknown = torch.isnan(evaluator.terms[image, t])
    evaluator(image[unknown], t[unknown])


def _complete(evaluator: TermEvaluator) -> bool:
    return not bool(torch.isnan(evaluator.terms).any())


def _result(evaluator: TermEvaluator, prior: Tensor, rounds: list[Tensor]) -> Bound:
    terms, batch = evaluator.terms, len(evaluator.batch)
    known = ~torch.isnan(terms).any(dim=1)
    estimate, error = terms[:, 1:].sum(dim=1), torch.zeros(batch, dtype=torch.float64)
    if rounds:
        each = torch.stack(rounds)
        estimate = torch.where(known, estimate, each.mean(dim=0))
        error = torch.where(known, error, each.std(dim=0, correction=1) / math.sqrt(len(rounds)))
    return Bound(prior + terms[:, 0] + estimate, prior, terms, evaluator.evaluations, evaluator.x0_mse, error)
