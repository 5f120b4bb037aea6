"""Tests of fastdiff.generation.generate."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from fastdiff.generation.generate import Request, digest, gather, generate, verify
from fastdiff.generation.job import checksum
from fastdiff.generation.shards import Shard
from support.jobs import contents
from support.networks import small_unet

REQUEST = Request(23, steps=2, seed=5, part_size=5)
ALL = Shard()


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """The parts of one process."""
    folder = tmp_path_factory.mktemp("whole")
    generate(pipe, folder, REQUEST, shard=ALL)
    return contents(folder)


def test_a_digest_is_that_of_the_weights():
    network = small_unet()
    other = copy.deepcopy(network)
    assert digest(network) == digest(other)
    with torch.no_grad():
        other.conv_out.bias[0] += 1
    assert digest(network) != digest(other)


def test_images_are_those_of_sample(pipe, tmp_path):
    folder = generate(pipe, tmp_path, REQUEST, shard=ALL)
    path = gather(folder, tmp_path / "all.npz")
    expected = pipe.sample(23, steps=2, seed=5)
    pixels = ((expected.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["arr_0"], pixels)


def test_a_job_that_grew_has_the_bytes_of_the_larger_one(pipe, tmp_path, whole):
    generate(pipe, tmp_path, dataclasses.replace(REQUEST, num=12), shard=ALL)
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 6}, "seed"), ({"steps": 3}, "table"), ({"part_size": 4}, "part_size"), ({"format": "zip"}, "format")],
)
def test_another_request_is_refused(pipe, tmp_path, change, said):
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    with pytest.raises(ValueError, match=said):
        generate(pipe, tmp_path, dataclasses.replace(REQUEST, **change), shard=ALL)


def test_another_model_is_refused(pipe, labelled, tmp_path):
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    with pytest.raises(ValueError, match="weights is another"):
        generate(labelled, tmp_path, REQUEST, shard=ALL)


def test_labels_are_taken_in_turn_or_by_id(labelled, tmp_path):
    turns = {None: [0, 1, 2], ("2", 0): [2, 0]}
    for given, turn in turns.items():
        folder = generate(labelled, tmp_path / str(given), dataclasses.replace(REQUEST, labels=given), shard=ALL)
        with np.load(gather(folder, tmp_path / f"{given}.npz")) as archive:
            assert archive["arr_1"].tolist() == [turn[i % len(turn)] for i in range(23)]
    labels = np.random.default_rng(0).integers(0, 3, 40)
    folder = generate(labelled, tmp_path / "array", dataclasses.replace(REQUEST, labels=labels), shard=ALL)
    with np.load(gather(folder, tmp_path / "array.npz")) as archive:
        np.testing.assert_array_equal(archive["arr_1"], labels[:23])
        expected = labelled.sample(23, steps=2, seed=5, labels=labels[:23].tolist())
        pixels = ((expected.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(archive["arr_0"], pixels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(5), "do not cover the ids 0..22"),
        (np.full(23, 3), r"must be in 0..2, got 3..3"),
        (np.zeros(23), "whole numbers"),
        (["dog"], "labels"),
        ([], "at least one class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labelled, tmp_path, labels, said):
    with pytest.raises(ValueError, match=said):
        generate(labelled, tmp_path, dataclasses.replace(REQUEST, labels=labels), shard=ALL)


def test_labels_need_classes(pipe, tmp_path):
    with pytest.raises(ValueError, match="no classes"):
        generate(pipe, tmp_path, dataclasses.replace(REQUEST, labels=[0]), shard=ALL)


def test_an_unfinished_job_is_not_gathered(pipe, tmp_path):
    folder = generate(pipe, tmp_path, REQUEST, shard=Shard(0, 2))
    with pytest.raises(ValueError, match="has 3 of 5 parts"):
        gather(folder, tmp_path / "all.npz")


def test_verify_finds_a_changed_image(pipe, tmp_path):
    folder = generate(pipe, tmp_path, REQUEST, shard=ALL)
    assert verify(pipe, tmp_path, REQUEST, range(23)) == []
    part = folder.job.part(1)
    with np.load(folder.file(part)) as archive:
        images = archive["arr_0"].copy()
    images[2, 0, 0, 0] ^= 8
    np.savez(folder.file(part), images)
    with pytest.raises(ValueError, match="checksum"):
        verify(pipe, tmp_path, REQUEST, [7])
    said = json.loads(folder.record(part).read_text()) | {"sha256": checksum(folder.file(part))}
    folder.record(part).write_text(json.dumps(said))
    assert [(wrong.id, wrong.pixels) for wrong in verify(pipe, tmp_path, REQUEST, [6, 7])] == [(7, 1)]
