"""PNDM: diffusers live."""

import pytest

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers.pndm import plms, pndm
from support.diffusers_runs import same, theirs_and_ours


@pytest.mark.parametrize("skip_prk_steps", [True, False], ids=["plms", "pndm"])
def test_pndm_equals_diffusers(skip_prk_steps):
    """For eps. With v they combine the raw v of several times and turn the sum into eps at one of them, a fault."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.PNDMScheduler(1000, skip_prk_steps=skip_prk_steps, set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    levels = sorted({int(t) for t in scheduler.timesteps} & set(range(0, 1000, 50)), reverse=True)
    table = plms(diffusion, timesteps=levels) if skip_prk_steps else pndm(diffusion, timesteps=levels)
    assert table["t"].tolist() == scheduler.timesteps.tolist()
    same(*theirs_and_ours(scheduler, table))
