"""What a section of the GPU suite consists of: tasks that give a row each, and what they are told of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_records

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A part of a section.

    Attributes:
        name: What the report calls it until its row does.
        run: Gives its row ("gate" and what was found), or several.
        seconds: Of the section's time at least so much must be left, or it is not run.
        warm: Compiles what `run` needs; done before, by several processes at a time. None for nothing.
    """

    name: str
    run: Callable[[], Row | list[Row]]
    seconds: float = 0.0
    warm: Callable[[], object] | None = None


@dataclass
class Context:
    """What a section is told.

    Attributes:
        section: Its name.
        records: The file of results.
        end: When it is killed, by `time.monotonic`.
        device: "cuda" or "cpu".
        quick: Small shapes and few rounds, to see that it runs.
        settings: What else a section's own command line says.
    """

    section: str
    records: Path
    end: float
    device: str = "cuda"
    quick: bool = False
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    @property
    def on_gpu(self) -> bool:
        """Whether it measures a GPU."""
        return self.device == "cuda"

    @property
    def rounds(self) -> int:
        """How often each arm is timed."""
        return 3 if self.quick else 15

    def write(self, name: str, row: Row) -> None:
        """Write a row."""
        gpu_records.append(self.records, {"section": self.section, "name": name, **row})

    def begin(self, name: str) -> None:
        """Write which row comes, so that the report can name the one that a killed section was at."""
        gpu_records.append(self.records, {"section": self.section, "begin": name})


def not_run(reason: str) -> Row:
    """The row of what was left out."""
    return {"gate": "not run", "reason": reason}


def not_run_all(names: Iterable[str], reason: str) -> list[Row]:
    """Rows of what was left out."""
    return [{"name": name, **not_run(reason)} for name in names]
