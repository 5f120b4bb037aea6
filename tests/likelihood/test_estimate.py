"""Estimated statistics of a network's eps against closed forms for Gaussian data."""

from typing import get_args

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, likelihood
from fastdiff.likelihood.estimate import eps_error, eps_moment
from fastdiff.process import noise
from fastdiff.process.diffusion import Prediction
from fastdiff.process.noise import Stream
from fastdiff.samplers.analytic import analytic_ddpm, gaussian_eps_error, gaussian_eps_moment, path_cost, step_costs
from support.gaussian_tables import network_gains, run_table
from support.tolerances import FLOAT64

DATA_VARIANCE = 0.25


def exact_model(diffusion):
    def model(x, t):
        return torch.from_numpy(network_gains(diffusion, t.numpy(), DATA_VARIANCE)).reshape(-1, 1, 1, 1).to(x) * x

    return model


def gaussian_images(count, size=8, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, DATA_VARIANCE**0.5, (count, 1, size, size)))


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_estimates_match_the_closed_forms(schedule, prediction):
    diffusion = Diffusion(NoiseSchedule.named(schedule, 40), prediction)
    images = gaussian_images(100)
    moment = eps_moment(exact_model(diffusion), diffusion, images)
    error = eps_error(exact_model(diffusion), diffusion, images)
    # A mean of squares of n normals is off by sqrt(2 / n), relatively.
    tolerance = 5 * np.sqrt(2 / images.numel())
    np.testing.assert_allclose(moment, gaussian_eps_moment(diffusion, DATA_VARIANCE), rtol=tolerance)
    np.testing.assert_allclose(error, gaussian_eps_error(diffusion, DATA_VARIANCE), rtol=tolerance)
    assert moment.dtype == error.dtype == np.float64
    assert moment.shape == error.shape == (40,)


def test_estimates_are_the_formulas_on_the_contracts_noise():
    diffusion = Diffusion(NoiseSchedule.linear(20), "v")
    images = gaussian_images(3, 2)
    alpha, sigma = diffusion.signal_noise()
    moment = eps_moment(exact_model(diffusion), diffusion, images, seed=5, sample_ids=[7, 8, 9])
    error = eps_error(exact_model(diffusion), diffusion, images, seed=5, sample_ids=[7, 8, 9])
    for t in range(20):
        z = noise.normals(5, [7, 8, 9], 4, Stream.LIKELIHOOD, t).reshape(images.shape)
        x_t = alpha[t] * images.numpy() + sigma[t] * z
        eps = sigma[t] * x_t / (alpha[t] ** 2 * DATA_VARIANCE + sigma[t] ** 2)
        # The contract's normals hold to a few float32 ulp.
        assert moment[t] == pytest.approx((eps**2).mean(), rel=1e-5)
        assert error[t] == pytest.approx(((eps - z) ** 2).mean(), rel=1e-4)


def test_estimates_are_one_for_every_prediction():
    """x0 and v networks lose nothing to cancellation where sigma is small, in float32."""
    for schedule in ("linear", "cosine"):
        seen = []
        for prediction in get_args(Prediction):
            diffusion = Diffusion(NoiseSchedule.named(schedule, 50), prediction)
            seen.append(eps_error(exact_model(diffusion), diffusion, gaussian_images(4).float()))
        for other in seen[1:]:
            # float32, and eps is a small difference where sigma is small.
            np.testing.assert_allclose(other, seen[0], rtol=1e-3, atol=1e-7)


def test_estimates_do_not_depend_on_the_batch_size():
    diffusion = Diffusion(NoiseSchedule.cosine(12))
    images = gaussian_images(5)
    for estimate in (eps_moment, eps_error):
        runs = [estimate(exact_model(diffusion), diffusion, images, batch_size=size) for size in (1, 7, 256)]
        for run in runs[1:]:
            np.testing.assert_allclose(run, runs[0], rtol=FLOAT64)


