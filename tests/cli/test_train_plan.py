"""Settings of a training: presets, files and flags put together, and what does not fit."""

import json

import numpy as np
import pytest
import yaml

from fastdiff.cli.train_plan import FIELDS, plan_training, read_config_file
from fastdiff.nets.config import PRESETS, UNetConfig
from support.command_line import fails, works


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


@pytest.mark.parametrize(("schedule", "prediction"), [("flow", "velocity"), ("edm", "F")])
def test_networks_of_flows_and_edm_learn_a_variance_only_where_asked(schedule, prediction):
    flags = ["--data", "digits", "--schedule", schedule, "--prediction", prediction, "--print-config"]
    plain = yaml.safe_load(works("train", *flags))
    assert plain["diffusion"]["variance"] == "fixed_small"
    assert (plain["unet"]["out_channels"], plain["train"]["loss"]) == (1, "simple")
    asked = yaml.safe_load(works("train", *flags, "--variance", "learned_range"))
    assert (asked["unet"]["out_channels"], asked["train"]["loss"]) == (2, "hybrid")


def test_label_dropout_makes_room_for_a_null_class():
    digits = {"data": {"source": "digits", "split": "test"}, "train": {"label_dropout": 0.1}}
    plan = plan_training(digits | {"unet": {"preset": "digits"}})
    assert (plan.unet.num_classes, plan.train.label_dropout) == (11, 0.1)
    # A number that is given stands.
    plan = plan_training(digits | {"unet": {"preset": "digits", "num_classes": 12}})
    assert plan.unet.num_classes == 12
    assert plan_training(digits | {"unet": {"preset": "digits"}, "train": {}}).unet.num_classes is None


def test_every_settings_file_says_all_of_the_network():
    """Networks of all families, and those of files from before there were others."""
    for name in ("digits", "ho-cifar10", "edm-cifar10-ncsnpp"):
        assert set(UNetConfig.preset(name).to_dict()) >= FIELDS
    assert {"channels", "channel_mult", "attention_resolutions", "norm_groups"} < FIELDS
    assert "resample_filter" not in FIELDS
