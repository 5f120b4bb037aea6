"""Tests of fastdiff.cli.score."""

import numpy as np

from support.command_line import fails, works


def test_shards_score_what_likelihood_does(model, archive, tmp_path):
    few = ("--part-size", 2, "--seed", 3)
    assert "2 of 3 images in 1 of 2 parts" in works("score", model, archive, tmp_path / "job", *few, "--shard", "0/2")
    said = works("score", model, archive, tmp_path / "job", *few)
    expected = works("likelihood", model, archive, "--seed", 3)
    assert (
        said.splitlines()[-1].split()[0]
        == next(line for line in expected.splitlines() if "bits/dim" in line).split()[0]
    )


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
