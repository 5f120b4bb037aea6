"""Langevin samplers against the closed forms of the discretised chain, and Song's step of the batch norms."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import Diffusion, NoiseSchedule, sample
from fastdiff.process.diffusion import Prediction
from fastdiff.samplers import SPACINGS, ddpm
from fastdiff.samplers.langevin import annealed_langevin, langevin, predictor_corrector
from support.gaussian_tables import network_gains, run_table
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_RUN

SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}
DATA_VARIANCE = 0.25


def level_variance(diffusion, t):
    s = diffusion.schedule
    return s.alphas_cumprod[t] * DATA_VARIANCE + s.one_minus_alphas_cumprod[t]


@pytest.mark.parametrize("snr", [0.16, 0.5, 0.95])
@pytest.mark.parametrize("timestep", [100, 500, 990])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_langevin_leaves_the_stationary_variance_of_its_step(schedule, timestep, snr):
    """x' = (1 - d / V) x + sqrt(2 d) z leaves v = V / (1 - d / (2 V)), from any start."""
    diffusion = Diffusion(SCHEDULES[schedule])
    table = langevin(diffusion, 4000, timestep=timestep, snr=snr, denoise=False, clip=None)
    total = level_variance(diffusion, timestep)
    d = 2 * snr**2 * diffusion.schedule.one_minus_alphas_cumprod[timestep]
    variances, gain = run_table(table, diffusion, start_variance=30.0)
    assert variances[-1] == pytest.approx(total / (1 - d / (2 * total)), rel=FLOAT64_DIFFERENCE)
    # A power that may be no number but 0 in float64.
    assert gain == pytest.approx((1 - d / total) ** 4000, rel=FLOAT64_RUN, abs=1e-200)
    # The stationary variance is kept, not only approached.
    kept, _ = run_table(table, diffusion, start_variance=total / (1 - d / (2 * total)))
    np.testing.assert_allclose(kept, kept[0], rtol=FLOAT64_DIFFERENCE)


def test_langevin_reaches_the_exact_variance_as_the_step_shrinks():
    diffusion = Diffusion(SCHEDULES["cosine"])
    total = level_variance(diffusion, 500)
    errors = []
    for step_size in (0.04, 0.02, 0.01):
        table = langevin(diffusion, 4000, timestep=500, step_size=step_size, denoise=False, clip=None)
        errors.append(run_table(table, diffusion)[0][-1] - total)
    # First order in the step: halves with it, up to its square.
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2, rtol=0.05)


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_langevin_is_one_chain_for_every_prediction(prediction):
    diffusion = Diffusion(SCHEDULES["cosine"], prediction)
    seen = run_table(langevin(diffusion, 20, timestep=300, clip=None), diffusion)[0]
    eps = Diffusion(SCHEDULES["cosine"])
    np.testing.assert_allclose(
        seen, run_table(langevin(eps, 20, timestep=300, clip=None), eps)[0], rtol=FLOAT64_DIFFERENCE
    )


def test_langevin_rows_repeat_one_time_and_denoise_last():
    diffusion = Diffusion(SCHEDULES["cosine"])
    table = langevin(diffusion, 7)
    assert len(table) == table.num_evaluations == 7
    assert set(table["t"]) == {495.0}
    assert abs(diffusion.schedule.log_snr[495]) < 0.01
    assert (table["s"][:-1] > 0).all()
    assert table["s"][-1] == 0
    assert (table.alphas[-1], table.sigmas[-1]) == (1, 0)
    plain = langevin(diffusion, 7, denoise=False)
    assert (plain["s"] > 0).all()
    np.testing.assert_allclose(plain.alphas, np.full(8, diffusion.signal_noise()[0][495]), rtol=FLOAT64)
    # More evaluations than timesteps make sense here.
    assert len(langevin(diffusion, 1500)) == 1500
    assert len(langevin(diffusion)) == 1000


def test_langevin_step_is_songs_for_exact_noise():
    """His step 2 (snr |z| / |score|)^2 from norms of the batch, for a score that is -eps / sigma with true noise."""
    diffusion = Diffusion(SCHEDULES["linear"])
    _, sigma = diffusion.signal_noise()
    rng = np.random.default_rng(0)
    z, eps = rng.normal(size=(2, 200_000))
    theirs = 2 * (0.16 * np.linalg.norm(z) / np.linalg.norm(-eps / sigma[400])) ** 2
    table = langevin(diffusion, 2, timestep=400, snr=0.16)
    # Squared norms of 200,000 numbers each: their quotient has a standard error of 0.45 %.
    assert table["s"][0] ** 2 / 2 == pytest.approx(theirs, rel=0.01)
    # The row is x + d score + sqrt(2 d) z for an x0 that is not clipped.
    d = table["s"][0] ** 2 / 2
    x, m = 0.4, -0.3
    pred = table["px"][0] * x + table["pm"][0] * m
    row = table["cx"][0] * x + table["c0"][0] * pred
    assert row == pytest.approx(x - d * m / sigma[400], rel=FLOAT64)


