"""Several processes that train together: the draws, the weights, the bytes after kills, and what goes wrong.

FASTDIFF_KILLS raises the number of random kills.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastdiff.cli.app import SIGNALLED, USAGE
from fastdiff.data.source import UnreadableImageError
from fastdiff.files.checkpoint import latest_checkpoint
from fastdiff.training import together as together_module
from fastdiff.training.trainer import Trainer
from support.processes import free_port, together
from support.tolerances import FLOAT32_SUM
from support.training_runs import CONFIG, SIMPLE, digests, images, metrics, network

NUM_KILLS = int(os.environ.get("FASTDIFF_KILLS", "3"))

# Weights after four steps of AdamW, whose step is as long as the learning rate (1e-2) however small the gradient: one
# near 0 that is rounded otherwise moves its weight by a part of that. Seen: 2e-5 at the most.
WEIGHTS = 2e-4
SETTINGS = dataclasses.replace(CONFIG, batch_size=6, steps=4, checkpoint_every=2, label_dropout=0.3)
Draws = dict[tuple[int, int], str]


def make(folder: Path, wrapped: bool = False, **changes: Any) -> Trainer:
    unet: Any = network(num_classes=4)
    if wrapped:
        unet = DistributedDataParallel(unet)
    return Trainer(unet, SIMPLE, images(labels=True), dataclasses.replace(SETTINGS, **changes), folder)


def recorded(subject: Trainer, draws: Draws) -> None:
    """Note a digest of all that is drawn for each image of each step."""
    losses = subject._losses

    def noted(step: int, places: Any) -> Any:
        batch = subject.batches.at(step, places)
        t, _ = subject.objective.timesteps(subject.config.seed, step, places)
        seen: list[Tensor] = []
        hook = subject._network.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].detach().clone())
        )
        found = losses(step, places)
        hook.remove()
        assert batch.labels is not None
        for i, place in enumerate(places.tolist()):
            values = (batch.images[i], batch.labels[i], torch.tensor(t[i]), seen[0][i])
            parts = [value.contiguous().numpy().tobytes() for value in values]
            draws[step, place] = hashlib.sha256(b"".join(parts)).hexdigest()
        return found

    subject._losses = noted  # type: ignore[method-assign]


def train_cases(rank: int, folder: Path, cases: list[dict[str, Any]]) -> list[Draws]:
    """Train with each of some settings, one after the other; what was drawn."""
    found = []
    for number, case in enumerate(cases):
        subject = make(folder / str(number), **case)
        draws: Draws = {}
        recorded(subject, draws)
        subject.run()
        found.append(draws)
    return found


def weights_of(folder: Path) -> dict[str, Tensor]:
    newest = latest_checkpoint(folder)
    assert newest is not None
    return load_file(newest / "training.safetensors")


def bytes_of(folder: Path) -> dict[str, str]:
    newest = latest_checkpoint(folder)
    assert newest is not None
    return digests(newest) | {"": newest.name}


CASES: list[dict[str, Any]] = [{}, {"micro_batch": 1}, {"micro_batch": 2}, {"wrapped": True}]


def test_any_number_of_processes_draws_the_same_and_trains_alike(tmp_path: Path) -> None:
    alone = train_cases(0, tmp_path / "1", CASES[:1])[0]
    assert set(alone) == {(step, place) for step in range(4) for place in range(6)}
    expected = weights_of(tmp_path / "1" / "0")
    for size in (2, 3):
        outcomes = together(size, train_cases, tmp_path / str(size), CASES)
        assert [outcome.error for outcome in outcomes] == [None] * size
        for number in range(len(CASES)):
            parts = [outcome.value[number] for outcome in outcomes]
            assert {key: value for part in parts for key, value in part.items()} == alone
            assert sum(map(len, parts)) == len(alone)
            found = weights_of(tmp_path / str(size) / str(number))
            assert set(found) == set(expected)
            for name, value in expected.items():
                if name.startswith("raw."):
                    torch.testing.assert_close(found[name], value, rtol=0, atol=WEIGHTS, msg=name)
            losses = [entry["loss"] for entry in metrics(tmp_path / str(size) / str(number))]
            assert losses == pytest.approx([entry["loss"] for entry in metrics(tmp_path / "1" / "0")], rel=FLOAT32_SUM)


def train_to(rank: int, folder: Path, kill: tuple[int, int, int] | None, steps: int) -> int:
    """Train to the end, unless a process is killed: its rank, the step, and the signal."""
    subject = make(folder, steps=steps, micro_batch=2, checkpoint_every=2)

    def on_step(step: int) -> None:
        if kill is not None and rank == kill[0] and step == kill[1]:
            os.kill(os.getpid(), kill[2])

    return subject.run(on_step=on_step).step


@pytest.mark.timeout(120 + 60 * NUM_KILLS)
@pytest.mark.parametrize("size", [2, 3])
def test_killed_runs_end_with_the_bytes_of_one_that_was_not(tmp_path: Path, size: int) -> None:
    steps = 6
    outcomes = together(size, train_to, tmp_path / "whole", None, steps)
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [(steps, None)] * size
    chance = random.Random(size)
    for number in range(NUM_KILLS if size == 2 or NUM_KILLS > 3 else 1):
        folder = tmp_path / f"killed-{number}"
        kill = (chance.randrange(size), chance.randint(1, steps - 1), chance.choice([signal.SIGKILL, signal.SIGTERM]))
        outcomes = together(size, train_to, folder, kill, steps)
        for rank, outcome in enumerate(outcomes):
            if kill[2] == signal.SIGTERM:
                # It arrives after the step's images have been looked at, so the next step is the last.
                last = min(kill[1] + 1, steps)
                assert outcome.error == (
                    f"Interrupted: training stopped at step {last} and was saved to {latest_checkpoint(folder)}"
                )
            elif rank == kill[0]:
                assert outcome.exit_code == -signal.SIGKILL
            else:
                assert outcome.error is not None
                assert f"rank {kill[0]} (" in outcome.error
                assert re.search(rf"was lost at step \d+ \(seen at step {kill[1] + 1} by rank {rank}\)", outcome.error)
        outcomes = together(size, train_to, folder, None, steps)
        assert [(outcome.value, outcome.error) for outcome in outcomes] == [(steps, None)] * size
        assert bytes_of(folder) == bytes_of(tmp_path / "whole"), kill
        shutil.rmtree(folder)


def in_trouble(rank: int, folder: Path) -> list[str]:
    """What the constructor and `run` refuse where processes differ, one after the other; each at all processes."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("batch", {"batch_size": 5}),
        ("settings", {"seed": 4 if rank else 3}),
        ("nothing", {}),
    ]
    said = []
    for name, changes in cases:
        try:
            make(folder / name, **changes)
            said.append("")
        except ValueError as error:
            said.append(str(error))
    data = images(labels=True, seed=rank)
    code = together_module._code()
    for name, patched, given in (("data", code, data), ("code", f"code {rank}", images(labels=True))):
        together_module._code = lambda patched=patched: patched  # type: ignore[assignment, misc]
        try:
            Trainer(network(num_classes=4), SIMPLE, given, SETTINGS, folder / name)
        except ValueError as error:
            said.append(str(error))
    together_module._code = lambda: code  # type: ignore[assignment]
    try:
        make(folder / "until").run(until=1 + rank)
    except ValueError as error:
        said.append(str(error))
    # Another process trains in the folder: the first finds it, and all say so.
    (folder / "locked").mkdir(exist_ok=True)
    with open(folder / "locked" / "train.lock", "w") as lock:
        if rank == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            make(folder / "locked").run()
        except RuntimeError as error:
            said.append(str(error))
    # Each its own folder, of which the first counts; its weights and its checkpoint go to all.
    subject = make(folder / f"own-{rank}")
    with torch.no_grad():
        for parameter in subject.unet.parameters():
            parameter.add_(0)
    subject.run(until=2)
    again = make(folder / f"own-{rank}")
    total = sum(float(tensor.double().sum()) for tensor in again._parts.live())
    said += [str(again.step), repr(total)]
    return said


