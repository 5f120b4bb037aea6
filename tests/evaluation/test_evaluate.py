"""Tests of fastdiff.evaluation.evaluate: one pass over each set gives what the whole sets give."""

import hashlib

import numpy as np
import pytest

from fastdiff.evaluation import (
    EvaluationSettings,
    Gaussian,
    ImageSet,
    evaluate,
    frechet_between,
    kernel_distance,
    measure,
    open_features,
    prdc,
)
from fastdiff.evaluation.feature_values import Features
from support.tolerances import FLOAT64_PRODUCT

RNG = np.random.default_rng(0)
SAMPLES = RNG.integers(0, 200, (90, 5, 4, 1), dtype=np.uint8)
REAL = RNG.integers(50, 256, (120, 5, 4, 1), dtype=np.uint8)
PIXELS = open_features("pixels", 1)


def rows(images):
    # As images of [N, C, H, W], in float32 like the features.
    return (images.transpose(0, 3, 1, 2).reshape(len(images), -1).astype(np.float32) / np.float32(127.5) - 1).astype(
        np.float64
    )


@pytest.mark.parametrize("batch_size", [1, 7, 250])
def test_values_are_those_of_the_whole_sets(batch_size):
    settings = EvaluationSettings(batch_size=batch_size)
    (scores,), reference = evaluate([ImageSet.of_array(SAMPLES)], ImageSet.of_array(REAL), PIXELS, settings)
    a, b = rows(SAMPLES), rows(REAL)
    gaussians = [Gaussian(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b)]
    assert scores.values["fid"] == pytest.approx(frechet_between(*gaussians), rel=FLOAT64_PRODUCT)
    kid = kernel_distance(a, b)
    assert (scores.values["kid"], scores.errors["kid"]) == pytest.approx((kid.value, kid.standard_error))
    found = {name: scores.values[name] for name in ("precision", "recall", "density", "coverage")}
    assert found == pytest.approx(prdc(a, b).to_dict())
    assert scores.samples.sha256 == hashlib.sha256(SAMPLES.tobytes()).hexdigest()
    assert reference.num == 120
    np.testing.assert_array_equal(scores.samples.first, SAMPLES[:16])


def test_kept_images_are_drawn_by_the_seed_and_not_by_the_batch():
    images = ImageSet.of_array(SAMPLES)
    found = [measure(images, PIXELS, EvaluationSettings(batch_size=b, compared=30)).kept for b in (4, 90)]
    assert found[0].shape == (30, 20)
    np.testing.assert_array_equal(*found)
    other = measure(images, PIXELS, EvaluationSettings(compared=30, seed=1)).kept
    assert not np.array_equal(other, found[0])


def test_statistics_are_enough_for_the_frechet_distance(tmp_path):
    settings = EvaluationSettings(("fid",))
    (scores,), reference = evaluate([ImageSet.of_array(SAMPLES)], ImageSet.of_array(REAL), PIXELS, settings)
    statistics = Gaussian.load(reference.moments.gaussian().save(tmp_path / "s.npz"))
    (again,), _ = evaluate([ImageSet.of_array(SAMPLES)], statistics, PIXELS, settings)
    assert again.values == scores.values


def classes(images):
    flat = images.flatten(1).float()
    return flat, flat[:, :4]


def test_inception_score_is_of_samples_alone():
    features = Features("of mine", classes, True, {"resize": "none"})
    settings = EvaluationSettings(("is",))
    (scores,), _ = evaluate([ImageSet.of_array(SAMPLES)], ImageSet.of_array(REAL[:2]), features, settings)
    assert list(scores.values) == ["is"]
    assert 1 <= scores.values["is"] <= 4


def test_progress_is_told_of_every_set():
    told = []
    images = ImageSet.of_array(SAMPLES)
    evaluate(
        [images, images],
        ImageSet.of_array(REAL),
        PIXELS,
        EvaluationSettings(batch_size=60),
        progress=lambda name: lambda done, total: told.append((name, done, total)),
    )
    assert told[:2] == [("reference", 60, 120), ("reference", 120, 120)]
    assert told[2:] == 2 * [("samples", 60, 90), ("samples", 90, 90)]


@pytest.mark.parametrize(
    ("samples", "reference", "options", "said"),
    [
        (SAMPLES[:, :4], REAL, {}, "images of 4x4 pixels with 1 channels, and the reference an array of 4x5 pixels"),
        (SAMPLES.repeat(3, axis=3), REAL, {}, "with 3 channels, and the reference an array of 4x5 pixels with 1"),
        (SAMPLES[:1], REAL, {"metrics": ("fid",)}, "fid needs at least 2 images of each set, and an array has 1"),
        (SAMPLES, REAL[:15], {}, "kid needs at least 20 images of each set, and an array has 15"),
        (SAMPLES, REAL, {"compared": 4, "metrics": ("prdc",)}, "prdc needs at least 6 images .* has 4"),
        (SAMPLES, REAL, {"metrics": ("is",)}, "is needs a network that tells classes, and features 'pixels'"),
        (SAMPLES, Gaussian(np.zeros(20), np.eye(20)), {}, "kid compares single images, and the reference holds only"),
        (SAMPLES, Gaussian(np.zeros(9), np.eye(9)), {"metrics": ("fid",)}, "are 20, and .* were taken of 9"),
    ],
    ids=["size", "channels", "fid", "kid", "prdc", "is", "statistics", "others"],
)
def test_sets_that_do_not_fit_are_refused(samples, reference, options, said):
    held = reference if isinstance(reference, Gaussian) else ImageSet.of_array(reference)
    with pytest.raises(ValueError, match=said):
        evaluate([ImageSet.of_array(samples)], held, PIXELS, EvaluationSettings(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ("fiid",)}, "unknown metric 'fiid': did you mean 'fid'"),
        ({"metrics": ()}, "metrics must name each metric once"),
        ({"metrics": ("fid", "fid")}, "metrics must name each metric once"),
        ({"compared": 0}, "compared must be a whole number, at least 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"neighbours": 0}, "neighbours must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        EvaluationSettings(**options)


def test_a_set_that_changes_while_it_is_read_is_found():
    images = ImageSet("shrinking", 100, (5, 4, 1), ImageSet.of_array(SAMPLES).batches)
    with pytest.raises(ValueError, match="shrinking has 90 images and not 100"):
        measure(images, PIXELS, EvaluationSettings())
