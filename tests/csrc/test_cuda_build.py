"""The CUDA part built with nvcc, for all of its targets, where there is an nvcc; and what setup.py makes of none."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.engine.cuda.library import CudaError, Library
from support import builds
from support.builds import ROOT

_spec = importlib.util.spec_from_file_location("nvcc", ROOT / "csrc" / "cuda" / "nvcc.py")
nvcc = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(nvcc)

needs_nvcc = pytest.mark.skipif(nvcc.find() is None, reason="nvcc is not installed")


@pytest.fixture
def library():
    """The library, compiled with warnings as errors."""
    compiler = nvcc.find()
    if nvcc.version(compiler) < nvcc.FIRST_VERSION:
        pytest.skip(f"{compiler} is older than CUDA 12.4")
    read = [path for folder in ("cuda", "include") for path in (ROOT / "csrc" / folder).iterdir() if path.is_file()]
    return builds.built("_cuda.so", lambda place: nvcc.command(compiler, place, werror=True), read)


@needs_nvcc
def test_nvcc_builds_code_for_every_target(library):
    tool = shutil.which("cuobjdump", path=str(Path(shutil.which(nvcc.find())).parent)) or shutil.which("cuobjdump")
    if tool is None:
        # Triton's wheel brings one.
        import triton

        tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
        if not Path(tool).is_file():
            pytest.skip("cuobjdump is not installed")
    said = subprocess.run([tool, "--list-elf", "--list-ptx", library], capture_output=True, text=True, check=False)
    assert set(re.findall(r"sm_\d+\.(?:cubin|ptx)", said.stdout)) >= {"sm_80.cubin", "sm_90.cubin", "sm_90.ptx"}


@needs_nvcc
def test_library_shows_its_own_functions_and_needs_no_cuda(library):
    """PyTorch's runtime has functions of the same names, in the same process."""
    shown = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in shown.stdout.splitlines()}
    assert names >= {"fd_loop_build", "fd_loop_launch", "fd_loop_destroy"}
    assert all(name.startswith("fd_loop_") for name in names)
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "cuda" not in needed.replace(str(library), "")


@needs_nvcc
def test_library_says_in_cudas_words_that_there_is_no_gpu(library):
    loaded = Library(library)
    code = f"""
from pathlib import Path
from fastdiff.engine.cuda.library import Library
print(Library(Path({str(library)!r})).versions())
"""
    # Also where this machine has a GPU.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert re.search(r"CudaError: cudaGetDeviceCount: .*(driver|device).* \(cudaError\w+\)", done.stderr), done.stderr
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(CudaError, match=r"^cudaGetDeviceCount: ") as caught:
            loaded.versions()
        assert caught.value.code > 0


def setup(**environment):
    command = [sys.executable, "setup.py", "--version"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=ROOT, check=False)


def test_setup_says_that_nvcc_is_missing_where_it_is_needed(tmp_path):
    done = setup(FASTDIFF_CUDA="1", CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "FASTDIFF_CUDA=1, but nvcc was not found: install CUDA" in done.stderr
    assert setup(FASTDIFF_CUDA="auto", CUDA_HOME=str(tmp_path)).returncode == 0


def test_setup_says_that_nvcc_is_too_old(tmp_path):
    old = tmp_path / "bin" / "nvcc"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.2, V12.2.140'\n")
    old.chmod(0o755)
    done = setup(FASTDIFF_CUDA="1", CUDA_HOME=str(tmp_path))
    assert "is older than CUDA 12.4" in done.stderr


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"FASTDIFF_CUDA": "yes"}, "FASTDIFF_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"FASTDIFF_CUDA": "1", "FASTDIFF_EXT": "0"}, "contradict each other"),
    ],
)
def test_setup_refuses_unknown_wishes(environment, complaint):
    done = setup(**environment)
    assert done.returncode != 0
    assert complaint in done.stderr
