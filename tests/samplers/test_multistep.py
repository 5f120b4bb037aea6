"""Multistep and singlestep solvers: measured orders, identities, and diffusers live."""

import inspect

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers import ddim
from fastdiff.samplers.levels import visited
from fastdiff.samplers.multistep import deis, dpm_solver, dpmpp, dpmpp_2m, dpmpp_3m, dpmpp_sde, lms
from fastdiff.samplers.pndm import ipndm, plms
from fastdiff.samplers.singlestep import dpm_solver_singlestep, dpmpp_singlestep
from fastdiff.samplers.unipc import unipc
from support.diffusers_runs import PREDICTIONS, same, theirs_and_ours
from support.gaussian_tables import convergence_order, run_table
from support.table_runs import execute, toy_model
from support.tolerances import FLOAT64_DIFFERENCE, ORDER


def without_the_cleanest(schedule):
    """Down to a level with noise left: for Gaussian data the errors of order 3 cancel over the whole range."""
    return NoiseSchedule.from_betas(schedule.subset(range(150, len(schedule))).betas)


SCHEDULES = {
    "linear": without_the_cleanest(NoiseSchedule.linear(1000)),
    "cosine": without_the_cleanest(NoiseSchedule.cosine(1000)),
}
EVEN = {"spacing": "logsnr", "final": "sigma_min", "continuous": True}
COUNTS = np.array([120, 165, 240, 330, 480])

# Builder, options, theoretical order.
ORDERS = {
    "dpmpp 1": (dpmpp, {"order": 1, "clip": None}, 1),
    "dpmpp 2 midpoint": (dpmpp, {"order": 2, "clip": None}, 2),
    "dpmpp 2 heun": (dpmpp, {"order": 2, "solver_type": "heun", "clip": None}, 2),
    "dpmpp 3": (dpmpp, {"order": 3, "clip": None}, 3),
    "dpm_solver 1": (dpm_solver, {"order": 1}, 1),
    "dpm_solver 2": (dpm_solver, {"order": 2}, 2),
    "dpm_solver 3": (dpm_solver, {"order": 3}, 3),
    "dpm_solver 2 heun": (dpm_solver, {"order": 2, "solver_type": "heun"}, 2),
    "deis 1": (deis, {"order": 1}, 1),
    "deis 2": (deis, {"order": 2}, 2),
    "deis 3": (deis, {"order": 3}, 3),
    "deis 2 t": (deis, {"order": 2, "variable": "t"}, 2),
    "deis 2 rho": (deis, {"order": 2, "variable": "rho"}, 2),
    "lms 2": (lms, {"order": 2}, 2),
    "lms 3": (lms, {"order": 3}, 3),
    "ipndm 1": (ipndm, {"order": 1}, 1),
    "ipndm 2": (ipndm, {"order": 2}, 2),
    "ipndm 4": (ipndm, {"order": 4}, 2),
    "plms 4": (plms, {"order": 4}, 2),
    "unipc 1": (unipc, {"order": 1, "clip": None, "lower_order_final": False}, 2),
    "unipc 1 alone": (unipc, {"order": 1, "clip": None, "corrector": False, "lower_order_final": False}, 1),
    "unipc 2 alone": (unipc, {"order": 2, "clip": None, "corrector": False, "lower_order_final": False}, 2),
    "unipc 2": (unipc, {"order": 2, "clip": None, "lower_order_final": False}, 3),
    "unipc 2 bh1": (unipc, {"order": 2, "variant": "bh1", "clip": None, "lower_order_final": False}, 3),
    "unipc 2 noise": (unipc, {"order": 2, "predict_x0": False, "lower_order_final": False}, 3),
    "unipc 3 alone": (unipc, {"order": 3, "clip": None, "corrector": False, "lower_order_final": False}, 3),
    "singlestep 1": (dpmpp_singlestep, {"order": 1, "clip": None}, 1),
    "singlestep 2": (dpmpp_singlestep, {"order": 2, "clip": None}, 2),
    "singlestep 3": (dpmpp_singlestep, {"order": 3, "clip": None}, 3),
    "singlestep noise 2": (dpm_solver_singlestep, {"order": 2}, 2),
    "singlestep noise 3": (dpm_solver_singlestep, {"order": 3}, 3),
}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", ORDERS)
def test_solver_has_its_order(case, schedule, prediction):
    builder, options, theory = ORDERS[case]
    diffusion = Diffusion(SCHEDULES[schedule], prediction)
    # From the schedule's own end, where the first steps, which have no past and so a lower order, change little.
    whole = {"lam_min": None} if "lam_min" in inspect.signature(builder).parameters else {}
    order, errors = convergence_order(lambda d, n: builder(d, n, **options, **whole, **EVEN), diffusion, COUNTS)
    assert abs(order - theory) < ORDER, errors


