"""The drawings are made of real objects, and what is committed is what their script makes."""

import importlib.util

import matplotlib

from support.pages import ROOT

DRAWINGS = ROOT / "docs" / "drawings"


def test_drawings_are_what_the_script_makes(tmp_path):
    spec = importlib.util.spec_from_file_location("draw", DRAWINGS / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    draw.main(tmp_path)
    assert {path.name for path in DRAWINGS.glob("*.svg")} == {f"{name}.svg" for name in draw.DRAWINGS}
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    for path in DRAWINGS.glob("*.svg"):
        assert f"(drawings/{path.name})" in page
        committed = path.read_text(encoding="utf-8")
        # Another matplotlib draws the same with other bytes.
        if f"Matplotlib v{matplotlib.__version__}" in committed:
            assert committed == (tmp_path / path.name).read_text(encoding="utf-8"), "run python docs/drawings/draw.py"
