"""The sampling loop on a GPU as one launch: a graph whose WHILE node runs a captured row until the last."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, NoReturn, get_args

from fastdiff.engine.cuda.library import MODES, CudaError, Library, LoopOptions, default_library
from fastdiff.ops._arguments import signed

__all__ = ["LoopGraph", "Mode", "Progress"]

Mode = Literal["while", "replay", "unrolled"]
assert get_args(Mode) == MODES
# Between two looks at signals and at the progress.
_LOOK_SECONDS = 0.02


class Progress(NamedTuple):
    """How far a launch is.

    Attributes:
        next: The row after the one finished last.
        nonfinite: The row that met a value that is not finite, where a kernel looks for them; or None.
    """

    next: int
    nonfinite: int | None


class LoopGraph:
    """Rows of a coefficient table on a GPU, from captured graphs of one row.

    A row is the network's graph, where it evaluates the network, then the step's. Their kernels read the row's number,
    the table's length and the seed from the control block (`fastdiff.engine.cuda.library`), which each launch sets, so
    that nothing is captured again. A kernel that finds a value that is not finite writes its row to the word NONFINITE,
    which ends the loop behind that row.

    One thread at a time: a lock makes others wait. `progress` and `request_stop` are any thread's at any time, and
    call nothing of CUDA. Whatever the calling thread's device is, it stays.

    Args:
        step: The captured graph (a cudaGraph_t as a number, `torch.cuda.CUDAGraph.raw_cuda_graph()`) of a row, without
            the network where that has its own.
        network: Likewise of an evaluation of the network, or None. Both are copied.
        control: Address of the control block, int64 [CONTROL_WIDTH] on the device.
        rows: Address of the table, float32 [rows, ROW_WIDTH] on the device; None where `every_row`.
        every_row: The network runs at each row, without asking the table.
        mode: "while" is one launch for all rows. "replay" launches each row, for drivers before CUDA 12.4. "unrolled"
            is a graph of as many copies as there are rows, for comparison.
        unroll: Of "unrolled", the rows.
        evaluates: Of "unrolled", whether each of the rows runs the network.
        device: The device's number.
        stream: Where the graph is uploaded: a cudaStream_t as a number, of that device.
        owners: What the captured graphs need to live, kept until `close`: the CUDAGraphs, whose memory pools they use,
            tensors, kernels.
        library: csrc/cuda; that of this installation when None.

    Raises:
        RefusedGraph: a captured graph is empty, or has a node that the body of a loop does not take (named).
        LoopUnsupported: mode "while", and the driver has none.
        CudaError: a call of CUDA failed.
        RuntimeError: csrc/cuda is not built.
        ValueError: arguments that do not fit together.
    """

    def __init__(
        self,
        step: int,
        *,
        network: int | None = None,
        control: int,
        rows: int | None = None,
        every_row: bool = False,
        mode: Mode = "while",
        unroll: range | None = None,
        evaluates: Sequence[bool] | None = None,
        device: int = 0,
        stream: int = 0,
        owners: Iterable[object] = (),
        library: Library | None = None,
    ) -> None:
        self._loop: int | None = None
        if mode not in MODES:
            raise ValueError(f"mode must be one of {list(MODES)}, got {mode!r}")
        if (mode == "unrolled") != (unroll is not None):
            raise ValueError(f"unroll is for mode 'unrolled', which needs it; got mode {mode!r} and unroll={unroll}")
        self.mode: Mode = mode
        # Whether a row may go without the network.
        self._skips = network is not None and not every_row
        flags = None if unroll is None else self._flags(unroll, evaluates, needed=True)
        self._owners = tuple(owners)
        self._library = default_library() if library is None else library
        self._pid = os.getpid()
        # The first is held from a call's begin to its end, the second while the handle is used.
        self._turn, self._handle = threading.RLock(), threading.Lock()
        options = LoopOptions(
            mode=MODES.index(mode),
            device=device,
            stream=stream,
            control=control,
            rows=rows or 0,
            network=network or 0,
            step=step,
            every_row=every_row,
            first=0 if unroll is None else unroll.start,
            last=0 if unroll is None else unroll.stop,
            evaluates=0 if flags is None else ctypes.cast(ctypes.c_char_p(flags), ctypes.c_void_p).value,
        )
        self._loop = self._library.build(options)

    def launch(
        self,
        rows: range,
        *,
        num_rows: int,
        seed: int = 0,
        stream: int = 0,
        evaluates: Sequence[bool] | None = None,
    ) -> None:
        """Queue rows on a stream and return.

        Args:
            rows: One after the other.
            num_rows: Of the table.
            seed: In [0, 2^64).
            stream: A cudaStream_t as a number, of the loop's device.
            evaluates: Whether each of the rows runs the network. Replayed rows need it, a loop asks the table.

        Raises:
            ValueError: rows out of range, not those that were unrolled, or the loop still runs.
            CudaError: a call of CUDA failed.
            RuntimeError: the loop is closed, or another process's.
        """
        if rows.step != 1:
            raise ValueError(f"rows must follow each other, got {rows}")
        first, last = rows.start, max(rows.start, rows.stop)
        self._refuse_forked()
        flags = self._flags(rows, evaluates, needed=self.mode == "replay")
        with self._turn:
            self._library.launch(self._opened(), first, last, num_rows, signed(seed), stream, flags)

    def is_done(self) -> bool:
        """Whether the last launch has ended; raises as `wait`. Replayed rows go on by being asked."""
        self._refuse_forked()
        with self._turn:
            return self._library.wait(self._opened(), 0.0)

    def wait(self, advance: Callable[[Progress], None] | None = None) -> Progress:
        """Wait for the end of a launch, open to signals.

        Args:
            advance: Called when rows have been finished since its last call.

        Returns:
            Where it ended: before the last row where somebody stopped it, or a value was not finite.

        Raises:
            CudaError: a kernel failed, or a call of CUDA.
            KeyboardInterrupt: Ctrl-C, or whatever a signal's handler or `advance` raises, behind the row that was
                running; the loop may be launched again.
        """
        self._refuse_forked()
        with self._turn:
            loop = self._opened()
            told = None
            try:
                while not self._library.wait(loop, _LOOK_SECONDS):
                    if advance is not None and told != (found := self.progress()):
                        advance(told := found)
                found = self.progress()
                if advance is not None and told != found:
                    advance(found)
                return found
            except CudaError:
                raise
            except BaseException:
                self._library.finish(loop)
                raise

    def progress(self) -> Progress:
        """How far the last launch is, without waiting for the GPU."""
        self._refuse_forked()
        with self._handle:
            done, bad_row = self._library.progress(self._opened())
        return Progress(done, bad_row if bad_row >= 0 else None)

    def request_stop(self, wanted: bool = True) -> None:
        """Stop before the next row: this launch, and later ones until it is taken back with `wanted=False`."""
        self._refuse_forked()
        with self._handle:
            self._library.stop(self._opened(), wanted)

    def close(self) -> None:
        """Stop the loop, wait for its row and release everything. Further calls do nothing.

        Raises:
            CudaError: a call of CUDA failed, after all was released.
        """
        # What a forked process inherits is not its own to release, its locks may be held for ever.
        if os.getpid() != self._pid:
            self._loop = None
            return
        with self._turn, self._handle:
            loop, self._loop = self._loop, None
            try:
                if loop is not None:
                    self._library.destroy(loop)
            finally:
                self._owners = ()

    def _flags(self, rows: range, evaluates: Sequence[bool] | None, *, needed: bool) -> bytes | None:
        """Of each row a byte, whether it runs the network; None where all do."""
        if evaluates is None:
            if self._skips and needed:
                raise ValueError(f"evaluates must say which rows run the network in mode {self.mode!r}, got None")
            return None
        if len(evaluates) != len(rows):
            raise ValueError(f"evaluates must have a value for each of {len(rows)} rows, got {len(evaluates)}")
        if not self._skips and not all(evaluates):
            raise ValueError("a row without an evaluation needs a loop with a graph of the network, not every_row")
        return bytes(bool(value) for value in evaluates)

    def _refuse_forked(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("this loop is another process's, and CUDA does not survive a fork: build one in each")

    def _opened(self) -> int:
        if self._loop is None:
            raise RuntimeError("this loop is closed: build another")
        return self._loop

    def __enter__(self) -> LoopGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A device that failed fails here once more; the first error says more.
        with contextlib.suppress(CudaError) if kind is not None else contextlib.nullcontext():
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a loop of a GPU cannot be copied or pickled: build another from its captured graphs")

    def __del__(self) -> None:
        if getattr(self, "_loop", None) is not None:
            with contextlib.suppress(Exception):
                self.close()
