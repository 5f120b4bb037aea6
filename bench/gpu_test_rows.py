"""A plugin of pytest (`-p gpu_test_rows`): each test's row in the GPU suite's results, as soon as it has ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gpu_records


def pytest_runtest_logreport(report: Any) -> None:
    """Write the row of a test's call, or of what kept it from being called; a worker of xdist leaves it to its head."""
    place = os.environ.get("GPU_SUITE_RECORDS")
    if place is None or "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.outcome == "passed"):
        return
    gates = {"passed": "passed", "failed": "failed", "skipped": "not run"}
    row = {"name": report.nodeid, "kind": "test", "gate": gates[report.outcome], "seconds": round(report.duration, 2)}
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        row["reason"] = str(report.longrepr[2]).removeprefix("Skipped: ")
    elif report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        row["reason"] = (str(crash.message).splitlines() or [""])[0][:300] if crash is not None else "see the log"
    gpu_records.append(Path(place), {"section": os.environ.get("GPU_SUITE_SECTION", ""), **row})
