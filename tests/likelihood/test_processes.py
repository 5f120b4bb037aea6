"""Likelihoods through every Gaussian process: one density gives one number, however it is parametrised."""

import math

import pytest
import torch

import fastdiff as fd
from fastdiff import likelihood
from support.gaussian_networks import Mixture, gaussian_network
from support.textbook_processes import PROCESSES
from support.tolerances import FLOAT32_DEEP, FLOAT32_SUM

LN2 = math.log(2)
# Of mean 0: what is left of a mean at the noisiest level is of the first order in alpha there.
DATA = Mixture([[-0.6, 0.1], [0.4, 0.5], [0.2, -0.6]], 0.03)
S = fd.NoiseSchedule
# To little noise and to no signal, so that the ends are of no account.
WAYS = {
    "preserving, eps": fd.Diffusion(S.cosine(1000), "eps"),
    "preserving, v": fd.Diffusion(S.cosine(1000), "v"),
    "exploding, score": fd.Diffusion(S.variance_exploding(1000, 0.002, 400.0), "score"),
    "exploding, F": fd.Diffusion(S.edm(1000, 0.002, 400.0), "F"),
    "exploding, x0": fd.Diffusion(S.edm(1000, 0.002, 400.0), "x0"),
    "flow, velocity": fd.Diffusion(S.flow(1000), "velocity"),
    "flow, shifted": fd.Diffusion(S.flow(1000, shift=0.5, time_scale=1.0), "velocity"),
    "vdm, eps": fd.Diffusion(S.vdm(1000, 13.3, -12.0), "eps"),
}


@pytest.mark.parametrize("way", WAYS)
def test_ode_is_the_density_of_the_data_through_every_process(way):
    diffusion = WAYS[way]
    x = DATA.sample(8)
    found = likelihood.ode(DATA.network(diffusion), diffusion, x, divergence="exact")
    exact = -DATA.log_density(x) / LN2 / 2
    # The solver's tolerance is 1e-6 a step; any two ways are within 1e-4 bits per dimension of each other.
    assert float((found.total - exact).abs().max()) < 3e-5
    assert abs(found.mean - float(exact.mean())) < 1e-5


@pytest.mark.parametrize("process", ["edm", "exploding", "flow", "shifted", "vdm"])
def test_bound_is_the_twins(process):
    diffusion = PROCESSES[process].respace(40)
    twin = fd.Diffusion(S.from_betas(diffusion.schedule.betas), "x0")
    x = DATA.sample(5)
    found, expected = (
        likelihood.bound(DATA.network(d), d, x, decoder="gaussian", clip=None) for d in (diffusion, twin)
    )
    # Times are float32, and the levels that they tell are rounded with them.
    torch.testing.assert_close(found.terms, expected.terms, rtol=FLOAT32_DEEP, atol=FLOAT32_SUM)
    torch.testing.assert_close(found.prior, expected.prior)
    mine, theirs = (
        likelihood.iwae(DATA.network(d), d, x, trajectories=2, decoder="gaussian", clip=None) for d in (diffusion, twin)
    )
    torch.testing.assert_close(mine.total, theirs.total, rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)


@pytest.mark.parametrize("process", ["edm", "flow"])
def test_statistics_of_the_error_are_the_twins(process):
    diffusion = PROCESSES[process].respace(40)
    twin = fd.Diffusion(S.from_betas(diffusion.schedule.betas), "v")
    x = DATA.sample(8)
    for statistic in (fd.estimate.eps_moment, fd.estimate.eps_error):
        found, expected = (torch.from_numpy(statistic(gaussian_network(d, 0.25), d, x)) for d in (diffusion, twin))
        torch.testing.assert_close(found, expected, rtol=FLOAT32_DEEP, atol=FLOAT32_SUM)
