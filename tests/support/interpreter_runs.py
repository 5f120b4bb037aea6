"""Runs a file of tests under Triton's interpreter, which must be chosen before Triton loads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def files_in(folder):
    return sorted(path.name for path in (ROOT / folder).glob("test_*.py"))


def passes_under_the_interpreter(path, least):
    """The file's tests pass in a process of their own: so many at least, and none is skipped."""
    pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
    command = [sys.executable, "-m", "pytest", path, "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    summary = result.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed, output
    assert int(passed[1]) >= least, output
    assert not re.search("skipped|deselected|xfailed", summary), output
