"""Training losses and the pieces of the variational bound, in plain PyTorch, float32 or float64.

Papers: Ho et al. (2020), arXiv:2006.11239 (Ho); Nichol and Dhariwal (2021), arXiv:2102.09672 (IDDPM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import Decoder
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.tensors import per_sample

__all__ = [
    "VLB_WEIGHT",
    "BoundTable",
    "Cdf",
    "Decoder",
    "HybridTerms",
    "discretized_gaussian_log_likelihood",
    "gaussian_log_likelihood",
    "hybrid",
    "mse",
    "normal_kl",
    "variational_terms",
]

Cdf = Literal["exact", "tanh"]

# lambda of IDDPM, eq. 16.
VLB_WEIGHT = 0.001
_LN2 = math.log(2.0)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
# A bin of width h at distance c from the mean, in standard deviations, is integrated by a series where h and h |c| are
# below this. The first term left out is (h c)^6 / 322560, which is 3e-16 here.
SERIES_LIMIT = 0.03
# OpenAI's floor under a probability, part of the "tanh" approximation.
_TANH_FLOOR = 1e-12


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of each sample, averaged over its elements: one term of L_simple.

    Args:
        prediction: [B, ...], of any floating type; taken in the type of `target`.
        target: [B, ...], float32 or float64.

    Returns:
        [B], in the type of `target`.

    Raises:
        ValueError: the shapes differ.

    Source: Ho, eq. 14.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape, got {[*prediction.shape]} and {[*target.shape]}")
    return _mean_per_sample(F.mse_loss(prediction.to(target.dtype), target, reduction="none"))


def normal_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))), elementwise, in nats.

    1/2 (exp(d) - 1 - d + (mean1 - mean2)^2 exp(-logvar2)) with d = logvar1 - logvar2; expm1 keeps it accurate where
    the variances nearly agree. The arguments broadcast.

    Source: Kingma and Welling (2014), arXiv:1312.6114, appendix B, for two normals.
    """
    difference = logvar1 - logvar2
    return 0.5 * (torch.expm1(difference) - difference + (mean1 - mean2).square() * torch.exp(-logvar2))


def gaussian_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, exp(log_std)^2), elementwise, in nats. The arguments broadcast."""
    return -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - _HALF_LOG_2PI


def discretized_gaussian_log_likelihood(
    x: Tensor, mean: Tensor, log_std: Tensor, *, levels: int = 256, cdf: Cdf = "exact"
) -> Tensor:
    """log of the probability that a Gaussian gives to the bin of each x, in nats.

    [-1, 1] holds `levels` values 2 / (levels - 1) apart. The bin of a value reaches half way to its neighbours; the
    first and the last bin reach to minus and plus infinity, so the probabilities of all levels sum to 1.

    Args:
        x: Values on the grid, float32 or float64; others count as the nearest value of the grid.
        mean: Broadcast against x; anywhere, also outside [-1, 1].
        log_std: Log of the standard deviation, broadcast against x.
        levels: Number of values, at least 2.
        cdf: "exact": differences of the normal CDF in log space, accurate in the tails and without a floor. "tanh":
            the papers' approximation, whose CDF is off by up to 1.8e-4, with the floor 1e-12; for parity.

    Returns:
        Elementwise nats, in the broadcast shape.

    Raises:
        ValueError: levels below 2 or an unknown cdf.

    Source: Ho, eq. 13; the approximation: Page (1977), as in the code of Ho and of IDDPM.
    """
    whole_number("levels", levels, low=2)
    if cdf not in ("exact", "tanh"):
        raise ValueError(f"cdf must be 'exact' or 'tanh', got {cdf!r}")
    # Neighbours must compute the edge between them as one number, or the bins of a narrow Gaussian overlap by rounding.
    index = torch.round((x.detach() + 1) * ((levels - 1) / 2)).clamp(0, levels - 1)
    inverse_std = torch.exp(-log_std)
    low = ((2 * index - levels) / (levels - 1) - mean) * inverse_std
    high = ((2 * index + 2 - levels) / (levels - 1) - mean) * inverse_std
    is_first, is_last = index == 0, index == levels - 1
    if cdf == "tanh":
        return _log_bin_tanh(low, high, is_first, is_last)
    centre = ((2 * index + 1 - levels) / (levels - 1) - mean) * inverse_std
    width = (2 / (levels - 1)) * inverse_std
    inner = _log_bin(low, high, centre, width)
    return torch.where(is_first, _log_ndtr(high), torch.where(is_last, _log_ndtr(-low), inner))


class _LogNdtr(torch.autograd.Function):
    """log Phi(x) with the derivative sqrt(2 / pi) / erfcx(-x / sqrt 2), good in both tails.

    PyTorch's own derivative cancels: in float32 it gives 6.5e4 for 1e4 at x = -1e4, and NaN further out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y: Tensor = torch.special.log_ndtr(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = math.sqrt(2 / math.pi) / torch.special.erfcx(x * -math.sqrt(0.5))
        return grad * slope


