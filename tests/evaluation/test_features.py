"""Tests of fastdiff.evaluation.features: the built-in features are fixed, whatever the batch."""

import numpy as np
import pytest
import torch

from fastdiff.evaluation import open_features
from support.tolerances import FLOAT32_DEEP, FLOAT32_SUM

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 12, 10), dtype=np.uint8))

# Of the test below, computed once.
KNOWN = [148.724, 0.284782, 1.34264, 0.0]


def test_builtin_features_are_the_same_in_any_batch():
    features = open_features("builtin", 3)
    whole, logits = features.compute(IMAGES)
    assert logits is None
    assert not features.has_classes
    assert whole.shape == (9, 416)
    parts = torch.cat([features.compute(part)[0] for part in IMAGES.split(4)])
    torch.testing.assert_close(parts, whole, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_builtin_features_are_what_they_were():
    """Distances of today compare with those of another day."""
    grey = open_features("builtin", 1).compute(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8) * 4)[0][0]
    found = [float(value) for value in (grey.sum(), grey[0], grey[40], grey[300])]
    assert found == pytest.approx(KNOWN, rel=FLOAT32_DEEP)


@pytest.mark.parametrize(("channels", "size"), [(1, 1), (1, 8), (4, 5)])
def test_builtin_takes_any_size_and_channels(channels, size):
    images = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    assert open_features("builtin", channels).compute(images)[0].shape == (2, 416)


def test_builtin_says_that_it_is_no_fid():
    assert "not comparable with a published FID" in open_features("builtin", 3).about["note"]


def test_pixels_are_themselves():
    found = open_features("pixels", 3).compute(IMAGES)[0]
    np.testing.assert_allclose(found.numpy(), IMAGES.numpy().reshape(9, -1) / 127.5 - 1, atol=FLOAT32_SUM)
    with pytest.raises(ValueError, match="at most 4,096 values, and these have 12,288"):
        open_features("pixels", 3).compute(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["buildin", "inceptio:x", "", "clip:x"])
def test_unknown_features_suggest_the_known(name):
    with pytest.raises(ValueError, match=r"unknown features .*known: builtin, dinov2, inception, pixels; give"):
        open_features(name, 3)
