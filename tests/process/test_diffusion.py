"""Diffusion: the views of a network's output agree with each other and with the noising equation."""

import json
from typing import get_args

import numpy as np
import pytest

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.process.diffusion import Prediction
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

PREDICTIONS = get_args(Prediction)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(100), NoiseSchedule.cosine(50)], ids=["linear", "cosine"])
def test_diffusion_target_determines_x0_and_eps(prediction, schedule):
    diffusion = Diffusion(schedule, prediction)
    x0, z = 0.7, -1.3
    c0, c1, c2, c3 = diffusion.noising_table().T
    x_t, target = c0 * x0 + c1 * z, c2 * x0 + c3 * z
    # The network's input, of which the state is 1 / n.
    n = diffusion.input_scale()
    np.testing.assert_allclose(c0**2 + c1**2, n**2, rtol=FLOAT64)
    x_t = x_t / n
    px, pm = diffusion.x0_coefficients()
    ex, em = diffusion.eps_coefficients()
    alpha, _ = diffusion.signal_noise()
    np.testing.assert_allclose(px * x_t + pm * target, x0, atol=(10 * FLOAT64) / alpha.min())
    np.testing.assert_allclose(ex * x_t + em * target, z, atol=FLOAT64_DIFFERENCE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_diffusion_without_signal(prediction):
    diffusion = Diffusion(NoiseSchedule.jsd(8), prediction)
    assert np.isfinite(diffusion.noising_table()).all()
    if prediction not in ("eps", "score"):
        assert np.isfinite(diffusion.x0_coefficients()).all()
    else:
        with pytest.raises(ValueError, match="leaves no signal"):
            diffusion.x0_coefficients()


def test_diffusion_variances():
    schedule = NoiseSchedule.linear(1000)
    small, same = Diffusion(schedule, variance="fixed_small").variance_logs()
    np.testing.assert_array_equal(small, same)
    np.testing.assert_allclose(np.exp(small[1:]), schedule.posterior_variance[1:], rtol=FLOAT64)
    large, _ = Diffusion(schedule, variance="fixed_large").variance_logs()
    np.testing.assert_allclose(np.exp(large[1:]), schedule.betas[1:], rtol=FLOAT64)
    # At t = 0 both are the posterior variance of t = 1, as in the code of Ho and of OpenAI.
    np.testing.assert_allclose(np.exp([small[0], large[0]]), schedule.posterior_variance[1], rtol=FLOAT64)
    low, high = Diffusion(schedule, variance="learned_range").variance_logs()
    np.testing.assert_array_equal(low, small)
    np.testing.assert_allclose(np.exp(high), schedule.betas, rtol=FLOAT64)
    low, high = Diffusion(schedule, variance="learned").variance_logs()
    output = 0.3
    v = (output + 1) / 2
    np.testing.assert_allclose(v * high + (1 - v) * low, output, rtol=FLOAT64)


def test_diffusion_channels_and_respacing():
    diffusion = Diffusion(NoiseSchedule.linear(1000), "v", "learned_range")
    assert diffusion.model_channels(3) == 6
    assert diffusion.respace(10).num_timesteps == 10
    assert diffusion.respace(10).variance == "learned_range"
    assert Diffusion(NoiseSchedule.linear(1000)).model_channels(3) == 3


def test_diffusion_dict_round_trip():
    diffusion = Diffusion(NoiseSchedule.cosine(30), "v", "learned")
    assert Diffusion.from_dict(json.loads(json.dumps(diffusion.to_dict()))) == diffusion
    # What nobody reads is not written: old files and new ones of the same process are the same.
    assert set(diffusion.to_dict()) == {"schedule", "prediction", "variance"}
    preconditioned = Diffusion(NoiseSchedule.edm(30), "F", sigma_data=0.7)
    assert Diffusion.from_dict(json.loads(json.dumps(preconditioned.to_dict()))) == preconditioned
    with pytest.raises(ValueError, match="did you mean 'prediction'"):
        Diffusion.from_dict({"schedule": diffusion.schedule.to_dict(), "predicton": "v"})
    with pytest.raises(ValueError, match="'schedule'"):
        Diffusion.from_dict({"prediction": "v"})


def test_diffusion_refuses_unknown_names():
    schedule = NoiseSchedule.cosine(10)
    with pytest.raises(ValueError, match="unknown prediction"):
        Diffusion(schedule, "epsilon")
    with pytest.raises(ValueError, match="did you mean 'fixed_small'"):
        Diffusion(schedule, "eps", "fixed_smal")
    with pytest.raises(ValueError, match="sigma_data must be a finite number above 0"):
        Diffusion(schedule, "F", sigma_data=0.0)
    with pytest.raises(TypeError, match="NoiseSchedule"):
        Diffusion("cosine")
