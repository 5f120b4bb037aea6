"""The importance-weighted bound, comparisons, rate and distortion, and reports."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

import fastdiff as fd
from fastdiff import likelihood
from fastdiff.files.data import DataScaling
from fastdiff.likelihood.coding import rate_distortion_of
from fastdiff.likelihood.paired import student_quantile
from support.gaussian_networks import gaussian_network
from support.networks import small_unet

LN2 = math.log(2)
D = fd.Diffusion(fd.NoiseSchedule.linear(50), "eps", "fixed_large")
MODEL = gaussian_network(D, 0.25)
OPTIONS = {"decoder": "gaussian", "clip": None}
X = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (60, 1, 2, 2)))


def chain_bits(diffusion, variance, x):
    """-log of the generative chain's own density: with the exact network the chain is linear and Gaussian."""
    s = diffusion.schedule
    state = 1.0
    for t in range(len(s) - 1, -1, -1):
        a = s.alphas_cumprod[t]
        gain = np.sqrt(a) * variance / (a * variance + 1 - a)
        step = s.posterior_mean_coef1[t] * gain + s.posterior_mean_coef2[t]
        state = step**2 * state + (s.betas[t] if t else s.posterior_variance[1])
    return (0.5 * np.log(2 * np.pi * state) + 0.5 * (x**2).flatten(1).mean(dim=1) / state) / LN2


def test_iwae_lies_between_the_bound_and_the_truth_and_falls_with_k():
    result = likelihood.iwae(MODEL, D, X, trajectories=32, batch_size=2000, **OPTIONS)
    assert result.evaluations == 60 * 32 * 50
    truth = float(chain_bits(D, 0.25, X).mean())
    by_count = [float(result.with_trajectories(k).mean()) for k in (1, 2, 8, 32)]
    assert all(early > late for early, late in pairwise(by_count))
    # One trajectory is the variational bound, drawn otherwise.
    seeds = [likelihood.bound(MODEL, D, X, seed=seed, batch_size=3000, **OPTIONS).total for seed in range(16)]
    each, ours = torch.stack(seeds), result.log_weights / -(4 * LN2)
    error = math.sqrt(sum(float(a.var(dim=dim).mean()) / a.numel() for a, dim in ((each, 0), (ours, 1))))
    assert abs(by_count[0] - float(each.mean())) < 4 * error
    assert error < 0.05
    assert truth - 0.02 < by_count[-1] < by_count[0] - 0.02
    assert by_count[-1] - truth < 0.6 * (by_count[0] - truth)


def test_iwae_weights_average_to_the_likelihood():
    """The mean weight is unbiased: for one dimension and many trajectories it is the chain's own density."""
    x = torch.tensor([[0.3], [-0.9]], dtype=torch.float64)
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(100), "v", "fixed_large").respace(8)
    model = gaussian_network(diffusion, 0.25)
    result = likelihood.iwae(model, diffusion, x, trajectories=4000, batch_size=8000, **OPTIONS)
    weights = (result.log_weights - result.log_weights.amax(dim=1, keepdim=True)).exp()
    error = weights.std(dim=1) / weights.mean(dim=1) / math.sqrt(4000)
    expected = chain_bits(diffusion, 0.25, x)
    assert float(((result.total - expected).abs() * LN2 / error).max()) < 4


def test_iwae_does_not_depend_on_the_batch():
    net, diffusion = small_unet(), fd.Diffusion(fd.NoiseSchedule.cosine(6), "eps", "fixed_large")
    x = torch.randint(0, 17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = likelihood.iwae(net, diffusion, x, levels=17, trajectories=3)
    split = likelihood.iwae(net, diffusion, x[1:], levels=17, trajectories=5, sample_ids=[1, 2], batch_size=4)
    torch.testing.assert_close(split.log_weights[:, :3], whole.log_weights[1:], rtol=1e-4, atol=1e-2)
    for wrong in (0, -3, 1.5, math.nan, "8", None, True):
        with pytest.raises(ValueError, match="trajectories"):
            likelihood.iwae(net, diffusion, x, levels=17, trajectories=wrong)
    with pytest.raises(ValueError, match="cdf"):
        likelihood.iwae(net, diffusion, x, levels=17, cdf="exakt")
    with pytest.raises(ValueError, match="count"):
        whole.with_trajectories(4)


def pipeline(scale=1.0, levels=17):
    unet = small_unet()
    with torch.no_grad():
        unet.conv_out.weight.mul_(scale)
    return fd.Pipeline(unet, fd.Diffusion(fd.NoiseSchedule.cosine(6)), DataScaling(levels))


DIGITS = torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_compare_pairs_by_image():
    a, b = pipeline(), pipeline(1.3)
    result = likelihood.compare(a, b, DIGITS, seed=2)
    totals = [pipe.likelihood(DIGITS, seed=2).total for pipe in (a, b)]
    torch.testing.assert_close(result.difference, totals[0] - totals[1])
    expected = scipy.stats.ttest_rel(totals[0], totals[1]).confidence_interval(0.95)
    assert result.interval == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert likelihood.compare(a, a, DIGITS).mean == 0
    assert not likelihood.compare(a, a, DIGITS).is_significant


def test_compare_intervals_cover():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        shared = rng.normal(3, 1, 8)
        noise = [torch.from_numpy(shared + rng.normal(0, 0.1, 8)) for _ in range(2)]
        low, high = likelihood.paired_difference(noise[0], noise[1] + 0.05, 0.9).interval
        held += low <= -0.05 <= high
    assert abs(held / 400 - 0.9) < 4 * math.sqrt(0.09 / 400)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 101, 1000, 2_000_000])
