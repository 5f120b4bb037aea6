"""The importance-weighted bound, from trajectories through the generative chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.engine.choose import native_network
from fastdiff.likelihood.variational import (
    ImageBatch,
    Scoring,
    parts,
    standard_error,
)
from fastdiff.nets.model import (
    Model,
    eval_mode,
    model_dtype,
    network_times,
    split_output,
)
from fastdiff.ops.reference.bound import (
    BoundTable,
    Cdf,
    Decoder,
    discretized_gaussian_log_likelihood,
    gaussian_log_likelihood,
)
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import MAX_ROW, Stream
from fastdiff.tensors import compute_dtype

_LN2 = math.log(2.0)


@dataclass(frozen=True, eq=False)
class ImportanceBound:
    """The importance-weighted bound on -log p(x), in bits per dimension, for B images.

    Attributes:
        total: [B] float64, -log of the mean of the K weights.
        log_weights: [B, K] float64, log p(x_{0:T}) / q(x_{1:T} | x_0) of each trajectory, in nats.
        dims: Dimensions of an image.
        evaluations: Network evaluations in all: images times trajectories times timesteps.
    """

    total: Tensor
    log_weights: Tensor
    dims: int
    evaluations: int

    @property
    def mean(self) -> float:
        """Mean of `total` over the images."""
        return float(self.total.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over the images; NaN for a single one."""
        return standard_error(self.total)

    def with_trajectories(self, count: int) -> Tensor:
        """[B] the bound from `count` of the K trajectories, averaged over the K // count groups of so many.

        Falls with the count, in expectation; 1 is the variational bound.

        Raises:
            ValueError: count out of range.
        """
        available = self.log_weights.shape[1]
        if not 1 <= count <= available:
            raise ValueError(f"count must be in 1..{available}, got {count}")
        groups = available // count
        each = self.log_weights[:, : groups * count].reshape(-1, groups, count)
        return -(torch.logsumexp(each, dim=2) - math.log(count)).mean(dim=1) / (self.dims * _LN2)

    def summary(self) -> dict[str, float]:
        """Means over the images, for reports: the bound, its error, and the bound of one trajectory."""
        return {
            "bits_per_dim": self.mean,
            "standard_error": self.standard_error,
            "trajectories": self.log_weights.shape[1],
            "one_trajectory": float(self.with_trajectories(1).mean()),
        }


