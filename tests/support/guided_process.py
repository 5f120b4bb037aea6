"""A process of OpenAI's drop-in, a network for it, and the papers' formulas for both in plain float64."""

import math

import numpy as np
import torch

from fastdiff.compat.guided_diffusion import gaussian_diffusion as gd

T = 12
BETAS = gd.get_named_beta_schedule("cosine", T)


def process(mean=gd.ModelMeanType.EPSILON, var=gd.ModelVarType.FIXED_SMALL, loss=gd.LossType.MSE, **options):
    return gd.GaussianDiffusion(betas=BETAS, model_mean_type=mean, model_var_type=var, loss_type=loss, **options)


def network(x, t, scale=0.3):
    """Some function of image and time with 2C outputs where `scale` is a pair."""
    h = torch.tanh(x * (0.5 + 0.01 * t.view(-1, 1, 1, 1).to(x.dtype)))
    return h if isinstance(scale, float) else torch.cat([h, scale[0] * torch.sin(3 * x)], dim=1)


def learned(x, t):
    return network(x, t, (0.8,))


def is_learned(var):
    return var in (gd.ModelVarType.LEARNED, gd.ModelVarType.LEARNED_RANGE)


class Formulas:
    """Ho et al. (2020) and Nichol and Dhariwal (2021), one scalar at a time, in plain float64 NumPy."""

    def __init__(self, betas):
        self.beta = np.asarray(betas, dtype=np.float64)
        self.abar = np.cumprod(1 - self.beta)
        self.prev = np.concatenate([[1.0], self.abar[:-1]])
        self.small = self.beta * (1 - self.prev) / (1 - self.abar)

    def log_small(self, t):
        return np.log(self.small[max(t, 1)])

    def posterior_mean(self, x0, xt, t):
        c0 = self.beta[t] * np.sqrt(self.prev[t]) / (1 - self.abar[t])
        return c0 * x0 + (1 - self.prev[t]) * np.sqrt(1 - self.beta[t]) / (1 - self.abar[t]) * xt

    def x0(self, out, xt, t, mean):
        if mean == gd.ModelMeanType.START_X:
            return out
        if mean == gd.ModelMeanType.EPSILON:
            return (xt - np.sqrt(1 - self.abar[t]) * out) / np.sqrt(self.abar[t])
        c0 = self.beta[t] * np.sqrt(self.prev[t]) / (1 - self.abar[t])
        return (out - (self.posterior_mean(0.0, 1.0, t)) * xt) / c0

    def eps(self, x0, xt, t):
        return (xt - np.sqrt(self.abar[t]) * x0) / np.sqrt(1 - self.abar[t])

    def reverse(self, out, xt, t, mean, var, clip):
        values = None
        if is_learned(var):
            out, values = np.split(out, 2)
        x0 = self.x0(out, xt, t, mean)
        x0 = np.clip(x0, -1, 1) if clip else x0
        centre = out if mean == gd.ModelMeanType.PREVIOUS_X else self.posterior_mean(x0, xt, t)
        large = np.log(np.where(t > 0, self.beta[t], self.small[1]))
        log = {
            gd.ModelVarType.FIXED_SMALL: self.log_small(t),
            gd.ModelVarType.FIXED_LARGE: large,
            gd.ModelVarType.LEARNED: values,
            gd.ModelVarType.LEARNED_RANGE: None,
        }[var]
        if var == gd.ModelVarType.LEARNED_RANGE:
            v = (values + 1) / 2
            log = v * np.log(self.beta[t]) + (1 - v) * self.log_small(t)
        return centre, log + np.zeros_like(xt), x0

    def bound_term(self, x0, xt, t, out, mean, var, clip):
        centre, log, pred = self.reverse(out, xt, t, mean, var, clip)
        if t == 0:

            def cdf(z):
                return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

            std = np.exp(0.5 * log)
            high, low = cdf((x0 - centre + 1 / 255) / std), cdf((x0 - centre - 1 / 255) / std)
            share = np.where(x0 < -0.999, high, np.where(x0 > 0.999, 1 - low, high - low))
            return np.mean(-np.log(np.maximum(share, 1e-12))) / math.log(2), pred
        true, true_log = self.posterior_mean(x0, xt, t), self.log_small(t)
        kl = 0.5 * (-1 + log - true_log + np.exp(true_log - log) + (true - centre) ** 2 * np.exp(-log))
        return np.mean(kl) / math.log(2), pred


ORACLE = Formulas(BETAS)


def images(seed=0, batch=3, size=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 2, size, size), generator=generator).double() / 127.5 - 1
