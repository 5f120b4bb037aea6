"""The demonstration, end to end: the same code as `fastdiff demo`, with a network that has hardly trained."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from fastdiff.cli.app import app
from fastdiff.cli.demo import digits
from fastdiff.cli.demo.digits import (
    DemoConfig,
    delete_run,
    digits_diffusion,
    digits_training,
    digits_unet,
    run_demo,
)
from fastdiff.cli.demo.digits_report import WRITTEN
from fastdiff.cli.train_plan import plan_training

pytest.importorskip("sklearn", reason="it carries the digits")
pytest.importorskip("matplotlib")

TINY = replace(DemoConfig.quick(), steps=12, num_samples=24, num_scored=6)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, metrics, what was printed) of one run."""
    out = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    own, judges = digits._judges, []

    def trained_once(train, config):
        if not judges:
            judges.append(own(train, config))
        return judges[0]

    with pytest.MonkeyPatch.context() as patch:
        # The classifiers are the same in every run here, and take most of its time.
        patch.setattr(digits, "_judges", trained_once)
        result = run_demo(out, TINY, console=Console(file=printed, width=100))
        yield out, result, printed.getvalue()


def test_demo_writes_every_file(demo):
    out, _, printed = demo
    for name, _what in WRITTEN:
        assert (out / name).exists(), name
        assert str(out / name) in printed.replace("\n", "")
    assert not [path for path in out.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    "name", ["samples.png", "denoising.png", "nearest.png", "loss.png", "bound.png", "denoising.gif"]
)
def test_demo_pictures_show_something(demo, name):
    with Image.open(demo[0] / name) as picture:
        assert min(picture.size) >= 200
        assert len(np.unique(np.asarray(picture.convert("L")))) >= 10


def test_demo_metrics_hold_what_they_should(demo):
    out, result, _ = demo
    found = json.loads((out / "metrics.json").read_text())
    assert found == json.loads(json.dumps(result))
    score = found["likelihood"]
    assert score["bits_per_dim"] == pytest.approx(score["prior"] + score["kl"] + score["decoder"])
    assert score["standard_error"] > 0
    assert score["num_images"] == 6
    # Of 17 values: a uniform guess costs log2(17).
    assert score["uniform_bits_per_dim"] == pytest.approx(4.0875, abs=1e-4)
    assert 1 < score["independent_pixels_bits_per_dim"] < 3
    assert found["training"]["seconds"] > 0
    assert found["training"]["images_per_second"] > 0
    assert found["sampling"]["images_per_second"] > 0
    assert found["frechet_distance"]["num_samples"] == 24
    assert 0 < found["frechet_distance"]["held_out"] < 1
    for name in ("classifier", "strict_classifier"):
        assert found[name]["held_out"]["accuracy"] > 0.95
        assert sum(found[name]["samples"]["shares"]) == pytest.approx(1)
    assert found["copies"]["exact_copies"] == 0
    assert found["peak_memory_bytes"] > 2**20
    assert found["seed"] == 0
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["versions"]["fastdiff"]


def test_demo_prints_that_bits_are_of_17_values(demo):
    assert "17 values" in demo[2]


def test_demo_samples_are_those_of_the_archive(demo):
    images = np.load(demo[0] / "samples.npz")["arr_0"]
    assert images.shape == (24, 8, 8, 1)
    assert images.dtype == np.uint8
    # 17 grey values, in 0..255.
    assert set(np.unique(images)) <= set(np.round(np.arange(17) * 255 / 16).astype(int))


def test_demo_checkpoint_samples_and_scores(demo, tmp_path):
    out, result, _ = demo
    runner = CliRunner()
    grid = tmp_path / "grid.png"
    drawn = runner.invoke(app, ["sample", str(out), "--num", "5", "--steps", "3", "--out", str(grid)])
    assert drawn.exit_code == 0, drawn.output
    assert grid.exists()
    numbers = tmp_path / "score.json"
    command = ["likelihood", str(out), "digits", "--num", "6", "--json", str(numbers)]
    scored = runner.invoke(app, command)
    assert scored.exit_code == 0, scored.output
    assert "17 values" in scored.output
    found = json.loads(numbers.read_text())
    assert found["num_images"] == 6
    # A network that has hardly trained, and other images of the same digits: within a fifth.
    assert found["bits_per_dim"] == pytest.approx(result["likelihood"]["bits_per_dim"], rel=0.2)


def test_demo_uses_a_finished_run_again(demo):
    out, result, _ = demo
    checkpoint = sorted((out / "checkpoints").iterdir())[-1] / "model.safetensors"
    before = checkpoint.read_bytes()
    printed = io.StringIO()
    again = run_demo(out, TINY, console=Console(file=printed, width=100))
    assert "finished training run" in printed.getvalue()
    assert checkpoint.read_bytes() == before
    assert again["likelihood"]["bits_per_dim"] == result["likelihood"]["bits_per_dim"]
    assert again["training"]["seconds"] == result["training"]["seconds"]


def test_demo_refuses_a_run_of_another_seed_unless_fresh(demo):
    with pytest.raises(ValueError, match="of another run"):
        run_demo(demo[0], replace(TINY, seed=1), console=Console(quiet=True))


def test_fresh_deletes_the_training_and_nothing_else(tmp_path):
    for name in ("checkpoints/step_00000001", "logs", "mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "step_00000001.png").write_text("")
    for name in ("metrics.jsonl", "report.html", "keep.txt"):
        (tmp_path / name).write_text("")
    delete_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep.txt", "mine"]
    delete_run(tmp_path / "missing")


def test_train_command_can_go_on_with_the_demo():
    plan = plan_training({"unet": {"preset": "digits"}, "data": {"source": "digits"}})
    assert plan.unet == digits_unet()
    assert plan.diffusion == digits_diffusion()
    # How often it is looked at makes no difference.
    assert replace(plan.train, picture_every=0, evaluate_every=0) == digits_training(DemoConfig().steps)
