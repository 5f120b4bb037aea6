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
# Headers of one instruction set (`*_impl.h`) go behind the header that chooses it.
PLAIN = sorted(path for path in CSRC.rglob("*.h") if not path.name.endswith("_impl.h") and path.parent.name != "cuda")
CUDA = sorted((CSRC / "cuda").glob("*.h"))
VARIANT = sorted(CSRC.rglob("*_impl.h"))
INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512bf16", "avx512amx", "avx512amxmodel")
# Have files of their own for these alone, and take the others from AVX-512.
PARTIAL = {name: {"pairs.cpp"} for name in ("avx512bf16", "avx512amx", "avx512amxmodel")}


def included(names):
    """These headers of a variant, and those that they include."""
    found, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            (path,) = CSRC.rglob(name)
            left += re.findall(r'#include "(\w+_impl\.h)"', path.read_text())
    return found


def compiled_for(instructions):
    """The headers of a variant that a set of instructions compiles."""
    if instructions not in PARTIAL:
        return VARIANT
    sources = [(CSRC / instructions / name).read_text() for name in PARTIAL[instructions]]
    names = included(re.findall(r'"(\w+_impl\.h)"', "".join(sources)))
    return [path for path in VARIANT if path.name in names]


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def complaints(source: str, folder: str = "cpu", more=()) -> str:
    """What the compiler says of a file that includes headers of csrc."""
    ours = [f"-I{CSRC / inside}" for inside in ("include", "standalone", folder)]
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
@pytest.mark.parametrize(
    ("instructions", "header"),
    [(name, path) for name in INSTRUCTION_SETS for path in compiled_for(name)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_headers_of_a_variant_compile_alone(instructions, header):
    assert complaints(f'#include "{instructions}.h"\n#include "{header.name}"\n') == ""


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
def test_each_instruction_set_has_the_same_files(instructions):
    generic = {path.name: path.read_text() for path in (CSRC / "generic").glob("*.cpp")}
    files = {path.name: path.read_text() for path in (CSRC / instructions).glob("*.cpp")}
    assert files.keys() == PARTIAL.get(instructions, generic.keys())
    for name, text in files.items():
        assert re.findall(r'"(\w+_impl\.h)"', text) == re.findall(r'"(\w+_impl\.h)"', generic[name])