def test_student_quantile_is_that_of_scipy(degrees):
    for p in (0.75, 0.975, 0.999):
        assert student_quantile(p, degrees) == pytest.approx(scipy.stats.t.ppf(p, degrees), rel=1e-5)


def test_compare_refuses():
    with pytest.raises(ValueError, match="at least 2"):
        likelihood.compare(pipeline(), pipeline(), DIGITS[:1])
    with pytest.raises(ValueError, match="confidence"):
        likelihood.compare(pipeline(), pipeline(), DIGITS, confidence=95)
    with pytest.raises(ValueError, match="cannot be compared"):
        likelihood.compare(pipeline(), pipeline(levels=256), DIGITS)


def test_rate_distortion_is_made_of_the_bound_s_terms():
    result = likelihood.rate_distortion(MODEL, D, X, seed=1, **OPTIONS)
    bound = likelihood.bound(MODEL, D, X, seed=1, **OPTIONS)
    assert result.t.tolist() == list(range(49, -1, -1))
    assert float(result.rate[0]) == pytest.approx(float(bound.prior.mean()))
    assert float(result.rate[-1]) == pytest.approx(result.total_rate)
    assert result.total_rate + result.distortion == pytest.approx(bound.mean)
    # The exact network's error is the posterior's variance.
    a = D.schedule.alphas_cumprod[::-1]
    expected = np.sqrt(0.25 * (1 - a) / (a * 0.25 + 1 - a))
    np.testing.assert_allclose(result.rmse.numpy(), expected, rtol=0.2)
    assert (result.rate.diff() >= 0).all()
    rows = result.rows(5)
    assert rows[0]["t"] == 49
    assert rows[-1]["t"] == 0
    eight_bit = pipeline(levels=256).likelihood(DIGITS, method="rate_distortion")
    assert eight_bit.peak == 255
    with pytest.raises(ValueError, match="every term"):
        rate_distortion_of(likelihood.bound(MODEL, D, X, timesteps=[0, 3], **OPTIONS), None)


def test_reports_are_json_and_pictures(tmp_path):
    pipe = pipeline()
    scores = {method: pipe.likelihood(DIGITS[:3], method=method) for method in ("bound", "estimate", "iwae")}
    scores["rate_distortion"] = pipe.likelihood(DIGITS[:3], method="rate_distortion")
    scores["ode"] = pipe.likelihood(DIGITS[:2], method="ode", tolerance=1e-2)
    scores["compare"] = likelihood.compare(pipe, pipe, DIGITS[:3])
    for name, score in scores.items():
        path = likelihood.write_report(tmp_path / f"{name}.json", score, per_image=True, about={"model": "m"})
        values = json.loads(path.read_text())
        assert values["method"] == ("bound" if name == "estimate" else name)
        assert values["model"] == "m"
        assert len(values["totals"]) in (2, 3)
    one = likelihood.report(pipe.likelihood(DIGITS[:1]))
    assert one["standard_error"] is None
    assert len(one["terms"]) == 6
    for name in ("bound", "estimate", "rate_distortion"):
        with Image.open(likelihood.draw_report(tmp_path / f"{name}.png", scores[name], title="digits")) as picture:
            assert min(picture.size) > 400
    some = likelihood.bound(MODEL, D, X, timesteps=[0, 1, 7, 30], **OPTIONS)
    likelihood.draw_report(tmp_path / "some.png", some)
    with pytest.raises(ValueError, match="no picture"):
        likelihood.draw_report(tmp_path / "ode.png", scores["ode"])
    with pytest.raises(ValueError, match=r"\.json"):
        likelihood.write_report(tmp_path / "a.txt", scores["ode"])
