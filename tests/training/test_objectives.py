"""Objectives: their formulas, and their expected values for Gaussian data, whose best network is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastdiff import Diffusion, NoiseSchedule, ops
from fastdiff.files.data import DataScaling
from fastdiff.ops.reference.bound import BoundTable, variational_terms
from fastdiff.process.noise import Stream, integers
from fastdiff.training.config import TrainConfig
from fastdiff.training.densities import importance, log_normal
from fastdiff.training.objectives import Objective, huber, loss_weights
from fastdiff.training.weightings import WEIGHTINGS
from support.gaussian_networks import gaussian_network
from support.tolerances import FLOAT32_SUM, FLOAT64_DIFFERENCE

CPU = torch.device("cpu")
CONTINUOUS = DataScaling(None)
T = 20
MEAN, VARIANCE = 0.3, 0.4
PREDICTIONS = ("eps", "x0", "v", "score")


def config(**settings):
    return TrainConfig(steps=1, **settings)


def objective(diffusion, scaling=CONTINUOUS, **settings):
    return Objective(config(**settings), diffusion, scaling, CPU)


def process(prediction="eps", variance="fixed_small", schedule=None):
    return Diffusion(schedule or NoiseSchedule.cosine(T), prediction, variance)


def standard_nodes(repeats):
    """Numbers whose mean over the pairs is exact for polynomials of degree 5: Gauss and Hermite's, repeated."""
    nodes = np.repeat([-math.sqrt(3), 0.0, math.sqrt(3)], [1, 4, 1])
    return torch.from_numpy(np.repeat(nodes, repeats))


def expected_losses(loss, diffusion, scale=1.0, values=None, nodes=None):
    """The expected loss at each t for x_0 ~ N(MEAN, VARIANCE) of `scale` times the best network, [T] float64.

    An image holds x_0 from node i at [i, j] and the noise from node j: its mean loss is the expectation.
    """
    nodes = standard_nodes(1) if nodes is None else nodes
    n, t = len(nodes), torch.arange(diffusion.num_timesteps)
    x0 = (MEAN + math.sqrt(VARIANCE) * nodes)[:, None].expand(len(t), 1, n, n)
    z = nodes[None, :].expand_as(x0)
    c0, c1, c2, c3 = torch.from_numpy(diffusion.noising_table()).T[:, :, None, None, None]
    x_t, target = c0 * x0 + c1 * z, c2 * x0 + c3 * z
    output = scale * gaussian_network(diffusion, VARIANCE, MEAN)(x_t, t)
    if values is not None:
        output = torch.cat([output, torch.full_like(output, values)], dim=1)
    return loss(*(value.float() for value in (output, target, x0, x_t)), t).double().numpy()


def squared_errors(diffusion, scale=1.0):
    """E |scale m - target|^2 of the best network m, [T]: what remains of the variance, and what the scale adds."""
    alpha, sigma = diffusion.signal_noise()
    _, _, c2, c3 = diffusion.noising_table().T
    total = alpha**2 * VARIANCE + sigma**2
    second_moment = (c2 * MEAN) ** 2 + c2**2 * VARIANCE + c3**2
    # Of the target given x_t: both are linear in x_0 and z.
    remaining = c2**2 * VARIANCE + c3**2 - (c2 * alpha * VARIANCE + c3 * sigma) ** 2 / total
    return remaining + (scale - 1) ** 2 * (second_moment - remaining)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["none", *WEIGHTINGS, "own"])
@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_expected_squared_error_of_gaussian_data(prediction, weighting, scale):
    diffusion = process(prediction)
    own = np.linspace(0, 2, T)
    found = expected_losses(objective(diffusion, weighting=own if weighting == "own" else weighting), diffusion, scale)
    weights = {"none": np.ones(T), "own": own}
    weight = weights[weighting] if weighting in weights else WEIGHTINGS[weighting](diffusion)
    np.testing.assert_allclose(found, weight * squared_errors(diffusion, scale), rtol=10 * FLOAT32_SUM)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_weighted_losses_of_one_denoiser_agree(weighting, scale):
    """Whatever it predicts: the same predicted x_0, that of the best one with an error that is proportional to it."""
    losses = []
    for prediction in PREDICTIONS:
        diffusion = process(prediction)
        px, pm = (torch.from_numpy(c)[:, None, None, None] for c in diffusion.x0_coefficients())
        denoiser = gaussian_network(process("x0"), VARIANCE, MEAN)
        weighted = objective(diffusion, weighting=weighting)

        def loss(output, target, x0, x_t, t, px=px, pm=pm, denoiser=denoiser, weighted=weighted):
            said = (scale * denoiser(x_t.double(), t) - px * x_t.double()) / pm
            return weighted(said.float(), target, x0, x_t, t)

        losses.append(expected_losses(loss, diffusion))
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=100 * FLOAT32_SUM)


