"""Tests of fastdiff.cli.evaluate: `fastdiff evaluate`."""

import json

import numpy as np
import pytest

from support.command_line import fails, works

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, (num, size, channels) in {
        "a": (30, 6, 3), "b": (25, 6, 3), "real": (40, 6, 3), "few": (9, 6, 3), "large": (30, 8, 3), "grey": (30, 6, 1),
    }.items():  # fmt: skip
        np.savez(folder / f"{name}.npz", RNG.integers(0, 256, (num, size, size, channels), dtype=np.uint8))
    return folder


def test_sets_are_measured_and_written(sets, tmp_path):
    out = tmp_path / "out"
    said = works("evaluate", sets / "a.npz", sets / "b.npz", sets / "real.npz", "--out", out, "--features", "pixels")
    for word in ("Fréchet distance", "kernel distance", "coverage", "set 2", "40 images", "sha256", "least"):
        assert word in said
    about = json.loads((out / "evaluation.json").read_text())
    assert [one["num"] for one in about["sets"]] == [30, 25]
    assert (out / "evaluation.csv").is_file()
    assert (out / "evaluation.png").is_file()
    assert "holds evaluation.json already" in fails("evaluate", sets / "a.npz", sets / "real.npz", "--out", out)
    works("evaluate", sets / "a.npz", sets / "real.npz", "--out", out, "--overwrite")


def test_a_generations_folder_is_evaluated_with_its_seed(model, sets, tmp_path):
    works("generate", model, tmp_path / "job", "--num", 24, "--steps", 2, "--part-size", 10, "--seed", 3)
    works("gather", tmp_path / "job", tmp_path / "all.npz")
    works("evaluate", tmp_path / "job", tmp_path / "all.npz", "--out", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (about["sets"][0]["seed"], about["sets"][0]["sampler"]) == (3, "ddim")
    assert about["sets"][0]["sha256"] == about["reference"]["sha256"]
    # Sets of the same images; the root of a rounding error of a singular covariance is left.
    assert about["sets"][0]["values"]["fid"] < 1e-3


def test_statistics_are_saved_and_are_a_reference(sets, tmp_path):
    given = ("evaluate", sets / "a.npz", sets / "real.npz", "--metrics", "fid", "--save-statistics", tmp_path / "s.npz")
    first = works(*given)
    again = works("evaluate", sets / "a.npz", tmp_path / "s.npz", "--metrics", "fid")
    assert first.split("Fréchet distance")[1].split()[0] == again.split("Fréchet distance")[1].split()[0]
    assert "kid compares single images" in fails("evaluate", sets / "a.npz", tmp_path / "s.npz", "--metrics", "kid")
    assert "--save-statistics needs fid" in fails(*given, "--metrics", "kid", "--overwrite")


@pytest.mark.parametrize(
    ("samples", "options", "said"),
    [
        ("large", (), "of 8x8 pixels with 3 channels, and the reference"),
        ("grey", (), "of 6x6 pixels with 1 channels, and the reference"),
        ("few", (), "kid needs at least 20 images of each set, and"),
        ("a", ("--metrics", "fid,fidd"), "unknown --metrics 'fidd': did you mean 'fid'?"),
        ("a", ("--metrics", "is"), "--metrics is needs a network that tells classes"),
        ("a", ("--features", "inception:weights.pth"), "there is no file weights.pth; Inception needs"),
        ("missing", (), "does not exist"),
    ],
)
def test_what_does_not_fit_is_a_sentence(sets, samples, options, said):
    assert said in fails("evaluate", sets / f"{samples}.npz", sets / "real.npz", *options)
