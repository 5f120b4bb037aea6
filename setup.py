"""Build of the C++ extension, and the map of top-level kernels/ to fastdiff.kernels. Everything else: pyproject.toml.

FASTDIFF_EXT=0 leaves the extension out: a pure-Python package that runs the reference implementations.
FASTDIFF_SANITIZE=address builds it with AddressSanitizer (`make asan`).
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
FLAGS += ["-Wall", "-Wno-psabi", "-Wno-maybe-uninitialized"]
# Errors name their source file, which needs no path of the machine that built it.
FLAGS += [f"-ffile-prefix-map={ROOT}/="]

NO_TORCH = """fastdiff builds a C++ extension against the PyTorch that it will run with, and this build cannot see one.
Install torch>=2.10 first and build without isolation:
    pip install torch setuptools wheel ninja
    pip install --no-build-isolation .
Without a compiler, install the pure-Python package, which runs the slow reference implementations:
    FASTDIFF_EXT=0 pip install ."""


def extension_arguments():
    wanted = os.environ.get("FASTDIFF_EXT", "1")
    if wanted not in ("0", "1"):
        sys.exit(f"FASTDIFF_EXT must be 0 or 1, got {wanted!r}")
    if wanted == "0" or "sdist" in sys.argv or "egg_info" in sys.argv or "dist_info" in sys.argv:
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        sys.exit(NO_TORCH)
    sanitize = os.environ.get("FASTDIFF_SANITIZE")
    # Python's own flags ask for debugging symbols, which take a third of the time and ten times the size.
    extra = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1"] if sanitize else ["-g0"]
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    headers = sorted(str(path.relative_to(ROOT)) for kind in ("*.h", "*.inl") for path in (ROOT / "csrc").rglob(kind))
    extension = CppExtension(
        "fastdiff._C",
        sources,
        depends=headers,
        include_dirs=[str(ROOT / "csrc" / "include"), str(ROOT / "csrc" / "cpu")],
        define_macros=DEFINES,
        extra_compile_args=FLAGS + extra,
        extra_link_args=extra if sanitize else [],
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
