"""k-diffusion's features and distances, against closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdiff.compat import k_diffusion as k

ALONE = SimpleNamespace(num_processes=1, gather=lambda x: x, is_main_process=True)


def test_compute_features_takes_batches_and_no_more():
    sizes = []

    def samples(count):
        sizes.append(count)
        return torch.full((count + 1, 3), float(len(sizes)))

    features = k.evaluation.compute_features(ALONE, samples, lambda x: 2 * x, 7, 3)
    assert sizes == [3, 3, 1]
    assert features[:, 0].tolist() == [2, 2, 2, 4, 4, 4, 6]


def test_compute_features_ends_where_the_samples_do():
    batches = iter([torch.ones(3, 2)])
    assert k.evaluation.compute_features(ALONE, lambda count: next(batches), lambda x: x, 9, 3).shape == (3, 2)


def test_fid_of_gaussians_is_their_distance():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, dtype=torch.float64, generator=generator)
    # The same points, scaled and moved: d^2 = |shift|^2 + sum of (a - 1)^2 var.
    y = x * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -2.0])
    mean = (y.mean(0) - x.mean(0)).square().sum()
    first, second = torch.cov(x.T), torch.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(first.numpy() @ second.numpy()).real).sum()
    expected = mean + torch.trace(first + second) - 2 * root
    # What is added to the diagonal, 1e-8, and roots of it.
    torch.testing.assert_close(k.evaluation.fid(x, y), expected, rtol=1e-6, atol=1e-6)
    assert abs(float(k.evaluation.fid(x, x))) < 1e-5


def test_squared_mmd_is_the_unbiased_mean_of_pairs():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (4, 5))

    def kernel(a, b):
        return float((a @ b / 3 + 1) ** 3)

    within = [sum(kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))
              for z in (x, y)]  # fmt: skip
    between = sum(kernel(a, b) for a in x for b in y) / 20
    expected = torch.tensor(sum(within) - 2 * between, dtype=torch.float64)
    torch.testing.assert_close(k.evaluation.squared_mmd(x, y), expected)
    torch.testing.assert_close(k.evaluation.kid(x, y), expected)
    parts = [k.evaluation.squared_mmd(x[:2], y[:2]), k.evaluation.squared_mmd(x[2:], y[2:])]
    torch.testing.assert_close(k.evaluation.kid(x, y, max_size=3), torch.stack(parts).mean())


def test_sqrtm_eig_is_a_root_with_a_gradient():
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    root = k.evaluation.sqrtm_eig(a)
    torch.testing.assert_close(root @ root, a)
    assert torch.autograd.gradcheck(lambda x: k.evaluation.sqrtm_eig((x + x.T) / 2), a)
    with pytest.raises(RuntimeError, match="square"):
        k.evaluation.sqrtm_eig(torch.ones(2, 3))
