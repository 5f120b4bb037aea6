"""The sampling loop on a GPU: a table's rows as one launch, in memory that does not move.

A row is two graphs, the network and the step, which csrc/cuda loops over. All that differs from run to run lies in
device memory and is written there before a launch: the state, the table, times, seed, row, ids and labels. So a graph
is recorded once for a model, a number of samples and a kind of table, and kept.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdiff.calls import StepCall
from fastdiff.engine.cuda.capture import Recorder, Recording
from fastdiff.engine.cuda.graph import Progress
from fastdiff.engine.cuda.kernels import launch_select, launch_step
from fastdiff.engine.cuda.keys import goes_with_samples, kind_of, networks_in, settings_of, static_argument
from fastdiff.engine.cuda.library import CONTROL_WIDTH, NONFINITE, NUM_ROWS, ROW, SEED
from fastdiff.engine.cuda.network import MAX_CHUNK, CudaNetwork
from fastdiff.ops._step import new_history
from fastdiff.ops.table_state import TableState
from fastdiff.process.checks import NotFinite
from fastdiff.process.table import ROW_WIDTH

__all__ = ["AfterStep", "GraphDevice", "Loop", "Statics", "run_table"]

# Rows of a table that there is room for, at least; more make the room grow, and the graph be recorded again.
MIN_ROWS = 1024
# Of the vectors that depend on the time alone, for all rows; where they take more, each row computes its own.
TIMES_NUMBERS = 1 << 26
# Recorded loops kept per model; the oldest goes.
MAX_SESSIONS = 4


class Loop(Protocol):
    """A recorded row, as often as is asked for: `fastdiff.engine.cuda.graph.LoopGraph`, or `replay.ReplayLoop`."""

    def launch(self, rows: range, *, num_rows: int, seed: int, stream: int, evaluates: Sequence[bool]) -> None:
        """Queue rows of a table of `num_rows`, which run the network where `evaluates` says so."""

    def wait(self, advance: Callable[[Progress], None] | None) -> Progress:
        """Wait for them, telling how far they are. On an exception, Ctrl-C too, they end behind the current row."""

    def close(self) -> None:
        """Release it."""


class GraphDevice(Protocol):
    """Records graphs and loops over them: a GPU, or what stands for one in a test."""

    def recorder(self) -> Recorder:
        """For the graphs of one loop."""

    def loop(
        self, network: Recording, step: Recording, rows: Tensor, control: Tensor, recorder: Recorder, every_row: bool
    ) -> Loop:
        """Build a loop.

        Args:
            network: The evaluation of the network.
            step: The rest of a row.
            rows: The table, float32 [R, ROW_WIDTH] on the device.
            control: int64 [CONTROL_WIDTH] on the device.
            recorder: That of the graphs.
            every_row: The network runs at each row, whatever the table says.
        """


@dataclass(frozen=True, eq=False)
class Statics:
    """Memory that a recorded loop reads and writes, for a chunk of samples.

    Attributes:
        x: The state [B, C, ...] float32.
        ids: int64 [B].
        control: int64 [CONTROL_WIDTH].
        rows: float32 [R, ROW_WIDTH].
        t: [R].
        time: [1], the row's.
        kwargs: What the model is given, its tensors of B entries static.
        extra: Further tensors of B entries, by name.
        base, history, pred: As in a `TableState`; None where the table or the caller does not need it.
    """

    x: Tensor
    ids: Tensor
    control: Tensor
    rows: Tensor
    t: Tensor
    time: Tensor
    kwargs: dict[str, Any]
    extra: dict[str, Tensor]
    base: Tensor | None
    history: Tensor | None
    pred: Tensor | None

    @property
    def row(self) -> Tensor:
        """int64 [1], the row's number."""
        return self.control[ROW : ROW + 1]

    @property
    def seed(self) -> Tensor:
        """int64 [1]."""
        return self.control[SEED : SEED + 1]

    @property
    def num_rows(self) -> Tensor:
        """int64 [1], how many rows the table has."""
        return self.control[NUM_ROWS : NUM_ROWS + 1]


@dataclass(frozen=True, eq=False)
class AfterStep:
    """What happens behind each row's step, within the graph.

    Attributes:
        launch: Launches it, on static memory.
        tensors: What it reads, by name, [B, ...] each; it finds them in `Statics.extra`.
        tables: What it reads of each row, [R, ...] each, likewise.
        key: What its launches depend on beside the shapes of these.
    """

    launch: Callable[[Statics], None]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    key: Any = None


