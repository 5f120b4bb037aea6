"""The GPU suite's results as lines of JSON, written as they come: by the sections, and by who runs them.

A file has a line about the machine, lines of rows as they are found, and a line per section once it has ended. A writer
may be killed at any time, so a line is written at once and whole, and half a line is passed over.

Nothing here or in gpu_suite.py imports torch: what runs the sections must outlive whatever a GPU does to them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# A row's gate: what it was held to, and what came of it. "none": there is nothing to hold it to.
GATES = ("passed", "failed", "error", "not run", "none")
BAD_GATES = ("failed", "error")
# A section's end. "not run" has a reason, "cut off" the seconds, "died" an exit status or a signal.
BAD_ENDS = ("cut off", "died", "raised")


def append(path: Path, record: dict[str, Any]) -> None:
    """Write a record as one line, at once."""
    line = json.dumps(_finite(record), default=str, allow_nan=False) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    """The same, with what JSON has no number for as words."""
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def mend(path: Path) -> None:
    """End a line that a killed writer has left half, so that the next begins a line."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole records of a file; none where there is no file."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def rows_of(records: Iterable[dict[str, Any]], section: str) -> list[dict[str, Any]]:
    """The rows of a section."""
    return [record for record in records if record.get("section") == section and record.get("gate") in GATES]


def begun_last(records: Iterable[dict[str, Any]], section: str) -> str | None:
    """The row that a section had begun and not ended."""
    last = None
    for record in records:
        if record.get("section") == section:
            if "begin" in record:
                last = record["begin"]
            elif "gate" in record:
                last = None
    return last


def count(rows: list[dict[str, Any]]) -> str:
    """Rows by gate, in words."""
    kinds = [row["gate"] for row in rows]
    words = {"none": "without a gate", "error": "with an error"}
    return ", ".join(f"{kinds.count(kind)} {words.get(kind, kind)}" for kind in GATES if kind in kinds) or "no rows"


def is_good(section: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether a section came to its end, if it had to, and no row of it failed."""
    allowed = "cut off" if section.get("may_be_cut_off") else "done"
    ended = not section["status"].startswith(BAD_ENDS) or section["status"].startswith(allowed)
    return ended and all(row["gate"] not in BAD_GATES for row in rows)


def bad_sections(records: list[dict[str, Any]]) -> list[str]:
    """The names of the sections that were not as they should be."""
    ends = [record for record in records if "ended" in record]
    return [end["ended"] for end in ends if not is_good(end, rows_of(records, end["ended"]))]