def test_processes_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    outcomes = together(2, in_trouble, tmp_path)
    assert [outcome.error for outcome in outcomes] == [None, None]
    first, second = (outcome.value for outcome in outcomes)
    assert first == second
    batch, settings, nothing, data, code, until, locked, step, _ = first
    start = "the processes do not fit each other: "
    assert batch == "batch_size 5 cannot be shared out among 2 processes: 4 and 6 are the nearest that can"
    assert settings.startswith(f"{start}training.seed is 3 at rank 0 and 4 at rank 1; start all of them with the same")
    assert nothing == ""
    assert data.startswith(f"{start}data.sha256 is ")
    assert code.startswith(f"{start}fastdiff's code is code 0 at rank 0 and code 1 at rank 1")
    assert until.startswith(f"{start}until is 1 at rank 0 and 2 at rank 1")
    assert locked.startswith("another process is training in ")
    assert step == "2"
    assert (tmp_path / "own-0").exists()
    assert not (tmp_path / "own-1").exists()


def corrupt(rank: int, folder: Path, is_damaged: bool) -> int:
    """Train on images of which the last cannot be read."""
    data = images(labels=True)
    read = data.read

    def reads(indices: Any, draws: Any = None) -> Tensor:
        if is_damaged and 11 in indices:
            raise UnreadableImageError("image 11 is damaged")
        return read(indices, draws)

    object.__setattr__(data, "read", reads)
    return Trainer(network(num_classes=4), SIMPLE, data, SETTINGS, folder).run().step


