"""The lists of noise levels against their formulas."""

import math

import numpy as np
import pytest
import torch

from fastdiff.compat import k_diffusion as k
from support.tolerances import FLOAT32_DEEP, FLOAT32_SUM


def test_sigmas_are_those_of_the_formulas():
    karras = k.get_sigmas_karras(5, 0.1, 10.0)
    np.testing.assert_allclose(karras[[0, 4, 5]], [10.0, 0.1, 0.0], rtol=FLOAT32_SUM)
    steps = np.diff(karras[:-1].double() ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=FLOAT32_DEEP)
    exponential = k.get_sigmas_exponential(5, 0.1, 10.0)
    np.testing.assert_allclose(exponential[1:5] / exponential[:4], 10**-0.5, rtol=FLOAT32_SUM)
    np.testing.assert_allclose(k.get_sigmas_polyexponential(5, 0.1, 10.0), exponential, rtol=FLOAT32_SUM)
    vp = k.get_sigmas_vp(3)
    np.testing.assert_allclose(vp[0], math.sqrt(math.expm1(19.9 / 2 + 0.1)), rtol=FLOAT32_DEEP)
    assert vp[-1] == 0


def test_ancestral_step_keeps_the_variance():
    assert k.get_ancestral_step(4.0, 2.0, 0.0) == (2.0, 0.0)
    down, up = k.get_ancestral_step(4.0, 2.0)
    assert (down**2 + up**2, up) == (pytest.approx(4.0), pytest.approx(math.sqrt(3)))


def test_to_d_is_the_derivative_of_the_flow():
    sigma, x = torch.tensor([2.0, 4.0]), torch.ones(2, 1, 2, 2)
    assert torch.equal(k.to_d(x, sigma, torch.zeros_like(x)), x / sigma.view(2, 1, 1, 1))
