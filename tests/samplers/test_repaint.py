"""RePaint's schedule and jumps, and re-noising, against the paper's procedure, diffusers live and exact marginals."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import Diffusion, NoiseSchedule, sample
from fastdiff.process.diffusion import Prediction, Variance
from fastdiff.samplers import SPACINGS, ddim, ddpm
from fastdiff.samplers.repaint import jump_visits, renoise, repaint
from support.gaussian_tables import network_gains, run_table
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT, PEER_RUN

SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}
DATA_VARIANCE = 0.25
PLANS = [(250, 10, 10), (30, 3, 2), (20, 10, 3), (11, 10, 2), (10, 10, 4), (5, 1, 3), (2, 1, 2), (1, 10, 10)]


def marginal(alphas, sigmas):
    return alphas**2 * DATA_VARIANCE + sigmas**2


def single_steps(visits):
    """The visits with every level that a jump passes."""
    path = visits[:1]
    for before, after in itertools.pairwise(visits):
        path += range(before + 1, after + 1) if after > before else [after]
    return path


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_repaint_times_are_those_of_diffusers(plan):
    """As RePaint's own code, theirs lists the single steps; RePaint's ends with -1, the image."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    count, length, repeats = plan
    scheduler = diffusers.RePaintScheduler(1000)
    scheduler.set_timesteps(count, length, repeats)
    theirs = scheduler.timesteps.numpy() // (1000 // count)
    visits = jump_visits(count, length, repeats)
    assert single_steps(visits) == [*theirs, -1]
    table = repaint(Diffusion(SCHEDULES["linear"]), count, jump_length=length, jump_repeats=repeats, spacing="leading")
    np.testing.assert_array_equal(table["t"], np.array(visits[:-1]) * (1000 // count))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_repaint_counts_its_evaluations(plan):
    count, length, repeats = plan
    table = repaint(Diffusion(SCHEDULES["linear"]), count, jump_length=length, jump_repeats=repeats)
    jumps = (repeats - 1) * max(0, -((length - count) // length))
    assert table.num_evaluations == count + jumps * length
    assert len(table) == table.num_evaluations + jumps
    assert len(np.unique(table["t"])) == count
    assert (table.alphas[-1], table.sigmas[-1], table["s"][-1]) == (1, 0, 0)
    # The image is reached once, at the end.
    assert (table.alphas[:-1] < 1).all()


def test_repaint_reaches_each_place_as_often_as_asked():
    visits = jump_visits(30, 5, 4)
    for place in range(0, 25, 5):
        jumps = sum(a == place and b == place + 5 for a, b in itertools.pairwise(visits))
        assert jumps == 3


@pytest.mark.parametrize("variance", get_args(Variance))
def test_repaint_without_jumps_is_ddpm(variance):
    diffusion = Diffusion(SCHEDULES["cosine"], "v", variance)
    for options in ({"jump_repeats": 1}, {"jump_length": 25}):
        ours, plain = repaint(diffusion, 25, **options), ddpm(diffusion, 25)
        for name in plain.columns:
            np.testing.assert_array_equal(ours[name], plain[name])
        np.testing.assert_array_equal(ours.sigmas, plain.sigmas)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_repaint_jumps_keep_the_marginals(schedule, spacing):
    table = repaint(Diffusion(SCHEDULES[schedule]), 40, jump_length=7, jump_repeats=3, spacing=spacing)
    jumps = table["evaluate"] == 0
    assert jumps.sum() == 10
    spread = marginal(table.alphas, table.sigmas)
    after = table["cx"] ** 2 * spread[:-1] + table["s"] ** 2
    np.testing.assert_allclose(after[jumps], spread[1:][jumps], rtol=FLOAT64)
    np.testing.assert_allclose((table["cx"] * table.alphas[:-1])[jumps], table.alphas[1:][jumps], rtol=FLOAT64_PRODUCT)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_repaint_approaches_the_data_variance(schedule):
    diffusion = Diffusion(SCHEDULES[schedule])
    errors = []
    for count in (50, 200, 1000):
        table = repaint(diffusion, count, jump_length=5, jump_repeats=4, clip=None)
        errors.append(abs(run_table(table, diffusion)[0][-1] / DATA_VARIANCE - 1))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.04


def test_repaint_rows_equal_diffusers():
    """Their step with eta = 1 and an empty mask; unclipped, since they keep the network's eps where x0 is clipped.

    They evaluate a place before a jump and jump from the level below it, which for the lowest place is the image;
    the paper's code jumps from the place itself. So single rows are compared, not the order.
    """
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.RePaintScheduler(1000, eta=1.0, clip_sample=False)
    scheduler.set_timesteps(20, 4, 2)
    table = repaint(Diffusion(SCHEDULES["linear"]), 20, jump_length=4, jump_repeats=2, spacing="leading", clip=None)
    generator = torch.Generator().manual_seed(0)
    for row in np.flatnonzero(table["evaluate"]):
        x, m = torch.randn(2, 1, 4, 4, generator=generator), torch.randn(2, 1, 4, 4, generator=generator)
        state = generator.get_state()
        known = torch.zeros_like(x)
        t = int(table["t"][row])
        theirs = scheduler.step(m, t, x, known, known, generator=generator).prev_sample.numpy()
        generator.set_state(state)
        z = torch.randn(2, 1, 4, 4, generator=generator).numpy()
        pred = table["px"][row] * x.numpy() + table["pm"][row] * m.numpy()
        ours = table["cx"][row] * x.numpy() + table["c0"][row] * pred + table["s"][row] * z
        np.testing.assert_allclose(ours, theirs, atol=PEER_RUN * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize(("count", "fault"), [(1000, False), (250, True), (20, True)])
def test_repaint_diffusers_noises_too_much_in_a_jump(count, fault):
    """A fault of theirs: from the level below t up to t, undo_step takes the betas of t to t + n - 1, all too late."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.RePaintScheduler(1000)
    scheduler.set_timesteps(count, 1, 2)
    stride = 1000 // count
    t = 5 * stride
    theirs = float(scheduler.undo_step(torch.ones(1), t, torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(0)
    state, right = torch.ones(1), NoiseSchedule.linear(1000).betas[t - stride + 1 : t + 1]
    for beta in right:
        state = (1 - beta) ** 0.5 * state + beta**0.5 * torch.randn(1, generator=generator)
    assert (abs(theirs - float(state)) > 1e-5) == fault
    table = repaint(Diffusion(SCHEDULES["linear"]), count, jump_length=1, jump_repeats=2, spacing="leading")
    row = int(np.flatnonzero((table["evaluate"] == 0) & (table["t"] == t - stride))[0])
    assert table["cx"][row] == pytest.approx(np.sqrt(np.prod(1 - right)), rel=FLOAT64)
    assert table["s"][row] == pytest.approx(np.sqrt(1 - np.prod(1 - right)), rel=FLOAT64_DIFFERENCE)


def test_repaint_runs_in_the_engine_with_a_learned_variance():
    learned = Diffusion(SCHEDULES["linear"], variance="learned_range")
    options = {"jump_length": 2, "jump_repeats": 2}
    arguments = {"shape": (2, 1, 4, 4), "progress": False, "dtype": torch.float64}

    def model(x, t):
        return torch.cat([0.3 * x, torch.full_like(x, -1.0)], dim=1)

    ours = sample(model, repaint(learned, 9, **options), **arguments)
    fixed = sample(lambda x, t: 0.3 * x, repaint(Diffusion(SCHEDULES["linear"]), 9, **options), **arguments)
    torch.testing.assert_close(ours, fixed)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_repaint_holds_its_invariants(data):
    num_timesteps = data.draw(st.integers(1, 60))
    betas = data.draw(st.lists(st.floats(1e-6, 0.3), min_size=num_timesteps, max_size=num_timesteps))
    diffusion = Diffusion(
        NoiseSchedule.from_betas(betas),
        data.draw(st.sampled_from(get_args(Prediction))),
        data.draw(st.sampled_from(get_args(Variance))),
    )
    steps = data.draw(st.integers(1, num_timesteps))
    spacing = data.draw(st.sampled_from(SPACINGS))
    table = repaint(
        diffusion,
        steps,
        jump_length=data.draw(st.integers(1, 70)),
        jump_repeats=data.draw(st.integers(1, 4)),
        spacing=spacing,
    )
    evaluates = table["evaluate"] == 1
    assert table["s"][-1] == 0
    assert table["evaluate"][-1] == 1
    assert len(np.unique(table["t"])) == steps
    assert (np.diff(table.alphas)[evaluates] > 0).all()
    assert (np.diff(table.alphas)[~evaluates] < 0).all()
    assert np.isfinite(table.rows()[:, [i for i in range(26) if i != 4]]).all()
    strength = data.draw(st.floats(0.01, 1.0))
    back = renoise(diffusion, strength=strength, sampler=data.draw(st.sampled_from(["ddim", "ddpm"])))
    assert len(back) == 1 + back.num_evaluations
    assert back["s"][-1] == 0
    assert (back.alphas[0], back.sigmas[0]) == (1, 0)


def test_repaint_jumps_to_pure_noise():
    table = repaint(Diffusion(NoiseSchedule.jsd(12), "v"), jump_length=4, jump_repeats=2)
    row = np.flatnonzero(table["evaluate"] == 0)[0]
    assert (table["t"][row], table["cx"][row] > 0) == (4, True)
    up = repaint(Diffusion(NoiseSchedule.jsd(3), "v"), jump_length=1, jump_repeats=2)
    assert np.isfinite(up["cx"]).all()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_renoise_is_the_sampler_below_the_level(schedule, sampler):
    diffusion = Diffusion(SCHEDULES[schedule], "v")
    table = renoise(diffusion, 10, strength=0.6, sampler=sampler)
    plain = {"ddim": ddim, "ddpm": ddpm}[sampler](diffusion, timesteps=list(range(59, 600, 60)))
    alpha, sigma = diffusion.signal_noise()
    assert (table["evaluate"][0], table["t"][0]) == (0, 599)
    assert table["cx"][0] == pytest.approx(alpha[599], rel=FLOAT64)
    assert table["s"][0] == pytest.approx(sigma[599], rel=FLOAT64)
    for name in plain.columns:
        np.testing.assert_allclose(table[name][1:], plain[name], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)
    assert table.num_evaluations == 10


def test_renoise_returns_images_of_the_data():
    """The marginal is exact after row 0, and the sampler brings it back to the data's variance."""
    diffusion = Diffusion(SCHEDULES["cosine"])
    for options in ({"strength": 0.3}, {"timestep": 700}, {"strength": 1.0}):
        table = renoise(diffusion, 100, options={"clip": None}, **options)
        variances, _ = run_table(table, diffusion)
        np.testing.assert_allclose(variances[0], marginal(table.alphas[1], table.sigmas[1]), rtol=FLOAT64)
        # The sampler's own error with so many steps.
        assert variances[-1] == pytest.approx(DATA_VARIANCE, rel=0.05)


def test_renoise_keeps_more_of_the_image_at_less_strength():
    diffusion = Diffusion(SCHEDULES["cosine"])
    gains = [
        run_table(renoise(diffusion, 50, strength=s, options={"clip": None}), diffusion)[1] for s in (0.1, 0.5, 0.9)
    ]
    assert 1 > gains[0] > gains[1] > gains[2] > 0


def test_renoise_counts_strength_in_timesteps():
    diffusion = Diffusion(NoiseSchedule.cosine(10))
    assert [renoise(diffusion, 1, strength=s)["t"][0] for s in (0.01, 0.1, 0.5, 1.0)] == [0, 0, 4, 9]
    assert renoise(diffusion, 1)["t"][0] == 4
    assert len(renoise(diffusion, timestep=7)) == 1 + 8
    # Leading spacing starts below the level, and so does the noise.
    table = renoise(diffusion, 3, timestep=7, options={"spacing": "leading"})
    np.testing.assert_array_equal(table["t"], [4, 4, 2, 0])
    assert table["s"][0] == pytest.approx(diffusion.signal_noise()[1][4])


def test_renoise_runs_in_the_engine():
    diffusion = Diffusion(SCHEDULES["cosine"], "x0", "learned_range")

    def model(x, t):
        gains = torch.from_numpy(network_gains(diffusion, t.numpy(), DATA_VARIANCE)).reshape(-1, 1, 1, 1)
        return torch.cat([gains * x, torch.zeros_like(x)], dim=1)

    x = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (200, 1, 8, 8)))
    for sampler in ("ddpm", "ddim"):
        table = renoise(diffusion, 100, strength=0.5, sampler=sampler, options={"clip": None})
        back = sample(model, table, shape=tuple(x.shape), x_init=x, dtype=torch.float64, progress=False)
        # The variance of 12,800 numbers has a standard error of 1.3 %; the sampler has an error of its own.
        assert float(back.var()) == pytest.approx(DATA_VARIANCE, rel=0.06)
        assert 0.1 < float((back * x).mean() / DATA_VARIANCE) < 0.9


DIFFUSION = Diffusion(NoiseSchedule.cosine(10))
BAD = {
    "steps": (repaint, {"steps": 11}, "steps must be"),
    "length": (repaint, {"jump_length": 0}, "jump_length must be"),
    "repeats": (repaint, {"jump_repeats": 1.5}, "jump_repeats must be"),
    "clip": (repaint, {"clip": 0}, "clip must be"),
    "variance": (repaint, {"variance": "learned"}, "cannot be sampled"),
    "strength": (renoise, {"strength": 0.0}, r"strength must be in \(0, 1\]"),
    "much strength": (renoise, {"strength": 1.1}, "strength must be"),
    "timestep": (renoise, {"timestep": 10}, "from 0 to 9"),
    "both": (renoise, {"timestep": 1, "strength": 0.5}, "not both"),
    "few timesteps": (renoise, {"steps": 6, "strength": 0.5}, "steps must be.*the 5 timesteps from t = 4 down"),
    "sampler": (renoise, {"sampler": "dimm"}, "did you mean 'ddim'"),
    "option": (renoise, {"options": {"etaa": 1}}, "unknown key 'etaa'"),
}


@pytest.mark.parametrize("case", BAD)
def test_repaint_and_renoise_refuse(case):
    builder, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        builder(DIFFUSION, **options)
