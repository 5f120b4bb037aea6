"""The first kernel of a captured row: what the network is given for it, by the row's number in device memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.process.table import ROW_FIELDS
from fastdiff.process.table import ROW_WIDTH as _ROW_WIDTH

ROW_WIDTH = tl.constexpr(_ROW_WIDTH)
CI = tl.constexpr(ROW_FIELDS.index("ci"))
# Elements of a program: 16 bytes in 16 bits for each of 128 threads.
BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows", "num_image_programs", "batch"])
def _select_kernel(
    x_ptr,
    rows_ptr,
    row_ptr,
    num_rows_ptr,
    scaled_ptr,
    times_ptr,
    vector_ptr,
    t_ptr,
    time_ptr,
    num_rows,
    num_image_programs,
    batch,
    num_elements,
    spatial,
    x_stride_b,
    x_stride_c,
    x_stride_p,
    vector_size,
    CHANNELS: tl.constexpr,
    WRITTEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """scaled = ci x, vector = times[row], time = t[row], with ci = rows[row, CI]; the row is the same for all samples.

    x: [batch, CHANNELS, spatial] with strides; scaled: [n batch, WRITTEN, spatial], num_elements in all, dense, in
    channels_last memory or not: sample i is x's i mod batch, and channels that x has not are 0. vector: [vector_size],
    times: [R, vector_size]; time: [1], t: [R]; rows: float32 [R, ROW_WIDTH]; row: int64 [1]; num_rows: int64 [1] or the
    scalar, at most R. The product is float32 and is rounded to x's type, then to that of scaled. A row out of range
    gives NaN, and -1 where time holds whole numbers. LONG: offsets need 64 bits.

    Bytes: x read once, scaled written once, twice vector. Floor: those bytes / bandwidth.

    Access width: 16 bytes to write where WRITTEN is a multiple of 8 in 16 bits, of 4 in float32.
    """
    program = tl.program_id(0)
    row = tl.load(row_ptr)
    if num_rows_ptr is not None:
        num_rows = tl.load(num_rows_ptr)
    valid = (row >= 0) & (row < num_rows)
    columns = tl.arange(0, BLOCK)
    if program < num_image_programs:
        ci = tl.load(rows_ptr + row * ROW_WIDTH + CI, mask=valid, other=float("nan"))
        place = program.to(tl.int64) * BLOCK + columns if LONG else program * BLOCK + columns
        if CHANNELS_LAST:
            channel = place % WRITTEN
            pixel = (place // WRITTEN) % spatial
            sample = (place // WRITTEN // spatial) % batch
        else:
            pixel = place % spatial
            channel = (place // spatial) % WRITTEN
            sample = (place // spatial // WRITTEN) % batch
        there = (place < num_elements) & (channel < CHANNELS)
        x = tl.load(x_ptr + sample * x_stride_b + channel * x_stride_c + pixel * x_stride_p, mask=there, other=0.0)
        product = tl.where(there, x.to(tl.float32) * ci, 0.0).to(x_ptr.dtype.element_ty)
        tl.store(scaled_ptr + place, product.to(scaled_ptr.dtype.element_ty), mask=place < num_elements)
    else:
        first = (program - num_image_programs) * BLOCK
        if vector_ptr is not None:
            inside = first + columns < vector_size
            # Triton's interpreter gets the type of `inside & valid` wrong.
            wanted = tl.where(valid, inside, False)
            values = tl.load(times_ptr + row * vector_size + first + columns, mask=wanted, other=float("nan"))
            tl.store(vector_ptr + first + columns, values.to(vector_ptr.dtype.element_ty), mask=inside)
        if time_ptr is not None:
            if t_ptr.dtype.element_ty.is_int():
                value = tl.load(t_ptr + row, mask=valid, other=-1)
            else:
                value = tl.load(t_ptr + row, mask=valid, other=float("nan"))
            tl.store(time_ptr, value.to(time_ptr.dtype.element_ty), mask=first == 0)


def launch_select(
    x: Tensor,
    rows: Tensor,
    row: Tensor,
    scaled: Tensor,
    *,
    times: Tensor | None = None,
    vector: Tensor | None = None,
    t: Tensor | None = None,
    time: Tensor | None = None,
    num_rows: Tensor | None = None,
) -> None:
    """Write what a network is given for a row, in one launch, without a copy or a wait.

    Args:
        x: The state [B, C, ...], float32 or 16 bits, channels_last or contiguous.
        rows: The table's, float32 [R, ROW_WIDTH], contiguous.
        row: int64 [1], on the device.
        scaled: Where ci x goes, [n B, C', ...] of the network's type and layout: C' - C channels of zeros, n times.
        times: Of each row the vector that the network makes of its time, [R, ...], contiguous.
        vector: Where the row's goes, [...], contiguous.
        t: Of each row the time itself, [R]; whole numbers or float32.
        time: Where the row's goes, [1].
        num_rows: int64 [1], on the device: how many rows the table has, where there is room for more.

    Raises:
        ValueError: shapes that do not fit, or layouts that would need a copy.
    """
    batch, channels = x.shape[:2]
    _check(x, rows, scaled, times, vector, t, time)
    spatial, is_last = x[0, 0].numel() if batch else 0, _is_channels_last(scaled)
    x_is_last = _is_channels_last(x)
    strides = (x.stride(0), 1 if x_is_last else spatial, channels if x_is_last else 1)
    vector_size = 0 if vector is None else vector.numel()
    num_image_programs = -(-scaled.numel() // BLOCK)
    num_programs = num_image_programs + max(-(-vector_size // BLOCK), 0 if time is None else 1)
    if num_programs == 0:
        return
    with torch.cuda.device_of(x):
        _select_kernel[(num_programs,)](
            x,
            rows,
            row,
            num_rows,
            scaled,
            times,
            vector,
            t,
            time,
            rows.shape[0],
            num_image_programs,
            batch,
            scaled.numel(),
            spatial,
            *strides,
            vector_size,
            CHANNELS=channels,
            WRITTEN=scaled.shape[1],
            CHANNELS_LAST=is_last,
            LONG=max(x.numel(), scaled.numel()) >= 1 << 30,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous()


def _check(
    x: Tensor,
    rows: Tensor,
    scaled: Tensor,
    times: Tensor | None,
    vector: Tensor | None,
    t: Tensor | None,
    time: Tensor | None,
) -> None:
    if torch.float64 in (x.dtype, scaled.dtype):
        raise ValueError("the GPU kernels compute in float32: run float64 states eagerly")
    fits = scaled.ndim == x.ndim and scaled.shape[2:] == x.shape[2:] and scaled.shape[1] >= x.shape[1]
    if not fits or scaled.shape[0] % max(x.shape[0], 1):
        raise ValueError(f"scaled must be [n B, C or more, ...] for x {list(x.shape)}, got {list(scaled.shape)}")
    if (times is None) != (vector is None) or (t is None) != (time is None):
        raise ValueError("times and vector, and t and time, must be given together: pass both or neither")
    if times is not None and vector is not None and times.shape[1:] != vector.shape:
        raise ValueError(f"vector must be {list(times.shape[1:])}, a row of times, got {list(vector.shape)}")
    named = {"x": x, "rows": rows, "scaled": scaled, "times": times, "vector": vector, "t": t}
    for name, value in named.items():
        images = value is x or value is scaled
        if value is None or value.is_contiguous():
            continue
        if not (images and value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)):
            layouts = "channels_last or contiguous" if images else "contiguous"
            raise ValueError(f"{name} must be {layouts}, got strides {value.stride()}: make it so first")
