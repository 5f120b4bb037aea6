"""A solver's method: exact where its prediction is a polynomial, by quadrature of the integral that it stands for."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers import method as methods
from fastdiff.samplers.levels import visited

LEVELS = visited(Diffusion(NoiseSchedule.linear(100)), 8)
STEP = methods.Step(LEVELS, 4, 5)
# Quadrature's own accuracy on smooth integrands, and the weights' over three nodes.
EXACT = 1e-9


def integral(method, polynomial):
    """The step's integral of kernel times prediction, over lam = log(alpha / sigma), for a polynomial of it."""
    start, end = LEVELS.lam[4], LEVELS.lam[5]
    alpha_next, sigma_next = LEVELS.alpha[5], LEVELS.sigma[5]
    kernels = {
        "image": lambda lam: alpha_next * math.exp(lam - end),
        "noise": lambda lam: -sigma_next * math.exp(end - lam),
        "sde": lambda lam: 2 * alpha_next * math.exp(2 * (lam - end)),
    }
    return quad(lambda lam: kernels[method](lam) * polynomial(lam), start, end, epsabs=0, epsrel=1e-12)[0]


METHODS = {"image": methods.IMAGE, "noise": methods.NOISE, "sde": methods.REVERSE_SDE}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("evaluated", [[4], [4, 3], [4, 3, 2], [4, 3, 5]], ids=str)
def test_formula_is_exact_for_polynomials_in_the_log_snr(name, evaluated):
    polynomial = np.polynomial.Polynomial([0.3, -0.2, 0.1][: len(evaluated)])
    _, weights = METHODS[name].formula(STEP, evaluated)
    values = polynomial(LEVELS.lam[evaluated])
    assert weights @ values == pytest.approx(integral(name, polynomial), rel=EXACT)


def test_formula_in_rho_is_exact_for_polynomials_in_rho():
    """With y = x / alpha the flow is dy = eps d rho, so the integral of a polynomial is its antiderivative's."""
    polynomial = np.polynomial.Polynomial([0.3, -0.2, 0.1])
    gain, weights = methods.NOISE_IN_RHO.formula(STEP, [4, 3, 2])
    antiderivative = polynomial.integ()
    expected = LEVELS.alpha[5] * (antiderivative(LEVELS.rho[5]) - antiderivative(LEVELS.rho[4]))
    assert weights @ polynomial(LEVELS.rho[[4, 3, 2]]) == pytest.approx(expected, rel=EXACT)
    assert gain == pytest.approx(LEVELS.alpha[5] / LEVELS.alpha[4])


@pytest.mark.parametrize("name", METHODS)
def test_a_known_image_keeps_its_marginals(name):
    """From alpha x0 + sigma eps a step with the true prediction gives the next level's mean and variance."""
    method = METHODS[name]
    gain, weights = method.formula(STEP, [4])
    alpha, sigma = LEVELS.alpha[4:6], LEVELS.sigma[4:6]
    noise = 0.0 if method.noise is None else method.noise(STEP)
    image = gain * alpha[0] + (weights[0] if method.predicts == "x0" else 0.0)
    kept = gain * sigma[0] + (weights[0] if method.predicts == "eps" else 0.0)
    assert image == pytest.approx(alpha[1], rel=EXACT)
    assert kept**2 + noise**2 == pytest.approx(sigma[1] ** 2, rel=EXACT)


def test_midpoint_replaces_the_last_moment_of_two_values_alone():
    midpoint = methods.with_solver_type(methods.IMAGE, "midpoint")
    _, exact = methods.IMAGE.formula(STEP, [4, 3])
    _, halved = midpoint.formula(STEP, [4, 3])
    # The weights still sum to the whole integral, and the older value counts for half of it by the distance.
    assert halved.sum() == pytest.approx(exact.sum(), rel=EXACT)
    h, before = LEVELS.lam[5] - LEVELS.lam[4], LEVELS.lam[4] - LEVELS.lam[3]
    assert halved[1] == pytest.approx(-0.5 * h / before * exact.sum(), rel=EXACT)
    for evaluated in ([4], [4, 3, 2]):
        np.testing.assert_array_equal(midpoint.formula(STEP, evaluated)[1], methods.IMAGE.formula(STEP, evaluated)[1])
    assert methods.with_solver_type(methods.IMAGE, "heun") is methods.IMAGE
    with pytest.raises(ValueError, match="solver_type must be 'midpoint' or 'heun', got 'euler'"):
        methods.with_solver_type(methods.IMAGE, "euler")


def test_time_as_a_variable_has_the_moments_of_its_integral():
    schedule = NoiseSchedule.linear(100)
    method = methods.noise_in_time(schedule)

    def rho(t):
        return math.sqrt(math.expm1(-np.interp(t, schedule.timesteps, schedule.log_alphas_cumprod)))

    start, end = LEVELS.t[4], LEVELS.t[5]
    moments = method.moments(STEP, 3)
    # By parts: the integral of r^j d rho is r^j rho at the ends less that of its derivative.
    nodes = np.unique(np.concatenate([schedule.timesteps[(schedule.timesteps > end) & (schedule.timesteps < start)]]))
    for j, moment in enumerate(moments):
        inner = quad(
            lambda t, j=j: j * ((t - start) / (end - start)) ** (j - 1) / (end - start) * rho(t) if j else 0.0,
            start, end, points=nodes, limit=500, epsabs=0, epsrel=1e-11,
        )[0]  # fmt: skip
        expected = LEVELS.alpha[5] * (rho(end) - (0.0**j) * rho(start) - inner)
        # rho is steep near t = 0, where neither rule is exact.
        assert moment == pytest.approx(expected, rel=1e-7)
