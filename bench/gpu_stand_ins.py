"""Sections of the GPU suite for a dry run without a GPU and without torch, and what can go wrong with one.

    python bench/gpu_suite.py --dry-run --fault loop=hang

shows what is left of the results of a run whose section `loop` hangs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from gpu_tasks import Context, Row, Task

FAULTS = ("hang", "stubborn", "orphan", "exit", "silent", "segfault", "raise", "build", "half", "gate")
# Those that last until somebody ends them.
HANGING = ("hang", "stubborn")
# A process that no polite signal ends.
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
time.sleep(60)
"""


def tasks(context: Context) -> Iterator[Task]:
    """Three rows; the second has the fault, if there is one."""
    fault = context.settings["fault"]
    if fault == "build":
        raise RuntimeError("a section that fails before its first row")
    yield Task("first", row)
    yield Task("second", (lambda: misbehave(context, fault)) if fault else row)
    yield Task("third", row)


def row() -> Row:
    """As a measured one looks."""
    return {
        "gate": "passed",
        "us": {"fastdiff": 1.0, "torch": 2.0},
        "least_us": {"fastdiff": 0.9, "torch": 1.9},
        "times_faster_than": {"torch": 2.0},
    }


def misbehave(context: Context, fault: str) -> Row:
    """Do what `fault` names."""
    if fault == "hang":
        time.sleep(60)
    if fault in ("stubborn", "orphan"):
        # The first in this group, the second in a session of its own, where the group's end does not reach it.
        child = subprocess.Popen(
            [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=fault == "orphan"
        )
        assert child.stdout is not None
        child.stdout.readline()
        print(f"left behind: {child.pid}", flush=True)
        if fault == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
    if fault == "exit":
        os._exit(3)
    if fault == "silent":
        os._exit(0)
    if fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "half":
        with context.records.open("ab", buffering=0) as file:
            file.write(b'{"section": "half a li')
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raise":
        raise ValueError("a row that raises")
    return {"gate": "failed", "errors": {"fastdiff": 1.0}, "limit": 0.1} if fault == "gate" else row()
