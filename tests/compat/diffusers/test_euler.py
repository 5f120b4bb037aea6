"""The drop-ins in x / alpha: Euler's and Heun's steps by hand, and what theirs says of a wrong call."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours
from support.scheduler_runs import QUIET, assert_same, pair, run, toy, with_timesteps
from support.tolerances import FLOAT32

pytestmark = QUIET


def begun(name, steps=5, **options):
    scheduler = getattr(ours, name)(timestep_spacing="trailing", **options)
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    return scheduler, x


def test_the_network_sees_the_state_at_variance_1():
    scheduler, x = begun("EulerDiscreteScheduler")
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1].tolist(), strict=True):
        seen = scheduler.scale_model_input(x, t)
        torch.testing.assert_close(seen, x / np.sqrt(sigma**2 + 1), rtol=4 * FLOAT32, atol=0)
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample


def test_euler_steps_along_eps():
    """x' = x + (sigma' - sigma) eps, and the image that is predicted on the way is x - sigma eps."""
    scheduler, x = begun("EulerDiscreteScheduler")
    sigmas = scheduler.sigmas.double()
    for i, t in enumerate(scheduler.timesteps):
        eps = toy(scheduler.scale_model_input(x, t), t)
        expected = x.double() + (sigmas[i + 1] - sigmas[i]) * eps.double()
        image = x.double() - sigmas[i] * eps.double()
        out = scheduler.step(eps, t, x)
        scale = float(x.abs().max())
        torch.testing.assert_close(out.prev_sample.double(), expected, rtol=0, atol=8 * FLOAT32 * scale)
        torch.testing.assert_close(out.pred_original_sample.double(), image, rtol=0, atol=8 * FLOAT32 * scale)
        x = out.prev_sample


def test_heun_averages_the_slopes_of_both_ends():
    scheduler, x = begun("HeunDiscreteScheduler", steps=3)
    before, slopes = x.double(), []
    # The first step: each of the two evaluations has a call of its own.
    first, second = scheduler.timesteps[:2]
    sigma, after = float(scheduler.sigmas[0]), float(scheduler.sigmas[1])
    for t, level in ((first, sigma), (second, after)):
        eps = toy(scheduler.scale_model_input(x, t), t)
        slopes.append(eps.double())
        x = scheduler.step(eps, t, x).prev_sample
        expected = before + (after - sigma) * (slopes[0] if level == sigma else 0.5 * (slopes[0] + slopes[1]))
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=8 * FLOAT32 * float(before.abs().max()))


def test_an_index_for_a_timestep_is_refused_as_theirs_does():
    scheduler, x = begun("EulerDiscreteScheduler")
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    for index in (1, torch.tensor(1), torch.tensor(1, dtype=torch.int32)):
        with pytest.raises(ValueError, match="integer indices"):
            scheduler.step(x, index, x)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_heun_goes_on_from_the_state_at_the_start_of_its_step(prediction):
    """y' = y + (d1 + d2) (rho' - rho) / 2, of which d2 alone is of the state that is given in the middle."""
    scheduler, x = begun("HeunDiscreteScheduler", steps=4, prediction_type=prediction)
    sigmas = scheduler.sigmas.double().tolist()
    state, slopes = x.double(), []
    for i, t in enumerate(scheduler.timesteps):
        level = sigmas[i]
        seen = scheduler.scale_model_input(x, t)
        m = toy(seen, t)
        y, output = x.double(), m.double()
        image = {
            "epsilon": y - level * output,
            "v_prediction": y / (level**2 + 1) - output * level / (level**2 + 1) ** 0.5,
            "sample": output,
        }[prediction]
        slopes.append((y - image) / level)
        if i % 2 == 0:
            expected = y + (sigmas[i + 1] - level) * slopes[-1]
            state = y
        else:
            expected = state + (level - sigmas[i - 1]) * 0.5 * (slopes[-2] + slopes[-1])
        x = scheduler.step(m, t, x).prev_sample
        scale = float(state.abs().max())
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=16 * FLOAT32 * scale)
        assert scheduler.state_in_first_order == (i % 2 == 1)
        # What a mask or a clamp does between the halves, and after a step.
        x = 0.8 * x + 0.1


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_euler_steps_before_set_timesteps(name):
    """Over every training timestep, as theirs."""
    theirs, mine = pair(name, num_train_timesteps=9)
    assert_same(run(theirs), run(mine))


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_euler_takes_log_linear_levels(final):
    """They have one level more than timesteps, so that theirs ends at the last but one."""
    theirs, mine = pair("EulerDiscreteScheduler", interpolation_type="log_linear", final_sigmas_type=final)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(7)
    assert_same(run(theirs), run(mine))


def test_lms_says_that_the_input_was_not_scaled():
    scheduler, x = begun("LMSDiscreteScheduler")
    with pytest.warns(UserWarning, match="scale_model_input must be called"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("first", [0, 3])
def test_lms_starts_in_the_middle_as_theirs_with_compat(first):
    theirs, mine = with_timesteps(pair("LMSDiscreteScheduler", compat="diffusers"), 8)
    for scheduler in (theirs, mine):
        scheduler.set_begin_index(first)
    assert_same(run(theirs, first=first), run(mine, first=first))


def test_lms_in_the_middle_keeps_the_weight_of_its_step():
    """Constant slopes: every order moves the state by the slope times the change of sigma, from wherever it starts."""
    scheduler, x = begun("LMSDiscreteScheduler", steps=8)
    scheduler.set_begin_index(3)
    sigmas = scheduler.sigmas.double()
    start = x
    for t in scheduler.timesteps[3:]:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.ones_like(x), t, x).prev_sample
    expected = start.double() + (sigmas[-1] - sigmas[3])
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=16 * FLOAT32 * float(start.abs().max()))


RISING = {
    "zero snr": ("EulerDiscreteScheduler", {"beta_end": 0.05, "rescale_betas_zero_snr": True}),
    "ancestral zero snr": ("EulerAncestralDiscreteScheduler", {"beta_end": 0.05, "rescale_betas_zero_snr": True}),
    "sigma_min": (
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "sigma_min": 0.003, "final_sigmas_type": "sigma_min"},
    ),
}


@pytest.mark.parametrize("case", RISING)
@pytest.mark.filterwarnings("ignore:.*no table covers levels that rise:RuntimeWarning")
def test_levels_that_rise_run_their_step(case):
    """4096 stands for infinity in theirs, also where the level after it is larger."""
    name, options = RISING[case]
    theirs, mine = pair(name, prediction_type="v_prediction", timestep_spacing="trailing", **options)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    assert (theirs.sigmas[1:] > theirs.sigmas[:-1]).any()
    # Up to the first that is not finite: theirs takes a root of less than nothing in the ancestral steps.
    for a, b in zip(run(theirs), run(mine), strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        assert_same([a.nan_to_num()], [b.nan_to_num()])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_lms_predicts_the_image_at_large_levels(prediction):
    """x / (rho^2 + 1) - rho / sqrt(rho^2 + 1) v has all its digits there."""
    scheduler, x = begun("LMSDiscreteScheduler", prediction_type=prediction, beta_end=0.05)
    t, rho = scheduler.timesteps[0], float(scheduler.sigmas[0])
    assert rho > 1e5
    m = torch.tanh(scheduler.scale_model_input(x, t))
    image = {
        "epsilon": x.double() - rho * m.double(),
        "v_prediction": x.double() / (rho**2 + 1) - rho / (rho**2 + 1) ** 0.5 * m.double(),
        "sample": m.double(),
    }[prediction]
    seen = scheduler.step(m, t, x).pred_original_sample.double()
    scale = rho if prediction == "epsilon" else 1.0
    torch.testing.assert_close(seen, image, rtol=0, atol=16 * FLOAT32 * scale)


@pytest.mark.parametrize("first", [1, 5])
def test_heun_that_begins_between_two_halves_takes_their_steps(first):
    theirs, mine = with_timesteps(pair("HeunDiscreteScheduler"), 6)
    for scheduler in (theirs, mine):
        scheduler.set_begin_index(first)
    assert_same(run(theirs, first=first), run(mine, first=first))
    # And goes on as ever afterwards.
    theirs, mine = with_timesteps((theirs, mine), 6)
    assert_same(run(theirs), run(mine))
    assert mine._run is not None
