"""The log of a run: means over steps, cut back where a run is resumed, TensorBoard where it is."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fastdiff.training.log import TrainLog
from fastdiff.training.trainer import TrainProgress
from support.training_runs import metrics, trainer


def test_log_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(TrainLog, "_open_metrics", lambda _: open("/dev/full", "w"))  # noqa: SIM115
    with pytest.raises(RuntimeError, match=r"could not write the log in .*: No space left on device; checkpoints are"):
        trainer(tmp_path).run()


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=4)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"st')
    trainer(tmp_path).run()
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    numbers = {"step", "loss", "grad_norm", "learning_rate", "images_per_second"}
    assert set(metrics(tmp_path)[0]) == numbers | {"loss_by_timestep"}


@pytest.mark.parametrize(
    "junk",
    [b"\xff\xfe\x00 junk", b"[" * 100_000, b'{"step": "2"}', b'{"step": null}', b"7", b"[]", b'{"loss": 1}', b"{"],
    ids=["bytes", "nested", "text", "null", "number", "list", "no step", "torn"],
)
def test_a_damaged_log_does_not_keep_a_run_from_going_on(tmp_path: Path, junk: bytes) -> None:
    trainer(tmp_path).run(until=4)
    path = tmp_path / "metrics.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + junk + b"\n" + rest + junk)
    result = trainer(tmp_path).run()
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert any("1 damaged lines were dropped" in note for note in result.notes)


def test_file_systems_without_locks_train_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked .No locks available.: take care"):
        assert trainer(tmp_path).run().step == 6


def test_log_entries_are_means_over_their_steps(tmp_path: Path) -> None:
    trainer(tmp_path / "each").run()
    entries: list[TrainProgress] = []
    result = trainer(tmp_path / "some", log_every=4).run(progress=entries.append)
    losses = [entry["loss"] for entry in metrics(tmp_path / "each")]
    assert [entry.step for entry in entries] == [4, 6]
    assert entries[0].loss == pytest.approx(np.mean(losses[:4]))
    assert entries[1].loss == pytest.approx(np.mean(losses[4:]))
    assert result.loss == entries[1].loss
    assert entries[0].num_steps == 6
    assert entries[0].images_per_second > 0
    assert entries[0].seconds_left == pytest.approx(10 / entries[0].images_per_second)
    assert entries[1].seconds_left == 0


def test_tensorboard_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = trainer(tmp_path / "without").run()
    assert len(result.notes) == 1
    assert 'pip install "fastdiff-ddpm[log]"' in result.notes[0]
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert trainer(tmp_path / "with").run().notes == ()
    events = EventAccumulator(str(tmp_path / "with" / "logs")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(e["step"], pytest.approx(e["loss"])) for e in metrics(tmp_path / "with")]
