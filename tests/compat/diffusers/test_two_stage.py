"""DPM2's drop-ins: their halves by hand, networks that predict the image, and middles that theirs makes NaN."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours  # noqa: E402
from support.scheduler_runs import QUIET, assert_same, pair, run, toy, with_timesteps  # noqa: E402
from support.tolerances import FLOAT32  # noqa: E402

pytestmark = QUIET
NAMES = ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]
OPTIONS = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "compat": {"compat": "diffusers"},
}


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", OPTIONS)
def test_dpm2_gives_the_images_of_diffusers(case, name, steps):
    theirs, mine = with_timesteps(pair(name, timestep_spacing="leading", **OPTIONS[case]), steps)
    assert_same(run(theirs), run(mine))
    # A row an evaluation, the last step being Euler's.
    assert mine._run.next == len(mine._run.table) == 2 * steps - 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_dpm2_goes_on_from_where_the_step_began(prediction):
    """y' = y + (rho' - rho) d_m, where d_m alone is of the state that is given in the middle."""
    scheduler = ours.KDPM2DiscreteScheduler(prediction_type=prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(3)
    rho = [*scheduler.sigmas.double().tolist()[:-1:2]]
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
    began = x.double()
    for i, t in enumerate(scheduler.timesteps):
        k, is_last = i // 2, i == len(scheduler.timesteps) - 1
        middle = 0.0 if is_last else (rho[k] * rho[k + 1]) ** 0.5
        level = middle if i % 2 else rho[k]
        seen = scheduler.scale_model_input(x, t)
        torch.testing.assert_close(seen.double(), x.double() / (level**2 + 1) ** 0.5, rtol=16 * FLOAT32, atol=0)
        m = toy(seen, t)
        y, output = x.double(), m.double()
        image = {
            "epsilon": y - level * output,
            "v_prediction": y / (level**2 + 1) - output * level / (level**2 + 1) ** 0.5,
            "sample": output,
        }[prediction]
        slope = (y - image) / level
        began = began if i % 2 else y
        result = scheduler.step(m, t, x)
        expected = began + ((rho[k + 1] if i % 2 else middle) - rho[k]) * slope
        scale = float(began.abs().max())
        torch.testing.assert_close(result.prev_sample.double(), expected, rtol=0, atol=16 * FLOAT32 * scale)
        torch.testing.assert_close(result.pred_original_sample.double(), image, rtol=0, atol=16 * FLOAT32 * scale)
        assert scheduler.state_in_first_order == (i % 2 == 1)
        # What a mask or a clamp does between the halves, and after a step.
        x = 0.8 * result.prev_sample + 0.1


def test_ancestral_middles_are_numbers_where_theirs_are_nan():
    """From a level 6,000 times the next, rho_down^2 of theirs is 0 by rounding, and the middle's logarithm is NaN."""
    options = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
    theirs, mine = pair("KDPM2AncestralDiscreteScheduler", **options)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(5)
    assert theirs.timesteps.isnan().any()
    # With eta = 1 the middle of a step is the level after it.
    torch.testing.assert_close(mine.timesteps[1::2], mine.timesteps[2::2], rtol=1e-3, atol=0)
    assert torch.equal(mine.timesteps[0::2], theirs.timesteps[0::2])
    assert all(state.isfinite().all() for state in run(mine))
    mine = ours.KDPM2AncestralDiscreteScheduler(**options, compat="diffusers")
    mine.set_timesteps(5)
    with pytest.warns(RuntimeWarning, match="no table covers timesteps that are NaN"):
        states = run(mine)
    assert states[-1].isnan().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [1, 5])
def test_dpm2_that_begins_between_two_halves_takes_their_steps(name, first):
    theirs, mine = with_timesteps(pair(name), 6)
    for scheduler in (theirs, mine):
        scheduler.set_begin_index(first)
    states, own = run(theirs, first=first), run(mine, first=first)
    # Theirs ends at NaN with ancestral noise.
    for a, b in zip(states, own, strict=True):
        assert_same([a.nan_to_num()], [b.nan_to_num()])
    # And goes on as ever afterwards.
    theirs, mine = with_timesteps((theirs, mine), 6)
    assert_same(run(theirs), run(mine))
    assert mine._run is not None


@pytest.mark.parametrize("name", NAMES)
def test_dpm2_finds_the_start_of_a_step_by_its_timestep(name):
    """Given as a number: a middle may have the timestep of the step after it."""
    _, mine = with_timesteps(pair(name), 6)
    for place in (0, 4, 10):
        assert mine.index_for_timestep(float(mine.timesteps[place])) == place
    assert mine.index_for_timestep(mine.timesteps[3]) == 3
