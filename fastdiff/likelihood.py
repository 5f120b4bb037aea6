"""Likelihoods in bits per dimension: the variational bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import Diffusion
from fastdiff.losses import BoundTable, Cdf, Decoder, variational_terms
from fastdiff.noise import Stream
from fastdiff.reference import compute_dtype
from fastdiff.sampling import Model, checked_ids, eval_mode, model_device, model_dtype

_LN2 = math.log(2.0)
# How far from the grid, in steps of it, discrete data may lie: the rounding of float32.
_GRID_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Bound:
    """The variational bound on -log p(x), in bits per dimension, with its terms, for B images.

    Attributes:
        total: [B] float64, prior + the sum of the terms.
        prior: [B] float64, L_T: KL(q(x_T | x_0) || N(0, I)).
        terms: [B, T] float64; column t > 0 holds the KL term L_t, column 0 the decoder's -log p(x_0 | x_1).
        evaluations: Network evaluations in all, images times timesteps.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor
    evaluations: int

    @property
    def mean(self) -> float:
        """Mean of `total` over the images."""
        return float(self.total.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over the images; NaN for a single image, which tells nothing about its spread."""
        count = self.total.shape[0]
        return float(self.total.std(correction=1)) / math.sqrt(count) if count > 1 else math.nan

    @property
    def decoder(self) -> Tensor:
        """[B] the decoder's term."""
        return self.terms[:, 0]

    @property
    def kl(self) -> Tensor:
        """[B] the sum of the KL terms, t > 0."""
        return self.terms[:, 1:].sum(dim=1)

    def summary(self) -> dict[str, float]:
        """Means over the images, for reports: total with its standard error, prior, kl, decoder."""
        return {
            "bits_per_dim": self.mean,
            "standard_error": self.standard_error,
            "prior": float(self.prior.mean()),
            "kl": float(self.kl.mean()),
            "decoder": float(self.decoder.mean()),
        }


def bound(
    model: Model,
    diffusion: Diffusion,
    x: Tensor,
    *,
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
    """The variational bound on the negative log-likelihood of images, with every term.

    One draw of x_t per image and timestep, from the noise contract: the same (seed, sample id) gives the same bound,
    whatever the batch size.

    Args:
        model: Any callable (x [B, C, ...], t [B], **model_kwargs) -> [B, C or 2C, ...]; run in eval mode.
        diffusion: What the network was trained on, or a respacing of it, which gives the respaced chain's bound.
        x: Images [B, C, ...] in [-1, 1], float32 or float64, or uint8 in [0, levels). The terms are computed in
            float32, or float64 for float64 images, and added in float64.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        decoder: "discrete" scores the probability of the data's grid value; "gaussian" its density, for data that is
            continuous.
        cdf: "exact", or "tanh", the papers' approximation of the normal CDF.
        levels: Number of values of the data, evenly spaced over [-1, 1], for the discrete decoder; 256 for 8 bits.
        seed: In [0, 2^64).
        sample_ids: One whole number per image; 0..B-1 when None.
        model_kwargs: Tensors of one entry per image, passed to the model.
        batch_size: Evaluations in one call of the model.
        on_progress: Called with (evaluations done, evaluations in all).

    Returns:
        Bound, on the CPU.

    Raises:
        ValueError: images out of range, not finite or, for the discrete decoder, off the grid; shapes that do not fit.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 5; Nichol and Dhariwal (2021), arXiv:2102.09672, eq. 4 to 7.
    """
    device = model_device(model, x, None)
    images = _checked_images(x, decoder, levels).to(device)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, or None for no bound, got {clip!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    batch, num_timesteps = images.shape[0], diffusion.num_timesteps
    ids = checked_ids(sample_ids, batch, device)
    kwargs = {key: value.to(device) for key, value in (model_kwargs or {}).items()}
    dtype = compute_dtype(images)
    noising = torch.tensor(diffusion.noising_table(), dtype=dtype, device=device)
    times = torch.tensor(diffusion.schedule.timesteps, device=device)
    times = times.to(torch.int64) if bool((times == times.round()).all()) else times.to(torch.float32)
    table = BoundTable.build(diffusion, device, dtype)
    terms = torch.empty(num_timesteps * batch, dtype=torch.float64)
    with torch.no_grad(), eval_mode(model):
        for part in _parts(num_timesteps * batch, batch_size):
            pair = torch.arange(part.start, part.stop, device=device)
            # All images of one t lie together, so that the decoder's formula is needed in few calls.
            t, image = pair // batch, pair % batch
            x0 = images[image]
            x_t, _ = ops.diffuse(
                x0, t, noising, seed=seed, sample_ids=ids[image], row=t, stream=Stream.LIKELIHOOD, target=False
            )
            output = model(x_t.to(model_dtype(model, dtype)), times[t], **{k: v[image] for k, v in kwargs.items()})
            output, values = split_output(output, x0, diffusion.learned_variance)
            x0_pred = table.x0(x_t, t, output)
            if clip is not None:
                x0_pred = x0_pred.clamp(-clip, clip)
            log_variance = table.log_variance(t, x0, values)
            terms[part.start : part.stop] = variational_terms(
                x0, t, x0_pred, log_variance, table, decoder=decoder, levels=levels, cdf=cdf
            ).cpu()
            if on_progress is not None:
                on_progress(part.stop, num_timesteps * batch)
    terms = terms.reshape(num_timesteps, batch).T.contiguous()
    prior = prior_term(diffusion, images).cpu()
    return Bound(prior + terms.sum(dim=1), prior, terms, num_timesteps * batch)


def prior_term(diffusion: Diffusion, x: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) in bits per dimension, [B] float64, for images [B, ...] in [-1, 1].

    Source: Ho et al. (2020), eq. 5; KL(N(m, v) || N(0, 1)) = (m^2 + v - 1 - log v) / 2.
    """
    abar = float(diffusion.schedule.alphas_cumprod[-1])
    # v = 1 - abar, so v - 1 = -abar.
    constant = -abar - math.log1p(-abar)
    squares = x.double().square().flatten(1).mean(dim=1)
    return 0.5 * (abar * squares + constant) / _LN2


def split_output(output: Tensor, x: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    """The model's prediction and, where the variance is learned, its values for that; both of x's shape.

    Raises:
        ValueError: the output has neither x's shape nor, with or without need, twice its channels.
    """
    channels = x.shape[1]
    expected = [x.shape[0], 2 * channels if learned_variance else channels, *x.shape[2:]]
    if list(output.shape) != expected:
        raise ValueError(f"the model's output must have shape {expected}, got {list(output.shape)}")
    return (output[:, :channels], output[:, channels:]) if learned_variance else (output, None)


def _checked_images(x: Tensor, decoder: Decoder, levels: int) -> Tensor:
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x must be at least one image, [B, C, ...], got shape {list(x.shape)}")
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if x.dtype == torch.uint8:
        if int(x.max()) >= levels:
            raise ValueError(f"uint8 images must be in [0, {levels}), got {int(x.max())}: give the data's own levels")
        return (2.0 * x.float() - (levels - 1)) / (levels - 1)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32, float64 or uint8, got {x.dtype}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinite values")
    if decoder == "discrete":
        low, high = float(x.min()), float(x.max())
        if low < -1 - 1e-6 or high > 1 + 1e-6:
            raise ValueError(f"images must be in [-1, 1], got values from {low:g} to {high:g}")
        grid = (x + 1) * ((levels - 1) / 2)
        if bool(((grid - grid.round()).abs() > _GRID_TOLERANCE).any()):
            raise ValueError(
                f"the discrete decoder scores values of a grid of {levels} levels over [-1, 1], and x lies off it: "
                "give the data's own levels, or decoder='gaussian' for continuous data"
            )
    return x


def _parts(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
