"""Tests of fastdiff.training.resume: checkpoints of before, what makes a run the same run, and what is in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.files.checkpoint import read_config
from fastdiff.training.config import NEWER, TrainConfig
from fastdiff.training.resume import Parts, compared, identity, machine_notes, processes_notes
from fastdiff.training.trainer import Trainer
from support.training_runs import CONFIG, SIMPLE, digests, trainer


def test_a_checkpoint_without_the_newer_settings_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    whole = trainer(tmp_path / "whole").run()
    described = trainer(tmp_path / "parts").run(until=2).checkpoint / "config.json"
    config = json.loads(described.read_text())
    for name in NEWER:
        del config["training"][name]
    described.write_text(json.dumps(config))
    run = trainer(tmp_path / "parts")
    assert (run.step, run.changes) == (2, {})
    assert digests(run.run().checkpoint) == digests(whole.checkpoint)


def test_settings_of_before_load_and_newer_ones_have_the_defaults_that_they_amounted_to() -> None:
    now = TrainConfig(steps=3).to_dict()
    before = {name: value for name, value in now.items() if name not in NEWER}
    assert TrainConfig.from_dict(before) == TrainConfig(steps=3)
    assert {name: now[name] for name in NEWER} == NEWER


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "longer": ({"steps": 100, "keep": 1, "log_every": 7}, True),
    "snapshots more often": ({"snapshot_every": 3}, True),
    "less memory": ({"activation_checkpointing": True, "micro_batch": 2}, True),
    "another seed": ({"seed": 4}, False),
    "another rate": ({"learning_rate": 1e-3}, False),
    "other widths": ({"power_widths": (0.1, 0.2)}, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_identity_is_of_what_a_run_began_with(tmp_path: Path, name: str) -> None:
    settings, same = CHANGES[name]
    first = read_config(trainer(tmp_path / "first", snapshot_every=2).run(until=1).checkpoint)
    second = read_config(trainer(tmp_path / "second", **{"snapshot_every": 2, **settings}).run(until=1).checkpoint)
    assert (identity(first) == identity(second)) == same


def test_identity_survives_changes_and_newer_settings(tmp_path: Path) -> None:
    before = identity(read_config(trainer(tmp_path).run(until=1).checkpoint))
    trainer(tmp_path, learning_rate=1e-3, override=True).run(until=2)
    changed = read_config(trainer(tmp_path, learning_rate=1e-4, clip_norm=None, override=True).run(until=3).checkpoint)
    assert [entry["step"] for entry in changed["training"]["changes"]] == [1, 2]
    assert identity(changed) == before
    for setting in NEWER:
        del changed["training"][setting]
    assert identity(changed) == before
    assert CONFIG.learning_rate == 1e-2


def parts_of(subject: Trainer) -> Parts:
    return subject._parts


def test_parts_are_taken_over_as_they_were(tmp_path: Path) -> None:
    subject = trainer(tmp_path / "a")
    checkpoint = subject.run(until=2).checkpoint
    other = trainer(tmp_path / "b")
    past = compared(checkpoint, subject._about(), SIMPLE, override=False, run_folder=tmp_path)
    parts_of(other).load(checkpoint, past)
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
    past = compared(checkpoint, subject._about(), SIMPLE, override=False, run_folder=tmp_path)
    assert (past.step, past.changes, past.history) == (2, {}, [])
    assert "processes" not in past.settings
    saved: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    saved["training"] |= {"processes": 3}
    (checkpoint / "config.json").write_text(json.dumps(saved))
    again = compared(checkpoint, subject._about(), SIMPLE, override=False, run_folder=tmp_path)
    assert again.settings["processes"] == 3
    shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match="cannot read"):
        compared(checkpoint, subject._about(), SIMPLE, override=False, run_folder=tmp_path)


def test_other_numbers_of_processes_and_machines_are_said() -> None:
    assert processes_notes(2, 2) == ()
    (note,) = processes_notes(2, 1)
    assert note.startswith("the checkpoint was written by 2 processes and 1 go on: they draw the same, but")
    assert machine_notes({}, own_sums=True, has_dropout=False) == ()
    assert machine_notes({"threads": "99"}, own_sums=True, has_dropout=False) == ()
    assert "threads 99, now" in machine_notes({"threads": "99"}, own_sums=False, has_dropout=False)[0]
    assert "dropout by batch, now by image" in machine_notes({}, own_sums=True, has_dropout=True)[0]
