"""Recording launches as CUDA graphs, and naming what keeps a network from it."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

__all__ = ["CudaRecorder", "CudaRecording", "NotCapturable", "Recorder", "Recording", "is_recording"]

# Runs before the one that is recorded: libraries choose their algorithms, Triton compiles and loads its kernels.
WARM_UPS = 3


class NotCapturable(RuntimeError):
    """A model that cannot be recorded; the message names the module and why."""


class Recording(Protocol):
    """A recorded graph, which stays valid as long as this object."""

    @property
    def graph(self) -> int:
        """Its address, a cudaGraph_t."""


class Recorder(Protocol):
    """Makes graphs of launches on one device, whose memory they share."""

    @property
    def stream(self) -> int:
        """The address of the stream on which they are recorded and run."""

    def record(self, run: Callable[[], object], model: object = None) -> Recording:
        """Record what `run` launches, after running it a few times.

        Args:
            run: Launches kernels on static memory; it must launch the same whenever it is called.
            model: Whose modules a refusal names.

        Raises:
            NotCapturable: it waits for the device, draws random numbers, or does what a graph does not take.
        """

    def ordered(self) -> contextlib.AbstractContextManager[None]:
        """Within it work is queued behind what the caller has queued, and the caller's next work behind this."""


class CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        # It owns the graph and the pool of memory.
        self._graph = graph
        self.graph: int = graph.raw_cuda_graph()

    def replay(self) -> None:
        self._graph.replay()


class CudaRecorder:
    """Records on a stream of its own with `torch.cuda.CUDAGraph`; all its graphs share one pool of memory.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()
        self._lock = threading.Lock()

    @property
    def stream(self) -> int:
        """See `Recorder`."""
        return self._stream.cuda_stream

    @contextlib.contextmanager
    def ordered(self) -> Iterator[None]:
        """See `Recorder`."""
        with torch.cuda.device(self._device):
            callers = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(callers)
            with torch.cuda.stream(self._stream):
                yield
            callers.wait_stream(self._stream)

    def replayable(self, run: Callable[[], object], model: object = None) -> Callable[[], None]:
        """Record `run`, and give what launches the graph on the current stream. Raises as `record`."""
        return self._record(run, model).replay

    def record(self, run: Callable[[], object], model: object = None) -> Recording:
        """See `Recorder`."""
        return CudaRecording(self._record(run, model))

    def _record(self, run: Callable[[], object], model: object) -> torch.cuda.CUDAGraph:
        with self._lock, self.ordered(), _benchmarked(), _Names(model, self._device) as names:
            _state.warming = True
            try:
                for _ in range(WARM_UPS):
                    run()
            finally:
                _state.warming = False
            names.check_random()
            self._stream.synchronize()
            # Instantiated only where it is replayed.
            graph = torch.cuda.CUDAGraph(keep_graph=True)
            try:
                with _no_collection():
                    graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                    try:
                        run()
                    finally:
                        graph.capture_end()
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise NotCapturable(names.refusal(error)) from error
        return graph


class _State(threading.local):
    warming = False


_state = _State()


def is_recording() -> bool:
    """Whether this thread records a graph, or warms up to it: launches are then to be made, not replayed."""
    return _state.warming or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: a finaliser may free memory or unload a kernel, which ends a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _benchmarked() -> Iterator[None]:
    """cuDNN tries its algorithms at the first run of a shape and keeps the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class _Names:
    """Which module runs, and which one drew random numbers, while its context is open."""

    def __init__(self, model: object, device: torch.device) -> None:
        self._names = {m: name for name, m in model.named_modules()} if isinstance(model, nn.Module) else {}
        self._device = device
        self._running: list[nn.Module] = []
        self._drew: nn.Module | None = None
        self._hooks: list[Any] = []
        self._before = 0

    def __enter__(self) -> _Names:
        self._before = self._offset()
        for module in self._names:
            self._hooks.append(module.register_forward_pre_hook(self._begin))
            self._hooks.append(module.register_forward_hook(self._end))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def check_random(self) -> None:
        """Raise NotCapturable where PyTorch's generator was drawn from: a graph would draw the same at each row."""
        if self._offset() != self._before:
            where = self._called(self._drew) if self._drew is not None else "the model"
            raise NotCapturable(f"{where} draws from PyTorch's random generator, which a graph repeats at each row")

    def refusal(self, error: Exception) -> str:
        """What to say of a failed capture."""
        where = self._called(self._running[-1]) if self._running else "the model"
        reason = str(error).strip().splitlines()[0]
        return f"{where} cannot be captured as a CUDA graph ({reason}): it waits for the device, or allocates outside"

    def _begin(self, module: nn.Module, inputs: object) -> None:
        self._running.append(module)

    def _end(self, module: nn.Module, inputs: object, output: object) -> None:
        self._running.pop()
        if self._drew is None and self._offset() != self._before:
            self._drew = module

    def _offset(self) -> int:
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        return int(torch.cuda.default_generators[index].get_offset())

    def _called(self, module: nn.Module) -> str:
        return f"{self._names.get(module) or 'the model'} ({type(module).__name__})"
