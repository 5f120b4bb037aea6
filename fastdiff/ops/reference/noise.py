"""The noise contract of `fastdiff.process.noise`, in torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdiff.process.noise import M0, M1, MASK, NUM_ROUNDS, STREAM_SHIFT, W0, W1
from fastdiff.tensors import compute_dtype


def torch_words(seed: int, sample_ids: torch.Tensor, num_elements: int, stream: int, row: torch.Tensor) -> torch.Tensor:
    """`words` in torch, on the device of `sample_ids`: int64 [B, 4 * ceil(num_elements / 4)] holding 32-bit values."""
    blocks = torch.arange((num_elements + 3) // 4, device=sample_ids.device, dtype=torch.int64)[None, :]
    ids = sample_ids.to(torch.int64)[:, None]
    shape = (ids.shape[0], blocks.shape[1])
    c0 = blocks.expand(shape)
    c1, c2 = (ids & MASK).expand(shape), ((ids >> 32) & MASK).expand(shape)
    c3 = (row.to(torch.int64).reshape(-1, 1) | (stream << STREAM_SHIFT)).expand(shape)
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(NUM_ROUNDS):
        # The products wrap as signed 64-bit numbers; their bits are those of the unsigned product.
        p0, p1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)


def torch_normals(
    seed: int, sample_ids: torch.Tensor, shape: tuple[int, ...], stream: int, row: torch.Tensor
) -> torch.Tensor:
    """`normals` in torch: float32 [B, *shape], contiguous, the contract's formula evaluated in float64."""
    num_elements = int(np.prod(shape, dtype=np.int64))
    bits = torch_words(seed, sample_ids, num_elements, stream, row)
    pairs = bits.unflatten(1, (-1, 2))
    u = pairs[..., 0].to(torch.float32) * 2.0**-32 + 2.0**-33
    signed = torch.where(pairs[..., 1] >= 1 << 31, pairs[..., 1] - (1 << 32), pairs[..., 1])
    turns = signed.to(torch.float32) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(u.double()))
    angle = (2.0 * torch.pi) * turns.double()
    z = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return z.flatten(1)[:, :num_elements].float().reshape(bits.shape[0], *shape)


def draw(x: Tensor, noise: Tensor | None, sample_ids: Tensor, row: Tensor, seed: int, stream: int) -> Tensor:
    """The given noise, or that of the contract in `fastdiff.process.noise`, in the dtype that x is computed in."""
    if noise is None:
        noise = torch_normals(seed, sample_ids, tuple(x.shape[1:]), stream, row)
    return noise.to(compute_dtype(x))
