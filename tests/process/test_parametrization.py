"""What networks are given and say: identities between all predictions on all processes, and the papers' formulas."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.parametrization import Parametrization, Prediction
from fastdiff.process.schedule import NoiseSchedule
from support.textbook_processes import PROCESSES, given_over_own, output, own_levels
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

PREDICTIONS = get_args(Prediction)
X0, Z = 0.7, -1.3


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_inputs_and_targets_are_the_papers(process, prediction):
    """From the process's own alpha and sigma, which the network's time tells."""
    schedule = PROCESSES[process].schedule
    schedule = schedule.subset(range(len(schedule) - 1))
    diffusion = Diffusion(schedule, prediction, sigma_data=0.6)
    c0, c1, c2, c3 = diffusion.noising_table().T
    a, s = own_levels(diffusion, schedule.timesteps)
    x = a * X0 + s * Z
    expected = given_over_own(diffusion, a, s) * x
    np.testing.assert_allclose(c0 * X0 + c1 * Z, expected, rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)
    # The textbook takes a difference of nearly equal numbers where there is little noise.
    np.testing.assert_allclose(c2 * X0 + c3 * Z, output(diffusion, x, X0, a, s), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("said", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_prediction_tells_every_other(process, said):
    """x_0 and eps follow from the state and what was said, and any other prediction from these two."""
    schedule = PROCESSES[process].schedule
    schedule = schedule.subset(range(len(schedule) - 1))
    diffusion = Diffusion(schedule, said)
    alpha, sigma = diffusion.signal_noise()
    x = alpha * X0 + sigma * Z
    of_x0, of_eps = diffusion.parametrization.target(alpha, sigma)
    m = of_x0 * X0 + of_eps * Z
    px, pm = diffusion.x0_coefficients()
    ex, em = diffusion.eps_coefficients()
    np.testing.assert_allclose(alpha * (px * x + pm * m), alpha * X0, atol=FLOAT64_DIFFERENCE)
    np.testing.assert_allclose(sigma * (ex * x + em * m), sigma * Z, atol=FLOAT64_DIFFERENCE)
    # The two views of one output fit together whatever was said.
    for m in (0.3, -2.0):
        np.testing.assert_allclose(alpha * (px * x + pm * m) + sigma * (ex * x + em * m), x, atol=FLOAT64_DIFFERENCE)


@pytest.mark.parametrize("process", ["edm", "flow", "vp"])
def test_f_is_edms_for_data_of_variance_one_minus_v(process):
    """With sigma_data = 1, F is -v: known since Karras et al. (2022), appendix B.6."""
    schedule = PROCESSES[process].schedule
    f, v = (Diffusion(schedule, name, sigma_data=1.0) for name in ("F", "v"))
    for ours, theirs in zip(f.x0_coefficients(), v.x0_coefficients(), strict=True):
        np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=FLOAT64)
    np.testing.assert_allclose(f.input_scale(), 1, rtol=FLOAT64)


def test_f_has_inputs_and_targets_of_variance_one():
    """What the preconditioning is for, for data of variance sigma_data^2."""
    diffusion = replace(PROCESSES["edm"], sigma_data=0.37)
    c0, c1, c2, c3 = diffusion.noising_table().T
    np.testing.assert_allclose((c0 * 0.37) ** 2 + c1**2, 1, rtol=FLOAT64)
    np.testing.assert_allclose((c2 * 0.37) ** 2 + c3**2, 1, rtol=FLOAT64)
    # Weighed by 1 / c_out^2, the loss of D is that of F: Karras et al. (2022), eq. 8.
    sigma = np.exp(-0.5 * diffusion.schedule.log_snr)
    c_out = sigma * 0.37 / np.sqrt(sigma**2 + 0.37**2)
    np.testing.assert_allclose(diffusion.x0_coefficients()[1], c_out, rtol=FLOAT64_DIFFERENCE)


def test_a_velocity_is_the_flows_derivative():
    diffusion = PROCESSES["shifted"]
    t = diffusion.schedule.timesteps
    x = (1 - t) * X0 + t * Z
    np.testing.assert_allclose(np.gradient(x, t), Z - X0, rtol=FLOAT64_DIFFERENCE)
    _, _, c2, c3 = diffusion.noising_table().T
    np.testing.assert_allclose(c2 * X0 + c3 * Z, Z - X0, rtol=FLOAT64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_levels_without_signal(prediction):
    network = Parametrization(prediction)
    blank = np.zeros(1), np.ones(1)
    if prediction in ("eps", "score"):
        with pytest.raises(ValueError, match="zero terminal SNR"):
            network.x0(*blank)
    else:
        assert np.isfinite(network.x0(*blank)).all()
    assert np.isfinite(network.target(*blank)).all()
    assert np.isfinite(network.eps(*blank)).all()
    assert Diffusion(NoiseSchedule.flow(10), prediction).input_scale()[-1] == 1.0
