"""What fastdiff runs on: versions, the extension, processor and GPU. For reports and result files."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from fastdiff.process.arguments import spelt
from fastdiff.version import __version__

__all__ = ["extension", "installed_in", "machine", "resolve_device", "settings", "torch_report", "versions"]

# Of other projects.
_SETTINGS = (
    "OMP_NUM_THREADS",
    "GOMP_SPINCOUNT",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_INTERPRET",
    "HF_ENDPOINT",
)
_LIBRARIES = ("torch", "triton", "numpy", "safetensors", "scikit-learn", "matplotlib")


def versions() -> dict[str, str | None]:
    """Versions of fastdiff, Python and the libraries that matter; None for one that is not installed."""
    found: dict[str, str | None] = {"fastdiff": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def extension() -> str | None:
    """The instruction set that the C++ kernels use, from "generic" to "avx512amx"; None where they are not built."""
    from fastdiff import ops

    if not ops.has_extension():
        return None
    name: str = importlib.import_module("fastdiff._C").cpu_isa()
    return name


def machine() -> dict[str, Any]:
    """Processor, the threads in use, memory in bytes, the system, and the GPUs by name."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "gpus": gpus,
        "extension": extension(),
    }


def installed_in() -> str:
    """The package's folder, and whether it is a checkout that is worked on."""
    folder = Path(__file__).parents[1]
    return f"{folder}{', a checkout' if (folder.parent / 'setup.py').is_file() else ''}"


def settings() -> dict[str, str]:
    """The environment's variables that change what runs; of a key, only that it is set."""
    names = [name for name in os.environ if name.startswith("FASTDIFF_") or name in _SETTINGS]
    return {name: "(set)" if "KEY" in name or "TOKEN" in name else os.environ[name] for name in sorted(names)}


def torch_report() -> str:
    """What PyTorch gathers for its own bug reports, in some seconds: builds, CUDA, compilers, packages."""
    from torch.utils import collect_env

    return str(collect_env.get_pretty_env_info())


def resolve_device(name: str) -> str:
    """The device that a user named; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: an unknown name, or a GPU where there is none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"unknown {spelt('device')} {name!r}: known are auto, cpu, cuda and cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{spelt('device')} {name!r} was asked for, but PyTorch finds no GPU: use cpu")
    return name


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
