"""The oracle of `posterior_mean`, in plain PyTorch, on any device: float32 arithmetic, float64 for float64 input.

It is read, not timed. The kernels are held to it, and it to the closed form of the posterior.
"""

from __future__ import annotations

from torch import Tensor

from fastdiff.calls import PosteriorMeanCall
from fastdiff.tensors import compute_dtype, per_sample


def posterior_mean(call: PosteriorMeanCall) -> Tensor:
    """c0 x_0 + c1 x_t with x_0 = clamp(c2 x_t + c3 m, -clip, clip) and (c0, c1, c2, c3) the row t of `table`.

    Args:
        call: As for `fastdiff.ops.posterior_mean`; m is its `model_output`.

    Returns:
        The mean of q(x_{t-1} | x_t, x_0), in the dtype of the arithmetic.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 7.
    """
    dtype = compute_dtype(call.x_t)
    x, m = call.x_t.to(dtype), call.model_output.to(dtype)
    c0, c1, c2, c3 = (per_sample(call.table[call.t, i].to(dtype), x) for i in range(4))
    x0 = c2 * x + c3 * m
    return c0 * (x0 if call.clip is None else x0.clamp(-call.clip, call.clip)) + c1 * x
