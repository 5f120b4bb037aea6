"""Every sampler on every Gaussian process: the twin of the same log-SNR, exact networks, orders, and EDM's own loop."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, samplers
from fastdiff.ops.table_state import TableState
from fastdiff.samplers import convergence_order
from fastdiff.samplers.analytic import gaussian_eps_moment
from fastdiff.samplers.flow import flow_decode, flow_encode
from fastdiff.samplers.invertible import invertible_decode, invertible_encode
from fastdiff.samplers.registry import SAMPLERS
from support.gaussian_tables import run_table
from support.textbook_processes import PROCESSES
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT, ORDER

NAMES = samplers.names(with_statistics=True)
OTHERS = {"flow_encode": flow_encode, "flow_decode": flow_decode, "invertible_encode": invertible_encode,
          "invertible_decode": invertible_decode}  # fmt: skip
VARIANCE = 0.25
OWN = {name: diffusion for name, diffusion in PROCESSES.items() if name not in ("vp", "cosine")}


def twin(diffusion):
    """The variance-preserving process of the same levels, whose network predicts x_0 and is given the timestep."""
    return Diffusion(NoiseSchedule.from_betas(diffusion.schedule.betas), "x0")


def built(name, diffusion, steps, **options):
    if name in OTHERS:
        return OTHERS[name](diffusion, steps)
    if name.startswith("analytic"):
        options["eps_moment"] = gaussian_eps_moment(diffusion, VARIANCE)
    # The bound of a sampler follows from what is predicted.
    known = inspect.signature(SAMPLERS[name].build).parameters
    options |= {"clip": None} if "clip" in known else {}
    options |= {"lam_min": -4.0} if "lam_min" in known else {}
    # As does the order of these.
    options |= {"order": 3} if name in ("ipndm", "plms", "pndm") else {}
    return samplers.build(name, diffusion, steps, **options)


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
@pytest.mark.parametrize("process", OWN)
def test_every_sampler_does_on_every_process_what_it_does_on_the_twin(process, name):
    if name == "pndm" and process in ("edm", "exploding", "shifted"):
        pytest.skip("its inner stages lie half way in the network's time, which is another level by another clock")
    diffusion = OWN[process]
    ours, theirs = built(name, diffusion, 12), built(name, twin(diffusion), 12)
    # Float64, over levels that differ in their last digits by their times.
    for column in ("cx", "cb", "cm", "c0", "c1", "c2", "c3", "s", "bx", "bb", "bm", "b0", "b1", "b2", "b3", "push"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64, err_msg=column)
    np.testing.assert_allclose(ours.alphas, theirs.alphas, rtol=FLOAT64)
    # And so does what they come to, with the exact network of each.
    found, expected = run_table(ours, diffusion, VARIANCE), run_table(theirs, twin(diffusion), VARIANCE)
    # Between listed timesteps the scale is straight, and not the paper's.
    rtol = 1e-4 if process == "listed" else FLOAT64_DIFFERENCE
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol)
    assert found[1] == pytest.approx(expected[1], rel=rtol)


# Rows that end between levels, at a level twice, or at the denoised mean.
INSIDE_STEPS = ("heun", "dpm2", "dpm2_ancestral", "edm", "pndm", "plms", "dpm_solver_singlestep", "dpmpp_singlestep")
MARGINALS = [
    name for name in NAMES if not name.startswith(("analytic", "annealed", "langevin", "renoise", "ddim_encode"))
]


@pytest.mark.parametrize("name", MARGINALS)
@pytest.mark.parametrize("process", PROCESSES)
def test_marginals_are_the_processs_row_by_row(process, name):
    diffusion = PROCESSES[process]
    options = {"jump_repeats": 2} if name == "repaint" else {}
    steps = {"ddpm": None, "euler_ancestral": diffusion.num_timesteps, "predictor_corrector": None, "repaint": None}
    table = built(name, diffusion, steps.get(name, 200), **options)
    variances, _ = run_table(table, diffusion, VARIANCE)
    expected = np.asarray(table.alphas) ** 2 * VARIANCE + np.asarray(table.sigmas) ** 2
    # What the last step leaves out of the data is not the point here, nor stages inside of a step.
    rows = slice(1, -3, 2) if name in INSIDE_STEPS else slice(0, -3)
    # First order in the steps, for those that draw noise.
    np.testing.assert_allclose(variances[rows], expected[1:][rows], rtol=0.06)


ORDERS = [
    ("euler", {}, 1), ("dpmpp", {}, 2), ("dpmpp", {"order": 3}, 3), ("dpm_solver", {}, 2), ("heun", {}, 2),
    ("dpm2", {}, 2), ("deis", {}, 3), ("unipc", {"lower_order_final": False}, 3), ("dpmpp_singlestep", {}, 2),
    ("ipndm", {}, 2),
]  # fmt: skip
# From so much noise that the first rows, which are of lower order, do not count, to where those of order 3
# do not cancel on Gaussian data.
BETWEEN = {
    "edm": Diffusion(NoiseSchedule.edm(1000, sigma_min=0.5, sigma_max=400.0), "F"),
    "exploding": Diffusion(NoiseSchedule.variance_exploding(1000, 0.5, 400.0), "score"),
    "flow": Diffusion(NoiseSchedule.flow(1000).subset(range(340, 998)), "velocity"),
    "shifted": Diffusion(NoiseSchedule.flow(1000, shift=3.0, time_scale=1.0).subset(range(145, 993)), "velocity"),
    "vdm": Diffusion(NoiseSchedule.vdm(1000, 1.3, -12.0), "eps"),
}


@pytest.mark.parametrize(("name", "options", "theory"), ORDERS, ids=str)
@pytest.mark.parametrize("process", BETWEEN)
def test_orders_are_those_of_theory_on_every_process(process, name, options, theory):
    assert abs(convergence_order(name, BETWEEN[process], **options) - theory) < ORDER


def edm_algorithm_2(
    network, z, count, churn, sigma_min, sigma_max, sigma_data, noise, s_noise=1.003, low=0.05, high=50.0
):
    """Karras et al. (2022), algorithm 2, with eq. 5 and table 1, in float64. `network(x, c_noise)` is F."""
    i, rho = np.arange(count), 7
    steps = (sigma_max ** (1 / rho) + i / (count - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    t = np.append(steps, 0.0)

    def denoised(x, sigma):
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
        c_in = 1 / np.sqrt(sigma**2 + sigma_data**2)
        return c_skip * x + c_out * network(c_in * x, np.log(sigma) / 4)

    x = z * t[0]
    for k in range(count):
        gamma = min(churn / count, np.sqrt(2) - 1) if low <= t[k] <= high else 0.0
        raised = t[k] + gamma * t[k]
        x_hat = x + np.sqrt(raised**2 - t[k] ** 2) * s_noise * noise[k]
        slope = (x_hat - denoised(x_hat, raised)) / raised
        x = x_hat + (t[k + 1] - raised) * slope
        if t[k + 1] != 0:
            x = x_hat + (t[k + 1] - raised) * (slope + (x - denoised(x, t[k + 1])) / t[k + 1]) / 2
    return x


@pytest.mark.parametrize("churn", [0.0, 30.0])
def test_edm_is_the_papers_algorithm_2(churn):
    """Of a curved network, to 1e-10; the table's state is the paper's over sqrt(1 + sigma^2)."""
    diffusion = OWN["edm"]
    rng = np.random.default_rng(0)
    z, noise = rng.normal(size=(5, 3)), rng.normal(size=(20, 5, 3))

    def network(x, t):
        return np.tanh(1.3 * x + t) - 0.4 * np.sin(2 * x)

    expected = edm_algorithm_2(network, z, 20, churn, 0.002, 80.0, 0.5, noise)
    table = samplers.edm(diffusion, 39, s_churn=churn, s_tmin=0.05, s_tmax=50.0, s_noise=1.003, clip=None)
    assert len(table) == 39
    # The first state has the largest level's own scale.
    x = torch.from_numpy(z * 80 / np.sqrt(1 + 80**2))
    state, draws = TableState(table), iter(noise[1:])
    for row in range(len(table)):
        scaled = x.numpy() * table["ci"][row]
        output = torch.from_numpy(network(scaled, table["t"][row]))
        step_noise = torch.zeros_like(x)
        if row % 2 == 1 and row < len(table) - 1:
            drawn = next(draws)
            step_noise = torch.from_numpy(drawn)
        x, _ = state.step(row, x, output, noise=step_noise)
    np.testing.assert_allclose(x.numpy(), expected, rtol=FLOAT64_PRODUCT, atol=FLOAT64_PRODUCT)


def test_a_table_is_refused_for_another_scale_or_clock():
    table = samplers.ddim(OWN["edm"], 10)
    with pytest.raises(ValueError, match=r"sigma_data 0\.5"):
        table.check_process(replace(OWN["edm"], sigma_data=1.0))
    with pytest.raises(ValueError, match="another process"):
        samplers.ddim(twin(OWN["flow"]), 10).check_process(Diffusion(OWN["flow"].schedule, "x0"))
    table.check_process(OWN["edm"])
    assert samplers.ddim(OWN["edm"], 10) == table.from_json(table.to_json())
