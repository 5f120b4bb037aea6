"""Weightings: their papers' formulas, and one weight of one denoiser whatever it predicts."""

from typing import get_args

import numpy as np
import pytest

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.process.diffusion import Prediction
from fastdiff.training.weightings import WEIGHTINGS, min_snr, p2, truncated_snr
from support import peer_lucidrains
from support.textbook_processes import output
from support.tolerances import FLOAT32_SUM, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT

PREDICTIONS = get_args(Prediction)
SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(50)}
# What the papers weigh, and by how much at a signal-to-noise ratio.
PAPERS = {
    "min_snr": ("x0", {"gamma": 3.0}, lambda snr: np.minimum(snr, 3.0)),
    "p2": ("eps", {"gamma": 0.5, "k": 2.0}, lambda snr: 1 / np.sqrt(2.0 + snr)),
    "truncated_snr": ("x0", {}, lambda snr: np.maximum(snr, 1.0)),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_one_denoiser_has_one_loss_in_whatever_space_it_predicts(name, schedule):
    space, options, paper = PAPERS[name]
    alpha, sigma = Diffusion(SCHEDULES[schedule]).signal_noise()
    # The paper's weight times the squared error of what the paper weighs, for an x_0 that is off by 0.3.
    expected = paper(alpha**2 / sigma**2) * (0.3 if space == "x0" else 0.3 * alpha / sigma) ** 2
    for prediction in PREDICTIONS:
        x0, x0_predicted, z = 0.7, 0.4, -1.3
        diffusion, x = Diffusion(SCHEDULES[schedule], prediction), alpha * x0 + sigma * z
        said, true = (output(diffusion, x, image, alpha, sigma) for image in (x0_predicted, x0))
        found = WEIGHTINGS[name](diffusion, **options) * (said - true) ** 2
        np.testing.assert_allclose(found, expected, rtol=FLOAT64_DIFFERENCE, err_msg=prediction)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_are_the_fractions_that_papers_write(schedule):
    abar = SCHEDULES[schedule].alphas_cumprod
    snr = abar / (1 - abar)

    def weights(function, prediction, **options):
        return function(Diffusion(SCHEDULES[schedule], prediction), **options)

    cases = [
        (weights(min_snr, "eps"), np.minimum(snr, 5) / snr),
        (weights(min_snr, "x0"), np.minimum(snr, 5)),
        (weights(min_snr, "v"), np.minimum(snr, 5) / (snr + 1)),
        (weights(min_snr, "score"), np.minimum(snr, 5) * (1 - abar) / snr),
        (weights(p2, "eps"), 1 / (1 + snr)),
        (weights(p2, "eps", gamma=0.0), np.ones_like(snr)),
        (weights(truncated_snr, "v"), np.maximum(abar, 1 - abar)),
        (weights(truncated_snr, "eps"), np.maximum(1, 1 / snr)),
    ]
    for found, expected in cases:
        np.testing.assert_allclose(found, expected, rtol=FLOAT64_PRODUCT)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_min_snr_is_that_of_lucidrains(objective):
    peer = peer_lucidrains.load()
    theirs = peer.GaussianDiffusion(
        peer.Unet(8, dim_mults=(1,)), image_size=8, timesteps=100, objective=objective, beta_schedule="linear",
        min_snr_loss_weight=True, min_snr_gamma=5,
    )  # fmt: skip
    prediction = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[objective]
    ours = min_snr(Diffusion(NoiseSchedule.linear(100), prediction), gamma=5)
    # Theirs is float32.
    np.testing.assert_allclose(ours, theirs.loss_weight.numpy(), rtol=FLOAT32_SUM)


def test_weights_without_signal():
    """A last timestep without signal: what is finite there has its limit, and what is not says so."""
    schedule = NoiseSchedule.jsd(8)
    last = {
        ("min_snr", "eps"): 1.0, ("min_snr", "x0"): 0.0, ("min_snr", "v"): 0.0, ("min_snr", "score"): 1.0,
        ("p2", "eps"): 1.0, ("p2", "x0"): 0.0, ("p2", "v"): 0.0, ("p2", "score"): 1.0,
        ("truncated_snr", "x0"): 1.0, ("truncated_snr", "v"): 1.0,
    }  # fmt: skip
    for (name, prediction), expected in last.items():
        weights = WEIGHTINGS[name](Diffusion(schedule, prediction))
        assert np.isfinite(weights).all()
        assert weights[-1] == expected, (name, prediction)
    with pytest.raises(ValueError, match="leaves no signal"):
        truncated_snr(Diffusion(schedule, "eps"))
