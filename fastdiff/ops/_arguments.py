"""What the ops share: checks of arguments."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastdiff.process.noise import MAX_ROW, check_seed
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype


def is_unwatched() -> bool:
    """Whether nothing looks at the ops that run: no mode, transform, tracer or compiler."""
    return (
        # First: the compiler cannot look at the others.
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def check_index(name: str, index: Tensor, length: int) -> None:
    """Raise IndexError for an index outside [0, length), on the CPU only."""
    if index.device.type == "cpu" and index.numel() and (int(index.min()) < 0 or int(index.max()) >= length):
        bad = index[(index < 0) | (index >= length)]
        raise IndexError(f"{name} must be in [0, {length}), got {int(bad[0])}")


def describe(x: Tensor) -> str:
    """Dtype, shape and device, for errors."""
    return f"{x.dtype} {list(x.shape)} on {x.device}"


def dtype_name(x: Tensor) -> str:
    """Name of the dtype of tables and arithmetic for x, for errors."""
    return str(compute_dtype(x))


def noise_arguments(
    x: Tensor, noise: Tensor | None, sample_ids: Tensor | None, row: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Sample ids int64 [B] and rows int64 [1 or B] on x's device. Raises ValueError for what does not fit."""
    if noise is not None and (noise.shape != x.shape or noise.dtype not in FLOAT_DTYPES or noise.device != x.device):
        raise ValueError(f"noise must be floating point {list(x.shape)} on {x.device}, got {describe(noise)}")
    batch = x.shape[0]
    if sample_ids is None:
        sample_ids = _counting(batch, x.device)
    elif sample_ids.shape != (batch,) or sample_ids.dtype != torch.int64 or sample_ids.device != x.device:
        raise ValueError(f"sample_ids must be int64 [{batch}] on {x.device}, got {describe(sample_ids)}")
    if isinstance(row, Tensor):
        if row.dtype != torch.int64 or row.ndim != 1 or row.shape[0] not in (1, batch) or row.device != x.device:
            raise ValueError(f"row must be int64 [1] or [{batch}] on {x.device}, got {describe(row)}")
        return sample_ids, row
    if not 0 <= row < MAX_ROW:
        raise ValueError(f"row must be in [0, 2^28), got {row}")
    return sample_ids, _one_number(int(row), x.device)


def _counting(count: int, device: torch.device) -> Tensor:
    # What is made under a mode may not be a tensor of numbers, and must not be kept.
    if not is_unwatched():
        return torch.arange(count, dtype=torch.int64, device=device)
    return _cached_part(device, 0, count)


def _one_number(number: int, device: torch.device) -> Tensor:
    if number >= 4096 or not is_unwatched():
        return torch.full((1,), number, dtype=torch.int64, device=device)
    return _cached_part(device, number, number + 1)


@functools.lru_cache(maxsize=4096)
def _cached_part(device: torch.device, first: int, end: int) -> Tensor:
    with torch.inference_mode(False):
        return _cached_counting(device, max(4096, 1 << (end - 1).bit_length()))[first:end]


@functools.lru_cache(maxsize=16)
def _cached_counting(device: torch.device, length: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(length, dtype=torch.int64, device=device)


def signed(seed: int) -> int:
    """The seed's 64 bits as the signed number that a schema's int holds."""
    seed = check_seed(seed)
    return seed - (1 << 64) if seed >= 1 << 63 else seed
