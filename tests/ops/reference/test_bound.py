"""Tests of fastdiff.ops.reference.bound.

Independent oracles: mpmath at 50 digits, PyTorch's distributions, and for Gaussian data the closed form of the bound.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.ops.reference.bound import (
    BoundTable,
    discretized_gaussian_log_likelihood,
    gaussian_log_likelihood,
    hybrid,
    mse,
    normal_kl,
    variational_terms,
)
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from support.exact_bins import exact_bin, grid
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

TOLERANCE = {
    # Relative to max(1, |value|). float32 edges are rounded to 6e-8, which the distance in deviations passes on; a
    # difference of two log Phi of a width of 0.03 loses a factor 30 more.
    "log likelihood float32": 1e-5,
    "log likelihood float64": 1e-13,
    # 256 probabilities of the above accuracy.
    "sum float32": 1e-5,
    "sum float64": 1e-12,
    "closed form float64": 1e-12,
    # Quotients of the above.
    "gradient float32": 1e-3,
    "gradient float64": 1e-9,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_discretized_likelihood_matches_fifty_digits(dtype: str, levels: int) -> None:
    worst = 0.0
    for log_std in (-9.2, -5.0, -3.0, -1.0, 0.0, 3.0):
        for mean in (0.0, 0.3, -1.0, 0.9371, -40.0):
            mean_tensor, log_std_tensor = (torch.tensor(v, dtype=DTYPES[dtype]) for v in (mean, log_std))
            got = discretized_gaussian_log_likelihood(
                grid(levels, DTYPES[dtype]), mean_tensor, log_std_tensor, levels=levels
            )
            assert got.dtype == DTYPES[dtype]
            std = mpmath.exp(mpmath.mpf(log_std_tensor.item()))
            for k in sorted({0, 1, levels // 2, levels // 3, levels - 1}):
                expected, _, _ = exact_bin(k, levels, mean_tensor.item(), std)
                worst = max(worst, float(abs(got[k].item() - expected) / max(1, abs(expected))))
    assert worst < TOLERANCE[f"log likelihood {dtype}"]


@pytest.mark.parametrize("mean", [0.0, 1 / 255, 0.30001, 1.0, -3.0, 100.0])
@pytest.mark.parametrize("std", [1e-4, 1e-3, 0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_discretized_probabilities_sum_to_one(dtype: str, std: float, mean: float) -> None:
    for levels in (2, 17, 256):
        x = grid(levels, DTYPES[dtype])
        logs = discretized_gaussian_log_likelihood(
            x, torch.full_like(x, mean), torch.full_like(x, math.log(std)), levels=levels
        )
        assert abs(float(logs.double().exp().sum()) - 1) < TOLERANCE[f"sum {dtype}"]


def test_discretized_likelihood_has_no_floor() -> None:
    x = torch.tensor([1 / 255], dtype=torch.float64)
    value = discretized_gaussian_log_likelihood(x, x + 1, torch.tensor(math.log(1e-3), dtype=torch.float64))
    # The nearest edge is (1 - 1/255) * 1000 deviations away.
    assert float(value) < -0.5 * (1000 * (1 - 1 / 255)) ** 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_discretized_gradients_are_finite_and_right(dtype: str) -> None:
    levels = 17
    for log_std in (-9.0, -4.0, -1.0, 2.0):
        for mean in (0.0, 0.31, 1.0, -5.0, 1000.0):
            x = grid(levels, DTYPES[dtype])
            mean_tensor = torch.full_like(x, mean, requires_grad=True)
            log_std_tensor = torch.full_like(x, log_std, requires_grad=True)
            discretized_gaussian_log_likelihood(x, mean_tensor, log_std_tensor, levels=levels).sum().backward()
            assert mean_tensor.grad is not None
            assert log_std_tensor.grad is not None
            assert mean_tensor.grad.isfinite().all()
            assert log_std_tensor.grad.isfinite().all()
            std = mpmath.exp(mpmath.mpf(log_std_tensor[0].item()))
            for k in (0, 5, 16):
                _, by_mean, by_log_std = exact_bin(k, levels, mean_tensor[k].item(), std)
                rel = TOLERANCE[f"gradient {dtype}"]
                assert mean_tensor.grad[k].item() == pytest.approx(float(by_mean), rel=rel, abs=rel)
                assert log_std_tensor.grad[k].item() == pytest.approx(float(by_log_std), rel=rel, abs=rel)


def test_discretized_likelihood_counts_the_nearest_value_of_the_grid() -> None:
    x = grid(256, torch.float32)
    mean, log_std = torch.tensor(0.1), torch.tensor(-4.0)
    moved = discretized_gaussian_log_likelihood(x + 1e-4, mean, log_std)
    torch.testing.assert_close(moved, discretized_gaussian_log_likelihood(x, mean, log_std), rtol=0, atol=0)


def test_tanh_cdf_is_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x = grid(256, torch.float64)
    mean = torch.rand(256, dtype=torch.float64, generator=generator) * 2 - 1
    log_std = torch.rand(256, dtype=torch.float64, generator=generator) * 5 - 5
    got = discretized_gaussian_log_likelihood(x, mean, log_std, cdf="tanh").numpy()

    def cdf(z: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    centred, inverse = x.numpy() - mean.numpy(), np.exp(-log_std.numpy())
    upper, lower = cdf((centred + 1 / 255) * inverse), cdf((centred - 1 / 255) * inverse)
    p = np.where(x.numpy() < -0.999, upper, np.where(x.numpy() > 0.999, 1 - lower, upper - lower))
    # A few roundings of a CDF of up to 1.
    np.testing.assert_allclose(np.exp(got), np.maximum(p, 1e-12), rtol=0, atol=1e-15)


def test_discretized_likelihood_refuses_bad_arguments() -> None:
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="levels must be a whole number, at least 2, got 1"):
        discretized_gaussian_log_likelihood(x, x, x, levels=1)
    with pytest.raises(ValueError, match="cdf must be"):
        discretized_gaussian_log_likelihood(x, x, x, cdf="probit")  # type: ignore[arg-type]


def test_gaussian_log_likelihood_matches_torch() -> None:
    x, mean, log_std = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(x)
    torch.testing.assert_close(gaussian_log_likelihood(x, mean, log_std), expected)


def test_normal_kl_matches_torch() -> None:
    a, b, c, d = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    first, second = (torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in ((a, b), (c, d)))
    torch.testing.assert_close(normal_kl(a, b, c, d), torch.distributions.kl_divergence(first, second))


@pytest.mark.parametrize("difference", [0.0, 1e-7, -1e-4, 1e-2])
def test_normal_kl_is_accurate_for_nearly_equal_variances(difference: float) -> None:
    zero = torch.zeros((), dtype=torch.float64)
    got = float(normal_kl(zero, zero + difference, zero, zero))
    with mpmath.workdps(50):
        d = mpmath.mpf(difference)
        expected = (mpmath.exp(d) - 1 - d) / 2
    # Both parts of expm1(d) - d are about d; what is left is d^2 / 2.
    assert got == pytest.approx(float(expected), abs=3e-16 * abs(difference))


def test_mse_is_the_mean_per_sample() -> None:
    a, b = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    expected = ((a - b) ** 2).reshape(3, -1).mean(1)
    torch.testing.assert_close(mse(a, b), expected)
    torch.testing.assert_close(mse(a.contiguous(memory_format=torch.channels_last), b), expected)
    assert mse(a.bfloat16(), b).dtype == torch.float32
    with pytest.raises(ValueError, match="must have one shape"):
        mse(a[:, :1], b)


SCHEDULES = {"linear": NoiseSchedule.linear(40), "cosine": NoiseSchedule.cosine(50)}


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_terms_match_the_full_posterior_means(name: str, variance: str) -> None:
    """The closed form of Ho's eq. 8 with both means written out, x_t included."""
    schedule = SCHEDULES[name]
    diffusion = Diffusion(schedule, variance=variance)  # type: ignore[arg-type]
    table = BoundTable.build(diffusion, dtype=torch.float64)
    t = torch.arange(1, len(schedule))
    x0, x0_pred, x_t = torch.randn(3, len(t), 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    got = variational_terms(x0, t, x0_pred, table.log_variance(t, x0), table)
    coef1, coef2, var_q = (
        torch.tensor(a[1:])[:, None, None]
        for a in (schedule.posterior_mean_coef1, schedule.posterior_mean_coef2, schedule.posterior_variance)
    )
    var_p = var_q if variance == "fixed_small" else torch.tensor(schedule.betas[1:])[:, None, None]
    q = torch.distributions.Normal(coef1 * x0 + coef2 * x_t, var_q.sqrt())
    p = torch.distributions.Normal(coef1 * x0_pred + coef2 * x_t, var_p.sqrt())
    expected = torch.distributions.kl_divergence(q, p).mean(dim=(1, 2)) / math.log(2)
    torch.testing.assert_close(got, expected, rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_terms_of_gaussian_data_sum_to_its_entropy(name: str) -> None:
    """For x0 ~ N(0, s^2) and the exact reverse process, the bound is H(x0) + KL(q(x_T) || N(0, 1)).

    x0 given x_t is N(x0_pred, r), so x0 - x0_pred = +-sqrt(r) has the right second moment, all that a KL sees.
    """
    s2 = 0.3
    schedule = SCHEDULES[name]
    table = BoundTable.build(Diffusion(schedule), dtype=torch.float64)
    abar = torch.tensor(schedule.alphas_cumprod)
    noise = torch.tensor(schedule.one_minus_alphas_cumprod)
    remaining = s2 * noise / (abar * s2 + noise)
    coef1, var_q = torch.tensor(schedule.posterior_mean_coef1), torch.tensor(schedule.posterior_variance)
    log_variance = torch.log(var_q + coef1**2 * remaining)[:, None]
    t = torch.arange(len(schedule))
    x0 = remaining.sqrt()[:, None] * torch.tensor([1.0, -1.0], dtype=torch.float64)
    terms = variational_terms(x0, t, torch.zeros_like(x0), log_variance, table, decoder="gaussian") * math.log(2)
    # E KL(q(x_T | x0) || N(0, 1)).
    prior = 0.5 * (noise[-1] + abar[-1] * s2 - 1 - torch.log(noise[-1]))
    entropy = 0.5 * math.log(2 * math.pi * math.e * s2)
    end = abar[-1] * s2 + noise[-1]
    expected = entropy + 0.5 * (end - 1 - torch.log(end))
    assert float(terms.sum() + prior) == pytest.approx(float(expected), rel=TOLERANCE["closed form float64"])


@pytest.mark.parametrize("levels", [17, 256])
def test_terms_at_time_zero_are_the_decoder(levels: int) -> None:
    table = BoundTable.build(Diffusion(NoiseSchedule.linear(40)))
    generator = torch.Generator().manual_seed(5)
    x0 = grid(levels, torch.float32)[torch.randint(levels, (4, 1, 3, 3), generator=generator)]
    x0_pred = x0 + 0.01 * torch.randn(x0.shape, generator=generator)
    t = torch.tensor([0, 7, 0, 19])
    log_variance = table.log_variance(t, x0)
    terms = variational_terms(x0, t, x0_pred, log_variance, table, levels=levels)
    log_std = 0.5 * math.log(float(NoiseSchedule.linear(40).posterior_variance[1]))
    expected = discretized_gaussian_log_likelihood(x0, x0_pred, torch.tensor(log_std), levels=levels)
    torch.testing.assert_close(terms[t == 0], -expected.mean(dim=(1, 2, 3))[t == 0] / math.log(2))
    # A batch that mixes them is what each half gives alone.
    for chosen in (t == 0, t > 0):
        alone = variational_terms(x0[chosen], t[chosen], x0_pred[chosen], log_variance[chosen], table, levels=levels)
        torch.testing.assert_close(alone, terms[chosen])


def test_table_gives_x0_and_the_variances() -> None:
    schedule = NoiseSchedule.cosine(30)
    t = torch.arange(30)
    generator = torch.Generator().manual_seed(6)
    x0, eps = torch.randn(2, 30, 4, dtype=torch.float64, generator=generator)
    alpha = torch.tensor(schedule.alphas_cumprod).sqrt()[:, None]
    sigma = torch.tensor(schedule.one_minus_alphas_cumprod).sqrt()[:, None]
    x_t = alpha * x0 + sigma * eps
    for prediction, output in {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma}.items():
        diffusion = Diffusion(schedule, prediction, "learned_range")  # type: ignore[arg-type]
        table = BoundTable.build(diffusion, dtype=torch.float64)
        torch.testing.assert_close(table.x0(x_t, t, output), x0, rtol=FLOAT64_DIFFERENCE, atol=FLOAT64_DIFFERENCE)
    ones = torch.ones_like(x0)
    torch.testing.assert_close(table.log_variance(t, x0, ones), ones * torch.tensor(np.log(schedule.betas))[:, None])
    torch.testing.assert_close(
        table.log_variance(t, x0, -ones), ones * torch.tensor(schedule.posterior_log_variance_clipped)[:, None]
    )
    learned = BoundTable.build(Diffusion(schedule, "eps", "learned"), dtype=torch.float64)
    torch.testing.assert_close(learned.log_variance(t, x0, x0), x0)
    with pytest.raises(ValueError, match="variance is learned, but none"):
        learned.log_variance(t, x0)
    with pytest.raises(ValueError, match="variance is fixed, but some"):
        BoundTable.build(Diffusion(schedule)).log_variance(t, x0, x0)


def hybrid_case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, BoundTable]:
    generator = torch.Generator().manual_seed(7)
    diffusion = Diffusion(NoiseSchedule.cosine(40), variance="learned_range")
    output = 0.5 * torch.randn(4, 2, 2, 2, dtype=dtype, generator=generator)
    x0 = grid(17, dtype)[torch.randint(17, (4, 1, 2, 2), generator=generator)]
    eps = torch.randn(x0.shape, dtype=dtype, generator=generator)
    t = torch.tensor([0, 3, 20, 39])
    table = torch.tensor(diffusion.noising_table(), dtype=dtype)[t][:, :, None, None, None]
    return output, eps, x0, table[:, 0] * x0 + table[:, 1] * eps, t, BoundTable.build(diffusion, dtype=dtype)


def test_hybrid_is_rescaled_mse() -> None:
    output, target, x0, x_t, t, table = hybrid_case()
    terms = hybrid(output, target, x0, x_t, t, table, levels=17)
    x0_pred = table.x0(x_t, t, output[:, :1])
    bound = variational_terms(x0, t, x0_pred, table.log_variance(t, x_t, output[:, 1:]), table, levels=17)
    torch.testing.assert_close(terms.mse, mse(output[:, :1], target))
    torch.testing.assert_close(terms.vlb, 40 * bound)
    torch.testing.assert_close(terms.loss, terms.mse + 40 / 1000 * bound)


def test_hybrid_trains_the_mean_by_mse_and_the_variance_by_the_bound() -> None:
    output, target, x0, x_t, t, table = hybrid_case()
    output.requires_grad_()
    (grad,) = torch.autograd.grad(hybrid(output, target, x0, x_t, t, table, levels=17).loss.sum(), output)
    (grad_mse,) = torch.autograd.grad(mse(output[:, :1], target).sum(), output)
    torch.testing.assert_close(grad[:, :1], grad_mse[:, :1])
    values = output.detach()[:, 1:].clone().requires_grad_()
    x0_pred = table.x0(x_t, t, output.detach()[:, :1])
    bound = variational_terms(x0, t, x0_pred, table.log_variance(t, x_t, values), table, levels=17)
    (grad_bound,) = torch.autograd.grad(0.04 * bound.sum(), values)
    torch.testing.assert_close(grad[:, 1:], grad_bound)
    assert (grad_bound.abs() > 0).all()


def test_terms_gradients_match_differences() -> None:
    output, _, x0, x_t, t, table = hybrid_case()
    values = output[:, 1:].clone().requires_grad_()
    x0_pred = x0 + 0.03 * output[:, :1]

    def bound(values: Tensor) -> Tensor:
        return variational_terms(x0, t, x0_pred, table.log_variance(t, x_t, values), table, levels=17)

    assert torch.autograd.gradcheck(bound, (values,))


def test_hybrid_refuses_a_network_without_variance() -> None:
    output, target, x0, x_t, t, table = hybrid_case()
    with pytest.raises(ValueError, match=r"output must be \[B, 2C, ...\]"):
        hybrid(output[:, :1], target, x0, x_t, t, table)
