"""Tests of `fastdiff ema`."""

from pathlib import Path

import pytest

import fastdiff as fd
from support.command_line import fails, works
from support.training_runs import trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ema") / "run"
    trainer(folder, steps=12, snapshot_every=1).run()
    return folder


def test_a_model_of_any_width_is_written_and_sampled(folder, tmp_path):
    said = works("ema", folder, tmp_path / "model", "--width", 0.12)
    assert "width 0.12 at step 12, of 12 snapshots; its profile is off by " in said
    assert f"next: fastdiff sample {tmp_path / 'model'}" in said
    assert fd.Pipeline.from_pretrained(tmp_path / "model").metadata["training"]["average"] == "power:0.12"
    works("sample", tmp_path / "model", "--num", 1, "--steps", 2, "--out", tmp_path / "x.npy")
    works("sample", folder, "--weights", "power:0.05", "--num", 1, "--steps", 2, "--out", tmp_path / "y.npy")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--width", 0.3), "--width must be a number in (0, 0.2887)"),
        (("--width", 0.005), "a --width of 0.005 at step 12 cannot be made of 12 snapshots of widths 0.05 and 0.1"),
        (("--width", 0.1, "--step", 13), "--step must be from 1 to 12"),
        (("--width", 0.1, "--max-error", 0), "--max-error must be a positive number"),
        ((), "Missing option '--width'"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(folder, tmp_path, options, said):
    assert said in fails("ema", folder, tmp_path / "model", *options)
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_there_is_left_alone(folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").touch()
    assert "exists already and nothing is overwritten" in fails("ema", folder, tmp_path / "model", "--width", 0.1)
    assert "is not the folder of a training run" in fails("ema", tmp_path / "no", tmp_path / "new", "--width", 0.1)
