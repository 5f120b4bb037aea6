"""Numbers that say how good samples are, for images small enough to compare pixel by pixel.

Images come as floats in [-1, 1], [N, C, H, W]. Everything is NumPy float64; scikit-learn (extra "demo") is needed for
the classifier only.
"""

from __future__ import annotations

import importlib
import resource
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdiff.evaluation.moments import Array, Gaussian, frechet_between
from fastdiff.process.checks import whole_number

__all__ = [
    "Array",
    "CopyReport",
    "DigitClassifier",
    "Recognition",
    "copy_report",
    "dct_features",
    "frechet_distance",
    "independent_pixels_bits",
    "nearest_neighbours",
    "peak_memory_bytes",
    "recognition",
    "scrambled",
]

Indices = npt.NDArray[np.int64]

# Rows compared at a time: the distances of 1,000 to 1,500 images of 8x8 fit in one block.
_BLOCK = 1024


def dct_features(images: npt.ArrayLike, size: int = 8) -> Array:
    """The lowest spatial frequencies of images: a feature space that is fixed, whatever the data.

    Args:
        images: [N, C, H, W].
        size: Frequencies kept in each direction; all of them where the image has fewer pixels.

    Returns:
        Coefficients of the orthonormal DCT-II, [N, C * min(size, H) * min(size, W)]. With all of them kept, distances
        between features are distances between images.

    Raises:
        ValueError: images are not [N, C, H, W], or size is below 1.

    Source: Ahmed, Natarajan, Rao (1974), Discrete cosine transform, with the scale that makes it orthonormal.
    """
    pixels = _as_images(images)
    size = whole_number("size", size, low=1)
    rows, columns = _dct_basis(pixels.shape[2], size), _dct_basis(pixels.shape[3], size)
    return np.asarray(np.einsum("kh,nchw,lw->nckl", rows, pixels, columns, optimize=True).reshape(len(pixels), -1))


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Fréchet distance between the normal distributions fitted to two sets of features.

    `fastdiff.evaluation.moments.frechet_between` with unbiased covariances. It is biased upwards where sets are small:
    compare only sets of similar sizes.

    Args:
        a: Features [N, D], N at least 2.
        b: Features [M, D], M at least 2.

    Returns:
        The squared distance, as is usual (FID), not negative; in squared units of the features.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.

    Source: Dowson and Landau (1982); Heusel et al. (2017), arXiv:1706.08500, eq. 6.
    """
    first, second = _as_features(a, "a"), _as_features(b, "b")
    return frechet_between(
        *(Gaussian(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)), len(x)) for x in (first, second))
    )


def nearest_neighbours(queries: npt.ArrayLike, references: npt.ArrayLike, count: int = 1) -> tuple[Array, Indices]:
    """The nearest references of each query, by Euclidean distance over all pixels.

    Args:
        queries: [N, ...].
        references: [M, ...] of the same trailing shape, M at least `count`.
        count: Neighbours per query.

    Returns:
        (distances [N, count], ascending, and indices [N, count] into the references).

    Raises:
        ValueError: shapes that do not fit, or count out of range.
    """
    a, b = np.asarray(queries, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"queries and references must have one shape, got {a.shape[1:]} and {b.shape[1:]}")
    if not 1 <= count <= len(b):
        raise ValueError(f"count must be in 1..{len(b)}, the number of references, got {count}")
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    distances, indices = np.empty((len(a), count)), np.empty((len(a), count), dtype=np.int64)
    for start in range(0, len(a), _BLOCK):
        part = a[start : start + _BLOCK]
        squares = (part**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * part @ b.T
        nearest = np.argsort(squares, axis=1, kind="stable")[:, :count]
        indices[start : start + _BLOCK] = nearest
        # Differences, since the expanded squares cancel where two images are nearly equal.
        distances[start : start + _BLOCK] = np.sqrt(((part[:, None] - b[nearest]) ** 2).sum(axis=2))
    return distances, indices


@dataclass(frozen=True)
class CopyReport:
    """Whether samples copy training images: their distances to the nearest one, beside those of held-out images.

    A model that has learned the distribution gives samples as far from the training images as held-out images are. One
    that copies gives closer ones.

    Attributes:
        median_samples: Median distance of a sample to its nearest training image, Euclidean over the pixels.
        median_held_out: The same for held-out images.
        closest_sample: Smallest distance of any sample.
        closest_held_out: The same for held-out images.
        below_1st_percentile: Fraction of samples closer than 99 % of the held-out images; 0.01 is expected.
        below_5th_percentile: Fraction of samples closer than 95 % of the held-out images; 0.05 is expected.
        exact_copies: Samples that equal a training image in every pixel, once rounded to the data's values.
    """

    median_samples: float
    median_held_out: float
    closest_sample: float
    closest_held_out: float
    below_1st_percentile: float
    below_5th_percentile: float
    exact_copies: int

    def to_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return asdict(self)


def copy_report(samples: npt.ArrayLike, train: npt.ArrayLike, held_out: npt.ArrayLike) -> CopyReport:
    """Compare distances to the training images; all three are [N, ...] on the grid of the data's values."""
    of_samples = nearest_neighbours(samples, train)[0][:, 0]
    of_held_out = nearest_neighbours(held_out, train)[0][:, 0]
    first, fifth = np.quantile(of_held_out, [0.01, 0.05])
    return CopyReport(
        median_samples=float(np.median(of_samples)),
        median_held_out=float(np.median(of_held_out)),
        closest_sample=float(of_samples.min()),
        closest_held_out=float(of_held_out.min()),
        below_1st_percentile=float((of_samples < first).mean()),
        below_5th_percentile=float((of_samples < fifth).mean()),
        exact_copies=int((of_samples < 1e-6).sum()),
    )


