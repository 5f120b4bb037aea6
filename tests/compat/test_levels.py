"""Levels of noise as a table: sigmas that stand still, and the variance-exploding form."""

import numpy as np
import pytest

from fastdiff import CoefficientTable, Diffusion, NoiseSchedule
from fastdiff.compat.levels import Levels, variance_exploding
from fastdiff.samplers import dpmpp, euler
from support.tolerances import FLOAT64


def test_levels_stand_still_between_equal_levels():
    levels = Levels.from_sigmas([10.0, 1.0, 0.5, 0.5], "eps")
    table = levels.table(euler, clip=None)
    rho = np.asarray(table.sigmas) / np.asarray(table.alphas)
    # Equal levels are set apart by 1e-9.
    np.testing.assert_allclose(rho, [10.0, 1.0, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose([table["cx"][-1] + table["c0"][-1] * table["px"][-1]], 1.0, rtol=1e-6)


def test_variance_exploding_is_the_same_sampler():
    """Two evaluations by hand: D(y; sigma) stepped by Euler."""
    levels = Levels.from_sigmas([4.0, 1.5, 0.0], "x0")
    table = variance_exploding(levels.table(euler, clip=None))
    np.testing.assert_allclose(table["ci"], 1 / np.sqrt(1 + np.array([4.0, 1.5]) ** 2))
    np.testing.assert_allclose(table["cx"], [1.5 / 4.0, 0.0], atol=FLOAT64)
    np.testing.assert_allclose(table["c0"], [1 - 1.5 / 4.0, 1.0])
    assert table.init_scale == pytest.approx(np.sqrt(17))
    bare = Diffusion(NoiseSchedule.cosine(10))
    with pytest.raises(ValueError, match="does not say which levels"):
        variance_exploding(CoefficientTable(dpmpp(bare, 5).columns))
