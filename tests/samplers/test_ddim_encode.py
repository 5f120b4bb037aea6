"""DDIM reversed: measured order of the round trip, exact latents, OpenAI's formula and diffusers live."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import Diffusion, NoiseSchedule, sample
from fastdiff.process.diffusion import Prediction
from fastdiff.samplers import SPACINGS, ddim
from fastdiff.samplers.ddim import ddim_encode
from support.gaussian_tables import network_gains, run_table
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_RUN, ORDER, PEER_RUN

SCHEDULES = {"linear": NoiseSchedule.linear(4000), "cosine": NoiseSchedule.cosine(4000)}
DATA_VARIANCE = 0.25
COUNTS = np.array([200, 400, 800, 1600])


def exact_latent(diffusion):
    """What the probability-flow ODE multiplies an image by: the state keeps its rank, so the ratio of deviations."""
    s = diffusion.schedule
    return np.sqrt((s.alphas_cumprod[-1] * DATA_VARIANCE + s.one_minus_alphas_cumprod[-1]) / DATA_VARIANCE)


def slope(errors):
    return -np.polyfit(np.log(COUNTS), np.log(np.abs(errors)), 1)[0]


@pytest.mark.parametrize("evaluate_at", ["start", "end"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_encode_then_decode_returns_the_image_at_first_order(schedule, evaluate_at):
    diffusion = Diffusion(SCHEDULES[schedule])
    trips, latents = [], []
    for count in COUNTS:
        _, there = run_table(ddim_encode(diffusion, int(count), evaluate_at=evaluate_at), diffusion)
        _, back = run_table(ddim(diffusion, int(count), clip=None), diffusion)
        trips.append(there * back - 1)
        latents.append(there - exact_latent(diffusion))
    assert abs(slope(trips) - 1) < ORDER
    assert abs(slope(latents) - 1) < ORDER


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_encode_at_the_end_of_the_step_is_the_more_accurate(schedule):
    diffusion = Diffusion(SCHEDULES[schedule])
    error = {
        where: run_table(ddim_encode(diffusion, 200, evaluate_at=where), diffusion)[1] - exact_latent(diffusion)
        for where in ("start", "end")
    }
    assert abs(error["end"]) < 0.3 * abs(error["start"])


@pytest.mark.parametrize("evaluate_at", ["start", "end"])
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_encode_is_one_map_for_every_prediction(prediction, evaluate_at):
    """The clean level included, where an x0 network takes its eps from the coefficients of the lowest timestep."""
    for schedule in SCHEDULES.values():
        maps = []
        for kind in ("eps", prediction):
            diffusion = Diffusion(schedule, kind)
            maps.append(run_table(ddim_encode(diffusion, 17, evaluate_at=evaluate_at), diffusion)[1])
        np.testing.assert_allclose(maps[1], maps[0], rtol=FLOAT64_RUN)


def test_encode_levels_and_times():
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    start = ddim_encode(diffusion, 5)
    np.testing.assert_array_equal(start["t"], [199, 199, 399, 599, 799])
    np.testing.assert_array_equal(ddim_encode(diffusion, 5, evaluate_at="end")["t"], [199, 399, 599, 799, 999])
    alpha, sigma = diffusion.signal_noise()
    np.testing.assert_allclose(start.alphas, [1, *alpha[199::200]])
    np.testing.assert_allclose(start.sigmas, [0, *sigma[199::200]])
    decoder = ddim(diffusion, 5)
    np.testing.assert_allclose(start.alphas[::-1], decoder.alphas, rtol=FLOAT64)
    assert (start.order, start.is_stochastic, start.init_scale) == (1, False, 0.0)


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("clip", [None, 1.0])
def test_encode_rows_are_openais_formula(prediction, clip):
    """ddim_reverse_sample, from their formula: x_0 clipped, eps re-derived from it, both taken to the next level.

    Row 0 is ours: theirs takes a clean image for one at the lowest timestep, and from the highest one they go on to
    pure noise (alphas_cumprod_next ends in 0), one level more than their own decoder starts from.
    """
    diffusion = Diffusion(NoiseSchedule.linear(1000), prediction)
    table = ddim_encode(diffusion, 20, clip=clip)
    chosen = np.arange(49, 1000, 50)
    abar = diffusion.schedule.alphas_cumprod[chosen]
    px, pm = (values[chosen] for values in diffusion.x0_coefficients())
    rng = np.random.default_rng(0)
    for row in range(1, 20):
        x, m = rng.normal(size=(2, 6))
        at = row - 1
        pred_xstart = px[at] * x + pm[at] * m
        if clip is not None:
            pred_xstart = np.clip(pred_xstart, -1, 1)
        eps = (np.sqrt(1 / abar[at]) * x - pred_xstart) / np.sqrt(1 / abar[at] - 1)
        theirs = pred_xstart * np.sqrt(abar[at + 1]) + np.sqrt(1 - abar[at + 1]) * eps
        np.testing.assert_allclose(our_row(table, row, x, m), theirs, rtol=FLOAT64_DIFFERENCE, atol=FLOAT64_DIFFERENCE)


def our_row(table, row, x, m):
    pred = np.clip(table["px"][row] * x + table["pm"][row] * m, -table["clip"][row], table["clip"][row])
    return table["cx"][row] * x + table["c0"][row] * pred


def inverse_scheduler(steps, prediction="epsilon", spacing="leading"):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.DDIMInverseScheduler(
        1000, prediction_type=prediction, timestep_spacing=spacing, clip_sample=False
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_encode_equals_diffusers(steps, spacing):
    """With eps prediction and steps that divide T, their scheduler is the table that evaluates at the step's end."""
    scheduler = inverse_scheduler(steps, spacing=spacing)
    table = ddim_encode(Diffusion(NoiseSchedule.linear(1000)), steps, spacing=spacing, evaluate_at="end")
    np.testing.assert_array_equal(table["t"], scheduler.timesteps.numpy())
    rng = np.random.default_rng(0)
    for row, t in enumerate(scheduler.timesteps):
        x, m = rng.normal(size=(2, 2, 1, 4, 4)).astype(np.float32)
        theirs = scheduler.step(torch.from_numpy(m), t, torch.from_numpy(x)).prev_sample.numpy()
        np.testing.assert_allclose(our_row(table, row, x, m), theirs, atol=PEER_RUN)


