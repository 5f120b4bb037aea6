"""Trackers: what each is told, and that none of them ends a training.

W&B and trackio are told through stand-ins with the calls that they have; where they are installed, they themselves are.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.training.trackers import Trackers
from support.training_runs import metrics, trainer

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


class Calls:
    """A stand-in for W&B's and trackio's modules, which are alike, that writes down what it is told."""

    def __init__(self, fails_at: str = "") -> None:
        self.told: list[tuple[str, Any]] = []
        self.fails_at = fails_at
        self.config = self

    def note(self, name: str, value: Any) -> None:
        if name == self.fails_at:
            raise ConnectionError("the network is down")
        self.told.append((name, value))

    def init(self, **options: Any) -> Calls:
        self.note("init", options)
        return self

    def update(self, values: Any, **options: Any) -> None:
        self.note("settings", values)

    def log(self, values: Any, step: int | None = None) -> None:
        self.note("log", values if step is None else {"step": step, **values})

    def finish(self) -> None:
        self.note("finish", None)

    def define_metric(self, *names: str, **options: str) -> None:
        pass

    def Image(self, pixels: Any) -> str:
        return f"picture of {pixels.shape}"


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, fails_at: str = "") -> Calls:
    calls = Calls(fails_at)
    module = types.ModuleType(name)
    module.init, module.Image = calls.init, calls.Image  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tracker_is_told_settings_numbers_and_pictures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch, name)
    trackers = Trackers([name], tmp_path / "mine", 0)
    trackers.settings({"steps": 6})
    trackers.scalars(3, {"loss": 0.5})
    trackers.image(3, "samples", PIXELS)
    trackers.close()
    (first, options), *rest = calls.told
    assert first == "init"
    assert options["name"] == "mine"
    assert options["resume"] == "allow"
    picture = {"step": 3, "samples": "picture of (4, 4, 3)"}
    assert rest == [
        ("settings", {"steps": 6}), ("log", {"step": 3, "loss": 0.5}), ("log", picture), ("finish", None)
    ]  # fmt: skip
    assert trackers.notes == ()


def test_wandb_run_that_goes_on_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "wandb")
    for step in (0, 4):
        Trackers(["wandb"], tmp_path, step).close()
    ids = [options["id"] for what, options in calls.told if what == "init"]
    assert len(ids) == 2
    assert ids[0] == ids[1]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize("when", ["init", "settings", "log", "finish"])
def test_tracker_that_fails_is_said_once_and_training_goes_on(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch, name, when)
    result = trainer(tmp_path, trackers=(name,)).run()
    assert result.step == 6
    (note,) = result.notes
    assert note.endswith("failed and is told nothing more, while the training goes on: the network is down")
    assert len(metrics(tmp_path)) == 6
    # Given up, it is not even closed.
    assert [what for what, _ in calls.told].count("finish") == 0


@pytest.mark.parametrize(("name", "called"), [("wandb", "Weights & Biases"), ("trackio", "trackio")])
def test_tracker_that_is_not_installed_is_named_before_the_first_step(
    name: str, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    said = rf'trackers: {called} is not installed, so there are no logs for it: pip install "fastdiff-ddpm\[{name}\]"'
    run = trainer(tmp_path, trackers=(name,))
    with pytest.raises(RuntimeError, match=said):
        run.run()
    assert run.step == 0
    # The folder is free again.
    assert trainer(tmp_path, trackers=()).run().notes == ()


def test_tensorboard_gets_pictures_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(["tensorboard"], tmp_path, 0)
    trackers.settings({"steps": 6})
    trackers.scalars(3, {"loss": 0.5})
    trackers.image(3, "samples", PIXELS)
    trackers.close()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (3, 4, 4)
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_wandb_itself_takes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    for variable, value in (("MODE", "offline"), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{variable}", value)
    result = trainer(tmp_path, trackers=("wandb",), picture_every=3, num_pictures=4).run()
    assert result.notes == ()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))
    assert len(list((folder / "files" / "media" / "images").glob("samples_*.png"))) == 2


def test_trackio_itself_takes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    result = trainer(tmp_path / "run", trackers=("trackio",), picture_every=3, num_pictures=4).run()
    assert result.notes == ()
    run = trackio.Api().runs("fastdiff")[0]
    assert run.name == "run"
    assert json.dumps(run.config["training"]["steps"]) == "6"
    assert list((tmp_path / "trackio").rglob("*.png"))
