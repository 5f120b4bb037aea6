"""The op `posterior_mean` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from fastdiff.tensors import compute_dtype, per_sample


def posterior_mean(x_t: Tensor, model_output: Tensor, t: Tensor, table: Tensor, clip: float | None) -> Tensor:
    """c0 x_0 + c1 x_t with x_0 = clamp(c2 x_t + c3 m, -clip, clip) and (c0, c1, c2, c3) the row t of `table`.

    Args:
        x_t: [B, ...].
        model_output: m, [B, ...].
        t: int64 [B].
        table: [T, 4], see `Diffusion.posterior_table`.
        clip: Above 0, or None for none.

    Returns:
        The mean of q(x_{t-1} | x_t, x_0), in the dtype of the arithmetic.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 7.
    """
    dtype = compute_dtype(x_t)
    x, m = x_t.to(dtype), model_output.to(dtype)
    c0, c1, c2, c3 = (per_sample(table[t, i].to(dtype), x) for i in range(4))
    x0 = c2 * x + c3 * m
    return c0 * (x0 if clip is None else x0.clamp(-clip, clip)) + c1 * x
