"""ddim: first order, identities with ddpm, clipping, and diffusers live."""

from typing import get_args

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, samplers
from fastdiff.process.diffusion import Prediction
from fastdiff.samplers import SPACINGS
from support.gaussian_tables import gaussian_moments
from support.table_runs import linear_row
from support.tolerances import FLOAT64_PRODUCT, PEER_RUN

SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_converges_to_the_data_variance_at_first_order(schedule):
    diffusion = Diffusion(SCHEDULES[schedule].respace(1000))
    errors = []
    steps = np.array([40, 80, 160])
    for count in steps:
        table = samplers.ddim(diffusion, int(count), clip=None, spacing="linspace")
        errors.append(abs(gaussian_moments(table, diffusion, 0.25)[-1] - 0.25))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.8 < slope < 1.35


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_ddim_at_eta_1_is_ddpm_with_fixed_small(spacing, prediction):
    diffusion = Diffusion(SCHEDULES["linear"], prediction, "fixed_small")
    a = samplers.ddim(diffusion, 50, eta=1.0, spacing=spacing)
    b = samplers.ddpm(diffusion, 50, spacing=spacing)
    for name in ("t", "px", "pm", "cx", "c0", "s"):
        np.testing.assert_allclose(a[name], b[name], atol=FLOAT64_PRODUCT, err_msg=name)


def test_ddim_clip_modes_agree_without_a_clip():
    for prediction in get_args(Prediction):
        diffusion = Diffusion(SCHEDULES["cosine"], prediction)
        keep = samplers.ddim(diffusion, 10, clip=None, clipped_eps="keep")
        rederive = samplers.ddim(diffusion, 10, clip=None)
        for m in (0.3, -1.2):
            results = []
            for table in (keep, rederive):
                pred = table["px"] * 0.8 + table["pm"] * m
                results.append(table["cx"] * 0.8 + table["cm"] * m + table["c0"] * pred)
            # One of the forms divides by alpha, which ends near 0.
            np.testing.assert_allclose(results[0], results[1], rtol=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("rederive", [False, True], ids=["keep", "rederive"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_diffusers(prediction, clip, rederive, eta):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.DDIMScheduler(1000, prediction_type=prediction, clip_sample=clip)
    scheduler.set_timesteps(25)
    ours = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[prediction]
    table = samplers.ddim(
        Diffusion(SCHEDULES["linear"], ours),
        25,
        eta=eta,
        spacing="leading",
        clip=1.0 if clip else None,
        clipped_eps="rederive" if rederive else "keep",
    )
    rng = np.random.default_rng(0)
    for row, t in enumerate(scheduler.timesteps):
        x, m, z = (rng.standard_normal((2, 1, 4, 4)).astype(np.float32) for _ in range(3))
        options = {"eta": eta, "use_clipped_model_output": rederive}
        if eta > 0:
            options["variance_noise"] = torch.from_numpy(z)
        theirs = scheduler.step(torch.from_numpy(m), t, torch.from_numpy(x), **options).prev_sample.numpy()
        np.testing.assert_allclose(
            linear_row(table, row, x, m, z), theirs, atol=PEER_RUN * max(1, np.abs(theirs).max())
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"eta": -0.1}, "eta"),
        ({"clipped_eps": "x"}, "clipped_eps"),
    ],
    ids=str,
)
def test_ddim_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        samplers.ddim(Diffusion(NoiseSchedule.cosine(10)), 5, **options)
