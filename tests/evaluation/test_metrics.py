"""The metrics against closed forms, scipy and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.evaluation import metrics
from fastdiff.files.data import digits
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT, FLOAT64_RUN

RNG = np.random.default_rng(0)


def test_dct_features_match_scipy():
    fft = pytest.importorskip("scipy.fft")
    images = RNG.normal(size=(5, 3, 8, 8))
    expected = fft.dctn(images, axes=(2, 3), norm="ortho")[:, :, :4, :4].reshape(5, -1)
    np.testing.assert_allclose(metrics.dct_features(images, 4), expected, atol=FLOAT64)


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (3, 3, 5, 7), (2, 1, 1, 1)])
def test_dct_features_with_all_frequencies_keep_distances(shape):
    a, b = RNG.normal(size=shape), RNG.normal(size=shape)
    features = metrics.dct_features(a, 8) - metrics.dct_features(b, 8)
    np.testing.assert_allclose((features**2).sum(axis=1), ((a - b) ** 2).sum(axis=(1, 2, 3)), rtol=FLOAT64_PRODUCT)


@pytest.mark.parametrize("images", [np.zeros((8, 8)), np.zeros((0, 1, 8, 8))], ids=["not-4d", "empty"])
def test_dct_features_refuse_other_shapes(images):
    with pytest.raises(ValueError, match=r"images must be \[N, C, H, W\]"):
        metrics.dct_features(images)


def test_dct_features_refuse_no_frequencies():
    with pytest.raises(ValueError, match="size must be a whole number, at least 1"):
        metrics.dct_features(np.zeros((2, 1, 8, 8)), 0)


def _with_moments(mean, covariance, count=400):
    """Features with exactly this mean and this unbiased covariance."""
    x = RNG.normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_normals_with_diagonal_covariances():
    a = _with_moments(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0]))
    b = _with_moments(np.array([1.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    # |difference of means|^2 + sum of (difference of deviations)^2
    assert metrics.frechet_distance(a, b) == pytest.approx((1 + 4) + (1 + 0 + 4), rel=FLOAT64_DIFFERENCE)


def test_frechet_distance_matches_scipys_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    a = RNG.normal(size=(300, 6)) @ RNG.normal(size=(6, 6)) + 1
    b = RNG.normal(size=(200, 6)) @ RNG.normal(size=(6, 6))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(linalg.sqrtm(cov_a @ cov_b))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=FLOAT64_RUN)


def test_frechet_distance_of_singular_covariances():
    a = np.zeros((50, 4))
    a[:, 0] = RNG.normal(size=50)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=FLOAT64_PRODUCT)
    assert metrics.frechet_distance(a, a + np.array([0, 3.0, 0, 0])) == pytest.approx(9.0, rel=FLOAT64_DIFFERENCE)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_frechet_distance_is_symmetric_and_not_negative(width, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(20, width)), 2 * rng.normal(size=(9, width)) + 1
    there, back = metrics.frechet_distance(a, b), metrics.frechet_distance(b, a)
    assert there >= 0
    assert there == pytest.approx(back, rel=FLOAT64_RUN, abs=FLOAT64_PRODUCT)


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least 2 images"),
        (np.zeros((5, 3)), np.zeros((5, 2)), "the same features"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "NaN"),
    ],
    ids=["one-image", "widths", "nan"],
)
def test_frechet_distance_refuses(a, b, why):
    with pytest.raises(ValueError, match=why):
        metrics.frechet_distance(a, b)


@pytest.mark.parametrize("num_queries", [1, 7, 1030])
def test_nearest_neighbours_match_brute_force(num_queries):
    a, b = RNG.normal(size=(num_queries, 1, 3, 2)), RNG.normal(size=(40, 1, 3, 2))
    distances, indices = metrics.nearest_neighbours(a, b, 3)
    every = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=(2, 3, 4)))
    np.testing.assert_array_equal(indices, np.argsort(every, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :3], rtol=FLOAT64)


def test_nearest_neighbours_find_a_copy_exactly():
    b = RNG.normal(size=(30, 1, 8, 8)) + 1000
    distances, indices = metrics.nearest_neighbours(b[11:12], b)
    assert distances[0, 0] == 0
    assert indices[0, 0] == 11


def test_nearest_neighbours_refuse():
    with pytest.raises(ValueError, match="one shape"):
        metrics.nearest_neighbours(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"count must be in 1\.\.2"):
        metrics.nearest_neighbours(np.zeros((2, 3)), np.zeros((2, 3)), 3)


def test_copy_report_tells_copies_from_new_images():
    train, held_out, new = (RNG.normal(size=(200, 1, 4, 4)) for _ in range(3))
    honest = metrics.copy_report(new, train, held_out)
    assert honest.exact_copies == 0
    assert honest.below_1st_percentile < 0.05
    # Medians over two samples of one distribution.
    assert honest.median_samples == pytest.approx(honest.median_held_out, rel=0.1)
    copied = metrics.copy_report(train[:50], train, held_out)
    assert copied.exact_copies == 50
    assert copied.below_1st_percentile == 1
    assert copied.closest_sample == 0


def test_scrambled_keeps_each_pixels_values_and_nothing_else():
    images = RNG.integers(0, 17, (50, 1, 3, 4)).astype(float)
    mixed = metrics.scrambled(images, 400, seed=1)
    assert mixed.shape == (400, 1, 3, 4)
    for row in range(3):
        for column in range(4):
            assert set(mixed[:, 0, row, column]) <= set(images[:, 0, row, column])
    assert metrics.nearest_neighbours(mixed, images)[0].min() > 0
    np.testing.assert_array_equal(mixed, metrics.scrambled(images, 400, seed=1))


def test_recognition_counts():
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.8, 0.2], [0.1, 0.2]])
    found = metrics.recognition(probabilities, [0, 1, 1, 1])
    assert found.recognised == 0.5
    assert found.shares == (0.5, 0.5)
    assert found.accuracy == 0.75
    assert "accuracy" not in metrics.recognition(probabilities).to_dict()


def test_independent_pixels_bits_of_a_known_distribution():
    train = np.array([[0], [0], [0], [1]])
    expected = -(np.log2(0.75) + np.log2(0.25)) / 2
    assert metrics.independent_pixels_bits(train, np.array([[0], [1]]), 2, smoothing=0) == pytest.approx(expected)


def test_independent_pixels_bits_without_knowledge_are_uniform():
    bits = metrics.independent_pixels_bits(np.zeros((1, 3)), np.ones((2, 3)), 17, smoothing=1e9)
    # A smoothing that outweighs the one count by far.
    assert bits == pytest.approx(np.log2(17), rel=1e-6)


def test_peak_memory_is_that_of_this_process():
    psutil = pytest.importorskip("psutil")
    resident = psutil.Process().memory_info().rss
    assert 0.5 * resident < metrics.peak_memory_bytes() < 64 * 2**30


@pytest.fixture(scope="module")
def real():
    pytest.importorskip("sklearn", reason="it carries the digits")
    return {
        name: (part.to_model(part.images).numpy(), part.labels.numpy())
        for name, part in (("train", digits("train")), ("test", digits("test")))
    }


def test_classifier_knows_the_held_out_digits(real):
    judge = metrics.DigitClassifier(*real["train"], members=1)
    probabilities = judge.probabilities(real["test"][0])
    assert probabilities.shape == (360, 10)
    # Probabilities are float32.
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    found = metrics.recognition(probabilities, real["test"][1])
    assert found.accuracy >= 0.97
    assert found.recognised >= 0.9


def test_classifier_that_rejects_does_not_recognise_scrambled_digits(real):
    judge = metrics.DigitClassifier(*real["train"], rejects=True, members=1)
    on_real = metrics.recognition(judge.probabilities(real["test"][0]), real["test"][1])
    on_nothing = metrics.recognition(judge.probabilities(metrics.scrambled(real["train"][0], 500, seed=9)))
    assert on_real.accuracy >= 0.95
    assert on_real.recognised >= 0.88
    assert on_nothing.recognised <= 0.05
