"""`fastdiff train`: runs, resumed runs, Ctrl-C."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from fastdiff.files.checkpoint import load_model
from support.command_line import SMALL_UNET, fails, run, train_options, works


def test_train_writes_a_model_that_samples(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    out = tmp_path / "run"
    printed = works(*train_options(out))
    assert "4 steps" in printed
    loaded = load_model(out)
    assert loaded.metadata["step"] == 4
    assert loaded.scaling.levels == 17
    works("sample", out, "--num", 2, "--steps", 2, "--out", tmp_path / "x.png")


def test_train_resumes_by_itself(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    works(*train_options(parts, "--steps", 3))
    assert "going on from step 3 of 6" in works(*train_options(parts, "--steps", 6))
    works(*train_options(whole, "--steps", 6))
    ours, theirs = (load_model(folder).unet.state_dict() for folder in (parts, whole))
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_train_continues_from_the_file_that_it_wrote(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    out = tmp_path / "run"
    works(*train_options(out))
    assert "going on from step 4 of 5" in works("train", "--config", out / "config.yaml", "--steps", 5)


def test_train_refuses_another_run_in_the_folder(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    works(*train_options(tmp_path / "run"))
    result = run(*train_options(tmp_path / "run", "--seed", 1))
    assert result.exit_code == 1
    assert "is of another run" in result.stderr
    assert "training.seed: 0 in the checkpoint, 1 now" in result.stderr


def test_train_uses_labels_only_where_the_network_has_classes(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 16, 16, 3), np.uint8), labels=np.arange(4))
    out = tmp_path / "run"
    options = ["train", "--data", tmp_path / "x.npz", "--out", out, "--steps", 1, "--batch-size", 2, "-T", 4]
    for key, value in {**SMALL_UNET, "num_classes": 4, "attention_resolutions": ()}.items():
        options += ["--set", f"unet.{key}={list(value) if isinstance(value, tuple) else value}"]
    works(*options)
    assert load_model(out).unet.config.num_classes == 4


def test_the_folder_alone_goes_on(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    out = tmp_path / "run"
    works(*train_options(out, "--steps", 2))
    assert "going on from step 2 of 3" in works("train", "--out", out, "--steps", 3)
    assert "0 steps in" in works("train", "--out", out)
    assert "what to train on? give --data" in fails("train", "--out", tmp_path / "nothing")


def test_another_rate_is_said_and_kept(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    out = tmp_path / "run"
    works(*train_options(out, "--steps", 2, "--lr", "1e-3"))
    said = fails("train", "--out", out, "--steps", 3, "--lr", "1e-4")
    assert "which the checkpoints will record, give --override, else what the run had before" in said
    printed = works("train", "--out", out, "--steps", 3, "--lr", "1e-4", "--override")
    assert "from here on learning_rate is 0.0001, it was 0.001" in printed
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["learning_rate"] == 1e-4
    assert load_model(out).metadata["training"]["changes"] == [{"step": 2, "learning_rate": [1e-3, 1e-4]}]
    assert "from here on" not in works("train", "--out", out, "--steps", 4)


def test_several_averages_are_kept_and_sampled(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    out = tmp_path / "run"
    works(*train_options(out, "--steps", 1, "--ema-decay", 0.5, "--ema-decay", 0.25))
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["ema_decay"] == [0.5, 0.25]
    works("sample", out, "--weights", "ema:0.25", "--num", 1, "--steps", 2, "--out", tmp_path / "x.npy")
    assert "0 steps in" in works("train", "--out", out)
    assert "--weights" in fails("sample", out, "--weights", "ema:0.75", "--num", 1, "--out", tmp_path / "y.npy")
    assert "ema_decay: [0.5, 0.25] in the checkpoint, 0.5 now" in fails("train", "--out", out, "--ema-decay", 0.5)


def test_a_second_training_changes_nothing_of_the_running_one(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    out = tmp_path / "run"
    works(*train_options(out, "--steps", 2))
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    with open(out / "train.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is training in" in fails("train", "--out", out, "--steps", 9)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before


def test_a_run_starts_from_the_weights_of_a_model(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    first, second = tmp_path / "first", tmp_path / "second"
    works(*train_options(first, "--steps", 2))
    # The rate is so low that the weights stay what they were.
    printed = works(*train_options(second, "--steps", 1, "--init-from", first, "--lr", "1e-30", "--seed", 9))
    assert f"starting from the weights of {first}" in printed
    ours, theirs = load_model(second, weights="raw").unet.state_dict(), load_model(first).unet.state_dict()
    for name, value in ours.items():
        # A step of Adam moves a weight by about the rate.
        assert float((value - theirs[name]).abs().max()) < 1e-25, name
    # The network is the model's, where nobody says.
    options = ["--init-from", first, "--data", "digits", "--out", tmp_path / "third", "--steps", 1]
    found = yaml.safe_load(works("train", *options, "--print-config"))
    assert found["unet"] == load_model(first).unet.config.to_dict()
    assert "do not fit this network" in fails("train", *options, "--set", "unet.channels=16", "--preset", "digits")
    # Going on, the weights are the run's own: the model may be gone.
    shutil.rmtree(first)
    assert "going on from step 1 of 2" in works("train", "--out", second, "--steps", 2)


def test_a_warm_up_longer_than_the_training_is_said(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    options = train_options(tmp_path / "run", "--set", "train.warmup_steps=40", "--lr", "1e-3")
    said = run(*options).stderr
    assert "the warm-up takes 40 steps and the training 4: the learning rate gets no further than 0.0001 of" in said
    assert "--set train.warmup_steps=0 would let it" in said


def test_threads_are_those_asked_for(tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    before = torch.get_num_threads()
    try:
        works(*train_options(tmp_path / "run", "--steps", 1, "--threads", 3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_train_needs_a_folder(pictures):
    assert "give --out" in fails("train", "--data", pictures, "--steps", 1)
    assert "--set takes section.key=value" in fails("train", "--data", pictures, "--set", "channels=3")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signals_save_and_the_same_command_goes_on(tmp_path, number):
    pytest.importorskip("sklearn", reason="it carries the digits")
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "fastdiff",
        *map(str, train_options(out, "--steps", 200000, "--set", "train.log_every=1")),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        until = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size == 0:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "was saved to" in errors
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert load_model(out).metadata["step"] > 0


@pytest.mark.parametrize(
    ("condition", "channels", "command"),
    [("low_res:2", 2, ["upscale"]), ("inpaint", 3, ["inpaint", "--hole", "0,0,4,8"])],
    ids=["low_res", "inpaint"],
)
def test_train_learns_what_stands_beside_the_noise(tmp_path, condition, channels, command):
    out = tmp_path / "run"
    said = works(*train_options(out, "--condition", condition))
    assert f"next: fastdiff edit {command[0]}" in said.replace("\n", " ")
    assert load_model(out).unet.config.in_channels == channels
    works("edit", command[0], out, "digits", *command[1:], "-n", 2, "--steps", 3, "--out", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_train_takes_a_loss_and_weights_of_the_timesteps(tmp_path):
    np.save(tmp_path / "weights.npy", np.linspace(0, 1, 10))
    works(*train_options(tmp_path / "run", "--loss", "hybrid", "--weighting", tmp_path / "weights.npy"))
    (tmp_path / "weights.npy").unlink()
    # The run's own settings have the numbers.
    works("train", "--out", tmp_path / "run", "--steps", 5)
    assert load_model(tmp_path / "run").metadata["training"]["weighting"] == np.linspace(0, 1, 10).tolist()
    works(*train_options(tmp_path / "bound", "--loss", "vlb", "--set", "train.timestep_density=uniform"))
