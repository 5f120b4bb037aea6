"""The lists of noise levels against their formulas."""

import math

import numpy as np

from fastdiff.compat import k_diffusion as k


def test_sigmas_are_those_of_the_formulas():
    karras = k.get_sigmas_karras(5, 0.1, 10.0)
    np.testing.assert_allclose(karras[[0, 4, 5]], [10.0, 0.1, 0.0], rtol=1e-5)
    steps = np.diff(karras[:-1].double() ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    exponential = k.get_sigmas_exponential(5, 0.1, 10.0)
    np.testing.assert_allclose(exponential[1:5] / exponential[:4], 10**-0.5, rtol=1e-5)
    np.testing.assert_allclose(k.get_sigmas_polyexponential(5, 0.1, 10.0), exponential, rtol=1e-5)
    vp = k.get_sigmas_vp(3)
    np.testing.assert_allclose(vp[0], math.sqrt(math.expm1(19.9 / 2 + 0.1)), rtol=1e-4)
    assert vp[-1] == 0
