"""Tests of fastdiff.evaluation.prdc against the formulas of the papers, plainly and over all distances at once."""

import sys

import numpy as np
import pytest
import torch

from fastdiff.evaluation import prdc
from support.fidelity import fidelity
from support.tolerances import FLOAT64

RNG = np.random.default_rng(0)
module = sys.modules["fastdiff.evaluation.prdc"]


def plainly(samples, real, k):
    """Naeem et al. (2020), as the authors' package `prdc` computes it, in float64 and without its blocks."""

    def distances(x, y):
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(axis=2))

    def radii(x):
        # The smallest is a row's own.
        return np.sort(distances(x, x), axis=1)[:, k]

    between = distances(real, samples)
    real_radii, sample_radii = radii(real), radii(samples)
    return {
        "precision": (between < real_radii[:, None]).any(axis=0).mean(),
        "recall": (between < sample_radii[None]).any(axis=1).mean(),
        "density": (between < real_radii[:, None]).sum(axis=0).mean() / k,
        "coverage": (between.min(axis=1) < real_radii).mean(),
    }


@pytest.mark.parametrize("block", [1, 7, 64, 2048])
@pytest.mark.parametrize(
    ("num", "shift", "scale"), [((60, 80), 0.0, 1.0), ((80, 61), 0.7, 1.0), ((50, 50), 0.0, 0.4), ((33, 90), 5.0, 1.0)]
)
def test_values_are_those_of_the_formulas(monkeypatch, block, num, shift, scale):
    monkeypatch.setattr(module, "_BLOCK", block)
    samples, real = RNG.normal(shift, scale, (num[0], 5)), RNG.normal(size=(num[1], 5))
    for k in (1, 3, 5):
        found = prdc(samples, real, neighbours=k).to_dict()
        assert found == pytest.approx(plainly(samples, real, k), abs=FLOAT64)


def test_precision_and_recall_are_torch_fidelitys():
    peer = fidelity("metric_prc")
    samples, real = RNG.normal(0.3, 1, (200, 6)), RNG.normal(size=(150, 6))
    precision, recall = peer.calculate_precision_recall_full(torch.from_numpy(samples), torch.from_numpy(real), 3)
    found = prdc(samples, real, neighbours=3)
    # Their means are of float32.
    assert (found.precision, found.recall) == pytest.approx((precision, recall), abs=1e-6)


def test_ends_of_the_scale():
    real = RNG.normal(size=(200, 4))
    far = prdc(real + 1000, real)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    same = prdc(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    # Of one distribution, precision and recall, and density and coverage, are those of k neighbours: 1 - 2^-k or more.
    other = prdc(RNG.normal(size=(2000, 2)), RNG.normal(size=(2000, 2)))
    assert other.density == pytest.approx(1, abs=0.05)
    assert other.coverage > 1 - 2.0**-5 - 0.02


def test_samples_of_one_mode_are_precise_and_recall_little():
    real = RNG.normal(size=(400, 2)) + np.where(RNG.random((400, 1)) < 0.5, 0, 50)
    samples = RNG.normal(size=(200, 2))
    found = prdc(samples, real)
    assert found.precision > 0.9
    assert found.recall < 0.7
    assert found.coverage < 0.7


@pytest.mark.parametrize(
    ("shapes", "options", "said"),
    [
        (((5, 2), (9, 2)), {}, "prdc needs at least 6 images of each set, one more than neighbours, got 5"),
        (((9, 2), (9, 3)), {}, r"must be features \[N, D\] and \[M, D\]"),
        (((9, 2), (9, 2)), {"neighbours": 0}, "neighbours must be a whole number, at least 1"),
    ],
)
def test_wrong_sets_are_refused(shapes, options, said):
    with pytest.raises(ValueError, match=said):
        prdc(*(np.zeros(shape) for shape in shapes), **options)
