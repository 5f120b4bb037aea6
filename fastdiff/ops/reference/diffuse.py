"""The oracle of `diffuse`, in plain PyTorch, on any device: float32 arithmetic, float64 for float64 input.

It is read, not timed. The kernels are held to it, and it to float64 formulas in NumPy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.calls import DiffuseCall
from fastdiff.ops.reference.noise import draw
from fastdiff.tensors import per_sample


def diffuse(call: DiffuseCall) -> tuple[Tensor, Tensor]:
    """x_t = c0 x_0 + c1 z and target = c2 x_0 + c3 z with (c0, c1, c2, c3) the row t of `table`.

    Args:
        call: As for `fastdiff.ops.diffuse`. uint8 values v of x0 mean 2 v / (levels - 1) - 1. `dtype` and `want_target`
            are not read.

    Returns:
        (x_t, target) in the dtype of the arithmetic.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 4; targets: see `Diffusion`.
    """
    z = draw(call, call.x0, call.stream)
    x = call.x0.to(z.dtype)
    if call.x0.dtype == torch.uint8:
        x = x * (2.0 / (call.levels - 1)) - 1.0
    c0, c1, c2, c3 = (per_sample(call.table[call.t, i].to(z.dtype), x) for i in range(4))
    return c0 * x + c1 * z, c2 * x + c3 * z
