"""What a convolution leaves to be added, where no norm does: y = x + residual + bias + time, channels_last."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a program: 16 bytes in 16 bits for each of 128 threads.
BLOCK = 1024


@triton.jit
def _add_kernel(
    x_ptr,
    residual_ptr,
    bias_ptr,
    time_ptr,
    y_ptr,
    num_elements,
    num_tiles,
    time_stride,
    CHANNELS: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y = x + residual + bias + time, summed in float32 in this order.

    x, residual, y: [B, num_elements / CHANNELS, CHANNELS]; bias: [CHANNELS]; time: [B, CHANNELS] with a stride. y may
    be x. num_elements and num_tiles are those of a sample. LONG: offsets in a sample need 64 bits.

    Bytes: x and residual read once, y written once. Floor: those bytes / bandwidth.

    Access width: 16 bytes where num_elements is a multiple of 16.
    """
    tile = tl.program_id(0) % num_tiles
    sample = (tl.program_id(0) // num_tiles).to(tl.int64)
    offsets = tile * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < num_elements
    channels = offsets % CHANNELS
    if LONG:
        offsets = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < num_elements
        channels = (offsets % CHANNELS).to(tl.int32)
    start = sample * num_elements
    total = tl.load(x_ptr + start + offsets, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        total += tl.load(residual_ptr + start + offsets, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + channels, mask=mask, other=0.0).to(tl.float32)
    if time_ptr is not None:
        total += tl.load(time_ptr + sample * time_stride + channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + start + offsets, total.to(y_ptr.dtype.element_ty), mask=mask)


def launch_add(x: Tensor, residual: Tensor | None, bias: Tensor | None, time: Tensor | None, out: Tensor) -> None:
    """Write x + residual + bias + time to `out`, which may be x.

    Args:
        x, out: [B, C, H, W] of one type, channels_last.
        residual: The same, or None.
        bias: [C] of any type, contiguous, or None.
        time: [B, C] of any type, whose rows are contiguous, or None.
        out: See x.

    Raises:
        ValueError: a layout that the kernel does not take.
    """
    for name, value in (("x", x), ("residual", residual), ("out", out)):
        if value is not None and not value.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"{name} must be channels_last, got strides {value.stride()}: make it so first")
    if x.numel() == 0:
        return
    num_elements = x[0].numel()
    num_tiles = -(-num_elements // BLOCK)
    with torch.cuda.device_of(x):
        _add_kernel[(x.shape[0] * num_tiles,)](
            x,
            residual,
            bias,
            time,
            out,
            num_elements,
            num_tiles,
            0 if time is None else time.stride(0),
            CHANNELS=x.shape[1],
            LONG=num_elements >= 1 << 30,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
