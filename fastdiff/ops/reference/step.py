"""The oracle of `step`, in plain PyTorch, on any device: float32 arithmetic, float64 for float64 input.

It is read, not timed. The kernels are held to it, and it to closed forms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.calls import StepCall
from fastdiff.ops.reference.noise import draw
from fastdiff.process.noise import Stream
from fastdiff.process.table import ROW_FIELDS
from fastdiff.tensors import compute_dtype, per_sample


def step(call: StepCall) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One row of a coefficient table; the formula stands in `fastdiff.process.table`.

    A slot whose coefficient is 0 is not read: it may hold anything, NaN included.

    Args:
        call: As for `fastdiff.ops.step`. Nothing in it is written; `pred_out` and `out` are not read.

    Returns:
        (x', pred, base', history') in the dtype of the arithmetic; base' and history' None where none were given.
    """
    x, model_output, base, history = call.x, call.model_output, call.base, call.history
    dtype = compute_dtype(x)
    coefficients = call.rows[call.row].to(dtype)
    k = {name: per_sample(coefficients[:, i], x) for i, name in enumerate(ROW_FIELDS)}
    state = x.to(dtype)

    def term(coefficient: Tensor, value: Tensor | None) -> Tensor:
        if value is None:
            return torch.zeros_like(state)
        return torch.where(coefficient != 0, coefficient * value.to(dtype), 0)

    m = v = None
    if model_output is not None:
        m = torch.where(k["evaluate"] != 0, model_output[:, : x.shape[1]].to(dtype), 0)
        v = (model_output[:, x.shape[1] :].to(dtype) + 1) / 2 if call.learned_variance else None
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
        z = draw(call, x, Stream.SAMPLING)
        scale = k["s"]
        if v is not None:
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
