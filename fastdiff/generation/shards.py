"""Which part of a job is a process's own: given, or read from what started it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown, whole_number

__all__ = ["Shard"]

# Names of a process's number and of the number of processes, by what sets them.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE"),
    "a Slurm array": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    "a Kubernetes job": ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
}
# A Slurm array may begin at any number.
_SLURM_FIRST = "SLURM_ARRAY_TASK_MIN"
# Slurm does not say the step of an array; it says its last number.
_SLURM_LAST = "SLURM_ARRAY_TASK_MAX"


@dataclass(frozen=True)
class Shard:
    """One of `count` processes that share a job: part k is its own where k mod count = index.

    Attributes:
        index: In [0, count).
        count: Processes in all.

    Raises:
        ValueError: a number is out of range.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        count = whole_number("the number of shards", self.count, low=1, strict=True)
        whole_number("the shard", self.index, low=0, high=count - 1, strict=True)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, part: int) -> bool:
        """Whether a part is this process's."""
        return part % self.count == self.index

    @classmethod
    def parse(cls, text: str) -> Self:
        """A shard as it is typed: 0/4 to 3/4.

        Raises:
            ValueError: other text, or numbers out of range.
        """
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise ValueError(f"{spelt('shard')} is i/n with i from 0 to n - 1, such as 0/4, got {shown(text)}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """The shard that torchrun, a Slurm array or a Kubernetes job names; all of the job where none does.

        Args:
            environment: Variables by name; the process's own when None.

        Raises:
            ValueError: a variable is not a number or out of range, or the number of processes is not said.
        """
        values = os.environ if environment is None else environment
        for launcher, (index, count) in LAUNCHERS.items():
            if index not in values:
                continue
            if count not in values:
                if index == "RANK":
                    continue
                raise ValueError(
                    f"{index} is set, as by {launcher}, but {count} is not: set it to the number of processes, or say "
                    "which shard this is, such as 0/4"
                )
            first = int(values.get(_SLURM_FIRST, "0")) if index.startswith("SLURM") else 0
            try:
                number, total = int(values[index]) - first, int(values[count])
                if index.startswith("SLURM") and int(values.get(_SLURM_LAST, first + total - 1)) != first + total - 1:
                    raise ValueError("a step other than 1")
                return cls(number, total)
            except ValueError as error:
                raise ValueError(
                    f"{index}={shown(values[index])} and {count}={shown(values[count])}, as set by {launcher}, are no "
                    f"shard ({error}): say which it is, such as 0/4"
                ) from error
        return cls()
