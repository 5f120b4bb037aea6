"""Tests of fastdiff.evaluation.written."""

from pathlib import Path

from fastdiff.evaluation.written import write_report


def test_parts_are_written_by_their_kind_and_in_their_order(tmp_path: Path) -> None:
    def draw(path: Path) -> Path:
        path.write_bytes(b"figure")
        return path

    folder = tmp_path / "new" / "report"
    written = write_report(folder, {"a.json": {"é": 1}, "b.csv": "x,y\n", "c.png": draw})
    assert written == [folder / name for name in ("a.json", "b.csv", "c.png")]
    assert [path.read_bytes() for path in written] == ['{\n  "é": 1\n}\n'.encode(), b"x,y\n", b"figure"]
