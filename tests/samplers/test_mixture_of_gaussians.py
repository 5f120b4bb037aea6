"""Samplers on a mixture of Gaussians in the plane, whose exact network is known: distributions, not moments alone."""

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, sample, samplers

DIFFUSION = Diffusion(NoiseSchedule.linear(1000))
MEANS = torch.tensor([[-0.7, -0.2], [0.1, 0.7], [0.6, -0.5]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
SPREAD = 0.12
COUNT = 4000


class ExactNetwork:
    """E[eps | x_t] for the mixture, in closed form."""

    def __init__(self, diffusion):
        self.grid = diffusion.schedule.timesteps
        self.log_abar = diffusion.schedule.log_alphas_cumprod

    def __call__(self, x, t):
        log_abar = torch.from_numpy(np.interp(t.double().numpy(), self.grid, self.log_abar))[:, None]
        alpha, noise = torch.exp(0.5 * log_abar), -torch.expm1(log_abar)
        total = alpha**2 * SPREAD**2 + noise
        offset = x.double()[:, None, :] - alpha[:, None] * MEANS
        likelihood = WEIGHTS.log() - offset.square().sum(-1) / (2 * total)
        share = torch.softmax(likelihood, dim=1)
        score = -(share[..., None] * offset).sum(1) / total
        return (-noise.sqrt() * score).to(x.dtype)


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    return MEANS[component] + SPREAD * torch.randn(count, 2, dtype=torch.float64, generator=generator)


def energy_distance(x, y):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|: 0 for one distribution, in the data's units."""
    n, m = len(x), len(y)
    cross = torch.cdist(x, y).mean()
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2 * cross - within)


def drawn(name, steps, seed=0, **options):
    table = samplers.build(name, DIFFUSION, steps, **options)
    x = sample(ExactNetwork(DIFFUSION), table, shape=(COUNT, 2), seed=seed, dtype=torch.float64, progress=False)
    return energy_distance(x, data(COUNT, 1)), x


# Steps and options. With few steps every deterministic solver leaves out variance: its last step begins where the noise
# is as wide as the modes, and returns the mean of x_0.
CASES = {
    "ddpm": (250, {}),
    "ddpm fixed_large": (1000, {"variance": "fixed_large"}),
    "ddim": (100, {}),
    "ddim eta": (250, {"eta": 0.5}),
    "dpmpp": (100, {}),
    "dpmpp order 3": (100, {"order": 3}),
    "dpmpp_singlestep": (100, {}),
    "dpmpp_sde": (100, {}),
    "dpm_solver": (100, {}),
    "dpm_solver_singlestep": (100, {}),
    "unipc": (100, {}),
    "deis": (100, {}),
    "lms": (60, {}),
    "ipndm": (40, {}),
    "plms": (40, {}),
    "pndm": (50, {}),
    "euler": (100, {}),
    "euler_ancestral": (250, {}),
    "heun": (120, {}),
    "dpm2": (120, {}),
    "dpm2_ancestral": (250, {}),
    "edm": (60, {}),
    "edm churn": (100, {"s_churn": 20.0}),
    "predictor_corrector": (400, {}),
    "analytic_ddpm": (100, {}),
    "repaint": (200, {"jump_repeats": 2}),
    "annealed_langevin": (1500, {}),
}
# Of the energy distance, in units of the data: two sets of exact samples are within 0.0005. And of the modes' shares,
# whose standard error is below 0.008. Langevin dynamics leaves a mode that it is in too rarely.
BOUNDS = dict.fromkeys(CASES, (0.0015, 0.03)) | {"annealed_langevin": (0.004, 0.06)}


@pytest.mark.parametrize("case", CASES)
def test_sampler_reaches_the_mixture(case):
    steps, options = CASES[case]
    most, most_share = BOUNDS[case]
    name = case.split()[0]
    if name == "analytic_ddpm":
        noisy = ExactNetwork(DIFFUSION)
        x0, generator = data(2000, 3), torch.Generator().manual_seed(4)
        moment = []
        for t in range(1000):
            a = DIFFUSION.schedule.alphas_cumprod[t]
            x = a**0.5 * x0 + (1 - a) ** 0.5 * torch.randn(x0.shape, dtype=torch.float64, generator=generator)
            moment.append(float(noisy(x, torch.full((len(x),), t)).square().mean()))
        options = options | {"eps_moment": moment}
    options = {"clip": None} | options if "clip" in samplers.describe(name).options else options
    distance, x = drawn(name, steps, **options)
    assert distance < most
    share = torch.bincount(torch.cdist(x, MEANS).argmin(1), minlength=3) / COUNT
    assert float((share - WEIGHTS).abs().max()) < most_share


def test_energy_distance_of_exact_samples_is_near_zero():
    # What two sets of exact samples of this size differ by; the samplers' limits are above it.
    assert max(abs(energy_distance(data(COUNT, seed), data(COUNT, 1))) for seed in (2, 3, 4)) < 0.0005
    assert energy_distance(data(COUNT, 2) * 0.9, data(COUNT, 1)) > 0.0015
