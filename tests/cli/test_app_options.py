"""Every option of every command with a wrong value: one line that names the option as typed, and exit code 2."""

import inspect
import typing

import numpy as np
import pytest
import typer

from fastdiff.cli.app import app
from support.command_line import run

# What each command is given besides; {} are the fixtures of `given`.
COMMANDS = {
    "demo": ["digits"],
    "train": ["--data", "{archive}", "--out", "{new}/run", "--steps", "1"],
    "sample": ["{model}", "--num", "1", "--steps", "2", "--out", "{new}/x.npy"],
    "generate": ["{model}", "{new}/job", "--num", "1", "--steps", "2"],
    "gather": ["{new}/job", "{new}/all.npz"],
    "evaluate": ["{archive}", "{archive}", "--metrics", "fid"],
    "compare": ["{model}", "{new}/cmp", "--num", "2", "--steps", "2", "--long-run", "2"],
    "score": ["{plain}", "{archive}", "{new}/job"],
    "likelihood": ["{plain}", "{archive}", "--num", "1"],
    "convert": ["{model}", "{new}/to"],
    "push": ["{model}", "owner/name"],
    "serve": ["{model}", "--port", "0"],
    "export": ["{model}", "{new}/model.fd", "--steps", "2"],
    "edit encode": ["{model}", "{archive}", "--num", "1", "--steps", "2", "--out", "{new}/x.npy"],
    "edit decode": ["{model}", "{latent}", "--steps", "2", "--out", "{new}/x.npy"],
    "edit vary": ["{model}", "{archive}", "--num", "1", "--steps", "2", "--out", "{new}/x.npy"],
    "edit interpolate": ["{model}", "{archive}", "{archive}", "--num", "1", "--steps", "2", "--out", "{new}/x.npy"],
    "edit upscale": ["{upscaler}", "{archive}", "--num", "1", "--steps", "2", "--out", "{new}/x.npy"],
    "edit inpaint": ["{model}", "{archive}", "--num", "1", "--steps", "2", "--hole", "0,0,2,2", "--out", "{new}/x.npy"],
    "ema": ["{model}", "{new}/to", "--width", "0.1"],
    "info schedules": [],
    "info table": ["ddim"],
    "info plan": ["digits"],
}
# Values that are text and wrong all the same. A list has one for each way to be wrong.
WRONG = {
    "allocation": ["none"],
    "api_key": ["", "schlüssel"],
    "channels": ["7"],
    "condition": ["low_res", "masks"],
    "config": ["{new}/missing.yaml", "{archive}"],
    "data": ["{new}/missing", "digit"],
    "device": ["tpu", "cuda:x"],
    "diffusion": ["schedule=cosin", "schedul=cosine", "timesteps=[1]", "cosine"],
    "dtype": ["float8", "bfloat16"],
    "engine": ["spark"],
    "ema_decay": ["1.5", "-1"],
    "format": ["jpeg"],
    "features": ["buildin", "inception:{new}/missing.pth"],
    "figure": ["x.jpg"],
    "figures": ["{new}/missing"],
    "flags": ["--image_size"],
    "guidance": ["nan"],
    "held_out": ["{new}/missing", "1.5", "nosplit"],
    "host": [""],
    "hole": ["0,0", "a,b,c,d", "0,0,99,99", "inf,0,1,1"],
    "init_from": ["{new}/missing"],
    "json_file": ["{new}"],
    "labels": ["nobody", "99", ","],
    "label": ["nobody", "99", "-1"],
    "layout": ["CHWN"],
    "learning_rate": ["-1", "nan", "0"],
    "level": ["2", "-1"],
    "license": ["MIT License", ""],
    "loss": ["mse", "hybrid"],
    "mask": ["{new}/missing.png"],
    "memory": ["little"],
    "method": ["bond"],
    "metrics": ["fiid", "fid,,kid", "is"],
    "mode": ["cubic"],
    "null_label": ["nobody", "99"],
    "option": ["eta", "eta=abc", "=3", "etaa=1", "eta=[", "probes=abc", "probes=0"],
    "out": ["{new}/x.jpg", "{archive}"],
    "picture": ["{new}/x.jpg"],
    "precision": ["float16"],
    "prediction": ["epsilon"],
    "preset": ["ho-cifar"],
    "process": ["flows"],
    "reference": ["{new}/missing"],
    "sampler": ["dimm"],
    "samplers": ["dimm", "ddim,,unipc", "ddim,ddim"],
    "save_statistics": ["{new}/x.jpg", "{archive}"],
    "schedule": ["cosin"],
    "seed": ["-1", "99999999999999999999999"],
    "setting": ["unet.channels", "channels=64", "unet.chanels=64", "unet.channels=[", "train.keep=0", "train.betas=3"],
    "size": ["8x8x8", "x8", "small"],
    "shard": ["2", "2/2", "a/b"],
    "steps": ["2,x", ""],
    "split": ["validation", "train"],
    "strength": ["a", "2", "0.5,-1", ""],
    "table": ["{new}/missing.json", "{archive}"],
    "timesteps": ["0", "-5"],
    "to": ["pytorch"],
    "trackers": ["wandbb"],
    "unet": ["image_siz=32", "image_size"],
    "variance": ["large"],
    "weight": ["x", "-0.5"],
    "weighting": ["min-snr", "{new}/missing.npy"],
    "weights": ["mean"],
}
# Of these, what is right for a command: a folder may have any name.
FITTING = {(command, "out", "{new}/x.jpg") for command in ("demo", "train", "evaluate")}
# Files that are written after the table was printed.
LEFT = {("info table", "figure"), ("info table", "json_file")}


