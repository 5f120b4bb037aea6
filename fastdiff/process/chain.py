"""What follows from the betas of a Markov chain that adds noise: its marginals and its posteriors, step by step."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from fastdiff.process.coordinates import Array


class Chain:
    """The arrays of q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), float64 of length T and read-only.

    Products of alphas are taken as sums of log1p(-beta), so that 1 - alphas_cumprod keeps full relative precision where
    it is tiny.

    Attributes:
        betas: Variances of the single noising steps, in (0, 1].

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 2, 4, 6 and 7.
    """

    betas: Array

    def __len__(self) -> int:
        return int(self.betas.size)

    @property
    def num_timesteps(self) -> int:
        """T, the number of noising steps."""
        return len(self)

    @cached_property
    def log_alphas_cumprod(self) -> Array:
        """log of abar_t; -inf where no signal is left."""
        with np.errstate(divide="ignore"):
            return _frozen(np.cumsum(np.log1p(-self.betas)))

    @cached_property
    def alphas(self) -> Array:
        """alpha_t = 1 - beta_t."""
        return _frozen(1.0 - self.betas)

    @cached_property
    def alphas_cumprod(self) -> Array:
        """abar_t, the share of the signal's variance left after t + 1 noising steps."""
        return _frozen(np.exp(self.log_alphas_cumprod))

    @cached_property
    def one_minus_alphas_cumprod(self) -> Array:
        """1 - abar_t, the noise's variance, without cancellation."""
        return _frozen(-np.expm1(self.log_alphas_cumprod))

    @cached_property
    def alphas_cumprod_prev(self) -> Array:
        """abar_{t-1}, with 1 in front."""
        return _frozen(np.concatenate([[1.0], self.alphas_cumprod[:-1]]))

    @cached_property
    def one_minus_alphas_cumprod_prev(self) -> Array:
        """1 - abar_{t-1}, with 0 in front."""
        return _frozen(np.concatenate([[0.0], self.one_minus_alphas_cumprod[:-1]]))

    @cached_property
    def log_snr(self) -> Array:
        """log(abar_t / (1 - abar_t)); -inf where no signal is left."""
        return _frozen(self.log_alphas_cumprod - np.log(self.one_minus_alphas_cumprod))

    @cached_property
    def posterior_variance(self) -> Array:
        """Variance of q(x_{t-1} | x_t, x_0), Ho eq. 7; 0 at t = 0."""
        return _frozen(self.betas * self.one_minus_alphas_cumprod_prev / self.one_minus_alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Array:
        """log of `posterior_variance`, with the value of t = 1 at t = 0, where the log does not exist.

        A schedule of one step has no t = 1; its only entry is log(beta_0).
        """
        if len(self) == 1:
            return _frozen(np.log(self.betas))
        return _frozen(np.log(np.concatenate([self.posterior_variance[1:2], self.posterior_variance[1:]])))

    @cached_property
    def posterior_mean_coef1(self) -> Array:
        """Coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0), Ho eq. 7."""
        return _frozen(self.betas * np.sqrt(self.alphas_cumprod_prev) / self.one_minus_alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Array:
        """Coefficient of x_t in the mean of q(x_{t-1} | x_t, x_0), Ho eq. 7."""
        return _frozen(np.sqrt(self.alphas) * self.one_minus_alphas_cumprod_prev / self.one_minus_alphas_cumprod)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
