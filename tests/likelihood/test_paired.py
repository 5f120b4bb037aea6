"""Paired comparisons: against scipy, and whether intervals cover."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from fastdiff import likelihood
from fastdiff.likelihood.paired import student_quantile
from support.networks import small_pipeline

DIGITS = torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_compare_pairs_by_image():
    a, b = small_pipeline(), small_pipeline(1.3)
    result = likelihood.compare(a, b, DIGITS, seed=2)
    totals = [pipe.likelihood(DIGITS, seed=2).total for pipe in (a, b)]
    torch.testing.assert_close(result.difference, totals[0] - totals[1])
    expected = scipy.stats.ttest_rel(totals[0], totals[1]).confidence_interval(0.95)
    # The totals are the same on both sides: it is the formula that is compared.
    assert result.interval == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert likelihood.compare(a, a, DIGITS).mean == 0
    assert not likelihood.compare(a, a, DIGITS).is_significant


def test_compare_intervals_cover():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        shared = rng.normal(3, 1, 8)
        noise = [torch.from_numpy(shared + rng.normal(0, 0.1, 8)) for _ in range(2)]
        low, high = likelihood.paired_difference(noise[0], noise[1] + 0.05, 0.9).interval
        held += low <= -0.05 <= high
    assert abs(held / 400 - 0.9) < 4 * math.sqrt(0.09 / 400)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 101, 1000, 2_000_000])
def test_student_quantile_is_that_of_scipy(degrees):
    for p in (0.75, 0.975, 0.999):
        # Beyond a million degrees of freedom the normal's quantile is taken.
        assert student_quantile(p, degrees) == pytest.approx(scipy.stats.t.ppf(p, degrees), rel=1e-5)


def test_compare_refuses():
    with pytest.raises(ValueError, match="at least 2"):
        likelihood.compare(small_pipeline(), small_pipeline(), DIGITS[:1])
    with pytest.raises(ValueError, match="confidence"):
        likelihood.compare(small_pipeline(), small_pipeline(), DIGITS, confidence=95)
    with pytest.raises(ValueError, match="cannot be compared"):
        likelihood.compare(small_pipeline(), small_pipeline(levels=256), DIGITS)
