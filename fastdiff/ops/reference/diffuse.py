"""The op `diffuse` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.ops.reference.noise import draw
from fastdiff.tensors import per_sample


def diffuse(
    x0: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None,
    sample_ids: Tensor,
    row: Tensor,
    seed: int,
    stream: int,
    levels: int,
) -> tuple[Tensor, Tensor]:
    """x_t = c0 x_0 + c1 z and target = c2 x_0 + c3 z with the row t of `table`.

    Args:
        x0: [B, ...]; uint8 values v mean 2 v / (levels - 1) - 1.
        t: int64 [B].
        table: [T, 4], see `Diffusion.noising_table`.

    Returns:
        (x_t, target) in the dtype of the arithmetic.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 4; targets: see `Diffusion`.
    """
    z = draw(x0, noise, sample_ids, row, seed, stream)
    x = x0.to(z.dtype)
    if x0.dtype == torch.uint8:
        x = x * (2.0 / (levels - 1)) - 1.0
    c0, c1, c2, c3 = (per_sample(table[t, i].to(z.dtype), x) for i in range(4))
    return c0 * x + c1 * z, c2 * x + c3 * z
