"""Runs the tests of the Triton kernels' values under Triton's interpreter."""

import pytest

from support.interpreter_runs import files_in, passes_under_the_interpreter

FOLDER = "tests/kernels/interpreter"


@pytest.mark.slow
@pytest.mark.parametrize("file", files_in(FOLDER))
def test_kernels_pass_their_tests_under_the_interpreter(file):
    passes_under_the_interpreter(f"{FOLDER}/{file}", least=11)