def _options():
    """(command, option as typed, argument's name, its type) of every option there is."""
    root = typer.main.get_command(app)
    for name in COMMANDS:
        command = root
        for part in name.split():
            command = command.commands[part]
        kinds = typing.get_type_hints(inspect.unwrap(command.callback))
        for param in command.params:
            kind = str(kinds.get(param.name, "bool"))
            if param.opts[0].startswith("-") and "bool" not in kind and (name, param.name) not in LEFT:
                yield from ((name, option, param.name, kind) for option in param.opts)


def _cases():
    for command, option, name, kind in _options():
        wrong = [value for value in WRONG.get(name, []) if (command, name, value) not in FITTING]
        if "int" in kind or "float" in kind:
            wrong += ["abc", ""]
        assert wrong, f"{option} of {command} has no wrong value here"
        for value in wrong:
            yield pytest.param(command, option, value, id=f"{command} {option} {value}")


@pytest.fixture
def given(tmp_path, model, labelled_model, upscaler, archive, monkeypatch):
    (tmp_path / "new").mkdir()
    np.savez(tmp_path / "latent.npz", np.zeros((1, 3, 16, 16), np.float32))
    monkeypatch.chdir(tmp_path)
    places = {"model": labelled_model, "plain": model, "archive": archive, "upscaler": upscaler}
    places |= {"new": tmp_path / "new", "latent": tmp_path / "latent.npz"}
    return lambda text: text.format(**places)


@pytest.mark.parametrize(("command", "option", "value"), list(_cases()))
def test_a_wrong_value_is_named_with_its_option(command, option, value, given):
    base = [given(part) for part in COMMANDS[command]]
    if command.startswith("edit") and option != "--label":
        base += ["--label", "0"]
    if option == "--mask":
        base = base[: base.index("--hole")] + base[base.index("--hole") + 2 :]
    for name in {option, {"-o": "--out", "-n": "--num"}.get(option, option)} & set(base):
        place = base.index(name)
        base = base[:place] + base[place + 2 :]
    if option == "--table":
        base = [part for part in base if part not in ("--steps", "2")]
    result = run(
        *command.split(), *base, f"{option}={given(value)}" if option.startswith("--") else option + given(value)
    )
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2, result.output
    assert len([line for line in lines if not line.startswith("warning: ")]) == 1
    assert lines[-1].startswith("error: ")
    assert option in lines[-1]
