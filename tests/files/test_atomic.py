"""Files and folders that appear whole or not at all, whatever happens while they are written."""

import contextlib
import errno
import os
import subprocess
import sys

import pytest

from fastdiff.files import atomic


def test_target_path_makes_parents_and_refuses_what_is_in_the_way(tmp_path):
    path = atomic.target_path(tmp_path / "new" / "deep" / "a.PNG", ".png")
    assert path.parent.is_dir()
    assert not path.exists()
    with pytest.raises(ValueError, match=r"a\.jpg: the name must end in \.png"):
        atomic.target_path(tmp_path / "a.jpg", ".png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ValueError, match=r"b\.png: is a folder, expected a file name"):
        atomic.target_path(tmp_path / "b.png", ".png")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="a file is in the way"):
        atomic.target_path(tmp_path / "file" / "a.png", ".png")


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_seen_when_it_is_whole(tmp_path, sync):
    path = tmp_path / "folder" / "a.txt"
    with atomic.atomic_file(path, sync=sync) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    path = atomic.write_text(tmp_path / "a.txt", "old ü")
    assert path.read_text(encoding="utf-8") == "old ü"

    def fail_half_way():
        with atomic.atomic_file(path) as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert path.read_text(encoding="utf-8") == "old ü"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere")
    atomic.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "elsewhere").read_text() == "kept"
    assert not (tmp_path / "a.txt").is_symlink()


def test_a_folder_is_seen_when_it_is_whole(tmp_path):
    folder = tmp_path / "runs" / "one"
    with atomic.atomic_folder(folder) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a").write_text("x")
        assert not folder.exists()
        assert partial.parent == folder.parent
    assert (folder / "inner" / "a").read_text() == "x"
    assert os.listdir(folder.parent) == ["one"]


def test_a_folder_that_fails_or_is_taken_leaves_nothing(tmp_path):
    def fill(name, error=None):
        with atomic.atomic_folder(tmp_path / name) as partial:
            (partial / "a").write_text("x")
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        fill("one", KeyboardInterrupt)
    assert os.listdir(tmp_path) == []
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine").write_text("x")
    with pytest.raises(OSError, match="two"):
        fill("two")
    assert os.listdir(tmp_path) == ["two"]
    assert os.listdir(tmp_path / "two") == ["mine"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    dead, living = (f".run.{pid}.0123abcd.partial" for pid in (finished.pid, os.getppid()))
    foreign = ".other.1.0123abcd.partial"
    for name in (dead, living, foreign):
        (tmp_path / name).mkdir()
    atomic.remove_stale(tmp_path, "run")
    assert sorted(os.listdir(tmp_path)) == sorted([living, foreign])
    # A pattern's own letters are no pattern in a folder's name.
    with atomic.atomic_folder(tmp_path / "[x]"):
        pass
    assert (tmp_path / "[x]").is_dir()


def test_a_deleted_folder_is_gone(tmp_path):
    with atomic.atomic_folder(tmp_path / "one") as partial:
        (partial / "a").write_text("x")
    atomic.delete_folder(tmp_path / "one")
    assert os.listdir(tmp_path) == []


def test_an_exclusive_file_replaces_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a"
    for text, replaces in (("first", True), ("second", False)):
        with contextlib.ExitStack() as stack:
            if not replaces:
                stack.enter_context(pytest.raises(FileExistsError))
            with atomic.atomic_file(path, exclusive=True) as file:
                file.write(text.encode())
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]

    def refuses(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr("os.link", refuses)
    with atomic.atomic_file(path, exclusive=True) as file:
        file.write(b"third")
    assert path.read_text() == "third"
