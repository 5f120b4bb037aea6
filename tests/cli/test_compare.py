"""Tests of fastdiff.cli.compare: `fastdiff compare`."""

import json

import pytest

from fastdiff.evaluation.comparison_report import FILES
from support.command_line import fails, works

FEW = ("--num", 24, "--samplers", "ddim,unipc", "--steps", "2,4", "--long-run", 8)


def test_samplers_are_compared_with_the_models_own_samples(labelled_model, tmp_path):
    said = works("compare", labelled_model, tmp_path / "out", *FEW, "--labels", "0,2")
    assert "| ddim optimal | 2 |" in said
    assert "| dpmpp_2m, long | 8 |" in said
    assert all((tmp_path / "out" / name).is_file() for name in FILES)
    about = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert about["reference"] == "its own samples by dpmpp_2m, 8 evaluations"
    assert [one["budget"] for one in about["recommended"]] == [2, 4]
    assert "OUT" in fails("compare", labelled_model, tmp_path / "out", *FEW)


def test_compare_takes_a_precision(lively_model, tmp_path):
    works("compare", lively_model, tmp_path / "out", *FEW, "--no-optimal", "--precision", "bfloat16")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["precision"] == "bfloat16"


def test_a_reference_stands_in_the_place_of_its_own_samples(model, archive, tmp_path):
    given = ("--reference", archive, "--no-optimal", "--budget", 3, "--num", 8)
    said = works("compare", model, tmp_path / "out", *FEW, *given)
    assert "long" not in said
    assert "optimal" not in said
    about = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(one["budget"], one["evaluations"]) for one in about["recommended"]] == [(3, 2)]
    assert about["floor"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--samplers", "dimm"), "unknown --samplers 'dimm'"),
        (("--samplers", "ddim,ddim"), "--samplers must name each once"),
        (("--steps", "2,x"), "--steps must be whole numbers with commas between"),
        (("--steps", "9"), "--steps must"),
        (("--budget", 1), "--budget must be at least 2, the fewest evaluations tried, got 1"),
        (("--reference", "digits"), "pixels with 3 channels, and the reference"),
    ],
)
def test_what_does_not_fit_is_a_sentence(model, tmp_path, options, said):
    assert said in fails("compare", model, tmp_path / "out", *FEW, *options)
