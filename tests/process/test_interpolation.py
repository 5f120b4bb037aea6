"""Between timesteps: the values at timesteps, straight lines of log abar between them, and inverses."""

import numpy as np
import pytest

from fastdiff import NoiseSchedule
from fastdiff.process import interpolation
from support.tolerances import FLOAT64

WHOLE = NoiseSchedule.linear(100)
RESPACED = WHOLE.respace(20)
SCHEDULES = pytest.mark.parametrize("schedule", [WHOLE, RESPACED], ids=["whole", "respaced"])


@SCHEDULES
def test_at_a_timestep_it_is_the_schedules_own(schedule):
    positions = np.arange(len(schedule))
    log_abar = schedule.log_alphas_cumprod
    np.testing.assert_allclose(interpolation.log_abar_at_position(schedule, positions), log_abar, rtol=FLOAT64)
    np.testing.assert_allclose(interpolation.log_abar_at_time(schedule, schedule.timesteps), log_abar, rtol=FLOAT64)
    np.testing.assert_array_equal(interpolation.time_at_position(schedule, positions), schedule.timesteps)


@SCHEDULES
def test_between_two_timesteps_log_abar_and_time_are_straight(schedule):
    low, high = 7, 8
    for share in (0.25, 0.5, 0.9):
        position = low + share
        for ours, values in (
            (interpolation.log_abar_at_position(schedule, position), schedule.log_alphas_cumprod),
            (interpolation.time_at_position(schedule, position), schedule.timesteps),
        ):
            assert float(ours) == pytest.approx((1 - share) * values[low] + share * values[high], rel=FLOAT64)


@SCHEDULES
def test_positions_times_and_log_abar_lead_back_to_each_other(schedule):
    positions = np.linspace(0, len(schedule) - 1, 57)
    times = interpolation.time_at_position(schedule, positions)
    log_abar = interpolation.log_abar_at_position(schedule, positions)
    np.testing.assert_allclose(interpolation.position_at_time(schedule, times), positions, atol=FLOAT64 * 100)
    np.testing.assert_allclose(interpolation.position_at_log_abar(schedule, log_abar), positions, atol=FLOAT64 * 1000)
    np.testing.assert_allclose(interpolation.log_abar_at_time(schedule, times), log_abar, rtol=FLOAT64, atol=FLOAT64)


def test_signal_and_noise_add_up_and_keep_their_digits_where_there_is_next_to_no_noise():
    alpha, sigma = interpolation.signal_noise_at([-1e-20, -1.0, -700.0])
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=FLOAT64)
    # 1 - exp(-1e-20) is 1e-20; a difference in float64 would be 0.
    assert sigma[0] == pytest.approx(1e-10, rel=FLOAT64)
    assert alpha[1] == pytest.approx(np.exp(-0.5))
