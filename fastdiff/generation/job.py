"""What a job is: the ids, cut into parts of one size, and everything that decides their bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastdiff.files.atomic import atomic_file
from fastdiff.process.checks import shown, whole_number

__all__ = ["MANIFEST", "Job", "Part", "checksum"]

MANIFEST = "manifest.json"
FORMAT = "fastdiff-job"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Part:
    """Some consecutive ids of a job.

    Attributes:
        number: From 0.
        first: Its first id, counted from 0 within the job.
        num: How many.
    """

    number: int
    first: int
    num: int

    @property
    def ids(self) -> range:
        """Its ids."""
        return range(self.first, self.first + self.num)

    @property
    def name(self) -> str:
        """Of its files, without suffix."""
        return f"part-{self.number:06d}"


@dataclass(frozen=True)
class Job:
    """A job, as its folder's manifest says it.

    Attributes:
        kind: "generate" or "score".
        about: What decides the bytes of a part besides its ids, as plain values.
        num: How many ids.
        part_size: Ids of a part; the last has what is left.
        versions: Of what began it; for people.

    Raises:
        ValueError: num or part_size below 1.
    """

    kind: str
    about: dict[str, Any]
    num: int
    part_size: int
    versions: dict[str, str]

    def __post_init__(self) -> None:
        whole_number("num", self.num, low=1, strict=True)
        whole_number("part_size", self.part_size, low=1, strict=True)

    def __len__(self) -> int:
        """The number of parts."""
        return -(-self.num // self.part_size)

    def part(self, number: int) -> Part:
        """Part `number`, from 0."""
        first = number * self.part_size
        return Part(number, first, min(self.part_size, self.num - first))

    def parts(self) -> Iterator[Part]:
        """All parts, in order."""
        return map(self.part, range(len(self)))

    def begin(self, folder: Path) -> Self:
        """Write the manifest into a job's folder, or find that it is there already.

        A folder of the same job is gone on with; with more ids than before, it grows.

        Args:
            folder: Made where it does not exist.

        Returns:
            The job.

        Raises:
            ValueError: the folder is of another job, or of a larger one; or it holds something else.
            OSError: it cannot be written to.
        """
        path = folder / MANIFEST
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            strange = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))[:1]
            # Another process may begin a job here at this moment.
            if strange and not path.is_file():
                raise ValueError(f"{folder} holds {shown(strange[0])} and no {MANIFEST}: give an empty folder")
            with contextlib.suppress(FileExistsError):
                self._write(path, exclusive=True)
                return self
        there = type(self).read(folder)
        lines = _differences(there._identity(), self._identity())
        if lines:
            listed = "; ".join(lines)
            raise ValueError(f"{folder} is of another job ({listed}): give what it was begun with, or another folder")
        if there.num > self.num:
            raise ValueError(f"{folder} is of {there.num:,} images: give that number or more, got {self.num:,}")
        if there.num < self.num:
            self._write(path)
        return self

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The job of a folder.

        Raises:
            ValueError: there is no manifest, or it is damaged or of another version.
        """
        path = Path(folder) / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"{folder} is no job's folder: it has no {MANIFEST}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f'{path} was not written by fastdiff: it has no "format": "{FORMAT}"')
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {shown(values.get('format_version'))}, and this fastdiff reads "
                f"{FORMAT_VERSION}: use the fastdiff that wrote it"
            )
        try:
            return cls(values["kind"], values["about"], values["num"], values["part_size"], values["versions"])
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def _identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "part_size": self.part_size, **self.about}

    def _write(self, path: Path, *, exclusive: bool = False) -> None:
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": self.kind, "num": self.num}
        values |= {"part_size": self.part_size, "about": self.about, "versions": self.versions}
        with atomic_file(path, sync=True, exclusive=exclusive) as file:
            file.write((json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's files in the order of their names."""
    digest = hashlib.sha256()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            continue
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not the same, a line each."""
    lines = []
    for key in [*now, *(key for key in then if key not in now)]:
        before, after = then.get(key), now.get(key)
        if before != after:
            long = max(len(json.dumps(before)), len(json.dumps(after))) > 60
            lines.append(f"{key} is another" if long else f"{key}: {before!r} in the folder, {after!r} now")
    return lines
