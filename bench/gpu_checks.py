"""The GPU suite's sections that are programs of their own: the build, the tests, a checker of memory."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpu_section import start_warmers
from gpu_sections import ROOT
from gpu_tasks import Context, Row, Task, not_run

CUDA_LIBRARY = ROOT / "fastdiff" / "_cuda.so"
# A worker of xdist holds a context of its own on the GPU.
MOST_WORKERS = 12
SANITIZER_ERROR = 86


def build(context: Context) -> Iterator[Task]:
    """csrc/cuda, and, beside it, the kernels of the next section."""
    # Both take the CPU's time alone, so at once.
    begun = time.monotonic()
    count = max(1, min(8, (os.cpu_count() or 2) - 2))
    warmers = start_warmers(context, "smoke", count, context.left - 3) if context.on_gpu else []
    yield Task("csrc/cuda by nvcc", _cuda_library if context.on_gpu else lambda: not_run("it is for a GPU"))
    yield Task("smoke's kernels by Triton", partial(_warmed, context, warmers, begun))
    yield Task("the C++ extension", _extension)


def _cuda_library() -> Row:
    folder = ROOT / "csrc" / "cuda"
    if not (folder / "nvcc.py").exists():
        return not_run("this version has no csrc/cuda")
    spec = importlib.util.spec_from_file_location("nvcc", folder / "nvcc.py")
    assert spec is not None
    assert spec.loader is not None
    nvcc: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nvcc)
    sources = [*folder.iterdir(), *(ROOT / "csrc" / "include").glob("*.h")]
    if CUDA_LIBRARY.exists() and CUDA_LIBRARY.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return {"gate": "passed", "note": "there already"}
    compiler = nvcc.find()
    if compiler is None:
        return not_run("nvcc was not found: rows are launched from Python one by one")
    # Not in place at once: a killed compiler leaves half a library.
    new = CUDA_LIBRARY.with_suffix(".new")
    done = subprocess.run(nvcc.command(compiler, new), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    print(done.stdout.decode(errors="replace"), flush=True)
    if done.returncode:
        return {"gate": "failed", "reason": f"nvcc ended with status {done.returncode}; see the log"}
    new.replace(CUDA_LIBRARY)
    return {"gate": "passed", "note": f"by {compiler} {nvcc.version(compiler)}"}


def _warmed(context: Context, warmers: list[subprocess.Popen[bytes]], begun: float) -> Row:
    if not warmers:
        return not_run("they are for a GPU")
    for warmer in warmers:
        try:
            warmer.wait(max(0.1, context.left - 2))
        except subprocess.TimeoutExpired:
            warmer.kill()
    bad = [warmer.returncode for warmer in warmers if warmer.wait()]
    seconds = f"{len(warmers)} processes, {time.monotonic() - begun:.1f} s"
    return {"gate": "none", "note": f"{seconds}; {len(bad)} of them did not come to their end" if bad else seconds}


def _extension() -> Row:
    """The GPU needs none of it, so its minutes of compiling are left to who wants it."""
    if importlib.util.find_spec("fastdiff._C") is not None:
        return {"gate": "none", "note": "there already"}
    return not_run("the CPU's ops run by their references; `python setup.py build_ext --inplace` builds it")


def tests(context: Context) -> Iterator[Task]:
    """tests/gpu."""
    yield Task("tests/gpu", partial(_pytest, context, "tests/gpu"))


def interpreter(context: Context) -> Iterator[Task]:
    """tests/kernels/interpreter, which there is compiled."""
    yield Task("tests/kernels/interpreter", partial(_pytest, context, "tests/kernels/interpreter"))


def _pytest(context: Context, where: str) -> Row:
    """The tests of a folder; gpu_test_rows writes each one's row when it has ended."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return not_run(f"{', '.join(missing)} missing")
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    parallel = ["-n", str(workers)] if importlib.util.find_spec("xdist") is not None and context.on_gpu else []
    with tempfile.TemporaryDirectory() as folder:
        # The project's own configuration wants plugins that a bare machine lacks.
        settings = Path(folder) / "pytest.ini"
        settings.write_text(
            f"[pytest]\naddopts = --import-mode=importlib\npythonpath = {ROOT}/tests {ROOT}/bench\n"
            "markers =\n    gpu: needs a CUDA device\n    slow: slow\n    timeout: at most\n"
        )
        flags = ["-q", "-rfE", "--tb=short", "-p", "checkout", "-p", "gpu_test_rows", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *flags, *parallel, "-c", str(settings), f"--rootdir={ROOT}", where]
        # A worker of another run hands on variables that this one would take for its own.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "TRITON_INT"))}
        environment |= {"GPU_SUITE_RECORDS": str(context.records), "GPU_SUITE_SECTION": context.section}
        environment |= {"PYTHONPATH": f"{ROOT / 'bench'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    # No tests collected, without a GPU, is not a fault.
    if done.returncode in (0, 5):
        return {"gate": "none", "note": f"pytest's status {done.returncode}, {len(parallel) and workers} workers"}
    return {"gate": "failed", "reason": f"pytest's status {done.returncode}; see the log"}


def sanitizer(context: Context) -> Iterator[Task]:
    """memcheck on the kernels one by one and on a sampling loop, at the same time."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    reason = "it needs a GPU" if not context.on_gpu else None if program else "compute-sanitizer was not found"
    runs = {} if reason else {name: _start(str(program), flags) for name, flags in RUNS.items()}
    for name in RUNS:
        yield Task(name, lambda name=name: not_run(reason) if reason else _checked(context, *runs[name]))


RUNS = {"memcheck, kernels": [], "memcheck, sampling loop": ["--loop"]}


def _start(program: str, flags: list[str]) -> tuple[subprocess.Popen[bytes], Any]:
    log = tempfile.TemporaryFile()  # noqa: SIM115
    # PyTorch asks for what a card may not have: errors that calls return are its own business.
    command = [program, "--tool", "memcheck", "--report-api-errors", "no", "--launch-timeout", "60"]
    command += ["--error-exitcode", str(SANITIZER_ERROR)]
    command += [sys.executable, "-u", str(ROOT / "bench" / "gpu_smoke.py"), *flags]
    # Each tensor is an allocation of its own, so that a step beyond its end is seen; a capture cannot allocate so.
    environment = os.environ | ({} if flags else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    return process, log


def _checked(context: Context, process: subprocess.Popen[bytes], log: Any) -> Row:
    cut_off = False
    try:
        process.wait(max(0.1, context.left - 2))
    except subprocess.TimeoutExpired:
        cut_off = True
        process.kill()
        process.wait()
    log.seek(0)
    text = log.read().decode(errors="replace")
    print(text, flush=True)
    launched = re.findall(r"^launched (.*)$", text, re.MULTILINE)
    found = re.search(r"ERROR SUMMARY: (\d+) error", text)
    row: Row = {"note": f"{len(launched)} launched: {', '.join(launched) or 'nothing'}"}
    if (found is not None and int(found[1])) or process.returncode == SANITIZER_ERROR:
        first = re.search(r"^=+ (Invalid .*|.*error.*)$", text, re.MULTILINE)
        number = found[1] if found else "some"
        return row | {"gate": "failed", "reason": f"{number} errors: {first[1] if first else 'see the log'}"}
    if cut_off:
        return row | not_run("no error until it was cut off, before its end")
    if process.returncode or found is None:
        return row | {"gate": "error", "reason": f"it ended with status {process.returncode}; see the log"}
    return row | {"gate": "passed"}
