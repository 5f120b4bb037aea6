"""The command line: every command on tiny things, and one clear line for whatever is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import fastdiff
from fastdiff.cli.app import app
from fastdiff.cli.options import key_values, read_yaml
from fastdiff.cli.progress import duration
from fastdiff.cli.train import plan_training, read_config_file
from fastdiff.files.checkpoint import load_model, save_model
from fastdiff.files.data import DataScaling
from fastdiff.nets.config import PRESETS, UNetConfig
from fastdiff.nets.recipes import RECIPES, build_diffusion
from fastdiff.nets.unet import UNet
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule

SMALL = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "dropout": 0.0}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def works(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def fails(*arguments):
    """The one line that a failing command prints."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: "), result.output
    assert "Traceback" not in result.output
    return lines[-1]


def _small_model(folder, *, channels=3, size=16, scaling=256, num_classes=None, timesteps=8):
    torch.manual_seed(0)
    config = UNetConfig(
        image_size=size,
        in_channels=channels,
        out_channels=channels,
        attention_resolutions=(),
        num_classes=num_classes,
        **SMALL,
    )
    save_model(folder, UNet(config), Diffusion(NoiseSchedule.cosine(timesteps)), DataScaling(scaling))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return _small_model(tmp_path_factory.mktemp("models") / "colour")


@pytest.fixture(scope="module")
def labelled_model(tmp_path_factory):
    return _small_model(tmp_path_factory.mktemp("models") / "labelled", num_classes=3)


