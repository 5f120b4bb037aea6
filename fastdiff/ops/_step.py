"""The op `step`: one row of a coefficient table."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.calls import StepCall
from fastdiff.ops._arguments import (
    check_index,
    check_table,
    describe,
    is_unwatched,
    noise_arguments,
    signed,
)
from fastdiff.ops._dispatch import Implementation, define, dispatch
from fastdiff.ops.reference import step as reference
from fastdiff.process.table import ROW_FIELDS, ROW_WIDTH, CoefficientTable
from fastdiff.tensors import FLOAT_DTYPES, memory_format


def new_history(x: Tensor, depth: int) -> Tensor:
    """An uninitialised ring [depth, *x.shape] for `step`, each slot laid out as x."""
    flat: Tensor = torch.empty(
        (depth * x.shape[0], *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )
    history: Tensor = flat.unflatten(0, (depth, x.shape[0]))
    return history


def table_rows(
    table: CoefficientTable, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """The rows of a table as `step` reads them: [R, ROW_WIDTH], float32, or float64 for float64 states."""
    import numpy as np

    return torch.from_numpy(table.rows(np.float64 if dtype == torch.float64 else np.float32)).to(device)


def step(
    x: Tensor,
    model_output: Tensor | None,
    rows: Tensor,
    row: int | Tensor,
    *,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    noise: Tensor | None = None,
    learned_variance: bool = False,
    base: Tensor | None = None,
    history: Tensor | None = None,
    pred_out: Tensor | None = None,
    out: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Execute one row of a coefficient table; the formula stands in `fastdiff.process.table`. Inference only.

    Args:
        x: State [B, C, ...], float32, bfloat16, float16 or float64.
        model_output: [B, C, ...], or [B, 2C, ...] of which the second half is read only when `learned_variance`;
            any of the same dtypes. None where no row evaluates the model.
        rows: [R, ROW_WIDTH] from `table_rows`, on x's device.
        row: One row number, or int64 [1] or [B] on x's device, so that samples at different steps can share a batch.
            In [0, R). On a GPU a row out of range gives NaN; everywhere else it raises.
        seed: In [0, 2^64).
        sample_ids: int64 [B]; 0..B-1 when None.
        noise: Standard normal noise of x's shape to use instead of that of (seed, sample id, row).
        learned_variance: Scale the noise by the model's own variance.
        base: The saved state, x's shape, dtype and layout; updated in place. Needed where a row saves or reads it.
        history: Ring of past predictions from `new_history`, of the table's `history_depth` slots; updated in place.
            Needed where a row keeps its prediction or reads one. On a GPU neither this nor base is looked for.
        pred_out: Where to write the prediction, x's shape and dtype.
        out: Where to write the result; may be x itself. A new tensor when None. What is written shares no memory with
            anything else, or exactly that of x, the model's output or the noise.
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        x' in `out`.

    Raises:
        ValueError: shapes, dtypes or layouts that do not fit, tensors that require grad, memory that overlaps in part,
            or no base, history or model's output for a row that uses it.
        IndexError: row outside [0, R) on the CPU.
        RuntimeError: the named implementation is not available.
    """
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"the state must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"the state must be [B, C, ...], got shape {list(x.shape)}")
    if torch.is_grad_enabled() and (x.requires_grad or (model_output is not None and model_output.requires_grad)):
        raise ValueError("step is for inference only: call it under torch.no_grad(), or detach its inputs")
    check_table("rows", rows, x, "R", ROW_WIDTH, "table_rows")
    if model_output is not None:
        _check_model_output(x, model_output, learned_variance)
    elif learned_variance:
        raise ValueError("a learned variance needs the model's output")
    ids, row = noise_arguments(x, noise, sample_ids, row)
    out = torch.empty_like(x, memory_format=memory_format(x)) if out is None else out
    for name, value in (("base", base), ("pred_out", pred_out), ("out", out)):
        if value is not None:
            _check_slot(name, value, x)
    if history is not None:
        if history.ndim != x.ndim + 1 or not 1 <= history.shape[0] <= 3:
            raise ValueError(f"history must be [1 to 3, *x.shape] (from new_history), got {list(history.shape)}")
        _check_slot("history", history[0], x)
    call = StepCall(
        x, model_output, rows, row, noise, ids, signed(seed), learned_variance, base, history, pred_out, out
    )
    if x.is_cuda and is_unwatched():
        _check_memory(call)
    dispatch(call, implementation)
    return out


