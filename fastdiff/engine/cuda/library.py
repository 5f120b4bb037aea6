"""The shared library of csrc/cuda: found, loaded, called, its failures as exceptions."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

from fastdiff.ops._dispatch import BUILD_COMMAND

__all__ = [
    "CONTROL_WIDTH",
    "END",
    "NONFINITE",
    "NUM_ROWS",
    "ROW",
    "SEED",
    "CudaError",
    "Library",
    "LoopOptions",
    "LoopUnsupported",
    "RefusedGraph",
    "Versions",
    "default_library",
]

# csrc/include/loop_layout.h in Python; a test compares the two.
LAYOUT = 1
# Words of the control block, int64 in device memory: the row that is being executed, the row behind the stretch's last,
# the table's length, the seed's bits, and the row that met a value that is not finite, or -1.
ROW, END, NUM_ROWS, SEED, NONFINITE = range(5)
CONTROL_WIDTH = 16
MODES = ("while", "replay", "unrolled")
REFUSED, UNSUPPORTED, MISUSED, BROKEN = -1, -2, -3, -4

PLACE = Path(__file__).parents[2] / "_cuda.so"
# Of a failure's message.
_ROOM = 2048
# The first driver with WHILE nodes, as CUDA counts versions.
_FIRST_WITH_LOOPS = (12, 4)


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed: the message has its name and CUDA's own words.

    Attributes:
        code: CUDA's number of the error (2 is out of memory); negative where it is the loop's own complaint.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.code)


class RefusedGraph(CudaError):
    """A captured graph that the body of a loop does not take; the message names the node."""


class LoopUnsupported(CudaError):
    """The driver has no loops in graphs: replay the rows."""


class Versions(NamedTuple):
    """CUDA versions, (major, minor).

    Attributes:
        driver: What the driver supports.
        runtime: What the library was built with.
    """

    driver: tuple[int, int]
    runtime: tuple[int, int]

    @property
    def has_loops(self) -> bool:
        """Whether a graph may hold a loop."""
        return self.driver >= _FIRST_WITH_LOOPS


class LoopOptions(ctypes.Structure):
    """What a loop is built from; csrc/include/loop_layout.h has the meanings."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "mode",
            "device",
            "stream",
            "control",
            "rows",
            "network",
            "step",
            "every_row",
            "first",
            "last",
            "evaluates",
        )
    ]


class Library:
    """The functions of csrc/cuda/loop.h. Python's lock is released while they run.

    Args:
        path: The shared library.

    Raises:
        RuntimeError: it is missing, cannot be loaded, or was built for another version of the package.
    """

    def __init__(self, path: Path = PLACE) -> None:
        if not path.exists():
            raise RuntimeError(
                f"the CUDA loop is not built ({path} is missing): install CUDA 12.4 or later, with nvcc in PATH or in "
                f"CUDA_HOME, and run `FASTDIFF_CUDA=1 {BUILD_COMMAND}`"
            )
        try:
            self._loaded = ctypes.CDLL(str(path))
            layout = self._loaded.fd_loop_layout
        except (OSError, AttributeError) as error:
            raise RuntimeError(f"{path} cannot be loaded ({error}): run `FASTDIFF_CUDA=1 {BUILD_COMMAND}`") from None
        layout.restype = ctypes.c_int64
        if layout() != LAYOUT:
            raise RuntimeError(
                f"{path} was built for layout {layout()} of the loop, and this is layout {LAYOUT}: run "
                f"`FASTDIFF_CUDA=1 {BUILD_COMMAND}`"
            )
        number, place = ctypes.c_int64, ctypes.c_void_p
        arguments: dict[str, list[Any]] = {
            "versions": [number, ctypes.POINTER(number), ctypes.POINTER(number)],
            "build": [ctypes.POINTER(LoopOptions), ctypes.POINTER(place)],
            "launch": [place, number, number, number, number, number, ctypes.c_char_p],
            "wait": [place, ctypes.c_double, ctypes.POINTER(number)],
            "finish": [place],
            "destroy": [place],
        }
        self._functions = {name: getattr(self._loaded, f"fd_loop_{name}") for name in arguments}
        for name, function in self._functions.items():
            function.argtypes = [*arguments[name], ctypes.c_char_p, number]
            function.restype = number
        self._progress = self._loaded.fd_loop_progress
        self._progress.argtypes = [place, ctypes.POINTER(number), ctypes.POINTER(number)]
        self._progress.restype = None
        self._stop = self._loaded.fd_loop_stop
        self._stop.argtypes = [place, number]
        self._stop.restype = None

    def _call(self, name: str, *arguments: Any) -> None:
        message = ctypes.create_string_buffer(_ROOM)
        code = self._functions[name](*arguments, message, _ROOM)
        if code == 0:
            return
        text = message.value.decode(errors="replace")
        if code == MISUSED:
            raise ValueError(text)
        kinds: dict[int, type[CudaError]] = {REFUSED: RefusedGraph, UNSUPPORTED: LoopUnsupported}
        raise kinds.get(code, CudaError)(text, code)

    def versions(self, device: int = 0) -> Versions:
        """Of the driver and the runtime.

        Raises:
            CudaError: no driver, or no device.
            ValueError: no device of that number.
        """
        driver, runtime = ctypes.c_int64(), ctypes.c_int64()
        self._call("versions", device, ctypes.byref(driver), ctypes.byref(runtime))
        return Versions(_version(driver.value), _version(runtime.value))

    def build(self, options: LoopOptions) -> int:
        """The loop's handle."""
        loop = ctypes.c_void_p()
        self._call("build", ctypes.byref(options), ctypes.byref(loop))
        assert loop.value is not None
        return loop.value

    def launch(
        self, loop: int, first: int, last: int, num_rows: int, seed: int, stream: int, evaluates: bytes | None
    ) -> None:
        self._call("launch", loop, first, last, num_rows, seed, stream, evaluates)

    def wait(self, loop: int, seconds: float) -> bool:
        finished = ctypes.c_int64()
        self._call("wait", loop, seconds, ctypes.byref(finished))
        return bool(finished.value)

    def finish(self, loop: int) -> None:
        self._call("finish", loop)

    def destroy(self, loop: int) -> None:
        self._call("destroy", loop)

    def progress(self, loop: int) -> tuple[int, int]:
        done, bad_row = ctypes.c_int64(), ctypes.c_int64()
        self._progress(loop, ctypes.byref(done), ctypes.byref(bad_row))
        return done.value, bad_row.value

    def stop(self, loop: int, wanted: bool) -> None:
        self._stop(loop, wanted)


@functools.cache
def default_library() -> Library:
    """The library of this installation; raises as `Library`."""
    return Library()


def _version(number: int) -> tuple[int, int]:
    return number // 1000, number % 1000 // 10