def iwae(
    model: Model,
    diffusion: Diffusion,
    x: Tensor,
    *,
    trajectories: int = 8,
    clip: float | None = 1.0,
    decoder: Decoder = "discrete",
    cdf: Cdf = "exact",
    levels: int = 256,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Tensor] | None = None,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImportanceBound:
    """The importance-weighted bound with K trajectories, between the variational bound and -log p(x).

    A trajectory is drawn from the forward process given the image, x_T first, then x_{t-1} from q(x_{t-1} | x_t, x_0);
    its weight is p(x_T) prod p(x_{t-1} | x_t) / q(x_{1:T} | x_0). Trajectory k of an image is the same whatever K is.
    Respaced chains make long trajectories affordable.

    Args:
        model: See `bound`, as for the arguments not listed here.
        diffusion: See `bound`.
        x: Images [B, C, ...]; see `bound`.
        trajectories: K, at least 1; K T evaluations per image.
        batch_size: Trajectories at a time.
        on_progress: Called with (evaluations done, evaluations in all).

    Returns:
        ImportanceBound, on the CPU.

    Raises:
        ValueError: an argument out of range; see `bound` for the others.

    Source: Burda, Grosse, Salakhutdinov (2016), arXiv:1509.00519, eq. 8; the chain: Ho et al. (2020), eq. 3 and 7.
    """
    num_timesteps = diffusion.num_timesteps
    whole_number("trajectories", trajectories, low=1)
    if trajectories * (num_timesteps + 1) > MAX_ROW:
        raise ValueError(f"trajectories times T + 1 must be at most 2^28, got {trajectories} times {num_timesteps + 1}")
    whole_number("batch_size", batch_size, low=1)
    scoring = Scoring(clip, decoder, cdf, levels)
    batch = ImageBatch.build(model, x, scoring.grid_levels, levels, sample_ids, model_kwargs)
    images = batch.images
    chain = _Chain(model, diffusion, scoring, seed, images)
    count = len(batch) * trajectories
    log_weights = torch.empty(count, dtype=torch.float64)
    with torch.no_grad(), eval_mode(model):
        network = native_network(model, "auto", images, dict(batch.model_kwargs)) or model
        for part in parts(count, batch_size):
            pair = torch.arange(part.start, part.stop, device=images.device)
            log_weights[part] = chain.log_weights(network, batch.take(pair // trajectories), pair % trajectories).cpu()
            if on_progress is not None:
                on_progress(part.stop * num_timesteps, count * num_timesteps)
    weights = log_weights.reshape(-1, trajectories)
    dims = images[0].numel()
    total = -(torch.logsumexp(weights, dim=1) - math.log(trajectories)) / (dims * _LN2)
    return ImportanceBound(total, weights, dims, count * num_timesteps)


class _Chain:
    """Draws trajectories from the forward process and weighs them."""

    def __init__(self, model: Model, diffusion: Diffusion, scoring: Scoring, seed: int, images: Tensor) -> None:
        device, dtype = images.device, compute_dtype(images)
        self._scoring, self._seed = scoring, seed
        self._input_dtype, self._learned = model_dtype(model, dtype), diffusion.learned_variance
        self._times = network_times(diffusion, device)
        self._table = BoundTable.build(diffusion, device, dtype)
        schedule = diffusion.schedule
        alpha, sigma = diffusion.signal_noise()
        # Row T noises an image to x_T; row t, 1 to T-1, adds the noise of q(x_{t-1} | x_t, x_0) to its mean.
        draws = np.zeros((len(schedule) + 1, 4))
        draws[:-1, 0], draws[:-1, 1] = 1.0, np.sqrt(schedule.posterior_variance)
        draws[-1, :2] = alpha[-1], sigma[-1]
        self._draws = torch.tensor(draws, dtype=dtype, device=device)
        self._input_scale = None if diffusion.parametrization.is_given_the_state else diffusion.input_scale()
        self._of_x0, self._of_x = schedule.posterior_mean_coef1, schedule.posterior_mean_coef2
        self._alpha, self._variance = float(alpha[-1]), float(sigma[-1] ** 2)

    def log_weights(self, network: Model, batch: ImageBatch, path: Tensor) -> Tensor:
        """[N] float64, in nats, for trajectories `path` [N] of N images."""
        x0, ids, clip = batch.images, batch.ids, self._scoring.clip
        table, last = self._table, self._table.num_timesteps
        x = self._draw(x0, last, ids, path)
        of_forward = gaussian_log_likelihood(x, self._alpha * x0, torch.tensor(0.5 * math.log(self._variance)).to(x))
        total = _summed(gaussian_log_likelihood(x, torch.zeros_like(x), torch.zeros_like(x)) - of_forward)
        for step in range(last - 1, -1, -1):
            t = torch.full((x.shape[0],), step, dtype=torch.int64, device=x.device)
            seen = x if self._input_scale is None else x * float(self._input_scale[step])
            output = network(seen.to(self._input_dtype), self._times[t], **batch.model_kwargs)
            output, values = split_output(output, x0, self._learned)
            x0_pred = table.x0(seen, t, output)
            if clip is not None:
                x0_pred = x0_pred.clamp(-clip, clip)
            log_std = 0.5 * table.log_variance(t, x, values)
            if step == 0:
                return total + _summed(self._decode(x0, x0_pred, log_std))
            of_x0, of_x = float(self._of_x0[step]), float(self._of_x[step])
            x, before = self._draw(of_x0 * x0 + of_x * x, step, ids, path), x
            forward_std = 0.5 * table.posterior_log_variance[step]
            total += _summed(
                gaussian_log_likelihood(x, of_x0 * x0_pred + of_x * before, log_std)
                - gaussian_log_likelihood(x, of_x0 * x0 + of_x * before, forward_std)
            )
        raise AssertionError("a schedule has at least one step")

    def _draw(self, mean: Tensor, row: int, ids: Tensor, path: Tensor) -> Tensor:
        t = torch.full((mean.shape[0],), row, dtype=torch.int64, device=mean.device)
        rows = path * self._draws.shape[0] + row
        return ops.diffuse(
            mean, t, self._draws, seed=self._seed, sample_ids=ids, row=rows, stream=Stream.LIKELIHOOD_PATH, target=False
        )[0]

    def _decode(self, x0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        scoring = self._scoring
        if scoring.decoder == "gaussian":
            return gaussian_log_likelihood(x0, mean, log_std)
        return discretized_gaussian_log_likelihood(x0, mean, log_std, levels=scoring.levels, cdf=scoring.cdf)


def _summed(x: Tensor) -> Tensor:
    return x.double().flatten(1).sum(dim=1)
