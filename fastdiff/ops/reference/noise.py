"""The oracle of noise: the contract of `fastdiff.process.noise` in PyTorch, on any device.

It is read, not timed, though `likelihood` and `langevin` draw from it too. Words are equal to NumPy's bit for bit.
Normals are the contract's formula in float64, rounded once to float32, and the kernels are held to them by ulp.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdiff.calls import DiffuseCall, StepCall
from fastdiff.process.noise import M0, M1, MASK, NUM_ROUNDS, STREAM_SHIFT, W0, W1
from fastdiff.tensors import compute_dtype


def torch_words(seed: int, sample_ids: torch.Tensor, num_elements: int, stream: int, row: torch.Tensor) -> torch.Tensor:
    """`fastdiff.process.noise.words` on the device of `sample_ids`, of whole blocks of four.

    Args:
        seed: 64 bits; a signed number stands for the unsigned one of the same bits.
        sample_ids: [B] whole numbers.
        num_elements: Elements of one sample.
        stream: See `Stream`.
        row: [1] or [B], in [0, 2^28).

    Returns:
        int64 [B, 4 * ceil(num_elements / 4)] holding 32-bit values.
    """
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
    """`fastdiff.process.noise.normals` on the device of `sample_ids`: float32 [B, *shape], contiguous.

    Args:
        shape: Of one sample.
        seed, sample_ids, stream, row: As in `torch_words`.
    """
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


def draw(call: DiffuseCall | StepCall, x: Tensor, stream: int) -> Tensor:
    """The call's given noise, or that of the contract for samples like x, in the dtype that x is computed in."""
    noise = call.noise
    if noise is None:
        noise = torch_normals(call.seed, call.sample_ids, tuple(x.shape[1:]), stream, call.row)
    return noise.to(compute_dtype(x))
