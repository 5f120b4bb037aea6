"""docs/training.md has every setting of a training and every option of the command, with what it is for."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import typer

from fastdiff.cli.app import app
from fastdiff.training.config import CHANGEABLE, FREE, TrainConfig

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
# The table of settings: name, option, what for, default, whether it may change.
ROWS = {
    found[1]: [cell.strip() for cell in found[0].split("|")[1:-1]]
    for found in re.finditer(r"^\| `(\w+)` \|.*\|.*\|.*\|.*\|$", PAGE.partition("## Every setting")[2], re.MULTILINE)
}
FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]


def options() -> list[str]:
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    return [option for param in command.params for option in (*param.opts, *param.secondary_opts)]


@pytest.mark.parametrize("name", FIELDS)
def test_setting_is_told_with_what_it_is_for(name: str) -> None:
    assert name in ROWS, f"docs/training.md, Every setting, has no row for {name}"
    assert ROWS[name][2]
    may = "yes" if name in FREE else "with `--override`" if name in CHANGEABLE else "no"
    assert ROWS[name][4] == may


def test_settings_told_are_those_there_are() -> None:
    assert list(ROWS) == FIELDS


@pytest.mark.parametrize("option", options())
def test_option_of_the_command_is_told(option: str) -> None:
    assert re.search(rf"`[^`\n]*(?<![\w-]){re.escape(option)}(?![\w-])[^`\n]*`", PAGE), option
