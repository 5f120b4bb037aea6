"""csrc/cuda over a CUDA runtime that needs no GPU, built with g++; its graphs run functions of Python.

    runtime = fake_cuda.runtime()
    graph = runtime.capture(function, ...)

gives an address for `LoopGraph`, as `torch.cuda.CUDAGraph.raw_cuda_graph()` does: a captured graph with a kernel for
each function. Control block and rows are CPU tensors: the fake's device is the host.
"""

import ctypes
import functools
import os
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff.engine.cuda.graph import LoopGraph
from fastdiff.engine.cuda.library import CONTROL_WIDTH, ROW, Library
from fastdiff.process.table import ROW_FIELDS, ROW_WIDTH
from support import builds
from support.builds import ROOT

CSRC, FAKE = ROOT / "csrc", ROOT / "tests" / "csrc" / "fake_cuda"
SOURCES = sorted([*(CSRC / "cuda").glob("*.cpp"), *FAKE.glob("fake_*.cpp")])
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-fvisibility=hidden", "-pthread", "-g1"]
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def cuda_headers() -> Path:
    """The headers of a toolkit, or those in Triton's wheel."""
    site = Path(sysconfig.get_paths()["purelib"])
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / "include" for home in toolkits if home]
    places.append(site / "triton" / "backends" / "nvidia" / "include")
    for place in places:
        if (place / "cuda_runtime_api.h").is_file():
            return place
    pytest.skip("no CUDA headers: neither a toolkit nor Triton is installed")


def built(name: str, *flags: str, sources: tuple[Path, ...] = ()) -> Path:
    """What g++ makes of csrc/cuda and the fake runtime; built again when one of their files changes."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    compiled = [*SOURCES, *sources]
    includes = [f"-I{CSRC / 'include'}", f"-I{CSRC / 'cuda'}", f"-I{FAKE}", f"-isystem{cuda_headers()}"]

    def command(place: Path) -> list[str]:
        return ["g++", *FLAGS, *flags, *includes, *map(str, compiled), "-o", str(place)]

    headers = [path for folder in (CSRC / "cuda", CSRC / "include", FAKE) for path in folder.glob("*.h")]
    return builds.built(name, command, [*compiled, *headers])


class FakeRuntime:
    """The fake's functions, and what was captured."""

    def __init__(self, path: Path) -> None:
        self.library = Library(path)
        self._fake = ctypes.CDLL(str(path))
        place, number = ctypes.c_void_p, ctypes.c_int64
        self._declare("graph_new", [], place)
        self._declare("graph_free", [place])
        self._declare("add_kernel", [place, KERNEL, place, number, number])
        self._declare("add_copy", [place, place, place, number, number])
        self._declare("add_child", [place, place])
        self._declare("add_node", [place, number])
        self._declare("register", [place, number])
        self._declare("stream_new", [number], place)
        self._declare("set", [ctypes.c_char_p, number])
        self._declare("fail", [ctypes.c_char_p, number, number])
        self._declare("failed", [], ctypes.c_char_p)
        self._declare("current_device", [], number)
        self._declare("calls", [ctypes.c_char_p], number)
        self._declare("live", [ctypes.c_char_p], number)
        self._declare("violation", [], ctypes.c_char_p)
        self._declare("reset", [])
        self._graphs = []
        self._kernels = []
        self.errors: list[BaseException] = []

    def _declare(self, name, arguments, result=None):
        function = getattr(self._fake, f"fake_{name}")
        function.argtypes, function.restype = arguments, result
        setattr(self, f"_{name}", function)

    def capture(self, *functions, device=0, cooperative=False) -> int:
        """A captured graph whose kernels call functions without arguments. What they raise is kept in `errors`."""
        graph = self._graph_new()
        self._graphs.append(graph)
        for function in functions:
            self.add_kernel(graph, function, device=device, cooperative=cooperative)
        return graph

    def add_kernel(self, graph, function, *, device=0, cooperative=False):
        def run(_):
            try:
                function()
            except BaseException as error:
                self.errors.append(error)

        kernel = KERNEL(run)
        self._kernels.append(kernel)
        self._add_kernel(graph, kernel, None, cooperative, device)

    def add_node(self, graph, kind):
        self._add_node(graph, kind)

    def add_copy(self, graph, to, source, is_array=False):
        self._add_copy(graph, to.data_ptr(), source.data_ptr(), source.nbytes, is_array)

    def add_child(self, graph, child):
        self._add_child(graph, child)

    def register(self, tensor):
        """Its memory counts as the device's."""
        self._register(tensor.data_ptr(), tensor.nbytes)

    def stream(self, device=0) -> int:
        return self._stream_new(device)

    def set(self, what, value):
        """See fake_set in fake_runtime.h."""
        self._set(what.encode(), value)

    def fail(self, function, nth=0, error=1):
        """Have the call number nth from now fail; of any function where None."""
        self._fail(None if function is None else function.encode(), nth, error)

    def failed(self) -> str:
        return self._failed().decode()

    def current_device(self) -> int:
        return self._current_device()

    def calls(self, function) -> int:
        return self._calls(function.encode())

    def live(self) -> dict[str, int]:
        """What was created and not destroyed."""
        counts = {name: self._live(name.encode()) for name in ("graphs", "execs", "events", "host")}
        return {name: count for name, count in counts.items() if count}

    def violation(self) -> str:
        return self._violation().decode()

    def reset(self):
        self._reset()
        for graph in self._graphs:
            self._graph_free(graph)
        self._graphs.clear()
        self._kernels.clear()
        self.errors.clear()

    def loop(self, step, **options) -> LoopGraph:
        return LoopGraph(step, library=self.library, **options)