def test_solver_order_of_the_peers_third_order_formula_is_two():
    """Their last term is half of what it should be; the default is right, and compat="diffusers" reproduces theirs."""
    diffusion = Diffusion(SCHEDULES["linear"])
    order, _ = convergence_order(
        lambda d, n: dpmpp(d, n, order=3, clip=None, compat="diffusers", **EVEN), diffusion, 4 * COUNTS
    )
    assert abs(order - 2) < ORDER


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpmpp_sde_reaches_the_data_variance(order):
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    errors = []
    for steps in (50, 200, 800):
        table = dpmpp_sde(diffusion, steps, order=order, clip=None, spacing="logsnr", continuous=True)
        variances, _ = run_table(table, diffusion, 0.25)
        errors.append(abs(variances[-1] / 0.25 - 1))
    assert errors[2] < errors[0] / 10
    if order > 1:
        # What 800 steps leave of it, by the second orders and by the first.
        assert errors[2] < 1e-3
    assert errors[2] < 0.02


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "quad", "logsnr", "karras", "exponential"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_first_orders_are_ddim(prediction, spacing, final):
    diffusion = Diffusion(NoiseSchedule.linear(100, 1e-3, 0.2), prediction)
    levels = visited(diffusion, 9, spacing=spacing, final=final)
    first = dpmpp(diffusion, 9, order=1, spacing=spacing, final=final)
    x = torch.linspace(-2, 2, 7).reshape(7, 1)
    expected = execute(first, toy_model, x)
    if final == "zero":
        positions = [int(t) for t in levels.t]
        torch.testing.assert_close(execute(ddim(diffusion, timesteps=positions), toy_model, x), expected)
    unclipped = execute(dpmpp(diffusion, 9, order=1, spacing=spacing, final=final, clip=None), toy_model, x)
    for builder, options in (
        (dpm_solver, {"order": 1}),
        (deis, {"order": 1}),
        (lms, {"order": 1}),
        (ipndm, {"order": 1}),
        (dpmpp_singlestep, {"order": 1, "clip": None}),
        (dpm_solver_singlestep, {"order": 1}),
        (unipc, {"order": 1, "corrector": False, "clip": None}),
        (unipc, {"order": 1, "corrector": False, "predict_x0": False}),
    ):
        result = execute(builder(diffusion, 9, spacing=spacing, final=final, **options), toy_model, x)
        # Noise and image forms differ by quotients of alpha, which reach 1e2.
        torch.testing.assert_close(result, unclipped, rtol=1e-7, atol=FLOAT64_DIFFERENCE)


def test_named_orders_are_their_general_form():
    diffusion = Diffusion(NoiseSchedule.cosine(100))
    np.testing.assert_array_equal(dpmpp_2m(diffusion, 12).rows(), dpmpp(diffusion, 12, order=2).rows())
    np.testing.assert_array_equal(dpmpp_3m(diffusion, 12).rows(), dpmpp(diffusion, 12, order=3).rows())