def _check_model_output(x: Tensor, model_output: Tensor, learned_variance: bool) -> None:
    channels = x.shape[1]
    allowed = (2 * channels,) if learned_variance else (channels, 2 * channels)
    fits = model_output.ndim == x.ndim and model_output.shape[0] == x.shape[0] and model_output.shape[2:] == x.shape[2:]
    if not fits or model_output.shape[1] not in allowed:
        expected = " or ".join(str([x.shape[0], c, *x.shape[2:]]) for c in allowed)
        raise ValueError(f"the model's output must have shape {expected}, got {list(model_output.shape)}")
    if model_output.dtype not in FLOAT_DTYPES:
        raise ValueError(f"the model's output must be floating point, got {model_output.dtype}")
    if model_output.device != x.device:
        raise ValueError(f"the model's output is on {model_output.device}, the state on {x.device}")


def _check_slot(name: str, value: Tensor, x: Tensor) -> None:
    if value.shape != x.shape or value.dtype != x.dtype or value.device != x.device:
        raise ValueError(f"{name} must be {describe(x)}, as the state, got {describe(value)}")
    layout = memory_format(x)
    if not value.is_contiguous(memory_format=layout):
        raise ValueError(f"{name} must have the state's memory format ({layout}), got strides {value.stride()}")


def _check_rows(call: StepCall) -> None:
    """Raise for rows out of range and for what they use and was not given, on the CPU, and for shared memory."""
    check_index("row", call.row, call.rows.shape[0])
    _check_memory(call)
    if call.rows.device.type != "cpu":
        return
    slots = 0 if call.history is None else call.history.shape[0]
    for number in dict.fromkeys(call.row.tolist()):
        k = dict(zip(ROW_FIELDS, call.rows[number].tolist(), strict=False))
        # What is saved reads by coefficients of its own.
        reads = {name for letter in ("cb" if k["save_base"] else "c") for name in "bm123" if k[letter + name]}
        if call.model_output is None and k["evaluate"] and ("m" in reads or k["pm"]):
            raise ValueError(f"row {number} reads the model's output, and none was given")
        if call.base is None and (k["save_base"] or "b" in reads):
            raise ValueError(f"row {number} uses the saved state, and no base was given: give all rows the same one")
        needed = max((int(name) for name in reads & set("123")), default=int(k["push"]))
        # A row that was made by hand may not say how many slots there are.
        wanted = int(k["depth"]) or needed
        if needed and (slots < needed or (k["depth"] and slots != wanted)):
            raise ValueError(
                f"row {number} uses a history of {wanted} slots, got {slots}: make it with new_history, and give all "
                "rows the same one"
            )


def _check_memory(call: StepCall) -> None:
    """Raise ValueError where what is written shares a part of its memory with something else."""
    written = {"out": call.out, "pred_out": call.pred_out, "base": call.base, "history": call.history}
    read = {"x": call.x, "the model's output": call.model_output, "noise": call.noise}
    places = {name: _place(value) for name, value in (written | read).items() if value is not None and value.numel()}
    for name in places.keys() & written.keys():
        for other in places.keys() - {name}:
            (first, end), (first_other, end_other) = places[name], places[other]
            same = other in read and (first, end) == (first_other, end_other)
            if first < end_other and first_other < end and not same:
                raise ValueError(f"{name} overlaps {other} in memory: give it memory of its own")


def _place(x: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def _reference(call: StepCall) -> None:
    _check_rows(call)
    slots = (call.out, call.pred_out, call.base, call.history)
    for slot, value in zip(slots, reference.step(call), strict=True):
        if slot is not None and value is not None:
            slot.copy_(value)


def _fake(call: StepCall) -> None:
    return None


define("step", StepCall, _reference, _fake, check_indices=_check_rows, kernel="step")