def run_table(
    model: Any,
    state: TableState,
    x: Tensor,
    rows: range,
    *,
    device: GraphDevice,
    ids: Tensor,
    seed: int,
    model_kwargs: Mapping[str, Any],
    input_dtype: torch.dtype,
    advance: Callable[[int], None],
    stops: frozenset[int],
    on_stop: Callable[[int, Tensor | None], None],
    after_step: AfterStep | None = None,
    check_finite: bool = False,
) -> None:
    """Run rows of a coefficient table.

    Args:
        model: A `CudaNetwork`, or any callable (x, t, **model_kwargs) -> output that a graph can record.
        state: The table.
        x: State [B, C, ...] float32, dense; updated in place.
        rows: To be executed, one after the other.
        device: What records and runs.
        ids: Sample ids, int64 [B].
        seed: In [0, 2^64).
        model_kwargs: Passed to the model; tensors of B entries go with their samples.
        input_dtype: Of what the model is given.
        advance: Called with the number of rows done since the last call.
        stops: Rows after which `on_stop` is called; a launch ends with each.
        on_stop: Given the row's number and its prediction [B, C, ...], None where the row does not evaluate.
        after_step: What happens behind each step.
        check_finite: Stop at the first row after which the state is not finite.

    Raises:
        NotCapturable: the model cannot be recorded.
        NotFinite: with `check_finite`.
        ValueError: the model's output does not fit the table.
        torch.OutOfMemoryError: not even one sample fits.
    """
    if len(x) == 0 or len(rows) == 0:
        return
    state.make_room(x)
    pred = torch.empty_like(x) if stops else None
    wanted = _Wanted(state, x, dict(model_kwargs), input_dtype, pred is not None, after_step, check_finite)
    with contextlib.ExitStack() as stack:
        for network in networks_in(model):
            stack.enter_context(network.exclusive())
            network.check()
        with _sessions_lock:
            session = _session(model, wanted, device)
        stack.enter_context(session.lock)
        stack.enter_context(session.recorder.ordered())
        row = rows.start
        while row < rows.stop:
            # At each stretch: what is called between two may sample with the same model.
            session.load_table(state, after_step)
            if isinstance(model, CudaNetwork):
                session.load_times(model, len(state.table))
            end = next((number + 1 for number in range(row, rows.stop) if number in stops), rows.stop)
            done = 0.0
            for first in range(0, len(x), session.chunk):
                part = _Part(slice(first, min(first + session.chunk, len(x))), x, ids, wanted, state, pred)
                session.load(part)
                share = (part.some.stop - part.some.start) / len(x)

                def tell(count: int, share: float = share) -> None:
                    nonlocal done
                    before, done = int(done + 1e-6), done + count * share
                    advance(int(done + 1e-6) - before)

                try:
                    session.run(range(row, end), state, seed, tell)
                finally:
                    session.store(part)
            row = end
            state.next = row
            if row - 1 in stops:
                on_stop(row - 1, pred if state.evaluates[row - 1] else None)


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What a session is recorded for."""

    state: TableState
    x: Tensor
    kwargs: dict[str, Any]
    input_dtype: torch.dtype
    prediction: bool
    after: AfterStep | None
    check_finite: bool

    def key(self, chunk: int) -> Any:
        table, x = self.state.table, self.x
        tensors = {} if self.after is None else dict(self.after.tensors) | dict(self.after.tables)
        return (
            chunk, tuple(x.shape[1:]), x.dtype, x.device, x.stride()[1:], self.input_dtype, table.learned_variance,
            None if self.state.history is None else len(self.state.history), self.state.base is None,
            all(self.state.evaluates), capacity(len(table)), self.state.times(x.device).dtype,
            tuple(sorted((name, kind_of(value, len(x))) for name, value in self.kwargs.items())),
            None if self.after is None else self.after.key,
            tuple(sorted((name, value.dtype, tuple(value.shape[1:])) for name, value in tensors.items())),
            self.prediction, self.check_finite,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Part:
    """Samples that run together, and what of them a session reads and writes."""

    some: slice
    x: Tensor
    ids: Tensor
    wanted: _Wanted
    state: TableState
    pred: Tensor | None


def capacity(rows: int) -> int:
    """Rows that there is room for, for a table of so many."""
    return max(MIN_ROWS, 1 << (rows - 1).bit_length())


class _Session:
    """A recorded loop with its memory."""

    def __init__(self, model: Any, wanted: _Wanted, chunk: int, device: GraphDevice) -> None:
        self.chunk = chunk
        # Its memory is one thread's at a time.
        self.lock = threading.RLock()
        self.recorder = device.recorder()
        x, state, place = wanted.x, wanted.state, wanted.x.device
        size = capacity(len(state.table))
        like = x[:1].expand(chunk, *x.shape[1:])
        layout = torch.channels_last if x.ndim == 4 and not x.is_contiguous() else torch.contiguous_format

        def static() -> Tensor:
            return torch.zeros(like.shape, dtype=x.dtype, device=place).contiguous(memory_format=layout)

        first = static()
        after = wanted.after
        self.statics = Statics(
            x=first,
            ids=torch.zeros(chunk, dtype=torch.int64, device=place),
            control=torch.zeros(CONTROL_WIDTH, dtype=torch.int64, device=place),
            rows=torch.zeros(size, ROW_WIDTH, dtype=torch.float32, device=place),
            t=torch.zeros(size, dtype=state.times(place).dtype, device=place),
            time=torch.zeros(1, dtype=state.times(place).dtype, device=place),
            kwargs={name: static_argument(value, len(x), chunk) for name, value in wanted.kwargs.items()},
            extra={}
            if after is None
            else {name: static_argument(value, len(x), chunk) for name, value in after.tensors.items()}
            | {name: value.new_zeros(size, *value.shape[1:]) for name, value in after.tables.items()},
            base=None if state.base is None else static(),
            history=None if state.history is None else new_history(first, len(state.history)),
            pred=static() if wanted.prediction else None,
        )
        # A first row to warm up with.
        self.load_table(state, after)
        self.statics.control[NUM_ROWS] = len(state.table)
        self.times: Tensor | None = None
        self.output: Any = None
        evaluate = self._evaluation(model, wanted)
        network = self.recorder.record(evaluate, model)
        self._check_output(wanted)
        step = self.recorder.record(lambda: self._step(wanted))
        self.held = (network, step)
        self.loop = device.loop(
            network, step, self.statics.rows, self.statics.control, self.recorder, all(state.evaluates)
        )
        # At the interpreter's end the driver releases it, and may be gone before.
        weakref.finalize(self, self.loop.close).atexit = False

    def _evaluation(self, model: Any, wanted: _Wanted) -> Callable[[], None]:
        """What launches the network for the row, and leaves its output in `self.output`."""
        s, x = self.statics, self.statics.x
        if isinstance(model, CudaNetwork) and set(s.kwargs) <= {"y"}:
            return self._plan_evaluation(model, s.kwargs.get("y"))
        layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        scaled = torch.zeros(x.shape, dtype=wanted.input_dtype, device=x.device).contiguous(memory_format=layout)

        def run() -> None:
            launch_select(x, s.rows, s.row, scaled, t=s.t, time=s.time, num_rows=s.num_rows)
            self.output = model(scaled, s.time.expand(self.chunk), **s.kwargs)
            if not isinstance(self.output, Tensor):
                raise ValueError(
                    f"the model must return a tensor, got {type(self.output).__name__}; wrap it to pick its sample"
                )

        return run

    def _plan_evaluation(self, network: CudaNetwork, y: Tensor | None) -> Callable[[], None]:
        s, (height, width) = self.statics, self.statics.x.shape[2:]
        known = y is None and len(s.t) * network.plan(height, width).time_width <= TIMES_NUMBERS
        launches = network.prepare(self.chunk, height, width, time_per_sample=not known)
        self.output = launches.output[:, : network.unet.config.out_channels]
        if known:
            self.times = s.t.new_zeros(len(s.t), *launches.times.shape[1:], dtype=torch.float32)
        times = self.times
        weights, projections = network.weights, launches.plan.projections

        def run() -> None:
            if times is not None:
                vector = launches.times[0]
                launch_select(s.x, s.rows, s.row, launches.input, times=times, vector=vector, num_rows=s.num_rows)
            else:
                launch_select(s.x, s.rows, s.row, launches.input, t=s.t, time=s.time, num_rows=s.num_rows)
                launches.times.copy_(weights.times(s.time.expand(self.chunk), y, projections))
            launches.run()

        return run

    def _check_output(self, wanted: _Wanted) -> None:
        x, learned, shape = self.statics.x, wanted.state.table.learned_variance, list(self.output.shape)
        allowed = (2 * x.shape[1],) if learned else (x.shape[1], 2 * x.shape[1])
        if shape[:1] != [self.chunk] or shape[2:] != list(x.shape[2:]) or shape[1] not in allowed:
            expected = " or ".join(str([self.chunk, count, *x.shape[2:]]) for count in allowed)
            raise ValueError(f"the model's output must have shape {expected}, got {shape}")

    def _step(self, wanted: _Wanted) -> None:
        s = self.statics
        learned = wanted.state.table.learned_variance
        call = StepCall(s.x, self.output, s.rows, s.row, None, s.ids, 0, learned, s.base, s.history, s.pred, s.x)
        launch_step(call, seed=s.seed, num_rows=s.num_rows)
        if wanted.after is not None:
            wanted.after.launch(s)
        if wanted.check_finite:
            bad = s.control[NONFINITE : NONFINITE + 1]
            bad.copy_(torch.where(torch.isfinite(s.x).all() | (bad >= 0), bad, s.row))

    def load_table(self, state: TableState, after: AfterStep | None) -> None:
        """Write a table, its times and what else is read of each row."""
        s, count = self.statics, len(state.table)
        s.rows[:count].copy_(state.rows(s.x))
        s.t[:count].copy_(state.times(s.x.device))
        for name, value in ({} if after is None else after.tables).items():
            s.extra[name][: len(value)].copy_(value)

    def load_times(self, network: CudaNetwork, count: int) -> None:
        """Write the vectors that depend on the times alone."""
        if self.times is not None:
            self.times[:count].copy_(network.times(self.statics.t[:count]))

    def load(self, part: _Part) -> None:
        """Copy samples in. Where a chunk is not full, the rest of it computes what nobody reads."""
        s, some, count = self.statics, part.some, part.some.stop - part.some.start
        if count < self.chunk:
            s.x[count:].zero_()
        s.x[:count].copy_(part.x[some])
        s.ids[:count].copy_(part.ids[some])
        named = [(s.kwargs, part.wanted.kwargs)]
        named += [] if part.wanted.after is None else [(s.extra, dict(part.wanted.after.tensors))]
        for statics, values in named:
            for name, value in values.items():
                if goes_with_samples(value, len(part.x)):
                    statics[name][:count].copy_(value[some])
                elif isinstance(value, Tensor):
                    statics[name].copy_(value)
        if s.base is not None and part.state.base is not None:
            s.base[:count].copy_(part.state.base[some])
        if s.history is not None and part.state.history is not None:
            s.history[:, :count].copy_(part.state.history[:, some])

    def store(self, part: _Part) -> None:
        """Copy samples out."""
        s, some, count = self.statics, part.some, part.some.stop - part.some.start
        part.x[some].copy_(s.x[:count])
        if s.base is not None and part.state.base is not None:
            part.state.base[some].copy_(s.base[:count])
        if s.history is not None and part.state.history is not None:
            part.state.history[:, some].copy_(s.history[:, :count])
        if s.pred is not None and part.pred is not None:
            part.pred[some].copy_(s.pred[:count])

    def run(self, rows: range, state: TableState, seed: int, tell: Callable[[int], None]) -> None:
        """Run rows, and wait for them; tell how many are done since the last time."""
        told = rows.start

        def advance(progress: Progress) -> None:
            nonlocal told
            tell(progress.next - told)
            told = progress.next

        evaluates, count = state.evaluates[rows.start : rows.stop], len(state.table)
        self.loop.launch(rows, num_rows=count, seed=seed, stream=self.recorder.stream, evaluates=evaluates)
        ended = self.loop.wait(advance)
        if ended.nonfinite is not None:
            raise NotFinite(ended.nonfinite, count)


_sessions_lock = threading.RLock()
_sessions: weakref.WeakKeyDictionary[Any, OrderedDict[Any, _Session]] = weakref.WeakKeyDictionary()


def _session(model: Any, wanted: _Wanted, device: GraphDevice) -> _Session:
    """A recorded loop for what is wanted: one from before, or a new one."""
    chunks = -(-len(wanted.x) // MAX_CHUNK)
    chunk = -(-len(wanted.x) // chunks)
    settings = settings_of(model)
    kept = None if settings is None else _sessions.setdefault(model, OrderedDict())
    while True:
        key = (device, settings, wanted.key(chunk))
        session = None if kept is None else kept.get(key)
        if session is None:
            try:
                session = _Session(model, wanted, chunk, device)
            except torch.OutOfMemoryError:
                if kept:
                    kept.clear()
                    continue
                if chunk == 1:
                    raise
                chunk = -(-chunk // 2)
                warnings.warn(
                    f"not enough memory on the GPU: samples run {chunk} at a time", RuntimeWarning, stacklevel=2
                )
                continue
        if kept is not None:
            kept[key] = session
            kept.move_to_end(key)
            while len(kept) > MAX_SESSIONS:
                kept.popitem(last=False)
        return session