def _log_ndtr(x: Tensor) -> Tensor:
    return _LogNdtr.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def _log_bin(low: Tensor, high: Tensor, centre: Tensor, width: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), with finite gradients whichever branch is taken."""
    width = width.expand_as(centre)
    narrow = (width < SERIES_LIMIT) & (width * centre.abs() < SERIES_LIMIT)

    # Mirrored so that the bin lies in the left tail, where log Phi is accurate.
    mirrored = centre > 0
    left = _log_ndtr(torch.where(mirrored, -high, low))
    right = _log_ndtr(torch.where(mirrored, -low, high))
    # The edges of a bin may round to one number where the mean is absurdly far away; never take log(0) there.
    gap = (left - right).clamp(max=-torch.finfo(left.dtype).eps)
    is_small = gap > -_LN2
    log_share = torch.where(
        is_small,
        torch.log(-torch.expm1(torch.where(is_small, gap, -1.0))),
        torch.log1p(-torch.exp(torch.where(is_small, -1.0, gap))),
    )
    difference = right + log_share

    # Where Phi(high) and Phi(low) nearly agree, their difference is the density times a series in the width.
    c2 = torch.where(narrow, centre, 0.0).square()
    h2 = torch.where(narrow, width, SERIES_LIMIT).square()
    correction = h2 * ((c2 - 1) / 24 + h2 * ((c2 - 6) * c2 + 3) / 1920)
    series = 0.5 * torch.log(h2) - 0.5 * c2 - _HALF_LOG_2PI + torch.log1p(correction)
    return torch.where(narrow, series, difference)


def _log_bin_tanh(low: Tensor, high: Tensor, is_first: Tensor, is_last: Tensor) -> Tensor:
    def log_floored(p: Tensor) -> Tensor:
        return torch.log(p.clamp(min=_TANH_FLOOR))

    cdf_low, cdf_high = (
        0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (edge + 0.044715 * edge**3))) for edge in (low, high)
    )
    inner = log_floored(cdf_high - cdf_low)
    return torch.where(is_first, log_floored(cdf_high), torch.where(is_last, log_floored(1 - cdf_low), inner))


@dataclass(frozen=True, eq=False)
class BoundTable:
    """What the terms of the bound need of a process, per timestep: tensors [T], computed in float64, rounded once.

    Attributes:
        posterior_mean_coef1: Coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0), Ho eq. 7.
        posterior_log_variance: Log-variance of q(x_{t-1} | x_t, x_0), Ho eq. 7; exact for t > 0, unused at t = 0.
        log_min: With `log_max`, the reverse step's log-variance; see `Diffusion.variance_logs`.
        log_max: See `log_min`.
        px: x_0 = px x_t + pm m for the network's input x_t and output m; see `Diffusion.x0_coefficients`.
        pm: See `px`.
        learned_variance: Whether the network gives the variance.
    """

    posterior_mean_coef1: Tensor
    posterior_log_variance: Tensor
    log_min: Tensor
    log_max: Tensor
    px: Tensor
    pm: Tensor
    learned_variance: bool

    @classmethod
    def build(
        cls, diffusion: Diffusion, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> BoundTable:
        """The table of a process on a device, in float32 or float64.

        Raises:
            ValueError: the network's output does not determine x_0 at some t.
        """
        schedule = diffusion.schedule
        log_min, log_max = diffusion.variance_logs()
        px, pm = diffusion.x0_coefficients()

        def rounded(array: Array) -> Tensor:
            # A copy: the schedule's arrays are read-only, which torch.from_numpy cannot express.
            return torch.tensor(array, dtype=dtype, device=device)

        return cls(
            posterior_mean_coef1=rounded(schedule.posterior_mean_coef1),
            posterior_log_variance=rounded(schedule.posterior_log_variance_clipped),
            log_min=rounded(log_min),
            log_max=rounded(log_max),
            px=rounded(px / diffusion.input_scale()),
            pm=rounded(pm),
            learned_variance=diffusion.learned_variance,
        )

    def rows(self) -> Tensor:
        """[T, 6], as the op `bound_loss` reads it: the tensors above, in their order."""
        columns = (self.posterior_mean_coef1, self.posterior_log_variance, self.log_min, self.log_max, self.px, self.pm)
        return torch.stack(columns, dim=1)

    @classmethod
    def from_rows(cls, rows: Tensor, learned_variance: bool) -> BoundTable:
        """The inverse of `rows`."""
        coef1, log_variance, log_min, log_max, px, pm = rows.unbind(1)
        return cls(coef1, log_variance, log_min, log_max, px, pm, learned_variance)

    @property
    def num_timesteps(self) -> int:
        """T, the number of noising steps."""
        return self.px.shape[0]

    def x0(self, x_t: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """x_0 = px x_t + pm m, not clipped, from the state and the network's output m, both [B, ...]; t is [B]."""
        return per_sample(self.px[t], x_t) * x_t + per_sample(self.pm[t], x_t) * output.to(x_t.dtype)

    def log_variance(self, t: Tensor, x: Tensor, values: Tensor | None = None) -> Tensor:
        """Log-variance of the reverse step.

        Args:
            t: int64 [B].
            x: Only its number of dimensions and its type matter.
            values: Second half of the network's output, [B, ...]; None where the variance is fixed.

        Returns:
            v log_max + (1 - v) log_min with v = (values + 1) / 2, of the shape of `values`; [B, 1, ...] where fixed.

        Raises:
            ValueError: values missing for a learned variance, or given for a fixed one.

        Source: IDDPM, eq. 15.
        """
        if (values is not None) != self.learned_variance:
            kind, got = ("learned", "none") if self.learned_variance else ("fixed", "some")
            raise ValueError(f"the variance is {kind}, but {got} of the network's output was given for it")
        log_min, log_max = per_sample(self.log_min[t], x), per_sample(self.log_max[t], x)
        if values is None:
            return log_min
        v = (values.to(x.dtype) + 1) / 2
        return v * log_max + (1 - v) * log_min


