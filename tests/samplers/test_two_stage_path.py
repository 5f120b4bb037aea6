"""DPM-Solver++ on the SDE in single steps, whose noise is one path's: k-diffusion's loop, diffusers live, Gaussians."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers import dpmpp_sde_singlestep, dpmpp_singlestep, euler_ancestral
from support.gaussian_tables import run_table
from support.table_runs import close, execute, toy_model
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, ORDER

SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}
EVEN = {"spacing": "logsnr", "final": "sigma_min", "continuous": True, "clip": None}
POSITIONS = [930.0, 800.5, 611.25, 300.0, 120.0, 30.5]


class Path:
    """Brownian increments in the time sigma, scaled to variance 1, of one normal draw an interval."""

    def __init__(self, levels, shape):
        generator = torch.Generator().manual_seed(1)
        self.levels = sorted(levels, reverse=True)
        self.draws = torch.randn(len(levels) - 1, *shape, generator=generator, dtype=torch.float64)

    def __call__(self, sigma, after):
        begin, end = (int(np.abs(np.array(self.levels) - float(level)).argmin()) for level in (sigma, after))
        lengths = -np.diff(self.levels)[begin:end]
        total = sum(math.sqrt(h) * z for h, z in zip(lengths, self.draws[begin:end], strict=True))
        return total / math.sqrt(lengths.sum())


def k_diffusion_loop(denoise, y, rhos, noise_sampler, eta):
    """sample_dpmpp_sde with r = 1/2, in y = x / alpha."""
    for rho, after in pairwise(rhos):
        if after == 0:
            return denoise(y, rho)
        first, middle = denoise(y, rho), math.sqrt(rho * after)
        states = []
        for level, image in ((middle, first), (after, None)):
            up = min(level, eta * math.sqrt(level**2 * (rho**2 - level**2) / rho**2))
            down = math.sqrt(level**2 - up**2)
            image = denoise(states[0], middle) if image is None else image
            states.append(down / rho * y + (1 - down / rho) * image + up * noise_sampler(rho, level))
        y = states[1]
    return y


def rho_at(schedule, positions):
    return np.sqrt(np.expm1(-np.interp(positions, np.arange(1000), schedule.log_alphas_cumprod)))


def levels_of(rhos):
    """The levels and the middles between them."""
    return [*(level for a, b in pairwise(rhos) for level in ((a, math.sqrt(a * b)) if b else (a,))), rhos[-1]]


@pytest.mark.parametrize("clip", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_path_equals_the_textbook_loop(schedule, eta, final, clip):
    plan = SCHEDULES[schedule]
    table = dpmpp_sde_singlestep(
        Diffusion(plan, "v"), timesteps=POSITIONS, continuous=True, final=final, clip=clip, eta=eta
    )
    rhos = [*rho_at(plan, POSITIONS), 0.0 if final == "zero" else rho_at(plan, 0.0)]
    path = Path(levels_of(rhos), (6, 3))

    def denoise(y, rho):
        alpha = 1 / math.sqrt(1 + rho**2)
        t = np.interp(math.log1p(rho**2), -plan.log_alphas_cumprod, plan.timesteps)
        x = alpha * y
        image = alpha * x - rho * alpha * toy_model(x, torch.full((6,), float(t), dtype=torch.float64))
        return image if clip is None else image.clamp(-clip, clip)

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = k_diffusion_loop(denoise, x / table.alphas[0], rhos, path, eta)
    assert len(table) == len(path.draws)
    close(execute(table, toy_model, x, path.draws), table.alphas[-1] * expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_path_equals_diffusers(prediction):
    """Its scheduler, given our path in the place of torchsde's."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    pytest.importorskip("torchsde", reason="torchsde is in the test extra")
    plan = SCHEDULES["linear"]
    scheduler = diffusers.DPMSolverSDEScheduler(
        beta_start=1e-4, beta_end=0.02, prediction_type=prediction, timestep_spacing="leading"
    )
    # As in test_two_stage_diffusers.py: the exact products.
    scheduler.alphas_cumprod = torch.from_numpy(plan.alphas_cumprod.copy())
    scheduler.set_timesteps(10)
    kind = {"epsilon": "eps", "v_prediction": "v"}[prediction]
    times = scheduler.timesteps[::2].tolist()
    table = dpmpp_sde_singlestep(Diffusion(plan, kind), timesteps=times, continuous=True, clip=None)
    path = Path(levels_of([*rho_at(plan, times), 0.0]), (2, 1, 4, 4))
    scheduler.noise_sampler = path
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x / table.alphas[0]
    for t in scheduler.timesteps:
        m = toy_model(scheduler.scale_model_input(y, t), torch.zeros(2))
        y = scheduler.step(m, t, y).prev_sample

    def timeless(state, t):
        return toy_model(state, torch.zeros(2))

    # Their levels are float32, and x / alpha reaches 100.
    close(execute(table, timeless, x, path.draws), table.alphas[-1] * y, 1e-4)


@pytest.mark.parametrize("spacing", ["trailing", "karras", "logsnr"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_path_keeps_the_marginals_of_a_point(schedule, spacing):
    """For data at one point every state is N(alpha mu, sigma^2), whatever the steps: z and its remainder add up."""
    for eta in (0.5, 1.0):
        for steps in (1, 2, 7, 20):
            table = dpmpp_sde_singlestep(
                Diffusion(SCHEDULES[schedule], "v"), steps, spacing=spacing, eta=eta, clip=None
            )
            assert len(table) == steps
            variances, _ = run_table(table, Diffusion(SCHEDULES[schedule], "v"), 0.0)
            np.testing.assert_allclose(variances, table.sigmas[1:] ** 2, atol=FLOAT64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_path_converges_to_the_variance_of_the_data(schedule):
    """The error falls as 1 / steps^2."""
    errors, counts = [], np.array([240, 332, 480, 660, 960])
    for steps in counts:
        diffusion = Diffusion(SCHEDULES[schedule], "v")
        table = dpmpp_sde_singlestep(diffusion, int(steps), **EVEN)
        truth = [table.alphas[-1] ** 2 * v + table.sigmas[-1] ** 2 for v in (0.1, 0.6, 3.0)]
        found = [run_table(table, diffusion, v)[0][-1] for v in (0.1, 0.6, 3.0)]
        errors.append(max(abs(a / b - 1) for a, b in zip(found, truth, strict=True)))
    rate = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(rate - 2) < ORDER, errors


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_path_without_noise_is_dpmpp_singlestep(final):
    diffusion = Diffusion(SCHEDULES["linear"])
    options = {"continuous": True, "final": final, "clip": None}
    table = dpmpp_sde_singlestep(diffusion, timesteps=POSITIONS, eta=0.0, **options)
    assert table.order == 2
    assert not table.is_stochastic
    other = dpmpp_singlestep(diffusion, timesteps=table["t"].tolist(), **options)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1)
    close(execute(table, toy_model, x), execute(other, toy_model, x))


def test_path_of_one_evaluation_a_step_is_euler_ancestral():
    diffusion = Diffusion(SCHEDULES["linear"], "x0")
    timesteps = [999, 998, 997]
    table, other = (build(diffusion, timesteps=timesteps, eta=0.7) for build in (dpmpp_sde_singlestep, euler_ancestral))
    assert len(table) == 3
    for column in ("t", "cx", "c0", "s"):
        np.testing.assert_allclose(table[column], other[column], rtol=FLOAT64_DIFFERENCE, err_msg=column)