def bound_terms(diffusion, scale, log_variance):
    """E L_t in bits per dimension, for the log-variance [T] of the reverse step."""
    schedule = diffusion.schedule
    x0_error = diffusion.x0_coefficients()[1] ** 2 * squared_errors(diffusion, scale)
    true = schedule.posterior_log_variance_clipped
    shift = schedule.posterior_mean_coef1**2 * x0_error * np.exp(-log_variance)
    terms = 0.5 * (np.exp(true - log_variance) - 1 - (true - log_variance) + shift)
    # The decoder's density, with the predicted x_0 as its mean.
    terms[0] = 0.5 * (math.log(2 * math.pi) + log_variance[0] + x0_error[0] * math.exp(-log_variance[0]))
    return terms / math.log(2)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range", "learned"])
@pytest.mark.parametrize("scale", [1.0, 0.9])
def test_expected_bound_of_gaussian_data(prediction, variance, scale):
    diffusion = process(prediction, variance)
    values = {"learned_range": 0.4, "learned": -1.7}.get(variance)
    low, high = diffusion.variance_logs()
    share = 0.5 if values is None else (values + 1) / 2
    expected = bound_terms(diffusion, scale, share * high + (1 - share) * low)
    found = expected_losses(objective(diffusion, loss="vlb"), diffusion, scale, values)
    np.testing.assert_allclose(found, T * expected, rtol=100 * FLOAT32_SUM, atol=FLOAT32_SUM)
    if values is not None:
        simple = squared_errors(diffusion, scale)
        for weighting in ("none", "min_snr"):
            hybrid = objective(diffusion, loss="hybrid", weighting=weighting)
            weights = loss_weights(diffusion, hybrid.config)
            wanted = simple * (1 if weights is None else weights) + 0.001 * T * expected
            found = expected_losses(hybrid, diffusion, scale, values)
            np.testing.assert_allclose(found, wanted, rtol=100 * FLOAT32_SUM, atol=FLOAT32_SUM)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_expected_huber_loss_of_gaussian_data(prediction):
    """The best network's error is normal: Huber's loss of it has a closed form."""
    diffusion, delta = process(prediction), 0.5
    s = np.sqrt(squared_errors(diffusion))
    a = delta / s
    erf = np.vectorize(math.erf)(a / math.sqrt(2))
    density = np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    expected = s**2 * (erf - 2 * a * density) + 4 * delta * s * density - delta**2 * (1 - erf)
    quantiles = torch.special.ndtri((torch.arange(300, dtype=torch.float64) + 0.5) / 300)
    found = expected_losses(objective(diffusion, loss="huber", huber_delta=delta), diffusion, nodes=quantiles)
    # The mean square of 300 quantiles lacks half a percent of the tails.
    np.testing.assert_allclose(found, expected, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huber_is_twice_that_of_pytorch_with_its_gradient(dtype):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    # No error, and one at the bend.
    output[0, 0, 0, 0], output[0, 0, 0, 1] = target[0, 0, 0, 0], target[0, 0, 0, 1] + 0.7
    reference = output.clone().requires_grad_()
    expected = 2 * F.huber_loss(reference, target, delta=0.7, reduction="none").mean(dim=(1, 2, 3))
    expected.sum().backward()
    found = output.to(dtype).requires_grad_()
    losses = huber(found, target.to(dtype), 0.7)
    losses.sum().backward()
    tolerance = FLOAT64_DIFFERENCE if dtype == torch.float64 else FLOAT32_SUM
    torch.testing.assert_close(losses.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.grad.double(), reference.grad, rtol=tolerance, atol=tolerance)


def test_default_objective_is_the_squared_error_at_uniform_timesteps():
    diffusion = process("v")
    plain = objective(diffusion)
    output, target = torch.randn(2, 6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t, factors = plain.timesteps(3, 5, np.arange(6))
    assert factors is None
    np.testing.assert_array_equal(t, integers(3, np.arange(6), T, Stream.TRAIN_TIME, 5))
    assert torch.equal(plain(output, target, None, output, torch.from_numpy(t)), ops.mse(output, target))
    assert plain.state_dict() == {}


def test_vlb_is_the_bound_of_discrete_data():
    """Against the bound's reference in float64, decoder included."""
    diffusion, scaling = process("eps", "learned_range"), DataScaling(17)
    generator = torch.Generator().manual_seed(0)
    x0 = scaling.to_model(torch.randint(17, (T, 1, 4, 4), generator=generator).to(torch.uint8))
    t = torch.arange(T)
    x_t, target = ops.diffuse(x0, t, torch.tensor(diffusion.noising_table(), dtype=torch.float32), seed=0, row=0)
    output = torch.cat([target + 0.1 * torch.randn(target.shape, generator=generator), torch.zeros_like(target)], 1)
    found = objective(diffusion, scaling, loss="vlb")(output, target, x0, x_t, t)
    table = BoundTable.build(diffusion, dtype=torch.float64)
    m, values = output.double().chunk(2, dim=1)
    x0_pred, log_variance = table.x0(x_t.double(), t, m), table.log_variance(t, x_t.double(), values)
    expected = T * variational_terms(x0.double(), t, x0_pred, log_variance, table, levels=17)
    torch.testing.assert_close(found.double(), expected, rtol=100 * FLOAT32_SUM, atol=FLOAT32_SUM)


def warmed(aware, seed=0):
    """The objective after each timestep has its ten losses."""
    losses = np.random.default_rng(seed).exponential(np.linspace(0.1, 5, T), (10, T)).astype(np.float32)
    for row in losses:
        aware.observe(torch.arange(T), torch.from_numpy(row))
    return aware


def test_loss_aware_timesteps_leave_the_bound_as_it_is():
    """L_vlb by importance: its mean over all t is the full sum, exactly and over draws within its standard error."""
    diffusion = process("eps", "fixed_small")
    aware = objective(diffusion, loss="vlb")
    assert aware.timesteps(0, 0, np.arange(4))[1] is None
    warmed(aware)
    terms = expected_losses(aware, diffusion, scale=0.9) / T
    p = aware._history.density()
    assert p.max() / p.min() > 10
    assert (p * importance(p) * T * terms).sum() == pytest.approx(terms.sum(), rel=FLOAT64_DIFFERENCE)
    drawn = [aware.timesteps(7, step, np.arange(128)) for step in range(300)]
    t, factors = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    np.testing.assert_allclose(factors, 1 / (T * p[t] / p.sum()), rtol=FLOAT64_DIFFERENCE)
    estimates = factors * T * terms[t]
    error = estimates.std() / math.sqrt(estimates.size)
    assert abs(estimates.mean() - terms.sum()) < 4 * error
    # Uniform draws would be further off: that is what the density is for, where losses are as they were.
    likely = np.sqrt((aware._history.losses**2).mean(axis=1))
    assert (likely * importance(p))[1:].std() < 0.1 * likely.std()


def test_densities_are_drawn_and_put_back_where_asked():
    diffusion, places = process(), np.arange(4000)
    mine = np.linspace(0, 1, T)
    for settings in ({}, {"importance": False}):
        t, factors = objective(diffusion, timestep_density=mine, **settings).timesteps(0, 0, places)
        assert factors is None
        # A share's standard deviation is below 0.005: five of them.
        np.testing.assert_allclose(np.bincount(t, minlength=T) / 4000, mine / mine.sum(), atol=0.025)
    drawn = objective(diffusion, timestep_density="log_normal", importance=True)
    t, factors = drawn.timesteps(0, 0, places)
    p = log_normal(diffusion)
    np.testing.assert_allclose(factors, 1 / (T * p[t]), rtol=FLOAT64_DIFFERENCE)


def test_draws_of_a_part_are_those_of_the_whole():
    aware = warmed(objective(process(), timestep_density="loss_aware"))
    whole = aware.timesteps(1, 2, np.arange(12))
    for rank in range(3):
        for one, all_ in zip(aware.timesteps(1, 2, np.arange(rank, 12, 3)), whole, strict=True):
            np.testing.assert_array_equal(one, all_[rank::3])


def test_history_goes_through_a_checkpoint():
    one = warmed(objective(process(), loss="vlb"))
    two = objective(process(), loss="vlb")
    two.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    for seed, step in ((0, 0), (1, 5)):
        for a, b in zip(
            one.timesteps(seed, step, np.arange(50)), two.timesteps(seed, step, np.arange(50)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


REFUSED = {
    "learned variance, simple": ({}, "learned_range", r"variance 'learned_range' needs loss 'hybrid' or 'vlb', got 's"),
    "fixed variance, hybrid": (
        {"loss": "hybrid"},
        "fixed_large",
        "needs loss 'simple', 'huber' or 'vlb', got 'hybrid'",
    ),
    "weights": ({"weighting": [1.0] * 3}, "fixed_small", "weighting must have a number for each of the 20 timesteps"),
    "density": ({"timestep_density": [1.0] * 21}, "fixed_small", "timestep_density must have .* 20 timesteps, got 21"),
    "a timestep that is never drawn": (
        {"loss": "vlb", "timestep_density": [1.0, 0.0] * 10},
        "fixed_small",
        "timestep t = 1 is never drawn",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_the_process_is_refused(name):
    settings, variance, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        objective(process(variance=variance), **settings)


def test_weightings_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="leaves no signal"):
        objective(process(schedule=NoiseSchedule.jsd(8)), weighting="truncated_snr")
