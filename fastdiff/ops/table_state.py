"""A coefficient table in execution: its rows and times on a device, and what is kept from row to row."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fastdiff.calls import StepCall
from fastdiff.ops._arguments import describe, is_unwatched, noise_arguments, signed
from fastdiff.ops._dispatch import dispatch, has_extension
from fastdiff.ops._step import new_history, step, table_rows
from fastdiff.ops.reference import step as reference
from fastdiff.process.table import CoefficientTable
from fastdiff.tensors import FLOAT_DTYPES, memory_format, time_tensor

__all__ = ["TableState"]

_STEP = torch.ops.fastdiff.step.default
_step_dense: Callable[..., None] | None = None
if has_extension():
    _step_dense = importlib.import_module("fastdiff._C").step_dense
# Up to so many samples, `noise_arguments` has their numbers at hand.
_FEW_SAMPLES = 4096


class TableState:
    """A table being executed.

    Every loop over a table is

        for row in range(len(table)):
            output = model(*state.network_input(row, x)) if state.evaluates[row] else None
            x, _ = state.step(row, x, output)

    and differs in whose model it is, where noise comes from, and what is done between rows. The state x is the
    caller's, who may change it between rows, its layout and type too.

    Args:
        table: The table.
        gradients: Record gradients where they are enabled and anything that a row reads has them, through what is kept
            from row to row too.

    Attributes:
        table: The table.
        base: The saved state, or None where no row reads one or none was executed.
        history: The ring of past predictions, likewise.
        next: The row after the one executed last.
        evaluates, noisy, pushes: Of each row: whether it evaluates the model, draws noise, keeps its prediction.
        t: Of each row, its time.
    """

    def __init__(self, table: CoefficientTable, *, gradients: bool = False) -> None:
        self.table = table
        self._gradients = gradients
        self.base: Tensor | None = None
        self.history: Tensor | None = None
        self.next = 0
        self.evaluates = [bool(value) for value in table["evaluate"]]
        self.noisy = [bool(scale > 0) for scale in table["s"]]
        self.pushes = [bool(value) for value in table["push"]]
        self.t: list[float] = table["t"].tolist()
        self._scales: list[float] = table["ci"].tolist()
        self._depth = table.history_depth
        self._uses_base = table.uses_base
        self._learns = table.learned_variance
        self._layout: Any = None
        self._rows: dict[Any, Tensor] = {}
        self._times: dict[torch.device, Tensor] = {}
        self._dense_rows: Tensor | None = None

    def rows(self, x: Tensor) -> Tensor:
        """The table's rows for a state like x; see `table_rows`."""
        key = (x.device, x.dtype == torch.float64)
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = table_rows(self.table, x.device, x.dtype)
        return rows

    def times(self, device: torch.device) -> Tensor:
        """[R] times as a network takes them: int64 where all are whole, else float32."""
        times = self._times.get(device)
        if times is None:
            times = self._times[device] = time_tensor(self.table["t"], device)
        return times

    def network_input(self, row: int, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """What the network is given for a row that evaluates it: ci x, in `dtype`, and the time, [B]."""
        scale = self._scales[row]
        scaled = x if scale == 1 else x * scale
        return scaled if dtype is None else scaled.to(dtype), self.times(x.device)[row].expand(x.shape[0])

    def make_room(self, x: Tensor) -> None:
        """Have `base` and `history`, where the table uses them, of x's shape, type, device and memory format.

        What they hold is kept where only the layout or the type of the state has changed. New room holds NaN, so that a
        row which reads what no row has written shows it.
        """
        layout = x.shape, x.dtype, x.device, x.stride()
        if layout == self._layout:
            return
        shape = None if self._layout is None else self._layout[0]
        old_base, old_history = (self.base, self.history) if shape == x.shape else (None, None)
        self._layout = layout
        if self._uses_base:
            self.base = torch.full_like(x, torch.nan) if old_base is None else torch.empty_like(x).copy_(old_base)
        if self._depth:
            history = new_history(x, self._depth)
            self.history = history.fill_(torch.nan) if old_history is None else history.copy_(old_history)

    def part(self, x: Tensor, some: slice) -> TableState:
        """The same table in execution for some of the samples, whose states are x; what is kept of them is copied."""
        # What is known of the table is known of its parts.
        part = copy.copy(self)
        part._let_go()
        if self._layout is not None:
            part.make_room(x)
            if part.base is not None and self.base is not None:
                part.base.copy_(self.base[some])
            if part.history is not None and self.history is not None:
                part.history.copy_(self.history[:, some])
        return part

    def step(
        self,
        row: int | Tensor,
        x: Tensor,
        model_output: Tensor | None,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        sample_ids: Tensor | None = None,
        learned_variance: bool | None = None,
        prediction: Tensor | Literal[True] | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Execute a row; see `fastdiff.ops.step`, which this is.

        Args:
            row: Its number, or int64 [B] where samples are at different rows.
            x: The state [B, C, ...].
            model_output: [B, C or 2C, ...]; None where the row does not evaluate the model.
            noise: In the place of that of (seed, sample id, row).
            seed: In [0, 2^64).
            sample_ids: int64 [B]; 0..B-1 when None.
            learned_variance: Whether the noise is scaled by the model's variance; as the table says when None.
            prediction: Where to write the row's prediction; True for a new tensor, None for nowhere.
            out: Where to write the result, x itself perhaps; a new tensor when None.

        Returns:
            The next state, and the prediction or None.

        Raises:
            IndexError: row out of range.
            ValueError: see `fastdiff.ops.step`.
        """
        one_row = not isinstance(row, Tensor)
        if one_row and not 0 <= row < len(self.t):
            raise IndexError(f"row must be in [0, {len(self.t)}), got {row}")
        if learned_variance is None:
            learned_variance = self._learns and (isinstance(row, Tensor) or self.evaluates[row])
        if self._gradients and self._are_wanted(x, model_output):
            return self._differentiable(row, x, model_output, noise, seed, sample_ids, learned_variance)
        plain = one_row and not learned_variance and model_output is not None
        dense = plain and out is None and not self.noisy[row] and _is_dense(x, model_output)  # type: ignore[arg-type]
        if out is None:
            out = torch.empty_like(x) if dense else torch.empty_like(x, memory_format=memory_format(x))
        pred = torch.empty_like(out) if prediction is True else prediction
        if self._depth or self._uses_base:
            self.make_room(out)
        if dense:
            assert isinstance(row, int)
            assert model_output is not None
            self._step_dense(row, x, model_output, pred, out)
        elif (
            plain
            and sample_ids is None
            and noise is None
            and not torch.is_grad_enabled()
            and model_output is not None
            and model_output.shape == x.shape
            and x.shape[0] <= _FEW_SAMPLES
        ):
            # The op itself: `ops.step` would check again what holds here, which takes as long as a small image's row.
            if model_output.device != x.device or model_output.dtype not in FLOAT_DTYPES:
                raise ValueError(f"the model's output is {describe(model_output)}, the sample {describe(x)}")
            ids, at = noise_arguments(x, None, None, row)
            call = StepCall(
                x, model_output, self.rows(x), at, None, ids, signed(seed), False, self.base, self.history, pred, out
            )
            if x.is_cpu:
                _STEP(*call)
            else:
                dispatch(call)
        else:
            with torch.no_grad():
                step(
                    x.detach(),
                    None if model_output is None else model_output.detach(),
                    self.rows(x),
                    row,
                    seed=seed,
                    sample_ids=sample_ids,
                    noise=noise,
                    learned_variance=learned_variance,
                    base=self.base,
                    history=self.history,
                    pred_out=pred,
                    out=out,
                )
        if isinstance(row, int):
            self.next = row + 1
        return out, pred

    def _let_go(self) -> None:
        """Hold nothing of any sample."""
        self.base = self.history = self._layout = None

    def _are_wanted(self, x: Tensor, model_output: Tensor | None) -> bool:
        """Whether a row's gradients are. Where they are not, what is kept loses those of earlier rows."""
        base, history = self.base, self.history
        kept = (base is not None and base.requires_grad) or (history is not None and history.requires_grad)
        if torch.is_grad_enabled():
            if kept or x.requires_grad or (model_output is not None and model_output.requires_grad):
                return True
        elif kept:
            self.detach()
        return False

    def detach(self) -> None:
        """Let go of the gradients of earlier rows: rows write in place, and not into what those need."""
        self.base, self.history = (None if kept is None else kept.detach() for kept in (self.base, self.history))
        # New room, with what is kept now, is made for the next row.
        self._layout = None if self._layout is None else self._layout[:1]

    def _differentiable(
        self,
        row: int | Tensor,
        x: Tensor,
        model_output: Tensor | None,
        noise: Tensor | None,
        seed: int,
        sample_ids: Tensor | None,
        learned: bool,
    ) -> tuple[Tensor, Tensor]:
        if self._depth or self._uses_base:
            self.make_room(x.detach())
        ids, at = noise_arguments(x, noise, sample_ids, row)
        call = StepCall(
            x, model_output, self.rows(x), at, noise, ids, signed(seed), learned, self.base, self.history, None, x
        )
        out, pred, base, history = reference.step(call)
        self.base, self.history = (None if value is None else value.to(x.dtype) for value in (base, history))
        if isinstance(row, int):
            self.next = row + 1
        return out.to(x.dtype), pred.to(x.dtype)

    def _step_dense(self, row: int, x: Tensor, model_output: Tensor, pred: Tensor | None, out: Tensor) -> None:
        if self._dense_rows is None:
            self._dense_rows = self.rows(x)
        assert _step_dense is not None
        _step_dense(
            x.data_ptr(),
            model_output.data_ptr(),
            out.data_ptr(),
            0 if pred is None else pred.data_ptr(),
            0 if self.base is None else self.base.data_ptr(),
            0 if self.history is None else self.history.data_ptr(),
            self._depth,
            out.numel(),
            self._dense_rows.data_ptr(),
            row,
        )


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
