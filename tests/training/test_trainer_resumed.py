"""Tests of fastdiff.training.trainer: runs that are stopped, killed and taken up again."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastdiff import ops
from fastdiff.files import checkpoint
from fastdiff.files.checkpoint import latest_checkpoint, load_model
from fastdiff.files.data import (
    ImageData,
)
from fastdiff.nets.unet import UNet
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.training.rates import learning_rate
from fastdiff.training.trainer import Trainer, TrainProgress
from support.training_runs import CONFIG, HYBRID, SCHEDULE, SIMPLE, digests, images, metrics, network, trainer


def load_tensors_of(checkpoint: Path | None) -> dict[str, Tensor]:
    assert checkpoint is not None
    return load_file(checkpoint / "training.safetensors")


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Diffusion, dict[str, Any]]] = {
    "simple": ({}, {}, SIMPLE, {}),
    "hybrid": ({"out_channels": 2}, {"loss": "hybrid"}, HYBRID, {}),
    "bfloat16": ({}, {"precision": "bfloat16"}, SIMPLE, {}),
    "labels": ({"num_classes": 3}, {"flip": False}, SIMPLE, {"labels": True}),
    "continuous": ({"out_channels": 2}, {"loss": "hybrid", "weight_decay": 0.1}, HYBRID, {"levels": None}),
    "respaced": ({}, {"clip_norm": None, "warmup_steps": 0}, SIMPLE.respace(7), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_ends_with_the_same_bytes(tmp_path: Path, name: str) -> None:
    changes, settings, diffusion, kind = CASES[name]
    config = dataclasses.replace(CONFIG, **settings)

    def start(folder: str) -> Trainer:
        return Trainer(network(**changes), diffusion, images(**kind), config, tmp_path / folder)

    whole = start("whole").run()
    assert (whole.step, whole.resumed_from) == (6, 0)
    first = start("parts").run(until=3)
    assert (first.step, first.checkpoint.name) == (3, "step_00000003")
    second = start("parts").run()
    assert (second.step, second.resumed_from) == (6, 3)
    assert digests(whole.checkpoint) == digests(second.checkpoint)
    assert [e["loss"] for e in metrics(tmp_path / "whole")] == [e["loss"] for e in metrics(tmp_path / "parts")]
    # Nothing of this comes from the random state around it.
    torch.manual_seed(99)
    third = start("again").run()
    assert digests(third.checkpoint) == digests(whole.checkpoint)


def test_resumed_run_says_what_its_last_bits_depend_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = trainer(tmp_path).run(until=2)
    config = first.checkpoint / "config.json"
    saved = json.loads(config.read_text())
    assert saved["versions"]["threads"] == str(torch.get_num_threads())
    assert saved["versions"]["instructions"] in ("generic", "avx2", "avx512", "none")
    assert trainer(tmp_path).run(until=2).notes == first.notes
    assert not caplog.records
    saved["versions"] |= {"threads": "77", "instructions": "other"}
    config.write_text(json.dumps(saved))
    notes = trainer(tmp_path).run(until=3).notes
    assert "written with instruction set other, now" in notes[0]
    # The trainer's sums do not depend on the threads where they are its own.
    assert ("threads 77" in notes[0]) == (not ops.has_extension())
    assert [record.getMessage() for record in caplog.records] == [notes[0]]
    # What older checkpoints do not say is not known to differ.
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    saved = json.loads((newest / "config.json").read_text())
    del saved["versions"]["threads"], saved["versions"]["instructions"]
    (newest / "config.json").write_text(json.dumps(saved))
    assert trainer(tmp_path).run(until=3).notes == first.notes
    # But for dropout, whose masks were drawn for a whole batch before it was said.
    del saved["versions"]["dropout"]
    (newest / "config.json").write_text(json.dumps(saved))
    assert "written with dropout by batch, now by image" in trainer(tmp_path).run(until=3).notes[0]


RUN = """
    import sys, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from support.training_runs import trainer

    def progress(entry):
        print(entry.step, flush=True)
        if entry.step == int(sys.argv[2]):
            time.sleep(600)

    trainer(Path(sys.argv[1])).run(progress=progress)
