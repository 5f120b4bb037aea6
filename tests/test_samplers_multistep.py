"""Multistep and singlestep solvers: measured orders, identities, and diffusers live."""

import math

import numpy as np
import pytest
import torch
from gaussian import convergence_order, run_table
from tables import execute, toy_model

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers import ddim
from fastdiff.samplers.exponential import phi, weights
from fastdiff.samplers.levels import visited
from fastdiff.samplers.multistep import deis, dpm_solver, dpmpp, dpmpp_2m, dpmpp_3m, dpmpp_sde, lms
from fastdiff.samplers.pndm import ipndm, plms, pndm
from fastdiff.samplers.singlestep import dpm_solver_singlestep, dpmpp_singlestep, group_sizes
from fastdiff.samplers.unipc import unipc


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
    order, errors = convergence_order(lambda d, n: builder(d, n, **options, **EVEN), diffusion, COUNTS)
    assert abs(order - theory) < 0.15, errors


def test_solver_order_of_the_peers_third_order_formula_is_two():
    """Their last term is half of what it should be; the default is right, and compat="diffusers" reproduces theirs."""
    diffusion = Diffusion(SCHEDULES["linear"])
    order, _ = convergence_order(
        lambda d, n: dpmpp(d, n, order=3, clip=None, compat="diffusers", **EVEN), diffusion, 4 * COUNTS
    )
    assert abs(order - 2) < 0.15


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
        torch.testing.assert_close(result, unclipped, rtol=1e-7, atol=1e-9)


def test_named_orders_are_their_general_form():
    diffusion = Diffusion(NoiseSchedule.cosine(100))
    np.testing.assert_array_equal(dpmpp_2m(diffusion, 12).rows(), dpmpp(diffusion, 12, order=2).rows())
    np.testing.assert_array_equal(dpmpp_3m(diffusion, 12).rows(), dpmpp(diffusion, 12, order=3).rows())


def test_unipc_predictor_is_dpmpp():
    """bh2 without the corrector is DPM-Solver++(2M) with the midpoint formula; order 3 is its order 3."""
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    x = torch.linspace(-2, 2, 7).reshape(7, 1)
    for order in (2, 3):
        ours = unipc(diffusion, 20, order=order, corrector=False)
        theirs = dpmpp(diffusion, 20, order=order, lower_order_final=True)
        torch.testing.assert_close(execute(ours, toy_model, x), execute(theirs, toy_model, x))


def test_deis_in_log_rho_is_the_exact_form_of_dpm_solver():
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    x = torch.linspace(-2, 2, 7).reshape(7, 1)
    for order in (2, 3):
        a = execute(deis(diffusion, 20, order=order), toy_model, x)
        b = execute(dpm_solver(diffusion, 20, order=order, solver_type="heun"), toy_model, x)
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("z", [-30.0, -2.0, -1.0, -0.999, -1e-3, 0.0, 1e-8, 0.5, 1.001, 7.0])
def test_phi_is_its_integral(k, z):
    x, w = np.polynomial.legendre.leggauss(60)
    r = 0.5 * (x + 1)
    expected = float(np.sum(0.5 * w * np.exp((1 - r) * z) * r ** (k - 1)) / math.factorial(k - 1))
    assert phi(k, z) == pytest.approx(expected, rel=1e-11)


def test_weights_integrate_polynomials():
    rng = np.random.default_rng(0)
    nodes = [0.0, -0.7, -1.9, 1.0]
    moments = [1 / (j + 1) for j in range(4)]
    polynomial = np.polynomial.Polynomial(rng.standard_normal(4))
    integral = polynomial.integ()(1.0) - polynomial.integ()(0.0)
    assert weights(nodes, moments) @ polynomial(np.array(nodes)) == pytest.approx(integral)


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


PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def theirs_and_ours(scheduler, table, *, stochastic=False):
    """Final states of a diffusers scheduler and of a table, from one start, with the same toy network and noise."""
    x = torch.linspace(-1.5, 1.5, 16, dtype=torch.float64).reshape(2, 1, 2, 4)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(table), *x.shape, generator=generator)
    state = x.clone()
    times = [int(t) for t in scheduler.timesteps]
    for i, t in enumerate(times):
        options = {}
        if stochastic:
            options["variance_noise"] = noise[i]
        model_input = scheduler.scale_model_input(state, scheduler.timesteps[i])
        m = toy_model(model_input, torch.full((2,), t, dtype=torch.float64))
        state = scheduler.step(m, scheduler.timesteps[i], state, **options).prev_sample.double()
    return state, execute(table, toy_model, x, noise if stochastic else None)


def same(theirs, ours, tolerance=1e-4):
    assert float((theirs - ours).abs().max() / theirs.abs().max().clamp(min=1)) < tolerance


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


def test_level_spacings_need_a_signal():
    with pytest.raises(ValueError, match="needs some signal"):
        dpmpp(Diffusion(NoiseSchedule.jsd(10), "v"), 5, spacing="karras")


def test_levels_between_timesteps_are_on_the_line():
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    levels = visited(diffusion, 50, spacing="karras", continuous=True)
    log_alpha = np.interp(levels.t, np.arange(1000), 0.5 * diffusion.schedule.log_alphas_cumprod)
    np.testing.assert_allclose(np.log(levels.alpha[:-1]), log_alpha, atol=1e-12)
    ramp = (levels.rho[:-1]) ** (1 / 7)
    np.testing.assert_allclose(np.diff(ramp), np.diff(ramp)[0], rtol=1e-6)
    even = visited(diffusion, 50, spacing="logsnr", continuous=True)
    np.testing.assert_allclose(np.diff(even.lam[:-1]), np.diff(even.lam)[0], rtol=1e-6)
