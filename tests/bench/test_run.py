"""`bench/run.py` writes some suites' results beside those of all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="needs the extra bench")
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_results_of_one_suite_leave_those_of_all(tmp_path):
    results = ROOT / "bench" / "results"
    before = (results / "cpu.json").read_bytes()
    command = [
        sys.executable,
        str(ROOT / "bench" / "run.py"),
        "posterior_mean",
        "--out",
        str(tmp_path / "posterior_mean"),
    ]
    # A worker of xdist hands on variables that would switch the benchmarks off.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=clean)
    written = json.loads((tmp_path / "posterior_mean.json").read_text())
    assert written["results"]
    assert "keeps_freed_memory" in written["machine"]
    assert (results / "cpu.json").read_bytes() == before


def test_default_place_names_the_suites():
    code = (
        "import sys; sys.path.insert(0, 'bench'); import run; "
        "print(run.results_place(['step', 'diffuse', 'step']).name, run.results_place([]).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["cpu_diffuse_step", "cpu"]