def variational_terms(
    x0: Tensor,
    t: Tensor,
    x0_pred: Tensor,
    log_variance: Tensor,
    table: BoundTable,
    *,
    decoder: Decoder = "discrete",
    levels: int = 256,
    cdf: Cdf = "exact",
) -> Tensor:
    """One term of the variational bound per sample, in bits per dimension.

    For t > 0, L_t: KL(q(x_{t-1} | x_t, x_0) || N(mu, exp(log_variance))) with mu the posterior's mean at `x0_pred`.
    Both means hold the same multiple of x_t, so they differ by coef1 (x_0 - x0_pred) and x_t itself is not needed.
    For t = 0, the decoder: -log p(x_0) under N(x0_pred, exp(log_variance)), where the posterior's mean is x0_pred.

    Args:
        x0: Images [B, ...] in [-1, 1], float32 or float64, the table's type.
        t: int64 [B].
        x0_pred: The network's x_0, [B, ...]; clipped or not, as the caller wants it scored.
        log_variance: Broadcast against x0; see `BoundTable.log_variance`.
        table: The process.
        decoder: "discrete": the probability of the bin of x_0; "gaussian": the density at x_0.
        levels: Number of values of the data, for the discrete decoder.
        cdf: See `discretized_gaussian_log_likelihood`.

    Returns:
        [B]: the mean over dimensions, divided by ln 2.

    Raises:
        ValueError: an unknown decoder, or the decoder's own errors.

    Source: Ho, eq. 5, 8 and 13; IDDPM, eq. 4 to 7.
    """
    if decoder not in ("discrete", "gaussian"):
        raise ValueError(f"decoder must be 'discrete' or 'gaussian', got {decoder!r}")

    def divergence() -> Tensor:
        shift = per_sample(table.posterior_mean_coef1[t], x0) * (x0 - x0_pred)
        return normal_kl(shift, per_sample(table.posterior_log_variance[t], x0), torch.zeros_like(shift), log_variance)

    def decoding() -> Tensor:
        log_std = 0.5 * log_variance
        if decoder == "gaussian":
            return -gaussian_log_likelihood(x0, x0_pred, log_std)
        return -discretized_gaussian_log_likelihood(x0, x0_pred, log_std, levels=levels, cdf=cdf)

    is_first = t == 0
    # Reading t is free on the CPU; elsewhere it would wait for the device, so both halves are computed.
    if t.device.type == "cpu" and t.numel() and not is_first.any():
        terms = divergence()
    elif t.device.type == "cpu" and is_first.all():
        terms = decoding()
    else:
        terms = torch.where(per_sample(is_first, x0), decoding(), divergence())
    return _mean_per_sample(terms) / _LN2