def test_deis_in_log_rho_is_the_exact_form_of_dpm_solver():
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    x = torch.linspace(-2, 2, 7).reshape(7, 1)
    for order in (2, 3):
        a = execute(deis(diffusion, 20, order=order), toy_model, x)
        b = execute(dpm_solver(diffusion, 20, order=order, solver_type="heun"), toy_model, x)
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
@pytest.mark.parametrize("steps", [10, 20])
def test_multistep_equals_diffusers(prediction, spacing, solver_type, order, algorithm, steps):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    final = "sigma_min" if algorithm == "dpmsolver" else "zero"
    scheduler = diffusers.DPMSolverMultistepScheduler(
        1000, prediction_type=prediction, timestep_spacing=spacing, solver_type=solver_type, solver_order=order,
        algorithm_type=algorithm, final_sigmas_type=final,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    builder = {"dpmsolver++": dpmpp, "dpmsolver": dpm_solver, "sde-dpmsolver++": dpmpp_sde}[algorithm]
    clip = {} if algorithm == "dpmsolver" else {"clip": None}
    table = builder(
        Diffusion(NoiseSchedule.linear(1000), PREDICTIONS[prediction]),
        timesteps=[int(t) for t in scheduler.timesteps],
        order=order,
        solver_type=solver_type,
        final=final,
        compat="diffusers",
        **clip,
    )
    same(*theirs_and_ours(scheduler, table, stochastic=algorithm.startswith("sde")))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_equals_diffusers(prediction, order):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.DEISMultistepScheduler(1000, prediction_type=prediction, solver_order=order)
    scheduler.set_timesteps(12)
    table = deis(
        Diffusion(NoiseSchedule.linear(1000), PREDICTIONS[prediction]),
        timesteps=[int(t) for t in scheduler.timesteps],
        order=order,
        final="sigma_min",
    )
    same(*theirs_and_ours(scheduler, table))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_lms_equals_diffusers(prediction):
    """Their state is x / alpha, and they integrate the same polynomials numerically. They refuse sample prediction."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.LMSDiscreteScheduler(
        1000, beta_start=1e-4, beta_end=0.02, prediction_type=prediction, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(15)
    diffusion = Diffusion(NoiseSchedule.linear(1000), PREDICTIONS[prediction])
    table = lms(diffusion, timesteps=[int(t) for t in scheduler.timesteps])
    x = torch.linspace(-1.5, 1.5, 16, dtype=torch.float64).reshape(2, 1, 2, 4)
    state = x / float(table.alphas[0])
    for t in scheduler.timesteps:
        m = toy_model(scheduler.scale_model_input(state, t), t.double().expand(2))
        state = scheduler.step(m, t, state).prev_sample
    same(state, execute(table, toy_model, x))


BAD = {
    "order": (dpmpp, {"order": 4}, "order must be a whole number from 1 to 3"),
    "deis order": (deis, {"order": 0}, "order must be a whole number from 1 to 4"),
    "solver type": (dpmpp, {"solver_type": "euler"}, "solver_type"),
    "compat": (dpmpp, {"compat": "openai"}, "compat"),
    "variable": (deis, {"variable": "sigma"}, "variable"),
    "variant": (unipc, {"variant": "bh3"}, "variant"),
    "clip": (dpmpp, {"clip": -1}, "clip"),
    "final": (dpmpp, {"final": "none"}, "final must be"),
    "spacing": (dpmpp, {"spacing": "karas"}, "did you mean 'karras'"),
    "continuous": (dpmpp, {"continuous": True}, "whole timesteps"),
    "steps": (dpmpp, {"steps": 101}, "steps must be"),
    "steps with an end": (dpmpp, {"steps": 100, "final": "sigma_min"}, "at most T - 1"),
    "fractions": (dpmpp, {"steps": None, "timesteps": [3.5, 1.0]}, "whole numbers"),
    "out of range": (dpmpp, {"steps": None, "timesteps": [100.5, 1.0], "continuous": True}, "strictly monotone"),
    "ends twice": (dpmpp, {"steps": None, "timesteps": [50, 0], "final": "sigma_min"}, "cannot be evaluated"),
}


@pytest.mark.parametrize("case", BAD)
def test_multistep_refuses(case):
    builder, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        builder(Diffusion(NoiseSchedule.linear(100)), **({"steps": 10} | options))
