"""Euler, Heun, DPM2, their ancestral forms and EDM: textbook loops, exact Gaussians, identities, and diffusers live."""

import json
import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import CoefficientTable, Diffusion, NoiseSchedule
from fastdiff.process.diffusion import Prediction
from fastdiff.samplers import LEVEL_SPACINGS, SPACINGS, ddim, ddpm, dpm_solver_singlestep
from fastdiff.samplers.two_stage import dpm2, dpm2_ancestral, edm, euler, euler_ancestral, heun
from fastdiff.samplers.two_stage_method import MAX_CHURN
from support.gaussian_tables import convergence_order, run_table
from support.table_runs import close, execute, toy_model
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT, ORDER

SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}
BUILDERS = {f.__name__: f for f in (euler, euler_ancestral, heun, dpm2, dpm2_ancestral, edm)}
EVEN = {"spacing": "logsnr", "final": "sigma_min", "continuous": True, "clip": None}


# The textbook loops, in y = x / alpha over levels rho, after Karras et al. (2022) and k-diffusion.


def denoiser(diffusion, clip=None, model=toy_model):
    """D(y, rho) of a model that takes x and t; t by piecewise-linear log alpha."""
    schedule = diffusion.schedule

    def denoise(y, rho):
        alpha = 1 / math.sqrt(1 + rho**2)
        sigma, x = rho * alpha, alpha * y
        t = np.interp(math.log1p(rho**2), -schedule.log_alphas_cumprod, schedule.timesteps)
        m = model(x, torch.full((x.shape[0],), float(t), dtype=torch.float64))
        x0 = {
            "x0": lambda: m,
            "eps": lambda: (x - sigma * m) / alpha,
            "v": lambda: alpha * x - sigma * m,
            "score": lambda: (x + sigma**2 * m) / alpha,
        }[diffusion.prediction]()
        return x0 if clip is None else x0.clamp(-clip, clip)

    return denoise


def ancestral_step(rho, rho_next, eta):
    up = min(rho_next, eta * math.sqrt(rho_next**2 * (rho**2 - rho_next**2) / rho**2))
    return math.sqrt(rho_next**2 - up**2), up


def textbook_euler(denoise, y, rhos, noise, eta=0.0):
    for i, (rho, rho_next) in enumerate(pairwise(rhos)):
        down, up = ancestral_step(rho, rho_next, eta)
        y = y + (down - rho) * (y - denoise(y, rho)) / rho + up * noise[i]
    return y


def textbook_heun(denoise, y, rhos, noise, churn=(), s_noise=1.0):
    """Algorithm 2; the first noise has been added to y already."""
    for i, (rho, rho_next) in enumerate(pairwise(rhos)):
        raised = rho * (1 + (churn[i] if i < len(churn) else 0.0))
        if i > 0:
            y = y + math.sqrt(raised**2 - rho**2) * s_noise * noise[i - 1]
        d = (y - denoise(y, raised)) / raised
        there = y + (rho_next - raised) * d
        if rho_next > 0:
            d = (d + (there - denoise(there, rho_next)) / rho_next) / 2
        y = y + (rho_next - raised) * d
    return y


def textbook_dpm2(denoise, y, rhos, noise, eta=0.0):
    for i, (rho, rho_next) in enumerate(pairwise(rhos)):
        down, up = ancestral_step(rho, rho_next, eta)
        d = (y - denoise(y, rho)) / rho
        if down == 0:
            y = y + (down - rho) * d
        else:
            middle = math.exp(0.5 * (math.log(rho) + math.log(down)))
            there = y + (middle - rho) * d
            y = y + (down - rho) * (there - denoise(there, middle)) / middle
        y = y + up * noise[i]
    return y


def step_ends(table):
    """The rows that end a step: all but the first rows of pairs."""
    return np.flatnonzero(table["push"] == 0)


