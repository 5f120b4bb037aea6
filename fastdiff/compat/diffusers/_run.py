"""A table being executed by a scheduler, and the outputs of its steps."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.table_state import TableState
from fastdiff.process.table import CoefficientTable


class Run(TableState):
    """A table being executed by a scheduler: where it began, and what it was built for.

    Attributes:
        start: The step of the scheduler that is row 0.
        key: What the table depends on besides.
        first_type: Of the state that row 0 began with.
        outdated: Whether the scheduler's lists are no longer those that the table was built for.
    """

    def __init__(self, table: CoefficientTable, start: int, key: Any) -> None:
        super().__init__(table, gradients=True)
        self.start = start
        self.key = key
        self.outdated = False
        self.first_type: torch.dtype | None = None

    def begin(self) -> None:
        """Go back to the first row. What an earlier execution kept is not read."""
        self.next = 0
        if any(kept is not None and kept.requires_grad for kept in (self.base, self.history)):
            self.base = self.history = self._layout = None

    def make_room(self, x: Tensor) -> None:
        """As `TableState`; a run of one state goes on as a batch, each of whose states has that past.

        Raises:
            ValueError: the batch or the images changed otherwise, and a row to come reads what is kept.
        """
        kept = None if self._layout is None else self._layout[0]
        if kept is not None and kept != x.shape and self.next:
            if kept[0] == 1 and kept[1:] == x.shape[1:]:
                self._layout = (x.shape,)
                self.base = None if self.base is None else self.base.expand(x.shape)
                self.history = None if self.history is None else self.history.expand(self._depth, *x.shape)
            elif not self._may_start():
                raise ValueError(
                    f"the state must keep its shape {list(kept)} within a run, got {list(x.shape)}: call set_timesteps "
                    "to begin another run"
                )
        super().make_room(x)

    def _may_start(self) -> bool:
        """Whether no row to come reads what earlier ones have kept."""
        try:
            self.table.check_start(self.next)
        except ValueError:
            return False
        return True

    def following(self, run: Run) -> Run:
        """Go on where another run is."""
        self.next, self.base, self.history, self._layout = run.next, run.base, run.history, run._layout
        self.first_type = run.first_type
        return self


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
