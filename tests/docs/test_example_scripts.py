"""The example scripts run with short settings, and their pages show pictures and text that are committed."""

import re
import runpy

import pytest

from fastdiff.samplers import registry
from support.pages import ROOT, digits_model

EXAMPLES = ROOT / "docs" / "examples"
# Settings that take seconds.
SHORT = {
    "train": {"STEPS": "2"},
    "samplers": {"COUNTS": "2,4"},
    "likelihood": {"IMAGES": "4"},
    "edit": {"STEPS": "4"},
    "own_sampler": {"STEPS": "6"},
}


@pytest.mark.parametrize("name", SHORT)
def test_example_runs(name, tmp_path, monkeypatch, capsys):
    digits_model(tmp_path / "model", timesteps=20)
    monkeypatch.chdir(tmp_path)
    # One registers a sampler.
    monkeypatch.setattr(registry, "SAMPLERS", dict(registry.SAMPLERS))
    for variable, value in {**SHORT[name], "MODEL": "model"}.items():
        monkeypatch.setenv(variable, value)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    printed = capsys.readouterr().out
    made = {path.name for path in tmp_path.glob("*.png")}
    script = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert made == set(re.findall(r"\]\((\w+\.png)\)", script)) > set()
    # What is committed is what the script prints, but for its numbers.
    committed = (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8")
    assert without_numbers(printed)[0] == without_numbers(committed)[0]
    assert without_numbers(printed)[-1] == without_numbers(committed)[-1]


def without_numbers(text):
    """The lines, with "#" for every number, and one for several in a row."""
    lines = [re.sub(r"[\d.][\d.,e+:-]*", "#", line) for line in text.strip().splitlines()]
    return [re.sub(r"#(?:\s*#)*", "#", line) for line in lines]


def test_every_example_is_run_and_committed_with_its_pictures():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"ray_serve"}
    assert scripts == set(SHORT)
    for name in SHORT:
        assert (EXAMPLES / f"{name}.txt").stat().st_size > 0
        named = re.findall(r"\]\((\w+\.png)\)", (EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
        assert named
        assert all((EXAMPLES / picture).is_file() for picture in named)