def run_both(table, diffusion, rhos, textbook, clip, *options):
    """The table's and the textbook's results from one start, with the same noise."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    per_step = torch.randn(len(rhos) - 1, 6, 3, generator=generator, dtype=torch.float64)
    noise = torch.zeros(len(table), 6, 3, dtype=torch.float64)
    noise[step_ends(table)] = per_step
    ours = execute(table, toy_model, x, noise)
    y = textbook(denoiser(diffusion, clip), x / table.alphas[0], rhos, per_step, *options)
    return ours, table.alphas[-1] * y


def rho_at(diffusion, positions):
    grid = np.arange(diffusion.num_timesteps)
    return np.sqrt(np.expm1(-np.interp(positions, grid, diffusion.schedule.log_alphas_cumprod)))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("clip", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_two_stage_equals_the_textbook_loop(name, clip, schedule, prediction, final):
    diffusion = Diffusion(SCHEDULES[schedule], prediction)
    positions = [930.0, 800.5, 611.25, 300.0, 120.0, 30.5]
    options = {"timesteps": positions, "continuous": True, "final": final, "clip": clip}
    rhos = [*rho_at(diffusion, positions), 0.0 if final == "zero" else rho_at(diffusion, 0.0)]
    if name in ("euler", "euler_ancestral"):
        for eta in (0.0,) if name == "euler" else (0.0, 0.4, 1.0):
            extra = {} if name == "euler" else {"eta": eta}
            table = BUILDERS[name](diffusion, **options, **extra)
            close(*run_both(table, diffusion, rhos, textbook_euler, clip, eta))
    elif name in ("dpm2", "dpm2_ancestral"):
        for eta in (0.0,) if name == "dpm2" else (0.0, 0.4, 1.0):
            extra = {} if name == "dpm2" else {"eta": eta}
            table = BUILDERS[name](diffusion, **options, **extra)
            close(*run_both(table, diffusion, rhos, textbook_dpm2, clip, eta))
    else:
        churn = 0.0 if name == "heun" else 1.8
        extra = {} if name == "heun" else {"s_churn": churn, "s_tmin": 0.2, "s_tmax": 20.0, "s_noise": 1.01}
        table = BUILDERS[name](diffusion, **options, **extra)
        gammas = [churn / len(positions) if 0.2 <= rho <= 20.0 else 0.0 for rho in rhos[:-1]]
        close(*run_both(table, diffusion, rhos, textbook_heun, clip, gammas, 1.01))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("spacing", [*SPACINGS, *LEVEL_SPACINGS])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_two_stage_spends_exactly_its_steps(name, spacing, final):
    for schedule in SCHEDULES.values():
        for steps in range(1, 31):
            table = BUILDERS[name](Diffusion(schedule), steps, spacing=spacing, final=final)
            assert table.num_evaluations == len(table) == steps
            assert table.options["steps"] == steps
            table = BUILDERS[name](Diffusion(schedule), steps, spacing="karras", final=final, continuous=True)
            assert table.num_evaluations == steps


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("spacing", [*SPACINGS, *LEVEL_SPACINGS])
def test_two_stage_spends_exactly_its_steps_where_timesteps_are_few(name, spacing):
    """As the levels fill the schedule, the room for middle levels between them goes."""
    diffusion = Diffusion(NoiseSchedule.cosine(30))
    for steps in range(1, 31):
        table = BUILDERS[name](diffusion, steps, spacing=spacing, continuous=False)
        assert table.num_evaluations == len(table) == steps


def test_two_stage_takes_every_timestep_by_default():
    diffusion = Diffusion(NoiseSchedule.linear(50))
    for name, builder in BUILDERS.items():
        assert builder(diffusion).num_evaluations == 50, name
        assert builder(diffusion, final="sigma_min", spacing="linspace").num_evaluations == 49, name
    assert heun(diffusion, 99)["t"].tolist() == [49, *np.repeat(np.arange(48, -1, -1), 2)]


@pytest.mark.parametrize(("builder", "most"), [(euler, 50), (heun, 99), (dpm2, 50), (dpm2_ancestral, 99), (edm, 99)])
def test_two_stage_says_how_many_steps_there_are(builder, most):
    diffusion = Diffusion(NoiseSchedule.linear(50))
    assert len(builder(diffusion, most, spacing="trailing")) == most
    with pytest.raises(ValueError, match=f"steps must be at most {most} for this schedule, got {most + 1}"):
        builder(diffusion, most + 1, spacing="trailing")
    assert len(builder(diffusion, most + 1, spacing="karras", continuous=True)) == most + 1


def test_two_stage_odd_evaluation_goes_to_the_longest_step():
    """Euler's on the step that is longest in log rho, and the rest as without the limit."""
    diffusion = Diffusion(SCHEDULES["cosine"])
    levels = [999, 800, 500, 200, 100]
    full = heun(diffusion, timesteps=levels)
    lengths = np.diff(-np.log(rho_at(diffusion, levels)))
    assert lengths.argmax() == 0
    even = heun(diffusion, 8, spacing="trailing")
    assert even["t"].tolist() == [999, 799, 599, 599, 399, 399, 199, 199]
    assert even["push"].tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    assert full.num_evaluations == 9
    # Of equal steps the last.
    table = heun(diffusion, 8, spacing="logsnr", continuous=True)
    assert table["push"].tolist() == [1, 0, 1, 0, 1, 0, 0, 0]


