"""How fastdiff/_cuda.so is built: found compiler, command. For setup.py and the tests."""

import os
import re
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
# Conditional nodes came with it.
FIRST_VERSION = (12, 4)
# Code for the data centre's cards (80 runs on all 8.x), and PTX that any later card compiles when it is loaded. PTX of
# the newest architecture would leave out those between.
TARGETS = ("arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]")
FLAGS = ("-std=c++20", "-O2", "-shared", "-cudart=static")
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow")


def find() -> str | None:
    """nvcc: of CUDA_HOME or CUDA_PATH where one is set, else in PATH, else in its usual place."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def version(nvcc: str) -> tuple[int, int]:
    """Its (major, minor); (0, 0) where it does not say."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def sources() -> list[Path]:
    return sorted([*FOLDER.glob("*.cu"), *FOLDER.glob("*.cpp")])


def command(nvcc: str, target: Path, *, werror: bool = False) -> list[str]:
    """The one call that compiles and links.

    The runtime is linked in and kept from others' sight: PyTorch brings one of its own, whose functions would otherwise
    be taken for these.
    """
    host = [*HOST_FLAGS, f"-ffile-prefix-map={FOLDER.parents[1]}/="]
    call = [nvcc, *FLAGS, *(f"-gencode={target}" for target in TARGETS)]
    if werror:
        call += ["-Werror=all-warnings"]
        host += ["-Werror"]
    call += [f"-Xcompiler={flag}" for flag in host]
    call += ["-Xlinker=--exclude-libs,ALL", f"-Xlinker=--version-script={FOLDER / 'exports.map'}"]
    call += [f"-I{FOLDER.parent / 'include'}", f"-I{FOLDER}", "-o", str(target)]
    return call + [str(source) for source in sources()]