@functools.cache
def runtime() -> FakeRuntime:
    return FakeRuntime(built("loop.so", "-shared", "-fPIC"))


def control_block() -> torch.Tensor:
    return torch.full((CONTROL_WIDTH,), -7, dtype=torch.int64)


def rows_that(evaluates) -> torch.Tensor:
    """A table [R, ROW_WIDTH] of which a loop reads whether each row evaluates."""
    rows = np.zeros((len(evaluates), ROW_WIDTH), dtype=np.float32)
    rows[:, ROW_FIELDS.index("evaluate")] = evaluates
    return torch.from_numpy(rows)


class Rows:
    """A loop over R rows whose graphs write down what runs."""

    def __init__(self, runtime, evaluates=(1, 1, 0, 1, 0), *, mode="while", on_step=lambda row: None, **options):
        self.runtime, self.mode, self.evaluates = runtime, mode, list(evaluates)
        self.control, self.table = control_block(), rows_that(evaluates)
        self.seen, self.steps, self.networks = [], [], []
        self.on_step = on_step
        unroll = options.pop("unroll", range(len(self.evaluates)))
        self.loop = runtime.loop(
            runtime.capture(self._step, device=options.get("device", 0)),
            network=runtime.capture(lambda: self.networks.append(self.row()), device=options.get("device", 0)),
            control=self.control.data_ptr(),
            rows=self.table.data_ptr(),
            mode=mode,
            unroll=unroll if mode == "unrolled" else None,
            evaluates=self.evaluates[unroll.start : unroll.stop] if mode == "unrolled" else None,
            **options,
        )

    def row(self):
        return int(self.control[ROW])

    def _step(self):
        self.steps.append(self.row())
        self.seen.append(self.control.tolist())
        self.on_step(self.row())

    def launch(self, rows, **options):
        flags = self.evaluates[rows.start : rows.stop] if self.mode == "replay" else None
        options.setdefault("num_rows", len(self.evaluates))
        self.loop.launch(rows, evaluates=flags, **options)

    def run(self, rows=None, **options):
        self.launch(range(len(self.evaluates)) if rows is None else rows, **options)
        return self.loop.wait()