def test_heun_odd_evaluation_is_worth_little():
    """Left to the last step, a run of 20 evaluations from nearly pure noise would be far worse than one of 10."""
    diffusion = Diffusion(SCHEDULES["cosine"])

    def error(table):
        gains = [run_table(table, diffusion, v)[1] for v in (0.1, 0.25, 0.6)]
        exact = [math.sqrt(v / (table.alphas[0] ** 2 * v + table.sigmas[0] ** 2)) for v in (0.1, 0.25, 0.6)]
        return max(abs(g / e - 1) for g, e in zip(gains, exact, strict=True))

    errors = [error(heun(diffusion, steps, clip=None)) for steps in (10, 20, 40, 80)]
    assert errors[0] < 0.25
    assert (np.diff(errors) < 0).all()


def test_two_stage_timesteps_are_the_levels():
    diffusion = Diffusion(SCHEDULES["linear"])
    assert heun(diffusion, timesteps=[10, 400, 900])["t"].tolist() == [900, 400, 400, 10, 10]
    assert heun(diffusion, 5, timesteps=[10, 400, 900]).num_evaluations == 5
    assert dpm2_ancestral(diffusion, timesteps=[900, 400, 10])["t"].tolist() == [900, 400, 400, 10, 10]
    assert heun(diffusion, timesteps=[900, 400, 10], final="sigma_min")["t"].tolist() == [900, 400, 400, 10, 10, 0]
    with pytest.raises(ValueError, match="steps = 3 disagrees with the 5 evaluations"):
        heun(diffusion, 3, timesteps=[10, 400, 900])


def counts(parity):
    """Odd and even apart: the step that an odd evaluation leaves to Euler shifts the error by a constant factor."""
    return np.array([120, 166, 240, 330, 480]) + parity


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("parity", [0, 1], ids=["even", "odd"])
@pytest.mark.parametrize(("builder", "theory"), [(euler, 1), (heun, 2), (dpm2, 2), (edm, 2)])
def test_two_stage_has_its_order(builder, theory, parity, schedule, prediction):
    diffusion = Diffusion(SCHEDULES[schedule], prediction)
    order, errors = convergence_order(lambda d, n: builder(d, n, **EVEN), diffusion, counts(parity))
    assert abs(order - theory) < ORDER, errors
    assert builder(diffusion, 20).order == theory


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_dpm2_keeps_its_order_on_whole_timesteps(schedule):
    """The middle levels are moved by up to half a timestep and their weights with them."""
    full = getattr(NoiseSchedule, schedule)(4000)
    diffusion = Diffusion(NoiseSchedule.from_betas(full.subset(range(150, 4000)).betas))
    table = dpm2(diffusion, 121, spacing="linspace")
    assert table.integer_times
    order, errors = convergence_order(
        lambda d, n: dpm2(d, n, spacing="linspace", final="sigma_min", clip=None), diffusion, (60, 90, 120, 180, 240)
    )
    assert abs(order - 2) < ORDER, errors


