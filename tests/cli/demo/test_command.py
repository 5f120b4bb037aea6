"""`fastdiff demo`: it names what there is."""

import pytest

from support.command_line import fails, works


def test_unknown_demo():
    assert "unknown demo 'digit': did you mean 'digits'?" in fails("demo", "digit")


def test_demo_names_what_there_is():
    assert "did you mean 'swiss-roll'" in fails("demo", "swissroll")


@pytest.mark.parametrize(
    ("name", "runs", "written"),
    [("digits", "digits.run_demo", "samples.npz"), ("swiss-roll", "swiss_roll.run_swiss_roll", "metrics.json")],
    ids=["digits", "swiss-roll"],
)
def test_a_demo_replaces_nothing_unless_told(tmp_path, monkeypatch, name, runs, written):
    ran = []
    monkeypatch.setattr(f"fastdiff.cli.demo.{runs}", lambda folder, *_, **options: ran.append(folder))
    out = tmp_path / "out"
    # A training that was stopped is gone on with, and files of other names are nobody's business.
    (out / "checkpoints").mkdir(parents=True)
    (out / "notes.txt").touch()
    works("demo", name, "--out", out)
    (out / written).write_text("mine")
    assert f"holds {written} already: choose another folder, or give --overwrite" in fails("demo", name, "--out", out)
    assert ran == [out]
    works("demo", name, "--out", out, "--overwrite")
    works("demo", name, "--out", out, "--fresh")
    assert ran == [out] * 3
    (tmp_path / "file").touch()
    assert "is a file: give a folder" in fails("demo", name, "--out", tmp_path / "file")


def test_steps_are_of_the_digits_training(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr("fastdiff.cli.demo.digits.run_demo", lambda folder, config, **options: ran.append(config))
    works("demo", "--out", tmp_path / "a", "--steps", 300)
    works("demo", "--out", tmp_path / "b", "--quick", "--steps", 2)
    assert [(config.steps, config.num_samples) for config in ran] == [(300, 1000), (2, 100)]
    assert "--steps belongs to `fastdiff demo digits`" in fails("demo", "swiss-roll", "--steps", 2)
