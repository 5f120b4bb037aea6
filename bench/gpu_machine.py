"""What a figure means nothing without: card, driver, clocks, versions, commit. Asked of nvidia-smi, never of CUDA."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from gpu_sections import ROOT

PACKAGES = ("torch", "triton", "diffusers", "numpy", "pytest", "pytest-xdist", "ninja")
FACTS = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.mem", "ecc.mode.current")
CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
EACH_MS = 500


def card() -> str | None:
    """The name of the first GPU, or None."""
    return _query(("name",)).get("name")


def about(is_dry: bool) -> dict[str, Any]:
    """The machine as a record."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    nvcc = _output(["nvcc", "--version"]) or ""
    found = re.search(r"release ([\d.]+), V([\d.]+)", nvcc)
    versions["nvcc"] = found[2] if found else None
    return {
        "device": None if is_dry else card(),
        "facts": {} if is_dry else _query(FACTS),
        "clocks_before": {} if is_dry else _query(CLOCKS),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": versions,
        "commit": _output(["git", "-c", "safe.directory=*", "-C", str(ROOT), "describe", "--always", "--dirty"]),
        # A copy without its history is known by these.
        "sources": sources(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def sources() -> str:
    """A hash of what is measured: the files of the package, the kernels and csrc."""
    found = hashlib.sha256()
    kinds = (".py", ".cpp", ".h", ".inl", ".cu")
    folders = (ROOT / "fastdiff", ROOT / "kernels", ROOT / "csrc")
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in kinds):
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


class ClockWatch:
    """The card's clocks while the suite runs, from an nvidia-smi beside it; without one there is nothing to tell."""

    def __init__(self) -> None:
        # Written and read by two descriptions of one file, whose places are each their own.
        self._written = tempfile.NamedTemporaryFile(mode="ab")  # noqa: SIM115
        self._read = Path(self._written.name).open("rb")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        if (program := shutil.which("nvidia-smi")) is not None:
            command = [program, f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits", "-i", "0"]
            self._process = subprocess.Popen(
                [*command, "-lms", str(EACH_MS)],
                stdin=subprocess.DEVNULL,
                stdout=self._written,
                stderr=subprocess.DEVNULL,
            )

    @property
    def number(self) -> int:
        """Of its process; -1 without one."""
        return -1 if self._process is None else self._process.pid

    def since_last(self) -> dict[str, list[float]]:
        """Of each clock the lowest and the highest value while the GPU worked, since this was asked last."""
        rows = []
        for line in self._read.read().decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                rows.append([float(cell) for cell in line.split(",")])
        rows = [row for row in rows if len(row) == len(CLOCKS) and row[CLOCKS.index("utilization.gpu")] > 0]
        return {name: [min(column), max(column)] for name, column in zip(CLOCKS, zip(*rows, strict=True), strict=False)}

    def close(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._read.close()
        self._written.close()


def _query(names: tuple[str, ...]) -> dict[str, str]:
    said = _output(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "-i", "0"])
    cells = [cell.strip() for cell in (said or "").split(",")]
    return dict(zip(names, cells, strict=True)) if len(cells) == len(names) and said else {}


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
