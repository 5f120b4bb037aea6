"""Training on each Gaussian process, with its authors' density of levels and weights."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.training.densities import log_normal
from fastdiff.training.trainer import Trainer
from support.textbook_processes import PROCESSES
from support.tolerances import FLOAT64_DIFFERENCE, FLOAT64_PRODUCT
from support.training_runs import CONFIG, digests, images, network

# What their authors train with, in the Trainer's terms.
SETTINGS = {
    "edm": {"timestep_density": "log_normal"},
    "exploding": {},
    "flow": {"timestep_density": "log_normal", "log_normal_mean": 0.0, "log_normal_std": 1.0},
    "shifted": {},
    "vdm": {"loss": "vlb"},
}


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def test_edms_published_loss_of_the_exact_denoiser_is_the_simple_loss_of_f():
    """Karras et al. (2022), eq. 2 and 8, with lambda = 1 / c_out^2, for data of variance sigma_data^2: 1."""
    diffusion = fd.Diffusion(fd.NoiseSchedule.edm(200), "F", sigma_data=0.6)
    sigma, sd = np.exp(4 * diffusion.schedule.timesteps), 0.6
    # E|D - x_0|^2 of the exact D, which is the posterior mean of a Gaussian.
    denoising = sd**2 * sigma**2 / (sd**2 + sigma**2)
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    np.testing.assert_allclose(weight * denoising, 1, rtol=FLOAT64_PRODUCT)
    # Ours: the squared error of F, for x_0 and z of these variances; the exact F says what the input tells of it.
    c0, c1, c2, c3 = diffusion.noising_table().T
    told = (c0 * c2 * sd**2 + c1 * c3) ** 2 / ((c0 * sd) ** 2 + c1**2)
    np.testing.assert_allclose((c2 * sd) ** 2 + c3**2 - told, weight * denoising, rtol=FLOAT64_DIFFERENCE)


def test_densities_of_levels_are_the_papers():
    edm, flow = PROCESSES["edm"], PROCESSES["flow"]
    sigma = np.exp(4 * edm.schedule.timesteps)
    cumulative = np.cumsum(log_normal(edm))
    for k in (200, 400, 600):
        # P_mean = -1.2, P_std = 1.2, between two levels.
        expected = normal_cdf((math.log(math.sqrt(sigma[k] * sigma[k + 1])) + 1.2) / 1.2)
        assert cumulative[k] == pytest.approx(expected, abs=FLOAT64_DIFFERENCE)
    t = flow.schedule.timesteps / 1000
    cumulative = np.cumsum(log_normal(flow, 0.0, 1.0))
    for k in (100, 500, 900):
        # Logit-normal: logit(t) ~ N(0, 1), Esser et al. (2024), eq. 19.
        middle = (t[k] + t[k + 1]) / 2
        # The edge between two timesteps is their mean in log(sigma), and not in t.
        assert cumulative[k] == pytest.approx(normal_cdf(math.log(middle / (1 - middle))), abs=1e-5)
    assert log_normal(flow, 0.0, 1.0)[-1] < FLOAT64_DIFFERENCE


@pytest.mark.parametrize("process", SETTINGS)
def test_the_trainer_trains_resumes_and_samples_on_every_process(tmp_path, process):
    diffusion = fd.Diffusion(PROCESSES[process].respace(20).schedule, PROCESSES[process].prediction)
    config = dataclasses.replace(CONFIG, warmup_steps=0, **SETTINGS[process])

    def trainer(folder, steps):
        return Trainer(network(), diffusion, images(), dataclasses.replace(config, steps=steps), tmp_path / folder)

    trainer("whole", 4).run()
    trainer("parts", 2).run()
    whole = trainer("parts", 4)
    whole.run()
    name = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())[-1]
    first, second = (digests(tmp_path / run / "checkpoints" / name) for run in ("whole", "parts"))
    assert first["model.safetensors"] == second["model.safetensors"]
    pipe = fd.Pipeline.from_pretrained(tmp_path / "whole" / "checkpoints" / name)
    assert pipe.diffusion == diffusion
    assert bool(torch.isfinite(pipe.sample(2, steps=4, seed=0).float()).all())
