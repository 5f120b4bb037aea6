"""The drop-ins for DDPM, DDIM and RePaint: what is theirs alone, and their faults."""

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff import NoiseSchedule  # noqa: E402
from fastdiff.compat import diffusers as ours  # noqa: E402
from support.scheduler_runs import QUIET, assert_same, pair, run, toy, with_timesteps  # noqa: E402

pytestmark = QUIET


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_leads_to_the_next_timestep_unless_asked(spacing):
    """The default is DDIM's formula between neighbours of the list, computed here in float64."""
    mine = ours.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    mine.set_timesteps(7)
    times = mine.timesteps.tolist()
    abar = NoiseSchedule.linear(1000).alphas_cumprod
    x, m = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t, after in zip(times, [*times[1:], None], strict=True):
        a, b = abar[t], 1.0 if after is None else abar[after]
        expected = np.sqrt(b) * (x - np.sqrt(1 - a) * m) / np.sqrt(a) + np.sqrt(1 - b) * m
        torch.testing.assert_close(mine.step(m, t, x).prev_sample, expected)
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    theirs.set_timesteps(7)
    asked = ours.DDIMScheduler.from_config(theirs.config, compat="diffusers")
    asked.set_timesteps(7)
    assert_same(run(theirs), run(asked))
    assert float((run(theirs)[-2] - run(mine)[-2]).abs().max()) > 1e-3


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_last_noise_is_a_fault_that_compat_reproduces(variance):
    options = {"timestep_spacing": "trailing", "variance_type": variance}
    theirs, mine = with_timesteps(pair("DDPMScheduler", **options), 10)
    _, asked = with_timesteps(pair("DDPMScheduler", compat="diffusers", **options), 10)
    expected, seen = run(theirs), run(mine)
    assert_same(expected, run(asked))
    assert_same(expected[:-2], seen[:-2])
    # The last state is the predicted image, without noise.
    assert_same([seen[-1]], [seen[-2]])
    if variance == "fixed_large":
        assert float((expected[-2] - seen[-2]).abs().max()) > 0.1


def test_ddpm_fixed_large_log_is_finite():
    theirs, mine = with_timesteps(pair("DDPMScheduler", variance_type="fixed_large_log"), 10)
    assert torch.isnan(run(theirs)[-1]).any()
    plain = ours.DDPMScheduler(variance_type="fixed_large")
    plain.set_timesteps(10)
    assert_same(run(plain), run(mine), 0 + 1e-12)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("compat", [None, "diffusers"])
def test_ddpm_learned_variance_equals_diffusers(variance, compat):
    """Leading spacing ends at t = 0, where nobody draws; trailing needs compat, as their last step draws."""
    spacing = "leading" if compat is None else "trailing"

    def model(x, t):
        second = torch.sin(x) if variance == "learned_range" else torch.exp(torch.sin(x) - 3)
        return torch.cat([toy(x, t), second], dim=1)

    options = {"variance_type": variance, "timestep_spacing": spacing, "compat": compat}
    theirs, mine = with_timesteps(pair("DDPMScheduler", **options), 10)
    assert_same(run(theirs, model=model), run(mine, model=model))


def test_repaint_equals_diffusers():
    original = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    mask = (torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(4)) > 0.5).float()
    results = []
    for eta in (0.0, 1.0):
        for scheduler in pair("RePaintScheduler", eta=eta):
            scheduler.set_timesteps(20, jump_length=3, jump_n_sample=2)
            generator = torch.Generator().manual_seed(5)
            x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
            last = scheduler.timesteps[0] + 1
            for t in scheduler.timesteps:
                if t < last:
                    x = scheduler.step(toy(x, t), t, x, original, mask, generator).prev_sample
                else:
                    x = scheduler.undo_step(x, last, generator)
                last = t
            results.append(x)
    assert_same(results[::2], results[1::2])


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_add_noise_is_exact_in_half_precision(name, dtype):
    """In bfloat16 theirs adds nothing at t = 0, a fault that compat reproduces."""
    x, z = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    t = torch.tensor([0, 1, 5, 9, 100, 400, 800, 999])
    theirs, mine = pair(name)
    abar = torch.from_numpy(NoiseSchedule.linear(1000).alphas_cumprod.copy())[t].reshape(-1, 1, 1, 1)
    expected = abar.sqrt() * x.double() + (1 - abar).sqrt() * z.double()
    noisy = mine.add_noise(x, z, t)
    assert noisy.dtype == dtype
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 1e-5}[dtype]
    assert float((noisy.double() - expected).abs().max()) < rounding * float(expected.abs().max())
    velocity = mine.get_velocity(x, z, t)
    expected = abar.sqrt() * z.double() - (1 - abar).sqrt() * x.double()
    assert float((velocity.double() - expected).abs().max()) < rounding * float(expected.abs().max())
    asked = getattr(ours, name)(compat="diffusers")
    assert torch.equal(asked.add_noise(x, z, t), theirs.add_noise(x, z, t))
    if dtype == torch.bfloat16:
        assert torch.equal(asked.add_noise(x, z, t)[0], x[0])
        assert not torch.equal(noisy[0], x[0])


def test_ddpm_refuses_a_timestep_that_is_not_listed():
    scheduler = ours.DDPMScheduler()
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"must be one of scheduler.timesteps, got 5"):
        scheduler.step(x, 5, x)