def test_an_image_that_one_process_cannot_read_ends_all_of_them_saved(tmp_path: Path) -> None:
    # An epoch is two steps.
    outcomes = together(2, corrupt, tmp_path / "parts", True)
    (said,) = {outcome.error for outcome in outcomes}
    found = re.fullmatch(
        r"UnreadableImageError: image 11 is damaged\. Training stopped at step (\d) and was saved to (.*)", said or ""
    )
    assert found is not None
    newest = latest_checkpoint(tmp_path / "parts")
    assert str(newest) == found[2]
    assert (newest or tmp_path).name == f"step_0000000{found[1]}"
    for folder in ("parts", "whole"):
        assert [outcome.value for outcome in together(2, corrupt, tmp_path / folder, False)] == [4, 4]
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def fill_disk(rank: int, folder: Path, steps: int) -> int:
    def on_step(step: int) -> None:
        if rank == 0 and step == 3:
            with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))

    return make(folder, steps=steps).run(on_step=on_step if steps else None).step


def test_a_full_disk_ends_all_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("there is no right to mount a small file system; test_trainer.py has a disk that says it is full")
    try:
        outcomes = together(2, fill_disk, folder, 4)
        for outcome in outcomes:
            assert outcome.error is not None
            assert re.search(r"step_00000004: No space left on device; the previous .*02 is intact", outcome.error)
        (folder / "filler").unlink()
        outcomes = together(2, train_cases, folder / "again", [{}])
        assert [outcome.error for outcome in outcomes] == [None, None]
        shutil.move(folder / "again" / "0", tmp_path / "whole")
        outcomes = together(2, resume, folder)
        assert [outcome.value for outcome in outcomes] == [(2, 4)] * 2
        assert bytes_of(folder) == bytes_of(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def resume(rank: int, folder: Path) -> tuple[int, int]:
    result = make(folder).run()
    return result.resumed_from, result.step


def test_weights_go_on_with_another_number_of_processes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastdiff.training")
    make(tmp_path).run(until=2)
    outcomes = together(2, resume, tmp_path)
    assert [outcome.value for outcome in outcomes] == [(2, 4)] * 2
    notes = make(tmp_path, steps=5).run().notes
    said = "the checkpoint was written by 2 processes and 1 go on: they draw the same, but will not end with the bytes"
    assert notes[0].startswith(said)
    assert any(record.getMessage().startswith(said) for record in caplog.records)


SMALL = """
data: {source: digits}
unet: {preset: digits, channels: 8, norm_groups: 4}
diffusion: {timesteps: 10}
train:
  {steps: STEPS, batch_size: 4, warmup_steps: 0, checkpoint_every: 5, log_every: 1,
   picture_every: 0, evaluate_every: 0, trackers: []}
"""
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
}