"""


def start_run(folder: Path, wait_at: int) -> subprocess.Popen[str]:
    """A training run in a process of its own that goes to sleep after step `wait_at`."""
    tests = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), str(folder), str(wait_at)],
        env={**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == step:
            return
    raise AssertionError(f"the run ended before step {step}")


def test_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    with start_run(tmp_path / "killed", wait_at=5) as process:
        read_until(process, 5)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    newest = latest_checkpoint(tmp_path / "killed")
    assert newest is not None
    assert newest.name == "step_00000004"
    for folder in ("killed", "whole"):
        with start_run(tmp_path / folder, wait_at=-1) as process:
            read_until(process, 6)
        assert process.returncode == 0
    names = [path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()]
    assert sorted(names) == ["step_00000004", "step_00000006"]
    for name in names:
        killed, whole = (digests(tmp_path / folder / "checkpoints" / name) for folder in ("killed", "whole"))
        assert set(whole) == {"config.json", "model.safetensors", "training.safetensors"}
        assert killed == whole
    assert [e["loss"] for e in metrics(tmp_path / "killed")] == [e["loss"] for e in metrics(tmp_path / "whole")]


def test_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    def press_twice(entry: TrainProgress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        # Python runs handlers between instructions.
        for _ in range(1000):
            pass
        raise AssertionError("not interrupted")

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, checkpoint_every=100).run(progress=press_twice)
    assert signal.getsignal(signal.SIGINT) is handler
    assert latest_checkpoint(tmp_path) is None


def test_training_outside_the_main_thread_leaves_signals_alone(tmp_path: Path) -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(trainer(tmp_path).run().step))
    thread.start()
    thread.join()
    assert results == [6]


def test_a_run_goes_on_with_other_settings_where_it_is_told_to(tmp_path: Path) -> None:
    """The state is the checkpoint's, the steps are those of the new settings, and the checkpoints say so."""
    trainer(tmp_path).run(until=2)
    kept = load_tensors_of(latest_checkpoint(tmp_path))
    advised = {"learning_rate": 1e-3, "clip_norm": 0.5, "warmup_steps": 10, "ema_decay": 0.5, "weight_decay": 0.1}
    run = trainer(tmp_path, override=True, **advised)
    assert run.step == 2
    assert run.changes == {name: (getattr(CONFIG, name), value) for name, value in advised.items()}
    for name, parameter in run.unet.named_parameters():
        assert torch.equal(parameter, kept["raw." + name]), name
        assert torch.equal(run._optimizer.state[parameter]["exp_avg"], kept["exp_avg." + name]), name
    assert learning_rate(run.config, 4) == pytest.approx(1e-3 * 5 / 10)
    run.run(until=4)
    said = {"step": 2} | {name: [getattr(CONFIG, name), value] for name, value in advised.items()}
    assert load_model(tmp_path).metadata["training"]["changes"] == [said]
    # Resuming as before is nothing new; another change is added to the first.
    assert trainer(tmp_path, **advised).changes == {}
    trainer(tmp_path, override=True, **{**advised, "learning_rate": 1e-4}).run()
    assert load_model(tmp_path).metadata["training"]["changes"] == [said, {"step": 4, "learning_rate": [1e-3, 1e-4]}]


def test_full_disk_stops_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer(tmp_path / "whole").run()
    calls = 0

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(*args)

    save_file = checkpoint.save_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        expected = r"could not save checkpoint to .*step_00000004: No space left on device; the previous .*02 is intact"
        with pytest.raises(RuntimeError, match=expected):
            trainer(tmp_path / "parts").run()
    rest = trainer(tmp_path / "parts").run()
    assert rest.resumed_from == 2
    assert digests(rest.checkpoint) == digests(whole.checkpoint)


