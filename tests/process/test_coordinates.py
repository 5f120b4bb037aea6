"""Scales and clocks: the papers' alpha, sigma and times, and their inverses."""

import json

import numpy as np
import pytest

from fastdiff import NoiseSchedule
from fastdiff.process.coordinates import Coordinates
from support.textbook_processes import PROCESSES, own_levels
from support.tolerances import FLOAT64, FLOAT64_PRODUCT

LAM = np.linspace(-6.0, 7.0, 41)
ALPHA, SIGMA = 1 / np.sqrt(1 + np.exp(-2 * LAM)), 1 / np.sqrt(1 + np.exp(2 * LAM))
CONTINUOUS = [name for name, diffusion in PROCESSES.items() if diffusion.schedule.coordinates.is_continuous]


@pytest.mark.parametrize(
    ("scaling", "fixed"),
    [
        ("preserving", lambda a, s: a**2 + s**2),
        ("exploding", lambda a, s: a),
        ("flow", lambda a, s: a + s),
    ],
)
def test_a_scaling_keeps_what_it_is_named_for(scaling, fixed):
    scale = Coordinates(scaling).scale(ALPHA, SIGMA)
    np.testing.assert_allclose(fixed(scale * ALPHA, scale * SIGMA), 1, rtol=FLOAT64)


@pytest.mark.parametrize("clock", ["log_sigma", "sigma", "flow"])
@pytest.mark.parametrize("time_scale", [1.0, 1000.0, -2.0])
def test_a_clock_tells_the_level_back(clock, time_scale):
    seen = Coordinates("preserving", clock, time_scale, 0.5)
    np.testing.assert_allclose(seen.lam(seen.time(LAM)), LAM, rtol=FLOAT64_PRODUCT, atol=FLOAT64_PRODUCT)


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_and_times_are_the_papers(name):
    diffusion = PROCESSES[name]
    schedule = diffusion.schedule
    a, s = own_levels(diffusion, schedule.timesteps)
    alpha, sigma = diffusion.signal_noise()
    scale = schedule.coordinates.scale(alpha, sigma)
    np.testing.assert_allclose(scale * alpha, a, rtol=FLOAT64_PRODUCT, atol=FLOAT64)
    np.testing.assert_allclose(scale * sigma, s, rtol=FLOAT64_PRODUCT)


def test_named_processes_have_the_papers_ends():
    edm = NoiseSchedule.edm(18)
    np.testing.assert_allclose(np.exp(4 * edm.timesteps[[0, -1]]), [0.002, 80.0], rtol=FLOAT64_PRODUCT)
    # Karras et al. (2022), eq. 5.
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(np.exp(-0.5 * edm.log_snr), sigma[::-1], rtol=FLOAT64_PRODUCT)
    exploding = NoiseSchedule.variance_exploding(10, 0.01, 1348.0)
    np.testing.assert_allclose(exploding.timesteps, np.geomspace(0.01, 1348.0, 10), rtol=FLOAT64_PRODUCT)
    flow = NoiseSchedule.flow(4, shift=3.0)
    np.testing.assert_allclose(flow.timesteps, [500.0, 750.0, 900.0, 1000.0], rtol=FLOAT64)
    assert np.isneginf(flow.log_snr[-1])
    vdm = NoiseSchedule.vdm(11)
    np.testing.assert_allclose(vdm.timesteps, np.linspace(0, 1, 11), atol=FLOAT64)
    np.testing.assert_allclose(vdm.log_snr, np.linspace(13.3, -5.0, 11), rtol=FLOAT64_PRODUCT)


def test_any_alpha_and_sigma_are_a_process():
    u = np.linspace(0.02, 1.0, 30)
    schedule = NoiseSchedule.from_signal_noise(1 - u, u, 1000 * u)
    flow = NoiseSchedule.flow(1000)
    at = np.round(1000 * u) == 1000 * u
    np.testing.assert_allclose(schedule.log_snr[at], flow.log_snr[(1000 * u[at]).astype(int) - 1], rtol=FLOAT64_PRODUCT)
    preserving = NoiseSchedule.cosine(50)
    again = NoiseSchedule.from_signal_noise(
        np.sqrt(preserving.alphas_cumprod), np.sqrt(preserving.one_minus_alphas_cumprod)
    )
    assert again.coordinates == Coordinates()
    np.testing.assert_allclose(again.betas, preserving.betas, rtol=FLOAT64_PRODUCT)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_schedule_of_any_process_comes_back_from_json_and_is_respaced(name):
    schedule = PROCESSES[name].schedule
    for one in (schedule, schedule.respace(20)):
        assert NoiseSchedule.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    np.testing.assert_array_equal(schedule.respace(20).timesteps[[0, -1]], schedule.timesteps[[0, -1]])
    assert schedule.respace(20).coordinates == schedule.coordinates
    assert schedule != NoiseSchedule.from_betas(schedule.betas) or name in ("vp", "cosine")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Coordinates("vp"), "unknown scaling"),
        (lambda: Coordinates(clock="sigm"), "did you mean 'sigma'"),
        (lambda: Coordinates(clock="sigma", time_scale=0.0), "other than 0"),
        (lambda: Coordinates(time_scale=2.0), "'timestep'"),
        (lambda: Coordinates("listed"), "scales must be"),
        (lambda: Coordinates("listed", scales=((0.2, 1.0), (0.1, 1.0))), "scales must be"),
        (lambda: Coordinates("exploding").scale(np.zeros(1), np.ones(1)), "without signal"),
        (lambda: Coordinates.from_dict({"clok": "sigma"}), "did you mean 'clock'"),
        (lambda: Coordinates.from_dict({"clock": "sigma", "time_scale": "x"}), "must be numbers"),
        (lambda: Coordinates.from_dict([]), "must be an object"),
        (lambda: NoiseSchedule.edm(10, 1.0, 0.5), "below sigma_max"),
        (lambda: NoiseSchedule.flow(10, shift=0.0), "shift must be above 0"),
        (lambda: NoiseSchedule.vdm(10, -5.0, 5.0), "below log_snr_max"),
        (lambda: NoiseSchedule.from_signal_noise([1.0], [1.0, 2.0]), "one length"),
        (lambda: NoiseSchedule.from_signal_noise([1.0, 1.0], [1.0, 0.5]), "must rise"),
        (lambda: NoiseSchedule.from_signal_noise([-1.0], [1.0]), "not negative"),
        (lambda: NoiseSchedule.from_log_snr([1.0, 2.0], Coordinates(clock="sigma")), "must be a list of numbers"),
        (lambda: NoiseSchedule.from_log_snr([2.0, 1.0], Coordinates()), "continuous clock"),
    ],
)
def test_what_is_no_process_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()
