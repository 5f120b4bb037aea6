"""`fastdiff train`: runs, resumed runs, configuration files, Ctrl-C."""

import fcntl
import json
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

from fastdiff.cli.train import plan_training, read_config_file
from fastdiff.files.checkpoint import load_model
from fastdiff.nets.config import PRESETS
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


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
def test_train_reads_a_file_and_flags_win(tmp_path, pictures, suffix):
    path = tmp_path / f"config.{suffix}"
    settings = {
        "out": str(tmp_path / "run"),
        "unet": {"preset": "ho-cifar10", "channels": 32},
        "diffusion": {"schedule": "linear", "timesteps": 50, "prediction": "v"},
        "data": {"source": str(pictures)},
        "train": {"steps": 7, "learning_rate": 1e-4},
    }
    if suffix == "yaml":
        path.write_text(yaml.safe_dump(settings))
    else:
        lines = [f'out = "{settings["out"]}"']
        for name in ("unet", "diffusion", "data", "train"):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in settings[name].items())]
        path.write_text("\n".join(lines))
    found = yaml.safe_load(works("train", "--config", path, "--steps", 9, "--print-config"))
    assert found["out"] == settings["out"]
    assert found["unet"]["channels"] == 32
    assert found["unet"]["image_size"] == 16
    # At the depth where the preset has it: the second level.
    assert found["unet"]["attention_resolutions"] == [8]
    assert found["diffusion"] == {"schedule": "linear", "timesteps": 50, "prediction": "v", "variance": "fixed_large"}
    assert found["train"]["steps"] == 9
    assert found["train"]["learning_rate"] == 1e-4
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_printed_configurations_read_back_the_same(tmp_path, preset):
    size, classes = PRESETS[preset].image_size, PRESETS[preset].num_classes
    np.savez(tmp_path / "x.npz", images=np.zeros((2, size, size, 3), np.uint8), labels=np.zeros(2, np.int64))
    flags = ["--preset", preset, "--data", tmp_path / "x.npz", "--steps", "10"]
    printed = works("train", *flags, "--print-config")
    (tmp_path / "c.yaml").write_text(printed)
    plan = plan_training(read_config_file(tmp_path / "c.yaml"))
    assert plan.to_yaml() == printed
    assert plan.unet.num_classes == classes
    assert plan.unet.out_channels == plan.diffusion.model_channels(3)
    assert plan.train.loss == ("hybrid" if plan.diffusion.learned_variance else "simple")


def test_train_takes_channels_and_size_from_the_data(tmp_path):
    np.save(tmp_path / "grey.npy", np.zeros((4, 12, 12), np.uint8))
    plan = plan_training(
        {"unet": {"preset": "digits"}, "data": {"source": str(tmp_path / "grey.npy")}, "train": {"steps": 1}}
    )
    assert (plan.unet.in_channels, plan.unet.image_size) == (1, 12)
    assert plan.unet.attention_resolutions == (6,)


def test_train_uses_labels_only_where_the_network_has_classes(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 16, 16, 3), np.uint8), labels=np.arange(4))
    out = tmp_path / "run"
    options = ["train", "--data", tmp_path / "x.npz", "--out", out, "--steps", 1, "--batch-size", 2, "-T", 4]
    for key, value in {**SMALL_UNET, "num_classes": 4, "attention_resolutions": ()}.items():
        options += ["--set", f"unet.{key}={list(value) if isinstance(value, tuple) else value}"]
    works(*options)
    assert load_model(out).unet.config.num_classes == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tarin: {steps: 1}", "unknown key 'tarin' in the configuration: did you mean 'train'"),
        ("train: {step: 1}\ndata: {source: D}", "unknown key 'step' in section 'train': did you mean 'steps'"),
        ("unet: {chanels: 1}\ndata: {source: D}", "did you mean 'channels'"),
        ("data: {sauce: digits}", "unknown key 'sauce' in section 'data': did you mean 'source'"),
        ("diffusion: {shedule: linear}\ndata: {source: D}", "did you mean 'schedule'"),
        ("diffusion: {schedule: liner}\ndata: {source: D}", "unknown noise schedule 'liner': did you mean 'linear'"),
        ("diffusion: {schedule: {name: cosine, ofset: 1}}\ndata: {source: D}", "did you mean 'offset'"),
        ("diffusion: {schedule: [1]}\ndata: {source: D}", "a schedule is a name"),
        ("diffusion: {prediction: epsilon}\ndata: {source: D}", "did you mean 'eps'"),
        ("unet: {preset: ho-cifar}\ndata: {source: D}", "unknown preset 'ho-cifar': did you mean 'ho-cifar10'"),
        ("train: 3", "section 'train' must hold keys and values"),
        ("train: {steps: 0}\ndata: {source: D}", "steps must be an int from 1 to 2^28"),
        ("train: {steps: 5}", "what to train on"),
        ("unet: {preset: ho-cifar10}\ndata: {source: D}", "how long to train"),
        (
            "data: {source: D}\ntrain: {steps: 1}\nunet: {preset: iddpm-cifar10}\ndiffusion: {variance: fixed}",
            "variance",
        ),
        ("- a list", "expected the sections"),
        ("train: {", "c.yaml"),
    ],
    ids=lambda text: text.split("\n")[0][:24],
)
def test_bad_configurations_are_explained(tmp_path, pictures, text, expected):
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("source: D", f"source: {pictures}"))
    assert expected in fails("train", "--config", path, "--print-config")


def test_configuration_files_that_cannot_be_read(tmp_path):
    assert "No such file" in fails("train", "--config", tmp_path / "missing.yaml")
    (tmp_path / "c.ini").write_text("")
    assert "a .yaml, .yml or .toml file" in fails("train", "--config", tmp_path / "c.ini")
    (tmp_path / "c.toml").write_text("a = = 1")
    assert "c.toml" in fails("train", "--config", tmp_path / "c.toml")
    (tmp_path / "c.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    assert "c.yaml" in fails("train", "--config", tmp_path / "c.yaml")


def test_messages_cut_what_they_quote(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": {"source": "digits"}, "train": {"steps": ["x" * 50] * 100_000}}))
    said = fails("train", "--config", path, "--out", tmp_path / "run")
    assert "steps must be an int" in said
    assert len(said) < 500


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


def test_label_dropout_makes_room_for_a_null_class():
    digits = {"data": {"source": "digits", "split": "test"}, "train": {"label_dropout": 0.1}}
    plan = plan_training(digits | {"unet": {"preset": "digits"}})
    assert (plan.unet.num_classes, plan.train.label_dropout) == (11, 0.1)
    # A number that is given stands.
    plan = plan_training(digits | {"unet": {"preset": "digits", "num_classes": 12}})
    assert plan.unet.num_classes == 12
    assert plan_training(digits | {"unet": {"preset": "digits"}, "train": {}}).unet.num_classes is None


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
