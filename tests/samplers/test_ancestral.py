"""ddpm and ddim against the papers' formulas, exact Gaussian marginals and diffusers."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import CoefficientTable, Diffusion, NoiseSchedule, samplers
from fastdiff.process.diffusion import Prediction, Variance
from fastdiff.samplers import SPACINGS, spaced_indices

SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}


def gaussian_moments(table, diffusion, data_variance):
    """Variance of the state after each row when the network is exact for x0 ~ N(0, data_variance).

    Every row is linear in the state then, so the variance propagates by arithmetic; clip must be off.
    """
    variance, seen = 1.0, []
    abar = dict(zip(diffusion.schedule.timesteps, diffusion.schedule.alphas_cumprod, strict=True))
    for row in range(len(table)):
        a = abar[table["t"][row]]
        total = a * data_variance + 1 - a
        eps = np.sqrt(1 - a) / total
        x0 = np.sqrt(a) * data_variance / total
        outputs = {"eps": eps, "x0": x0, "v": np.sqrt(a) * eps - np.sqrt(1 - a) * x0, "score": -1 / total}
        m = outputs[diffusion.prediction]
        pred = table["px"][row] + table["pm"][row] * m
        gain = table["cx"][row] + table["cm"][row] * m + table["c0"][row] * pred
        variance = gain**2 * variance + table["s"][row] ** 2
        seen.append(variance)
    return np.array(seen)


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_with_the_exact_posterior_variance_reproduces_the_marginals(prediction, schedule):
    """For Gaussian data the exact reverse step is Gaussian; with its variance every marginal is exact, row by row."""
    data_variance = 0.25
    # alpha of the cosine schedule ends at 5e-5, which amplifies the rounding of px + pm m by its inverse.
    diffusion = Diffusion(SCHEDULES[schedule], prediction)
    table = samplers.ddpm(diffusion, clip=None)
    s = SCHEDULES[schedule]
    a, prev = s.alphas_cumprod, s.alphas_cumprod_prev
    x0_variance = data_variance * (1 - a) / (a * data_variance + 1 - a)
    exact = s.posterior_variance + s.posterior_mean_coef1**2 * x0_variance
    columns = {name: table[name] for name in ("t", "px", "pm", "cx", "c0")}
    exact_table = CoefficientTable(columns | {"s": np.sqrt(exact[::-1])})
    seen = gaussian_moments(exact_table, diffusion, data_variance)
    start = a[-1] * data_variance + 1 - a[-1]
    expected = (prev * data_variance + 1 - prev)[::-1]
    # The run starts from variance 1 and not from the exact start, a difference that decays with the signal.
    np.testing.assert_allclose(seen, expected, rtol=abs(1 - start) + 1e-9)


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
        np.testing.assert_allclose(a[name], b[name], atol=1e-10, err_msg=name)


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
            np.testing.assert_allclose(results[0], results[1], rtol=1e-7)


@pytest.mark.parametrize("variance", get_args(Variance))
def test_ddpm_variance_types(variance):
    diffusion = Diffusion(SCHEDULES["linear"], variance=variance)
    table = samplers.ddpm(diffusion, 10)
    chosen = diffusion.subset(spaced_indices(1000, 10)).schedule
    assert table["s"][-1] == 0
    assert table.learned_variance == (variance in ("learned", "learned_range"))
    if variance == "fixed_small":
        np.testing.assert_allclose(table["s"][:-1] ** 2, chosen.posterior_variance[:0:-1])
    elif variance == "fixed_large":
        np.testing.assert_allclose(table["s"][:-1] ** 2, chosen.betas[:0:-1])
    else:
        assert (table["s"][:-1] == 1).all()
    if variance == "learned_range":
        np.testing.assert_allclose(np.exp(table["log_max"]), chosen.betas[::-1])
        np.testing.assert_allclose(np.exp(table["log_min"][:-1]), chosen.posterior_variance[:0:-1])


def _our_row(table, row, x, m, z):
    pred = np.clip(table["px"][row] * x + table["pm"][row] * m, -table["clip"][row], table["clip"][row])
    return table["cx"][row] * x + table["cm"][row] * m + table["c0"][row] * pred + table["s"][row] * z


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_equals_diffusers(prediction, clip, spacing, variance):
    """Their linspace is left out: its steps go to t - T // n and not to the next timestep of the list, a fault."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.DDPMScheduler(
        1000, prediction_type=prediction, clip_sample=clip, timestep_spacing=spacing, variance_type=variance
    )
    scheduler.set_timesteps(20)
    ours = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[prediction]
    diffusion = Diffusion(SCHEDULES["linear"], ours, variance)
    table = samplers.ddpm(diffusion, 20, spacing=spacing, clip=1.0 if clip else None)
    np.testing.assert_array_equal(table["t"], scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    for row, t in enumerate(scheduler.timesteps):
        x, m = torch.randn(2, 1, 4, 4, generator=generator), torch.randn(2, 1, 4, 4, generator=generator)
        state = generator.get_state()
        theirs = scheduler.step(m, t, x, generator=generator).prev_sample.numpy()
        generator.set_state(state)
        z = torch.randn(2, 1, 4, 4, generator=generator).numpy()
        mine = _our_row(table, row, x.numpy(), m.numpy(), z)
        if row == len(table) - 1 and t > 0:
            # A fault of theirs: the last step draws noise when its t is above 0.
            theirs = theirs - float(scheduler._get_variance(t)) ** 0.5 * z
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * max(1, np.abs(theirs).max()))


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
        np.testing.assert_allclose(_our_row(table, row, x, m, z), theirs, atol=1e-4 * max(1, np.abs(theirs).max()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ddpm_and_ddim_hold_their_invariants(data):
    num_timesteps = data.draw(st.integers(1, 60))
    betas = data.draw(st.lists(st.floats(1e-6, 0.3), min_size=num_timesteps, max_size=num_timesteps))
    diffusion = Diffusion(
        NoiseSchedule.from_betas(betas),
        data.draw(st.sampled_from(get_args(Prediction))),
        data.draw(st.sampled_from(get_args(Variance))),
    )
    steps = data.draw(st.integers(1, num_timesteps))
    name = data.draw(st.sampled_from(["ddpm", "ddim"]))
    spacing = data.draw(st.sampled_from(SPACINGS))
    table = samplers.build(name, diffusion, steps, spacing=spacing)
    assert len(table) == steps
    assert table["s"][-1] == 0
    assert (np.diff(table["t"]) < 0).all()
    assert np.isfinite(table.rows()[:, [i for i in range(26) if i != 4]]).all()
    assert (np.diff(table.alphas) > 0).all()
    assert table.alphas[-1] == 1
    assert table.sigmas[-1] == 0


@given(st.integers(1, 400), st.data())
def test_spacings_are_strictly_increasing(num_timesteps, data):
    steps = data.draw(st.integers(1, num_timesteps))
    for spacing in SPACINGS:
        chosen = spaced_indices(num_timesteps, steps, spacing)
        assert len(chosen) == steps
        assert (np.diff(chosen) > 0).all()
        assert chosen[0] >= 0
        assert chosen[-1] < num_timesteps
        if spacing in ("trailing", "linspace"):
            assert chosen[-1] == num_timesteps - 1


def test_spacings_take_explicit_lists_in_both_orders():
    assert spaced_indices(10, timesteps=[9, 4, 0]) == [0, 4, 9]
    assert spaced_indices(10, 3, timesteps=[0, 4, 9]) == [0, 4, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 11}, "steps must be"),
        ({"steps": 2.5}, "steps must be"),
        ({"steps": 5, "spacing": "trailling"}, "did you mean 'trailing'"),
        ({"timesteps": [3, 3]}, "strictly monotone"),
        ({"timesteps": [3, 1, 2]}, "strictly monotone"),
        ({"timesteps": [0, 10]}, r"in \[0, 10\)"),
        ({"timesteps": []}, "non-empty"),
        ({"timesteps": [0.5]}, "whole numbers"),
        ({"steps": 2, "timesteps": [1]}, "disagrees"),
        ({"clip": 0.0}, "clip must be"),
        ({"clip": -1.0}, "clip must be"),
        ({"eta": 0.5}, "unknown key 'eta'"),
        ({"variance": "learned"}, "cannot be sampled"),
    ],
    ids=str,
)
def test_ddpm_refuses(options, message):
    diffusion = Diffusion(NoiseSchedule.cosine(10))
    with pytest.raises(ValueError, match=message):
        samplers.build("ddpm", diffusion, **options)


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


def test_samplers_unknown_name_suggests():
    with pytest.raises(ValueError, match="did you mean 'ddim'"):
        samplers.build("dimm", Diffusion(NoiseSchedule.cosine(10)))
