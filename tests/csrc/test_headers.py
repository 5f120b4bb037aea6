"""Every header of the C++ extension includes what it uses: each compiles alone, whatever came before it elsewhere."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from support.fake_cuda import cuda_headers

CSRC = Path(__file__).parents[2] / "csrc"
# Headers of one instruction set (`*_impl.h`) go into the file of a variant, in the place of all its kernels.
PLAIN = sorted(path for path in CSRC.rglob("*.h") if not path.name.endswith("_impl.h") and path.parent.name != "cuda")
CUDA = sorted((CSRC / "cuda").glob("*.h"))
VARIANT = sorted(CSRC.rglob("*_impl.h"))
VARIANT_FILES = sorted(CSRC.rglob("kernels_*.cpp"))

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def complaints(source: str, folder: str = "cpu", more=()) -> str:
    """What the compiler says of a file that includes headers of csrc."""
    ours = [f"-I{CSRC / inside}" for inside in ("include", folder)]
    theirs = [f"-isystem{path}" for path in [*more, *include_paths(), sysconfig.get_paths()["include"]]]
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wno-psabi", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [*ours, *theirs, "-x", "c++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False).stderr


@needs_compiler
@pytest.mark.parametrize("header", PLAIN, ids=lambda path: path.name)
def test_headers_compile_alone(header):
    assert complaints(f'#include "{header.name}"\n') == ""


@needs_compiler
@pytest.mark.parametrize("header", CUDA, ids=lambda path: path.name)
def test_headers_of_cuda_compile_alone(header):
    assert complaints(f'#include "{header.name}"\n', "cuda", [cuda_headers()]) == ""


@needs_compiler
@pytest.mark.parametrize("header", VARIANT, ids=lambda path: path.name)
@pytest.mark.parametrize("file", VARIANT_FILES, ids=lambda path: path.stem)
def test_headers_of_a_variant_compile_alone(file, header):
    prelude, includes = re.subn(r'#include "kernels\.h"\n', "", file.read_text())
    source, places = re.subn(r'#include "variant\.inl"', f'#include "{header.name}"', prelude)
    assert (includes, places) == (1, 1)
    assert complaints(source) == ""