STOCHASTIC = {
    "euler_ancestral": (euler_ancestral, {}, 1),
    "euler_ancestral half": (euler_ancestral, {"eta": 0.5}, 1),
    "dpm2_ancestral": (dpm2_ancestral, {}, 2),
    "dpm2_ancestral half": (dpm2_ancestral, {"eta": 0.5}, 2),
    "edm": (edm, {"s_churn": 20.0}, 2),
    "edm in a window": (edm, {"s_churn": 10.0, "s_tmin": 0.05, "s_tmax": 1.0}, 2),
}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", STOCHASTIC)
def test_stochastic_variance_converges_to_the_truth(case, schedule, prediction):
    """The error of the result's variance falls as 1 / steps, or 1 / steps^2 with two evaluations per step."""
    builder, options, theory = STOCHASTIC[case]
    diffusion = Diffusion(SCHEDULES[schedule], prediction)
    errors = []
    for steps in counts(0):
        table = builder(diffusion, int(steps), **options, **EVEN)
        assert table.is_stochastic
        assert table.order == 0
        worst = 0.0
        for data_variance in (0.1, 0.25, 0.6, 3.0):
            variances, _ = run_table(table, diffusion, data_variance)
            truth = table.alphas[-1] ** 2 * data_variance + table.sigmas[-1] ** 2
            worst = max(worst, abs(variances[-1] / truth - 1))
        errors.append(worst)
    rate = -np.polyfit(np.log(counts(0)), np.log(errors), 1)[0]
    assert abs(rate - theory) < ORDER, errors


ALL_CASES = {
    **{name: (builder, {}) for name, builder in BUILDERS.items()},
    **{name: (builder, options) for name, (builder, options, _) in STOCHASTIC.items()},
    "edm to the limit": (edm, {"s_churn": 1000.0}),
}
SPACED = {
    "trailing": {"spacing": "trailing"},
    "karras": {"spacing": "karras", "continuous": True},
    "logsnr to sigma_min": {"spacing": "logsnr", "continuous": True, "final": "sigma_min"},
    "karras whole": {"spacing": "karras", "continuous": False},
}


@pytest.mark.parametrize("case", ALL_CASES)
@pytest.mark.parametrize("spaced", SPACED)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_stage_keeps_the_marginals_of_a_point(case, spaced, schedule):
    """For data at one point every state is N(alpha mu, sigma^2) exactly, for any number of steps; churn included."""
    builder, options = ALL_CASES[case]
    diffusion = Diffusion(SCHEDULES[schedule], "v")
    for steps in (1, 2, 7, 20):
        table = builder(diffusion, steps, clip=None, **options, **SPACED[spaced])
        variances, _ = run_table(table, diffusion, 0.0)
        np.testing.assert_allclose(variances, table.sigmas[1:] ** 2, atol=FLOAT64)
        mean = table["cx"] * table.alphas[:-1] + table["c0"] + table["c1"]
        np.testing.assert_allclose(mean, table.alphas[1:], atol=FLOAT64 * max(1, np.abs(table["c0"]).max()))


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_ancestral_is_ddim(prediction, spacing, clip, eta):
    """Euler is DDIM with eta = 0; with eta = 1 it is DDPM with fixed_small."""
    diffusion = Diffusion(SCHEDULES["linear"], prediction)
    expected = ddim(diffusion, 30, eta=eta, spacing=spacing, clip=clip)
    tables = [euler_ancestral(diffusion, 30, eta=eta, spacing=spacing, clip=clip)]
    if eta == 0:
        tables.append(euler(diffusion, 30, spacing=spacing, clip=clip))
    if eta == 1:
        tables.append(ddpm(diffusion, 30, spacing=spacing, clip=clip))
    for table in tables:
        for name in ("t", "px", "pm", "clip", "cx", "c0", "s"):
            np.testing.assert_allclose(
                table[name], expected[name], rtol=FLOAT64_PRODUCT, atol=FLOAT64_PRODUCT, err_msg=name
            )
        np.testing.assert_allclose(table.sigmas, expected.sigmas, atol=FLOAT64)


