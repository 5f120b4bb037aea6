"""DPM-Solver-fast and -adaptive, written out in float64."""

import math

import numpy as np
import pytest
import torch

from fastdiff.compat import k_diffusion as k
from support.k_diffusion_runs import SAME_RUN, denoise, down_up, one, start
from support.tolerances import FLOAT64_DIFFERENCE


def eps_of(x, sigma):
    return (x - one(x, sigma)) / sigma


def solver_step(x, sigma, target, order, shares):
    """DPM-Solver of order 1 to 3 (Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2), in eps."""
    h = math.log(sigma / target)
    first = eps_of(x, sigma)
    e = math.expm1
    if order == 1:
        return x - target * e(h) * first
    middle = sigma * math.exp(-shares[0] * h)
    second = eps_of(x - middle * e(shares[0] * h) * first, middle)
    if order == 2:
        return x - target * e(h) * first - target / (2 * shares[0]) * e(h) * (second - first)
    last, z = sigma * math.exp(-shares[1] * h), shares[1] * h
    ratio = shares[1] / shares[0]
    state = x - last * e(z) * first - last * ratio * (e(z) / z - 1) * (second - first)
    third = eps_of(state, last)
    return x - target * e(h) * first - target / shares[1] * (e(h) / h - 1) * (third - first)


SHARES = {1: (), 2: (0.5,), 3: (1 / 3, 2 / 3)}


def dpm_fast(x, low, high, n, eta):
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    levels = np.exp(np.linspace(np.log(high), np.log(low), len(orders) + 1)).tolist()
    for i, order in enumerate(orders):
        sigma, after = levels[i], levels[i + 1]
        down = max(low, down_up(sigma, after, eta)[0]) if eta else after
        x = solver_step(x, sigma, down, order, SHARES[order])
        x = x + math.sqrt(max(after**2 - down**2, 0)) * 1.01 * torch.randn_like(x)
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8])
def test_dpm_fast_equals_its_published_steps(n, eta):
    calls = []

    def model(x, sigma):
        calls.append(float(sigma[0]))
        return denoise(x, sigma)

    torch.manual_seed(3)
    ours = k.sample_dpm_fast(model, start(), 0.05, 40.0, n, eta=eta, s_noise=1.01)
    following = torch.rand(1)
    assert len(calls) == n
    assert calls[0] == pytest.approx(40)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, dpm_fast(start(), 0.05, 40.0, n, eta), rtol=SAME_RUN, atol=SAME_RUN)
    assert following == torch.rand(1)


