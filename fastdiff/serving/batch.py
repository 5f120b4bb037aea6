"""One evaluation of a network for samples of many requests, each at its own row of its own table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.choose import compiled_or_not
from fastdiff.engine.native import NativeNetwork, Precision
from fastdiff.nets.model import model_dtype
from fastdiff.pipeline import Pipeline
from fastdiff.sampling.guidance import guided_output
from fastdiff.sampling.self_conditioning import ARGUMENT, is_self_conditioned
from fastdiff.serving.job import Chunk
from fastdiff.serving.rows import Rows
from fastdiff.serving.times import TimeVectors

__all__ = ["Evaluator", "Outputs"]


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network gave for the chunks of a batch.

    Attributes:
        output: [B, C or 2C, H, W], a guided chunk's conditional half before its unconditional one.
        guided: Of the guided chunks, by their number, the guided output.
        is_finite: Whether all of `output` is.
    """

    output: Tensor
    guided: dict[int, Tensor]
    is_finite: bool


class Evaluator:
    """A network, and how the samples of many requests become one batch of it.

    Args:
        pipeline: The network.
        precision: Of the C++ engine.

    Attributes:
        self_condition: Whether the network is to be given its last predictions.
    """

    def __init__(self, pipeline: Pipeline, precision: Precision | None) -> None:
        self.model = compiled_or_not(pipeline.unet, "auto", precision, pipeline.memory)
        self.self_condition = is_self_conditioned(pipeline.unet, {})
        self._dtype = model_dtype(pipeline.unet, torch.float32)
        # None where the network is PyTorch's.
        self._native = self.model if isinstance(self.model, NativeNetwork) else None
        self._vectors = None if self._native is None else TimeVectors(self._native)

    def refresh(self) -> None:
        """Have the network looked at for changes, as before a run."""
        if self._native is not None:
            self._native.check()

    def __call__(self, rows: Rows) -> Outputs:
        """The network's output for the chunks, guided where a request is.

        Raises:
            ValueError: the network's output does not fit.
        """
        chunks = rows.chunks
        shape = chunks[0].x.shape[1:]
        lengths = [len(chunk.samples) * chunk.job.cost for chunk in chunks]
        first = chunks[0].x
        x = torch.empty(
            (sum(lengths), *shape), dtype=self._dtype, device=first.device, memory_format=torch.channels_last
        )
        rows.fill(x)
        times: list[float] = []
        labels: list[Tensor] = []
        are_whole = True
        for chunk, length in zip(chunks, lengths, strict=True):
            job = chunk.job
            times += [chunk.state.t[chunk.row]] * length
            are_whole = are_whole and job.has_whole_times
            if chunk.labels is not None:
                labels.append(chunk.labels)
                if job.work.guidance is not None:
                    labels.append(torch.full_like(chunk.labels, job.work.guidance[1]))
        y = torch.cat(labels) if labels else None
        t = torch.tensor(times, dtype=torch.int64 if are_whole else torch.float32, device=first.device)
        output = self._evaluate(chunks, x, t, y)
        if not isinstance(output, Tensor):
            raise ValueError(f"the model must return a tensor, got {type(output).__name__}")
        guided, place = {}, 0
        for number, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
            guidance = chunk.job.work.guidance
            if guidance is not None:
                conditional, unconditional = output[place : place + length].chunk(2)
                some = slice(place, place + len(chunk.samples))
                guided[number] = guided_output(x[some], t[some], conditional, unconditional, guidance[0], None, 0.0)
            place += length
        # A sum is finite where all of it is, but for an overflow, which is then looked at by itself.
        is_finite = math.isfinite(float(output.sum())) or bool(torch.isfinite(output).all())
        return Outputs(output, guided, is_finite)

    def _evaluate(self, chunks: Sequence[Chunk], x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        extras: dict[str, Any] = self._fed_back(chunks, x)
        if self._native is not None and self._vectors is not None:
            return self._native.evaluate(x, t, y, times=self._vectors.of(chunks), **extras)
        return self.model(x, t, **extras) if y is None else self.model(x, t, y=y, **extras)

    def _fed_back(self, chunks: Sequence[Chunk], x: Tensor) -> dict[str, Tensor]:
        """The last predictions, for a self-conditioned network; zeros where there is none yet."""
        if not self.self_condition:
            return {}
        parts = []
        for chunk in chunks:
            assert chunk.feedback is not None
            last = chunk.feedback.arguments(x.dtype).get(ARGUMENT)
            parts += [torch.zeros_like(chunk.x, dtype=x.dtype) if last is None else last] * chunk.job.cost
        return {ARGUMENT: torch.cat(parts)}
