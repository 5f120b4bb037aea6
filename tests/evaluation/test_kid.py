"""Tests of fastdiff.evaluation.kid: a closed form on Gaussians, torch-fidelity, and the standard error."""

import numpy as np
import pytest
import torch

from fastdiff.evaluation import kernel_distance, polynomial_mmd
from support.fidelity import fidelity
from support.tolerances import FLOAT64_DIFFERENCE

RNG = np.random.default_rng(0)


def closed_form(shift, scale):
    """MMD^2 of N(0, 1) and N(shift, scale^2) by (x y + 1)^3 in one dimension: a sum over the moments.

    E (x y + 1)^3 = 1 + 3 m1 m1' + 3 m2 m2' + m3 m3', so the distance is 3 dm1^2 + 3 dm2^2 + dm3^2.
    """
    moments = np.array([shift, shift**2 + scale**2, shift**3 + 3 * shift * scale**2])
    differences = moments - np.array([0.0, 1.0, 0.0])
    return float((np.array([3.0, 3.0, 1.0]) * differences**2).sum())


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5), (0.4, 0.7)])
def test_distance_of_gaussians_is_the_closed_form(shift, scale):
    found = kernel_distance(RNG.normal(size=(20_000, 1)), RNG.normal(shift, scale, size=(20_000, 1)))
    assert abs(found.value - closed_form(shift, scale)) < 4 * found.standard_error


def test_a_block_is_torch_fidelitys():
    peer = fidelity("metric_kid")
    a, b = RNG.normal(size=(120, 8)), RNG.normal(size=(120, 8)) + 0.2
    wanted = peer.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=120, verbose=False
    )[peer.KEY_METRIC_KID_MEAN]
    assert polynomial_mmd(a, b) == pytest.approx(wanted, rel=FLOAT64_DIFFERENCE)


def test_blocks_agree_with_torch_fidelitys_subsets():
    peer = fidelity("metric_kid")
    a, b = RNG.normal(size=(3000, 8)), RNG.normal(size=(3000, 8)) + 0.3
    wanted = peer.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=50, kid_subset_size=300, verbose=False
    )[peer.KEY_METRIC_KID_MEAN]
    found = kernel_distance(a, b, block=300)
    assert abs(found.value - wanted) < 3 * found.standard_error


def test_standard_error_is_how_far_distances_spread():
    found = [kernel_distance(RNG.normal(size=(400, 3)), RNG.normal(size=(400, 3)), seed=i) for i in range(200)]
    values = np.array([one.value for one in found])
    spread, claimed = values.std(), np.sqrt(np.mean([one.standard_error**2 for one in found]))
    assert 0.8 < claimed / spread < 1.25
    # It has no bias: sets of one distribution are at 0.
    assert abs(values.mean()) < 4 * spread / np.sqrt(len(values))


def test_blocks_fit_the_smaller_set():
    found = kernel_distance(RNG.normal(size=(2500, 2)), RNG.normal(size=(20_000, 2)))
    assert (found.blocks, found.block) == (10, 250)
    found = kernel_distance(RNG.normal(size=(20_000, 2)), RNG.normal(size=(20_000, 2)))
    assert (found.blocks, found.block) == (20, 1000)


def test_too_few_images_and_other_features_are_refused():
    with pytest.raises(ValueError, match="kid needs at least 20 images of each set, 10 blocks of 2, got 19"):
        kernel_distance(np.zeros((19, 2)), np.zeros((30, 2)))
    with pytest.raises(ValueError, match="at least 2 images"):
        polynomial_mmd(np.zeros((3, 2)), np.zeros((3, 3)))
