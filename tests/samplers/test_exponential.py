"""The functions phi and the weights of exponential integrators, against quadrature."""

import math

import numpy as np
import pytest

from fastdiff.samplers.exponential import phi, weights
from support.tolerances import FLOAT64


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("z", [-30.0, -2.0, -1.0, -0.999, -1e-3, 0.0, 1e-8, 0.5, 1.001, 7.0])
def test_phi_is_its_integral(k, z):
    x, w = np.polynomial.legendre.leggauss(60)
    r = 0.5 * (x + 1)
    expected = float(np.sum(0.5 * w * np.exp((1 - r) * z) * r ** (k - 1)) / math.factorial(k - 1))
    assert phi(k, z) == pytest.approx(expected, rel=10 * FLOAT64)


def test_weights_integrate_polynomials():
    rng = np.random.default_rng(0)
    nodes = [0.0, -0.7, -1.9, 1.0]
    moments = [1 / (j + 1) for j in range(4)]
    polynomial = np.polynomial.Polynomial(rng.standard_normal(4))
    integral = polynomial.integ()(1.0) - polynomial.integ()(0.0)
    assert weights(nodes, moments) @ polynomial(np.array(nodes)) == pytest.approx(integral)