@pytest.mark.parametrize("spaced", SPACED)
def test_edm_without_churn_is_heun(spaced):
    """With so many steps that none is too long for a second evaluation of either."""
    diffusion = Diffusion(SCHEDULES["cosine"])
    options = SPACED[spaced]
    a, b = edm(diffusion, 24, lam_min=None, **options), heun(diffusion, 24, **options)
    np.testing.assert_array_equal(a.rows(np.float64), b.rows(np.float64))
    outside = edm(diffusion, 24, s_churn=30.0, s_tmin=1e6, lam_min=None, **options)
    np.testing.assert_array_equal(outside.rows(np.float64), b.rows(np.float64))


@pytest.mark.parametrize("spaced", SPACED)
def test_ancestral_without_noise_is_its_deterministic_form(spaced):
    diffusion = Diffusion(SCHEDULES["cosine"])
    for ancestral, plain in ((euler_ancestral, euler), (dpm2_ancestral, dpm2)):
        a, b = ancestral(diffusion, 12, eta=0.0, **SPACED[spaced]), plain(diffusion, 12, **SPACED[spaced])
        np.testing.assert_allclose(a.rows(np.float64), b.rows(np.float64), rtol=FLOAT64)
        assert a.order == b.order


@pytest.mark.parametrize("continuous", [True, False], ids=["halfway", "on whole timesteps"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_dpm2_is_dpm_solver_singlestep_on_its_own_times(continuous, final):
    """Two implementations of DPM-Solver-2: a step halfway in log-SNR, or with the general weight 1 / (2 r)."""
    diffusion = Diffusion(SCHEDULES["linear"])
    table = dpm2(diffusion, timesteps=[999, 812, 640, 411, 208, 77, 30], continuous=continuous, final=final, clip=None)
    assert table.num_evaluations == 13 + (final == "sigma_min")
    other = dpm_solver_singlestep(diffusion, timesteps=table["t"].tolist(), continuous=continuous, final=final)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1)
    close(execute(table, toy_model, x), execute(other, toy_model, x))


def test_dpm2_middle_levels():
    diffusion = Diffusion(SCHEDULES["linear"])
    table = dpm2(diffusion, 9, spacing="karras", continuous=True)
    rho = np.asarray(table.sigmas) / np.asarray(table.alphas)
    for row in np.flatnonzero(table["push"]):
        assert rho[row + 1] == pytest.approx(math.sqrt(rho[row] * rho[row + 2]), rel=FLOAT64_DIFFERENCE)
    snapped = dpm2(diffusion, timesteps=[999, 500, 498, 497, 0])
    exact = math.sqrt(math.prod(rho_at(diffusion, [999, 500])))
    nearest = round(np.interp(math.log1p(exact**2), -diffusion.schedule.log_alphas_cumprod, np.arange(1000)))
    # 498 to 497 has no room for a middle one, and the way from 0 to the image needs none.
    assert snapped["t"].tolist() == [999, nearest, 500, 499, 498, 497, snapped["t"][6], 0]
    assert 0 < snapped["t"][6] < 497
    # With eta = 1 the middle of the way to sigma_down is the next level.
    for continuous in (False, True):
        ancestral = dpm2_ancestral(diffusion, timesteps=[999, 500, 498, 497, 0], continuous=continuous)
        assert ancestral["t"].tolist() == [999, 500, 500, 498, 498, 497, 497, 0, 0]


def test_edm_raises_levels_as_the_paper_does():
    diffusion = Diffusion(SCHEDULES["linear"])
    plain, table = (edm(diffusion, 15, s_churn=s, s_tmin=0.05, s_tmax=50.0, s_noise=1.003) for s in (0.0, 2.0))
    starts = np.concatenate([[0], step_ends(table)[:-1] + 1])
    rho, raised = (np.asarray(t.sigmas)[starts] / np.asarray(t.alphas)[starts] for t in (plain, table))
    inside = (rho >= 0.05) & (rho <= 50.0)
    np.testing.assert_allclose(raised, rho * np.where(inside, 1 + 2.0 / 8, 1.0), rtol=FLOAT64_DIFFERENCE)
    assert inside.any()
    assert not inside.all()
    # The noise of the row before, in x / alpha.
    ends = step_ends(table)[:-1]
    noise = table["s"][ends] / np.asarray(table.alphas)[ends + 1]
    # A difference of squares, from columns that divide by alpha.
    np.testing.assert_allclose(noise, 1.003 * np.sqrt(raised**2 - rho**2)[1:], rtol=1e-6, atol=FLOAT64_DIFFERENCE)
    many = edm(diffusion, 15, s_churn=1e6, s_tmax=50.0)
    raised = np.asarray(many.sigmas)[starts] / np.asarray(many.alphas)[starts]
    np.testing.assert_allclose(raised[rho <= 50], rho[rho <= 50] * (1 + MAX_CHURN), rtol=FLOAT64_DIFFERENCE)


def test_edm_begins_at_the_raised_level():
    diffusion = Diffusion(SCHEDULES["linear"])
    # Nothing is noisier than T - 1.
    top = edm(diffusion, 9, s_churn=100.0)
    assert top["t"][0] == 999
    assert top.init_scale == 1.0
    for s_noise in (0.0, 1.0, 1.2):
        table = edm(diffusion, timesteps=[700, 300, 50], s_churn=0.9, s_noise=s_noise, continuous=True)
        rho, raised = rho_at(diffusion, [700.0])[0], table.sigmas[0] / table.alphas[0]
        assert raised == pytest.approx(1.3 * rho)
        # The first state at the level itself has variance 1 and x / alpha that of 1 + rho^2; then comes the noise.
        variance = (1 + rho**2 + s_noise**2 * (raised**2 - rho**2)) / (1 + raised**2)
        assert table.init_scale == pytest.approx(math.sqrt(variance))
    assert edm(diffusion, timesteps=[700, 300, 50], s_churn=0.9).init_scale == pytest.approx(1.0)


def test_edm_on_whole_timesteps_raises_to_whole_timesteps():
    diffusion = Diffusion(SCHEDULES["linear"])
    assert not edm(diffusion, 20, s_churn=5.0).integer_times
    for options in ({"spacing": "trailing"}, {"continuous": False}, {"timesteps": [900, 500, 100, 0]}):
        table = edm(diffusion, None if "timesteps" in options else 20, s_churn=5.0, **options)
        assert table.integer_times
        assert (np.diff(table["t"]) > 0).any()
        assert table.is_stochastic


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_two_stage_starts_from_pure_noise(name, prediction):
    """With no signal at T - 1 the first step is Euler's limit: the predicted x_0, and noise of its own or the state."""
    betas = np.append(NoiseSchedule.linear(99).betas, 1.0)
    diffusion = Diffusion(NoiseSchedule.from_betas(betas), prediction)
    options = {"s_churn": 4.0} if name == "edm" else {}
    for steps in (1, 2, 9, 10):
        table = BUILDERS[name](diffusion, steps, spacing="trailing", clip=None, **options)
        assert len(table) == steps
        assert table["t"][0] == 99
        assert table["push"][0] == 0
        assert table["c0"][0] == pytest.approx(table.alphas[1])
        variances, _ = run_table(table, diffusion, 0.0)
        np.testing.assert_allclose(variances, table.sigmas[1:] ** 2, atol=FLOAT64)
    with pytest.raises(ValueError, match="leaves no signal"):
        BUILDERS[name](Diffusion(diffusion.schedule, "eps"), 5, spacing="trailing")


def test_heun_keeps_its_accuracy_in_float32():
    """From alpha = 5e-5; with the step's first state in the formula instead, the error was measured as 2e-4."""
    diffusion = Diffusion(SCHEDULES["cosine"], "v")
    table = heun(diffusion, 19)
    rows = CoefficientTable({n: v.astype(np.float32) for n, v in table.columns.items()})
    x = torch.randn(4, 192, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def single(state, t):
        return toy_model(state.float().double(), t).float().double()

    assert not table["cb"].any()
    # An ulp of a state of size 4 in float32 is 5e-7; 19 evaluations.
    assert float((execute(rows, single, x) - execute(table, toy_model, x)).abs().max()) < 2e-5


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_two_stage_holds_its_invariants(data):
    num_timesteps = data.draw(st.integers(1, 60))
    betas = data.draw(st.lists(st.floats(1e-6, 0.3), min_size=num_timesteps, max_size=num_timesteps))
    diffusion = Diffusion(NoiseSchedule.from_betas(betas), data.draw(st.sampled_from(get_args(Prediction))))
    name = data.draw(st.sampled_from(sorted(BUILDERS)))
    spacing = data.draw(st.sampled_from([*SPACINGS, *LEVEL_SPACINGS]))
    continuous = spacing in LEVEL_SPACINGS and data.draw(st.booleans())
    steps = data.draw(st.integers(1, num_timesteps))
    options = {}
    if name.endswith("ancestral"):
        options["eta"] = data.draw(st.floats(0, 1))
    if name == "edm":
        options["s_churn"] = data.draw(st.floats(0, 100))
        options["s_tmin"] = data.draw(st.floats(0, 1))
        options["s_tmax"] = options["s_tmin"] + data.draw(st.floats(0, 100))
        options["s_noise"] = data.draw(st.floats(0, 2))
    table = BUILDERS[name](diffusion, steps, spacing=spacing, continuous=continuous, **options)
    assert table.num_evaluations == len(table) == steps
    for dtype in (np.float32, np.float64):
        assert np.isfinite(np.delete(table.rows(dtype), 4, axis=1)).all()
    assert table.alphas[-1] == 1
    assert table.sigmas[-1] == 0
    assert table["s"][-1] == 0
    # Noise is drawn where a step ends, and nowhere else.
    assert (table["s"][table["push"] == 1] == 0).all()
    assert table.integer_times or continuous
    assert (table["t"] >= 0).all()
    assert (table["t"] <= num_timesteps - 1).all()
    np.testing.assert_allclose(np.square(table.alphas) + np.square(table.sigmas), 1.0)
    if name != "edm" or options["s_churn"] == 0:
        # Levels fall from row to row; the second evaluation of a Heun step is at the level the next one begins at.
        assert (np.diff(table["t"]) <= 0).all()
        assert (np.diff(table.alphas) >= 0).all()
        assert (np.diff(table["t"][table["push"] == 1]) < 0).all()
    assert CoefficientTable.from_json(table.to_json()) == table


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 2.5}, "steps must be"),
        ({"steps": True}, "steps must be"),
        ({"steps": 21}, "steps must be at most"),
        ({"steps": 5, "spacing": "trailling"}, "did you mean 'trailing'"),
        ({"steps": 5, "spacing": "linspace", "continuous": True}, "continuous needs one of"),
        ({"steps": 5, "final": "one"}, "final must be"),
        ({"timesteps": [3, 3]}, "strictly monotone"),
        ({"timesteps": [0, 10]}, r"in \[0, 10\)"),
        ({"timesteps": [0.5]}, "whole numbers"),
        ({"timesteps": [8, 3], "steps": 9}, "leave one of them out"),
        ({"steps": 5, "clip": 0.0}, "clip must be"),
    ],
    ids=str,
)
def test_two_stage_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        BUILDERS[name](Diffusion(NoiseSchedule.cosine(10)), **{"spacing": "trailing", **options})


@pytest.mark.parametrize(
    ("builder", "options", "message"),
    [
        (euler_ancestral, {"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        (dpm2_ancestral, {"eta": -0.1}, "eta"),
        (dpm2_ancestral, {"eta": math.nan}, "eta"),
        (edm, {"s_churn": -1.0}, "s_churn must be"),
        (edm, {"s_churn": math.inf}, "s_churn must be"),
        (edm, {"s_noise": math.nan}, "s_noise must be"),
        (edm, {"s_tmin": -0.1}, "s_tmin must be"),
        (edm, {"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmax must be at least s_tmin = 2.0, got 1.0"),
    ],
)
def test_two_stage_refuses_its_own_options(builder, options, message):
    with pytest.raises(ValueError, match=message):
        builder(Diffusion(NoiseSchedule.cosine(10)), 5, **options)


def test_two_stage_options_are_json():
    diffusion = Diffusion(NoiseSchedule.cosine(10))
    for builder in BUILDERS.values():
        assert json.loads(json.dumps(builder(diffusion, 5).options))["steps"] == 5
