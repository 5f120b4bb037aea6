"""The rows of many requests' tables, before and after one evaluation: in C++ where their states are the engine's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdiff.engine.loop import check_output
from fastdiff.serving.job import Chunk
from fastdiff.serving.places import FIELDS, is_plain

__all__ = ["Rows"]

_AT = {name: place for place, name in enumerate(FIELDS)}
_OUTPUT, _PREDICTION, _INPUT, _ROW, _SAMPLES, _OUT_CHANNELS, _COPIES = (
    _AT[name] for name in ("model_output", "pred_out", "input", "row", "samples", "channels_out", "copies")
)
_FLOAT_BYTES = 4


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
