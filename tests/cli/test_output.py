"""Where a command writes to."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.cli.output import RECORD_FILE, ImageFolder, Parts, check_free, check_holds, check_writable

ABOUT = {"seed": 0, "shape": [1, 4, 4]}


def images(num=1):
    return torch.rand(num, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_name_is_free_or_refused(tmp_path):
    check_free(tmp_path / "new" / "X.PNG", (".png",))
    (tmp_path / "a.png").touch()
    check_free(tmp_path / "a.png", (".png",), overwrite=True)
    for path, expected in ((tmp_path / "a.png", "exists already"), (tmp_path / "x.jpg", "takes a .png or a .npz")):
        with pytest.raises(ValueError, match=expected):
            check_free(path, (".png", ".npz"))
    with pytest.raises(ValueError, match="is a folder"):
        check_free(tmp_path.rename(tmp_path.with_suffix(".png")), (".png",), overwrite=True)


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    with pytest.raises(ValueError, match="cannot write to /proc/nowhere"):
        check_writable(Path("/proc/nowhere"))


@pytest.mark.parametrize("suffix", [".png", ".npz", ".npy"])
def test_formats_hold_what_they_hold(suffix):
    for channels, levels in ((1, 17), (3, 256), (3, None), (4, 256)):
        check_holds(suffix, channels, levels)
    # Neither a picture of 2 channels, nor 257 values in 8 bits.
    for channels, levels, fit in ((2, None, (".npz", ".npy")), (1, 257, (".npy",))):
        if suffix in fit:
            check_holds(suffix, channels, levels)
            continue
        with pytest.raises(ValueError, match=f"a {suffix} holds"):
            check_holds(suffix, channels, levels)


def test_a_folder_says_what_is_missing(tmp_path):
    folder = ImageFolder(tmp_path / "new", ABOUT)
    assert folder.missing([3, 4, 1_000_000]) == [0, 1, 2]
    folder.write(images(2), [4, 1_000_000])
    assert folder.missing([3, 4, 1_000_000]) == [0]
    assert ImageFolder(tmp_path / "new", ABOUT).missing([3, 4]) == [0]
    with Image.open(tmp_path / "new" / "1000000.png") as picture:
        assert np.asarray(picture).shape == (4, 4)


@pytest.mark.parametrize("record", [b"", b"{", b"[" * 100_000, b"\xff", b'{"seed": 1}'], ids=repr)
def test_a_folder_whose_record_is_another_or_damaged_is_refused(tmp_path, record):
    ImageFolder(tmp_path / "x", ABOUT).write(images(), [0])
    (tmp_path / "x" / RECORD_FILE).write_bytes(record)
    with pytest.raises(ValueError, match="are not samples of this model with these settings"):
        ImageFolder(tmp_path / "x", ABOUT)
    assert ImageFolder(tmp_path / "x", ABOUT, overwrite=True).missing([0]) == [0]
    assert [path.name for path in (tmp_path / "x").iterdir()] == [RECORD_FILE]


def test_only_files_of_processes_that_are_no_more_are_removed(tmp_path):
    ImageFolder(tmp_path, ABOUT)
    gone = tmp_path / f".000000.png.{2**22 + 1}.0011.partial"
    running = tmp_path / f".000000.png.{os.getpid()}.0011.partial"
    for path in (gone, running):
        path.touch()
    ImageFolder(tmp_path, ABOUT)
    assert running.exists()
    assert not gone.exists()


def test_what_a_killed_command_left_of_a_file_is_removed(tmp_path):
    gone = [f".x.npz.{2**22 + 1}.0011.partial"]
    kept = [f".x.npz.{os.getpid()}.0011.partial", f".y.npz.{2**22 + 1}.0011.partial", "x.npz", ".x.npz.partial"]
    for name in gone + kept:
        (tmp_path / name).touch()
    check_writable(tmp_path, "x.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_parts_of_a_file_come_back_in_order(tmp_path):
    parts = Parts(tmp_path / "x.npy", ABOUT, (1, 4, 4))
    assert parts.missing([5, 6]) == [0, 1]
    whole = images(6)
    parts.write(whole[[0, 1, 4]], [10, 11, 14])
    again = Parts(tmp_path / "x.npy", ABOUT, (1, 4, 4))
    assert again.missing(range(10, 16)) == [2, 3, 5]
    assert torch.equal(again.read(range(10, 16), whole[[2, 3, 5]]), whole)
    assert torch.equal(again.read([11, 10], None), whole[[1, 0]])
    other = Parts(tmp_path / "x.npy", ABOUT | {"seed": 1}, (1, 4, 4))
    assert other.missing([10]) == [0]
    other.delete()
    assert list(tmp_path.iterdir()) == []
