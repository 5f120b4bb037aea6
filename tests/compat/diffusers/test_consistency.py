"""The drop-ins for consistency models: whole runs against diffusers, and their two rows by hand."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours  # noqa: E402
from support.scheduler_runs import QUIET, assert_same, pair, run, toy, with_timesteps  # noqa: E402
from support.tolerances import FLOAT32  # noqa: E402

pytestmark = QUIET
OPTIONS = {
    "plain": {},
    "v": {"prediction_type": "v_prediction"},
    "x0": {"prediction_type": "sample"},
    "clipped": {"clip_sample": True, "clip_sample_range": 0.7},
    "zero snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "slow boundary": {"timestep_scaling": 0.01},
    "compat": {"compat": "diffusers"},
}


@pytest.mark.parametrize("steps", [1, 4, 9])
@pytest.mark.parametrize("case", OPTIONS)
def test_lcm_gives_the_images_of_diffusers(case, steps):
    theirs, mine = with_timesteps(pair("LCMScheduler", **OPTIONS[case]), steps)
    assert_same(run(theirs), run(mine))
    assert mine._runs[None].next == 2 * steps - 1


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("case", OPTIONS)
def test_tcd_gives_the_images_of_diffusers(case, eta):
    for steps in (1, 4, 9):
        theirs, mine = with_timesteps(pair("TCDScheduler", **OPTIONS[case]), steps)
        assert_same(run(theirs, eta=eta), run(mine, eta=eta))
        assert mine._runs[eta].next == 2 * steps - 1


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_custom_timesteps_and_strength_are_those_of_diffusers(name):
    for options in (
        {"timesteps": [999, 719, 499, 259]},
        {"num_inference_steps": 4, "strength": 0.5},
        {"timesteps": [999, 759, 519, 279], "strength": 0.5},
    ):
        theirs, mine = pair(name)
        for scheduler in (theirs, mine):
            scheduler.set_timesteps(**options)
        assert torch.equal(theirs.timesteps, mine.timesteps)
        assert_same(run(theirs), run(mine))
    # And a second run after it.
    theirs, mine = with_timesteps((theirs, mine), 5)
    assert_same(run(theirs), run(mine))


def test_lcm_weighs_the_state_and_the_image_by_the_boundary():
    """c_skip = 1/4 / (u^2 + 1/4) and c_out = u / sqrt(u^2 + 1/4) at u = s t; then the next level's noise."""
    scheduler = ours.LCMScheduler(timestep_scaling=1e-3)
    scheduler.set_timesteps(3)
    scheduler.seed = 4
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t, after = (int(value) for value in scheduler.timesteps[:2])
    eps = toy(x, t)
    out = scheduler.step(eps, t, x)
    abar, abar_next = (float(scheduler.alphas_cumprod[i]) for i in (t, after))
    u = 1e-3 * t
    image = (x.double() - (1 - abar) ** 0.5 * eps.double()) / abar**0.5
    expected = 0.25 / (u**2 + 0.25) * x.double() + u / (u**2 + 0.25) ** 0.5 * image
    scale = float(image.abs().max())
    # Their betas are float32.
    torch.testing.assert_close(out.denoised.double(), expected, rtol=0, atol=1e-5 * scale)
    z = (out.prev_sample.double() - abar_next**0.5 * out.denoised.double()) / (1 - abar_next) ** 0.5
    # 384 numbers of fastdiff's own noise, four standard errors.
    assert abs(float(z.mean())) < 4 / 384**0.5
    assert float(z.std()) == pytest.approx(1, abs=4 / (2 * 384) ** 0.5)
    scheduler.set_timesteps(3)
    again = scheduler.step(eps, t, x)
    assert torch.equal(again.prev_sample, out.prev_sample)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_a_timestep_that_is_not_the_lists_is_their_own_step(name):
    theirs, mine = with_timesteps(pair(name), 4)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for scheduler in (theirs, mine):
        scheduler.set_begin_index(1)
        results.append(scheduler.step(0.5 * x, 123, x, generator=torch.Generator().manual_seed(1)).prev_sample)
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="Number of inference steps"):
        getattr(ours, name)().step(x, 999, x)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_noise_of_a_level_without_signal_is_their_own_step(name):
    theirs, mine = with_timesteps(pair(name, rescale_betas_zero_snr=True), 3)
    expected = run(theirs)
    with pytest.warns(RuntimeWarning, match="a level without signal"):
        states = run(mine)
    for a, b in zip(expected, states, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_gradients_go_through_both_rows(name):
    theirs, mine = with_timesteps(pair(name), 3)
    gradients = []
    for scheduler in (theirs, mine):
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        state, generator = x, torch.Generator().manual_seed(1)
        for t in scheduler.timesteps:
            state = scheduler.step(toy(state, t), t, state, generator=generator).prev_sample
        state.square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))


def test_tcd_refuses_an_eta_out_of_range_as_theirs():
    _, mine = with_timesteps(pair("TCDScheduler"), 3)
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(AssertionError, match="gamma"):
        mine.step(x, mine.timesteps[0], x, eta=1.5)
    assert float(mine.step(x, mine.timesteps[0], x, eta=0.0).prev_sample.abs().max()) < FLOAT32