def test_langevin_samples_have_the_closed_form_variance():
    diffusion = Diffusion(SCHEDULES["cosine"])

    def model(x, t):
        return torch.from_numpy(network_gains(diffusion, t.numpy(), DATA_VARIANCE)).reshape(-1, 1, 1, 1) * x

    table = langevin(diffusion, 60, timestep=400, snr=0.5, denoise=False, clip=None)
    x = sample(model, table, shape=(500, 1, 8, 8), dtype=torch.float64, progress=False)
    expected = run_table(table, diffusion, start_variance=1.0)[0][-1]
    count = x.numel()
    assert float(x.mean()) == pytest.approx(0, abs=4 * np.sqrt(expected / count))
    assert float(x.var()) == pytest.approx(expected, rel=4 * np.sqrt(2 / count))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_annealed_langevin_approaches_the_data_variance(schedule):
    diffusion = Diffusion(SCHEDULES[schedule])
    errors = []
    for steps in (100, 1000, 10_000, 100_000):
        table = annealed_langevin(diffusion, steps, clip=None)
        errors.append(abs(run_table(table, diffusion)[0][-1] - DATA_VARIANCE) / DATA_VARIANCE)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05


def test_annealed_langevin_at_one_level_is_langevin():
    diffusion = Diffusion(SCHEDULES["cosine"])
    a = annealed_langevin(diffusion, 9, timesteps=[600], snr=0.3)
    b = langevin(diffusion, 9, timestep=600, snr=0.3)
    for name in ("t", "px", "pm", "clip", "cx", "c0", "s"):
        np.testing.assert_array_equal(a[name], b[name])


def test_annealed_langevin_shares_its_rows_out():
    diffusion = Diffusion(SCHEDULES["linear"])
    table = annealed_langevin(diffusion, 12, num_levels=4)
    # 11 Langevin rows at 4 levels, then one that denoises.
    times, counts = np.unique(table["t"], return_counts=True)
    np.testing.assert_array_equal(times, [249, 499, 749, 999])
    np.testing.assert_array_equal(counts, [3 + 1, 3, 3, 2])
    for steps in (1, 2, 3, 10, 50, 101):
        table = annealed_langevin(diffusion, steps)
        assert table.num_evaluations == len(table) == steps
        assert table["s"][-1] == 0
        assert (np.diff(table["t"]) <= 0).all()
        assert (np.diff(table.alphas) >= 0).all()
    # A level for each of few rows, and for every two of many.
    assert len(np.unique(annealed_langevin(diffusion, 32)["t"])) == 31
    assert len(np.unique(annealed_langevin(diffusion, 101)["t"])) == 50


