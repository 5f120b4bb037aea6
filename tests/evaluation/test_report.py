"""Tests of fastdiff.evaluation.report."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from fastdiff.evaluation import EvaluationReport, EvaluationSettings, Gaussian, ImageSet, evaluate, open_features

RNG = np.random.default_rng(0)
FEATURES = open_features("pixels", 3)


def report(reference, seeds, metrics=("fid", "kid", "prdc")):
    sets = [
        ImageSet.of_array(RNG.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8), f"set {seed}", seed=seed)
        for seed in seeds
    ]
    settings = EvaluationSettings(metrics)
    scores, held = evaluate(sets, reference, FEATURES, settings)
    return EvaluationReport(scores, held, "the reference", "abc", FEATURES, settings)


def test_three_seeds_are_written_with_their_least_and_spread(tmp_path):
    real = ImageSet.of_array(RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8))
    found = report(real, (5, 6, 7))
    names = [path.name for path in found.write(tmp_path / "new")]
    assert names == ["evaluation.json", "evaluation.csv", "evaluation.png"]
    said = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert [one["seed"] for one in said["sets"]] == [5, 6, 7]
    assert [one["num"] for one in said["sets"]] == [30, 30, 30]
    assert said["reference"] == {"source": "the reference", "sha256": "abc", "num": 40}
    assert said["features"]["resize"] == "none"
    fids = [one["values"]["fid"] for one in said["sets"]]
    assert said["spread"]["fid"]["least"] == min(fids)
    assert said["spread"]["fid"]["spread"] == pytest.approx(max(fids) - min(fids))
    assert said["sets"][0]["errors"]["kid"] > 0
    rows = list(csv.DictReader((tmp_path / "new" / "evaluation.csv").open()))
    assert len(rows) == 3 * 6
    assert {row["seed"] for row in rows} == {"5", "6", "7"}
    assert float(rows[0]["value"]) == fids[0]
    with Image.open(tmp_path / "new" / "evaluation.png") as picture:
        assert min(picture.size) > 300


def test_one_set_against_statistics_has_no_spread(tmp_path):
    found = report(Gaussian(np.zeros(48), np.eye(48), 7), (0,), ("fid",))
    said = found.to_dict()
    assert said["spread"] == {}
    assert said["reference"]["num"] == 7
    found.plot(tmp_path / "x.png")