def cli_train(rank: int, config: Path, out: Path) -> None:
    from fastdiff.cli.app import app

    app(["train", "--config", str(config), "--out", str(out), "--threads", "1"], standalone_mode=False)


def steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds
        time.sleep(0.02)


def test_torchrun_restarts_what_was_killed_and_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """As a user starts it; a process is killed, and torchrun's second attempt goes on from the newest checkpoint."""
    steps = 30
    (tmp_path / "train.yaml").write_text(SMALL.replace("STEPS", str(steps)))
    command = f"torchrun --standalone --nproc-per-node 2 --max-restarts {1 + NUM_KILLS // 10} -m fastdiff train"
    options = ["--config", "train.yaml", "--out", "run", "--threads", "1"]
    process = subprocess.Popen(
        [*command.split(), *options],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until(lambda: steps_logged(tmp_path / "run") >= 7 or process.poll() is not None)
    workers = [child for child in psutil.Process(process.pid).children() if "fastdiff" in child.cmdline()]
    random.Random(0).choice(workers).send_signal(signal.SIGKILL)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert re.search(r"going on from step \d+ of 30", printed), printed
    assert [entry["step"] for entry in metrics(tmp_path / "run")] == list(range(1, steps + 1))
    outcomes = together(2, cli_train, tmp_path / "train.yaml", tmp_path / "whole", join=False)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")


# Slurm's part, played by the shell: two tasks on one machine, and what else the script calls.
SLURM = """
export SLURM_JOB_ID=4711 SLURM_JOB_NODELIST=here SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
srun() {
    local pids=() worst=0
    for SLURM_PROCID in 0 1; do
        SLURM_PROCID=$SLURM_PROCID SLURM_LOCALID=$SLURM_PROCID "$@" &
        pids+=($!)
    done
    echo "${pids[@]}" > pids
    for pid in "${pids[@]}"; do
        wait "$pid"; local code=$?
        [ "$code" -gt "$worst" ] && worst=$code
    done
    return "$worst"
}
scontrol() {
    if [ "$1" = show ]; then echo 127.0.0.1; else echo "$*" > requeued; fi
}
"""


def test_the_script_for_slurm_saves_at_a_signal_and_is_requeued(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(SMALL.replace("STEPS", "100000"))
    script = SLURM + (EXAMPLES / "slurm_train.sh").read_text()
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until(lambda: steps_logged(tmp_path / "run") >= 7 or process.poll() is not None)
    # Slurm sends it to every task; one would do.
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, printed
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None
    step = int(newest.name.removeprefix("step_"))
    for rank in (0, 1):
        assert f"rank {rank}: training stopped at step {step} and was saved to run/checkpoints/{newest.name}" in printed
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert steps_logged(tmp_path / "run") == step


def test_the_job_for_kubernetes_runs_its_command(tmp_path: Path) -> None:
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes_train.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    pod = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert values["MASTER_ADDR"] == pod
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert int(values["WORLD_SIZE"]) == spec["completions"] == spec["parallelism"] == 2
    assert spec["completionMode"] == "Indexed"
    (tmp_path / "train.yaml").write_text(SMALL.replace("STEPS", "2"))
    shell, flag, line = container["command"]
    line = line.replace("/settings", str(tmp_path)).replace("/runs", str(tmp_path))
    environment = ENVIRONMENT | values | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen([shell, flag, line], env=environment | {"JOB_COMPLETION_INDEX": str(index)})
        for index in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert latest_checkpoint(tmp_path / "first") == tmp_path / "first" / "checkpoints" / "step_00000002"
    # What the rules of the job say of exit codes is what the command line does.
    rules = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in spec["podFailurePolicy"]["rules"][:2]}
    assert rules == {USAGE: "FailJob", SIGNALLED + signal.SIGTERM: "Ignore"}
