"""Parts of data: what they read and say of themselves, and how a share is held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.data.part import Part, hold_out
from support.training_runs import images


def test_part_reads_its_images_by_its_own_numbers() -> None:
    data = images(labels=True)
    part = Part(data, np.array([7, 2, 9]), "three")
    assert isinstance(part, fd.data.ImageSource)
    assert (len(part), part.shape, part.scaling) == (3, data.shape, data.scaling)
    assert torch.equal(part.read(np.array([2, 0])), data.images[[9, 7]])
    assert part.labels is not None
    assert data.labels is not None
    assert torch.equal(part.labels, data.labels[[7, 2, 9]])
    assert repr(part).startswith("three (3) of ImageData(")


def test_part_is_described_by_its_images() -> None:
    data = images()
    one, other = (Part(data, np.array(chosen), "").describe(with_labels=False) for chosen in ([1, 2], [1, 3]))
    assert one["num_images"] == 2
    assert one != other
    assert one["part"]["of"] == 12
    assert Part(data, np.array([1, 2]), "else").describe(with_labels=False) == one


def test_held_out_share_is_a_fixed_choice_and_none_of_the_rest() -> None:
    train, held_out = hold_out(images(100), 0.2)
    assert (len(train), len(held_out)) == (80, 20)
    assert sorted([*train.indices, *held_out.indices]) == list(range(100))
    assert np.array_equal(hold_out(images(100, seed=1), 0.2)[1].indices, held_out.indices)
    # Not a stretch of them: folders are sorted by class.
    assert held_out.indices.max() - held_out.indices.min() > 50


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 3.0, float("nan")])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"held_out must be a share in \(0, 1\), or where other images are, got"):
        hold_out(images(), share)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_share_that_empties_a_part_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"held_out {share} of 12 images leaves one part empty: give another share"):
        hold_out(images(), share)