def their_latent(scheduler, diffusion):
    x = torch.ones(1, 1, dtype=torch.float64)
    for t in scheduler.timesteps:
        x = scheduler.step(network_gains(diffusion, float(t), DATA_VARIANCE) * x, t, x).prev_sample
    return float(x)


def test_encode_diffusers_reads_v_with_the_coefficients_of_another_level():
    """A fault of theirs: v predicted at the end of a step is turned into x0 and eps by the level of its start."""
    diffusion = Diffusion(NoiseSchedule.linear(1000), "v")
    theirs = their_latent(inverse_scheduler(50, "v_prediction", "trailing"), diffusion)
    ours = run_table(ddim_encode(diffusion, 50, evaluate_at="end"), diffusion)[1]
    exact = exact_latent(diffusion)
    assert abs(theirs - exact) > 8 * abs(ours - exact)


def test_encode_diffusers_gives_nan_for_x0_networks():
    """A fault of theirs: eps from x0 at the clean level divides by 0."""
    diffusion = Diffusion(NoiseSchedule.linear(1000), "x0")
    assert np.isnan(their_latent(inverse_scheduler(50, "sample", "trailing"), diffusion))
    assert np.isfinite(run_table(ddim_encode(diffusion, 50), diffusion)[1])


def test_encode_diffusers_leaves_the_levels_where_steps_do_not_divide_t():
    """A fault of theirs: they start each step at t - T // n: with 3 trailing steps at 333, which they never reached."""
    scheduler = inverse_scheduler(3, spacing="trailing")
    assert scheduler.timesteps.tolist() == [332, 666, 999]
    alpha, sigma = Diffusion(NoiseSchedule.linear(1000)).signal_noise()
    x, m = torch.tensor([0.7]), torch.tensor([-1.1])
    theirs = float(scheduler.step(m, torch.tensor(666), x).prev_sample)
    for level, same in ((332, False), (333, True)):
        x0 = (0.7 + sigma[level] * 1.1) / alpha[level]
        # Far below what another level's coefficients would give.
        assert (abs(theirs - (alpha[666] * x0 - sigma[666] * 1.1)) < 1e-5) == same


def test_encode_runs_and_decodes_in_the_engine():
    diffusion = Diffusion(NoiseSchedule.cosine(1000), "v")

    def model(x, t):
        return torch.from_numpy(network_gains(diffusion, t.numpy(), DATA_VARIANCE)).reshape(-1, 1, 1, 1) * x

    x = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (2, 1, 4, 4)))
    options = {"shape": tuple(x.shape), "dtype": torch.float64, "progress": False}
    noise = sample(model, ddim_encode(diffusion, 200, evaluate_at="end"), x_init=x, **options)
    back = sample(model, ddim(diffusion, 200, clip=None), x_init=noise, **options)
    # DDIM undoes itself to first order only.
    torch.testing.assert_close(back, x, rtol=0.02, atol=0)
    # The flow takes a deviation of 1/2 to 1, and DDIM does so to first order.
    assert float(noise.std()) == pytest.approx(2 * float(x.std()), rel=0.01)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_encode_holds_its_invariants(data):
    num_timesteps = data.draw(st.integers(1, 60))
    betas = data.draw(st.lists(st.floats(1e-6, 0.3), min_size=num_timesteps, max_size=num_timesteps))
    diffusion = Diffusion(NoiseSchedule.from_betas(betas), data.draw(st.sampled_from(get_args(Prediction))))
    steps = data.draw(st.integers(1, num_timesteps))
    evaluate_at = data.draw(st.sampled_from(["start", "end"]))
    clip = data.draw(st.sampled_from([None, 1.0]))
    spacing = data.draw(st.sampled_from(SPACINGS))
    table = ddim_encode(diffusion, steps, spacing=spacing, evaluate_at=evaluate_at, clip=clip)
    assert table.num_evaluations == len(table) == steps
    assert not table.is_stochastic
    assert (np.diff(table["t"])[1:] > 0).all()
    assert (np.diff(table.alphas) < 0).all()
    assert (table.alphas[0], table.sigmas[0]) == (1, 0)


def test_encode_reaches_pure_noise_where_the_schedule_does():
    table = ddim_encode(Diffusion(NoiseSchedule.jsd(10), "v"))
    assert (table.alphas[-1], table.sigmas[-1]) == (0, 1)
    # No network is asked at the last level, so eps is enough.
    assert ddim_encode(Diffusion(NoiseSchedule.jsd(10), "eps")).alphas[-1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 11}, "steps must be"),
        ({"spacing": "trailling"}, "did you mean 'trailing'"),
        ({"timesteps": [1, 1]}, "strictly monotone"),
        ({"evaluate_at": "middle"}, "evaluate_at must be"),
        ({"clip": 0.0}, "clip must be"),
    ],
    ids=str,
)
def test_encode_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        ddim_encode(Diffusion(NoiseSchedule.cosine(10)), **options)


def test_encode_refuses_eps_where_no_signal_is_left():
    with pytest.raises(ValueError, match="leaves no signal"):
        ddim_encode(Diffusion(NoiseSchedule.jsd(10), "eps"), evaluate_at="end")
