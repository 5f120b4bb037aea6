"""The sampling loop of the CPU executor: stretches of rows run in C++, with the interpreter's lock released."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.engine.native import NativeNetwork
from fastdiff.engine.plan import place
from fastdiff.process.table import CoefficientTable

__all__ = ["run_table"]

# Between two looks at signals and the progress bar, where rows are short.
STRETCH_SECONDS = 0.1
# Of the arena. Larger batches run in parts, one after the other within a stretch.
ARENA_BYTES = 128 << 20
MAX_PART = 256
# Of the vectors that depend on the time alone.
TIMES_NUMBERS = 1 << 24


def run_table(
    network: NativeNetwork,
    table: CoefficientTable,
    x: Tensor,
    ids: Tensor,
    seed: int,
    y: Tensor | None,
    start_row: int,
    on_row: Callable[[int, Tensor | None], None] | None,
    wanted: frozenset[int],
    advance: Callable[[int], None],
) -> Tensor:
    """Run a coefficient table from `start_row` to its end.

    Args:
        network: The compiled network.
        table: The sampler.
        x: State [B, C, H, W] float32, channels_last; updated in place.
        ids: Sample ids, int64 [B].
        seed: In [0, 2^64).
        y: Labels [B], or None.
        start_row: The first row.
        on_row: Called after each wanted row with its number and the prediction [B, C, H, W] (None where the row does
            not evaluate), or None.
        wanted: Rows; a stretch ends with each.
        advance: Called with the number of rows done since the last call.

    Returns:
        x.

    Raises:
        ValueError: the network's output does not fit the table.
    """
    batch, channels, height, width = x.shape
    plan = network.plan(height, width)
    made = plan.buffers[plan.output].channels
    allowed = (2 * channels,) if table.learned_variance else (channels, 2 * channels)
    if made not in allowed:
        expected = " or ".join(str([batch, count, height, width]) for count in allowed)
        raise ValueError(f"the model's output must have shape {expected}, got {[batch, made, height, width]}")
    part = max(1, min(MAX_PART, batch, ARENA_BYTES // (4 * place(plan, 1).length)))
    rows = ops.table_rows(table)
    numbers = torch.arange(len(table), device="cpu")
    times = torch.from_numpy(table["t"].copy()).to(torch.int64 if table.integer_times else torch.float32)
    base = torch.empty_like(x) if table.uses_base else None
    history = ops.new_history(x, table.history_depth) if table.history_depth else None
    pred = torch.empty_like(x) if on_row is not None else None
    output = torch.empty(
        (min(part, batch), network.unet.config.out_channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    per_row = plan.time_width * (1 if y is None else batch)
    window = max(1, TIMES_NUMBERS // max(1, per_row))
    row, stretch = start_row, 1
    first_known, generation = row - window, network.generation
    while row < len(table):
        with network.lock:
            network.check()
            if row >= first_known + window or network.generation != generation:
                known = _times(network, times[row : row + window], y, batch)
                first_known, generation = row, network.generation
            # Not behind the rows whose times are known.
            end = min(len(table), row + stretch, first_known + window)
            end = next((number + 1 for number in range(row, end) if number in wanted), end)
            began = time.perf_counter()
            for first in range(0, batch, part):
                some = slice(first, min(first + part, batch))
                count = some.stop - some.start
                prepared = network.prepare(count, height, width)
                torch.ops.fastdiff.plan_sample(
                    x[some],
                    prepared.code,
                    network.packed(prepared.plan),
                    known if y is None else known[:, some].contiguous(),
                    *prepared.memory,
                    output[:count],
                    rows,
                    numbers,
                    row,
                    end,
                    first_known,
                    ids[some].contiguous(),
                    signed,
                    table.learned_variance,
                    None if base is None else base[some],
                    None if history is None else history[:, some],
                    None if pred is None else pred[some],
                )
        seconds = time.perf_counter() - began
        stretch = max(1, min(2 * (end - row), int((end - row) * STRETCH_SECONDS / max(seconds, 1e-9))))
        advance(end - row)
        row = end
        if on_row is not None and row - 1 in wanted:
            on_row(row - 1, pred if table["evaluate"][row - 1] else None)
    return x


def _times(network: NativeNetwork, t: Tensor, y: Tensor | None, batch: int) -> Tensor:
    """[R, 1 or B, time_width]: a vector per row, or per row and sample where labels differ."""
    if y is None:
        return network.times(t)[:, None]
    every = network.times(t.repeat_interleave(batch), y.repeat(len(t)))
    return every.view(len(t), batch, -1)
