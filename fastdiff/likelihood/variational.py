"""The variational bound, with every term or some of them; what the other scores build on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.engine.choose import native_network
from fastdiff.nets.model import (
    Model,
    eval_mode,
    model_device,
    model_dtype,
    network_times,
    split_output,
)
from fastdiff.ops.reference.bound import (
    BoundTable,
    Cdf,
    Decoder,
    mse,
    variational_terms,
)
from fastdiff.process.checks import nearest_name, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream
from fastdiff.sampling.seeds import checked_ids
from fastdiff.tensors import compute_dtype

_LN2 = math.log(2.0)
# How far from the grid, in steps of it, discrete data may lie: the rounding of float32.
_GRID_TOLERANCE = 1e-3
# How far float data may lie outside [-1, 1]: the rounding of float32.
_RANGE_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Bound:
    """The variational bound on -log p(x), in bits per dimension, with its terms, for B images.

    Attributes:
        total: [B] float64, prior + the sum of the terms; where terms were left out, an estimate of that.
        prior: [B] float64, L_T: KL(q(x_T | x_0) || N(0, I)).
        terms: [B, T] float64; column t > 0 holds the KL term L_t, column 0 the decoder's -log p(x_0 | x_1). NaN where
            a term was not evaluated.
        evaluations: Network evaluations in all.
        x0_mse: [B, T] float64, the squared error of the predicted x_0, mean over dimensions, data in [-1, 1]; NaN as
            the terms.
        sampling_error: [B] float64, standard error of `total` as an estimate of the bound with all terms: 0 with all
            of them, NaN where nothing is known about it (`timesteps` of your own).
    """

    total: Tensor
    prior: Tensor
    terms: Tensor
    evaluations: int
    x0_mse: Tensor
    sampling_error: Tensor

    @property
    def mean(self) -> float:
        """Mean of `total` over the images."""
        return float(self.total.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over the images, as an estimate for all images like them.

        It contains the sampling error. NaN for a single image, which tells nothing about the spread of images.
        """
        return standard_error(self.total)

    @property
    def mean_sampling_error(self) -> float:
        """Standard error of `mean` as an estimate of these images' bound with all terms; 0 with all terms."""
        return float(self.sampling_error.square().sum().sqrt()) / self.total.shape[0]

    @property
    def decoder(self) -> Tensor:
        """[B] the decoder's term; NaN where it was not evaluated."""
        return self.terms[:, 0]

    @property
    def kl(self) -> Tensor:
        """[B] the sum of the KL terms, t > 0: what `total` holds besides the prior and the decoder."""
        return self.total - self.prior - self.terms[:, 0]

    @property
    def mean_terms(self) -> Tensor:
        """[T] each term's mean over the images for which it was evaluated; NaN where for none."""
        return self.terms.nanmean(dim=0)

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
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Tensor] | None = None,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Bound:
    """The variational bound on the negative log-likelihood of images, with every term.

    One draw of x_t per image and timestep, from the noise contract: the same (seed, sample id) gives the same bound,
    whatever the batch size. A float32 `UNet` on the CPU runs in the C++ engine. For an estimate with an error bar from
    fewer evaluations see `bound_estimate`.

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
        timesteps: Evaluate the terms of these t alone, 0-based and distinct, in any order. The others are NaN, and
            `total` takes them from a straight line between their neighbours (constant beyond the ends): a quadrature
            of the full bound, without an error bar. Not to be confused with a respaced chain.
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
    whole_number("batch_size", batch_size, low=1)
    scoring = Scoring(clip, decoder, cdf, levels)
    batch = ImageBatch.build(model, x, scoring.grid_levels, levels, sample_ids, model_kwargs)
    evaluator = TermEvaluator(model, diffusion, batch, scoring, seed, batch_size)
    chosen = checked_timesteps(timesteps, diffusion.num_timesteps)
    num_images, num_timesteps = len(batch), diffusion.num_timesteps
    # All images of one t lie together, so that the decoder's formula is needed in few calls.
    t = torch.from_numpy(chosen).repeat_interleave(num_images)
    evaluator(torch.arange(num_images).repeat(len(chosen)), t, on_progress)
    terms, prior = evaluator.terms, prior_term(diffusion, batch.images).cpu()
    if len(chosen) == num_timesteps:
        total, error = prior + terms.sum(dim=1), torch.zeros_like(prior)
    else:
        # Row t of the matrix says how the line through the chosen timesteps gives L_t.
        unit = np.eye(len(chosen))
        weights = np.stack([np.interp(np.arange(num_timesteps), chosen, row) for row in unit]).sum(axis=1)
        total = prior + terms[:, torch.from_numpy(chosen)] @ torch.from_numpy(weights)
        error = torch.full_like(prior, math.nan)
    return Bound(total, prior, terms, evaluator.evaluations, evaluator.x0_mse, error)


@dataclass(frozen=True)
class Scoring:
    """How a network's output is scored.

    Attributes:
        clip, decoder, cdf, levels: See `bound`.

    Raises:
        ValueError: an option out of range.
    """

    clip: float | None
    decoder: Decoder
    cdf: Cdf
    levels: int

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, or None for no bound, got {self.clip!r}")
        for name, value, known in (("decoder", self.decoder, get_args(Decoder)), ("cdf", self.cdf, get_args(Cdf))):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: {nearest_name(str(value), known)}")

    @property
    def grid_levels(self) -> int | None:
        """Levels of the grid on which the data must lie; None for continuous data."""
        return self.levels if self.decoder == "discrete" else None


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images with what belongs to each of them, on the model's device.

    Attributes:
        images: [B, C, ...] in [-1, 1], checked.
        ids: Sample ids, int64 [B].
        model_kwargs: Tensors of B entries, passed to the model.
    """

    images: Tensor
    ids: Tensor
    model_kwargs: Mapping[str, Tensor]

    @classmethod
    def build(
        cls,
        model: Model,
        x: Tensor,
        grid_levels: int | None,
        levels: int,
        sample_ids: Tensor | Iterable[int] | None,
        model_kwargs: Mapping[str, Tensor] | None,
    ) -> ImageBatch:
        """Checked and on the model's device; `grid_levels` and `levels` as in `checked_images`, the rest as `bound`."""
        device = model_device(model, x, None)
        images = checked_images(x, grid_levels, levels).to(device)
        ids = checked_ids(sample_ids, images.shape[0], device)
        return cls(images, ids, {key: value.to(device) for key, value in (model_kwargs or {}).items()})

    def __len__(self) -> int:
        return self.images.shape[0]

    def take(self, index: Tensor) -> ImageBatch:
        """The images of these numbers, int64 [N], repeated ones too."""
        chosen = {key: value[index] for key, value in self.model_kwargs.items()}
        return ImageBatch(self.images[index], self.ids[index], chosen)


