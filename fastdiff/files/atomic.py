"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "NO_LOCKS",
    "atomic_file",
    "atomic_folder",
    "atomic_path",
    "delete_folder",
    "partial_of",
    "remove_stale",
    "target_path",
    "write_text",
]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without flock say."""
# What file systems without hard links say.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)

_PARTIAL = re.compile(r"\.(?P<name>.+?)\.(?P<process>\d+)(?:\.[0-9a-f]+)?\.partial")


def target_path(path: str | Path, suffix: str) -> Path:
    """`path`, once it is known to be writable as a file: right suffix, no folder in its place, parents made."""
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path}: the name must end in {suffix}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{path.parent}: cannot be made a folder, a file is in the way") from error
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path, *, sync: bool = False, exclusive: bool = False) -> Iterator[Path]:
    """An empty file beside `path`, under a name that nobody can guess, moved there when the block ends well.

    What lies at `path`, a link for example, is replaced and not written to.

    Args:
        path: Where the file is to appear; its folder is made.
        sync: Have the file on the disk before it appears.
        exclusive: Replace nothing. Where the file system has no second names for a file, it is replaced all the same.

    Raises:
        FileExistsError: something lies at `path`, and `exclusive` is set.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_name(target)
    # Nothing that lies there already, a link least of all, is opened.
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield partial
        if sync:
            _sync(partial)
        if not (exclusive and _linked(partial, target)):
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    if sync:
        _sync(target.parent)


@contextlib.contextmanager
def atomic_file(path: str | Path, *, sync: bool = False, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which appears at `path` when the block ends without an error; see `atomic_path`."""
    with atomic_path(path, sync=sync, exclusive=exclusive) as partial, partial.open("r+b") as file:
        yield file


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file (UTF-8), whole or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode())
    return Path(path)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which is synced and appears as `folder` when the block ends without an error.

    A kill leaves a folder that `remove_stale` finds.

    Raises:
        OSError: `folder` exists and is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent, glob.escape(folder.name))
    partial = _partial_name(folder)
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            _sync(path)
        _sync(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(folder.parent)


def delete_folder(folder: Path) -> None:
    """Rename, then delete, so that no part of a folder is ever seen under its name."""
    partial = _partial_name(folder)
    folder.rename(partial)
    shutil.rmtree(partial)


def partial_of(name: str) -> str | None:
    """The file or folder that a name of `atomic_path` or `atomic_folder` is a part of; None for other names."""
    found = _PARTIAL.fullmatch(name)
    return None if found is None else found["name"]


def remove_stale(parent: Path, pattern: str) -> None:
    """Delete what a killed process left of files and folders of these names."""
    for path in parent.glob(f".{pattern}.*.partial"):
        found = _PARTIAL.fullmatch(path.name)
        if found is None:
            continue
        process = int(found["process"])
        if path.is_dir() and not path.is_symlink():
            # A folder of this very process is an earlier one's, of the same number.
            if process == os.getpid() or not _is_running(process):
                shutil.rmtree(path, ignore_errors=True)
        elif not _is_running(process):
            path.unlink(missing_ok=True)


def _partial_name(path: Path) -> Path:
    """A name beside `path` that says whose it is, and that nobody can have guessed."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(16)}.partial")


def _linked(partial: Path, target: Path) -> bool:
    """Give a file its second name, which nothing may have; False where the file system has none."""
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
