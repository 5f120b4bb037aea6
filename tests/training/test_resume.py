"""Tests of fastdiff.training.resume: checkpoints of before, and what makes a run the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastdiff.files.checkpoint import read_config
from fastdiff.training.config import NEWER, TrainConfig
from fastdiff.training.resume import identity
from support.training_runs import CONFIG, digests, trainer


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
