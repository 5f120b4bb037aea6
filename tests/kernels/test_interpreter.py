"""Runs the tests of the Triton kernels' values under Triton's interpreter, which must be chosen before Triton loads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in (ROOT / "tests/kernels/interpreter").glob("test_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_kernels_pass_their_tests_under_the_interpreter(file):
    pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
    command = [sys.executable, "-m", "pytest", f"tests/kernels/interpreter/{file}", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    summary = result.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed, output
    # Not a file that was skipped whole.
    assert int(passed[1]) > 10, output
    assert not re.search("skipped|deselected|xfailed", summary), output
