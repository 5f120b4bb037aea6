"""Sets of samples held against a reference: every metric from one pass over the images of each set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdiff.evaluation.feature_values import Features
from fastdiff.evaluation.images import ImageSet, Pixels
from fastdiff.evaluation.inception_score import SPLITS, InceptionScore, ScoreSums
from fastdiff.evaluation.kid import LEAST, kernel_distance
from fastdiff.evaluation.moments import Gaussian, Moments, frechet_between
from fastdiff.evaluation.prdc import NEIGHBOURS, prdc
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name, whole_number
from fastdiff.process.noise import check_seed

__all__ = ["METRICS", "EvaluationSettings", "Measured", "SetScores", "compare_sets", "evaluate", "measure"]

METRICS = ("fid", "kid", "prdc", "is")
"""Fréchet distance; kernel distance; precision, recall, density and coverage; inception score."""
# Images of a set whose pictures a report shows.
_SHOWN = 16

Progress = Callable[[int, int], None]
"""Called with the images that are done, and with all of them."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and how.

    Attributes:
        metrics: Of `METRICS`, without repeats.
        batch_size: Images that the network sees at a time.
        neighbours: k of prdc.
        compared: Images of a set that kid and prdc compare, drawn once by `seed`; all where there are fewer. They alone
            have their features kept. ADM's evaluation takes 10,000 as well.
        seed: Of what is drawn: those images, kid's blocks, the splits of the inception score.

    Raises:
        ValueError: an unknown metric, or a number out of range.
    """

    metrics: tuple[str, ...] = ("fid", "kid", "prdc")
    batch_size: int = 250
    neighbours: int = NEIGHBOURS
    compared: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"unknown {spelt('metrics', 'metric')} {name!r}: {nearest_name(name, METRICS)}")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"{spelt('metrics')} must name each metric once, of {', '.join(METRICS)}")
        whole_number(spelt("batch_size"), self.batch_size, low=1)
        whole_number(spelt("neighbours"), self.neighbours, low=1)
        whole_number(spelt("compared"), self.compared, low=1)
        check_seed(self.seed)

    @property
    def keeps_features(self) -> bool:
        """Whether a metric needs features of single images."""
        return bool({"kid", "prdc"} & set(self.metrics))


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of a set once its images passed by.

    Attributes:
        source: Where they are from.
        num: How many.
        shape: (H, W, C).
        sha256: Of the pixels, uint8 in the order [N, H, W, C]: the same whatever file they lie in.
        moments: Of their features; None where no metric asked.
        kept: Features of the images that are compared one by one, float32 [n, D]; None likewise.
        score: The inception score; None likewise.
        first: The first images, uint8 [n, H, W, C], to look at.
        about: What was known of them before.
    """

    source: str
    num: int
    shape: tuple[int, int, int]
    sha256: str
    moments: Moments | None
    kept: npt.NDArray[np.float32] | None
    score: InceptionScore | None
    first: Pixels
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        shape = dict(zip(("height", "width", "channels"), self.shape, strict=True))
        return {"source": self.source, "num": self.num, **shape, "sha256": self.sha256, **self.about}


@dataclass(frozen=True, eq=False)
class SetScores:
    """The metrics of one set.

    Attributes:
        samples: The set.
        values: By name: "fid", "kid", "precision", "recall", "density", "coverage", "is".
        errors: Where a metric has one: kid's standard error, the deviation of is over its splits.
    """

    samples: Measured
    values: dict[str, float]
    errors: dict[str, float]


def measure(
    images: ImageSet, features: Features, settings: EvaluationSettings, progress: Progress | None = None
) -> Measured:
    """One pass over a set, batch by batch; memory does not grow with it.

    Args:
        images: The set.
        features: What they are compared by.
        settings: What will be asked.
        progress: Called after each batch.

    Raises:
        ValueError: the network does not take such images, or the set changed while it was read.
    """
    wants_classes = "is" in settings.metrics
    sums = ScoreSums(images.num, seed=settings.seed) if wants_classes else None
    chosen = np.zeros(images.num, dtype=bool)
    if settings.keeps_features:
        count = min(settings.compared, images.num)
        chosen[np.random.default_rng([settings.seed, 1]).permutation(images.num)[:count]] = True
    moments: Moments | None = None
    kept, first, digest, done = [], [], hashlib.sha256(), 0
    for batch in images.batches(settings.batch_size):
        digest.update(batch.tobytes())
        pixels = torch.from_numpy(batch.copy()).permute(0, 3, 1, 2)
        with torch.no_grad():
            found, logits = features.compute(pixels)
        rows = found.cpu().numpy()
        if "fid" in settings.metrics:
            added = Moments.of(rows)
            moments = added if moments is None else moments + added
        if chosen[done : done + len(rows)].any():
            kept.append(rows[chosen[done : done + len(rows)]])
        if sums is not None:
            if logits is None:
                raise ValueError(_no_classes(features))
            sums.add(logits.cpu().numpy())
        if done < _SHOWN:
            first.append(batch[: _SHOWN - done].copy())
        done += len(batch)
        if progress is not None:
            progress(done, images.num)
    if done != images.num:
        raise ValueError(f"{images.source} has {done:,} images and not {images.num:,}, as it had at first: it changed")
    return Measured(
        images.source,
        done,
        images.shape,
        digest.hexdigest(),
        moments,
        np.concatenate(kept) if kept else None,
        None if sums is None else sums.score(),
        np.concatenate(first),
        images.about,
    )


