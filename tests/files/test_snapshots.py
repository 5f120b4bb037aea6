"""Tests of fastdiff.files.snapshots."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastdiff.files import snapshots
from fastdiff.files.snapshots import drop_snapshots, list_snapshots, read_snapshot, write_snapshot

TENSORS = {"power:0.05/a": torch.arange(6.0).view(2, 3), "power:0.1/a": torch.ones(2, 3)}


def write(folder: Path, step: int, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    return write_snapshot(folder, tensors, step=step, widths=(0.05, 0.1), since=2, run="abc")


def test_a_snapshot_says_what_it_is_and_holds_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    assert path == tmp_path / "snapshots" / "step_00000007.safetensors"
    found = read_snapshot(path)
    assert (found.step, found.widths, found.since, found.run) == (7, (0.05, 0.1), 2, "abc")
    assert all(torch.equal(found.tensors()[name], value) for name, value in TENSORS.items())
    # As other files: readable by whom the process's mask says.
    assert path.stat().st_mode & 0o777 == 0o666 & ~_mask()
    first = path.read_bytes()
    assert write(tmp_path, 7).read_bytes() == first


def test_later_ones_are_dropped_and_what_a_kill_left(tmp_path: Path) -> None:
    assert list_snapshots(tmp_path) == []
    drop_snapshots(tmp_path, after=3)
    for step in (20, 3, 100):
        write(tmp_path, step)
    partial = tmp_path / "snapshots" / ".step_00000200.safetensors.999999999.0a.partial"
    partial.touch()
    (tmp_path / "snapshots" / "notes.txt").touch()
    assert [step for step, _ in list_snapshots(tmp_path)] == [3, 20, 100]
    drop_snapshots(tmp_path, after=20)
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == [
        "notes.txt",
        "step_00000003.safetensors",
        "step_00000020.safetensors",
    ]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path, 5).read_bytes()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(snapshots, "save_file", full)
    for step in (5, 6):
        with pytest.raises(RuntimeError, match=r"could not write the averages to .*: No space left .*are intact"):
            write(tmp_path, step, {})
    assert [(step, path.read_bytes()) for step, path in list_snapshots(tmp_path)] == [(5, before)]
    assert len(list((tmp_path / "snapshots").iterdir())) == 1


def test_what_is_damaged_or_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its checksum does not fit"):
        read_snapshot(path).tensors()
    path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        read_snapshot(path)
    save_file(TENSORS, path)
    with pytest.raises(ValueError, match="is no snapshot of a training of fastdiff"):
        read_snapshot(path)
    for header in ("[", "{}", '{"step": 1, "widths": 3, "since": 0, "run": "", "checksum": ""}'):
        save_file(TENSORS, path, {"fastdiff": header})
        with pytest.raises(ValueError, match=r"step_00000005\.safetensors"):
            read_snapshot(path)
    path.unlink()
    with pytest.raises(ValueError, match="cannot read"):
        read_snapshot(path)


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
