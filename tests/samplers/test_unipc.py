"""UniPC: its predictor, its end, and diffusers live."""

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers.multistep import dpmpp
from fastdiff.samplers.unipc import unipc
from support.diffusers_runs import PREDICTIONS, same, theirs_and_ours
from support.table_runs import execute, toy_model


def test_unipc_predictor_is_dpmpp():
    """bh2 without the corrector is DPM-Solver++(2M) with the midpoint formula; order 3 is its order 3."""
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    x = torch.linspace(-2, 2, 7).reshape(7, 1)
    for order in (2, 3):
        ours = unipc(diffusion, 20, order=order, corrector=False)
        theirs = dpmpp(diffusion, 20, order=order, lower_order_final=True)
        torch.testing.assert_close(execute(ours, toy_model, x), execute(theirs, toy_model, x))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("predict_x0", [True, False], ids=["x0", "eps"])
@pytest.mark.parametrize("disabled", [[], [0, 1, 2]], ids=["corrected", "partly"])
def test_unipc_equals_diffusers(prediction, spacing, variant, order, predict_x0, disabled):
    """With a clean end their bh1 gives NaN at the last step (infinity times zero), a fault; compared at sigma_min."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.UniPCMultistepScheduler(
        1000, prediction_type=prediction, timestep_spacing=spacing, solver_type=variant, solver_order=order,
        predict_x0=predict_x0, disable_corrector=disabled, final_sigmas_type="sigma_min",
    )  # fmt: skip
    scheduler.set_timesteps(12)
    table = unipc(
        Diffusion(NoiseSchedule.linear(1000), PREDICTIONS[prediction]),
        timesteps=[int(t) for t in scheduler.timesteps],
        order=order,
        variant=variant,
        predict_x0=predict_x0,
        no_corrector_rows=[d + 1 for d in disabled],
        final="sigma_min",
        clip=None,
    )
    same(*theirs_and_ours(scheduler, table))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_ends_clean_without_nan(order):
    for variant in ("bh1", "bh2"):
        table = unipc(Diffusion(NoiseSchedule.linear(1000)), 10, order=order, variant=variant)
        assert np.isfinite(np.delete(table.rows(np.float64), 4, axis=1)).all()
