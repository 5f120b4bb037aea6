"""Build of the C++ extension, and the map of top-level kernels/ to fastdiff.kernels. Everything else: pyproject.toml.

FASTDIFF_EXT=0 leaves the extension out: a pure-Python package that runs the reference implementations.
FASTDIFF_SANITIZE=address,undefined builds it with those sanitizers, and with memory to work in that starts as NaN
(`make asan`).
FASTDIFF_WERROR=1 takes the compiler's warnings for errors (`make setup-dev`); a user's newer compiler may know others.
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# The stable ABI of PyTorch 2.10 and (py_limited_api) the limited Python API: one build serves all later versions.
DEFINES = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
FLAGS = ["-O3", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
# The last two are about the compiler's own headers.
FLAGS += ["-Wall", "-Wextra", "-Wshadow", "-Wno-psabi", "-Wno-maybe-uninitialized"]
# Errors name their source file, which needs no path of the machine that built it.
FLAGS += [f"-ffile-prefix-map={ROOT}/="]

NO_TORCH = """fastdiff builds a C++ extension against the PyTorch that it will run with, and this build cannot see one.
Install torch>=2.10 first and build without isolation:
    pip install torch setuptools wheel ninja
    pip install --no-build-isolation .
Without a compiler, install the pure-Python package, which runs the slow reference implementations:
    FASTDIFF_EXT=0 pip install ."""


def flag(name, default):
    value = os.environ.get(name, default)
    if value not in ("0", "1"):
        sys.exit(f"{name} must be 0 or 1, got {value!r}")
    return value == "1"


def extension_arguments():
    if not flag("FASTDIFF_EXT", "1") or "sdist" in sys.argv or "egg_info" in sys.argv or "dist_info" in sys.argv:
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
    except ImportError:
        sys.exit(NO_TORCH)
    sanitize = os.environ.get("FASTDIFF_SANITIZE")
    # Python's own flags ask for debugging symbols, which take a third of the time and ten times the size. Sanitized
    # kernels take a compiler half an hour with all its optimisations.
    debug = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1", "-O1"] if sanitize else ["-g0"]
    # PyTorch's headers are not ours to warn about.
    warnings = [f"-isystem{path}" for path in include_paths()]
    if flag("FASTDIFF_WERROR", "0"):
        warnings += ["-Werror"]
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))
    extension = CppExtension(
        "fastdiff._C",
        sources,
        depends=headers,
        include_dirs=[str(ROOT / "csrc" / "include"), str(ROOT / "csrc" / "cpu")],
        define_macros=DEFINES + ([("FASTDIFF_POISON", "1")] if sanitize else []),
        extra_compile_args=FLAGS + debug + warnings,
        extra_link_args=debug if sanitize else [],
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


setup(
    packages=[*find_packages(include=["fastdiff", "fastdiff.*"]), "fastdiff.kernels"],
    package_dir={"fastdiff": "fastdiff", "fastdiff.kernels": "kernels"},
    package_data={"fastdiff": ["py.typed"]},
    **extension_arguments(),
)
