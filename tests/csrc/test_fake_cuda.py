"""The loop's C++ over the fake CUDA runtime, under AddressSanitizer, UndefinedBehaviorSanitizer and LeakSanitizer."""

import os
import re
import subprocess

from support import fake_cuda


def test_every_failing_call_leaks_nothing_under_sanitizers():
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = fake_cuda.built("exercise", *flags, sources=(fake_cuda.FAKE / "exercise.cpp",))
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=1", "LD_PRELOAD": ""}
    done = subprocess.run([program], capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    # Some tens in each of three modes.
    assert int(re.fullmatch(r"(\d+) failures\n", done.stdout)[1]) > 90
