"""The multistep drop-ins: where theirs ends in NaN, starts in the middle, and levels with equal timesteps."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours
from support.scheduler_runs import QUIET, assert_same, pair, run, with_timesteps

pytestmark = QUIET


def test_unipc_bh1_ends_clean():
    theirs, mine = with_timesteps(pair("UniPCMultistepScheduler", solver_type="bh1"), 8)
    assert torch.isnan(run(theirs)[-1]).any()
    assert torch.isfinite(run(mine)[-1]).all()


def one_image(scheduler, first, *, listed=lambda t: t):
    """The error of the image where the network knows it, from the timestep `first` of the list on."""
    x0, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    times = scheduler.timesteps[first:]
    x = scheduler.add_noise(x0, noise, times[:1])
    for t in times:
        alpha = scheduler.alphas_cumprod[int(t)]
        x = scheduler.step((x - alpha.sqrt() * x0) / (1 - alpha).sqrt(), listed(t), x).prev_sample
        assert scheduler._run.start == first or scheduler._run.start == 0
    return float((x - x0).abs().max())


# 0 to 11 are Runge-Kutta steps where those are not skipped. A number that stands there twice may be either.
PLACES = [(skip, first, listed) for skip in (True, False) for first in (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 19)
          for listed in ("tensors", "numbers") if listed == "tensors" or first % 2 == 0 or first > 12]  # fmt: skip


@pytest.mark.parametrize(("skip", "first", "listed"), PLACES)
def test_pndm_starts_at_any_timestep(skip, first, listed):
    """A network that knows the noise in the state makes every such rule exact, if each level is the right one."""
    scheduler = ours.PNDMScheduler(skip_prk_steps=skip, set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    # The error of float32 states divided by a small alpha.
    assert one_image(scheduler, first, listed=int if listed == "numbers" else lambda t: t) < 1e-4


@pytest.mark.parametrize("skip", [True, False])
def test_pndm_in_the_middle_is_adams_bashforth(skip):
    """The order grows from 1: the second step combines (3 e - e') / 2."""
    scheduler = ours.PNDMScheduler(skip_prk_steps=skip)
    scheduler.set_timesteps(50)
    start = 30
    logs = torch.log(scheduler.alphas_cumprod.double())
    x, first, second = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = x.double()
    for eps, place in ((first.double(), start), (1.5 * second.double() - 0.5 * first.double(), start + 1)):
        level, after = (logs[int(scheduler.timesteps[i])] for i in (place, place + 1))
        image = (expected - (1 - level.exp()).sqrt() * eps) / (level / 2).exp()
        expected = (after / 2).exp() * image + (1 - after.exp()).sqrt() * eps
    for m, t in zip((first, second), scheduler.timesteps[start:], strict=False):
        x = scheduler.step(m, t, x).prev_sample
    # Two float32 steps against float64.
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("skip", [True, False])
def test_pndm_goes_on_from_the_state_at_the_start_of_a_step(skip):
    """Whatever is done to the state within a step, in place too."""
    theirs, mine = with_timesteps(pair("PNDMScheduler", skip_prk_steps=skip), 10)
    for edit in (lambda x: 0.9 * x + 0.1, lambda x: x.mul_(0.9)):
        for scheduler in (theirs, mine):
            scheduler.set_timesteps(10)
        states = []
        for scheduler in (theirs, mine):
            x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
            states.append([])
            for t in scheduler.timesteps:
                x = scheduler.step(torch.tanh(x), t, x).prev_sample
                states[-1].append(x.clone())
                x = edit(x)
        assert_same(*states)


def test_pndm_takes_a_timestep_beside_its_list():
    theirs, mine = with_timesteps(pair("PNDMScheduler", skip_prk_steps=True), 10)
    x, m = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert_same([theirs.step(m, 555, x).prev_sample], [mine.step(m, 555, x).prev_sample])


REPEATING = {"beta_schedule": "squaredcos_cap_v2"}


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("levels", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_equal_timesteps_start_at_their_own_level(name, levels):
    """sigmas[i] belongs to the i-th timestep, though rounding made it that of its neighbour as well."""
    if levels == "use_beta_sigmas":
        pytest.importorskip("scipy", reason="their beta levels need SciPy")
    scheduler = getattr(ours, name)(1000, **REPEATING, **{levels: True})
    scheduler.set_timesteps(20)
    times = scheduler.timesteps
    assert len(times.unique()) < len(times)
    repeated = int((times[1:] == times[:-1]).nonzero()[-1]) + 1
    for first, given in ((0, times[0]), (0, int(times[0])), (repeated, times[repeated])):
        scheduler.set_timesteps(20)
        given = scheduler.timesteps[first] if isinstance(given, torch.Tensor) else given
        x0, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        levels = [scheduler._sigma_to_alpha_sigma_t(sigma) for sigma in scheduler.sigmas]
        states = [alpha * x0 + sigma * noise for alpha, sigma in levels]
        x = states[first]
        # Not the last step: DEIS's formula is not exact up to an image without noise.
        for i, t in enumerate(scheduler.timesteps[first:-1], start=first):
            alpha, sigma = levels[i]
            x = scheduler.step((x - alpha * x0) / sigma, given if i == first else t, x).prev_sample
            assert scheduler.step_index == i + 1
            # The error of float32 states divided by a small alpha.
            torch.testing.assert_close(x, states[i + 1], rtol=0, atol=1e-3)


def test_equal_timesteps_as_in_diffusers_with_compat():
    theirs, mine = with_timesteps(
        pair("DPMSolverMultistepScheduler", use_karras_sigmas=True, compat="diffusers", **REPEATING), 20
    )
    t = theirs.timesteps[0]
    assert theirs.index_for_timestep(t) == mine.index_for_timestep(t) == 1
