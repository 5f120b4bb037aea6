"""The oracle: every op in plain PyTorch, on any device, float32 arithmetic (float64 for float64 input).

These functions are read, not timed. Every kernel is held to them, and they to closed forms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.noise import Stream, torch_normals
from fastdiff.table import ROW_FIELDS


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Shape [B] or [1] values so that they broadcast against x [B, ...]."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def draw(x: Tensor, noise: Tensor | None, sample_ids: Tensor, row: Tensor, seed: int, stream: int) -> Tensor:
    """The given noise, or that of the contract in `fastdiff.noise`, in the dtype that x is computed in."""
    if noise is None:
        noise = torch_normals(seed, sample_ids, tuple(x.shape[1:]), stream, row)
    return noise.to(compute_dtype(x))


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


def step(
    x: Tensor,
    model_output: Tensor | None,
    rows: Tensor,
    row: Tensor,
    noise: Tensor | None,
    sample_ids: Tensor,
    seed: int,
    learned_variance: bool,
    base: Tensor | None,
    history: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One row of a coefficient table; the formula stands in `fastdiff.table`.

    A slot whose coefficient is 0 is not read: it may hold anything, NaN included.

    Args:
        x: State [B, C, ...].
        model_output: [B, C or 2C, ...], or None where no row evaluates.
        rows: [R, ROW_WIDTH], see `CoefficientTable.rows`.
        row: int64 [1] or [B].
        base: Saved state [B, C, ...] or None.
        history: Ring of past predictions [depth, B, C, ...] or None.

    Returns:
        (x', pred, base', history') in the dtype of the arithmetic; base' and history' None where none were given.
    """
    dtype = compute_dtype(x)
    coefficients = rows[row].to(dtype)
    k = {name: per_sample(coefficients[:, i], x) for i, name in enumerate(ROW_FIELDS)}
    state = x.to(dtype)

    def term(coefficient: Tensor, value: Tensor | None) -> Tensor:
        if value is None:
            return torch.zeros_like(state)
        return torch.where(coefficient != 0, coefficient * value.to(dtype), 0)

    m = v = None
    if model_output is not None:
        m = torch.where(k["evaluate"] != 0, model_output[:, : x.shape[1]].to(dtype), 0)
        v = (model_output[:, x.shape[1] :].to(dtype) + 1) / 2 if learned_variance else None
    pred = term(k["px"], state) + term(k["pm"], m)
    pred = torch.minimum(torch.maximum(pred, -k["clip"]), k["clip"])

    past: list[Tensor | None] = [None, None, None]
    slot = coefficients[:, ROW_FIELDS.index("slot")].to(torch.int64).expand(x.shape[0])
    if history is not None:
        samples = torch.arange(x.shape[0], device=x.device)
        past = [history[(slot - age) % history.shape[0], samples] for age in (1, 2, 3)]
        past = [p if age <= history.shape[0] else None for age, p in enumerate(past, start=1)]

    def combine(letter: str) -> Tensor:
        total = term(k[f"{letter}x"], state) + term(k[f"{letter}b"], base) + term(k[f"{letter}m"], m)
        total = total + term(k[f"{letter}0"], pred)
        for age, p in enumerate(past, start=1):
            total = total + term(k[f"{letter}{age}"], p)
        return total

    x_next = combine("c")
    if bool((k["s"] != 0).any()):
        z = draw(x, noise, sample_ids, row, seed, Stream.SAMPLING)
        scale = k["s"]
        if learned_variance and v is not None:
            log_variance = torch.where(k["evaluate"] != 0, v * k["log_max"] + (1 - v) * k["log_min"], 0)
            scale = scale * torch.exp(0.5 * log_variance)
        x_next = x_next + torch.where(k["s"] != 0, scale * z, 0)

    base_next = history_next = None
    if base is not None:
        base_next = torch.where(k["save_base"] != 0, combine("b"), base.to(dtype))
    if history is not None:
        history_next = history.to(dtype, copy=True)
        kept = history_next[slot, samples]
        history_next[slot, samples] = torch.where(k["push"] != 0, pred, kept)
    return x_next, pred, base_next, history_next
