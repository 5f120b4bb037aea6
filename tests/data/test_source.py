"""The protocol of data: what is in memory is an `ImageSource`."""

import hashlib

import numpy as np
import torch

import fastdiff as fd
from support.training_runs import images


def test_source_is_what_data_in_memory_are() -> None:
    assert isinstance(images(), fd.data.ImageSource)
    assert not isinstance(images().images, fd.data.ImageSource)


def test_source_reads_by_number_with_repeats() -> None:
    data = images()
    assert torch.equal(data.read(np.array([3, 0, 3])), data.images[[3, 0, 3]])
    assert data.num_draws == 0


def test_source_in_memory_is_described_by_a_hash_of_its_values() -> None:
    data = images(labels=True)
    pixels, labels = data.images.numpy().tobytes(), data.labels.numpy().tobytes()
    plain = {"source": "test", "num_images": 12, "shape": [1, 4, 4]}
    assert data.describe(with_labels=False) == plain | {"sha256": hashlib.sha256(pixels).hexdigest()}
    assert data.describe(with_labels=True) == plain | {"sha256": hashlib.sha256(pixels + labels).hexdigest()}


def test_source_names_are_those_of_the_package() -> None:
    assert fd.data.ImageData is type(images())