def scrambled(images: npt.ArrayLike, count: int, seed: int = 0) -> Array:
    """Images whose every pixel comes from another image: right values at each place, and nothing else right.

    Args:
        images: [N, C, H, W].
        count: How many to make.
        seed: Of NumPy's generator.
    """
    pixels = _as_images(images)
    flat = pixels.reshape(len(pixels), -1)
    chosen = np.random.default_rng(seed).integers(0, len(flat), (count, flat.shape[1]))
    return np.asarray(flat[chosen, np.arange(flat.shape[1])].reshape(count, *pixels.shape[1:]))


class DigitClassifier:
    """Says which class an image shows, and how sure it is; trained on real images only.

    The mean of the probabilities of a few small multi-layer perceptrons. A classifier that knows only the classes is
    sure of itself on noise as well, so with `rejects` it learns one class more, of images that show nothing
    (`scrambled`), and an image of that class is not recognised.

    Args:
        images: [N, C, H, W] in [-1, 1].
        labels: [N], classes counted from 0.
        rejects: Learn the additional class.
        members: Perceptrons.
        seed: Of the first of them.

    Raises:
        RuntimeError: scikit-learn is not installed.
    """

    def __init__(
        self, images: npt.ArrayLike, labels: npt.ArrayLike, *, rejects: bool = False, members: int = 3, seed: int = 0
    ) -> None:
        try:
            network = importlib.import_module("sklearn.neural_network")
            convergence = importlib.import_module("sklearn.exceptions").ConvergenceWarning
        except ImportError as error:
            raise RuntimeError(
                f'the classifier needs scikit-learn ({error}): pip install "fastdiff-ddpm[demo]"'
            ) from error
        pixels = _as_images(images)
        classes = np.asarray(labels, dtype=np.int64)
        self.num_classes = int(classes.max()) + 1
        self.rejects = rejects
        if rejects:
            nothing = scrambled(pixels, len(pixels), seed)
            pixels = np.concatenate([pixels, nothing])
            classes = np.concatenate([classes, np.full(len(nothing), self.num_classes)])
        self._members: list[Any] = []
        with warnings.catch_warnings():
            # Stopping early is meant: the loss falls for ever on data that can be separated.
            warnings.simplefilter("ignore", convergence)
            for member in range(members):
                model = network.MLPClassifier((128,), alpha=0.01, max_iter=300, random_state=seed + member)
                self._members.append(model.fit(_unit(pixels), classes))

    def probabilities(self, images: npt.ArrayLike) -> Array:
        """Probability of each class, [N, num_classes]; they sum to less than 1 where it rejects."""
        flat = _unit(_as_images(images))
        mean = np.mean([member.predict_proba(flat) for member in self._members], axis=0)
        return np.asarray(mean[:, : self.num_classes], dtype=np.float64)