@dataclass(eq=False)
class TermEvaluator:
    """Terms of the bound for any pairs of an image and a timestep, many of them in one call of the model.

    Attributes:
        terms: [B, T] float64 on the CPU; NaN until evaluated.
        x0_mse: Likewise, the squared error of the predicted x_0.
        evaluations: Network evaluations so far.
    """

    model: Model
    diffusion: Diffusion
    batch: ImageBatch
    scoring: Scoring
    seed: int
    batch_size: int
    evaluations: int = 0
    terms: Tensor = field(init=False)
    x0_mse: Tensor = field(init=False)

    def __post_init__(self) -> None:
        images = self.batch.images
        shape, device, dtype = (len(images), self.diffusion.num_timesteps), images.device, self.dtype
        self.terms = torch.full(shape, math.nan, dtype=torch.float64)
        self.x0_mse = self.terms.clone()
        self._noising = torch.tensor(self.diffusion.noising_table(), dtype=dtype, device=device)
        self._times = network_times(self.diffusion, device)
        self._table = BoundTable.build(self.diffusion, device, dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What the terms are computed in."""
        return compute_dtype(self.batch.images)

    def __call__(self, image: Tensor, t: Tensor, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Evaluate the terms of images `image` [N] at timesteps `t` [N], int64, on the CPU; distinct pairs."""
        with torch.no_grad(), eval_mode(self.model):
            native = native_network(self.model, "auto", self.batch.images, dict(self.batch.model_kwargs))
            if native is not None:
                native.check(thorough=True)
            network = self.model if native is None else native.evaluate
            for part in parts(len(t), self.batch_size):
                self._evaluate(network, image[part], t[part])
                if on_progress is not None:
                    on_progress(part.stop, len(t))

    def _evaluate(self, network: Model, image: Tensor, t: Tensor) -> None:
        device = self.batch.images.device
        chosen, at = self.batch.take(image.to(device)), t.to(device)
        x_t, _ = ops.diffuse(
            chosen.images, at, self._noising, seed=self.seed, sample_ids=chosen.ids, row=at,
            stream=Stream.LIKELIHOOD, target=False,
        )  # fmt: skip
        output = network(x_t.to(model_dtype(self.model, self.dtype)), self._times[at], **chosen.model_kwargs)
        terms, x0_mse = score_output(output, chosen.images, x_t, at, self._table, self.scoring)
        self.terms[image, t] = terms.cpu().double()
        self.x0_mse[image, t] = x0_mse.cpu().double()
        self.evaluations += len(t)


def score_output(
    output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, table: BoundTable, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """One term of the bound in bits per dimension and the squared error of the predicted x_0, each [B].

    Args:
        output: The network's, [B, C or 2C, ...], of any floating type; taken in the type of x0.
        x0, x_t, t, table: As in `fastdiff.ops.reference.bound.variational_terms`.
        scoring: How it is scored.

    Raises:
        ValueError: the output's shape is not what the table says.
    """
    prediction, values = split_output(output, x0, table.learned_variance)
    clip, decoder, levels = scoring.clip, scoring.decoder, scoring.levels
    if scoring.cdf == "exact":
        return ops.bound_terms(
            output.to(x0.dtype), x0, x_t, t, table.rows(), learned_variance=table.learned_variance,
            clip=None if clip == math.inf else clip, decoder=decoder, levels=levels,
        )  # fmt: skip
    # The papers' approximation is there for parity and has no kernel.
    x0_pred = table.x0(x_t, t, prediction)
    x0_pred = x0_pred if clip is None else x0_pred.clamp(-clip, clip)
    log_variance = table.log_variance(t, x0, values)
    terms = variational_terms(x0, t, x0_pred, log_variance, table, decoder=decoder, levels=levels, cdf=scoring.cdf)
    return terms, mse(x0_pred, x0)


def checked_timesteps(
    timesteps: Sequence[int] | None, num_timesteps: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The timesteps, ascending; all of them for None. Raises ValueError for any that do not fit."""
    if timesteps is None:
        return np.arange(num_timesteps)
    chosen = np.asarray(timesteps)
    if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"timesteps must be a non-empty list of whole numbers, got {timesteps!r}")
    chosen = np.sort(chosen.astype(np.int64))
    if chosen[0] < 0 or chosen[-1] >= num_timesteps or (np.diff(chosen) == 0).any():
        raise ValueError(f"timesteps must be distinct and in [0, {num_timesteps - 1}], got {chosen.tolist()[:8]}")
    return chosen


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of values [B]; NaN for a single one."""
    count = values.shape[0]
    return float(values.std(correction=1)) / math.sqrt(count) if count > 1 else math.nan


def prior_term(diffusion: Diffusion, x: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) in bits per dimension, [B] float64, for images [B, ...] in [-1, 1].

    Source: Ho et al. (2020), eq. 5; KL(N(m, v) || N(0, 1)) = (m^2 + v - 1 - log v) / 2.
    """
    abar = float(diffusion.schedule.alphas_cumprod[-1])
    # v = 1 - abar, so v - 1 = -abar.
    constant = -abar - math.log1p(-abar)
    squares = x.double().square().flatten(1).mean(dim=1)
    return 0.5 * (abar * squares + constant) / _LN2


def checked_images(x: Tensor, grid_levels: int | None, levels: int) -> Tensor:
    """Images [B, C, ...] as floats; uint8 ones are scaled from [0, levels) to [-1, 1].

    Args:
        x: float32, float64 or uint8.
        grid_levels: Check that the values are those of a grid of so many over [-1, 1]; None for continuous data.
        levels: Number of values of uint8 images.

    Raises:
        TypeError: not a tensor.
        ValueError: no image, another type, NaN, or values out of range or off the grid.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x must be at least one image, [B, C, ...], got shape {list(x.shape)}")
    whole_number("levels", levels, low=2)
    if x.dtype == torch.uint8:
        if int(x.max()) >= levels:
            raise ValueError(f"uint8 images must be in [0, {levels}), got {int(x.max())}: give the data's own levels")
        return (2.0 * x.float() - (levels - 1)) / (levels - 1)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32, float64 or uint8, got {x.dtype}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinite values")
    if grid_levels is not None:
        low, high = float(x.min()), float(x.max())
        if low < -1 - _RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
            raise ValueError(f"images must be in [-1, 1], got values from {low:g} to {high:g}")
        grid = (x + 1) * ((grid_levels - 1) / 2)
        if bool(((grid - grid.round()).abs() > _GRID_TOLERANCE).any()):
            raise ValueError(
                f"x lies off it: discrete data are values of a grid of {grid_levels} levels over [-1, 1]; give the "
                "data's own levels, or, for continuous data, decoder='gaussian' (for the ODE: levels=None)"
            )
    return x


def parts(total: int, size: int) -> Iterator[slice]:
    """0..total-1 in stretches of `size`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
