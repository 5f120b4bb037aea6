"""Tests of fastdiff.evaluation.inception_score."""

import numpy as np
import pytest
import torch

from fastdiff.evaluation import ScoreSums
from support.fidelity import fidelity
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

RNG = np.random.default_rng(0)


def score_of(logits, size=7, **options):
    sums = ScoreSums(len(logits), **options)
    for first in range(0, len(logits), size):
        sums.add(logits[first : first + size])
    return sums.score()


def test_score_in_closed_form():
    sure = 1000.0 * np.eye(5)[np.arange(200) % 5]
    assert score_of(sure, splits=1).value == pytest.approx(5, rel=FLOAT64)
    assert score_of(np.zeros((200, 5)), splits=4).value == pytest.approx(1, rel=FLOAT64)
    # Two halves: sure of one of two classes.
    assert score_of(sure[np.arange(200) % 5 < 2], splits=1).value == pytest.approx(2, rel=FLOAT64)


@pytest.mark.parametrize("splits", [1, 10])
def test_score_is_torch_fidelitys(splits):
    peer = fidelity("metric_isc")
    logits = RNG.normal(size=(100, 12)) * 3
    sums = ScoreSums(100, splits=splits)
    # Theirs takes consecutive images: those of a split of ours, one split after the other.
    order = np.argsort(sums._split, kind="stable")
    wanted = peer.isc_features_to_metric(torch.from_numpy(logits[order]), splits, shuffle=False)
    found = score_of(logits, splits=splits)
    assert found.value == pytest.approx(wanted[peer.KEY_METRIC_ISC_MEAN], rel=FLOAT64_DIFFERENCE)
    assert found.deviation == pytest.approx(wanted[peer.KEY_METRIC_ISC_STD], rel=FLOAT64_DIFFERENCE, abs=FLOAT64)


def test_splits_mix_labels_that_come_in_turn():
    sure = 1000.0 * np.eye(10)[np.arange(1000) % 10]
    assert score_of(sure).value > 9


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="is needs at least 10 images, one for each split, got 9"):
        ScoreSums(9)
