"""DDIM in the form that fixed-point iteration undoes."""

import numpy as np
import pytest

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.samplers.invertible import invertible_decode, invertible_encode
from support.gaussian_tables import run_table
from support.tolerances import FLOAT64_DIFFERENCE

# A lowest level so clean that the constant score below it costs nothing, and log alpha smooth between timesteps.
SCHEDULE = NoiseSchedule.from_alphas_cumprod(lambda u: np.exp(-9 * (1e-8 + u) ** 2), 4000)


def flow_gain(table, variance):
    spread = np.asarray(table.alphas) ** 2 * variance + np.asarray(table.sigmas) ** 2
    return np.sqrt(spread[-1] / spread[0])


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_invertible_encode_undoes_invertible_decode(steps, schedule, prediction):
    diffusion = Diffusion(NoiseSchedule.named(schedule, 1000), prediction)
    decode = invertible_decode(diffusion, steps)
    links = len(decode)
    assert steps < links <= steps + 10
    # From next to no variance, where plain DDIM's last step has no inverse, to far beyond images in [-1, 1].
    # A single step bears four times the largest variance of images.
    for variance in (1e-6, 1e-3, 0.25, 3.0, 20.0 if steps > 1 else 4.0):
        _, down = run_table(decode, diffusion, variance)
        errors = []
        for iterations in (1, 5, 25):
            table = invertible_encode(diffusion, steps, iterations=iterations)
            assert table.num_evaluations == len(table) == links * iterations
            _, up = run_table(table, diffusion, variance)
            errors.append(abs(up * down - 1))
        assert errors[1] < 0.03
        assert errors[2] < FLOAT64_DIFFERENCE


@pytest.mark.parametrize("variance", [0.01, 0.25, 3.0])
def test_invertible_decode_is_of_order_one(variance):
    diffusion = Diffusion(SCHEDULE)
    errors = []
    for steps in (100, 400):
        table = invertible_decode(diffusion, steps)
        errors.append(abs(run_table(table, diffusion, variance)[1] / flow_gain(table, variance) - 1))
    assert errors[1] < 0.35 * errors[0] < 0.1


def test_invertible_tables_allow_a_schedule_without_signal_at_its_end():
    diffusion = Diffusion(NoiseSchedule.from_betas([0.01, 0.1, 0.5, 1.0]), "v")
    _, down = run_table(invertible_decode(diffusion), diffusion, 0.25)
    _, up = run_table(invertible_encode(diffusion, iterations=5), diffusion, 0.25)
    assert np.isfinite([down, up]).all()