@pytest.fixture
def pictures(tmp_path):
    """A folder of eight 16x16 colour pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


# The program


def test_help_is_fast_and_imports_no_torch():
    script = (
        "import sys, time; start = time.process_time(); import fastdiff.cli; "
        "print(time.process_time() - start, 'torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert output[1] == "False"
    assert float(output[0]) < 1.5


def test_module_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "fastdiff", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"fastdiff {fastdiff.__version__}"


@pytest.mark.parametrize("command", ["demo", "train", "sample", "likelihood", "info"])
def test_help_of_every_command(command):
    assert command in works(command, "--help")


def test_unknown_command_is_named():
    result = run("sampel")
    assert result.exit_code == 2
    assert "sampel" in result.output


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "sample", tmp_path / "missing")
    assert isinstance(result.exception, ValueError)


def test_unknown_demo():
    assert "unknown demo 'digit': did you mean 'digits'?" in fails("demo", "digit")


def test_library_warnings_become_one_line(model, tmp_path):
    np.save(tmp_path / "positive.npy", np.full((2, 16, 16, 3), 0.5, dtype=np.float32))
    result = run("likelihood", model, tmp_path / "positive.npy")
    assert "warning: " in result.stderr
    assert "UserWarning" not in result.stderr


# sample


def test_sample_writes_a_grid(model, tmp_path):
    out = tmp_path / "new" / "grid.png"
    assert str(out) in works("sample", model, "--num", 5, "--steps", 4, "--out", out).replace("\n", "")
    with Image.open(out) as picture:
        assert picture.size[0] > 100


def test_sample_writes_an_archive(model, tmp_path):
    works("sample", model, "--num", 5, "--steps", 4, "--out", tmp_path / "x.npz")
    images = np.load(tmp_path / "x.npz")["arr_0"]
    assert images.shape == (5, 16, 16, 3)
    assert images.dtype == np.uint8
    assert np.ptp(images) > 0


def test_sample_writes_a_folder_named_by_sample_id(model, tmp_path):
    works("sample", model, "--num", 3, "--steps", 2, "--start-id", 7, "--out", tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["000007.png", "000008.png", "000009.png"]


def test_sample_depends_on_seed_and_id_alone(model, tmp_path):
    def archive(name, *options):
        works("sample", model, "--sampler", "ddpm", "--out", tmp_path / name, *options)
        return np.load(tmp_path / name)["arr_0"].astype(int)

    whole = archive("a.npz", "--num", 6)
    split = archive("b.npz", "--num", 6, "--batch-size", 4)
    tail = archive("c.npz", "--num", 2, "--start-id", 4)
    other = archive("d.npz", "--num", 6, "--seed", 1)
    assert np.abs(whole - split).max() <= 1
    assert np.abs(whole[4:] - tail).max() <= 1
    assert np.abs(whole - other).max() > 10


def test_sample_takes_sampler_options(model, tmp_path):
    works(
        "sample",
        model,
        "--num",
        1,
        "--steps",
        3,
        "--option",
        "eta=0.5",
        "--option",
        "clip=none",
        "--out",
        tmp_path / "x.npz",
    )


def test_sample_with_labels(labelled_model, tmp_path):
    works("sample", labelled_model, "--num", 5, "--steps", 2, "--out", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["arr_1"].tolist() == [0, 1, 2, 0, 1]
    works("sample", labelled_model, "--num", 3, "--steps", 2, "--label", "2,0", "--out", tmp_path / "y.npz")
    assert np.load(tmp_path / "y.npz")["arr_1"].tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sampler", "dimm"], "unknown sampler 'dimm': did you mean 'ddim'"),
        (["--steps", "99"], "from 1 to 8"),
        (["--option", "etta=1"], "unknown key 'etta' in sampler 'ddim': did you mean 'eta'"),
        (["--option", "eta"], "an option is name=value"),
        (["--option", "eta=2"], "eta must be in [0, 1]"),
        (["--out", "x.jpg"], "--out takes a .png, a .npz or a folder"),
        (["--label", "1"], "no classes"),
        (["--weights", "ema"], "holds 'raw' weights only"),
        (["--device", "abacus"], "unknown device 'abacus'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sample_refuses(model, options, expected):
    assert expected in fails("sample", model, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_sample_refuses_a_gpu_that_is_not_there(model):
    assert "no GPU" in fails("sample", model, "--device", "cuda")


@pytest.mark.parametrize("label", ["3", "-1", "cat"])
def test_sample_refuses_other_labels(labelled_model, label):
    assert "label" in fails("sample", labelled_model, "--label", label)


def test_sample_refuses_a_file_as_folder(model, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "is a file" in fails("sample", model, "--out", tmp_path / "taken")


def _spoil(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda m: _spoil(m, "model.safetensors", lambda data: data[: len(data) // 2]), "truncated or damaged"),
        (lambda m: _spoil(m, "config.json", lambda data: data[:20]), "not JSON"),
        (lambda m: _spoil(m, "config.json", lambda data: b'{"a": 1}'), "not written by fastdiff"),
        (lambda m: (m / "config.json").unlink(), "not a fastdiff model folder"),
        (lambda m: (m / "model.safetensors").unlink(), "cannot read"),
    ],
    ids=["truncated", "half-config", "foreign-config", "no-config", "no-weights"],
)
def test_damaged_models_are_explained(tmp_path, damage, expected):
    folder = _small_model(tmp_path / "model")
    damage(folder)
    assert expected in fails("sample", folder)


def test_foreign_checkpoints_are_explained(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    assert "is not a network that fastdiff knows" in fails("sample", tmp_path / "model.pt")
    assert "does not exist" in fails("likelihood", tmp_path / "missing", "digits")


# likelihood


def test_likelihood_prints_its_terms(model, pictures, tmp_path):
    numbers, figure = tmp_path / "n.json", tmp_path / "bound.png"
    printed = works("likelihood", model, pictures, "--num", 4, "--json", numbers, "--figure", figure)
    found = json.loads(numbers.read_text())
    assert (
        f"{found['bits_per_dim']:.4f} ± {found['standard_error']:.4f} bits/dim (4 images; a pixel has 256 values)"
        in printed
    )
    assert found["bits_per_dim"] == pytest.approx(found["prior"] + found["kl"] + found["decoder"])
    assert len(found["terms"]) == 8
    assert sum(found["terms"]) == pytest.approx(found["kl"] + found["decoder"])
    with Image.open(figure) as picture:
        assert picture.size[0] > 300


def test_likelihood_is_that_of_the_library(model, pictures, tmp_path):
    from fastdiff import likelihood
    from fastdiff.files import data

    works("likelihood", model, pictures, "--json", tmp_path / "n.json", "--batch-size", 7)
    loaded, images = load_model(model), data.load(pictures)
    expected = likelihood.bound(loaded.unet, loaded.diffusion, images.to_model(images.images))
    found = json.loads((tmp_path / "n.json").read_text())
    assert found["bits_per_dim"] == pytest.approx(expected.mean, rel=1e-5)


def test_likelihood_of_continuous_data_is_a_density(tmp_path):
    folder = _small_model(tmp_path / "model", scaling=None)
    values = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    assert "the density of continuous values" in works("likelihood", folder, tmp_path / "x.npy")


def test_likelihood_with_labels_needs_them(labelled_model, pictures, tmp_path):
    assert "no labels" in fails("likelihood", labelled_model, pictures)
    images = np.zeros((3, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 2]))
    assert "bits/dim (3 images" in works("likelihood", labelled_model, tmp_path / "x.npz")


def test_likelihood_refuses_other_shapes_and_values(model, tmp_path):
    pytest.importorskip("sklearn")
    assert "trained on images of 3x16x16 (channels x height x width), digits/test has 1x8x8" in fails(
        "likelihood", model, "digits"
    )
    eight = _small_model(tmp_path / "eight", channels=1, size=8)
    assert "pixels of 256 values, those of digits/test have 17" in fails("likelihood", eight, "digits")
    assert "--figure writes a .png" in fails("likelihood", model, "digits", "--figure", "x.jpg")


def test_data_that_cannot_be_read_is_explained(model, pictures, tmp_path):
    assert "does not exist" in fails("likelihood", model, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "no images in it" in fails("likelihood", model, tmp_path / "empty")
    np.save(tmp_path / "nan.npy", np.full((2, 16, 16, 3), np.nan, dtype=np.float32))
    assert "NaN" in fails("likelihood", model, tmp_path / "nan.npy")
    Image.new("RGB", (9, 16)).save(pictures / "odd.png")
    assert "must have one size" in fails("likelihood", model, pictures)
    (pictures / "odd.png").write_bytes(b"not a picture")
    result = run("likelihood", model, pictures)
    assert result.exit_code == 1
    assert "odd.png: not an image" in result.stderr


# train


def _train_options(out, *more):
    sets = [f"unet.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in SMALL.items()]
    options = ["train", "--data", "digits", "--out", out, "--steps", 4, "--batch-size", 8, "-T", 10]
    for text in [*sets, "unet.attention_resolutions=[]", "train.warmup_steps=0"]:
        options += ["--set", text]
    return [*options, *more]


def test_train_writes_a_model_that_samples(tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "run"
    printed = works(*_train_options(out))
    assert "4 steps" in printed
    loaded = load_model(out)
    assert loaded.metadata["step"] == 4
    assert loaded.scaling.levels == 17
    works("sample", out, "--num", 2, "--steps", 2, "--out", tmp_path / "x.png")


def test_train_resumes_by_itself(tmp_path):
    pytest.importorskip("sklearn")
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    works(*_train_options(parts, "--steps", 3))
    assert "going on from step 3 of 6" in works(*_train_options(parts, "--steps", 6))
    works(*_train_options(whole, "--steps", 6))
    ours, theirs = (load_model(folder).unet.state_dict() for folder in (parts, whole))
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_train_continues_from_the_file_that_it_wrote(tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "run"
    works(*_train_options(out))
    assert "going on from step 4 of 5" in works("train", "--config", out / "config.yaml", "--steps", 5)


def test_train_refuses_another_run_in_the_folder(tmp_path):
    pytest.importorskip("sklearn")
    works(*_train_options(tmp_path / "run"))
    result = run(*_train_options(tmp_path / "run", "--seed", 1))
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


def test_recipes_belong_to_presets():
    assert set(RECIPES) == set(PRESETS)
    for recipe in RECIPES.values():
        build_diffusion(recipe["diffusion"])


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
    for key, value in {**SMALL, "num_classes": 4, "attention_resolutions": ()}.items():
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
        ("train: {steps: 0}\ndata: {source: D}", "steps must be a whole number from 1 to 2^28"),
        ("train: {steps: 5}", "what to train on"),
        ("data: {source: D}", "how long to train"),
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


def test_train_needs_a_folder(pictures):
    assert "give --out" in fails("train", "--data", pictures, "--steps", 1)
    assert "--set takes section.key=value" in fails("train", "--data", pictures, "--set", "channels=3")


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "fastdiff",
        *map(str, _train_options(out, "--steps", 200000, "--set", "train.log_every=1")),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        until = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size == 0:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "was saved to" in errors
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert load_model(out).metadata["step"] > 0


# info


def test_info_tells_versions_and_the_machine():
    printed = works("info")
    for word in ("fastdiff", "python", "torch", "C++ extension", "threads", "GPU"):
        assert word in printed


def test_info_lists_presets_with_the_papers_sizes():
    printed = works("info", "presets")
    assert "35,746,307" in printed
    assert "113,673,219" in printed
    assert all(name in printed for name in PRESETS)


def test_info_lists_schedules_and_samplers():
    assert all(name in works("info", "schedules", "-T", 100) for name in NoiseSchedule.names())
    assert all(name in works("info", "samplers") for name in fastdiff.samplers.names(with_statistics=True))


def test_info_writes_a_table(tmp_path):
    works("info", "table", "unipc", "--steps", 5, "--figure", tmp_path / "t.png", "--json", tmp_path / "t.json")
    read = fastdiff.CoefficientTable.from_json((tmp_path / "t.json").read_text())
    expected = fastdiff.samplers.unipc(Diffusion(NoiseSchedule.linear(1000)), 5)
    np.testing.assert_array_equal(read.rows(), expected.rows())
    assert Image.open(tmp_path / "t.png").size > (500, 200)


def test_info_prints_a_table():
    printed = works("info", "table", "ddim", "--steps", 4, "--schedule", "cosine", "-T", 100, "--option", "eta=0.5")
    expected = fastdiff.samplers.ddim(Diffusion(NoiseSchedule.cosine(100)), 4, eta=0.5)
    assert printed.strip() == str(expected).strip()
    assert "did you mean" in fails("info", "table", "dimm")


def test_info_prints_a_plan(model):
    printed = works("info", "plan", "digits", "--batch", 2)
    for expected in ("winograd4", "attention", "GFLOP", "MB", "predicted, ms", "measured, ms", "1x8x8 -> 32x8x8 3x3"):
        assert expected in printed
    assert re.search(r"arena \d+\.\d MiB, scratch \d+\.\d MiB, weights \d+\.\d MiB", printed)
    rows = [line for line in printed.splitlines() if re.match(r" *\d+ +(stats|norm|conv|attention)", line)]
    assert len(rows) == int(re.search(r"(\d+) instructions", printed)[1])
    # Every instruction has both times.
    assert all(re.search(r" \d+\.\d{3} +\d+\.\d{3} *$", row) for row in rows)
    assert "winograd" not in works("info", "plan", "digits", "--strict")
    assert "instructions" in works("info", "plan", model)
    assert "for 1 images of 16x16" in works("info", "plan", "digits", "--size", 16)
    assert "positive multiples of 2, got 7 x 7" in fails("info", "plan", "digits", "--size", 7)
    assert "does not exist" in fails("info", "plan", "no-such-network")


def test_info_describes_a_model(model, tmp_path):
    printed = works("info", "model", model)
    assert "raw, after 0 steps" in printed
    assert "256 values" in printed
    assert "does not exist" in fails("info", "model", tmp_path / "missing")


# small parts


def test_key_values_are_typed():
    found = key_values(
        ["eta=0.5", "order=3", "clip=none", "spacing=quad", "flag=true", "t=[3, 2]", "tiny=1e-4", "a-b=1"]
    )
    assert found == {
        "eta": 0.5,
        "order": 3,
        "clip": None,
        "spacing": "quad",
        "flag": True,
        "t": [3, 2],
        "tiny": 1e-4,
        "a_b": 1,
    }


def test_yaml_reads_exponents_as_numbers():
    assert read_yaml("[1e-4, 2.5E3, -1e5, 1.5e-3, 12, e4]", "here") == [1e-4, 2500.0, -1e5, 1.5e-3, 12, "e4"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1:01"), (3723, "1:02:03")])
def test_duration(seconds, text):
    assert duration(seconds) == text
