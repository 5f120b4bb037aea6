"""A table being executed: its rows on the sample's device, the state between them, and the outputs of a step."""

from __future__ import annotations

import functools
import importlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.ops._arguments import (
    describe,
    is_unwatched,
    noise_arguments,
    signed,
)
from fastdiff.process.table import CoefficientTable
from fastdiff.tensors import FLOAT_DTYPES, memory_format

_STEP = torch.ops.fastdiff.step.default
_step_dense: Callable[..., None] | None = None
if ops.has_extension():
    _step_dense = importlib.import_module("fastdiff._C").step_dense


@dataclass
class Run:
    """A table being executed: where it began, which row is next, and what is kept between rows."""

    table: CoefficientTable
    start: int
    key: Any
    next: int = 0
    base: Tensor | None = None
    history: Tensor | None = None
    noisy: list[bool] = field(default_factory=list)
    _rows: dict[Any, Tensor] = field(default_factory=dict)
    _dense_rows: Tensor | None = None
    _layout: Any = None

    def __post_init__(self) -> None:
        self.noisy = [bool(s > 0) for s in self.table["s"]]
        self.pushes = [bool(p) for p in self.table["push"]]
        self.times = self.table["t"].tolist()
        self.depth = self.table.history_depth
        self.uses_base = self.table.uses_base

    def rows(self, x: Tensor) -> Tensor:
        key = (x.device, x.dtype == torch.float64)
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = ops.table_rows(self.table, x.device, x.dtype)
        return rows

    def execute(
        self,
        row: int,
        model_output: Tensor | None,
        sample: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        sample_ids: Tensor | None = None,
        learned: bool = False,
        prediction: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The next state and, if asked for, the prediction of one row."""
        dense = not (learned or self.noisy[row]) and model_output is not None and _is_dense(sample, model_output)
        out = torch.empty_like(sample) if dense else torch.empty_like(sample, memory_format=memory_format(sample))
        pred = torch.empty_like(out) if prediction else None
        if self.depth or self.uses_base:
            self._make_room(out)
        if dense:
            assert model_output is not None
            self._execute_dense(row, model_output, sample, pred, out)
            return out, pred
        rows = self.rows(sample)
        plain = not learned and sample_ids is None and noise is None and not torch.is_grad_enabled()
        if plain and model_output is not None and model_output.shape == sample.shape and sample.shape[0] <= 4096:
            # The op itself: `ops.step` would check again what holds here, which takes as long as a small image's row.
            if model_output.device != sample.device or model_output.dtype not in FLOAT_DTYPES:
                raise ValueError(f"the model's output is {describe(model_output)}, the sample {describe(sample)}")
            ids, at = noise_arguments(sample, None, None, row)
            _STEP(sample, model_output, rows, at, None, ids, signed(seed), False, self.base, self.history, pred, out)
            self.next = row + 1
            return out, pred
        with torch.no_grad():
            ops.step(
                sample.detach(),
                None if model_output is None else model_output.detach(),
                rows,
                row,
                seed=seed,
                sample_ids=sample_ids,
                noise=noise,
                learned_variance=learned,
                base=self.base,
                history=self.history,
                pred_out=pred,
                out=out,
            )
        self.next = row + 1
        return out, pred

    def _make_room(self, state: Tensor) -> None:
        """Slots of the state's layout; those of an earlier run where they fit."""
        layout = state.shape, state.dtype, state.device, state.stride()
        if layout != self._layout:
            self._layout = layout
            self.history = ops.new_history(state, self.depth) if self.depth else None
            self.base = torch.empty_like(state) if self.uses_base else None

    def _execute_dense(self, row: int, model_output: Tensor, sample: Tensor, pred: Tensor | None, out: Tensor) -> None:
        if self._dense_rows is None:
            self._dense_rows = self.rows(sample)
        assert _step_dense is not None
        if not 0 <= row < len(self.times):
            raise IndexError(f"row must be in [0, {len(self.times)}), got {row}")
        _step_dense(
            sample.data_ptr(),
            model_output.data_ptr(),
            out.data_ptr(),
            0 if pred is None else pred.data_ptr(),
            0 if self.base is None else self.base.data_ptr(),
            0 if self.history is None else self.history.data_ptr(),
            self.depth,
            out.numel(),
            self._dense_rows.data_ptr(),
            row,
        )
        self.next = row + 1


def _is_dense(x: Tensor, m: Tensor) -> bool:
    """Whether a row may go past the dispatcher: plain contiguous float32 on the CPU, and nobody watching the ops."""
    return (
        type(x) is type(m) is Tensor
        and x.dtype is m.dtype is torch.float32
        and x.is_cpu
        and m.is_cpu
        and x.layout is m.layout is torch.strided
        and x.is_contiguous()
        and m.is_contiguous()
        and x.shape == m.shape
        and not (x.is_neg() or m.is_neg())
        and _step_dense is not None
        and is_unwatched()
    )


def output_of(kind: Any, **values: Any) -> Any:
    """What `kind(**values)` is, for one of diffusers' output classes.

    Their constructor looks through the dataclass's fields, which takes longer than a small image's row. What it leaves
    behind is put together here, where a trial showed that it is the same.
    """
    return _put_together(kind, values) if _is_as_constructed(kind, *values) else kind(**values)


def _put_together(kind: Any, values: dict[str, Any]) -> Any:
    output: Any = OrderedDict.__new__(kind)
    for name, value in values.items():
        OrderedDict.__setitem__(output, name, value)
    output.__dict__.update(values)
    return output


@functools.cache
def _is_as_constructed(kind: Any, *names: str) -> bool:
    if not issubclass(kind, OrderedDict):
        return False
    values = {name: name for name in names}
    theirs, ours = kind(**values), _put_together(kind, values)
    return vars(theirs) == vars(ours) and list(theirs.items()) == list(ours.items())
