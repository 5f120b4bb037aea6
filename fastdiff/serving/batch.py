"""One evaluation of a network for samples of many requests, each at its own row of its own table."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
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

__all__ = ["Evaluator"]

# Of the vectors that depend on time and label alone, which are kept: 32 MB of float32.
_KEPT_NUMBERS = 1 << 23


class Evaluator:
    """A network, and how the samples of many requests become one batch of it.

    Args:
        pipeline: The network.
        precision: Of the C++ engine.

    Attributes:
        self_condition: Whether the network is to be given its last predictions.
    """

    def __init__(self, pipeline: Pipeline, precision: Precision | None) -> None:
        self.model = compiled_or_not(pipeline.unet, "auto", precision)
        self.self_condition = is_self_conditioned(pipeline.unet, {})
        self._dtype = model_dtype(pipeline.unet, torch.float32)
        self._known: OrderedDict[tuple[float, int | None], Tensor] = OrderedDict()
        self._generation = -1

    def refresh(self) -> None:
        """Have the network looked at for changes, as before a run."""
        if isinstance(self.model, NativeNetwork):
            self.model.check()

    def __call__(self, rows: Rows) -> tuple[list[Tensor], bool]:
        """The network's output for each chunk, guided where its request is; all of one image size.

        Returns:
            The outputs, and whether all of them are finite.

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
        output = self._evaluate(x, t, y, times, self._fed_back(chunks, x))
        if not isinstance(output, Tensor):
            raise ValueError(f"the model must return a tensor, got {type(output).__name__}")
        found, place = [], 0
        for chunk, length in zip(chunks, lengths, strict=True):
            part = output[place : place + length]
            guidance = chunk.job.work.guidance
            if guidance is not None:
                conditional, unconditional = part.chunk(2)
                some = slice(place, place + len(chunk.samples))
                part = guided_output(x[some], t[some], conditional, unconditional, guidance[0], None, 0.0)
            found.append(part)
            place += length
        # A sum is finite where all of it is, but for an overflow, which is then looked at by itself.
        return found, math.isfinite(float(output.sum())) or bool(torch.isfinite(output).all())

    def _evaluate(self, x: Tensor, t: Tensor, y: Tensor | None, times: list[float], extras: dict[str, Any]) -> Tensor:
        if not isinstance(self.model, NativeNetwork):
            return self.model(x, t, **extras) if y is None else self.model(x, t, y=y, **extras)
        return self.model.evaluate(x, t, y, times=self._vectors(self.model, t, y, times), **extras)

    def _vectors(self, network: NativeNetwork, t: Tensor, y: Tensor | None, times: list[float]) -> Tensor:
        """[B, time_width] what `network.times` gives, most of it from earlier calls."""
        if network.generation != self._generation:
            self._known.clear()
            self._generation = network.generation
        known = self._known
        keys = list(zip(times, [None] * len(times) if y is None else y.tolist(), strict=True))
        missing = [place for place, key in enumerate(dict.fromkeys(keys)) if key not in known]
        if missing:
            distinct = list(dict.fromkeys(keys))
            first_at = {key: place for place, key in reversed(list(enumerate(keys)))}
            at = torch.tensor([first_at[distinct[place]] for place in missing], device=t.device)
            rows = network.times(t[at], None if y is None else y[at])
            known.update(zip([distinct[place] for place in missing], rows, strict=True))
        vectors = torch.stack([known[key] for key in keys])
        while len(known) * vectors.shape[1] > _KEPT_NUMBERS and len(known) > len(keys):
            known.popitem(last=False)
        return vectors

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
