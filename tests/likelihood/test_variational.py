"""The variational bound against closed forms for Gaussian data."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff import likelihood
from fastdiff.process import noise
from fastdiff.process.noise import Stream
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

LN2 = math.log(2)


def gaussian_model(diffusion, data_variance):
    abar = torch.tensor(diffusion.schedule.alphas_cumprod)
    position = {int(t): i for i, t in enumerate(diffusion.schedule.timesteps)}

    def model(x, t):
        at = torch.tensor([position[int(v)] for v in t])
        a = abar[at].reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        total = a * data_variance + 1 - a
        eps = torch.sqrt(1 - a) * x / total
        x0 = torch.sqrt(a) * data_variance * x / total
        views = {"eps": eps, "x0": x0, "v": torch.sqrt(a) * eps - torch.sqrt(1 - a) * x0, "score": -x / total}
        return views[diffusion.prediction]

    return model


def exact_terms(diffusion, model, x, seed):
    """Every term from the textbook formulas in float64 NumPy, with the contract's noise."""
    s = diffusion.schedule
    a, prev, beta = s.alphas_cumprod, s.alphas_cumprod_prev, s.betas
    terms = np.zeros((x.shape[0], len(s)))
    for t in range(len(s)):
        z = noise.normals(seed, np.arange(x.shape[0]), x[0].size, Stream.LIKELIHOOD, t).reshape(x.shape)
        x_t = np.sqrt(a[t]) * x + np.sqrt(1 - a[t]) * z
        network_t = torch.full((x.shape[0],), int(s.timesteps[t]))
        m = model(torch.from_numpy(x_t), network_t).numpy()
        views = {
            "eps": (x_t - np.sqrt(1 - a[t]) * m) / np.sqrt(a[t]),
            "x0": m,
            "v": np.sqrt(a[t]) * x_t - np.sqrt(1 - a[t]) * m,
            "score": (x_t + (1 - a[t]) * m) / np.sqrt(a[t]),
        }
        x0_pred = views[diffusion.prediction]
        posterior = beta * (1 - prev) / (1 - a)
        small = posterior[t] if t > 0 else posterior[1]
        variance = small if diffusion.variance == "fixed_small" or t == 0 else beta[t]
        if t == 0:
            nats = 0.5 * np.log(2 * np.pi * variance) + (x - x0_pred) ** 2 / (2 * variance)
        else:

            def mean(x0, t=t, x_t=x_t):
                return (np.sqrt(prev[t]) * beta[t] * x0 + np.sqrt(1 - beta[t]) * (1 - prev[t]) * x_t) / (1 - a[t])

            ratio = posterior[t] / variance
            nats = 0.5 * (ratio - 1 - np.log(ratio) + (mean(x) - mean(x0_pred)) ** 2 / variance)
        terms[:, t] = nats.reshape(x.shape[0], -1).mean(axis=1) / LN2
    prior = 0.5 * (a[-1] * x**2 - a[-1] - np.log(1 - a[-1])).reshape(x.shape[0], -1).mean(axis=1) / LN2
    return prior, terms


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_bound_terms_match_the_textbook_formulas(schedule, prediction, variance):
    diffusion = fd.Diffusion(fd.NoiseSchedule.named(schedule, 50), prediction, variance)
    x = np.random.default_rng(0).normal(0, 0.5, (3, 2, 3, 3))
    model = gaussian_model(diffusion, 0.25)
    b = likelihood.bound(model, diffusion, torch.from_numpy(x), decoder="gaussian", clip=None, seed=4, batch_size=7)
    prior, terms = exact_terms(diffusion, model, x, 4)
    np.testing.assert_allclose(b.prior.numpy(), prior, rtol=FLOAT64_DIFFERENCE)
    # The contract's normals hold to a few float32 ulp.
    np.testing.assert_allclose(b.terms.numpy(), terms, rtol=1e-6, atol=FLOAT64_DIFFERENCE)
    np.testing.assert_allclose(b.total.numpy(), prior + terms.sum(axis=1), rtol=1e-7)
    assert b.evaluations == 3 * 50


