"""A table being executed by a scheduler, and the outputs of its steps."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor

from fastdiff.calls import StepCall
from fastdiff.ops._arguments import noise_arguments, signed
from fastdiff.ops.reference import step as reference
from fastdiff.ops.table_state import TableState
from fastdiff.process.table import CoefficientTable


class Run(TableState):
    """A table being executed by a scheduler: where it began, and what it was built for.

    Unlike a `TableState` it records gradients where they are wanted, through what it keeps from row to row too.

    Attributes:
        start: The step of the scheduler that is row 0.
        key: What the table depends on besides.
        outdated: Whether the scheduler's lists are no longer those that the table was built for.
    """

    def __init__(self, table: CoefficientTable, start: int, key: Any) -> None:
        super().__init__(table)
        self.start = start
        self.key = key
        self.outdated = False

    def begin(self) -> None:
        """Go back to the first row. What an earlier execution kept is not read."""
        self.next = 0
        if any(kept is not None and kept.requires_grad for kept in (self.base, self.history)):
            self.base = self.history = self._layout = None

    def following(self, run: Run) -> Run:
        """Go on where another run is."""
        self.next, self.base, self.history, self._layout = run.next, run.base, run.history, run._layout
        return self

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
        """As in `TableState`, with gradients where they are enabled and anything that the row reads has them."""
        kept = [value for value in (self.base, self.history) if value is not None and value.requires_grad]
        if torch.is_grad_enabled() and (
            kept or x.requires_grad or (model_output is not None and model_output.requires_grad)
        ):
            assert isinstance(row, int)
            learned = self._learns and self.evaluates[row] if learned_variance is None else learned_variance
            return self._differentiable(row, x, model_output, noise, seed, sample_ids, learned)
        if kept:
            # Rows write in place: not into what an earlier row's gradients need.
            self.base, self.history = (None if value is None else value.detach() for value in (self.base, self.history))
            self._layout = self._layout[:1]
        return super().step(
            row, x, model_output, noise=noise, seed=seed, sample_ids=sample_ids, learned_variance=learned_variance,
            prediction=prediction, out=out,
        )  # fmt: skip

    def _differentiable(
        self,
        row: int,
        x: Tensor,
        model_output: Tensor | None,
        noise: Tensor | None,
        seed: int,
        sample_ids: Tensor | None,
        learned: bool,
    ) -> tuple[Tensor, Tensor]:
        if not 0 <= row < len(self.t):
            raise IndexError(f"row must be in [0, {len(self.t)}), got {row}")
        if self._depth or self._uses_base:
            self.make_room(x.detach())
        ids, at = noise_arguments(x, noise, sample_ids, row)
        call = StepCall(
            x, model_output, self.rows(x), at, noise, ids, signed(seed), learned, self.base, self.history, None, x
        )
        out, pred, base, history = reference.step(call)
        self.base, self.history = (None if value is None else value.to(x.dtype) for value in (base, history))
        self.next = row + 1
        return out.to(x.dtype), pred.to(x.dtype)


def output_of(kind: Any, return_dict: bool, **values: Any) -> Any:
    """What `kind(**values)` is, for one of diffusers' output classes and all its fields, or a tuple of the values.

    Their constructor looks through the dataclass's fields, which takes longer than a small image's row. What it leaves
    behind is put together here, where a trial showed that it is the same.
    """
    if not return_dict:
        return tuple(values.values())
    return _put_together(kind, values) if _is_as_constructed(kind) else kind(**values)


def _put_together(kind: Any, values: dict[str, Any]) -> Any:
    output: Any = OrderedDict.__new__(kind)
    for name, value in values.items():
        OrderedDict.__setitem__(output, name, value)
    output.__dict__.update(values)
    return output


@functools.cache
def _is_as_constructed(kind: Any) -> bool:
    if not (issubclass(kind, OrderedDict) and hasattr(kind, "__dataclass_fields__")):
        return False
    values = {name: name for name in kind.__dataclass_fields__}
    theirs, ours = kind(**values), _put_together(kind, values)
    return vars(theirs) == vars(ours) and list(theirs.items()) == list(ours.items())
