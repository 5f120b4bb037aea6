"""One process at a time fills a cache."""

import fcntl
from pathlib import Path

import pytest

from fastdiff.data.locks import cache_lock


def test_lock_is_held_and_let_go_of(tmp_path: Path) -> None:
    with cache_lock(tmp_path / "new"), (tmp_path / "new/.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "new/.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_lock_says_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: cannot be used as a cache"), cache_lock(tmp_path / "file"):
        pass
