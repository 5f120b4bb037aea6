"""Tests of fastdiff.generation.score."""

import dataclasses

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.data import DataScaling, ImageData
from fastdiff.generation.folder import JobFolder
from fastdiff.generation.job import Job
from fastdiff.generation.score import ScoreRequest, read_scores, score
from fastdiff.generation.shards import Shard
from support.tolerances import FLOAT32_SUM, FLOAT64_PRODUCT

ALL = Shard()
REQUEST = ScoreRequest(seed=2, part_size=3)
# The flow of a network that was never trained is stiff: "ode" takes minutes.
OPTIONS = {"bound": {}, "iwae": {"trajectories": 2}}


def pictures(num=8, *, seed=0, labels=False):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (num, 1, 8, 8), generator=generator).to(torch.uint8)
    return ImageData(values, torch.arange(num) % 3 if labels else None, DataScaling(256), "pictures")


@pytest.mark.parametrize("method", OPTIONS)
def test_parts_are_the_scores_of_the_whole(pipe, tmp_path, method):
    data, options = pictures(), OPTIONS[method]
    request = dataclasses.replace(REQUEST, method=method, options=options)
    for index in (1, 0):
        folder = score(pipe, data, tmp_path, request, shard=Shard(index, 2), batch_size=2)
    ids, totals = read_scores(folder)
    whole = pipe.likelihood(data.to_model(data.images), method, seed=2, **options)
    assert ids.tolist() == list(range(8))
    np.testing.assert_allclose(totals, whole.total.numpy(), rtol=FLOAT32_SUM)
    parts = [read_scores(dataclasses.replace(folder))[1][a:b] for a, b in ((0, 3), (3, 8))]
    assert fd.likelihood.merge(parts).mean == pytest.approx(float(np.mean(totals)), rel=FLOAT64_PRODUCT)


def test_bytes_do_not_depend_on_the_shards(pipe, tmp_path):
    one = score(pipe, pictures(), tmp_path / "one", REQUEST, shard=ALL, batch_size=8)
    for index in range(3):
        two = score(pipe, pictures(), tmp_path / "two", REQUEST, shard=Shard(index, 3), batch_size=1)
    for name in ("bits_per_dim", "prior", "decoder", "kl", "sampling_error"):
        np.testing.assert_array_equal(read_scores(one, name)[1], read_scores(two, name)[1])


def test_terms_and_encodings_are_kept_on_request(pipe, tmp_path):
    data = pictures(4)
    terms = score(pipe, data, tmp_path / "terms", dataclasses.replace(REQUEST, terms=True), shard=ALL)
    assert read_scores(terms, "terms")[1].shape == (4, pipe.diffusion.num_timesteps)
    request = ScoreRequest(method="encode", options={"steps": 3}, part_size=3)
    encoded = score(pipe, data, tmp_path / "encoded", request, shard=ALL)
    latents = read_scores(encoded, "latents")[1]
    expected = pipe.encode(data.to_model(data.images), steps=3).numpy()
    np.testing.assert_allclose(latents, expected, atol=FLOAT32_SUM)
    with pytest.raises(ValueError, match="holds no 'bits_per_dim'; it has ids, latents"):
        read_scores(encoded)


def test_other_data_are_refused(pipe, tmp_path):
    score(pipe, pictures(), tmp_path, REQUEST, shard=ALL)
    with pytest.raises(ValueError, match="data is another"):
        score(pipe, pictures(seed=1), tmp_path, REQUEST, shard=ALL)
    with pytest.raises(ValueError, match="seed: 2 in the folder, 3 now"):
        score(pipe, pictures(), tmp_path, dataclasses.replace(REQUEST, seed=3), shard=ALL)


def test_labels_go_with_their_images(labelled, tmp_path):
    data = pictures(labels=True)
    folder = score(labelled, data, tmp_path, REQUEST, shard=ALL)
    expected = labelled.likelihood(data.to_model(data.images), seed=2, labels=data.labels).total
    np.testing.assert_allclose(read_scores(folder)[1], expected.numpy(), rtol=FLOAT32_SUM)
    with pytest.raises(ValueError, match="has no labels"):
        score(labelled, pictures(), tmp_path / "b", REQUEST, shard=ALL)


def test_a_damaged_part_is_named_and_scored_again(pipe, tmp_path):
    folder = score(pipe, pictures(), tmp_path, REQUEST, shard=ALL)
    before = read_scores(folder)[1]
    file = folder.file(folder.job.part(1))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="its checksum is another"):
        read_scores(folder)
    score(pipe, pictures(), tmp_path, REQUEST, shard=ALL)
    np.testing.assert_array_equal(read_scores(folder)[1], before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "bond"}, "did you mean 'bound'"),
        ({"method": "ode", "terms": True}, "terms are the bound's"),
        ({"part_size": 0}, "part_size"),
        ({"options": {"seed": 1}}, "seed is no option"),
    ],
)
def test_a_wrong_request_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(REQUEST, **change)


def test_nothing_is_read_of_a_job_that_was_not_begun(tmp_path):
    job = Job("score", {}, 3, 3, {})
    with pytest.raises(ValueError, match="has no part yet"):
        read_scores(JobFolder(tmp_path, job, ".npz"))