class HybridTerms(NamedTuple):
    """What `hybrid` gives, each [B].

    Attributes:
        loss: mse + vlb_weight * vlb.
        mse: The term of L_simple.
        vlb: T L_t in bits per dimension, whose mean over uniform t is the bound without its prior term.
    """

    loss: Tensor
    mse: Tensor
    vlb: Tensor


def hybrid(
    output: Tensor,
    target: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    table: BoundTable,
    *,
    vlb_weight: float = VLB_WEIGHT,
    decoder: Decoder = "discrete",
    levels: int = 256,
    cdf: Cdf = "exact",
) -> HybridTerms:
    """The loss for learned variances: L_simple + vlb_weight L_vlb, each sample's share of it.

    The bound sees the first half of the output detached: it trains the variance alone. L_vlb is a sum over T terms, of
    which one, L_t, is drawn, so each sample's estimate of it is T L_t, in bits per dimension. With the default weight
    the second part is (T / 1000) L_t: OpenAI's `RESCALED_MSE`.

    Args:
        output: The network's, [B, 2C, ...]: first the prediction, then the variance.
        target: What the first half should be, [B, C, ...], float32 or float64.
        x0: Images [B, C, ...] in [-1, 1].
        x_t: Noisy images [B, C, ...].
        t: int64 [B].
        table: The process, with a learned variance.
        vlb_weight: lambda of the paper.
        decoder: See `variational_terms`, as for `levels` and `cdf`.
        levels: Number of values of the data.
        cdf: "tanh" for parity with OpenAI.

    Raises:
        ValueError: the output does not have 2C channels, or the variance is not learned.

    Source: IDDPM, eq. 16 and section 3.1.
    """
    batch, channels, *size = target.shape
    if list(output.shape) != [batch, 2 * channels, *size]:
        raise ValueError(
            f"output must be [B, 2C, ...] for a target [B, C, ...], got {[*output.shape]} for {[*target.shape]}"
        )
    prediction, values = output.to(target.dtype).chunk(2, dim=1)
    simple = mse(prediction, target)
    x0_pred = table.x0(x_t, t, prediction.detach())
    log_variance = table.log_variance(t, x_t, values)
    terms = variational_terms(x0, t, x0_pred, log_variance, table, decoder=decoder, levels=levels, cdf=cdf)
    vlb = table.num_timesteps * terms
    return HybridTerms(simple + vlb_weight * vlb, simple, vlb)


def _mean_per_sample(x: Tensor) -> Tensor:
    return x if x.ndim == 1 else x.mean(dim=tuple(range(1, x.ndim)))
