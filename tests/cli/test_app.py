"""The command line: every command on tiny things, and one clear line for whatever is wrong."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import fastdiff
from support.command_line import fails, run, works


def test_help_is_fast_and_imports_no_torch():
    script = (
        "import sys, time; start = time.process_time(); import fastdiff.cli; "
        "print(time.process_time() - start, 'torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert output[1] == "False"
    assert float(output[0]) < 1.5


def test_module_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "fastdiff", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"fastdiff {fastdiff.__version__}"


@pytest.mark.parametrize("command", ["demo", "train", "sample", "likelihood", "info"])
def test_help_of_every_command(command):
    assert command in works(command, "--help")


def test_unknown_command_is_named():
    result = run("sampel")
    assert result.exit_code == 2
    assert "sampel" in result.output


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "sample", tmp_path / "missing")
    assert isinstance(result.exception, ValueError)


def test_library_warnings_become_one_line(model, tmp_path):
    np.save(tmp_path / "positive.npy", np.full((2, 16, 16, 3), 0.5, dtype=np.float32))
    result = run("likelihood", model, tmp_path / "positive.npy")
    assert "warning: " in result.stderr
    assert "UserWarning" not in result.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "active"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")],
    ids=["nothing set", "a policy set", "a count set"],
)
def test_waiting_threads_sleep_early_unless_told(given, expected):
    script = (
        "import os, sys; from fastdiff.cli.app import main; sys.argv = ['fastdiff', '--version']\n"
        "try: main()\n"
        "finally: print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean | given, check=True)
    assert done.stdout.split()[-1] == expected


def test_messages_name_options_and_not_arguments(model, tmp_path):
    for i in range(2):
        Image.new("RGB", (16, 16 + i)).save(tmp_path / f"{i}.png")
    train = ["train", "--out", tmp_path / "run", "--steps", 1, "--data"]
    assert "pixels: --size 64 would crop and resize them all" in fails(*train, tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 8, 3), np.uint8))
    assert "may be NHWC or NCHW: give --layout NHWC or --layout NCHW" in fails(*train, tmp_path / "x.npy")
    assert "weights only, got --weights ema" in fails("sample", model, "--weights", "ema")
    assert "takes no --layout (got 'NCHW')" in fails(*train, tmp_path, "--layout", "NCHW")
    # What was typed stays as it was.
    assert "got 'size=3'" in fails(*train, "digits", "--set", "size=3")


def test_messages_are_bounded(tmp_path):
    assert len(fails("sample", tmp_path / ("x" * 100), "--label", "9" * 100_000)) < 5000
