"""The drop-in of DPM-Solver++ on the reverse SDE: torchsde's path, a seed for each sample, networks of the image."""

import math

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
pytest.importorskip("torchsde", reason="torchsde is in the test extra")

from fastdiff.compat import diffusers as ours  # noqa: E402
from support.scheduler_runs import QUIET, assert_same, pair, run, with_timesteps  # noqa: E402
from support.tolerances import FLOAT32  # noqa: E402

pytestmark = QUIET
NAME = "DPMSolverSDEScheduler"
OPTIONS = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"},
    "compat": {"compat": "diffusers"},
    "seed": {"noise_sampler_seed": 11},
    "seeds": {"noise_sampler_seed": [11, 4]},
}


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("case", OPTIONS)
def test_sde_gives_the_images_of_diffusers(case, steps):
    theirs, mine = with_timesteps(pair(NAME, **OPTIONS[case]), steps)
    assert_same(run(theirs), run(mine))
    # A row an evaluation, the last step being Euler's.
    assert mine._run.next == len(mine._run.table) == 2 * steps - 1


def test_sde_scales_its_noise_step_by_step():
    theirs, mine = with_timesteps(pair(NAME), 5)
    assert_same(run(theirs, s_noise=0.5), run(mine, s_noise=0.5))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    states = []
    for scheduler in with_timesteps((theirs, mine), 5):
        states.append(x)
        for i, t in enumerate(scheduler.timesteps):
            m = torch.tanh(scheduler.scale_model_input(states[-1], t))
            states[-1] = scheduler.step(m, t, states[-1], s_noise=1.0 + 0.1 * i).prev_sample
    assert_same(states[:1], states[1:])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_sde_is_the_algorithm_without_noise(prediction):
    """y' = (rho'/rho)^2 y + (1 - (rho'/rho)^2) x_0, to the middle of the step and again from where it began."""
    scheduler = ours.DPMSolverSDEScheduler(prediction_type=prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(3)
    rho = scheduler.sigmas.double().tolist()
    rho = [*rho[::2], 0.0]
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
    for k in range(3):
        began, after = x.double(), rho[k + 1]
        middle = math.sqrt(rho[k] * after)
        for level, reached in [(rho[k], middle), (middle, after)] if after else [(rho[k], 0.0)]:
            t = scheduler.timesteps[scheduler.step_index or 0]
            seen = scheduler.scale_model_input(x, t)
            torch.testing.assert_close(seen.double(), x.double() / (level**2 + 1) ** 0.5, rtol=16 * FLOAT32, atol=0)
            m = torch.tanh(seen)
            image = {
                "epsilon": x.double() - level * m.double(),
                "v_prediction": x.double() / (level**2 + 1) - m.double() * level / (level**2 + 1) ** 0.5,
                "sample": m.double(),
            }[prediction]
            result = scheduler.step(m, t, x, s_noise=0.0)
            kept = (reached / rho[k]) ** 2
            scale = float(began.abs().max())
            expected = kept * began + (1 - kept) * image
            torch.testing.assert_close(result.prev_sample.double(), expected, rtol=0, atol=16 * FLOAT32 * scale)
            torch.testing.assert_close(result.pred_original_sample.double(), image, rtol=0, atol=16 * FLOAT32 * scale)
            x = result.prev_sample


def test_sde_needs_torchsde(monkeypatch):
    """Without it diffusers has a class in its place that says so; ours is made of that one there."""
    from diffusers.utils import import_utils
    from diffusers.utils.dummy_torch_and_torchsde_objects import DPMSolverSDEScheduler as Dummy

    from fastdiff.compat.diffusers._two_stage import Halves

    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "torchsde", (lambda: False, "no {0}: pip install torchsde"))

    class DPMSolverSDEScheduler(Halves, Dummy):
        pass

    with pytest.raises(ImportError, match="pip install torchsde"):
        DPMSolverSDEScheduler()


def test_sde_that_begins_between_two_halves_takes_their_steps():
    theirs, mine = with_timesteps(pair(NAME), 6)
    for scheduler in (theirs, mine):
        scheduler.set_begin_index(5)
    # Theirs ends at NaN.
    for a, b in zip(run(theirs, first=5), run(mine, first=5), strict=True):
        assert_same([a.nan_to_num()], [b.nan_to_num()])
    theirs, mine = with_timesteps((theirs, mine), 6)
    assert_same(run(theirs), run(mine))
    assert mine._run is not None
