"""Bounds of Gaussian data through every process, in closed form: in its own coordinates, in float64."""

import math

import numpy as np
import pytest
import torch

from fastdiff import likelihood
from fastdiff.process import noise
from fastdiff.process.noise import Stream
from support.gaussian_networks import gaussian_network
from support.textbook_processes import PROCESSES, own_levels
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

LN2 = math.log(2)
NAMES = ("edm", "exploding", "flow", "shifted", "vdm")
# The network is told its level by a float32 time, and log sigma is 4 times EDM's.
TIMES = {"edm": 3e-5}
TIMES_OF_OTHERS = 1e-5


def chain_of(diffusion):
    """a, s [T]; for each step t > 0 the scale and variance of q(x_t | x_{t-1}), and q(x_{t-1} | x_t, x_0)."""
    a, s = own_levels(diffusion, diffusion.schedule.timesteps)
    gain = a[1:] / a[:-1]
    added = s[1:] ** 2 - (gain * s[:-1]) ** 2
    of_x = gain * s[:-1] ** 2 / s[1:] ** 2
    of_x0 = a[:-1] * added / s[1:] ** 2
    variance = s[:-1] ** 2 * added / s[1:] ** 2
    return a, s, of_x, of_x0, variance


def best_image(x, a, s, data_variance):
    return a * data_variance / (a**2 * data_variance + s**2) * x


def end_variance(a, s):
    """Of p(x_T): that of data of variance 1, which is what sampling starts from."""
    return a[-1] ** 2 + s[-1] ** 2


def decoded(x0, error, a, s, of_step):
    """-log N(x_0; its prediction, the variance of the first posterior), which the decoder borrows, at the scale 1."""
    scale = a[0] ** 2 + s[0] ** 2
    variance = of_step / scale
    return 0.5 * np.log(2 * np.pi * variance) + error**2 / (2 * variance)


@pytest.mark.parametrize("process", NAMES)
def test_bound_of_gaussian_data_is_the_closed_form(process):
    diffusion = PROCESSES[process].respace(100)
    a, s, _, of_x0, variance = chain_of(diffusion)
    num, seed = diffusion.num_timesteps, 3
    for data_variance in (0.1, 1.0):
        x = np.random.default_rng(0).normal(0, math.sqrt(data_variance), (2, 6))
        found = likelihood.bound(
            gaussian_network(diffusion, data_variance), diffusion, torch.from_numpy(x), clip=None, decoder="gaussian",
            seed=seed,
        )  # fmt: skip
        for i in range(2):
            z = noise.normals(seed, np.full(num, i), 6, Stream.LIKELIHOOD, np.arange(num))
            error = x[i] - best_image(a[:, None] * x[i] + s[:, None] * z, a[:, None], s[:, None], data_variance)
            # Two Gaussians of one variance, whose means are of_x0 times the error apart.
            nats = (of_x0[:, None] * error[1:]) ** 2 / (2 * variance[:, None])
            terms = np.append(decoded(x[i], error[0], a, s, variance[0]).mean(), nats.mean(axis=1)) / LN2
            ends = end_variance(a, s)
            prior = 0.5 * ((s[-1] ** 2 + a[-1] ** 2 * x[i] ** 2) / ends - 1 - np.log(s[-1] ** 2 / ends)).mean() / LN2
            tolerance = TIMES.get(process, TIMES_OF_OTHERS)
            np.testing.assert_allclose(found.prior[i].numpy(), prior, rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)
            np.testing.assert_allclose(found.terms[i].numpy(), terms, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(float(found.total[i]), prior + terms.sum(), rtol=tolerance, atol=tolerance)


def log_normal_density(x, mean, variance):
    return (-0.5 * np.log(2 * np.pi * variance) - (x - mean) ** 2 / (2 * variance)).sum()


@pytest.mark.parametrize("process", NAMES)
def test_importance_weights_of_gaussian_data_are_the_closed_form(process):
    """log p(x_{0:T}) / q(x_{1:T} | x_0) of each trajectory, as a sum over the chain in the process's own x."""
    diffusion = PROCESSES[process].respace(25)
    a, s, of_x, of_x0, variance = chain_of(diffusion)
    num, seed, data_variance, dims = diffusion.num_timesteps, 5, 0.25, 4
    x0 = np.random.default_rng(0).normal(0, 0.5, (2, dims))
    found = likelihood.iwae(
        gaussian_network(diffusion, data_variance), diffusion, torch.from_numpy(x0), trajectories=3, clip=None,
        decoder="gaussian", seed=seed,
    )  # fmt: skip
    expected = np.empty((2, 3))
    for i in range(2):
        for path in range(3):

            def draw(row, i=i, path=path):
                rows = np.array([path * (num + 1) + row])
                return noise.normals(seed, np.array([i]), dims, Stream.LIKELIHOOD_PATH, rows)[0]

            x = a[-1] * x0[i] + s[-1] * draw(num)
            total = log_normal_density(x, 0.0, end_variance(a, s)) - log_normal_density(x, a[-1] * x0[i], s[-1] ** 2)
            for t in range(num - 1, 0, -1):
                image = best_image(x, a[t], s[t], data_variance)
                mean = of_x0[t - 1] * x0[i] + of_x[t - 1] * x
                after = mean + math.sqrt(variance[t - 1]) * draw(t)
                total += log_normal_density(after, of_x0[t - 1] * image + of_x[t - 1] * x, variance[t - 1])
                total -= log_normal_density(after, mean, variance[t - 1])
                x = after
            error = x0[i] - best_image(x, a[0], s[0], data_variance)
            expected[i, path] = total - decoded(x0[i], error, a, s, variance[0]).sum()
    # Sums over 25 levels that float32 times tell.
    np.testing.assert_allclose(found.log_weights.numpy(), expected, rtol=2e-5, atol=2e-4)
    largest = expected.max(axis=1)
    best = -(np.log(np.exp(expected - largest[:, None]).mean(axis=1)) + largest) / (dims * LN2)
    # And their mean.
    np.testing.assert_allclose(found.total.numpy(), best, rtol=2e-5, atol=1e-4)
