"""k-diffusion's `evaluation`: features of samples in batches, and the distances between two sets of features."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastdiff.compat.k_diffusion._missing import missing

__all__ = ["compute_features", "fid", "kid", "polynomial_kernel", "sqrtm_eig", "squared_mmd"]

_NO_EXTRACTOR = (
    "it downloads a network. Give compute_features any function from images to features, or see fastdiff.metrics"
)
_ELSEWHERE = dict.fromkeys(
    ("CLIPFeatureExtractor", "DINOv2FeatureExtractor", "InceptionV3FeatureExtractor"), _NO_EXTRACTOR
)


def compute_features(
    accelerator: Any,
    sample_fn: Callable[[int], Tensor],
    extractor_fn: Callable[[Tensor], Tensor],
    n: int,
    batch_size: int,
) -> Tensor:
    """[n, ...] features of n samples, made in batches and gathered from all processes.

    Args:
        accelerator: With `num_processes` and `gather`, as `accelerate.Accelerator`.
        sample_fn: From a number to as many samples; a StopIteration ends it early.
        extractor_fn: From samples to features.
        n: Samples in all.
        batch_size: Samples at a time in each process.
    """
    share = math.ceil(n / accelerator.num_processes)
    features: list[Tensor] = []
    for first in range(0, share, batch_size):
        count = min(n - first, batch_size)
        try:
            samples = sample_fn(count)[:count]
        except StopIteration:
            break
        features.append(accelerator.gather(extractor_fn(samples)))
    return torch.cat(features)[:n]


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """[N, M] (x . y / D + 1)^3 for features [N, D] and [M, D]. Source: Binkowski et al. (2018), arXiv:1801.01401."""
    return (x @ y.mT / x.shape[-1] + 1) ** 3


def squared_mmd(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor] = polynomial_kernel) -> Tensor:
    """Unbiased squared maximum mean discrepancy of features [N, D] and [M, D]."""

    def within(z: Tensor) -> Tensor:
        values = kernel(z, z)
        off_diagonal = values.sum(dim=(-2, -1)) - values.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        return off_diagonal / (z.shape[-2] * (z.shape[-2] - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean(dim=(-2, -1))


def kid(x: Tensor, y: Tensor, max_size: int = 5000) -> Tensor:
    """Kernel inception distance of features [N, D] and [M, D]: the mean of `squared_mmd` over parts of `max_size`."""
    parts = max(math.ceil(x.shape[0] / max_size), math.ceil(y.shape[0] / max_size))
    pairs = zip(_cut(x, parts), _cut(y, parts), strict=True)
    return torch.stack([squared_mmd(a, b) for a, b in pairs]).mean()


def fid(x: Tensor, y: Tensor, eps: float = 1e-8) -> Tensor:
    """Frechet distance of Gaussians with the moments of features [N, D] and [M, D].

    Args:
        x: Features.
        y: Features of the others.
        eps: Added to the diagonal of the first covariance.

    Source: Heusel et al. (2017), arXiv:1706.08500, eq. 6.
    """
    first, second = torch.cov(x.mT), torch.cov(y.mT)
    first = first + eps * torch.eye(first.shape[0], dtype=first.dtype, device=first.device)
    root = sqrtm_eig(first)
    distance = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return distance + torch.trace(first + second - 2 * sqrtm_eig(root @ second @ root))


def sqrtm_eig(a: Tensor) -> Tensor:
    """Square root of symmetric matrices [..., D, D] without negative eigenvalues.

    Raises:
        RuntimeError: they are not square.
    """
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise RuntimeError(f"a must be square matrices [..., D, D], got shape {list(a.shape)}")
    values, vectors = torch.linalg.eigh(a)
    root: Tensor = vectors * values.abs().sqrt()[..., None, :] @ vectors.mT
    return root


def _cut(x: Tensor, parts: int) -> list[Tensor]:
    ends = [round(i * x.shape[0] / parts) for i in range(parts + 1)]
    return [x[first:end] for first, end in pairwise(ends)]


def __getattr__(name: str) -> Any:
    return missing(name, __name__, _ELSEWHERE)
