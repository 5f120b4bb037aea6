"""Evaluation: how good samples are. Features and their moments, the metrics, reports; the pixels of small images.

Import the names from here; `fastdiff.evaluation.metrics` is for images small enough to compare pixel by pixel.
"""

from fastdiff.evaluation.evaluate import METRICS, EvaluationSettings, Measured, SetScores, evaluate, measure
from fastdiff.evaluation.feature_values import Features
from fastdiff.evaluation.features import open_features
from fastdiff.evaluation.images import ImageSet, open_reference, open_set
from fastdiff.evaluation.inception_score import InceptionScore, ScoreSums
from fastdiff.evaluation.kid import KernelDistance, kernel_distance, polynomial_mmd
from fastdiff.evaluation.moments import Gaussian, Moments, frechet_between, merge
from fastdiff.evaluation.prdc import Prdc, prdc
from fastdiff.evaluation.report import EvaluationReport
from fastdiff.evaluation.seeds import Spread, over_seeds

__all__ = [
    "METRICS",
    "EvaluationReport",
    "EvaluationSettings",
    "Features",
    "Gaussian",
    "ImageSet",
    "InceptionScore",
    "KernelDistance",
    "Measured",
    "Moments",
    "Prdc",
    "ScoreSums",
    "SetScores",
    "Spread",
    "evaluate",
    "frechet_between",
    "kernel_distance",
    "measure",
    "merge",
    "open_features",
    "open_reference",
    "open_set",
    "over_seeds",
    "polynomial_mmd",
    "prdc",
]
