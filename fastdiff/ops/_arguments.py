"""Checks of the ops' arguments, and the arguments that they fill in."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastdiff.process.noise import MAX_ROW, check_seed
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype

# Row numbers below this, and as many tensors of numbers, are kept for the next call.
_MANY = 4096


def is_unwatched() -> bool:
    """Whether nothing looks at the ops that run: no mode, transform, tracer or compiler."""
    return (
        # First: the compiler cannot look at the others.
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def describe(x: Tensor) -> str:
    """Dtype, shape and device, for errors."""
    return f"{x.dtype} {list(x.shape)} on {x.device}"


def check_index(name: str, index: Tensor, length: int) -> None:
    """Raise IndexError for an index outside [0, length), on the CPU only."""
    if index.device.type == "cpu" and index.numel() and (int(index.min()) < 0 or int(index.max()) >= length):
        bad = index[(index < 0) | (index >= length)]
        raise IndexError(f"{name} must be in [0, {length}), got {int(bad[0])}")


def check_times(t: Tensor, x: Tensor) -> None:
    """Raise ValueError unless t has a timestep for each sample of x [B, ...]."""
    if t.dtype != torch.int64 or t.shape != (x.shape[0],) or t.device != x.device:
        raise ValueError(f"t must be int64 [{x.shape[0]}] on {x.device}, got {describe(t)}")


def check_table(name: str, table: Tensor, x: Tensor, length: str, width: int, source: str) -> None:
    """Raise ValueError unless a table is what `source` gives for x: [length, width] in the dtype x is computed in."""
    dtype = compute_dtype(x)
    if table.dtype != dtype or table.ndim != 2 or table.shape[1] != width or table.device != x.device:
        raise ValueError(
            f"{name} must be {dtype} [{length}, {width}] on {x.device} (from {source}), got {describe(table)}"
        )


def check_precision(name: str, dtype: torch.dtype, other: str, other_dtype: torch.dtype) -> None:
    """Raise ValueError unless a dtype is a floating-point one, and float64 exactly where the other is."""
    if dtype not in FLOAT_DTYPES or (dtype == torch.float64) != (other_dtype == torch.float64):
        raise ValueError(f"{name} of {dtype} does not fit {other} of {other_dtype}: float64 goes with float64 only")


def noise_arguments(
    x: Tensor, noise: Tensor | None, sample_ids: Tensor | None, row: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Sample ids int64 [B] and row numbers int64 [1 or B] on x's device.

    Raises:
        ValueError: noise, sample ids or row do not fit.
    """
    batch, device = x.shape[0], x.device
    if noise is not None and (noise.shape != x.shape or noise.dtype not in FLOAT_DTYPES or noise.device != device):
        raise ValueError(f"noise must be floating point {list(x.shape)} on {device}, got {describe(noise)}")
    if sample_ids is not None and (
        sample_ids.shape != (batch,) or sample_ids.dtype != torch.int64 or sample_ids.device != device
    ):
        raise ValueError(f"sample_ids must be int64 [{batch}] on {device}, got {describe(sample_ids)}")
    if isinstance(row, Tensor):
        if row.dtype != torch.int64 or row.ndim != 1 or row.shape[0] not in (1, batch) or row.device != device:
            raise ValueError(f"row must be int64 [1] or [{batch}] on {device}, got {describe(row)}")
    elif not 0 <= row < MAX_ROW:
        raise ValueError(f"row must be in [0, 2^28), got {row}")
    keep = _may_keep(device)
    if sample_ids is None:
        sample_ids = _kept_numbers(0, batch, device) if keep else torch.arange(batch, device=device)
    if not isinstance(row, Tensor):
        number, keep = int(row), keep and row < _MANY
        row = _kept_numbers(number, number + 1, device) if keep else torch.full((1,), number, device=device)
    return sample_ids, row


def _may_keep(device: torch.device) -> bool:
    """Whether what is made now may serve later calls, and what earlier ones made this one.

    What is made under a mode may not be a tensor of numbers. What is made in a capture belongs to its graph and holds
    no numbers before that runs; and a graph must not read what may be dropped before it is.
    """
    return is_unwatched() and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


@functools.lru_cache(maxsize=_MANY)
def _kept_numbers(first: int, end: int, device: torch.device) -> Tensor:
    """The numbers in [first, end), a part of a longer tensor."""
    with torch.inference_mode(False):
        return _kept_from_zero(max(_MANY, 1 << (end - 1).bit_length()), device)[first:end]


@functools.lru_cache(maxsize=16)
def _kept_from_zero(length: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        numbers = torch.arange(length, dtype=torch.int64, device=device)
    if device.type == "cuda":
        # Later calls may be on other streams, which would not wait for this one.
        torch.cuda.current_stream(device).synchronize()
    return numbers


def signed(seed: int) -> int:
    """The seed's 64 bits as the signed number that a schema's int holds."""
    seed = check_seed(seed)
    return seed - (1 << 64) if seed >= 1 << 63 else seed