def test_estimates_of_a_network_that_knows_the_image():
    diffusion = Diffusion(NoiseSchedule.linear(30), "x0", "learned")
    image = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)

    def model(x, t):
        return torch.cat([image.expand_as(x), torch.full_like(x, 9.0)], dim=1)

    assert (eps_error(model, diffusion, image.repeat(3, 1, 1, 1)) == 0).all()
    # A mean of 3,200 squares of normals has a standard error of 0.025; ten of them.
    np.testing.assert_allclose(eps_moment(model, diffusion, image.repeat(50, 1, 1, 1)), 1, atol=0.25)


def test_estimates_take_bytes_and_conditions():
    diffusion = Diffusion(NoiseSchedule.cosine(6), "x0")
    bytes_ = torch.randint(0, 17, (4, 1, 4, 4), dtype=torch.uint8)
    scaled = bytes_.float() / 8 - 1
    seen = []

    def model(x, t, label):
        assert label.shape == t.shape
        return 0.5 * x

    kwargs = {"label": torch.arange(4)}
    a = eps_moment(
        model, diffusion, bytes_, levels=17, model_kwargs=kwargs, batch_size=10,
        on_progress=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    # Bytes are scaled in float32.
    np.testing.assert_allclose(a, eps_moment(model, diffusion, scaled, model_kwargs=kwargs), rtol=1e-5)
    assert seen == [(10, 24), (20, 24), (24, 24)]


def test_estimates_of_a_respaced_process_are_those_at_its_times():
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    chain = diffusion.respace(5)
    images = gaussian_images(100)
    moment = eps_moment(exact_model(diffusion), chain, images)
    expected = gaussian_eps_moment(diffusion, DATA_VARIANCE)[chain.schedule.timesteps.astype(int)]
    np.testing.assert_allclose(moment, expected, rtol=5 * np.sqrt(2 / images.numel()))


def test_estimated_moments_make_tables_that_keep_the_marginals():
    diffusion = Diffusion(NoiseSchedule.linear(200))
    moment = eps_moment(exact_model(diffusion), diffusion, gaussian_images(200), batch_size=2000)
    table = analytic_ddpm(diffusion, 10, eps_moment=moment, clip=None)
    variances, _ = run_table(table, diffusion)
    expected = table.alphas**2 * DATA_VARIANCE + table.sigmas**2
    # From statistics that are themselves estimated.
    np.testing.assert_allclose(variances[:-1], expected[1:-1], rtol=0.05)


def test_estimated_errors_predict_the_bound():
    """From one measurement at all t, the bound of any respaced chain."""
    diffusion = Diffusion(NoiseSchedule.linear(40))
    images = gaussian_images(200)
    model = exact_model(diffusion)
    costs, last = step_costs(diffusion, eps_error(model, diffusion, images), data_bound=None)
    for path in ([5, 20, 39], [2, 7, 15, 25, 39]):
        terms = likelihood.bound(model, diffusion.subset(path), images, decoder="gaussian", clip=None).terms
        spread = float(terms.sum(dim=1).std()) / len(images) ** 0.5
        assert abs(path_cost(costs, last, path) - float(terms.sum(dim=1).mean())) < 6 * spread


DIFFUSION = Diffusion(NoiseSchedule.cosine(5), "x0")
BAD = {
    "nan": (torch.full((1, 1, 2, 2), torch.nan), {}, "NaN"),
    "empty": (torch.zeros(0, 1, 2, 2), {}, "at least one image"),
    "bytes": (torch.full((1, 1, 2, 2), 17, dtype=torch.uint8), {"levels": 17}, r"in \[0, 17\)"),
    "half": (torch.zeros(1, 1, 2, 2, dtype=torch.float16), {}, "float32, float64 or uint8"),
    "batch size": (torch.zeros(1, 1, 2, 2), {"batch_size": 0}, "batch_size"),
    "ids": (torch.zeros(1, 1, 2, 2), {"sample_ids": [1, 2]}, "sample_ids"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("estimate", [eps_moment, eps_error])
def test_estimate_refuses(estimate, case):
    images, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        estimate(lambda x, t: x, DIFFUSION, images, **options)


def test_estimate_refuses_outputs_of_the_wrong_shape():
    with pytest.raises(ValueError, match="model's output must have shape"):
        eps_moment(lambda x, t: torch.cat([x, x], 1), DIFFUSION, torch.zeros(1, 1, 2, 2))
