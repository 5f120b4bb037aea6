"""The rows of many requests' tables, before and after one evaluation: in C++ where their states are the engine's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.engine.loop import check_output

if TYPE_CHECKING:
    from fastdiff.serving.job import Chunk

__all__ = ["FIELDS", "Places", "Rows", "is_plain"]

# Of a chunk in C++, csrc/cpu/chunks.h, in its order.
FIELDS = (
    "x", "model_output", "base", "history", "pred_out", "input", "rows", "sample_ids", "history_depth",
    "history_stride", "row", "samples", "pixels", "channels", "channels_out", "copies", "learned_variance", "seed",
)  # fmt: skip
_AT = {name: place for place, name in enumerate(FIELDS)}
_OUTPUT, _PREDICTION, _INPUT, _ROW, _SAMPLES, _OUT_CHANNELS, _COPIES = (
    _AT[name] for name in ("model_output", "pred_out", "input", "row", "samples", "channels_out", "copies")
)
_FLOAT_BYTES = 4


class Places:
    """Where C++ finds a chunk's state and what is kept of it; it holds the tensors.

    Attributes:
        values: [len(FIELDS)] int64, without what differs from row to row.
    """

    def __init__(self, chunk: Chunk) -> None:
        state, x, work = chunk.state, chunk.x, chunk.job.work
        state.make_room(x)
        base, history, rows, ids = state.base, state.history, state.rows(x), chunk.ids.contiguous()
        self._held = (x, base, history, rows, ids)
        fields = dict.fromkeys(FIELDS, 0)
        fields |= {"x": x.data_ptr(), "rows": rows.data_ptr(), "sample_ids": ids.data_ptr()}
        fields |= {"base": 0 if base is None else base.data_ptr()}
        if history is not None:
            fields |= {"history": history.data_ptr(), "history_depth": len(history)}
            fields |= {"history_stride": history.stride(0)}
        fields |= {"samples": len(x), "channels": x.shape[1], "pixels": x.shape[2] * x.shape[3]}
        fields |= {"copies": chunk.job.cost, "learned_variance": int(state.table.learned_variance)}
        # As C++ reads it, 64 bits without a sign.
        fields["seed"] = int(np.uint64(work.seed).astype(np.int64))
        self.values = np.array([fields[name] for name in FIELDS], dtype=np.int64)


def is_plain(x: Tensor) -> bool:
    """Whether C++ may read and write a tensor [B, C, H, W] by its address: float32 in channels_last, on the CPU."""
    return (
        ops.has_extension()
        and x.is_cpu
        and x.dtype is torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class Rows:
    """The rows that chunks of samples are at, all of which evaluate the network.

    Attributes:
        chunks: The chunks, of one image size.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = chunks
        places = [chunk.places for chunk in chunks]
        self._values: npt.NDArray[np.int64] | None = None
        if None not in places:
            self._values = np.array([place.values for place in places if place is not None])
            self._values[:, _ROW] = [chunk.row for chunk in chunks]

    def fill(self, out: Tensor) -> None:
        """Write what the network is given, chunk by chunk, twice for a guided one.

        Args:
            out: [B, C, H, W] to write to.
        """
        values = self._values
        if values is not None and is_plain(out):
            numbers = out[0].numel() * values[:, _SAMPLES] * values[:, _COPIES]
            values[:, _INPUT] = out.data_ptr() + _FLOAT_BYTES * (np.cumsum(numbers) - numbers)
            _native().chunk_inputs(values.ctypes.data, len(values))
            return
        at = 0
        for chunk in self.chunks:
            given, _ = chunk.state.network_input(chunk.row, chunk.x)
            for _ in range(chunk.job.cost):
                out[at : at + len(given)] = given
                at += len(given)

    def step(self, output: Tensor, guided: Mapping[int, Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """Execute the rows: all of them, or none.

        Args:
            output: Of the network, [B, C or 2C, H, W] for what was filled in.
            guided: In its place, for the chunks of these numbers: [n, C or 2C, H, W].
            wanted: Of each chunk, whether the row's prediction is.

        Returns:
            The predictions [n, C, H, W] that are wanted.

        Raises:
            ValueError: an output that does not fit.
        """
        chunks, values = self.chunks, self._values
        self._check(output)
        predictions = [
            torch.empty_like(chunk.x) if is_wanted else None for chunk, is_wanted in zip(chunks, wanted, strict=True)
        ]
        if values is None or not is_plain(output) or not all(map(is_plain, guided.values())):
            at = 0
            for number, (chunk, prediction) in enumerate(zip(chunks, predictions, strict=True)):
                own = guided.get(number, output[at : at + len(chunk.samples)])
                at += len(chunk.samples) * chunk.job.cost
                chunk.state.step(
                    chunk.row, chunk.x, own, seed=chunk.job.work.seed, sample_ids=chunk.ids, prediction=prediction,
                    out=chunk.x,
                )  # fmt: skip
            return predictions
        numbers = output[0].numel() * values[:, _SAMPLES] * values[:, _COPIES]
        values[:, _OUTPUT] = output.data_ptr() + _FLOAT_BYTES * (np.cumsum(numbers) - numbers)
        for number, own in guided.items():
            values[number, _OUTPUT] = own.data_ptr()
        values[:, _OUT_CHANNELS] = output.shape[1]
        if any(wanted):
            values[:, _PREDICTION] = [0 if prediction is None else prediction.data_ptr() for prediction in predictions]
        _native().chunk_steps(values.ctypes.data, len(values))
        return predictions

    def _check(self, output: Tensor) -> None:
        x = self.chunks[0].x
        is_learned = any(chunk.job.has_learned_variance for chunk in self.chunks)
        check_output(output.shape[1] if output.ndim == 4 else 0, x, is_learned)
        count = sum(len(chunk.samples) * chunk.job.cost for chunk in self.chunks)
        if output.shape[2:] != x.shape[2:] or len(output) != count:
            raise ValueError(
                f"the model's output must be for its input, {[count, *x.shape[1:]]}, got {list(output.shape)}: as many "
                "samples, of the same height and width"
            )


def _native() -> Any:
    return importlib.import_module("fastdiff._C")
