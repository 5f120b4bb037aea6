"""Tests of fastdiff.evaluation.comparison_report."""

import csv
import json

import numpy as np
from PIL import Image

from fastdiff.evaluation.comparison import Trial
from fastdiff.evaluation.comparison_report import FILES, ComparisonReport


def trial(name, evaluations, distance, kernel=0.1):
    first = np.random.default_rng(evaluations).integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    error = None if kernel is None else 0.02
    return Trial(name, evaluations, distance, kernel, error, evaluations / 1000, first)


TRIALS = [trial("ddim", 5, 9.0), trial("ddim", 10, 4.0), trial("unipc", 5, 3.0), trial("unipc", 10, 2.97, None)]
ABOUT = {"model": "out/demo", "num": 100, "seed": 3, "features": "pixels", "reference": "its own samples"}


def test_everything_is_written(tmp_path):
    report = ComparisonReport(TRIALS, trial("dpmpp_2m, long", 200, 1.0), ABOUT, [5, 10])
    assert [path.name for path in report.write(tmp_path / "new")] == list(FILES)
    said = json.loads((tmp_path / "new" / "comparison.json").read_text())
    # At 10 evaluations unipc comes no nearer than it does at 5.
    assert [(c["budget"], c["name"], c["evaluations"]) for c in said["recommended"]] == [
        (5, "unipc", 5),
        (10, "unipc", 5),
    ]
    assert said["floor"]["distance"] == 1.0
    assert said["seed"] == 3
    rows = list(csv.DictReader((tmp_path / "new" / "comparison.csv").open()))
    assert [row["name"] for row in rows] == ["ddim", "ddim", "unipc", "unipc"]
    assert "first" not in rows[0]
    for name in ("comparison.png", "pictures.png"):
        with Image.open(tmp_path / "new" / name) as picture:
            assert min(picture.size) > 300


def test_the_table_has_a_row_for_each_trial_and_a_choice_for_each_budget():
    lines = ComparisonReport(TRIALS, None, ABOUT, [10]).to_markdown().splitlines()
    assert "| ddim | 5 | 9 | 0.1 ± 0.02 | 5 |" in lines
    assert "| unipc | 10 | 2.97 |  | 10 |" in lines
    assert lines[-1] == "| 10 | unipc | 5 | 3 |"
