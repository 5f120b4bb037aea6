"""Memory for the engine: large blocks in large pages, where the system has them."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

__all__ = ["empty", "zeros"]

# Below this, pages of the usual size.
LARGE_BYTES = 4 << 20


def empty(count: int) -> Tensor:
    """`count` float32 numbers on the CPU, uninitialised.

    Weights and activations are walked from end to end; in pages of 4 KiB the address translation of that costs more
    than a tenth of the time of a large network.

    Raises:
        RuntimeError: out of memory.
    """
    large = _large(count)
    return torch.empty(count, dtype=torch.float32, device="cpu") if large is None else large


def zeros(count: int) -> Tensor:
    """The same, all 0. Large blocks come so from the system, and are not touched.

    Raises:
        RuntimeError: out of memory.
    """
    large = _large(count)
    return torch.zeros(count, dtype=torch.float32, device="cpu") if large is None else large


def _large(count: int) -> Tensor | None:
    """Fresh pages of the system, all 0; None for few numbers, or a system without large pages."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if 4 * count < LARGE_BYTES or advice is None:
        return None
    try:
        block = mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise RuntimeError(f"out of memory: the engine needs {4 * count:,} bytes more ({error})") from error
    # A system may be without them.
    with contextlib.suppress(OSError):
        block.madvise(advice)
    return torch.frombuffer(block, dtype=torch.float32)
