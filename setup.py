"""Build of the C++ and CUDA parts, and the map of kernels/ to fastdiff.kernels. Everything else: pyproject.toml.

FASTDIFF_EXT=0 leaves both out: a pure-Python package that runs the reference implementations.
FASTDIFF_CUDA=auto|0|1: the sampling loop on a GPU (csrc/cuda) is built where nvcc is found, never, or is needed.
FASTDIFF_SANITIZE=address,undefined builds it with those sanitizers, and with memory to work in that starts as NaN
(`make asan`).
FASTDIFF_WERROR=1 takes the compiler's warnings for errors (`make setup-dev`); a user's newer compiler may know others.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
CUDA = "fastdiff._cuda"
# The stable ABI of PyTorch 2.10 and (py_limited_api) the limited Python API: one build serves all later versions.
DEFINES = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
# What bits depend on is said here and in csrc/standalone/flags.txt, whatever a Python was built with: products are
# joined with sums, and whole numbers wrap around.
FLAGS = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fwrapv", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fvisibility=hidden"]
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


def refuse_beside_the_other():
    """Leave with a word where the other package of this name is installed, over which this one would be written."""
    try:
        importlib.metadata.distribution("fastdiff")
    except importlib.metadata.PackageNotFoundError:
        return
    sys.exit(
        "the package index's `fastdiff`, which compares texts, is installed here, and its files would be mixed with "
        "those of fastdiff-ddpm: `pip uninstall -y fastdiff` first"
    )


def flag(name, default):
    value = os.environ.get(name, default)
    if value not in ("0", "1"):
        sys.exit(f"{name} must be 0 or 1, got {value!r}")
    return value == "1"


def load_nvcc():
    spec = importlib.util.spec_from_file_location("nvcc", ROOT / "csrc" / "cuda" / "nvcc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cuda_extension():
    """[the CUDA part], or [] where it is not to be built. What fails to compile is left out where nobody asked."""
    wanted = os.environ.get("FASTDIFF_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"FASTDIFF_CUDA must be auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return []
    nvcc = load_nvcc()
    compiler = nvcc.find()
    obstacle = None
    if compiler is None:
        obstacle = "nvcc was not found: install CUDA, and put nvcc into PATH or its toolkit's folder into CUDA_HOME"
    elif nvcc.version(compiler) < nvcc.FIRST_VERSION:
        obstacle = f"{compiler} is older than CUDA 12.4, the first with loops in graphs"
    if obstacle is not None:
        if wanted == "1":
            sys.exit(f"FASTDIFF_CUDA=1, but {obstacle}. FASTDIFF_CUDA=0 builds without.")
        return []
    # PyTorch's build would take sources ending in .cu for its own CUDA.
    depends = [str(path.relative_to(ROOT)) for path in [*nvcc.sources(), *(ROOT / "csrc").rglob("*.h")]]
    return [Extension(CUDA, sources=[], depends=depends, optional=wanted == "auto")]


def with_cuda(build_ext):
    """The command that builds extensions, the CUDA part among them: a plain library, not a module of Python."""

    class Build(build_ext):
        def get_ext_filename(self, fullname):
            *folders, name = fullname.split(".")
            if name != CUDA.rpartition(".")[2]:
                return super().get_ext_filename(fullname)
            return os.path.join(*folders, f"{name}.so")

        def build_extension(self, extension):
            if extension.name != CUDA:
                return super().build_extension(extension)
            from setuptools.errors import CompileError

            nvcc = load_nvcc()
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            command = nvcc.command(nvcc.find(), target, werror=flag("FASTDIFF_WERROR", "0"))
            if subprocess.run(command, check=False).returncode != 0:
                raise CompileError("nvcc failed; FASTDIFF_CUDA=0 builds without, FASTDIFF_CUDA=1 makes this an error")

    return Build


def extension_arguments():
    if not flag("FASTDIFF_EXT", "1"):
        if os.environ.get("FASTDIFF_CUDA") == "1":
            sys.exit("FASTDIFF_CUDA=1 and FASTDIFF_EXT=0 contradict each other: leave one out")
        return {}
    if "sdist" in sys.argv or "egg_info" in sys.argv or "dist_info" in sys.argv:
        return {}
    sanitize = os.environ.get("FASTDIFF_SANITIZE")
    # Sanitizers are for the kernels of the CPU.
    cuda = [] if sanitize else cuda_extension()
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
    except ImportError:
        sys.exit(NO_TORCH)
    # Python's own flags ask for debugging symbols, which take a third of the time and ten times the size. Sanitized
    # kernels take a compiler half an hour with all its optimisations.
    debug = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1", "-O1"] if sanitize else ["-g0"]
    # PyTorch's headers are not ours to warn about.
    warnings = [f"-isystem{path}" for path in include_paths()]
    if flag("FASTDIFF_WERROR", "0"):
        warnings += ["-Werror"]
    built = [path for path in (ROOT / "csrc").rglob("*.cpp") if path.parent.name not in ("cuda", "standalone")]
    sources = sorted(str(path.relative_to(ROOT)) for path in built)
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
        "ext_modules": [extension, *cuda],
        "cmdclass": {"build_ext": with_cuda(BuildExtension)},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


refuse_beside_the_other()
setup(
    packages=[*find_packages(include=["fastdiff", "fastdiff.*"]), "fastdiff.kernels"],
    package_dir={"fastdiff": "fastdiff", "fastdiff.kernels": "kernels"},
    package_data={"fastdiff": ["py.typed"], "fastdiff.serving": ["page/*"]},
    **extension_arguments(),
)