@dataclass(frozen=True)
class Recognition:
    """What a classifier makes of a set of images.

    Attributes:
        recognised: Fraction whose likeliest class has at least `threshold`.
        threshold: That probability.
        shares: Fraction of all images for each class, by their likeliest one.
        accuracy: Fraction of right answers; None where the right ones are not known.
    """

    recognised: float
    threshold: float
    shares: tuple[float, ...]
    accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        if self.accuracy is None:
            del values["accuracy"]
        return values


def recognition(probabilities: Array, labels: npt.ArrayLike | None = None, *, threshold: float = 0.8) -> Recognition:
    """Count what was recognised.

    Args:
        probabilities: [N, K] from `DigitClassifier.probabilities`.
        labels: [N], the right classes, if known.
        threshold: Probability from which an image counts as recognised.
    """
    answers = probabilities.argmax(axis=1)
    shares = np.bincount(answers, minlength=probabilities.shape[1]) / len(answers)
    return Recognition(
        recognised=float((probabilities.max(axis=1) >= threshold).mean()),
        threshold=threshold,
        shares=tuple(float(share) for share in shares),
        accuracy=None if labels is None else float((answers == np.asarray(labels)).mean()),
    )


def independent_pixels_bits(
    train: npt.ArrayLike, held_out: npt.ArrayLike, levels: int, smoothing: float = 0.1
) -> float:
    """Bits/dim of a model that knows each pixel's own histogram and nothing else: a yardstick for likelihoods.

    Args:
        train: Integers in 0..levels-1, [N, ...].
        held_out: The images to score, [M, ...].
        levels: Number of values.
        smoothing: Added to every count.
    """
    known = np.asarray(train, dtype=np.int64).reshape(len(np.asarray(train)), -1)
    scored = np.asarray(held_out, dtype=np.int64).reshape(len(np.asarray(held_out)), -1)
    counts = np.stack([(known == value).sum(axis=0) for value in range(levels)]) + smoothing
    bits = -np.log2(counts / counts.sum(axis=0))
    return float(bits[scored, np.arange(scored.shape[1])].mean())


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident so far."""
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _dct_basis(length: int, size: int) -> Array:
    """The first `size` basis vectors of the orthonormal DCT-II, [min(size, length), length]."""
    frequency = np.arange(min(size, length), dtype=np.float64)[:, None]
    basis = np.sqrt(2 / length) * np.cos(np.pi * (np.arange(length) + 0.5) * frequency / length)
    basis[0] = np.sqrt(1 / length)
    return np.asarray(basis)


def _unit(pixels: Array) -> Array:
    """[N, C, H, W] in [-1, 1] to rows in [0, 1]."""
    return (pixels.reshape(len(pixels), -1) + 1) / 2


def _as_images(images: npt.ArrayLike) -> Array:
    pixels = np.asarray(images, dtype=np.float64)
    if pixels.ndim != 4 or pixels.size == 0:
        raise ValueError(f"images must be [N, C, H, W] and not empty, got shape {list(pixels.shape)}")
    return pixels


def _as_features(features: npt.ArrayLike, name: str) -> Array:
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise ValueError(f"{name} must be features [N, D] of at least 2 images, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return array
