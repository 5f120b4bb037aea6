"""Progressive coding: how good an image is after so many bits of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.likelihood.variational import Bound, bound
from fastdiff.nets.model import Model
from fastdiff.ops.reference.bound import Cdf, Decoder
from fastdiff.process.diffusion import Diffusion


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """Ho's table of progressive coding: means over the images, in the order in which bits are sent.

    Attributes:
        t: [T] int64, T-1 down to 0: the state x_t that the receiver has.
        rate: [T] float64, bits/dim that were needed to send x_t: the prior and the terms of the steps above t.
        rmse: [T] float64, root mean square error of the x_0 predicted from x_t, on the scale of 0 to `peak`.
        peak: Of that scale: levels - 1 (255 for 8 bits), or 2 for continuous data in [-1, 1].
        bound: What it was made of.
    """

    t: Tensor
    rate: Tensor
    rmse: Tensor
    peak: float
    bound: Bound

    @property
    def total_rate(self) -> float:
        """The prior and all KL terms, bits/dim: Ho's "rate"."""
        return float(self.bound.prior.mean() + self.bound.kl.mean())

    @property
    def distortion(self) -> float:
        """The decoder's term, bits/dim: Ho's "distortion", what is still needed for the image without loss."""
        return float(self.bound.decoder.mean())

    def rows(self, count: int = 10) -> list[dict[str, float]]:
        """About `count` rows of the table, from nothing sent to everything."""
        last = len(self.t) - 1
        chosen = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
        return [{"t": int(self.t[i]), "bits_per_dim": float(self.rate[i]), "rmse": float(self.rmse[i])} for i in chosen]

    def summary(self) -> dict[str, float]:
        """For reports."""
        return {
            "bits_per_dim": self.bound.mean,
            "standard_error": self.bound.standard_error,
            "rate": self.total_rate,
            "distortion": self.distortion,
            "rmse": float(self.rmse[-1]),
            "peak": self.peak,
        }


def rate_distortion(
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
) -> RateDistortion:
    """Rate and distortion along the reverse chain.

    The sender transmits x_T, x_{T-1}, ... x_0; step t costs the bound's term L_t. After x_t is there, the receiver's
    best guess at the image is the network's x_0. Arguments and errors are those of `bound`.

    Source: Ho et al. (2020), arXiv:2006.11239, section 4.3, algorithms 3 and 4, figure 5.
    """
    scored = bound(
        model, diffusion, x, clip=clip, decoder=decoder, cdf=cdf, levels=levels, seed=seed, sample_ids=sample_ids,
        model_kwargs=model_kwargs, batch_size=batch_size, on_progress=on_progress,
    )  # fmt: skip
    return rate_distortion_of(scored, levels if decoder == "discrete" else None)


def rate_distortion_of(scored: Bound, levels: int | None) -> RateDistortion:
    """The table of a bound with all terms, of data with so many values, or continuous for None."""
    if bool(torch.isnan(scored.terms).any()):
        raise ValueError("the table needs every term of the bound, and some were left out")
    terms = scored.terms.mean(dim=0).flip(0)
    # The term of t sends x_{t-1}, so x_t has been sent with those before it.
    sent = torch.cumsum(terms, dim=0) - terms
    peak = 2.0 if levels is None else float(levels - 1)
    rmse = scored.x0_mse.mean(dim=0).flip(0).sqrt() * peak / 2
    return RateDistortion(torch.arange(len(terms)).flip(0), scored.prior.mean() + sent, rmse, peak, scored)
