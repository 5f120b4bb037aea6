"""The committed page of benchmarks is what its command makes of the committed results."""

import re

import matplotlib
import pytest
from page import MAKERS, ROOT, Goal, sections, times, write

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    write(folder)
    return folder


def test_page_is_what_the_command_makes(made):
    assert (made / "benchmarks.md").read_text() == (DOCS / "benchmarks.md").read_text(), "run python bench/page.py"


def test_figures_are_what_the_command_makes(made):
    committed = {path.name: path.read_text() for path in (DOCS / "benchmarks").glob("*.svg")}
    ours = {path.name: path.read_text() for path in (made / "benchmarks").glob("*.svg")}
    assert set(committed) == set(ours)
    for name, text in committed.items():
        # Another matplotlib draws the same with other bytes.
        if f"Matplotlib v{matplotlib.__version__}" in text:
            assert text == ours[name], f"{name}: run python bench/page.py"


def test_every_result_has_a_section_and_every_section_its_source():
    made = sections()
    assert [section.stem for section in made] == list(MAKERS)
    text = (DOCS / "benchmarks.md").read_text()
    for section in made:
        assert f"`{section.command}`" in text
        assert section.machine.get("commit") or section.machine["versions"]
        assert all(len(row) == len(section.header) for row in section.rows), section.stem


def test_losses_are_shown():
    """What is slower is marked in its row and listed at the top; what misses its goal says so."""
    assert times(0.5) == "**0.50x, slower**"
    assert times(2.0) == "2.00x"
    assert "missed" in Goal("x", 1.0, 2.0).line()
    assert "missed" not in Goal("x", 2.0, 2.0).line()
    text = (DOCS / "benchmarks.md").read_text()
    top = text.partition("## Where a peer is faster")[2].partition("\n## ")[0]
    slower = sum("slower" in "".join(row) for section in sections() for row in section.rows)
    assert len(re.findall("^- ", top, re.MULTILINE)) == slower


def test_results_without_a_section_are_refused(tmp_path):
    (tmp_path / "new.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a section"):
        sections(tmp_path)
