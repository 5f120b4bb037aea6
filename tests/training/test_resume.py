"""What the checkpoints of a training hold. Resumed runs: test_trainer.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.training.resume import Parts, compared, machine_notes, processes_notes
from fastdiff.training.trainer import Trainer
from support.training_runs import SIMPLE, trainer


def parts_of(subject: Trainer) -> Parts:
    return subject._parts


def test_parts_are_taken_over_as_they_were(tmp_path: Path) -> None:
    subject = trainer(tmp_path / "a")
    checkpoint = subject.run(until=2).checkpoint
    other = trainer(tmp_path / "b")
    parts_of(other).load(checkpoint)
    expected, found = parts_of(subject).tensors(), parts_of(other).tensors()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    live = list(parts_of(other).live())
    # Weights, two moments and a step of each parameter, and its average.
    assert len(live) == 5 * len(list(other.unet.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(live, parts_of(subject).live(), strict=True))


def test_parts_are_live_before_the_first_step(tmp_path: Path) -> None:
    live = list(parts_of(trainer(tmp_path)).live())
    assert sum(int(tensor.abs().sum() == 0) for tensor in live) >= len(live) // 2


def test_a_trial_is_read_again_and_removed(tmp_path: Path) -> None:
    subject = trainer(tmp_path)
    written: list[Path] = []

    def save_to(folder: Path) -> Path:
        written.append(subject._save_to(folder))
        return written[-1]

    parts_of(subject).check_written(save_to, tmp_path)
    assert written[0].parent.parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []

    def damage(folder: Path) -> Path:
        checkpoint = subject._save_to(folder)
        with torch.no_grad():
            subject.unet.conv_out.bias.add_(1)
        return checkpoint

    with pytest.raises(RuntimeError, match=r"otherwise than it was written \(raw\.conv_out\.bias\).*another folder"):
        parts_of(subject).check_written(damage, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_long_stretch_begins_with_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []
    monkeypatch.setattr(Parts, "check_written", lambda parts, save_to, folder: tried.append(folder))
    for steps, every in ((100, 99), (99, 100)):
        trainer(tmp_path / f"{steps}", steps=steps, checkpoint_every=every).run(until=1)
    trainer(tmp_path / "cut", steps=1000, checkpoint_every=1000).run(until=1)
    assert tried == []

    class Enough(Exception):
        pass

    def stop(step: int) -> None:
        raise Enough

    for _ in range(2):
        with pytest.raises(Enough):
            trainer(tmp_path / "long", steps=100, checkpoint_every=100).run(on_step=stop)
    assert tried == [tmp_path / "long"] * 2


def test_the_past_is_read(tmp_path: Path) -> None:
    subject = trainer(tmp_path)
    checkpoint = subject.run(until=2).checkpoint
    past = compared(checkpoint, subject._described(), SIMPLE)
    assert (past.step, past.changes, past.history, past.processes) == (2, {}, [], 1)
    saved: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    saved["training"] |= {"processes": 3}
    (checkpoint / "config.json").write_text(json.dumps(saved))
    assert compared(checkpoint, subject._described(), SIMPLE).processes == 3
    shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match="cannot read"):
        compared(checkpoint, subject._described(), SIMPLE)


def test_other_numbers_of_processes_and_machines_are_said() -> None:
    assert processes_notes(2, 2) == ()
    (note,) = processes_notes(2, 1)
    assert note.startswith("the checkpoint was written by 2 processes and 1 go on: they draw the same, but")
    assert machine_notes({}, own_sums=True) == ()
    assert machine_notes({"threads": "99"}, own_sums=True) == ()
    assert "threads 99, now" in machine_notes({"threads": "99"}, own_sums=False)[0]
