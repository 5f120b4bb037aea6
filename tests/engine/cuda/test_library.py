"""The shared library of csrc/cuda: its layout, and what is said where it is missing or another's."""

import pickle
import re
import subprocess
from pathlib import Path

import pytest

from fastdiff.engine.cuda import library
from fastdiff.engine.cuda.library import CudaError, Library, LoopUnsupported, RefusedGraph
from support import fake_cuda

ROOT = Path(__file__).parents[3]
HEADER = (ROOT / "csrc" / "include" / "loop_layout.h").read_text()


def words_of(enum):
    """Names and values of an enum of the header."""
    body = re.search(rf"enum {enum} : \w+ {{(.*?)}};", HEADER, re.S)[1]
    values, following = {}, 0
    for name, value in re.findall(r"(\w+)(?: = (-?\d+))?,?", re.sub(r"//.*", "", body)):
        following = int(value) if value else following
        values[name] = following
        following += 1
    return values


def test_layout_is_that_of_the_header():
    control = words_of("LoopControl")
    for name in ("ROW", "END", "NUM_ROWS", "SEED", "NONFINITE"):
        assert control.pop(f"LOOP_{name}") == getattr(library, name)
    assert not control
    assert f"LOOP_LAYOUT = {library.LAYOUT};" in HEADER
    assert f"LOOP_CONTROL_WIDTH = {library.CONTROL_WIDTH};" in HEADER
    modes = words_of("LoopMode")
    assert {f"LOOP_{mode.upper()}": i for i, mode in enumerate(library.MODES)} | {"LOOP_MODES": 3} == modes
    failures = words_of("LoopFailure")
    assert failures == {
        f"LOOP_{name}": getattr(library, name) for name in ("REFUSED", "UNSUPPORTED", "MISUSED", "BROKEN")
    }
    options = re.search(r"struct LoopOptions {(.*?)\n};", HEADER, re.S)[1]
    names = re.findall(r"\w+", " ".join(re.findall(r"int64_t ([^;]+);", options)))
    assert names == [name for name, _ in library.LoopOptions._fields_]


def test_a_missing_library_says_how_it_is_built(tmp_path):
    with pytest.raises(RuntimeError, match=r"is not built.*FASTDIFF_CUDA=1 pip install"):
        Library(tmp_path / "_cuda.so")


def test_a_file_that_is_no_library_says_so(tmp_path):
    path = tmp_path / "_cuda.so"
    path.write_text("nothing")
    with pytest.raises(RuntimeError, match=r"cannot be loaded \(.*FASTDIFF_CUDA=1"):
        Library(path)


def test_a_library_of_another_layout_is_refused(tmp_path):
    if fake_cuda.shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    path = tmp_path / "_cuda.so"
    code = 'extern "C" long fd_loop_layout() { return 77; }'
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", path], input=code, text=True, check=True)
    with pytest.raises(RuntimeError, match="built for layout 77 of the loop, and this is layout 1"):
        Library(path)


def test_versions_say_whether_there_are_loops(runtime):
    for number, expected, loops in ((13000, (13, 0), True), (12040, (12, 4), True), (12020, (12, 2), False)):
        runtime.set("driver", number)
        found = runtime.library.versions()
        assert found.driver == expected
        assert found.has_loops is loops
    assert found.runtime >= (12, 4)


def test_versions_without_a_device_or_a_driver(runtime):
    with pytest.raises(ValueError, match=r"device must be in \[0, 2\), got 2"):
        runtime.library.versions(2)
    runtime.set("devices", 0)
    with pytest.raises(
        CudaError, match=r"^cudaGetDeviceCount: no CUDA-capable device is detected \(cudaErrorNoDevice\)$"
    ):
        runtime.library.versions()
    runtime.set("driver", 0)
    with pytest.raises(CudaError, match=r"^cudaGetDeviceCount: CUDA driver version is insufficient"):
        runtime.library.versions()


@pytest.mark.parametrize("kind", [CudaError, RefusedGraph, LoopUnsupported])
def test_errors_pickle_with_their_code(kind):
    error = pickle.loads(pickle.dumps(kind("cudaGraphLaunch: out of memory", 2)))
    assert type(error) is kind
    assert (str(error), error.code) == ("cudaGraphLaunch: out of memory", 2)
    assert isinstance(error, RuntimeError)
