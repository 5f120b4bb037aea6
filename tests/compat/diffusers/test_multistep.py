"""The drop-in for UniPC: where theirs ends in NaN."""

import torch

from support.scheduler_runs import QUIET, pair, run, with_timesteps

pytestmark = QUIET


def test_unipc_bh1_ends_clean():
    theirs, mine = with_timesteps(pair("UniPCMultistepScheduler", solver_type="bh1"), 8)
    assert torch.isnan(run(theirs)[-1]).any()
    assert torch.isfinite(run(mine)[-1]).all()