def compare_sets(samples: Measured, reference: Measured | Gaussian, settings: EvaluationSettings) -> SetScores:
    """The metrics of a measured set against a measured reference, or against statistics."""
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    if "fid" in settings.metrics:
        assert samples.moments is not None
        other = reference if isinstance(reference, Gaussian) else _moments(reference).gaussian()
        ours = samples.moments.gaussian()
        if ours.mean.shape != other.mean.shape:
            raise ValueError(
                f"{spelt('features', 'the features')} are {len(ours.mean)}, and the statistics of the reference were "
                f"taken of {len(other.mean)}: take the network that they were made with"
            )
        values["fid"] = frechet_between(ours, other)
    if settings.keeps_features:
        assert isinstance(reference, Measured)
        assert samples.kept is not None
        assert reference.kept is not None
        if "kid" in settings.metrics:
            found = kernel_distance(samples.kept, reference.kept, seed=settings.seed)
            values["kid"], errors["kid"] = found.value, found.standard_error
        if "prdc" in settings.metrics:
            values |= prdc(samples.kept, reference.kept, neighbours=settings.neighbours).to_dict()
    if samples.score is not None:
        values["is"], errors["is"] = samples.score.value, samples.score.deviation
    return SetScores(samples, values, errors)


def check_sets(
    sets: Sequence[ImageSet], reference: ImageSet | Gaussian, features: Features, settings: EvaluationSettings
) -> None:
    """Raise ValueError unless the metrics can be taken of these sets; nothing is read."""
    if "is" in settings.metrics and not features.has_classes:
        raise ValueError(_no_classes(features))
    if isinstance(reference, Gaussian):
        unfit = [name for name in settings.metrics if name in ("kid", "prdc")]
        if unfit:
            raise ValueError(
                f"{spelt('metrics', 'the metric')} {unfit[0]} compares single images, and the reference holds only "
                "mu and sigma: give its images, or ask for fid"
            )
    others = [] if isinstance(reference, Gaussian) else [reference]
    for one in sets:
        if others and one.shape != others[0].shape:
            ours, theirs = (f"{w}x{h} pixels with {c} channels" for h, w, c in (one.shape, others[0].shape))
            raise ValueError(
                f"{one.source} has images of {ours}, and the reference {others[0].source} of {theirs}: they must "
                "be the same"
            )
    least = {"fid": 2, "kid": LEAST, "prdc": settings.neighbours + 1, "is": SPLITS}
    for name in settings.metrics:
        for one in [*sets, *([] if name == "is" else others)]:
            num = min(one.num, settings.compared) if name in ("kid", "prdc") else one.num
            if num < least[name]:
                raise ValueError(
                    f"{spelt('metrics', 'the metric')} {name} needs at least {least[name]} images of each set, and "
                    f"{one.source} has {num}"
                )


def evaluate(
    sets: Sequence[ImageSet],
    reference: ImageSet | Gaussian,
    features: Features,
    settings: EvaluationSettings | None = None,
    *,
    progress: Callable[[str], Progress] | None = None,
) -> tuple[list[SetScores], Measured | Gaussian]:
    """Hold sets of samples, of several seeds for example, against one reference.

    Args:
        sets: One or more.
        reference: Images, or statistics of the same features, which are enough for fid.
        features: What images are compared by.
        settings: What is measured; the default when None.
        progress: From what is read to what is called with the images that are done.

    Returns:
        The scores of each set, in order, and the measured reference.

    Raises:
        ValueError: sets and reference do not fit each other, or are too small for a metric.
    """
    asked = settings or EvaluationSettings()
    check_sets(sets, reference, features, asked)

    def told(name: str) -> Progress | None:
        return None if progress is None else progress(name)

    held: Measured | Gaussian = reference if isinstance(reference, Gaussian) else _measured_reference(
        reference, features, asked, told("reference")
    )  # fmt: skip
    return [compare_sets(measure(one, features, asked, told("samples")), held, asked) for one in sets], held


def _measured_reference(
    reference: ImageSet, features: Features, settings: EvaluationSettings, progress: Progress | None
) -> Measured:
    """The reference, without what is asked of samples alone."""
    metrics = tuple(name for name in settings.metrics if name != "is") or ("fid",)
    asked = EvaluationSettings(metrics, settings.batch_size, settings.neighbours, settings.compared, settings.seed)
    return measure(reference, features, asked, progress)


def _moments(reference: Measured) -> Moments:
    assert reference.moments is not None
    return reference.moments


def _no_classes(features: Features) -> str:
    return (
        f"{spelt('metrics', 'the metric')} is needs a network that tells classes, and {spelt('features')} "
        f"{features.name!r} gives no probabilities: take inception:FILE, or leave it out"
    )