def test_bound_expectation_for_gaussian_data():
    """The mean over data and noise has a closed form: the error of the exact x0 prediction is known."""
    s2 = 0.25
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(100, 1e-3, 0.2), "eps", "fixed_small")
    s = diffusion.schedule
    x = torch.from_numpy(np.random.default_rng(1).normal(0, math.sqrt(s2), (400, 1, 4, 4)))
    b = likelihood.bound(gaussian_model(diffusion, s2), diffusion, x, decoder="gaussian", clip=None, batch_size=4000)
    a = s.alphas_cumprod
    error = s2 * (1 - a) / (a * s2 + 1 - a)
    expected = s.posterior_mean_coef1[1:] ** 2 * error[1:] / (2 * s.posterior_variance[1:]) / LN2
    seen = b.terms[:, 1:].mean(dim=0).numpy()
    spread = b.terms[:, 1:].std(dim=0).numpy() / 20
    assert (np.abs(seen - expected) < 5 * spread).all()
    entropy = 0.5 * math.log2(2 * math.pi * math.e * s2)
    assert b.mean > entropy - 4 * b.standard_error


def test_bound_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    net = fd.UNet(fd.UNetConfig.preset("digits"))
    nn.init.normal_(net.conv_out.weight, std=0.1)
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(12))
    x = torch.randint(0, 17, (5, 1, 8, 8)).to(torch.uint8)
    runs = [likelihood.bound(net, diffusion, x, levels=17, batch_size=size) for size in (1, 7, 60)]
    for b in runs[1:]:
        # A float32 network on batches of another size.
        torch.testing.assert_close(b.terms, runs[0].terms, rtol=1e-4, atol=1e-5)
    some = likelihood.bound(net, diffusion, x[3:], levels=17, sample_ids=[3, 4])
    torch.testing.assert_close(some.total, runs[0].total[3:], rtol=1e-4, atol=1e-5)
    scaled = likelihood.bound(net, diffusion, x.float() / 8 - 1, levels=17, batch_size=60)
    # A float32 network on batches of another size.
    torch.testing.assert_close(scaled.total, runs[2].total, rtol=1e-4, atol=1e-5)


def test_bound_of_a_respaced_chain_uses_its_own_times():
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000), "v").respace(20)
    x = np.random.default_rng(0).normal(0, 0.5, (2, 1, 2, 2))
    model = gaussian_model(diffusion, 0.25)
    b = likelihood.bound(model, diffusion, torch.from_numpy(x), decoder="gaussian", clip=None)
    _, terms = exact_terms(diffusion, model, x, 0)
    # The contract's normals hold to a few float32 ulp.
    np.testing.assert_allclose(b.terms.numpy(), terms, rtol=1e-6, atol=FLOAT64_DIFFERENCE)


def test_bound_with_a_learned_variance_at_its_ends():
    schedule = fd.NoiseSchedule.linear(50)
    learned = fd.Diffusion(schedule, "eps", "learned_range")
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (2, 1, 3, 3)))
    base = gaussian_model(learned, 0.25)
    for end, variance in ((-1.0, "fixed_small"), (1.0, "fixed_large")):

        def model(v, t, end=end):
            return torch.cat([base(v, t), torch.full_like(v, end)], dim=1)

        options = {"decoder": "gaussian", "clip": None}
        a = likelihood.bound(model, learned, x, **options)
        b = likelihood.bound(base, fd.Diffusion(schedule, "eps", variance), x, **options)
        np.testing.assert_allclose(a.terms[:, 1:], b.terms[:, 1:], rtol=FLOAT64_DIFFERENCE)


def test_bound_prior_is_the_kl_to_the_standard_normal():
    diffusion = fd.Diffusion(fd.NoiseSchedule.from_betas([0.3, 0.5]))
    x = torch.tensor([[[[0.5]]], [[[-1.0]]]])
    a = 0.7 * 0.5
    expected = [0.5 * (a * v * v + (1 - a) - 1 - math.log(1 - a)) / LN2 for v in (0.5, -1.0)]
    np.testing.assert_allclose(likelihood.prior_term(diffusion, x).numpy(), expected, rtol=FLOAT64)


