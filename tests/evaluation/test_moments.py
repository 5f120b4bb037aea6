"""Tests of fastdiff.evaluation.moments: sums over parts, and the Fréchet distance in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.evaluation import Gaussian, Moments, frechet_between, merge
from support.fidelity import fidelity
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT

RNG = np.random.default_rng(0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_moments_of_parts_are_those_of_the_whole(sizes, width, seed):
    rng = np.random.default_rng(seed)
    parts = [(rng.normal(size=(size, width)) * 3 + 5).astype(np.float32) for size in sizes]
    whole, merged = Moments.of(np.concatenate(parts)), merge(map(Moments.of, parts))
    assert merged.count == whole.count == sum(sizes)
    np.testing.assert_allclose(merged.total, whole.total, rtol=FLOAT64_PRODUCT, atol=FLOAT64_PRODUCT)
    np.testing.assert_allclose(merged.outer, whole.outer, rtol=FLOAT64_PRODUCT, atol=FLOAT64_PRODUCT)
    if whole.count >= 2:
        rows = np.concatenate(parts).astype(np.float64)
        ours = merged.gaussian()
        np.testing.assert_allclose(ours.mean, rows.mean(axis=0), rtol=FLOAT64_PRODUCT)
        wanted = np.cov(rows, rowvar=False).reshape(width, width)
        np.testing.assert_allclose(ours.covariance, wanted, rtol=FLOAT64_PRODUCT, atol=FLOAT64_PRODUCT)


def test_merged_distance_is_that_of_the_whole():
    a, b = RNG.normal(size=(1000, 24)), RNG.normal(size=(800, 24)) * 1.5 + 0.3
    whole = frechet_between(Moments.of(a).gaussian(), Moments.of(b).gaussian())
    parts = merge(Moments.of(part) for part in np.array_split(a, 17)).gaussian()
    assert frechet_between(parts, Moments.of(b).gaussian()) == pytest.approx(whole, rel=FLOAT64_PRODUCT)


def test_distance_of_commuting_gaussians_has_a_closed_form():
    turn = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    first, second = RNG.uniform(0.1, 4, 5), RNG.uniform(0.1, 4, 5)
    shift = RNG.normal(size=5)
    a = Gaussian(np.zeros(5), turn @ np.diag(first) @ turn.T)
    b = Gaussian(shift, turn @ np.diag(second) @ turn.T)
    wanted = shift @ shift + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_between(a, b) == pytest.approx(wanted, rel=FLOAT64_DIFFERENCE)


def test_distance_of_two_by_two_covariances_has_a_closed_form():
    """tr((A B)^1/2) of 2x2 matrices is sqrt(tr(A B) + 2 sqrt(det(A B)))."""
    for _ in range(20):
        roots = RNG.normal(size=(2, 2, 2))
        a, b = (root @ root.T for root in roots)
        trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
        wanted = np.trace(a) + np.trace(b) - 2 * trace
        found = frechet_between(Gaussian(np.zeros(2), a), Gaussian(np.zeros(2), b))
        assert found == pytest.approx(wanted, rel=FLOAT64_DIFFERENCE, abs=FLOAT64_DIFFERENCE)


def test_distance_is_torch_fidelitys_of_the_same_features():
    peer = fidelity("metric_fid")
    a, b = RNG.normal(size=(400, 16)), RNG.normal(size=(300, 16)) @ RNG.normal(size=(16, 16)) / 4 + 0.1
    statistics = [peer.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    wanted = peer.fid_statistics_to_metric(*statistics, verbose=False)[peer.KEY_METRIC_FID]
    ours = frechet_between(Moments.of(a).gaussian(), Moments.of(b).gaussian())
    assert ours == pytest.approx(wanted, rel=FLOAT64_DIFFERENCE)


def test_moments_and_gaussians_come_back_from_their_files(tmp_path):
    moments = Moments.of(RNG.normal(size=(30, 4)))
    again = Moments.load(moments.save(tmp_path / "shard.npz"))
    assert again.count == 30
    np.testing.assert_array_equal(again.outer, moments.outer)
    gaussian = Gaussian.load(moments.gaussian().save(tmp_path / "statistics.npz"))
    assert gaussian.count == 30
    assert frechet_between(gaussian, moments.gaussian()) == pytest.approx(0, abs=FLOAT64)


def test_statistics_of_edm_are_read(tmp_path):
    np.savez(tmp_path / "edm.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert Gaussian.load(tmp_path / "edm.npz").count is None


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"arr_0": np.zeros(3)}, "it holds arr_0, and not mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "must be \\[D\\] and \\[D, D\\]"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "NaN or infinite"),
    ],
    ids=["others", "shape", "nan"],
)
def test_files_of_something_else_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        Gaussian.load(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="holds no moments"):
        Moments.load(tmp_path / "x.npz")


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="sets of 2 and of 3 features"):
        Moments.of(np.zeros((4, 2))) + Moments.of(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="same features, got 2 and 3"):
        frechet_between(Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="fid needs at least 2 images, got 1"):
        Moments.of(np.zeros((1, 2))).gaussian()
    with pytest.raises(ValueError, match="no moments to merge"):
        merge([])
    with pytest.raises(ValueError, match="NaN"):
        Moments.of(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        Moments.of(np.zeros(3))
