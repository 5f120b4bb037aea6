"""bench/gpu_checks.py: what the sections that are other programs make of what these say."""

import io
import os
import subprocess
import sys
import time

import gpu_checks
import pytest
from gpu_tasks import Context


@pytest.fixture
def context(tmp_path):
    return Context("sanitizer", tmp_path / "records.jsonl", time.monotonic() + 60, device="cpu")


def checked(context, text, code, seconds=0):
    """The row of a checker that said this and ended so."""
    log = io.BytesIO(text.encode())
    process = subprocess.Popen([sys.executable, "-c", f"import sys, time; time.sleep({seconds}); sys.exit({code})"])
    return gpu_checks._checked(context, process, log)


CLEAN = "launched step: passed\nlaunched add: passed\n========= ERROR SUMMARY: 0 errors\n"


def test_checker_that_found_nothing_is_a_pass(context):
    row = checked(context, CLEAN, 0)
    assert row == {"gate": "passed", "note": "2 launched: step: passed, add: passed"}


@pytest.mark.parametrize(
    ("text", "code", "gate", "reason"),
    [
        ("========= Invalid __global__ read of size 4\n========= ERROR SUMMARY: 3 errors", 86, "failed", "3 errors: I"),
        ("nothing of the kind", 86, "failed", "some errors"),
        ("launched step: failed\n========= ERROR SUMMARY: 0 errors", 1, "error", "it ended with status 1"),
        ("Target application terminated before first instrumented API call", 0, "error", "it ended with status 0"),
    ],
)  # fmt: skip
def test_checker_that_found_or_could_do_nothing_is_none(context, text, code, gate, reason):
    row = checked(context, text, code)
    assert row["gate"] == gate
    assert row["reason"].startswith(reason)


def test_checker_that_takes_too_long_is_ended_and_no_pass(context):
    context.end = time.monotonic() + 2.5
    row = checked(context, "launched step: passed\n", 0, seconds=60)
    assert row["gate"] == "not run"
    assert row["note"] == "1 launched: step: passed"


@pytest.mark.skipif(not (gpu_checks.ROOT / "csrc" / "cuda" / "nvcc.py").exists(), reason="there is no csrc/cuda here")
@pytest.mark.parametrize("status", [0, 1])
def test_library_is_in_its_place_only_when_it_is_whole(tmp_path, monkeypatch, status):
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo "release 13.0"; exit 0; fi\n'
        f'while [ "$1" != -o ]; do shift; done\necho half > "$2"\nexit {status}\n'
    )
    compiler.chmod(0o755)
    place = tmp_path / "_cuda.so"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_checks, "CUDA_LIBRARY", place)
    row = gpu_checks._cuda_library()
    assert row["gate"] == ("failed" if status else "passed")
    assert place.exists() == (status == 0)
    if not status:
        assert gpu_checks._cuda_library()["note"] == "there already"
        os.utime(place, (0, 0))
        assert gpu_checks._cuda_library()["note"].startswith("by ")