def test_bound_of_discrete_data_is_a_code_length():
    """A model that knows one image exactly codes it in few bits; uniform data of 4 values need at most 2 bits more."""
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(200), "x0")
    x = torch.tensor([[[[-1.0, 1.0], [-1 / 3, 1 / 3]]]])
    b = likelihood.bound(lambda v, t: x.expand_as(v), diffusion, x, levels=4)
    assert float(b.kl) == pytest.approx(0, abs=FLOAT64_DIFFERENCE)
    # The last deviation is so small that every value lies within its bin.
    assert 0 <= float(b.decoder) < 1e-6
    wrong = likelihood.bound(lambda v, t: -x.expand_as(v), diffusion, x, levels=4)
    assert wrong.mean > 10


def test_bound_summary_and_progress():
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(5), "x0")
    seen = []
    x = torch.zeros(3, 1, 2, 2)
    b = likelihood.bound(
        lambda v, t: v * 0, diffusion, x, levels=3, batch_size=4, on_progress=lambda d, n: seen.append((d, n))
    )
    assert seen == [(4, 15), (8, 15), (12, 15), (15, 15)]
    summary = b.summary()
    assert summary["bits_per_dim"] == pytest.approx(summary["prior"] + summary["kl"] + summary["decoder"])
    assert b.standard_error == pytest.approx(float(b.total.std()) / math.sqrt(3))
    one = likelihood.bound(lambda v, t: v * 0, diffusion, x[:1], levels=3)
    assert math.isnan(one.standard_error)


DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(5), "x0")
BAD = {
    "range": (torch.full((1, 1, 2, 2), 1.5), {}, r"in \[-1, 1\]"),
    "nan": (torch.full((1, 1, 2, 2), torch.nan), {}, "NaN"),
    "off the grid": (torch.full((1, 1, 2, 2), 0.3), {}, "lies off it"),
    "empty": (torch.zeros(0, 1, 2, 2), {}, "at least one image"),
    "bytes": (torch.full((1, 1, 2, 2), 17, dtype=torch.uint8), {"levels": 17}, r"in \[0, 17\)"),
    "half": (torch.zeros(1, 1, 2, 2, dtype=torch.float16), {}, "float32, float64 or uint8"),
    "clip": (torch.full((1, 1, 2, 2), -1.0), {"clip": 0}, "clip"),
    "levels": (torch.zeros(1, 1, 2, 2), {"levels": 1}, "levels"),
    "batch size": (torch.full((1, 1, 2, 2), -1.0), {"batch_size": 0}, "batch_size"),
    "half a batch": (torch.full((1, 1, 2, 2), -1.0), {"batch_size": 2.5}, "batch_size"),
    # Refused whether or not the decoder's term is asked for.
    "cdf": (torch.full((1, 1, 2, 2), -1.0), {"cdf": "exakt", "timesteps": [3]}, "did you mean 'exact'"),
    "decoder unused": (torch.full((1, 1, 2, 2), -1.0), {"decoder": "laplace", "timesteps": [3]}, "decoder"),
    "decoder": (torch.full((1, 1, 2, 2), -1.0), {"decoder": "laplace"}, "decoder"),
    "ids": (torch.full((1, 1, 2, 2), -1.0), {"sample_ids": [1, 2]}, "sample_ids"),
}


@pytest.mark.parametrize("case", BAD)
def test_bound_refuses(case):
    x, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        likelihood.bound(lambda v, t: v, DIFFUSION, x, **options)


def test_bound_refuses_arrays():
    with pytest.raises(TypeError, match=r"torch\.Tensor, got ndarray"):
        likelihood.bound(lambda v, t: v, DIFFUSION, np.zeros((1, 1, 2, 2)))


def test_bound_refuses_outputs_of_the_wrong_shape():
    x = torch.full((2, 1, 2, 2), -1.0)
    with pytest.raises(ValueError, match="model's output must have shape"):
        likelihood.bound(lambda v, t: torch.cat([v, v], 1), DIFFUSION, x)
    learned = fd.Diffusion(DIFFUSION.schedule, "x0", "learned")
    with pytest.raises(ValueError, match="model's output must have shape"):
        likelihood.bound(lambda v, t: v, learned, x)
