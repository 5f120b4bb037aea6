"""Samples of a request as C++ sees them: csrc/cpu/chunks.h."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.ops.table_state import TableState

__all__ = ["FIELDS", "Places", "is_plain"]

# Of a chunk in C++, csrc/cpu/chunks.h, in its order.
FIELDS = (
    "x", "model_output", "base", "history", "pred_out", "input", "rows", "sample_ids", "history_depth",
    "history_stride", "row", "samples", "pixels", "channels", "channels_out", "copies", "learned_variance", "seed",
)  # fmt: skip


class Places:
    """Where C++ finds the state of some samples and what is kept of it; it holds the tensors.

    Attributes:
        values: [len(FIELDS)] int64, without what differs from row to row.

    Args:
        state: Of the table.
        x: The samples' state [n, C, H, W], which `is_plain` says yes to.
        ids: [n] int64, the samples' ids.
        seed: Of their noise.
        copies: Evaluations of a sample, 2 for a guided one.
    """

    def __init__(self, state: TableState, x: Tensor, ids: Tensor, *, seed: int, copies: int) -> None:
        state.make_room(x)
        base, history, rows, ids = state.base, state.history, state.rows(x), ids.contiguous()
        self._held = (x, base, history, rows, ids)
        fields = dict.fromkeys(FIELDS, 0)
        fields |= {"x": x.data_ptr(), "rows": rows.data_ptr(), "sample_ids": ids.data_ptr()}
        fields |= {"base": 0 if base is None else base.data_ptr()}
        if history is not None:
            fields |= {"history": history.data_ptr(), "history_depth": len(history)}
            fields |= {"history_stride": history.stride(0)}
        fields |= {"samples": len(x), "channels": x.shape[1], "pixels": x.shape[2] * x.shape[3]}
        fields |= {"copies": copies, "learned_variance": int(state.table.learned_variance)}
        # As C++ reads it, 64 bits without a sign.
        fields["seed"] = int(np.uint64(seed).astype(np.int64))
        self.values = np.array([fields[name] for name in FIELDS], dtype=np.int64)


def is_plain(x: Tensor) -> bool:
    """Whether C++ may read and write a tensor [B, C, H, W] by its address: float32 in channels_last, on the CPU."""
    return (
        ops.has_extension()
        and x.is_cpu
        and x.dtype is torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
    )
