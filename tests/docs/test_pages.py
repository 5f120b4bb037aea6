"""Every command and snippet of the pages runs, each page from top to bottom in a folder of its own."""

import re

import pytest
import torch

from fastdiff.samplers import registry
from support.pages import ROOT, RUN, PageRun, blocks, free_port, pages

BLOCKS = {path.relative_to(ROOT).as_posix(): blocks(path.read_text(encoding="utf-8")) for path in pages()}
each = pytest.mark.parametrize("page", BLOCKS)
# On a line of its own in the changes of a page: a port that is free.
PORT = "PORT"


@pytest.mark.parametrize("page", [name for name, found in BLOCKS.items() if any(b.is_run or b.says for b in found)])
def test_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # A page registers a sampler.
    monkeypatch.setattr(registry, "SAMPLERS", dict(registry.SAMPLERS))
    torch.manual_seed(0)
    port = str(free_port())
    run = PageRun(tmp_path)
    try:
        for block in BLOCKS[page]:
            block.changes = [(old, new.replace(PORT, port)) for old, new in block.changes]
            run.run(block)
    finally:
        run.close()


@each
def test_what_is_not_run_says_why(page):
    for block in BLOCKS[page]:
        if block.reason is not None:
            assert len(block.reason.split()) >= 3, f"line {block.line}: expected a reason, got {block.reason!r}"
        if block.elsewhere is not None:
            assert (ROOT / block.elsewhere).is_file(), block.elsewhere


@each
def test_code_says_its_language(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(block.language for block in BLOCKS[page]), [block.line for block in BLOCKS[page] if not block.language]
    # Indented code has no language, and nothing would run it.
    outside = re.sub(r"^ *```.*?^ *```$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^\n    (?:fastdiff|curl|pip|docker|python) .*$", outside, re.MULTILINE)


def test_most_blocks_are_run():
    every = [block for found in BLOCKS.values() for block in found if block.language in RUN]
    run = [block for block in every if block.is_run or block.elsewhere]
    assert len(every) > 60
    assert len(run) / len(every) > 0.7, f"{len(run)} of {len(every)}"


def test_comments_are_understood():
    (found,) = blocks(
        "<!-- tests: 50000 -> 4; --steps 50 -> --steps 2 -->\n```bash\nfastdiff x -n 50000 --steps 50\n```\n"
    )
    assert found.changed() == "fastdiff x -n 4 --steps 2\n"
    (found,) = blocks("<!-- tests: a -> b -->\n```bash\nfastdiff\n```\n".replace("a -> b", "absent -> b"))
    with pytest.raises(ValueError, match="no 'absent'"):
        found.changed()
    with pytest.raises(ValueError, match="expected set-up"):
        blocks("<!-- tests: maybe -->\n```bash\nx\n```\n")