@pytest.mark.parametrize("corrections", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_predictor_corrector_approaches_the_data_variance(schedule, corrections):
    diffusion = Diffusion(SCHEDULES[schedule])
    errors = []
    for steps in (20, 200, 1000):
        table = predictor_corrector(diffusion, steps * (1 + corrections), corrections=corrections, clip=None)
        errors.append(abs(run_table(table, diffusion)[0][-1] - DATA_VARIANCE) / DATA_VARIANCE)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_predictor_corrector_improves_on_its_predictor(schedule):
    """At the same levels: the corrector restores variance that fixed_small leaves out."""
    diffusion = Diffusion(SCHEDULES[schedule])
    error = [
        abs(run_table(table, diffusion)[0][-1] - DATA_VARIANCE)
        for table in (
            ddpm(diffusion, 50, clip=None),
            predictor_corrector(diffusion, 100, corrections=1, clip=None),
            predictor_corrector(diffusion, 200, corrections=3, clip=None),
        )
    ]
    assert error[0] > error[1] > error[2]


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_predictor_corrector_without_corrections_is_ddpm(variance):
    diffusion = Diffusion(SCHEDULES["linear"], variance=variance)
    ours, plain = predictor_corrector(diffusion, 30, corrections=0), ddpm(diffusion, 30)
    for name in plain.columns:
        np.testing.assert_array_equal(ours[name], plain[name])
    np.testing.assert_array_equal(ours.alphas, plain.alphas)
    assert ours.learned_variance == plain.learned_variance


def test_predictor_corrector_counts_every_evaluation():
    diffusion = Diffusion(NoiseSchedule.linear(40))
    for corrections in range(5):
        for steps in range(1, 40 * (1 + corrections) + 1):
            table = predictor_corrector(diffusion, steps, corrections=corrections)
            assert table.num_evaluations == len(table) == steps
            assert table["s"][-1] == 0
            times, counts = np.unique(table["t"], return_counts=True)
            assert (counts[1:-1] == 1 + corrections).all()
            assert times[-1] == 39
            if len(times) > 1:
                assert counts[0] == 1 + corrections
                assert 1 <= counts[-1] <= 1 + corrections
    assert len(predictor_corrector(diffusion, corrections=2)) == 40 + 2 * 39
    assert len(predictor_corrector(diffusion, timesteps=[5, 20, 39], corrections=2)) == 3 + 2 * 2
    assert len(predictor_corrector(diffusion, 9, timesteps=[5, 20, 39], corrections=2)) == 9


def test_predictor_corrector_with_a_learned_variance_runs():
    """The corrector's noise is its own: its rows leave the model's variance out."""
    learned = Diffusion(NoiseSchedule.linear(50), variance="learned_range")
    table = predictor_corrector(learned, 9)
    fixed = predictor_corrector(Diffusion(NoiseSchedule.linear(50)), 9)

    def model(x, t):
        return torch.cat([0.3 * x, torch.full_like(x, -1.0)], dim=1)

    options = {"shape": (2, 1, 4, 4), "progress": False, "dtype": torch.float64}
    ours = sample(model, table, **options)
    torch.testing.assert_close(ours, sample(lambda x, t: 0.3 * x, fixed, **options))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_langevin_samplers_hold_their_invariants(data):
    num_timesteps = data.draw(st.integers(1, 60))
    # Enough signal stays at the end that one beta can say it in float64.
    betas = data.draw(st.lists(st.floats(1e-6, 0.3), min_size=num_timesteps, max_size=num_timesteps))
    diffusion = Diffusion(NoiseSchedule.from_betas(betas), data.draw(st.sampled_from(get_args(Prediction))))
    steps = data.draw(st.integers(1, num_timesteps))
    spacing = data.draw(st.sampled_from(SPACINGS))
    snr = data.draw(st.floats(0.01, 0.99))
    tables = [
        langevin(diffusion, steps, snr=snr),
        annealed_langevin(diffusion, steps, snr=snr, spacing=spacing),
        predictor_corrector(diffusion, steps, snr=snr, spacing=spacing, corrections=data.draw(st.integers(0, 4))),
    ]
    for table in tables:
        assert table.num_evaluations == len(table) == steps
        assert table["s"][-1] == 0
        assert (np.diff(table["t"]) <= 0).all()
        assert (np.diff(table.alphas) >= 0).all()
        assert (table.alphas[-1], table.sigmas[-1]) == (1, 0)


DIFFUSION = Diffusion(NoiseSchedule.cosine(10))
BAD = {
    "no steps": (langevin, {"steps": 0}, "steps must be"),
    "half a step": (langevin, {"steps": 1.5}, "steps must be"),
    "snr": (langevin, {"snr": 1.0}, r"snr must be in \(0, 1\)"),
    "no snr": (langevin, {"snr": 0.0}, "snr must be"),
    "snr and step": (langevin, {"snr": 0.1, "step_size": 0.1}, "not both"),
    "step": (langevin, {"step_size": 5.0}, "the chain diverges, got 5.0"),
    "timestep": (langevin, {"timestep": 10}, "from 0 to 9"),
    "fraction": (langevin, {"timestep": 1.5}, "whole number"),
    "clip": (langevin, {"clip": -1.0}, "clip must be"),
    "levels": (annealed_langevin, {"num_levels": 0}, "num_levels must be"),
    "many levels": (annealed_langevin, {"num_levels": 11}, "num_levels must be"),
    "levels and timesteps": (annealed_langevin, {"num_levels": 1, "timesteps": [1]}, "not both"),
    "few steps": (annealed_langevin, {"steps": 3, "timesteps": [1, 2, 3]}, "take at least 4 steps"),
    "annealed snr": (annealed_langevin, {"snr": -0.1}, "snr must be"),
    "spacing": (annealed_langevin, {"steps": 5, "spacing": "log_snr"}, "did you mean 'logsnr'"),
    "corrections": (predictor_corrector, {"corrections": -1}, "corrections must be"),
    "many steps": (predictor_corrector, {"steps": 21}, "allow steps from 1 to 20, got 21"),
    "steps for timesteps": (predictor_corrector, {"steps": 2, "timesteps": [1, 5]}, "allow steps from 3 to 4, got 2"),
    "pc snr": (predictor_corrector, {"snr": 2}, "snr must be"),
    "pc variance": (predictor_corrector, {"variance": "learned"}, "cannot be sampled"),
}


@pytest.mark.parametrize("case", BAD)
def test_langevin_samplers_refuse(case):
    builder, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        builder(DIFFUSION, **options)
