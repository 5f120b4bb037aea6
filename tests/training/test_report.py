"""The report of a training: one file with all that the log has, that loads nothing and runs nothing."""

from __future__ import annotations

import base64
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdiff.training import report
from fastdiff.training.report import write_report
from support.training_runs import metrics, trainer

SETTINGS = {
    "training": {"steps": 200, "batch_size": 10, "picture_guidance": 2.0},
    "network": {"channels": 8},
    "data": {"num_images": 12, "shape": [1, 4, 4], "source": "<script>alert(1)</script> & co"},
}


class Page(HTMLParser):
    """The tags of a page, which must be closed in order, and what they load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def logged(folder: Path, pictures: int = 3, steps: int = 200) -> Path:
    """A run folder with a log of entries at every tenth step, and looks at the last few."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pictures").mkdir()
    lines: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        by_timestep = [None, *(10 / step + i for i in range(1, 10))]
        lines.append({"step": step, "loss": 10 / step, "images_per_second": 50.0, "loss_by_timestep": by_timestep})
        if step > steps - 10 * pictures:
            name = f"pictures/step_{step:08d}.png"
            Image.fromarray(np.full((8, 8), step % 256, np.uint8)).save(folder / name)
            values = {"held_out_loss": 12 / step, "held_out_bits_per_dim": 2.0, "held_out_bits_per_dim_error": 0.1}
            values |= {"frechet_distance": 0.5, "frechet_distance_held_out": 0.25}
            lines.append({"step": step, **values, "picture": name, "seconds_looked": 1.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_report_shows_curves_pictures_and_settings(tmp_path: Path) -> None:
    path = write_report(logged(tmp_path / "<b>mine"), SETTINGS)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 4
    for said in ("Samples", "Loss by timestep", "Held-out bits/dim", "Fréchet distance", "Settings", "versions"):
        assert said in page.text
    assert "200 of 200" in page.text
    # 2,000 images at 50 a second, and three looks.
    assert "training took40 s" in page.text
    assert "looking took4 s" in page.text
    assert "no FID" in page.text
    assert "guidance 2" in page.text
    pictures = [base64.b64decode(link.partition(",")[2]) for link in page.loaded if link.startswith("data:image/png")]
    steps = [200, 190, 180]
    assert pictures == [(path.parent / "pictures" / f"step_{step:08d}.png").read_bytes() for step in steps]


def test_report_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text = write_report(logged(tmp_path / "<b>mine"), SETTINGS).read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith("data:") for link in page.loaded)
    assert not {"script", "iframe", "object", "b"} & set(page.tags)
    assert "<b>mine" in page.text
    assert "<script>alert(1)</script> & co" in page.text
    assert not re.search(r"url\(|@import|https?:", text)


def test_report_of_many_pictures_holds_some_of_them(tmp_path: Path) -> None:
    page = Page(write_report(logged(tmp_path / "run", pictures=20), SETTINGS).read_text(encoding="utf-8"))
    assert page.tags.count("img") == 12
    assert "12 of 20 pictures" in page.text


def test_report_of_a_long_training_stays_small(tmp_path: Path) -> None:
    path = write_report(logged(tmp_path / "run", pictures=0, steps=100_000), SETTINGS)
    assert path.stat().st_size < 50_000


@pytest.mark.parametrize("steps", [0, 10])
def test_report_of_hardly_any_training(steps: int, tmp_path: Path) -> None:
    page = Page(write_report(logged(tmp_path / "run", pictures=1, steps=steps), SETTINGS).read_text(encoding="utf-8"))
    assert page.tags.count("svg") == (4 if steps else 0)


def test_report_takes_values_that_are_no_numbers(tmp_path: Path) -> None:
    folder = logged(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 210, "loss": null, "held_out_bits_per_dim": null}\n{"step": 220, "loss": -1.0}\n{"st')
    Page(write_report(folder, SETTINGS).read_text(encoding="utf-8"))


def test_report_shows_no_picture_from_elsewhere(tmp_path: Path) -> None:
    folder = logged(tmp_path / "run")
    (tmp_path / "secret.png").write_bytes(b"secret")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 210, "picture": "../secret.png"}\n')
    assert Page(write_report(folder, SETTINGS).read_text(encoding="utf-8")).tags.count("img") == 3


def test_a_training_ends_with_its_report(tmp_path: Path) -> None:
    result = trainer(tmp_path, picture_every=3, num_pictures=4, trackers=()).run()
    assert result.report == tmp_path / "report.html"
    page = Page(result.report.read_text(encoding="utf-8"))
    assert page.tags.count("img") == 2
    assert "6 of 6" in page.text
    assert f"{metrics(tmp_path)[-2]['loss']:.4g}" in page.text


def test_a_report_that_cannot_be_written_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(report, "write_text", full)
    result = trainer(tmp_path, trackers=()).run()
    assert result.report is None
    (note,) = result.notes
    assert "report.html could not be written: No space left on device; checkpoints are intact" in note


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.11, 0.34, [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]),
        (5, 5, [5]),
        (-3, 1, [-3, -2, -1, 0, 1]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert report._ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.3, 4, [0.2, 0.5, 1, 2, 5]), (1, 1, [1]), (1e-5, 2, [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10])],
)
def test_log_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert report._log_ticks(low, high) == ticks
