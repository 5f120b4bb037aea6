"""The sampling loop of the CPU executor: stretches of rows run in C++, with the interpreter's lock released."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.engine.native import NativeNetwork
from fastdiff.engine.plan import place
from fastdiff.ops._arguments import signed
from fastdiff.ops.table_state import TableState

__all__ = ["check_output", "run_table"]

# Between two looks at signals and the progress bar, where rows are short.
STRETCH_SECONDS = 0.1
# Of the arena. Larger batches run in parts, one after the other within a stretch.
ARENA_BYTES = 128 << 20
MAX_PART = 256
# Of the vectors that depend on the time alone.
TIMES_NUMBERS = 1 << 24


def run_table(
    network: NativeNetwork,
    state: TableState,
    x: Tensor,
    rows: range,
    *,
    ids: Tensor,
    seed: int,
    labels: Tensor | None,
    advance: Callable[[int], None],
    stops: frozenset[int],
    on_stop: Callable[[int, Tensor | None], None],
) -> None:
    """Run rows of a coefficient table.

    Args:
        network: The compiled network.
        state: The table.
        x: State [B, C, H, W] float32, channels_last; updated in place.
        rows: To be executed, one after the other.
        ids: Sample ids, int64 [B].
        seed: In [0, 2^64).
        labels: [B], or None.
        advance: Called with the number of rows done since the last call.
        stops: Rows after which `on_stop` is called; a stretch ends with each.
        on_stop: Given the row's number and its prediction [B, C, H, W], None where the row does not evaluate.

    Raises:
        ValueError: the network's output does not fit the table.
    """
    table, batch, size = state.table, x.shape[0], (x.shape[2], x.shape[3])
    plan = network.plan(*size)
    check_output(plan.buffers[plan.output].channels, x, table.learned_variance)
    part = max(1, min(MAX_PART, batch, ARENA_BYTES // place(plan, 1).length))
    state.make_room(x)
    base, history, coefficients = state.base, state.history, state.rows(x)
    numbers = torch.arange(len(table), device="cpu")
    pred = torch.empty_like(x) if stops else None
    output = torch.empty(
        (min(part, batch), network.channels[1], *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    times = state.times(x.device)
    per_row = plan.time_width * (1 if labels is None else batch)
    window = max(1, TIMES_NUMBERS // max(1, per_row))
    row, stretch = rows.start, 1
    first_known, generation = row - window, network.generation
    while row < rows.stop:
        with network.lock:
            network.check()
            if row >= first_known + window or network.generation != generation:
                known = _times(network, times[row : row + window], labels, batch)
                first_known, generation = row, network.generation
            # Not behind the rows whose times are known.
            end = min(rows.stop, row + stretch, first_known + window)
            end = next((number + 1 for number in range(row, end) if number in stops), end)
            began = time.perf_counter()
            for first in range(0, batch, part):
                some = slice(first, min(first + part, batch))
                count = some.stop - some.start
                prepared = network.prepare(count, *size)
                torch.ops.fastdiff.plan_sample(
                    x[some],
                    prepared.code,
                    network.packed(prepared.plan),
                    known if labels is None else known[:, some].contiguous(),
                    *prepared.memory,
                    output[:count],
                    coefficients,
                    numbers,
                    row,
                    end,
                    first_known,
                    ids[some].contiguous(),
                    signed(seed),
                    table.learned_variance,
                    None if base is None else base[some],
                    None if history is None else history[:, some],
                    None if pred is None else pred[some],
                )
        seconds = time.perf_counter() - began
        stretch = max(1, min(2 * (end - row), int((end - row) * STRETCH_SECONDS / max(seconds, 1e-9))))
        advance(end - row)
        row = end
        if row - 1 in stops:
            on_stop(row - 1, pred if state.evaluates[row - 1] else None)


def check_output(channels: int, x: Tensor, learned_variance: bool) -> None:
    """Raise ValueError unless so many channels of the network's output fit a state like x [B, C, H, W] and a table."""
    allowed = (2 * x.shape[1],) if learned_variance else (x.shape[1], 2 * x.shape[1])
    if channels not in allowed:
        expected = " or ".join(str([x.shape[0], count, *x.shape[2:]]) for count in allowed)
        raise ValueError(f"the model's output must have shape {expected}, got {[x.shape[0], channels, *x.shape[2:]]}")


def _times(network: NativeNetwork, t: Tensor, y: Tensor | None, batch: int) -> Tensor:
    """[R, 1 or B, time_width]: a vector per row, or per row and sample where labels differ."""
    if y is None:
        return network.times(t)[:, None]
    every = network.times(t.repeat_interleave(batch), y.repeat(len(t)))
    return every.view(len(t), batch, -1)