def test_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = trainer(tmp_path).run()
    again = trainer(tmp_path)
    result = again.run()
    assert (result.step, result.resumed_from, result.loss, result.checkpoint) == (6, 6, None, first.checkpoint)
    for shadow, sampled in zip(again.ema.state_dict().values(), load_model(tmp_path).unet.parameters(), strict=True):
        assert torch.equal(shadow, sampled)
    longer = trainer(tmp_path, steps=8, log_every=3, keep=1, checkpoint_every=5).run()
    assert (longer.step, longer.resumed_from) == (8, 6)
    with pytest.raises(ValueError, match="until must be a whole number, at least 1"):
        again.run(until=0)


def test_one_trainer_can_run_in_parts(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole").run()
    run = trainer(tmp_path / "parts")
    assert [run.run(until=until).step for until in (1, 4, 100)] == [1, 4, 6]
    assert digests(latest_checkpoint(tmp_path / "parts") or Path()) == digests(whole.checkpoint)


def test_another_run_is_refused_with_its_differences(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=2)
    with pytest.raises(ValueError, match="is of another run") as caught:
        trainer(tmp_path, batch_size=6, betas=(0.5, 0.9))
    lines = str(caught.value).split("\n  ")[1:]
    assert lines == [
        "training.batch_size: 5 in the checkpoint, 6 now",
        "training.betas: [0.9, 0.999] in the checkpoint, [0.5, 0.9] now",
    ]
    others: list[tuple[UNet, Diffusion, ImageData, str]] = [
        (network(dropout=0.0), SIMPLE, images(), r"unet\.dropout: 0\.2 in the checkpoint, 0\.0 now$"),
        (network(), Diffusion(SCHEDULE), images(), r"diffusion\.prediction: 'v' in the checkpoint, 'eps' now$"),
        (
            network(),
            Diffusion(NoiseSchedule.sigmoid(20), "v"),
            images(),
            r"diffusion\.schedule\.name: 'cosine' in the checkpoint, 'sigmoid' now\n",
        ),
        (network(), SIMPLE, images(levels=18), r"scaling\.levels: 17 in the checkpoint, 18 now\n"),
        (network(), SIMPLE, images(seed=1), r"\n  data\.sha256: .*$"),
    ]
    for unet, diffusion, data, message in others:
        with pytest.raises(ValueError, match=message):
            Trainer(unet, diffusion, data, CONFIG, tmp_path)
    # The same data may lie elsewhere, and a run may go on for longer.
    moved = dataclasses.replace(images(), source="elsewhere")
    longer = dataclasses.replace(CONFIG, steps=100, keep=1, log_every=7, checkpoint_every=9)
    assert Trainer(network(), SIMPLE, moved, longer, tmp_path).step == 2


def test_a_checkpoint_whose_schedule_is_written_as_betas_is_taken_up(tmp_path: Path) -> None:
    """As checkpoints of earlier versions have it."""
    kept = trainer(tmp_path).run(until=2).checkpoint / "config.json"
    config = json.loads(kept.read_text())
    ends = [float(SCHEDULE.betas[0]), float(SCHEDULE.betas[-1])]
    assert config["diffusion"]["schedule"] == {"name": "cosine", "num_timesteps": 20, "betas": ends}
    written = {"name": "cosine", "betas": SCHEDULE.betas.tolist(), "timesteps": list(range(20))}
    kept.write_text(json.dumps(config | {"diffusion": {"schedule": written, "prediction": "v"}}))
    assert load_model(tmp_path).diffusion == SIMPLE
    assert trainer(tmp_path).step == 2
    with pytest.raises(ValueError, match="is of another run"):
        Trainer(network(), Diffusion(NoiseSchedule.sigmoid(20), "v"), images(), CONFIG, tmp_path)
