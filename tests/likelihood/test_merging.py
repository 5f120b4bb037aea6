"""Tests of fastdiff.likelihood.merging."""

import math

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.likelihood.merging import Moments, merge
from support.networks import one_level
from support.tolerances import FLOAT32_FEW, FLOAT32_SUM, FLOAT64_PRODUCT


@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 90], list(range(1, 100))])
def test_parts_give_what_the_whole_gives(cuts):
    totals = 3 + 1e-3 * np.random.default_rng(0).standard_normal(100)
    parts = np.split(totals, cuts)
    found = merge(parts[::-1])
    assert found.num == 100
    assert found.mean == pytest.approx(totals.mean(), rel=FLOAT64_PRODUCT)
    error = totals.std(ddof=1) / 10
    assert found.standard_error == pytest.approx(error, rel=FLOAT64_PRODUCT)
    assert merge([merge(parts[:1]), *parts[1:]]).standard_error == pytest.approx(error, rel=FLOAT64_PRODUCT)


def test_results_of_the_library_are_parts():
    unet = fd.UNet(one_level(dropout=0.0)).eval()
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(6))
    x = torch.randint(256, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = fd.likelihood.bound(unet, diffusion, x, seed=1)
    halves = [fd.likelihood.bound(unet, diffusion, x[ids], seed=1, sample_ids=ids) for ids in ([0, 1], [2, 3, 4, 5])]
    found = fd.likelihood.merge(halves)
    # The network's float32 sums may take another order in another batch.
    assert found.mean == pytest.approx(whole.mean, rel=FLOAT32_FEW)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=FLOAT32_SUM)


def test_one_image_has_no_spread():
    assert math.isnan(merge([[2.5]]).standard_error)


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match="no parts"):
        merge([])
    with pytest.raises(ValueError, match="no scores"):
        Moments.of([])
    with pytest.raises(ValueError, match="1 of 2 scores"):
        merge([[1.0, math.nan]])
