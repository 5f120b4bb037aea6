"""A sampling loop as graphs over the fake CUDA runtime, from whatever executes a row on static buffers.

`RowWork` is what an executor shows of itself: launches without arguments, in their order, that read the row, the seed
and the table's length from a control block. `reference_work` makes one of a network in PyTorch and `TableState.step`;
an engine's launch list takes its place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.engine.cuda.graph import Progress
from fastdiff.engine.cuda.library import NUM_ROWS, ROW, SEED
from fastdiff.ops.table_state import TableState
from fastdiff.process.table import CoefficientTable
from support import fake_cuda


@dataclass
class RowWork:
    """A row on static buffers: x is the state, updated in place; `network` is empty where `step` has all."""

    x: Tensor
    control: Tensor
    rows: Tensor
    network: Sequence[Callable[[], None]]
    step: Sequence[Callable[[], None]]


def reference_work(network, table: CoefficientTable, x: Tensor) -> RowWork:
    state, control = TableState(table), fake_cuda.control_block()
    channels = x.shape[1] * (2 if table.learned_variance else 1)
    output = torch.full((x.shape[0], channels, *x.shape[2:]), torch.nan)

    def row() -> int:
        assert int(control[NUM_ROWS]) == len(table)
        return int(control[ROW])

    @torch.no_grad()
    def evaluate() -> None:
        output.copy_(network(*state.network_input(row(), x)))

    @torch.no_grad()
    def step() -> None:
        seed = int(control[SEED]) % 2**64
        state.step(row(), x, output if state.evaluates[row()] else None, seed=seed, out=x)

    return RowWork(x, control, state.rows(x), [evaluate], [step])


def run_rows(
    runtime: fake_cuda.FakeRuntime,
    work: RowWork,
    table: CoefficientTable,
    *,
    seed: int,
    mode: str = "while",
    stretches: Sequence[range] | None = None,
) -> list[Progress]:
    """Run the rows of a table, in stretches; where each ended. `work.x` is the result."""
    everything = range(len(table))
    evaluates = [bool(value) for value in table["evaluate"]]
    found = []
    with runtime.loop(
        runtime.capture(*work.step),
        network=runtime.capture(*work.network) if work.network else None,
        control=work.control.data_ptr(),
        rows=work.rows.data_ptr(),
        mode=mode,
        unroll=everything if mode == "unrolled" else None,
        evaluates=evaluates if mode == "unrolled" and work.network else None,
        owners=[work],
    ) as loop:
        for rows in [everything] if stretches is None else stretches:
            flags = evaluates[rows.start : rows.stop] if mode == "replay" and work.network else None
            loop.launch(rows, num_rows=len(table), seed=seed, evaluates=flags)
            found.append(loop.wait())
    if runtime.errors:
        raise runtime.errors[0]
    return found
