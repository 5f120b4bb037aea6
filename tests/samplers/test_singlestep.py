"""Singlestep solvers: their groups of evaluations, and diffusers live."""

from itertools import pairwise

import numpy as np
import pytest

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers.singlestep import dpm_solver_singlestep, dpmpp_singlestep, group_sizes
from support.diffusers_runs import PREDICTIONS, same, theirs_and_ours
from support.tolerances import FLOAT64


def test_singlestep_takes_its_groups():
    """The rule's own groups give the rule's table, and single levels the first-order method."""
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    sizes = group_sizes(8, 3, True)
    assert dpmpp_singlestep(diffusion, 8, order=3, groups=sizes) == dpmpp_singlestep(diffusion, 8, order=3)
    single = dpmpp_singlestep(diffusion, 8, order=3, groups=[1] * 8)
    np.testing.assert_array_equal(single["c0"], dpmpp_singlestep(diffusion, 8, order=1)["c0"])
    for bad in ([3, 3], [4, 3, 1], [3, 3, 2], [0, 4, 3, 1]):
        with pytest.raises(ValueError, match="groups must be of 1 to 3 levels, 8 in all"):
            dpmpp_singlestep(diffusion, 8, order=3, groups=bad)


def test_singlestep_groups_use_every_evaluation():
    for steps in range(1, 30):
        for order in (1, 2, 3):
            for clean in (False, True):
                sizes = group_sizes(steps, order, clean)
                assert sum(sizes) == steps
                assert max(sizes) <= order
                assert not clean or sizes[-1] == 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_singlestep_equals_diffusers(prediction, order, solver_type, algorithm):
    """Their order 3 is left out: its solver_type "heun" is the one with the last term, "midpoint" drops it."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    steps = 11 if order == 2 else 10
    final = "sigma_min" if algorithm == "dpmsolver" else "zero"
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        1000, prediction_type=prediction, solver_order=order, solver_type=solver_type, algorithm_type=algorithm,
        final_sigmas_type=final, lower_order_final=True,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    builder = dpmpp_singlestep if algorithm == "dpmsolver++" else dpm_solver_singlestep
    clip = {"clip": None} if algorithm == "dpmsolver++" else {}
    table = builder(
        Diffusion(NoiseSchedule.linear(1000), PREDICTIONS[prediction]),
        timesteps=[int(t) for t in scheduler.timesteps],
        order=order,
        solver_type=solver_type,
        final=final,
        **clip,
    )
    same(*theirs_and_ours(scheduler, table))


@pytest.mark.parametrize("order", [2, 3])
def test_long_groups_of_the_noise_are_taken_apart(order):
    """None over which sigma / alpha falls by more than a factor of 8, and no level is lost."""
    for diffusion in (Diffusion(NoiseSchedule.linear(1000)), Diffusion(NoiseSchedule.edm(1000), "F")):
        for steps in (5, 7, 10, 20, 50):
            table = dpm_solver_singlestep(diffusion, steps, order=order)
            starts = np.append(np.flatnonzero(table["save_base"]), len(table))
            assert len(table) == steps
            rho = np.asarray(table.sigmas) / np.asarray(table.alphas)
            for start, end in pairwise(starts[:-1]):
                assert end - start == 1 or rho[start] / rho[end] < 8 * (1 + FLOAT64)
        # Short ones are as they were, and given ones are taken.
        whole = dpm_solver_singlestep(diffusion, 200, order=order)
        assert whole["save_base"].sum() < 0.7 * len(whole)
        given = dpm_solver_singlestep(diffusion, 3, groups=[2, 1])
        assert given["save_base"].tolist() == [1, 0, 1]
