"""Exact networks as torch callables: for Gaussian data and for mixtures of Gaussians, at whole and fractional times."""

import math

import numpy as np
import torch

from support.textbook_processes import given_over_own, output, own_levels


def _levels(diffusion, t, x):
    """The process's own alpha and sigma at the network's times, shaped against x."""
    levels = own_levels(diffusion, t.detach().double().cpu().numpy())
    return tuple(torch.from_numpy(c).reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype) for c in levels)


def gaussian_network(diffusion, data_variance, mean=0.0):
    """The exact network for x_0 ~ N(mean, data_variance)."""

    def model(x, t):
        alpha, sigma = _levels(diffusion, t, x)
        x = x / given_over_own(diffusion, alpha, sigma)
        gain = alpha * data_variance / (alpha**2 * data_variance + sigma**2)
        return output(diffusion, x, mean + gain * (x - alpha * mean), alpha, sigma)

    return model


class Mixture:
    """Gaussians of one variance at `centres` [K, D], with equal weights."""

    def __init__(self, centres, variance):
        self.centres, self.variance = torch.tensor(centres, dtype=torch.float64), variance

    def sample(self, count, seed=0):
        rng = np.random.default_rng(seed)
        chosen = self.centres[torch.from_numpy(rng.integers(0, len(self.centres), count))]
        return chosen + math.sqrt(self.variance) * torch.from_numpy(rng.normal(size=chosen.shape))

    def log_density(self, x):
        """[B] in nats, for x [B, D]."""
        squares = (x[:, None] - self.centres).square().sum(dim=2)
        constant = -math.log(len(self.centres)) - 0.5 * x.shape[1] * math.log(2 * math.pi * self.variance)
        return torch.logsumexp(-0.5 * squares / self.variance, dim=1) + constant

    def network(self, diffusion):
        def model(x, t):
            alpha, sigma = _levels(diffusion, t, x)
            x = x / given_over_own(diffusion, alpha, sigma)
            centres = self.centres.to(x.dtype)
            total = alpha**2 * self.variance + sigma**2
            squares = (x[:, None] - alpha[:, None] * centres).square().sum(dim=2)
            weights = torch.softmax(-0.5 * squares / total, dim=1)
            means = centres + (alpha * self.variance / total)[:, None] * (x[:, None] - alpha[:, None] * centres)
            return output(diffusion, x, (weights[:, :, None] * means).sum(dim=1), alpha, sigma)

        return model
