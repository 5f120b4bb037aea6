"""Noise levels: where a run goes, between timesteps too."""

import numpy as np
import pytest

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers.levels import visited
from fastdiff.samplers.multistep import dpmpp
from support.tolerances import FLOAT64


def test_level_spacings_need_a_signal():
    with pytest.raises(ValueError, match="needs some signal"):
        dpmpp(Diffusion(NoiseSchedule.jsd(10), "v"), 5, spacing="karras")


def test_levels_between_timesteps_are_on_the_line():
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    levels = visited(diffusion, 50, spacing="karras", continuous=True)
    log_alpha = np.interp(levels.t, np.arange(1000), 0.5 * diffusion.schedule.log_alphas_cumprod)
    np.testing.assert_allclose(np.log(levels.alpha[:-1]), log_alpha, atol=FLOAT64)
    ramp = (levels.rho[:-1]) ** (1 / 7)
    # Differences of seventh roots of nearly equal levels.
    np.testing.assert_allclose(np.diff(ramp), np.diff(ramp)[0], rtol=1e-6)
    even = visited(diffusion, 50, spacing="logsnr", continuous=True)
    # Differences of levels that are found by interpolation.
    np.testing.assert_allclose(np.diff(even.lam[:-1]), np.diff(even.lam)[0], rtol=1e-6)
