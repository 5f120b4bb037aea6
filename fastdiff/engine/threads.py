"""How many processors this process may use, and a word where its threads would wait for each other."""

from __future__ import annotations

import functools
import logging
import math
import os
from pathlib import Path

import torch

__all__ = ["available_cpus", "check_threads", "cpu_quota", "stay_within_quota"]

_LOG = logging.getLogger("fastdiff")
_CGROUPS = Path("/sys/fs/cgroup")


def cpu_quota(root: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors' worth of time that the control groups of this process grant it; None where they set no limit.

    Args:
        root: Where control groups are mounted.
        membership: The file that says which groups the process is in.

    Source: the Linux kernel's documentation, admin-guide/cgroup-v2 (`cpu.max`) and scheduler/sched-bwc (version 1).
    """
    try:
        lines = [line for line in membership.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        lines = []
    limits = []
    for line in lines or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        base = root / "cpu" if "cpu" in controllers.split(",") else root
        # The tightest of a group and those around it holds. Inside a container the path may be the host's.
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(base):
                break
            limits.append(_quota_in(folder))
    found = [limit for limit in limits if limit is not None]
    return min(found) if found else None


def _quota_in(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        # No such file, or "max".
        return None


@functools.cache
def available_cpus() -> int:
    """Processors that this process may use: those it is bound to, and no more than its control groups grant."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def stay_within_quota() -> None:
    """Take no more threads than the control groups grant processors, where they set a limit."""
    quota = cpu_quota()
    if quota is not None and math.ceil(quota) < torch.get_num_threads():
        torch.set_num_threads(max(1, math.ceil(quota)))


@functools.cache
def check_threads() -> None:
    """Log once, under "fastdiff", where PyTorch's threads are more than the processors that they would find.

    A thread that waits for another in a parallel loop holds its processor while it does, so that two such processes
    on the same processors take many times as long as one after the other. See docs/deployment.md.
    """
    threads, cpus = torch.get_num_threads(), available_cpus()
    advice = "call torch.set_num_threads, set OMP_NUM_THREADS, or give --threads"
    if threads > cpus:
        _LOG.warning("%d threads on %d processors wait for each other: %s %d", threads, cpus, advice, cpus)
        return
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > 1 and load >= 2 * cpus:
        _LOG.warning(
            "other processes keep this machine busy (a load of %.1f on %d processors), where %d threads may take many "
            "times as long as one: %s 1, or set OMP_WAIT_POLICY=passive",
            load, cpus, threads, advice,
        )  # fmt: skip
