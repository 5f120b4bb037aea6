"""The reverse step on a GPU: one row of a coefficient table, every slot read and written once."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import StepCall
from fastdiff.kernels.launching import Description, Launches, are_aligned, launch
from fastdiff.kernels.philox import last_word, load_seed, seed_words
from fastdiff.kernels.tiles import (
    Tiling,
    channels_last_normals,
    channels_last_tile,
    contiguous_normals,
    contiguous_tile,
    load_sample_id,
    tiling_of,
)
from fastdiff.process.noise import Stream
from fastdiff.process.table import ROW_FIELDS
from fastdiff.process.table import ROW_WIDTH as _ROW_WIDTH
from fastdiff.tensors import memory_format

SAMPLING = tl.constexpr(int(Stream.SAMPLING))
ROW_WIDTH = tl.constexpr(_ROW_WIDTH)
PX, PM, CLIP = (tl.constexpr(ROW_FIELDS.index(name)) for name in ("px", "pm", "clip"))
# Seven weights in a row: of x, base, m, pred, p1, p2, p3.
CX, BX = (tl.constexpr(ROW_FIELDS.index(name)) for name in ("cx", "bx"))
S, LOG_MIN, LOG_MAX = (tl.constexpr(ROW_FIELDS.index(name)) for name in ("s", "log_min", "log_max"))
EVALUATE, SAVE_BASE, PUSH = (tl.constexpr(ROW_FIELDS.index(name)) for name in ("evaluate", "save_base", "push"))
SLOT = tl.constexpr(ROW_FIELDS.index("slot"))


@triton.jit
def _add(total, weight, value):
    """total + weight * value; the total alone where the weight, one number, is 0, whatever the value."""
    return tl.where(weight != 0, total + weight * value, total)


@triton.jit
def _only_if(wanted, mask):
    """mask & wanted, for one boolean; Triton's interpreter gets the type of that expression wrong."""
    return tl.where(wanted, mask, False)


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "row_stride", "seed_low", "seed_high"])
def _step_kernel(
    x_ptr,
    model_ptr,
    rows_ptr,
    row_ptr,
    noise_ptr,
    ids_ptr,
    base_ptr,
    history_ptr,
    pred_ptr,
    out_ptr,
    seed_ptr,
    num_rows_ptr,
    num_rows,
    row_stride,
    seed_low,
    seed_high,
    num_elements,
    spatial,
    num_tiles,
    model_stride_b,
    model_stride_c,
    model_stride_p,
    variance_offset,
    history_stride,
    LEARNED_VARIANCE: tl.constexpr,
    DEPTH: tl.constexpr,
    SAME_ORDER: tl.constexpr,
    MODEL_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One row of a coefficient table, for every sample its own:

        pred  = clamp(px x + pm m, -clip, clip)
        x'    = cx x + cb base + cm m + c0 pred + c1 p1 + c2 p2 + c3 p3 + s exp(logvar / 2) z
        base' = bx x + bb base + bm m + b0 pred + b1 p1 + b2 p2 + b3 p3          where save_base
        history[slot] = pred                                                     where push

    with m = 0 in rows that do not evaluate, p_k = history[(slot - k) mod DEPTH] and, where LEARNED_VARIANCE and the row
    evaluates, logvar = v log_max + (1 - v) log_min, v = (second half of the model's output + 1) / 2. A slot whose
    weights are 0 does not count, NaN or not; base and history are not even read then. A row out of range gives NaN and
    leaves base and history as they are. All arithmetic in float32.

    x, noise, base, pred and out are [B, num_elements] and history [DEPTH, B, num_elements], in one order: logical where
    CHANNELS is 0, else channels_last with so many channels and `spatial` pixels. Element (b, c, p) of the model's
    output lies at b model_stride_b + c model_stride_c + p model_stride_p; SAME_ORDER says that this is x's order, with
    MODEL_CHANNELS channels in channels_last memory. ids: int64 [B]; row: int64 [B], or [1] with row_stride 0; rows:
    float32 [num_rows, ROW_WIDTH]. seed and num_rows: int64 [1] where they are given, else the scalars.

    Bytes: every element of x and m (and v, noise, the slots that the row reads) read once, of out (and pred, base, the
    slot that the row writes) written once; per program up to 120 more. Floor: those bytes / bandwidth; x, m and out are
    12 bytes per element in float32, 6 in 16 bits. Noise, where s != 0, costs about 40 instructions per element: on an
    H200 some 6e11 elements per second, which is above the float32 floor and below that of 16 bits (paper arithmetic).

    Access width: 16 bytes in contiguous memory where num_elements is a multiple of 16 (16-bit elements beside float32
    ones: 8). In channels_last memory the neighbours are channels: 16 bytes of them where their number is a multiple
    of 4 (in 16 bits, 8), else fewer or single ones, with a warp on whole rows of neighbouring pixels. A model's output
    in another order than x is read by single elements.
    """
    sample = tl.program_id(0) // num_tiles
    tile = tl.program_id(0) % num_tiles
    if noise_ptr is None:
        sample_id = load_sample_id(ids_ptr + sample, CHANNELS, BLOCK, BLOCK_C)
    start = sample.to(tl.int64) * num_elements
    model_start = sample.to(tl.int64) * model_stride_b
    if CHANNELS == 0:
        first, offsets, mask = contiguous_tile(tile, num_elements, BLOCK)
        start += first
        if SAME_ORDER:
            model_start += first
            model_offsets = offsets
        elif model_ptr is not None:
            model_start += (first // spatial) * model_stride_c
            places = (first % spatial).to(tl.int32) + offsets
            model_offsets = (places // spatial).to(tl.int64) * model_stride_c
            model_offsets += (places % spatial).to(tl.int64) * model_stride_p
    else:
        first, pixels, channels, mask = channels_last_tile(tile, spatial, CHANNELS, ALIGNED, EVEN, BLOCK, BLOCK_C)
        start += first * CHANNELS
        offsets = pixels * CHANNELS + channels
        if SAME_ORDER:
            variance_offset = CHANNELS
            model_start += first * MODEL_CHANNELS
            if MODEL_CHANNELS == CHANNELS or CHANNELS % 2 == 0:
                model_offsets = pixels * MODEL_CHANNELS + channels
            else:
                # As a constant, an even stride would suggest wider reads than x has, and another layout for them.
                model_offsets = pixels * model_stride_p + channels
        elif model_ptr is not None:
            model_start += first * model_stride_p
            model_offsets = pixels.to(tl.int64) * model_stride_p + channels.to(tl.int64) * model_stride_c

    # These are needed in nearly every row, so they do not wait for it.
    x = tl.load(x_ptr + start + offsets, mask=mask).to(tl.float32)
    if model_ptr is not None:
        m = tl.load(model_ptr + model_start + model_offsets, mask=mask).to(tl.float32)
    if LEARNED_VARIANCE:
        v = tl.load(model_ptr + model_start + variance_offset + model_offsets, mask=mask).to(tl.float32)

    row = tl.load(row_ptr + sample * row_stride)
    if num_rows_ptr is not None:
        num_rows = tl.load(num_rows_ptr)
    valid = (row >= 0) & (row < num_rows)
    rows_ptr += row * ROW_WIDTH
    px = tl.load(rows_ptr + PX, mask=valid, other=float("nan"))
    clip = tl.load(rows_ptr + CLIP, mask=valid, other=float("nan"))
    cx = tl.load(rows_ptr + CX, mask=valid, other=float("nan"))
    c0 = tl.load(rows_ptr + (CX + 3), mask=valid, other=float("nan"))
    s = tl.load(rows_ptr + S, mask=valid, other=float("nan"))

    pred = _add(tl.zeros_like(x), px, x)
    total = _add(tl.zeros_like(x), cx, x)
    if base_ptr is not None:
        cb = tl.load(rows_ptr + (CX + 1), mask=valid, other=float("nan"))
        bb = tl.load(rows_ptr + (BX + 1), mask=valid, other=float("nan"))
        save_base = tl.load(rows_ptr + SAVE_BASE, mask=valid, other=0.0) != 0
        base = tl.load(base_ptr + start + offsets, mask=_only_if((cb != 0) | (bb != 0), mask), other=0.0).to(tl.float32)
        total = _add(total, cb, base)
        base_total = _add(tl.zeros_like(x), tl.load(rows_ptr + BX, mask=valid, other=float("nan")), x)
        base_total = _add(base_total, bb, base)
    if model_ptr is not None:
        evaluate = valid & (tl.load(rows_ptr + EVALUATE, mask=valid, other=0.0) != 0)
        pm = tl.load(rows_ptr + PM, mask=evaluate, other=0.0)
        pred = _add(pred, pm, m)
        total = _add(total, tl.load(rows_ptr + (CX + 2), mask=evaluate, other=0.0), m)
        if base_ptr is not None:
            base_total = _add(base_total, tl.load(rows_ptr + (BX + 2), mask=evaluate, other=0.0), m)

    # Comparisons with NaN are false, so it passes.
    pred = tl.where(pred > clip, clip, pred)
    pred = tl.where(pred < -clip, -clip, pred)
    total = _add(total, c0, pred)
    if base_ptr is not None:
        base_total = _add(base_total, tl.load(rows_ptr + (BX + 3), mask=valid, other=float("nan")), pred)

    if DEPTH > 0:
        slot = tl.load(rows_ptr + SLOT, mask=valid, other=0.0).to(tl.int32)
        slot = tl.minimum(tl.maximum(slot, 0), DEPTH - 1)
        for age in tl.static_range(1, DEPTH + 1):
            past_ptr = history_ptr + ((slot + DEPTH - age) % DEPTH).to(tl.int64) * history_stride + start
            c = tl.load(rows_ptr + (CX + 3 + age), mask=valid, other=float("nan"))
            wanted = c != 0
            if base_ptr is not None:
                b = tl.load(rows_ptr + (BX + 3 + age), mask=valid, other=float("nan"))
                wanted = wanted | (b != 0)
            past = tl.load(past_ptr + offsets, mask=_only_if(wanted, mask), other=0.0).to(tl.float32)
            total = _add(total, c, past)
            if base_ptr is not None:
                base_total = _add(base_total, b, past)

    if s != 0:
        if noise_ptr is not None:
            z = tl.load(noise_ptr + start + offsets, mask=mask).to(tl.float32)
        else:
            last = last_word(row, SAMPLING)
            if seed_ptr is not None:
                seed_low, seed_high = load_seed(seed_ptr)
            if CHANNELS == 0:
                z = contiguous_normals(tile, sample_id, last, seed_low, seed_high, BLOCK, VECTOR)
            else:
                z = channels_last_normals(tile, spatial, sample_id, last, seed_low, seed_high, CHANNELS, BLOCK, BLOCK_C)
        if LEARNED_VARIANCE:
            log_min = tl.load(rows_ptr + LOG_MIN, mask=evaluate, other=0.0)
            log_max = tl.load(rows_ptr + LOG_MAX, mask=evaluate, other=0.0)
            share = (v + 1) * 0.5
            z *= tl.exp(tl.where(evaluate, 0.5 * (share * log_max + (1 - share) * log_min), 0.0))
        total = tl.fma(z, s, total)

    if DEPTH > 0:
        # The slot that is written may be the one that was read, and by another thread.
        tl.debug_barrier()
    tl.store(out_ptr + start + offsets, total.to(out_ptr.dtype.element_ty), mask=mask)
    if pred_ptr is not None:
        tl.store(pred_ptr + start + offsets, pred.to(pred_ptr.dtype.element_ty), mask=mask)
    if base_ptr is not None:
        tl.store(base_ptr + start + offsets, base_total.to(base_ptr.dtype.element_ty), mask=_only_if(save_base, mask))
    if DEPTH > 0:
        push = tl.load(rows_ptr + PUSH, mask=valid, other=0.0) != 0
        slot_ptr = history_ptr + slot.to(tl.int64) * history_stride + start
        tl.store(slot_ptr + offsets, pred.to(history_ptr.dtype.element_ty), mask=_only_if(push, mask))


def launch_step(call: StepCall, *, seed: Tensor | None = None, num_rows: Tensor | None = None) -> None:
    """Run the op on a GPU; arguments as in `fastdiff.ops.step`.

    Args:
        call: The op's arguments.
        seed: int64 [1] on x's device, read by the kernel in place of the call's seed, as a captured launch needs.
        num_rows: int64 [1] likewise, in place of the number of rows that the table has room for.

    Raises:
        ValueError: for float64 states.
    """
    x, model_output, rows, row, noise, sample_ids, scalar, learned_variance, base, history, pred_out, out = call
    if x.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 states with implementation='reference'")
    if x.numel() == 0:
        return
    kind = None if model_output is None else (model_output.dtype, model_output.shape[1], model_output.stride())
    plan = _plan(x.shape, memory_format(x), x.dtype, kind, None if noise is None else noise.dtype)
    layout = plan.cut.layout
    x = x.contiguous(memory_format=layout)
    noise = None if noise is None else noise.contiguous(memory_format=layout)
    if plan.copies_model and model_output is not None:
        model_output = model_output.contiguous(memory_format=layout)
    rows, row, sample_ids = rows.contiguous(), row.contiguous(), sample_ids.contiguous()
    tensors = (x, model_output, rows, row, noise, sample_ids, base, history, pred_out, out, seed, num_rows)
    depth, history_stride = (0, 0) if history is None else (history.shape[0], history.stride(0))

    def describe() -> Description:
        numbers = (plan.cut.num_elements, plan.cut.spatial, plan.cut.num_tiles, *plan.strides)
        flags = {
            "LEARNED_VARIANCE": learned_variance,
            "DEPTH": depth,
            "SAME_ORDER": plan.same_order,
            "MODEL_CHANNELS": plan.model_channels,
        }
        fixed = (*numbers, x.shape[1] * plan.strides[1], history_stride)
        return x.shape[0] * plan.cut.num_tiles, fixed, flags | plan.cut.constants()

    key = None
    if are_aligned(*tensors):
        absent = (base is None, pred_out is None, seed is None, num_rows is None)
        key = (x.device, learned_variance, depth, history_stride, absent)
    numbers = (rows.shape[0], 0 if row.shape[0] == 1 else 1, *seed_words(scalar))
    with torch.cuda.device_of(x):
        launch(_step_kernel, plan.launches, key, tensors, numbers, describe)


@dataclass(frozen=True)
class _Plan:
    """What follows from the layouts of a state and of a model's output.

    Attributes:
        cut: The state's.
        copies_model: Whether the output's pixels do not lie in one stride.
        strides: Of the output, or of its copy: batch, channel, pixel.
        same_order: Whether that is the state's order.
        model_channels: Of the output in channels_last memory and that order, else 0.
        launches: What was launched for it.
    """

    cut: Tiling
    copies_model: bool
    strides: tuple[int, int, int]
    same_order: bool
    model_channels: int
    launches: Launches = field(default_factory=dict, compare=False, repr=False)


@functools.lru_cache(maxsize=4096)
def _plan(
    shape: torch.Size,
    layout: torch.memory_format,
    dtype: torch.dtype,
    model: tuple[torch.dtype, int, tuple[int, ...]] | None,
    noise_dtype: torch.dtype | None,
) -> _Plan:
    dtypes = (dtype, *([] if model is None else [model[0]]), *([] if noise_dtype is None else [noise_dtype]))
    cut = tiling_of(shape, layout, dtypes)
    if model is None:
        return _Plan(cut, False, (0, 0, 0), False, 0)
    _, channels, strides = model
    flat = all(strides[i] == strides[i + 1] * shape[i + 1] for i in range(2, len(shape) - 1))
    copies = not flat or cut.spatial >= 1 << 30
    if copies:
        steps = (1, channels) if cut.channels else (cut.spatial, 1)
        of_model = (channels * cut.spatial, *steps)
    else:
        of_model = (strides[0], strides[1], strides[-1] if len(shape) > 2 else 1)
    if cut.channels:
        same = of_model[1:] == (1, channels)
        return _Plan(cut, copies, of_model, same, channels if same else 0)
    same = 1 in (cut.spatial, of_model[2]) and (shape[1] == 1 or of_model[1] == cut.spatial)
    return _Plan(cut, copies, of_model, same, 0)
