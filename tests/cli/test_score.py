"""Tests of fastdiff.cli.score."""

import sys

import numpy as np
import pytest

from support.command_line import fails, works
from support.jobs import contents


def test_shards_score_what_likelihood_does(model, archive, tmp_path):
    few = ("--part-size", 2, "--seed", 3)
    assert "2 of 3 images in 1 of 2 parts" in works("score", model, archive, tmp_path / "job", *few, "--shard", "0/2")
    said = works("score", model, archive, tmp_path / "job", *few)
    expected = works("likelihood", model, archive, "--seed", 3)
    assert (
        said.splitlines()[-1].split()[0]
        == next(line for line in expected.splitlines() if "bits/dim" in line).split()[0]
    )


def test_score_takes_a_precision(lively_model, archive, tmp_path):
    said = {}
    for precision in ("fast", "bfloat16"):
        options = ("--precision", precision, "--method", "bound", "--option", "timesteps=[3]")
        works("score", lively_model, archive, tmp_path / precision, *options)
        with np.load(tmp_path / precision / "parts" / "part-000000.npz") as part:
            said[precision] = np.concatenate([part[name].ravel() for name in sorted(part.files)])
    assert 0 < np.nanmax(np.abs(said["fast"] - said["bfloat16"])) < 0.1


def test_encodings_are_kept(model, archive, tmp_path):
    works("score", model, archive, tmp_path / "job", "--method", "encode", "--option", "steps=2")
    with np.load(tmp_path / "job" / "parts" / "part-000000.npz") as part:
        assert part["latents"].shape == (3, 3, 16, 16)


def test_a_folder_keeps_to_its_job(model, archive, tmp_path):
    works("score", model, archive, tmp_path / "job")
    assert "seed: 0 in the folder, 1 now" in fails("score", model, archive, tmp_path / "job", "--seed", 1)
    assert "kind" in fails("generate", model, tmp_path / "job", "--num", 3)
    assert "holds scores" in fails("gather", tmp_path / "job", tmp_path / "a.npz")


def test_what_does_not_fit_is_named(model, archive, tmp_path):
    assert "--terms are the bound's" in fails("score", model, archive, tmp_path / "a", "--method", "ode", "--terms")
    assert "has 1x8x8" in fails("score", model, "digits", tmp_path / "b")


@pytest.mark.parametrize("command", ["score", "generate"])
def test_ray_is_an_extra(model, archive, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = (archive, tmp_path / "job") if command == "score" else (tmp_path / "job", "--num", 3, "--steps", 2)
    said = fails(command, model, *given, "--engine", "ray")
    assert said.startswith("error: --engine ray needs Ray, which cannot be imported")
    assert 'pip install "fastdiff-ddpm[ray]"' in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shard", "0/2", "--engine", "ray"), "--shard is for processes of their own"),
        (("--workers", 2), "--workers are Ray's"),
        (("--engine", "spark"), "unknown --engine 'spark'"),
    ],
)
def test_engines_are_those_of_generate(model, archive, tmp_path, arguments, said):
    assert said in fails("score", model, archive, tmp_path / "job", *arguments)


def test_scores_by_ray_are_those_of_one_process(model, tmp_path):
    pytest.importorskip("ray.data", reason="the extra [ray] is not installed")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    for name, more in {"one": (), "ray": ("--engine", "ray", "--workers", 1)}.items():
        works("score", model, tmp_path / "data.npy", tmp_path / name, "--seed", 5, "--part-size", 2, *more)
    assert len(contents(tmp_path / "one")) == 3
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