def test_dpm_fast_goes_back_to_the_noise_it_came_from():
    x = start()
    image = k.sample_dpm_fast(denoise, x, 0.05, 40.0, 60)
    back = k.sample_dpm_fast(denoise, image, 40.0, 0.05, 60)
    assert (back - x).abs().max() < 0.02 * x.abs().max()
    seen = []
    k.sample_dpm_fast(denoise, x, 0.05, 40.0, 4, callback=seen.append)
    assert [info["i"] for info in seen] == [0, 1]
    assert {"x", "i", "sigma", "sigma_hat", "t", "t_up", "denoised"} == set(seen[0])
    for low, high, n, eta, message in (
        (0.0, 1.0, 3, 0.0, "must be positive"), (0.1, 1.0, 0, 0.0, "n must be a whole number, at least 1"),
        (1.0, 0.1, 3, 0.5, "eta must be 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            k.sample_dpm_fast(denoise, x, low, high, n, eta=eta)


def dpm_adaptive(x, low, high, order, rtol, atol, gains=(0.0, 1.0, 0.0)):
    """One sample, so that its error is that of the batch; Soederlind's controller and the paper's two orders."""
    p, i, d = gains
    powers = np.array([p + i + d, -(p + 2 * d), d]) / order
    s, end, h = -math.log(high), -math.log(low), 0.05
    previous, errors, counts = x, None, [0, 0]
    while s < end - 1e-5:
        t = min(end, s + h)
        sigma, target = math.exp(-s), math.exp(-t)
        shares = {2: ((), (0.5,)), 3: ((1 / 3,), (1 / 3, 2 / 3))}[order]
        rough, fine = (solver_step(x, sigma, target, order - 1 + j, shares[j]) for j in (0, 1))
        allowed = torch.clamp(rtol * torch.maximum(rough.abs(), previous.abs()), min=atol)
        inverse = 1 / (float(((rough - fine) / allowed).square().mean().sqrt()) + 1e-8)
        errors = errors or [inverse] * 3
        errors[0] = inverse
        factor = 1 + math.atan(np.prod(np.array(errors) ** powers) - 1)
        counts[factor < 0.81] += 1
        if factor >= 0.81:
            previous, x, s = rough, fine, t
            errors = [inverse, inverse, errors[1]]
        h *= factor
    return x, counts


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("gains", [(0.0, 1.0, 0.0), (0.2, 0.8, 0.1)], ids=["I", "PID"])
def test_dpm_adaptive_equals_its_published_steps_for_each_sample(order, gains):
    x = start() * torch.tensor([1.0, 0.01]).view(2, 1, 1, 1)
    options = dict(zip(("pcoeff", "icoeff", "dcoeff"), gains, strict=True))
    options |= {"order": order, "rtol": 0.01, "atol": 1e-4}
    sizes = []
    both, info = k.sample_dpm_adaptive(
        denoise, x, 0.05, 40.0, callback=lambda info: sizes.append(info["h"]), return_info=True, **options
    )
    for b in (0, 1):
        expected, counts = dpm_adaptive(x[b : b + 1], 0.05, 40.0, order, 0.01, 1e-4, gains)
        # The sizes of some fifty steps follow from the errors, so roundings grow.
        torch.testing.assert_close(both[b : b + 1], expected, rtol=1e-7, atol=1e-7)
        assert [int(info["n_accept"][b]), int(info["n_reject"][b])] == counts
    # The two samples took steps of their own.
    assert all(h[0] != h[1] for h in sizes)
    assert info["nfe"] == order * info["steps"] == order * int((info["n_accept"] + info["n_reject"]).max())


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_dpm_adaptive_does_not_couple_the_samples_of_a_batch(eta):
    """Their noise differs by place in the batch, so that the first of a batch is compared."""
    x = start() * torch.tensor([1.0, 0.01]).view(2, 1, 1, 1)
    results = []
    for batch in (x, x[:1]):
        torch.manual_seed(0)
        results.append(k.sample_dpm_adaptive(denoise, batch, 0.05, 40.0, eta=eta)[0])
    torch.testing.assert_close(results[0], results[1], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64_DIFFERENCE)


def test_dpm_adaptive_keeps_its_tolerance_reports_and_refuses():
    x = start()
    # The solver's own tolerances: a fine run and a rough one.
    fine = k.sample_dpm_adaptive(denoise, x, 0.05, 40.0, rtol=1e-5, atol=1e-6)
    seen = []
    rough = k.sample_dpm_adaptive(denoise, x, 0.05, 40.0, rtol=0.01, atol=1e-3, callback=seen.append)
    assert 1e-6 < (rough - fine).abs().max() < 0.05
    assert {"x", "i", "sigma", "sigma_hat", "t", "t_up", "denoised", "error", "h", "steps", "nfe", "n_accept",
            "n_reject"} == set(seen[0])  # fmt: skip
    # Arrived is within 1e-5 of the end, in log sigma, and so is the last step's level.
    assert torch.allclose(seen[-1]["sigma"], torch.tensor(0.05, dtype=torch.float64), rtol=1e-4)
    # The solver's own tolerances; over the whole way and back it keeps them to three digits.
    back = k.sample_dpm_adaptive(denoise, fine, 40.0, 0.05, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(back, x, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="order must be 2 or 3, got 1"):
        k.sample_dpm_adaptive(denoise, x, 0.05, 40.0, order=1)
    with pytest.raises(ValueError, match="must be positive"):
        k.sample_dpm_adaptive(denoise, x, 0.0, 40.0)
    with pytest.raises(ValueError, match="eta must be 0"):
        k.sample_dpm_adaptive(denoise, x, 40.0, 0.05, eta=0.5)
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        k.sample_dpm_adaptive(lambda x, sigma: x * math.nan, x, 0.05, 40.0)
