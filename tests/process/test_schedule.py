"""NoiseSchedule against closed forms and the papers' formulas."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from fastdiff import NoiseSchedule
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT


def test_schedule_linear_matches_ho():
    schedule = NoiseSchedule.linear(1000)
    np.testing.assert_array_equal(schedule.betas, np.linspace(1e-4, 0.02, 1000))
    # Ho et al., section 4: L_T is about 1e-5 bits per dimension for data of unit scale.
    abar = schedule.alphas_cumprod[-1]
    # "About" is all that the paper says.
    assert 0.5 * (abar - abar - math.log1p(-abar)) / math.log(2) < 5e-5
    np.testing.assert_array_equal(NoiseSchedule.linear(4000).betas, np.linspace(1e-4 / 4, 0.02 / 4, 4000))


def test_schedule_cosine_matches_its_formula():
    schedule = NoiseSchedule.cosine(1000)

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(t + 1) / f(0) for t in range(900)]
    np.testing.assert_allclose(schedule.alphas_cumprod[:900], expected, rtol=FLOAT64_PRODUCT)
    assert schedule.betas[-1] == 0.999


def test_schedule_sigmoid_matches_its_formula():
    schedule = NoiseSchedule.sigmoid(500)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = [(sigmoid(3 - 6 * (t + 1) / 500) - sigmoid(-3)) / (sigmoid(3) - sigmoid(-3)) for t in range(490)]
    np.testing.assert_allclose(schedule.alphas_cumprod[:490], expected, rtol=FLOAT64_DIFFERENCE)


def test_schedule_jsd_leaves_no_signal():
    schedule = NoiseSchedule.jsd(10)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.arange(9, -1, -1) / 10, atol=FLOAT64)
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.log_snr[-1] == -math.inf
    assert not np.isnan(schedule.posterior_mean_coef1).any()


def test_schedule_keeps_precision_near_zero_noise():
    schedule = NoiseSchedule.from_betas([1e-12, 1e-12])
    np.testing.assert_allclose(schedule.one_minus_alphas_cumprod, [1e-12, 2e-12], rtol=10 * FLOAT64)
    np.testing.assert_allclose(schedule.log_snr, [-math.log(1e-12), -math.log(2e-12)], rtol=10 * FLOAT64)


def test_schedule_of_one_step():
    schedule = NoiseSchedule.from_betas([0.5])
    assert schedule.posterior_log_variance_clipped.tolist() == [math.log(0.5)]
    assert schedule.posterior_mean_coef1.tolist() == [1.0]


@pytest.mark.parametrize("betas", [[], [0.0], [-0.1], [1.1], [math.nan], [1.0, 0.5], [[0.1]]], ids=str)
def test_schedule_refuses_betas(betas):
    with pytest.raises(ValueError, match="beta"):
        NoiseSchedule.from_betas(betas)


@pytest.mark.parametrize("num_timesteps", [0, -1, 1.5, True])
def test_schedule_refuses_number_of_timesteps(num_timesteps):
    with pytest.raises(ValueError, match="whole number"):
        NoiseSchedule.cosine(num_timesteps)


def test_schedule_refuses_too_few_steps_for_its_betas():
    with pytest.raises(ValueError, match="more timesteps"):
        NoiseSchedule.linear(10)


def test_schedule_unknown_name_suggests():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        NoiseSchedule.named("cosin", 10)


def test_schedule_is_read_only():
    schedule = NoiseSchedule.cosine(10)
    with pytest.raises(ValueError, match="read-only"):
        schedule.betas[0] = 0.5
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.5


def test_schedule_json_round_trip_is_exact():
    schedule = NoiseSchedule.cosine(1000).respace("ddim25")
    again = NoiseSchedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    assert hash(again) == hash(schedule)
    with pytest.raises(ValueError, match="unknown key"):
        NoiseSchedule.from_dict({"betas": [0.1], "beta": 1})
    with pytest.raises(ValueError, match="'betas', or 'name' and 'num_timesteps'"):
        NoiseSchedule.from_dict({"name": "linear"})


def ends(schedule):
    return [float(schedule.betas[0]), float(schedule.betas[-1])]


@pytest.mark.parametrize("name", NoiseSchedule.names())
def test_schedule_of_a_name_is_written_by_it_and_its_ends(name):
    schedule = NoiseSchedule.named(name, 200)
    assert schedule.to_dict() == {"name": name, "num_timesteps": 200, "betas": ends(schedule)}
    again = NoiseSchedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    assert again.name == name


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (NoiseSchedule.cosine(100, offset=0.05), {"offset": 0.05}),
        (NoiseSchedule.cosine(100, max_beta=1.0), {"max_beta": 1.0}),
        (NoiseSchedule.linear(100, 1e-3, 0.25), {"beta_start": 1e-3, "beta_end": 0.25}),
        (NoiseSchedule.quadratic(100, beta_end=0.1), {"beta_end": 0.1}),
        (NoiseSchedule.sigmoid(100, tau=0.5, start=-2), {"tau": 0.5, "start": -2.0}),
        (NoiseSchedule.constant(100, 0.1), {"beta": 0.1}),
    ],
    ids=str,
)
def test_schedule_with_options_is_written_with_them(schedule, options):
    expected = {"name": schedule.name, "num_timesteps": 100, "options": options, "betas": ends(schedule)}
    assert schedule.to_dict() == expected
    again = NoiseSchedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    # The second generation says as much as the first.
    assert again.to_dict() == schedule.to_dict()


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.from_betas([0.1, 0.2, 0.4], "linear"),
        NoiseSchedule.from_betas(np.nextafter(NoiseSchedule.cosine(50).betas, 1.0), "cosine"),
        NoiseSchedule.from_betas(NoiseSchedule.linear(50).betas),
        NoiseSchedule.linear(50).subset(range(0, 50, 5)),
        NoiseSchedule(NoiseSchedule.linear(50).betas, np.arange(50) + 0.5, "linear"),
        NoiseSchedule.warmup(50, 0.3, beta_end=0.1),
    ],
    ids=["of a foreign name", "a last bit away", "nameless", "subset", "other times", "warmup"],
)
def test_schedule_that_its_name_does_not_give_keeps_its_betas(schedule):
    written = json.loads(json.dumps(schedule.to_dict()))
    assert written["betas"] == schedule.betas.tolist()
    assert NoiseSchedule.from_dict(written) == schedule


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"name": None}, "unknown noise schedule None"),
        ({"num_timesteps": "100"}, "num_timesteps must be an int from 1 to 2"),
        ({"num_timesteps": 10**15}, "num_timesteps must be an int from 1 to 2"),
        ({"options": 3}, "must be names with numbers, got 3"),
        ({"options": {"ofset": 1}}, "did you mean 'offset'"),
        ({"options": {"num_timesteps": 1}}, "unknown key 'num_timesteps'"),
        ({"options": {"offset": "a"}}, "offset of schedule 'cosine' must be a number"),
        ({"name": "jsd", "options": {"offset": 1}}, "unknown key 'offset'"),
        ({"betas": [0.1]}, r"has the first and last beta .*, and \[0\.1\] is written with it"),
        ({"betas": [10**400, 0.999]}, "it was changed, or written by a version with other formulas"),
        ({"betas": {"first": 0.1}}, "it was changed"),
    ],
    ids=str,
)
def test_schedule_of_a_damaged_short_form_is_refused(changed, expected):
    with pytest.raises(ValueError, match=expected):
        NoiseSchedule.from_dict({"name": "cosine", "num_timesteps": 100} | changed)


def test_schedule_respacing_keeps_marginals():
    schedule = NoiseSchedule.linear(1000)
    respaced = schedule.respace([10, 15, 20])
    chosen = respaced.timesteps.astype(int)
    assert len(respaced) == 45
    np.testing.assert_allclose(respaced.alphas_cumprod, schedule.alphas_cumprod[chosen], rtol=FLOAT64)
    abar = schedule.alphas_cumprod[chosen]
    np.testing.assert_allclose(respaced.betas, 1 - abar / np.append(1.0, abar[:-1]), rtol=FLOAT64_DIFFERENCE)
    twice = respaced.respace(9)
    assert set(twice.timesteps) <= set(respaced.timesteps)
    rebuilt = NoiseSchedule.from_betas(respaced.betas)
    np.testing.assert_allclose(rebuilt.alphas_cumprod, respaced.alphas_cumprod, rtol=FLOAT64)


@pytest.mark.parametrize("spec", ["", "ddim", "ddim0", "ddim1001", "ddimx", "5,x", [], [0], [1001], [600, 1]], ids=str)
def test_schedule_respacing_refuses(spec):
    with pytest.raises(ValueError, match=r"respacing|ddimN|section"):
        NoiseSchedule.linear(1000).respace(spec)


@pytest.mark.parametrize("indices", [[], [0, 0], [3, 2], [-1, 2], [0, 1000], [0.5]], ids=str)
def test_schedule_subset_refuses(indices):
    with pytest.raises(ValueError, match="step"):
        NoiseSchedule.linear(1000).subset(indices)


def test_schedules_tables_and_samplers_import_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import fastdiff as fd\n"
        "d = fd.Diffusion(fd.NoiseSchedule.cosine(100))\n"
        "print(len(fd.samplers.ddim(d, 10)), len(fd.samplers.ddpm(d)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["10", "100"]
