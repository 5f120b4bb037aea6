"""Tests of fastdiff.cli.generate: `fastdiff generate` and `fastdiff gather`."""

import json

import numpy as np
import pytest

from support.command_line import fails, works

FEW = ("--num", 7, "--steps", 2, "--part-size", 3)


def test_shards_make_what_gather_puts_together(model, tmp_path):
    job = tmp_path / "job"
    assert "3 of 7 images in 1 of 3 parts" in works("generate", model, job, *FEW, "--shard", "1/3")
    works("generate", model, job, *FEW, "--shard", "0/3")
    assert "next: fastdiff gather" in works("generate", model, job, *FEW)
    assert "7 images" in works("gather", job, tmp_path / "a.npz")
    works("sample", model, "--num", 7, "--steps", 2, "--out", tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as made, np.load(tmp_path / "b.npz") as sampled:
        np.testing.assert_array_equal(made["arr_0"], sampled["arr_0"])
    works("gather", job, tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 7
    assert "7 images sampled again: all are the same" in works("generate", model, job, *FEW, "--verify", 9)


def test_generate_takes_a_precision(lively_model, tmp_path):
    half = ("--precision", "bfloat16")
    works("generate", lively_model, tmp_path / "job", *FEW, *half)
    works("gather", tmp_path / "job", tmp_path / "a.npz")
    works("sample", lively_model, "--num", 7, "--steps", 2, *half, "--out", tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as made, np.load(tmp_path / "b.npz") as sampled:
        np.testing.assert_array_equal(made["arr_0"], sampled["arr_0"])
    # A job of another precision is another job.
    assert "precision: 'bfloat16' in the folder" in fails("generate", lively_model, tmp_path / "job", *FEW)


def test_generate_takes_a_choice_of_memory(lively_model, tmp_path):
    works("generate", lively_model, tmp_path / "job", *FEW, "--memory", "low")
    assert "memory: 'low' in the folder" in fails("generate", lively_model, tmp_path / "job", *FEW)
    assert "are the same" in works("generate", lively_model, tmp_path / "job", *FEW, "--memory", "low", "--verify", 9)


def test_shard_is_read_from_the_environment(model, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "1 of 7 images in 1 of 3 parts" in works("generate", model, tmp_path / "job", *FEW)


def test_labels_come_from_names_or_a_file(labelled_model, tmp_path):
    works("generate", labelled_model, tmp_path / "turn", *FEW, "--labels", "2,0")
    np.save(tmp_path / "labels.npy", np.array([1, 1, 0, 2, 2, 2, 1]))
    works("generate", labelled_model, tmp_path / "file", *FEW, "--labels", tmp_path / "labels.npy")
    for name, labels in {"turn": [2, 0, 2, 0, 2, 0, 2], "file": [1, 1, 0, 2, 2, 2, 1]}.items():
        works("gather", tmp_path / name, tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as archive:
            assert archive["arr_1"].tolist() == labels
    np.save(tmp_path / "few.npy", np.arange(3))
    said = fails("generate", labelled_model, tmp_path / "few", *FEW, "--labels", tmp_path / "few.npy")
    assert "--labels are 3 and do not cover the ids 0..6" in said


def test_a_folder_keeps_to_its_job(model, tmp_path):
    works("generate", model, tmp_path / "job", *FEW)
    assert "seed: 0 in the folder, 1 now" in fails("generate", model, tmp_path / "job", *FEW, "--seed", 1)
    assert "holds 'a.txt'" in fails("generate", model, _with_file(tmp_path / "other"), *FEW)
    assert "is a file" in fails("generate", model, _with_file(tmp_path / "third") / "a.txt", *FEW)


def test_gather_says_what_it_needs(model, tmp_path):
    assert "no job's folder" in fails("gather", tmp_path, tmp_path / "a.npz")
    works("generate", model, tmp_path / "job", *FEW, "--shard", "0/2")
    assert "2 of 3 parts" in fails("gather", tmp_path / "job", tmp_path / "a.npz")
    assert "exists already" in fails("gather", tmp_path / "job", tmp_path)
    assert "OUT writes a .npz or a .zip" in fails("gather", tmp_path / "job", tmp_path / "a.tar")


def test_a_changed_image_is_found(model, tmp_path):
    from fastdiff.generation.job import checksum

    works("generate", model, tmp_path / "job", *FEW)
    file, record = (tmp_path / "job" / "parts" / f"part-000002{suffix}" for suffix in (".npz", ".json"))
    with np.load(file) as archive:
        np.savez(file, archive["arr_0"] ^ 4)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": checksum(file)}))
    assert "1 of 7 images are other than this machine makes them" in fails(
        "generate", model, tmp_path / "job", *FEW, "--verify", 7
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shard", "0/2", "--engine", "ray"), "--shard is for processes of their own"),
        (("--workers", 2), "--workers are Ray's"),
        (("--engine", "spark"), "unknown --engine 'spark'"),
        (("--format", "jpeg"), "unknown --format 'jpeg'"),
    ],
)
def test_options_that_do_not_go_together_are_named(model, tmp_path, arguments, said):
    assert said in fails("generate", model, tmp_path / "job", *FEW, *arguments)


def _with_file(folder):
    folder.mkdir()
    (folder / "a.txt").touch()
    return folder
